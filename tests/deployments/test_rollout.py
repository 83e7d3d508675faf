"""The engine: one step at a time, once under any number of workers, resumable, and never without a reason."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from pytest_django import DjangoAssertNumQueries

from deployments import decisions, looks, plans, preview, releases, rollout, steps
from deployments.looks import Outcome
from deployments.models import BROKEN, Choice, Deployment, Release, RunStatus, Step, StepKind, StepLog, StepRun
from portal import properties, vault
from portal.errors import Busy, Invalid, NotAllowed
from portal.models import Environment, Flow
from runtimes import failover, fleet
from runtimes.models import Bundle, FailoverGroup, GroupRequest, Machine, Runtime
from runtimes.protocol import Preference
from tests.deployments.conftest import Engine, save_version
from tests.deployments.test_releases import together


def runtime(machine: str) -> Runtime:
    return Runtime.objects.select_related("machine", "connector").get(machine__name=machine, connector__name="erp")


def log(deployment: Deployment) -> list[str]:
    return [line.text for line in StepLog.objects.filter(step__deployment=deployment)]


def statuses(deployment: Deployment) -> list[str]:
    return [step.status for step in deployment.steps.all()]


# ----------------------------------------------------------------------------------------------------------------- prepare


def test_an_environment_without_machines_says_what_to_do(release: Release, acceptance: Environment, operator: User, engine: Engine) -> None:
    with pytest.raises(NotAllowed, match="cannot be deployed on Acceptance") as refusal:
        rollout.prepare(release, on=acceptance, by=operator, now=engine.now)
    assert refusal.value.reasons == ["Acceptance has no machines: apply the architecture and register agents there first."]


def test_every_obstacle_is_named(release: Release, filled: Environment, engine: Engine) -> None:
    plans.default_plan(filled)
    properties.remove_value(filled, "core01.failover.port")
    Machine.objects.filter(name="external01").update(joined_at=None)
    Machine.objects.filter(name="external02").update(last_report_at=engine.now - timedelta(seconds=40))
    step = plans.add_step(plans.plan_of(filled), StepKind.DEPLOY_MACHINE, machine="core01")
    Step.objects.filter(pk=step.pk).update(machine="core09")
    assert rollout.obstacles(release, filled, now=engine.now) == [
        "Release 1 is not active on Test: activate it first.",
        "external01 has no agent: register it in Deploy › Architecture.",
        "external02 has not been heard from for 40 s. Start its agent, or leave external02 out.",
        "witness on core01 needs a value for core01.failover.port (Failover port).",
        "Step 5, Deploy machine core09: core09 is no machine on Test. There is core01, external01, external02.",
    ]


def test_nothing_stands_in_the_way_of_a_prepared_environment(active: Release, filled: Environment, engine: Engine) -> None:
    assert rollout.obstacles(active, filled, now=engine.now) == []


def test_preparing_copies_the_plan_and_sends_the_first_step(active: Release, filled: Environment, engine: Engine, developer: User) -> None:
    deployment = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    assert (deployment.status, deployment.created_by) == (RunStatus.PENDING, developer)
    assert [step.title for step in deployment.steps.all()] == [step.title for step in plans.plan_of(filled).steps.all()]
    assert engine.sent == [deployment.steps.get(number=1).pk]
    plans.plan_of(filled).steps.all().delete()
    assert deployment.steps.count() == 5


def test_a_second_deployment_is_refused_naming_the_first(active: Release, filled: Environment, engine: Engine, developer: User) -> None:
    first = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    with pytest.raises(Busy, match=f"Deployment {first.pk} of release 1 is under way on Test: wait for it to end, or cancel it"):
        rollout.prepare(active, on=filled, by=developer, now=engine.now)
    with pytest.raises(Busy):
        rollout.refuse_while_deploying(filled)


@pytest.mark.django_db(transaction=True)
def test_of_two_people_deploying_at_once_one_wins(active: Release, filled: Environment, engine: Engine, developer: User) -> None:
    results = together(*[lambda: rollout.prepare(active, on=filled, by=developer, now=engine.now)] * 3)
    assert sorted(type(result).__name__ for result in results) == ["Busy", "Busy", "Deployment"]


# --------------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def deployed(active: Release, filled: Environment, engine: Engine, developer: User) -> Deployment:
    """The first deployment of the default plan, ended well; external02 preferred."""
    failover.prefer(runtime("external02"), Preference.LEADER)
    return engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))


def test_the_default_plan_runs_to_a_proven_balance(deployed: Deployment, engine: Engine) -> None:
    assert (deployed.status, deployed.alerting_off) == (RunStatus.SUCCEEDED, False)
    assert deployed.started_at and deployed.ended_at
    assert [step.reason for step in deployed.steps.all()] == [
        "No alerts for Test until this deployment ends.",
        "All 3 routers run: core01 on 10.0.0.10:2380, external01 on 10.0.0.11:2380, external02 on 10.0.0.12:2380.",
        "external01.erp runs release 1.",
        "external02.erp runs release 1.",
        "external02 leads erp-orders, as preferred.",
    ]
    assert engine.machines.interrupted == []
    assert engine.machines.handed_over == [("external02.erp", "balance")]
    assert deployed.steps.get(number=5).memory["groups"][0]["state"] == "done"
    assert deployed.steps.get(number=3).memory["runtimes"]["external01.erp"]["digest"] == runtime("external01").observed_digest


def test_the_same_release_again_restarts_nothing_and_balances(
    deployed: Deployment, active: Release, filled: Environment, engine: Engine, developer: User
) -> None:
    failover.switch(FailoverGroup.objects.get(), candidate="external01", expected_leader=None, actor="operator", now=engine.now)
    engine.pass_time(1)
    assert list(engine.machines.leaders.values()) == ["external01.erp"]
    again = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    assert again.status == RunStatus.SUCCEEDED
    assert [step.reason for step in again.steps.all()][2:] == [
        "external01.erp already runs this bundle: not restarted.",
        "external02.erp already runs this bundle: not restarted.",
        "external02 leads erp-orders, as preferred.",
    ]
    assert engine.machines.interrupted == []


def test_a_leader_hands_over_before_it_is_redeployed(
    deployed: Deployment, flow: Flow, filled: Environment, engine: Engine, developer: User
) -> None:
    save_version(flow, 1)
    second = releases.build(flow.connector.project, name="Second", by=developer)
    releases.activate(second, filled, by=developer, now=engine.now)
    engine.machines.handed_over.clear()
    run = engine.run(rollout.prepare(second, on=filled, by=developer, now=engine.now))
    assert run.status == RunStatus.SUCCEEDED
    assert engine.machines.interrupted == [], "no runtime was changed while it led"
    assert engine.machines.handed_over == [("external01.erp", "deploy"), ("external02.erp", "balance")]
    assert "external01.erp is asked to take over erp-orders from external02.erp first." in log(run)
    assert {item.observed_release for item in Runtime.objects.all()} == {2}
    assert GroupRequest.objects.filter(cause="deploy").get().actor == f"deployment {run.pk}"


def test_a_hand_over_that_fails_stops_the_plan_before_anything_is_changed(
    deployed: Deployment, flow: Flow, filled: Environment, engine: Engine, developer: User
) -> None:
    engine.machines.refusing = "the drain limit of 5 s passed"
    save_version(flow, 1)
    second = releases.build(flow.connector.project, name="Second", by=developer)
    releases.activate(second, filled, by=developer, now=engine.now)
    run = engine.run(rollout.prepare(second, on=filled, by=developer, now=engine.now))
    assert run.status == RunStatus.FAILED
    assert run.steps.get(number=4).reason == (
        "external02.erp leads erp-orders, and its leadership was not handed over: the drain limit of 5 s passed."
    )
    assert runtime("external02").observed_release == 1
    engine.machines.refusing = ""
    rollout.resume(run, by=developer, now=engine.now)
    assert engine.run(run).status == RunStatus.SUCCEEDED
    assert engine.machines.interrupted == []


def test_deploying_starts_a_stopped_runtime(
    deployed: Deployment, active: Release, filled: Environment, engine: Engine, developer: User
) -> None:
    fleet.stop(runtime("external01"))
    engine.pass_time(1)
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    assert run.status == RunStatus.SUCCEEDED
    assert "external01.erp was stopped by a person; deploying starts it." in log(run)
    assert runtime("external01").desired_running


# ------------------------------------------------------------------------------------------------------- failing and resuming


def test_a_silent_agent_ends_in_a_time_out_and_the_same_run_resumes_there(
    active: Release, filled: Environment, engine: Engine, developer: User
) -> None:
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now), until=4)
    engine.machines.silent.add("external02")
    engine.run(run, every=5)
    assert run.status == RunStatus.TIMED_OUT
    failed = run.steps.get(number=4)
    assert failed.status == RunStatus.TIMED_OUT
    assert failed.reason.startswith("external02.erp did not report ready within 120 s: external02 has not been heard from for 1")
    assert len([line for line in log(run) if "has not been heard from" in line]) == 2, "once as news, once as the end"
    before = {step.number: (step.started_at, step.ended_at, step.attempt) for step in run.steps.filter(number__lt=4)}
    engine.machines.silent.clear()
    engine.pass_time(1)
    rollout.resume(run, by=developer, now=engine.now)
    assert run.alerting_off, "the step alerting off had succeeded in this run"
    assert engine.run(run).status == RunStatus.SUCCEEDED
    assert not run.alerting_off
    assert {step.number: (step.started_at, step.ended_at, step.attempt) for step in run.steps.filter(number__lt=4)} == before
    assert run.steps.get(number=4).attempt == 2
    assert "Resumed by developer, attempt 2." in log(run)


def test_a_failed_runtime_fails_the_step_with_its_reason(active: Release, filled: Environment, engine: Engine, developer: User) -> None:
    engine.machines.failing["external01.erp"] = "the bundle does not match its digest"
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    assert run.status == RunStatus.FAILED
    step = run.steps.get(number=3)
    assert step.reason == "external01.erp failed: the bundle does not match its digest."
    assert step.ended_at and step.started_at and step.ended_at - step.started_at < timedelta(seconds=10)
    assert statuses(run) == ["succeeded", "succeeded", "failed", "pending", "pending"]


def test_a_runtime_that_failed_with_these_orders_starts_anew(active: Release, filled: Environment, engine: Engine, developer: User) -> None:
    engine.machines.failing["external01.erp"] = "no memory"
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    rollout.resume(run, by=developer, now=engine.now)
    engine.tick(run)
    assert "external01.erp has these orders already but is failed: it starts anew." in log(run)
    assert runtime("external01").desired_restarts == 1
    engine.machines.failing.clear()
    engine.pass_time(1)
    assert engine.run(run).status == RunStatus.SUCCEEDED


def test_a_secret_that_went_missing_fails_the_step_that_needs_it(
    active: Release, filled: Environment, engine: Engine, developer: User
) -> None:
    properties.set_value(filled, "erp.outbox", "/srv/erp/outbox", secret=True, by=developer)
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now), until=4)
    properties.remove_value(filled, "erp.outbox")
    engine.run(run)
    assert run.steps.get(number=4).reason.startswith(f"The secret erp.outbox was removed since deployment {run.pk} froze its values: ")
    assert run.status == RunStatus.FAILED
    assert runtime("external02").desired_bundle is None


@pytest.mark.parametrize("status", ["succeeded", "cancelled", "running"])
def test_only_a_failed_deployment_is_resumed(active: Release, filled: Environment, engine: Engine, developer: User, status: str) -> None:
    run = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    Deployment.objects.update(status=status)
    with pytest.raises(NotAllowed, match="only one that failed can be resumed"):
        rollout.resume(run, by=developer, now=engine.now)


@pytest.fixture
def broken(active: Release, filled: Environment, engine: Engine, developer: User) -> Deployment:
    """A deployment that failed at its third step."""
    engine.machines.failing["external01.erp"] = "no memory"
    return engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))


def test_a_resume_waits_for_nobody_else(broken: Deployment, active: Release, filled: Environment, engine: Engine, developer: User) -> None:
    other = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    with pytest.raises(Busy, match=f"Deployment {other.pk} of release 1 is under way"):
        rollout.resume(broken, by=developer, now=engine.now)
    rollout.cancel(other, by=developer, now=engine.now)
    with pytest.raises(NotAllowed, match=f"Deployment {other.pk} ran since: deploy again"):
        rollout.resume(broken, by=developer, now=engine.now)


def test_a_release_that_is_no_longer_active_is_not_resumed(
    broken: Deployment, filled: Environment, engine: Engine, developer: User
) -> None:
    second = releases.build(filled.project, name="Second", by=developer)
    releases.activate(second, filled, by=developer, now=engine.now)
    with pytest.raises(NotAllowed, match="Release 1 is no longer active on Test: deploy the active release instead"):
        rollout.resume(broken, by=developer, now=engine.now)


@pytest.mark.django_db(transaction=True)
def test_two_people_resuming_at_once_resume_once(broken: Deployment, engine: Engine, developer: User) -> None:
    results = together(*[lambda: rollout.resume(Deployment.objects.get(pk=broken.pk), by=developer, now=engine.now)] * 3)
    assert results.count(None) == 1
    assert broken.steps.get(number=3).attempt == 2


# ------------------------------------------------------------------------------------------------------------- worker by worker


class Counting(steps.Kind):
    """A step that counts how often it was begun, in the database and outside of it."""

    def __init__(self) -> None:
        self.begun = 0
        self.error: Exception | None = None
        self.outcome: Outcome = looks.running("Not yet.")

    def begin(self, step: StepRun, now: datetime) -> None:
        self.begun += 1
        looks.note(step, "begun", now)
        if self.error:
            raise self.error

    def check(self, step: StepRun, now: datetime) -> Outcome:
        return self.outcome


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    kind = Counting()
    monkeypatch.setattr(steps, "KINDS", {**steps.KINDS, StepKind.ALERTING_OFF: kind})
    return kind


@pytest.fixture
def run(active: Release, filled: Environment, engine: Engine, developer: User, counting: Counting) -> Deployment:
    """A prepared deployment whose first step counts."""
    return rollout.prepare(active, on=filled, by=developer, now=engine.now)


@pytest.mark.django_db(transaction=True)
def test_many_workers_begin_a_step_once(run: Deployment, engine: Engine, counting: Counting) -> None:
    first = run.steps.get(number=1).pk
    results = together(*[lambda: rollout.tick(first, now=engine.now)] * 6)
    assert counting.begun == 1
    assert log(run).count("begun") == 1
    assert all(isinstance(result, str) for result in results), results


@pytest.mark.django_db(transaction=True)
def test_many_workers_end_a_step_once_and_send_the_next_once(run: Deployment, engine: Engine, counting: Counting) -> None:
    counting.outcome = looks.done("Done.")
    engine.sent.clear()
    first = run.steps.get(number=1).pk
    together(*[lambda: rollout.tick(first, now=engine.now)] * 6)
    assert engine.sent == [run.steps.get(number=2).pk]
    assert log(run).count("Done.") == 1


def test_a_worker_that_dies_in_the_middle_leaves_nothing_and_the_sweep_repeats(run: Deployment, engine: Engine, counting: Counting) -> None:
    counting.error = SystemExit("killed")  # type: ignore[assignment] # as little caught by anybody as a kill
    with pytest.raises(SystemExit):
        engine.tick(run)
    step = run.steps.get(number=1)
    assert (step.status, step.started_at, log(run)) == (RunStatus.PENDING, None, [])
    assert rollout.stalled(engine.now + timedelta(seconds=1)) == []
    assert rollout.stalled(engine.now + timedelta(seconds=2)) == [(step.pk, step.kind)]
    counting.error = None
    counting.outcome = looks.done("Done.")
    engine.tick(run)
    assert run.steps.get(number=1).status == RunStatus.SUCCEEDED
    assert log(run) == ["begun", "Done."]


def test_an_order_half_given_is_taken_back_when_the_worker_dies(
    active: Release, filled: Environment, engine: Engine, developer: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now), until=3)
    genuine = fleet.assign

    def dies(*args: Any, **named: Any) -> None:
        genuine(*args, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fleet, "assign", dies)
        with pytest.raises(KeyboardInterrupt):
            engine.tick(deployment)
    assert runtime("external01").desired_bundle is None
    assert deployment.steps.get(number=3).status == RunStatus.PENDING
    assert engine.run(deployment).status == RunStatus.SUCCEEDED


def test_an_unforeseen_error_is_told_and_ends_the_step_after_a_while(run: Deployment, engine: Engine, counting: Counting) -> None:
    counting.error = ZeroDivisionError("division by zero")
    for _ in range(rollout.STUMBLES_ALLOWED):
        assert run.steps.get(number=1).status == RunStatus.PENDING
        with pytest.raises(ZeroDivisionError):
            engine.tick(run)
    run.refresh_from_db()
    step = run.steps.get(number=1)
    assert (run.status, step.status) == (RunStatus.FAILED, RunStatus.FAILED)
    assert step.reason == "An error that should not happen: ZeroDivisionError: division by zero (time 5 of 5)."
    assert "begun" not in log(run)


def test_a_refusal_fails_the_step_and_takes_back_what_was_half_ordered(run: Deployment, engine: Engine, counting: Counting) -> None:
    counting.error = NotAllowed("Two votes without a witness.")
    engine.tick(run)
    run.refresh_from_db()
    assert (run.status, run.steps.get(number=1).reason) == (RunStatus.FAILED, "Two votes without a witness.")
    assert log(run) == ["Two votes without a witness."]


def test_a_step_ends_at_its_deadline_with_the_reason_of_the_last_look(run: Deployment, engine: Engine, counting: Counting) -> None:
    engine.tick(run)
    engine.now += timedelta(seconds=119)
    engine.tick(run)
    assert run.steps.get(number=1).status == RunStatus.RUNNING
    engine.now += timedelta(seconds=1)
    engine.tick(run)
    run.refresh_from_db()
    assert run.status == RunStatus.TIMED_OUT
    assert run.steps.get(number=1).reason == "Alerting off until the deployment ends did not end within 120 s: Not yet."
    assert log(run)[:2] == ["begun", "Not yet."]


def test_a_doubled_or_late_wake_up_changes_nothing(run: Deployment, engine: Engine, counting: Counting) -> None:
    first, second = run.steps.filter(number__lte=2)
    assert "is pending: nothing to do" in rollout.tick(second.pk, now=engine.now)
    counting.outcome = looks.done("Done.")
    rollout.tick(first.pk, now=engine.now)
    assert "is succeeded: nothing to do" in rollout.tick(first.pk, now=engine.now)
    assert "is not running" in rollout.tick(987654, now=engine.now)
    assert counting.begun == 1


# ----------------------------------------------------------------------------------------------------------------- wake-ups


def test_a_report_wakes_a_step_of_another_machine_only_where_it_may_wait_for_it(
    run: Deployment, filled: Environment, engine: Engine
) -> None:
    """Forty machines that run the same connector side by side report twenty times a second: none of it is news for a step of one."""
    step = run.steps.filter(kind=StepKind.DEPLOY_RUNTIME, machine="external01").get()
    run.steps.exclude(pk=step.pk).update(status=RunStatus.SUCCEEDED)
    type(step).objects.filter(pk=step.pk).update(status=RunStatus.RUNNING)

    def woken_by(machine: str) -> list[int]:
        engine.sent.clear()
        rollout.wake(filled.pk, machine)
        return list(engine.sent)

    assert woken_by("external01") == woken_by("external02") == [step.pk], "siblings in failover take over from each other"
    assert woken_by("core01") == []
    Runtime.objects.update(failover=False)
    assert (woken_by("external01"), woken_by("external02")) == ([step.pk], [])
    Runtime.objects.filter(machine__name="external02").update(held="until it is deployed.")
    assert woken_by("external02") == [step.pk], "the step may wait for it to stop"


def test_a_report_wakes_the_current_step(run: Deployment, filled: Environment, acceptance: Environment, engine: Engine) -> None:
    engine.sent.clear()
    rollout.wake(filled.pk)
    rollout.wake(acceptance.pk)
    assert engine.sent == [run.steps.get(number=1).pk]


def test_a_report_costs_one_query_when_nothing_is_deployed(
    broken: Deployment, filled: Environment, engine: Engine, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    engine.sent.clear()
    with django_assert_num_queries(1):
        rollout.wake(filled.pk)
    assert engine.sent == []
    assert rollout.stalled(engine.now + timedelta(hours=1)) == []


# ----------------------------------------------------------------------------------------------------- cancel, manual, alerts


def test_a_cancel_takes_effect_at_once_and_may_be_repeated(run: Deployment, engine: Engine, developer: User, operator: User) -> None:
    engine.tick(run)
    rollout.cancel(run, by=operator, now=engine.now)
    rollout.cancel(run, by=operator, now=engine.now)
    assert (run.status, run.alerting_off) == (RunStatus.CANCELLED, False)
    assert set(statuses(run)) == {"cancelled"}
    assert log(run)[-1] == "Cancelled by operator."
    assert "is not running" in rollout.tick(run.steps.get(number=1).pk, now=engine.now)
    with pytest.raises(NotAllowed, match="only one that failed"):
        rollout.resume(run, by=operator, now=engine.now)


def test_what_has_ended_can_not_be_cancelled(broken: Deployment, engine: Engine, operator: User) -> None:
    with pytest.raises(NotAllowed, match=r"has ended already \(failed\): there is nothing to cancel"):
        rollout.cancel(broken, by=operator, now=engine.now)


def test_a_manual_step_waits_for_a_person(active: Release, filled: Environment, engine: Engine, operator: User) -> None:
    plans.add_step(plans.plan_of(filled), StepKind.MANUAL, position=2, instruction="Call the warehouse.", timeout_seconds=3 * 24 * 3600)
    run = engine.run(rollout.prepare(active, on=filled, by=operator, now=engine.now))
    step = run.steps.get(number=2)
    assert (run.status, step.status, step.reason) == (RunStatus.WAITING, RunStatus.WAITING, "Call the warehouse.")
    assert run.alerting_off
    engine.now += timedelta(days=2)
    assert rollout.stalled(engine.now) == [] == rollout.end_waits(engine.now)
    rollout.tick(step.pk, now=engine.now)
    engine.pass_time(1)
    rollout.confirm(step, by=operator, now=engine.now)
    rollout.confirm(step, by=operator, now=engine.now)
    assert (step.status, step.reason) == (RunStatus.SUCCEEDED, "Confirmed by operator.")
    assert engine.run(run).status == RunStatus.SUCCEEDED


def test_a_manual_step_that_nobody_confirms_times_out_with_a_choice(
    active: Release, filled: Environment, engine: Engine, operator: User
) -> None:
    plans.add_step(plans.plan_of(filled), StepKind.MANUAL, position=2, instruction="Call the warehouse.", timeout_seconds=60)
    run = engine.run(rollout.prepare(active, on=filled, by=operator, now=engine.now))
    engine.pass_time(59)
    assert rollout.end_waits(engine.now) == []
    engine.pass_time(2)
    assert rollout.end_waits(engine.now) == ["2. Manual: wait for a person: Nobody confirmed it within 60 s: Call the warehouse."]
    assert rollout.end_waits(engine.now) == []
    run.refresh_from_db()
    assert (run.status, run.steps.get(number=2).status, run.alerting_off) == (RunStatus.TIMED_OUT, RunStatus.TIMED_OUT, False)
    with pytest.raises(NotAllowed, match="is timed out: it waits for nobody"):
        rollout.confirm(run.steps.get(number=2), by=operator, now=engine.now)
    offered = decisions.offers(run, by=operator, now=engine.now)
    assert [offer.choice for offer in offered if not offer.refusal] == ["retry", "skip", "abort"]
    decisions.decide(run, Choice.RETRY, by=operator, now=engine.now)
    engine.run(run)
    rollout.confirm(run.steps.get(number=2), by=operator, now=engine.now)
    assert engine.run(run).status == RunStatus.SUCCEEDED


def test_a_manual_step_that_times_out_in_one_lane_lets_the_other_lane_come_to_its_end(
    active: Release, filled: Environment, engine: Engine, operator: User
) -> None:
    plan = plans.plan_of(filled)
    plans.add_step(plan, StepKind.MANUAL, position=2, instruction="Look.", timeout_seconds=5, stage="Both", lane="people")
    plans.add_step(plan, StepKind.RESTART_RUNTIME, machine="external01", connector="erp", position=3, stage="Both", lane="machines")
    run = rollout.prepare(active, on=filled, by=operator, now=engine.now)
    StepRun.objects.filter(deployment=run, number=3).update(kind=StepKind.HTTP_CHECK, url="http://127.0.0.1:9/", machine="", connector="")
    for number in (1, 2, 3):
        rollout.tick(run.steps.get(number=number).pk, now=engine.now)
    engine.pass_time(6)
    assert len(rollout.end_waits(engine.now)) == 1
    run.refresh_from_db()
    assert [str(step.status) for step in run.steps.all()][1:3] == ["timed-out", "running"] and run.status == RunStatus.RUNNING
    rollout.record_answer(run.steps.get(number=3).pk, 1, status=200, reason="", now=engine.now)
    rollout.tick(run.steps.get(number=3).pk, now=engine.now)
    run.refresh_from_db()
    assert (run.status, run.steps.get(number=3).status) == (RunStatus.TIMED_OUT, RunStatus.SUCCEEDED)


def test_a_manual_step_without_a_limit_of_its_own_waits_a_day(filled: Environment, active: Release) -> None:
    step = plans.add_step(plans.plan_of(filled), StepKind.MANUAL, position=1, instruction="Look.")
    assert step.timeout_seconds == 24 * 3600
    plans.change_step(step, timeout_seconds=14 * 24 * 3600)
    with pytest.raises(Invalid, match="from 1 to 1209600"):
        plans.change_step(step, timeout_seconds=14 * 24 * 3600 + 1)


def test_only_a_waiting_step_is_confirmed(run: Deployment, engine: Engine, operator: User) -> None:
    with pytest.raises(NotAllowed, match="is pending: it waits for nobody"):
        rollout.confirm(run.steps.get(number=1), by=operator, now=engine.now)
    run.refresh_from_db()
    assert run.status == RunStatus.PENDING


def test_a_waiting_deployment_is_cancelled(active: Release, filled: Environment, engine: Engine, operator: User) -> None:
    plans.add_step(plans.plan_of(filled), StepKind.MANUAL, position=1, instruction="Wait.")
    run = engine.run(rollout.prepare(active, on=filled, by=operator, now=engine.now))
    rollout.cancel(run, by=operator, now=engine.now)
    with pytest.raises(NotAllowed, match="is cancelled"):
        rollout.confirm(run.steps.get(number=1), by=operator, now=engine.now)


def test_alerts_are_off_while_the_deployment_runs(active: Release, filled: Environment, engine: Engine, operator: User) -> None:
    run = rollout.prepare(active, on=filled, by=operator, now=engine.now)
    assert rollout.quiet_on([run.environment_id]) == set()
    engine.tick(run)
    assert rollout.quiet_on([run.environment_id]) == {run.environment_id}
    rollout.cancel(run, by=operator, now=engine.now)
    assert rollout.quiet_on([run.environment_id]) == set()


def test_alerts_are_off_only_while_the_deployment_runs(broken: Deployment) -> None:
    assert broken.status in BROKEN
    assert rollout.quiet_on([broken.environment_id]) == set()
    assert broken.steps.get(number=1).status == RunStatus.SUCCEEDED
    assert not broken.alerting_off


def test_after_a_property_key_is_lost_secrets_set_anew_and_a_deployment_mend_everything(
    active: Release, filled: Environment, engine: Engine, developer: User, settings: Any, tmp_path: Any
) -> None:
    settings.BATON_HOME = tmp_path
    properties.set_value(filled, "queues.url", "redis://:hunter2@127.0.0.1:7000/0", secret=True, by=developer)
    assert engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now)).status == RunStatus.SUCCEEDED
    vault.keep_keys([vault.new_key()])
    with pytest.raises(NotAllowed, match=r"The secret queues.url \(global\) cannot be read: .* or set the secret anew"):
        rollout.prepare(active, on=filled, by=developer, now=engine.now)
    properties.set_value(filled, "queues.url", "redis://:hunter2@127.0.0.1:7000/0", by=developer)
    told = preview.look(active, filled, list(plans.plan_of(filled).steps.all()), now=engine.now)
    assert all("cannot be read, the property key of its bundle is missing" in sight.why for sight in told.runtimes.values())
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    assert run.status == RunStatus.SUCCEEDED, [step.reason for step in run.steps.all()]
    assert not engine.machines.handed_over, "the bundles are the same to the byte: nothing is touched"
    assert not any(bundle.is_lost for bundle in Bundle.objects.all())


def test_a_runtime_that_lacks_a_group_tells_which_deployment_brings_it(engine: Engine, active: Release, developer: User) -> None:
    runtimes = {row.key: row for row in Runtime.objects.select_related("machine", "connector")}
    assert [rollout.bringing(row) for row in runtimes.values()] == ["", ""]
    run = rollout.prepare(active, on=engine.machines.environment, by=developer, now=engine.now)
    assert {rollout.bringing(row) for row in runtimes.values()} == {f"deployment {run.pk}, under way,"}
    run.steps.filter(machine="external01").update(status=RunStatus.SUCCEEDED)
    assert [rollout.bringing(runtimes[key]) for key in ("external01.erp", "external02.erp")] == ["", f"deployment {run.pk}, under way,"]
