"""What a deployment does when something stands in its way, and what people may decide then."""

import base64
import json
from datetime import timedelta
from urllib.parse import quote

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deployments import (
    decisions,
    grid,
    landscape,
    overview,
    plans,
    promotion,
    releases,
    returning,
    rollback,
    rollout,
    sheet,
    sides,
    steps,
    tasks,
)
from deployments.models import (
    BROKEN,
    LIVE,
    Activation,
    ActivationStatus,
    Choice,
    Decision,
    Deployment,
    Exclusion,
    FrozenValues,
    Release,
    RuleOverride,
    RunStatus,
    StepKind,
    StepLog,
    StepRun,
)
from portal import properties
from portal.errors import Invalid, NotAllowed
from portal.models import Environment, Flow, FlowVersion, Property
from runtimes import failover, fleet, ordering
from runtimes.models import CommandRun, Machine, Runtime
from runtimes.protocol import BundleContent, CommandReport, CommandStatus, Preference, decode
from tests.deployments.conftest import Engine, save_version
from tests.deployments.test_releases import together


def runtime(machine: str, connector: str = "erp") -> Runtime:
    return Runtime.objects.select_related("machine", "connector", "environment").get(machine__name=machine, connector__name=connector)


def statuses(deployment: Deployment) -> list[str]:
    return [str(step.status) for step in deployment.steps.all()]


def log(deployment: Deployment) -> list[str]:
    return [line.text for line in StepLog.objects.filter(deployment=deployment)]


class Upgrade:
    """Release 1 runs on Test, external01 leads; release 2 is active and about to be deployed."""

    def __init__(self, engine: Engine, environment: Environment, flow: Flow, person: User) -> None:
        self.engine, self.environment, self.flow, self.person = engine, environment, flow, person

    def release(self, minor: int) -> Release:
        save_version(self.flow, minor, name=f"orders-{minor}")
        made = releases.build(self.environment.project, name=f"1.{minor}", by=self.person)
        releases.activate(made, self.environment, by=self.person, now=self.engine.now)
        return made

    def begin(self, release: Release | None = None) -> Deployment:
        release = release or self.release(FlowVersion.objects.count())
        return rollout.prepare(release, on=self.environment, by=self.person, now=self.engine.now)

    def decide(self, deployment: Deployment, choice: Choice, reason: str = "", machine: str = "") -> Deployment:
        return decisions.decide(deployment, choice, by=self.person, now=self.engine.now, reason=reason, machine=machine)

    def offer(self, deployment: Deployment, choice: Choice) -> decisions.Offer | None:
        return next((offer for offer in decisions.offers(deployment, by=self.person, now=self.engine.now) if offer.choice == choice), None)


@pytest.fixture
def upgrade(active: Release, filled: Environment, engine: Engine, flow: Flow, developer: User) -> Upgrade:
    failover.prefer(runtime("external01"), Preference.LEADER)
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    assert run.status == RunStatus.SUCCEEDED
    assert list(engine.machines.leaders.values()) == ["external01.erp"]
    engine.machines.handed_over.clear()
    return Upgrade(engine, filled, flow, developer)


@pytest.fixture
def stuck(upgrade: Upgrade) -> Deployment:
    """external02 was stopped by a person and is not part of the plan: external01 leads and nobody could take over."""
    fleet.stop(runtime("external02"))
    upgrade.engine.pass_time(1)
    plan = plans.plan_of(upgrade.environment)
    plans.remove_step(plan.steps.get(machine="external02"))
    return upgrade.engine.run(upgrade.begin())


# --------------------------------------------------------------------------------------------------------------------- gates


def test_a_leader_without_a_ready_follower_is_not_touched(upgrade: Upgrade, stuck: Deployment) -> None:
    step = stuck.steps.get(number=3)
    assert (stuck.status, step.status) == (RunStatus.FAILED, RunStatus.FAILED)
    assert step.reason == (
        "external01.erp leads erp-orders, and no follower is ready to take over: external02.erp was stopped by a person. "
        "Make one ready and retry, or override with a reason."
    )
    assert upgrade.engine.machines.interrupted == []
    assert runtime("external01").observed_release == 1


def test_a_person_may_override_with_a_reason_that_is_kept(upgrade: Upgrade, stuck: Deployment) -> None:
    with pytest.raises(Invalid, match="Say why"):
        upgrade.decide(stuck, Choice.OVERRIDE)
    upgrade.decide(stuck, Choice.OVERRIDE, "The window ends at six.")
    upgrade.engine.run(stuck, until=4)
    step = stuck.steps.get(number=3)
    assert (step.status, step.attempt) == (RunStatus.SUCCEEDED, 2)
    assert step.override == "developer took it upon himself: The window ends at six."
    assert upgrade.engine.machines.interrupted == ["external01.erp"]
    assert any("goes on without a hand-over. developer took it upon himself" in line for line in log(stuck))
    kept = Decision.objects.get()
    assert (kept.choice, kept.reason, kept.by) == (Choice.OVERRIDE, "The window ends at six.", upgrade.person)


def test_going_on_without_a_standby_comes_to_its_end_and_stays_told(client: Client, upgrade: Upgrade) -> None:
    engine = upgrade.engine
    fleet.stop(runtime("external02"))
    engine.pass_time(1)
    run = engine.run(upgrade.begin())
    offer = upgrade.offer(run, Choice.OVERRIDE)
    assert offer is not None and offer.steps == [3]
    assert offer.effect == (
        "external01.erp is touched although it leads and nobody is ready to take over: the data waits until it runs again."
    )
    upgrade.decide(run, Choice.OVERRIDE, "The window ends at six.")
    assert engine.run(run).status == RunStatus.SUCCEEDED
    assert (engine.machines.interrupted, engine.machines.handed_over) == (["external01.erp"], [])
    assert run.steps.get(number=4).reason == "external02.erp runs release 2.", "deploying starts it again"
    (proof,) = run.steps.get(kind=StepKind.BALANCE_FAILOVER).memory["groups"]
    assert (proof["leader"], {one["release"] for one in proof["members"]}) == ("external01.erp", {2})
    client.force_login(upgrade.person)
    html = client.get(run.get_absolute_url()).content.decode()
    assert "developer took it upon himself: The window ends at six." in html
    assert "Go on without a standby" in html and "at step 3" in html


@pytest.mark.parametrize(("gate", "said"), [("leader", "could not be touched"), ("", "did not report ready")])
def test_a_step_whose_time_ended_at_its_gate_says_that_it_touched_nothing(gate: str, said: str) -> None:
    memory = {"runtimes": {"external01.erp": {"gate": gate} if gate else {"orders": 4}}}
    step = StepRun(kind=StepKind.DEPLOY_RUNTIME, machine="external01", connector="erp", memory=memory)
    assert steps.KINDS[StepKind.DEPLOY_RUNTIME].overdue(step) == f"external01.erp {said}"


def test_an_override_is_for_one_attempt(upgrade: Upgrade, stuck: Deployment) -> None:
    upgrade.decide(stuck, Choice.OVERRIDE, "The window ends at six.")
    upgrade.engine.machines.failing["external01.erp"] = "no memory"
    upgrade.engine.run(stuck)
    step = stuck.steps.get(number=3)
    assert (step.status, step.attempt, bool(step.override)) == (RunStatus.FAILED, 2, True)
    upgrade.engine.machines.failing.clear()
    upgrade.engine.pass_time(1)
    upgrade.decide(stuck, Choice.RETRY)
    step.refresh_from_db()
    assert (step.attempt, step.override) == (3, "")


def stopping_the_leader(upgrade: Upgrade) -> Deployment:
    """Step 1 stops external01, which leads; external02 was asked to take over first."""
    plan = plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    plans.add_step(plan, StepKind.STOP_RUNTIME, machine="external01", connector="erp")
    run = upgrade.begin()
    upgrade.engine.tick(run)
    assert "external02.erp is asked to take over" in run.steps.get().reason
    return run


def nobody_leads(upgrade: Upgrade) -> None:
    """external02 dies, and external01 does not lead either."""
    upgrade.engine.machines.failing["external02.erp"] = "no memory"
    for group in upgrade.engine.machines.leaders:
        upgrade.engine.machines.leaders[group] = "elsewhere.erp"
    upgrade.engine.pass_time(1)


def test_after_a_hand_over_that_failed_nothing_is_touched_while_nobody_is_known_to_lead(upgrade: Upgrade) -> None:
    run = stopping_the_leader(upgrade)
    upgrade.engine.machines.refusing = "external02 lost its router"
    nobody_leads(upgrade)
    upgrade.engine.tick(run)
    step = run.steps.get()
    assert (step.status, runtime("external01").desired_running) == (RunStatus.RUNNING, True)
    assert step.reason == (
        "erp-orders was not handed over from external01.erp, and nobody is known to lead it now: external02 lost its router."
    )


def test_after_a_hand_over_the_gate_is_asked_again(upgrade: Upgrade) -> None:
    run = stopping_the_leader(upgrade)
    upgrade.engine.pass_time(1)
    assert list(upgrade.engine.machines.leaders.values()) == ["external02.erp"]
    nobody_leads(upgrade)
    upgrade.engine.tick(run)
    assert "external01.erp is the last member of erp-orders that could lead" in run.steps.get().reason
    assert runtime("external01").desired_running


def test_the_last_member_is_never_stopped_whatever_anybody_says(upgrade: Upgrade) -> None:
    plan = plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    plans.add_step(plan, StepKind.STOP_RUNTIME, machine="external01", connector="erp")
    plans.add_step(plan, StepKind.STOP_RUNTIME, machine="external02", connector="erp")
    run = upgrade.engine.run(upgrade.begin(), every=5)
    assert statuses(run) == ["succeeded", "failed"]
    assert "external02.erp is the last member of erp-orders that could lead" in run.steps.get(number=2).reason
    assert upgrade.offer(run, Choice.OVERRIDE) is None
    with pytest.raises(NotAllowed, match="No rule that a person may override"):
        upgrade.decide(run, Choice.OVERRIDE, "Because.")
    assert list(upgrade.engine.machines.leaders.values()) == ["external02.erp"]


def test_lanes_run_side_by_side_but_one_member_of_a_group_at_a_time(upgrade: Upgrade) -> None:
    plan = plans.plan_of(upgrade.environment)
    for step in plan.steps.filter(kind=StepKind.DEPLOY_RUNTIME):
        plans.change_step(step, stage="Upgrade", lane=step.machine)
    run = upgrade.engine.run(upgrade.begin(), until=3)
    first, second = run.steps.get(number=3), run.steps.get(number=4)
    assert [step.pk for step in rollout.due(run)] == [first.pk, second.pk]
    rollout.tick(second.pk, now=upgrade.engine.now)
    rollout.tick(first.pk, now=upgrade.engine.now)
    first.refresh_from_db()
    assert first.reason == "external02.erp of erp-orders is being changed: one member of a group at a time."
    for _ in range(20):
        upgrade.engine.pass_time(0.5)
        for step in rollout.due(run):
            rollout.tick(step.pk, now=upgrade.engine.now)
    run.refresh_from_db()
    assert (run.status, upgrade.engine.machines.interrupted) == (RunStatus.SUCCEEDED, [])


def test_a_failure_in_one_lane_lets_the_other_end_and_begins_nothing_more(upgrade: Upgrade) -> None:
    plan = plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    for lane, kind in (("a", StepKind.GROUP_START), ("b", StepKind.WAIT_HEALTHY), ("b", StepKind.ALERTING_OFF)):
        more = {"machine": "external02", "connector": "erp", "group": "erp-orders"} if kind == StepKind.GROUP_START else {}
        plans.add_step(plan, kind, stage="Both", lane=lane, **more)
    run = upgrade.begin()
    failing, other, third = run.steps.all()
    upgrade.engine.machines.silent.add("external02")
    upgrade.engine.pass_time(20)
    rollout.tick(other.pk, now=upgrade.engine.now)
    assert run.steps.get(pk=other.pk).status == RunStatus.RUNNING
    run.steps.filter(pk=failing.pk).update(machine="gone")
    rollout.tick(failing.pk, now=upgrade.engine.now)
    run.refresh_from_db()
    assert (run.status, statuses(run)) == (RunStatus.RUNNING, ["failed", "running", "pending"]), "the other lane comes to its end"
    upgrade.engine.machines.silent.clear()
    upgrade.engine.pass_time(1)
    rollout.tick(other.pk, now=upgrade.engine.now)
    run.refresh_from_db()
    assert (run.status, statuses(run)) == (RunStatus.FAILED, ["failed", "succeeded", "pending"])
    assert "nothing to do" in rollout.tick(third.pk, now=upgrade.engine.now) or run.status == RunStatus.FAILED


def test_a_lane_that_had_not_begun_at_a_failure_goes_on_at_once_when_it_is_resumed(upgrade: Upgrade) -> None:
    plan, engine = plans.plan_of(upgrade.environment), upgrade.engine
    plan.steps.all().delete()
    for machine in ("external01", "external02"):
        plans.add_step(plan, StepKind.WAIT_HEALTHY, machine=machine, stage="Both", lane=machine, timeout_seconds=5)
    run = upgrade.begin()
    first, second = run.steps.all()
    engine.machines.silent.add("external01")
    for _ in range(2):
        engine.pass_time(20)
        rollout.tick(first.pk, now=engine.now)
    run.refresh_from_db()
    assert (run.status, statuses(run)) == (RunStatus.TIMED_OUT, ["timed-out", "pending"])
    engine.sent.clear()
    upgrade.decide(run, Choice.RETRY)
    assert engine.sent == [first.pk, second.pk], "without waiting for the sweep"


# ------------------------------------------------------------------------------------------------------------ what is skipped


def test_a_runtime_whose_bundle_did_not_change_is_skipped_and_still_is_on_the_new_release(upgrade: Upgrade) -> None:
    same = releases.build(upgrade.environment.project, name="The same", by=upgrade.person)
    releases.activate(same, upgrade.environment, by=upgrade.person, now=upgrade.engine.now)
    run = upgrade.engine.run(upgrade.begin(same))
    assert statuses(run) == ["succeeded", "succeeded", "skipped", "skipped", "succeeded"]
    assert run.steps.get(number=3).reason == "external01.erp already runs this bundle: not restarted."
    assert upgrade.engine.machines.interrupted == []
    assert {row.observed_release for row in Runtime.objects.all()} == {same.number}


def test_a_step_only_when_changed_runs_after_a_change_only(upgrade: Upgrade) -> None:
    plan = plans.plan_of(upgrade.environment)
    for machine in ("external01", "external02"):
        plans.add_step(plan, StepKind.RESTART_RUNTIME, machine=machine, connector="erp", condition="changed")
    properties.set_value(upgrade.environment, "erp.outbox", "/srv/other", machine="external02", by=upgrade.person)
    run = upgrade.engine.run(upgrade.begin(Release.objects.get()))
    told = {step.title: step.status for step in run.steps.all()}
    assert told["Deploy runtime external01.erp"] == told["Restart runtime external01.erp"] == "skipped"
    assert told["Deploy runtime external02.erp"] == told["Restart runtime external02.erp"] == "succeeded"
    assert run.steps.get(kind="restart-runtime", machine="external01").reason == (
        "This deployment did not change external01.erp: nothing to do."
    )


# ----------------------------------------------------------------------------------------------------------------- decisions


@pytest.fixture
def failed(upgrade: Upgrade) -> Deployment:
    """external02 (followers are changed as the plan says) cannot start what release 2 gives it."""
    run = upgrade.begin()
    upgrade.engine.run(run, until=4)
    upgrade.engine.machines.failing["external02.erp"] = "no memory"
    upgrade.engine.run(run)
    assert (run.status, run.steps.get(number=4).status) == (RunStatus.FAILED, RunStatus.FAILED)
    return run


def test_attempts_are_kept_when_a_step_is_retried(upgrade: Upgrade, failed: Deployment) -> None:
    before = {step.number: (step.started_at, step.ended_at, step.attempt) for step in failed.steps.filter(number__lt=4)}
    upgrade.engine.machines.failing.clear()
    upgrade.engine.pass_time(1)
    upgrade.decide(failed, Choice.RETRY)
    assert upgrade.engine.run(failed).status == RunStatus.SUCCEEDED
    step = failed.steps.get(number=4)
    (kept,) = step.attempts.all()
    assert (step.attempt, kept.number, kept.status) == (2, 1, RunStatus.FAILED)
    assert kept.reason == "external02.erp failed: no memory." and kept.started_at and kept.ended_at
    assert {step.number: (step.started_at, step.ended_at, step.attempt) for step in failed.steps.filter(number__lt=4)} == before


def test_a_step_is_tried_again_by_itself_as_often_as_the_plan_says(upgrade: Upgrade) -> None:
    plans.change_step(plans.plan_of(upgrade.environment).steps.get(machine="external02"), retries=2)
    run = upgrade.begin()
    upgrade.engine.run(run, until=4)
    upgrade.engine.machines.failing["external02.erp"] = "no memory"
    upgrade.engine.run(run)
    step = run.steps.get(number=4)
    assert (run.status, step.attempt, step.attempts.count()) == (RunStatus.FAILED, 3, 2)
    assert "Tried again by itself (2 of 2)." in log(run)


def test_a_connector_whose_name_begins_with_gate_is_tried_again_too(upgrade: Upgrade) -> None:
    plans.change_step(plans.plan_of(upgrade.environment).steps.get(machine="external02"), retries=2)
    run = upgrade.begin()
    upgrade.engine.run(run, until=4)
    upgrade.engine.machines.failing["external02.erp"] = "no memory"
    upgrade.engine.tick(run)
    step = run.steps.get(number=4)
    run.steps.filter(number=4).update(memory=step.memory | {"runtimes": step.memory["runtimes"] | {"external02.gateway": {"orders": 1}}})
    upgrade.engine.run(run)
    assert "Tried again by itself (1 of 2)." in log(run)


def test_a_step_is_skipped_with_a_reason_and_the_next_ones_run(upgrade: Upgrade, failed: Deployment) -> None:
    with pytest.raises(Invalid, match="Say why"):
        upgrade.decide(failed, Choice.SKIP, "  ")
    upgrade.decide(failed, Choice.SKIP, "The spare machine is repaired tomorrow.")
    step = failed.steps.get(number=4)
    assert (step.status, step.reason) == (RunStatus.SKIPPED, "Skipped by developer: The spare machine is repaired tomorrow.")
    assert step.attempts.count() == 1
    upgrade.engine.run(failed, every=5)
    assert failed.steps.get(number=5).status in (RunStatus.FAILED, RunStatus.TIMED_OUT), "Balance tells that a member is not on the release"


def test_a_run_in_which_a_person_skipped_a_deployment_is_no_success_to_promote_or_to_go_back_to(
    upgrade: Upgrade, acceptance: Environment
) -> None:
    plan = plans.plan_of(upgrade.environment)
    plans.remove_step(plan.steps.get(kind=StepKind.BALANCE_FAILOVER))
    skipped, engine = upgrade.begin(), upgrade.engine
    engine.run(skipped, until=4)
    engine.machines.failing["external02.erp"] = "no memory"
    engine.run(skipped)
    upgrade.decide(skipped, Choice.SKIP, "It does not start.")
    assert engine.run(skipped).status == RunStatus.SUCCEEDED
    (finding,) = promotion.findings(skipped.release, acceptance, at=engine.now)
    assert finding.sentence.startswith(
        f"Release 2 was not yet deployed with success on Test (in deployment {skipped.pk} a person skipped Deploy runtime external02.erp): "
    )
    engine.machines.failing.clear()
    engine.pass_time(1)
    newer = engine.run(upgrade.begin())
    assert (newer.status, newer.release.number) == (RunStatus.SUCCEEDED, 3)
    target = rollback.target(upgrade.environment)
    assert target and target.back_to.release.number == 1, "release 2 did not start everywhere"
    assert promotion.findings(newer.release, acceptance, at=engine.now) == []


def test_a_plan_that_deploys_nothing_passes_no_release_on(upgrade: Upgrade, acceptance: Environment) -> None:
    plan = plans.plan_of(upgrade.environment)
    plan.steps.filter(kind__in=(StepKind.DEPLOY_RUNTIME, StepKind.BALANCE_FAILOVER)).delete()
    run = upgrade.engine.run(upgrade.begin())
    assert run.status == RunStatus.SUCCEEDED
    (finding,) = promotion.findings(run.release, acceptance, at=upgrade.engine.now)
    assert f"(deployment {run.pk} deployed nothing)" in finding.sentence
    assert rollback.target(upgrade.environment) is None or sides.last_run(upgrade.environment) != run


@pytest.mark.parametrize("kind", ["deploy-routers", "balance-failover", "wait-healthy"])
def test_what_safety_needs_is_not_skipped(upgrade: Upgrade, failed: Deployment, kind: str) -> None:
    failed.steps.filter(number=4).update(kind=kind, machine="", connector="")
    offer = upgrade.offer(failed, Choice.SKIP)
    assert offer and "is not skipped" in offer.refusal
    with pytest.raises(NotAllowed, match="is not skipped"):
        upgrade.decide(failed, Choice.SKIP, "Why not.")
    failed.refresh_from_db()
    assert failed.status == RunStatus.FAILED and not Decision.objects.exists()


def test_a_past_deployment_shows_what_it_deployed_itself(client: Client, upgrade: Upgrade, failed: Deployment) -> None:
    first = Deployment.objects.get(release__number=1)
    client.force_login(upgrade.person)
    html = client.get(first.get_absolute_url()).content.decode()
    assert "What it deployed" in html and "a later deployment came since" in html and "is-other" not in html
    told = client.get(f"/api/v1/deployments/{first.pk}/").json()["results"]
    assert [(one["runtime"], one["how"]) for one in told] == [("external01.erp", "deployed"), ("external02.erp", "deployed")]
    assert all(len(one["digest"]) == 64 for one in told)
    told = client.get(f"/api/v1/deployments/{failed.pk}/").json()["results"]
    assert [(one["runtime"], one["how"]) for one in told] == [("external01.erp", "deployed"), ("external02.erp", "failed")]
    html = client.get(failed.get_absolute_url()).content.decode()
    assert "a later deployment came since" not in html


def test_abort_ends_it_for_good(upgrade: Upgrade, failed: Deployment) -> None:
    upgrade.decide(failed, Choice.ABORT, "Not today.")
    assert failed.status == RunStatus.CANCELLED
    assert statuses(failed) == ["succeeded", "succeeded", "succeeded", "failed", "cancelled"]
    with pytest.raises(NotAllowed, match="there is nothing to decide"):
        upgrade.decide(failed, Choice.RETRY)


def test_roll_back_deploys_what_ran_before(upgrade: Upgrade, failed: Deployment) -> None:
    upgrade.engine.machines.failing.clear()
    upgrade.engine.pass_time(1)
    back = upgrade.decide(failed, Choice.ROLL_BACK)
    failed.refresh_from_db()
    assert (failed.status, back.release.number) == (RunStatus.CANCELLED, 1)
    assert releases.active(upgrade.environment) == back.release
    assert upgrade.engine.run(back).status == RunStatus.SUCCEEDED
    assert {row.observed_release for row in Runtime.objects.all()} == {1}


@pytest.fixture
def frozen(upgrade: Upgrade, failed: Deployment, operator: User) -> Deployment:
    """A freeze began after the failure."""
    now = upgrade.engine.now
    promotion.freeze(upgrade.environment, starts_at=now, ends_at=now + timedelta(days=1), reason="Stocktaking", by=operator, now=now)
    upgrade.engine.machines.failing.clear()
    upgrade.engine.pass_time(1)
    return failed


@pytest.mark.parametrize("choice", [Choice.RETRY, Choice.SKIP, Choice.ROLL_BACK])
def test_in_a_freeze_going_on_needs_an_operator_with_a_reason(upgrade: Upgrade, frozen: Deployment, operator: User, choice: Choice) -> None:
    offer = upgrade.offer(frozen, choice)
    assert offer and not offer.refusal and "Stocktaking" in offer.forbidden
    with pytest.raises(NotAllowed, match=r"Stocktaking.*An operator or administrator can override this with a reason"):
        upgrade.decide(frozen, choice, "It must go on.")
    with pytest.raises(NotAllowed, match="needs the role operator"):
        decisions.decide(frozen, choice, by=upgrade.person, now=upgrade.engine.now, reason="x", override="I want to.")
    frozen.refresh_from_db()
    assert frozen.status == RunStatus.FAILED and not Decision.objects.exists() and not RuleOverride.objects.exists()
    after = decisions.decide(frozen, choice, by=operator, now=upgrade.engine.now, reason="Half done.", override="Agreed with the shop.")
    assert after.status == RunStatus.RUNNING or after.status == RunStatus.PENDING
    assert {row.reason for row in RuleOverride.objects.all()} == {"Agreed with the shop."}


def test_in_a_freeze_a_deployment_can_be_aborted(upgrade: Upgrade, frozen: Deployment) -> None:
    assert upgrade.offer(frozen, Choice.ABORT).forbidden == ""  # type: ignore[union-attr]
    upgrade.decide(frozen, Choice.ABORT)
    assert frozen.status == RunStatus.CANCELLED


def test_the_decision_bar_and_the_api_ask_why_in_spite_of_the_freeze(
    client: Client, upgrade: Upgrade, frozen: Deployment, operator: User, admin: User
) -> None:
    upgrade.environment.freezes.update(starts_at=timezone.now() - timedelta(hours=1), ends_at=timezone.now() + timedelta(days=1))
    client.force_login(upgrade.person)
    html = client.get(frozen.get_absolute_url()).content.decode()
    assert "Stocktaking" in html and 'name="override"' not in html and "An operator or administrator can override" in html
    api = f"/api/v1/deployments/{frozen.pk}/"
    assert client.post(f"{api}resume/").status_code == 409
    client.force_login(operator)
    html = client.get(frozen.get_absolute_url()).content.decode()
    assert html.count('name="override"') == 3
    answer = client.post(f"{frozen.get_absolute_url()}decide/", {"choice": "roll-back", "override": "The shop is down."})
    assert answer.status_code == 302 and Deployment.objects.count() == 3
    assert client.post(f"{api}resume/", {"override": "x", "overide": "y"}, content_type="application/json").status_code == 400


# ----------------------------------------------------------------------------------------------------- a machine that is away


@pytest.fixture
def away(upgrade: Upgrade) -> Deployment:
    """external02, which took over while external01 was changed, loses its power when its turn comes; external01 leads again."""
    run = upgrade.begin()
    upgrade.engine.run(run, until=4)
    upgrade.engine.machines.silent.add("external02")
    for group in upgrade.engine.machines.leaders:
        upgrade.engine.machines.lead(group, "external01.erp")
    upgrade.engine.pass_time(20)
    return upgrade.engine.run(run, every=10)


def test_an_offline_machine_is_left_out_and_catches_up_by_itself(upgrade: Upgrade, away: Deployment, acceptance: Environment) -> None:
    engine = upgrade.engine
    assert away.status == RunStatus.TIMED_OUT
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    assert engine.run(away, every=5).status == RunStatus.SUCCEEDED, "Balance proves what can be proven without it"
    assert away.steps.get(number=4).reason == (
        "external02 is left out. It gets release 2 by itself when it returns, once this deployment has ended well."
    )
    (exclusion,) = returning.open_exclusions()
    assert returning.catch_up(exclusion, now=engine.now) == "external02 is still away."
    engine.machines.silent.clear()
    engine.pass_time(1)
    assert "is back: deployment" in returning.catch_up(exclusion, now=engine.now)
    exclusion.refresh_from_db()
    made = exclusion.caught_up_by
    assert made and made.completes == away
    (finding,) = promotion.findings(away.release, acceptance, at=engine.now)
    assert finding.sentence.startswith(
        f"Release 2 was not yet deployed with success on Test (deployment {away.pk} left external02 out, and it has yet to catch up): "
    )
    assert (target := rollback.target(upgrade.environment)) and target.back_to.release.number == 1, "and yet it ran here"
    side = sides.running_side(upgrade.environment)
    assert side.label.endswith(f"deployment {away.pk})") or engine.run(made).status == RunStatus.SUCCEEDED
    plan = [plans.line_of(plans.written(step)) for step in away.steps.all()]
    assert sides.running_side(upgrade.environment).plan == plan, "the plan it ran by, not the two steps that caught up"
    assert [step.title for step in made.steps.all()] == ["Deploy runtime external02.erp", "Balance failover"]
    assert engine.run(made).status == RunStatus.SUCCEEDED
    assert {row.observed_release for row in Runtime.objects.all()} == {2}
    assert returning.open_exclusions() == [] and promotion.findings(away.release, acceptance, at=engine.now) == []


def outbox(machine: str) -> str:
    """Where what the runtime is ordered to run puts its files."""
    bundle = runtime(machine).desired_bundle
    assert bundle is not None
    (flow,) = decode(BundleContent, bytes(bundle.content)).flows
    return str(flow.inbound.settings | flow.outbound.settings)


def edit(upgrade: Upgrade, value: str, **more: bool) -> None:
    """The global erp.outbox, at the engine's clock."""
    upgrade.engine.pass_time(1)
    properties.set_value(upgrade.environment, "erp.outbox", value, by=upgrade.person, **more)
    Property.objects.filter(environment=upgrade.environment, key="erp.outbox").update(updated_at=upgrade.engine.now)
    upgrade.engine.pass_time(1)


def newer_than(upgrade: Upgrade) -> int | None:
    """Than which deployment's value (the latest's) the page calls erp.outbox newer."""
    found = sheet.read(upgrade.environment, search="erp.outbox")
    (line,) = found.rows[0].lines
    filtered = sheet.read(upgrade.environment, search="erp.outbox", only=["changed"]).keys
    cell = next(cell for cell in grid.row(upgrade.environment, "erp.outbox", "environments").cells if cell.value is not None)
    assert bool(line.newer) == bool(filtered) == cell.changed
    return line.newer.deployments[-1] if line.newer else None


def test_after_mend_and_resume_a_value_that_not_every_runtime_has_is_still_newer_than_what_runs(
    upgrade: Upgrade, failed: Deployment
) -> None:
    edit(upgrade, "/srv/new")
    upgrade.engine.machines.failing.clear()
    upgrade.decide(failed, Choice.RETRY)
    assert upgrade.engine.run(failed).status == RunStatus.SUCCEEDED
    assert ("/srv/new" in outbox("external01"), "/srv/new" in outbox("external02")) == (False, True)
    assert newer_than(upgrade) == failed.pk
    told = f"external01.erp runs with other values of erp.outbox, frozen by deployment {failed.pk}."
    assert told in sides.running_side(upgrade.environment).notes
    assert upgrade.engine.run(upgrade.begin(failed.release)).status == RunStatus.SUCCEEDED
    assert newer_than(upgrade) is None and "/srv/new" in outbox("external01")
    assert not any("other values" in note for note in sides.running_side(upgrade.environment).notes)


def test_what_a_failed_deployment_gave_runs(upgrade: Upgrade) -> None:
    edit(upgrade, "/srv/new")
    run, last = upgrade.begin(), Deployment.objects.order_by("pk").first()
    assert last and newer_than(upgrade) == last.pk
    upgrade.engine.run(run, until=4)
    assert newer_than(upgrade) == last.pk, "external02 runs with the former one"
    upgrade.engine.machines.failing["external02.erp"] = "no memory"
    upgrade.engine.run(run)
    assert run.status == RunStatus.FAILED
    assert newer_than(upgrade) is None, "both are ordered what has it"
    assert "external01.erp runs with other values of erp.outbox" in " ".join(sides.running_side(upgrade.environment).notes)


def test_a_machine_that_catches_up_gets_the_values_of_the_run_that_left_it_out(upgrade: Upgrade, away: Deployment) -> None:
    engine = upgrade.engine
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    assert engine.run(away, every=5).status == RunStatus.SUCCEEDED
    edit(upgrade, "/srv/new")
    engine.machines.silent.clear()
    engine.pass_time(1)
    (exclusion,) = returning.open_exclusions()
    returning.catch_up(exclusion, now=engine.now)
    exclusion.refresh_from_db()
    assert exclusion.caught_up_by and engine.run(exclusion.caught_up_by).status == RunStatus.SUCCEEDED
    assert "/srv/erp/outbox" in outbox("external01") and "/srv/erp/outbox" in outbox("external02"), "nobody deployed the edit"
    assert newer_than(upgrade) is not None
    notes = sides.running_side(upgrade.environment).notes
    assert not any("other values" in note or "came after it" in note for note in notes)


def test_a_machine_does_not_catch_up_with_a_secret_that_was_changed_since(upgrade: Upgrade, away: Deployment) -> None:
    engine = upgrade.engine
    edit(upgrade, "/srv/secret", secret=True)
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    assert engine.run(away, every=5).status == RunStatus.SUCCEEDED
    kept = FrozenValues.objects.filter(deployment=away).latest("number")
    FrozenValues.objects.filter(pk=kept.pk).update(
        values=[entry | ({"secret": True, "value": None, "digest": "0"} if entry["key"] == "erp.outbox" else {}) for entry in kept.values]
    )
    engine.machines.silent.clear()
    engine.pass_time(1)
    (exclusion,) = returning.open_exclusions()
    assert returning.catch_up(exclusion, now=engine.now) == (
        f"external02 is back and waits: The secret erp.outbox was changed since deployment {away.pk} froze its values: "
        "deploy again to take the values as they are now."
    )
    assert returning.open_exclusions() == [exclusion]


def test_a_machine_that_is_online_is_not_left_out(upgrade: Upgrade, failed: Deployment) -> None:
    with pytest.raises(Invalid, match="external02 is online: only a machine that is offline can be left out"):
        upgrade.decide(failed, Choice.EXCLUDE, "I do not like it.", machine="external02")
    with pytest.raises(NotAllowed, match="external02 is online"):
        rollout.prepare(failed.release, on=upgrade.environment, by=upgrade.person, now=upgrade.engine.now, leaving_out=["external02"])


def test_a_machine_is_left_out_from_the_beginning(upgrade: Upgrade) -> None:
    release = upgrade.release(7)
    upgrade.engine.machines.silent.add("external02")
    upgrade.engine.pass_time(20)
    with pytest.raises(NotAllowed, match="external02 has not been heard from"):
        upgrade.begin(release)
    run = rollout.prepare(release, on=upgrade.environment, by=upgrade.person, now=upgrade.engine.now, leaving_out=["external02"])
    assert run.steps.get(machine="external02").status == RunStatus.SKIPPED
    upgrade.engine.run(run, every=20)
    assert "no follower is ready to take over" in run.steps.get(machine="external01").reason


def test_a_machine_that_is_left_out_goes_through_page_and_api_and_catches_up(client: Client, upgrade: Upgrade, operator: User) -> None:
    """external02 is off; external01 leads: the gate asks for an override, and Balance says what it proved."""
    engine, release = upgrade.engine, upgrade.release(7)
    engine.machines.silent.add("external02")
    engine.pass_time(60)
    Machine.objects.exclude(name="external02").update(last_report_at=timezone.now() + timedelta(seconds=60))
    Machine.objects.filter(name="external02").update(last_report_at=timezone.now() - timedelta(seconds=60))
    client.force_login(upgrade.person)
    dialog, api = f"/projects/webshop/test/releases/{release.number}/deploy/", f"/api/v1/releases/{release.pk}/"
    html = client.get(dialog).content.decode()
    assert 'value="external02" hx-get' in html and "external02 has not been heard from" in html and "disabled" in html
    html = client.get(f"{dialog}?leaving_out=external02").content.decode()
    assert 'value="external02" checked' in html and "and no follower is ready to take over" in html
    assert client.post(f"{api}deployments/", {"environment": "test"}, content_type="application/json").status_code == 409
    told = client.get(f"{api}preview/", {"environment": "test", "leaving_out": ["external02"]}).json()
    assert told["obstacles"] == [] and [step["outcome"] for step in told["steps"]][-1] == "fails"
    body = {"environment": "test", "leaving_out": ["external02", "external01"]}
    assert "external01 is online" in client.post(f"{api}deployments/", body, content_type="application/json").json()["detail"]
    body = {"environment": "test", "leaving_out": ["external02"]}
    answer = client.post(f"{api}deployments/", body, content_type="application/json")
    assert answer.status_code == 202 and [one["machine"] for one in answer.json()["exclusions"]] == ["external02"]
    run = Deployment.objects.get(pk=answer.json()["id"])
    engine.pass_time(60)
    engine.run(run, every=10)
    upgrade.decide(run, Choice.OVERRIDE, "It must be out today.")
    assert engine.run(run, every=5).status == RunStatus.SUCCEEDED
    balance = run.steps.get(kind=StepKind.BALANCE_FAILOVER)
    assert balance.reason == "external01 leads erp-orders, as preferred. Proven without external02, left out of this deployment."
    assert {one["runtime"]: one["left_out"] for one in balance.memory["groups"][0]["members"]} == {
        "external01.erp": False, "external02.erp": True,
    }  # fmt: skip
    engine.machines.silent.clear()
    engine.pass_time(1)
    (exclusion,) = returning.open_exclusions()
    assert "is back: deployment" in returning.catch_up(exclusion, now=engine.now)
    made = Deployment.objects.first()
    assert made is not None and engine.run(made).status == RunStatus.SUCCEEDED
    assert {row.observed_release for row in Runtime.objects.all()} == {release.number}
    assert f"deployment {made.pk}" in client.get(run.get_absolute_url()).content.decode()


def test_the_decision_bar_says_all_that_a_roll_back_does_and_leads_to_its_preview(
    client: Client, upgrade: Upgrade, failed: Deployment
) -> None:
    due = upgrade.engine.now + timedelta(hours=1)
    Activation.objects.create(environment=upgrade.environment, release=failed.release, status=ActivationStatus.SCHEDULED, due_at=due)
    upgrade.engine.machines.silent.add("external02")
    upgrade.engine.pass_time(20)
    offer = upgrade.offer(failed, Choice.ROLL_BACK)
    assert offer and offer.effect == (
        "Ends this run, activates release 1 again and deploys it by the plan, with the values of now: leadership moves as its steps say. "
        "external02, not heard from, is left out and gets release 1 by itself when it returns. "
        "1 scheduled activation is held until a person looked. "
        "As things are now it would stop at step 3, Deploy runtime external01.erp: external01.erp leads erp-orders, and no follower is "
        "ready to take over: external02 has not been heard from for 20 s."
    )
    Property.objects.filter(key="erp.outbox").delete()
    offer = upgrade.offer(failed, Choice.ROLL_BACK)
    assert offer and offer.effect.endswith(
        "As things are now it would stop at step 3, Deploy runtime external01.erp: A value is missing for external01.erp."
    )
    client.force_login(upgrade.person)
    Machine.objects.filter(name="external02").update(last_report_at=timezone.now() - timedelta(hours=1))
    assert "/projects/webshop/test/releases/rollback/?leaving_out=external02" in client.get(failed.get_absolute_url()).content.decode()


def test_a_roll_back_can_leave_a_machine_out(client: Client, upgrade: Upgrade, failed: Deployment) -> None:
    upgrade.decide(failed, Choice.ABORT)
    Machine.objects.update(last_report_at=timezone.now() + timedelta(seconds=60))
    Machine.objects.filter(name="external02").update(last_report_at=timezone.now() - timedelta(seconds=60))
    client.force_login(upgrade.person)
    body = {"project": "webshop", "environment": "test"}
    assert client.post("/api/v1/deployments/rollback/", body, content_type="application/json").status_code == 409
    html = client.get("/projects/webshop/test/releases/rollback/?leaving_out=external02").content.decode()
    assert 'value="external02" checked' in html
    answer = client.post("/api/v1/deployments/rollback/", body | {"leaving_out": ["external02"]}, content_type="application/json")
    assert answer.status_code == 202 and answer.json()["exclusions"][0]["machine"] == "external02"


def test_a_machine_that_is_back_does_not_take_the_decision_from_a_deployment_that_stands_still(upgrade: Upgrade, away: Deployment) -> None:
    """Catching up at once would make the newer one impossible to resume."""
    engine = upgrade.engine
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    assert engine.run(away, every=5).status == RunStatus.SUCCEEDED
    properties.set_value(upgrade.environment, "erp.outbox", "/srv/other", by=upgrade.person)
    again = rollout.prepare(away.release, on=upgrade.environment, by=upgrade.person, now=engine.now, leaving_out=["external02"])
    Deployment.objects.filter(pk=again.pk).update(status=RunStatus.FAILED)
    again.steps.filter(machine="external01").update(status=RunStatus.FAILED)
    engine.machines.silent.clear()
    engine.pass_time(1)
    told = [returning.catch_up(exclusion, now=engine.now) for exclusion in returning.open_exclusions()]
    assert told == [f"external02 is back and waits for the decision about deployment {again.pk}."] * 2
    again.refresh_from_db()
    upgrade.decide(again, Choice.ABORT)
    told = [returning.catch_up(exclusion, now=engine.now) for exclusion in returning.open_exclusions()]
    assert len(told) == 1 and "is back: deployment" in told[0], "the newer one, which was aborted, brings nothing; the older one does"
    assert again.exclusions.get().promise == (
        f"Deployment {again.pk} was aborted and brings external02 nothing when it returns: deployment {away.pk} brings it release 2, as "
        "promised before."
    )


STAYS = "it stays as it is until it is deployed again."


def owed(upgrade: Upgrade) -> Deployment:
    """Release 3 goes out without external02, which is away; external01's step waits for its standby."""
    release = upgrade.release(7)
    upgrade.engine.machines.silent.add("external02")
    upgrade.engine.pass_time(20)
    return rollout.prepare(release, on=upgrade.environment, by=upgrade.person, now=upgrade.engine.now, leaving_out=["external02"])


def promise(deployment: Deployment) -> str:
    return Exclusion.objects.select_related("deployment__release", "caught_up_by").get(deployment=deployment).promise


def look(upgrade: Upgrade) -> list[str]:
    """What the sweep says of every machine that has yet to catch up."""
    return [returning.catch_up(exclusion, now=upgrade.engine.now) for exclusion in returning.open_exclusions()]


def test_a_promise_rests_while_its_deployment_runs_or_waits_for_a_decision(client: Client, upgrade: Upgrade) -> None:
    run = owed(upgrade)
    assert promise(run) == f"It gets release {run.release.number} by itself when it returns, once this deployment has ended well."
    assert look(upgrade) == []
    upgrade.engine.run(run, every=20)
    assert run.status in BROKEN
    assert promise(run).startswith(f"Whether it gets release {run.release.number} when it returns is decided with this deployment")
    upgrade.engine.machines.silent.clear()
    upgrade.engine.pass_time(1)
    assert look(upgrade) == [f"external02 is back and waits for the decision about deployment {run.pk}."]
    client.force_login(upgrade.person)
    assert "Whether it gets release" in client.get(run.get_absolute_url()).content.decode()
    assert client.get(f"/api/v1/deployments/{run.pk}/").json()["exclusions"][0]["promise"] == promise(run)
    upgrade.decide(run, Choice.RETRY)
    assert upgrade.engine.run(run).status == RunStatus.SUCCEEDED
    (said,) = look(upgrade)
    made = Deployment.objects.get(completes=run)
    assert "is back: deployment" in said and promise(run) == f"It is back: deployment {made.pk} brings it release {run.release.number}."
    upgrade.engine.run(made)
    assert promise(run) == f"It is back and got release {run.release.number} in deployment {made.pk}."


@pytest.mark.parametrize("how", ["cancelled", "aborted", "rolled back"])
def test_a_promise_ends_with_a_deployment_that_is_ended(upgrade: Upgrade, how: str) -> None:
    run = owed(upgrade)
    if how == "cancelled":
        rollout.cancel(run, by=upgrade.person, now=upgrade.engine.now)
        after = run
    else:
        upgrade.engine.run(run, every=20)
        after = upgrade.decide(run, Choice.ABORT if how == "aborted" else Choice.ROLL_BACK)
    said = f"Deployment {run.pk} was {how} and brings external02 nothing when it returns: {STAYS}"
    assert promise(run) == said and said in log(run)
    if how == "rolled back":
        assert promise(after).startswith("It gets release 1 by itself when it returns"), "the roll back owes it release 1 instead"
        upgrade.engine.run(after, every=5)
    upgrade.engine.machines.silent.clear()
    upgrade.engine.pass_time(1)
    assert not any("brings it release 3" in sentence for sentence in look(upgrade))
    upgrade.engine.pass_time(5)
    assert runtime("external02").observed_release == 1


def test_a_promise_of_a_failed_deployment_ends_with_the_one_that_ran_since(upgrade: Upgrade) -> None:
    run = owed(upgrade)
    upgrade.engine.run(run, every=20)
    again = rollout.prepare(run.release, on=upgrade.environment, by=upgrade.person, now=upgrade.engine.now, leaving_out=["external02"])
    (said,) = look(upgrade)
    assert said == f"external02 need not catch up: {promise(run)}"
    assert promise(run) == f"Deployment {run.pk} failed and does not go on, for another one ran since: {STAYS}"
    assert promise(again).startswith(f"It gets release {run.release.number} by itself when it returns")


def test_a_promise_passes_to_a_newer_deployment_that_ended_well_without_the_machine(upgrade: Upgrade, away: Deployment) -> None:
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    upgrade.engine.run(away, every=5)
    again = rollout.prepare(away.release, on=upgrade.environment, by=upgrade.person, now=upgrade.engine.now, leaving_out=["external02"])
    assert upgrade.engine.run(again, every=5).status == RunStatus.SUCCEEDED
    assert look(upgrade) == [
        f"external02 need not catch up: Deployment {again.pk} left external02 out too, and brings it release 2 when it returns.",
        "external02 is still away.",
    ]


def test_a_promise_ends_with_the_release_and_the_roll_back_makes_its_own(upgrade: Upgrade, away: Deployment) -> None:
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    upgrade.engine.run(away, every=5)
    back = rollback.start(upgrade.environment, by=upgrade.person, now=upgrade.engine.now, leaving_out=["external02"])
    look(upgrade)
    assert promise(away) == "Release 2 is no longer active: the next deployment brings external02 the one that is."
    assert promise(away) in log(away)
    assert promise(back).startswith("It gets release 1 by itself when it returns")


def test_a_promise_to_a_machine_that_was_removed_ends(upgrade: Upgrade, away: Deployment) -> None:
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    upgrade.engine.run(away, every=5)
    Machine.objects.filter(name="external02").delete()
    assert look(upgrade) == ["external02 need not catch up: external02 is no machine of Test any more."]


def test_what_a_deployment_that_was_to_catch_up_came_to_is_said(upgrade: Upgrade, away: Deployment) -> None:
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    upgrade.engine.run(away, every=5)
    upgrade.engine.machines.silent.clear()
    upgrade.engine.pass_time(1)
    look(upgrade)
    made = Deployment.objects.get(completes=away)
    rollout.cancel(made, by=upgrade.person, now=upgrade.engine.now)
    assert promise(away) == f"It is back, but deployment {made.pk}, which brought it release 2, was cancelled: {STAYS}"
    Deployment.objects.filter(pk=made.pk).update(status=RunStatus.FAILED)
    assert "stopped at a failure: see there" in promise(away)


def test_in_a_freeze_a_machine_that_is_back_waits_and_says_why(upgrade: Upgrade, away: Deployment, admin: User) -> None:
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    upgrade.engine.run(away, every=5)
    ends = upgrade.engine.now + timedelta(days=1)
    promotion.freeze(
        upgrade.environment, starts_at=upgrade.engine.now, ends_at=ends, reason="Stocktaking", by=admin, now=upgrade.engine.now
    )
    upgrade.engine.machines.silent.clear()
    upgrade.engine.pass_time(1)
    (said,) = look(upgrade)
    assert said.startswith("external02 is back and waits: ") and "Stocktaking" in said and promise(away) == said
    assert not Deployment.objects.filter(completes=away).exists()


def test_of_two_machines_left_out_one_catches_up_while_the_other_is_still_away(upgrade: Upgrade, away: Deployment) -> None:
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    upgrade.engine.run(away, every=5)
    Exclusion.objects.create(
        deployment=away, machine="external01", by=upgrade.person, at=upgrade.engine.now
    )  # as if that one had been away too
    away.steps.filter(machine="external01").update(status=RunStatus.SKIPPED)
    upgrade.engine.pass_time(1)
    assert "is back: deployment" in look(upgrade)[1]
    made = Deployment.objects.get(completes=away)
    assert upgrade.engine.run(made, every=5).status == RunStatus.SUCCEEDED
    assert made.steps.get(kind=StepKind.BALANCE_FAILOVER).reason.endswith("Proven without external02, left out of this deployment.")


def test_a_machine_that_comes_back_after_another_release_need_not_catch_up(upgrade: Upgrade, away: Deployment) -> None:
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    upgrade.engine.run(away, every=5)
    upgrade.release(9)
    (exclusion,) = returning.open_exclusions()
    assert "is no longer active" in returning.catch_up(exclusion, now=upgrade.engine.now)
    assert Exclusion.objects.get().ended_because.startswith("Release 2 is no longer active")


def test_a_machine_is_not_deployed_to_in_the_name_of_somebody_who_left(upgrade: Upgrade, away: Deployment) -> None:
    upgrade.decide(away, Choice.EXCLUDE, "Its disk is replaced.")
    upgrade.engine.run(away, every=5)
    upgrade.engine.machines.silent.clear()
    upgrade.engine.pass_time(1)
    User.objects.filter(pk=upgrade.person.pk).update(is_active=False)
    (exclusion,) = returning.open_exclusions()
    assert "who left it out may no longer deploy here. Deploy release 2 again." in returning.catch_up(exclusion, now=upgrade.engine.now)
    assert Deployment.objects.count() == 2
    User.objects.filter(pk=upgrade.person.pk).update(is_active=True)
    (exclusion,) = returning.open_exclusions()
    assert "brings it release 2" in returning.catch_up(exclusion, now=upgrade.engine.now)


# ------------------------------------------------------------------------------------------- what is shown after a roll back


def shown(upgrade: Upgrade, machine: str) -> landscape.RuntimeBox:
    active = releases.active(upgrade.environment)
    boxes = landscape.machine_boxes(upgrade.environment, active, now=upgrade.engine.now)
    return next(box.runtimes[0] for box in boxes if box.machine.name == machine)


def test_after_a_roll_back_without_it_a_machine_that_runs_the_same_is_not_said_to_differ(client: Client, upgrade: Upgrade) -> None:
    """Release 2 changed nothing here: what external02 runs is the very bundle of release 1."""
    same = releases.build(upgrade.environment.project, name="The same", by=upgrade.person)
    releases.activate(same, upgrade.environment, by=upgrade.person, now=upgrade.engine.now)
    upgrade.engine.run(upgrade.begin(same))
    box = shown(upgrade, "external02")
    assert (box.release, box.wished, box.differs, box.runtime.bundle_release) == (2, 2, "", 1)
    client.force_login(upgrade.person)
    page = "/projects/webshop/test/machines/external02/?tab=runtimes"
    assert "2, unchanged since release 1" in client.get(page).content.decode()
    upgrade.engine.machines.silent.add("external02")
    upgrade.engine.pass_time(20)
    rollback.start(upgrade.environment, by=upgrade.person, now=upgrade.engine.now, leaving_out=["external02"])
    box = shown(upgrade, "external02")
    assert (box.release, box.wished, box.differs) == (1, 1, ""), (
        "before: on release 2, wished 2, and “Runs release 2; release 1 is active.”"
    )
    html = client.get(page).content.decode()
    assert "running release 1" in html and "Runs release 2" not in html and "unchanged since" not in html
    (glance,) = overview.glances([upgrade.environment.project], now=upgrade.engine.now)
    (place,) = (place for place in glance.places if place.environment == upgrade.environment)
    assert (place.runs, place.mixed, place.behind) == ({1: 2}, False, False), "the dashboard counts it likewise"
    row = next(one for one in client.get("/api/v1/runtimes/").json()["results"] if one["machine"] == "external02")
    assert (row["release"], row["bundle_release"]) == (2, 1)


def test_what_a_roll_back_stopped_is_said_to_be_stopped_and_not_on_the_later_release(upgrade: Upgrade) -> None:
    fleet.retire(runtime("external02"), "Release 1 has no connector erp.")
    upgrade.engine.pass_time(1)
    Runtime.objects.filter(machine__name="external02").update(observed_release=2, desired_release=2)
    box = shown(upgrade, "external02")
    assert (box.release, box.differs) == (None, "Stopped until it is deployed: Release 1 has no connector erp.")


# ---------------------------------------------------------------------------------------------------------------- log, API


def test_the_log_is_numbered_without_a_gap_and_masks_secrets(upgrade: Upgrade, failed: Deployment) -> None:
    properties.set_value(upgrade.environment, "erp.password", "tr0ub4dor&3", secret=True, by=upgrade.person)
    upgrade.engine.machines.failing["external02.erp"] = "login with tr0ub4dor&3 failed"
    upgrade.engine.pass_time(1)
    upgrade.decide(failed, Choice.RETRY)
    upgrade.engine.run(failed)
    lines = list(StepLog.objects.filter(deployment=failed))
    failed.refresh_from_db()
    assert [line.number for line in lines] == list(range(1, failed.log_lines + 1))
    assert any("login with ••• failed" in line.text for line in lines)
    assert not any("tr0ub4dor" in line.text for line in lines)
    told = [*Runtime.objects.values_list("observed_reason", "observed_flows"), *failed.steps.values_list("reason", "memory")]
    assert "tr0ub4dor" not in repr([*told, *failed.steps.values_list("attempts__reason")])


def test_choices_decisions_and_the_log_have_an_api(client: Client, upgrade: Upgrade, failed: Deployment, viewer: User) -> None:
    client.force_login(upgrade.person)
    api = f"/api/v1/deployments/{failed.pk}/"
    offered = client.get(f"{api}choices/").json()
    assert [one["choice"] for one in offered] == ["retry", "skip", "roll-back", "abort"]
    assert all(one["effect"] or one["refusal"] for one in offered)
    refused = client.post(f"{api}decide/", {"choice": "skip"}, content_type="application/json")
    assert refused.status_code == 400 and "Say why" in refused.content.decode()
    piece = client.get(f"{api}log/?of=4&q=memory").json()
    assert [line["step"] for line in piece["lines"]] == [4] * len(piece["lines"]) and piece["lines"]
    assert client.get(f"{api}log/?{piece['next']}").json()["lines"] == []
    answer = client.post(f"{api}decide/", {"choice": "abort", "reason": "Enough."}, content_type="application/json")
    assert answer.status_code == 202
    told = answer.json()
    assert told["status"] == "cancelled"
    assert [(one["choice"], one["step"], one["reason"], one["by"]) for one in told["decisions"]] == [("abort", 4, "Enough.", "developer")]
    client.force_login(viewer)
    assert client.get(f"{api}choices/").status_code == 200
    assert client.post(f"{api}decide/", {"choice": "abort"}, content_type="application/json").status_code == 403


def test_a_manual_step_is_confirmed_by_its_role_only(upgrade: Upgrade, operator: User) -> None:
    plan = plans.plan_of(upgrade.environment)
    plans.add_step(plan, StepKind.MANUAL, position=1, instruction="Call the bank.", confirm_role="operator")
    run = upgrade.engine.run(upgrade.begin())
    step = run.steps.get(number=1)
    with pytest.raises(NotAllowed, match="confirmed by the role operator"):
        rollout.confirm(step, by=upgrade.person, now=upgrade.engine.now)
    rollout.confirm(step, by=operator, now=upgrade.engine.now)
    assert step.status == RunStatus.SUCCEEDED


def test_a_manual_step_is_confirmed_by_the_role_it_names_also_where_that_role_may_not_deploy(
    client: Client, upgrade: Upgrade, viewer: User
) -> None:
    plan = plans.plan_of(upgrade.environment)
    plans.add_step(plan, StepKind.MANUAL, position=1, instruction="Look at the shop.", confirm_role="viewer")
    plans.add_step(plan, StepKind.MANUAL, position=2, instruction="Call the bank.")
    run = upgrade.engine.run(upgrade.begin())
    client.force_login(viewer)
    assert "It is done: go on" in client.get(run.get_absolute_url()).content.decode()
    assert client.post(f"/api/v1/deployments/{run.pk}/steps/1/confirm/").status_code == 202
    upgrade.engine.run(run)
    html = client.get(run.get_absolute_url()).content.decode()
    assert "It is done: go on" not in html and "Confirming it needs the role developer." in html
    assert client.post(f"/api/v1/deployments/{run.pk}/steps/2/confirm/").status_code == 403
    assert client.post(f"{run.get_absolute_url()}steps/2/confirm/").status_code == 403


def test_a_manual_step_is_skipped_only_by_who_may_confirm_it(client: Client, upgrade: Upgrade, admin: User, operator: User) -> None:
    plan = plans.plan_of(upgrade.environment)
    plans.add_step(plan, StepKind.MANUAL, position=1, instruction="Call the bank.", confirm_role="administrator", timeout_seconds=60)
    run = upgrade.engine.run(upgrade.begin())
    upgrade.engine.pass_time(61)
    rollout.end_waits(upgrade.engine.now)
    run.refresh_from_db()
    assert run.status in BROKEN
    for person in (upgrade.person, operator):
        with pytest.raises(NotAllowed, match=r"skipped only by who may confirm it\. Step 1 is confirmed by the role administrator"):
            decisions.decide(run, Choice.SKIP, by=person, now=upgrade.engine.now, reason="It takes too long.")
    client.force_login(operator)
    offered = {one["choice"]: one for one in client.get(f"/api/v1/deployments/{run.pk}/choices/").json()}
    assert "only by who may confirm it" in offered["skip"]["refusal"] and not offered["retry"]["refusal"]
    assert "only by who may confirm it" in client.get(run.get_absolute_url()).content.decode()
    decisions.decide(run, Choice.SKIP, by=admin, now=upgrade.engine.now, reason="The bank called us.")
    assert statuses(run)[0] == RunStatus.SKIPPED


def test_the_engine_waits_for_a_follower_that_is_on_its_way(upgrade: Upgrade) -> None:
    run = upgrade.begin()
    upgrade.engine.run(run, until=3)
    upgrade.engine.machines.silent.add("external02")
    upgrade.engine.pass_time(12)  # silent, but not for long
    upgrade.engine.tick(run)
    step = run.steps.get(number=3)
    assert (step.status, upgrade.engine.machines.interrupted) == (RunStatus.RUNNING, [])
    assert step.reason == (
        "external01.erp leads erp-orders, and no follower is ready to take over: external02 has not been heard from for 12 s."
    )
    upgrade.engine.machines.silent.clear()
    upgrade.engine.pass_time(1)
    assert upgrade.engine.run(run).status == RunStatus.SUCCEEDED
    assert step.started_at and upgrade.engine.now - step.started_at < timedelta(minutes=2)


# ------------------------------------------------------------------------------------------------------------- other kinds of step


def only(upgrade: Upgrade, kind: StepKind, **fields: str | int) -> Deployment:
    """A deployment of one step."""
    plan = plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    plans.add_step(plan, kind, **fields)
    return upgrade.begin(Release.objects.get(number=1))


def test_a_command_runs_on_its_machine_and_its_output_comes_into_the_log(upgrade: Upgrade) -> None:
    upgrade.engine.machines.commands["flush"] = CommandReport(id="", status=CommandStatus.SUCCEEDED, exit_status=0, lines=["one", "two"])
    run = upgrade.engine.run(only(upgrade, StepKind.RUN_COMMAND, machine="external01", command="flush"))
    assert (run.status, run.steps.get().reason) == (RunStatus.SUCCEEDED, "flush on external01 ended with exit status 0.")
    assert [line.text for line in StepLog.objects.filter(deployment=run, machine="external01")][-3:-1] == ["one", "two"]


@pytest.mark.parametrize("spelled", ["{}", "Basic {basic}", "p={quoted}", '"{json}"'])
def test_a_secret_in_a_commands_output_is_written_down_nowhere(upgrade: Upgrade, spelled: str) -> None:
    secret = 'tr0ub"dor&3 é'
    properties.set_value(upgrade.environment, "erp.password", secret, secret=True, by=upgrade.person)
    forms = {"basic": base64.b64encode(f"erp:{secret}".encode()).decode(), "quoted": quote(secret), "json": json.dumps(secret)[1:-1]}
    line = spelled.format(secret, **forms)
    said = CommandReport(id="", status=CommandStatus.FAILED, reason=f"ended with {line}", lines=[f"one {line}", "two"])
    upgrade.engine.machines.commands["flush"] = said
    run = upgrade.engine.run(only(upgrade, StepKind.RUN_COMMAND, machine="external01", command="flush"))
    kept = [*CommandRun.objects.values_list("output", "reason"), *run.steps.values_list("reason"), *run.log.values_list("text")]
    assert "one " in repr(kept) and "•••" in repr(kept)
    for form in (secret, *forms.values()):
        assert form[4:] not in "\n".join(map(str, kept))


def test_a_command_that_ended_does_not_time_out_over_its_many_lines(upgrade: Upgrade) -> None:
    lines = [f"line {number}" for number in range(6000)]
    upgrade.engine.machines.commands["flush"] = CommandReport(id="", status=CommandStatus.SUCCEEDED, exit_status=0, lines=lines)
    run = upgrade.engine.run(only(upgrade, StepKind.RUN_COMMAND, machine="external01", command="flush", timeout_seconds=5))
    assert run.status == RunStatus.SUCCEEDED, run.steps.get().reason
    assert [line for line in run.log.values_list("text", flat=True) if line.startswith("line ")] == lines


def test_many_lines_of_output_are_written_down_at_once(upgrade: Upgrade) -> None:
    def queries(count: int) -> int:
        lines = [f"line {number}" for number in range(count)]
        upgrade.engine.machines.commands["flush"] = CommandReport(id="", status=CommandStatus.SUCCEEDED, exit_status=0, lines=lines)
        run = only(upgrade, StepKind.RUN_COMMAND, machine="external01", command="flush")
        upgrade.engine.tick(run)
        upgrade.engine.pass_time(1)
        with CaptureQueriesContext(connection) as told:
            upgrade.engine.tick(run)
        run.refresh_from_db()
        logged = list(StepLog.objects.filter(deployment=run).order_by("number"))
        assert [line.number for line in logged] == list(range(1, run.log_lines + 1))
        assert [line.text for line in logged if line.text.startswith("line ")] == lines
        assert run.status == RunStatus.SUCCEEDED
        return len(told)

    few = queries(1)
    assert queries(150) <= few + 2, "SQLite takes some hundred values at once"


def test_a_command_that_is_not_listed_fails_with_the_machines_reason(upgrade: Upgrade) -> None:
    upgrade.engine.machines.commands["flush"] = CommandReport(id="", status=CommandStatus.FAILED, reason="flush is not on the list")
    run = upgrade.engine.run(only(upgrade, StepKind.RUN_COMMAND, machine="external01", command="flush"))
    assert (run.status, run.steps.get().reason) == (RunStatus.FAILED, "flush on external01: flush is not on the list.")


@pytest.mark.parametrize("end", ["cancel", "time-out"])
def test_a_command_nobody_waits_for_any_more_is_taken_back(upgrade: Upgrade, end: str) -> None:
    run = only(upgrade, StepKind.RUN_COMMAND, machine="external01", command="slow", timeout_seconds=5)
    upgrade.engine.tick(run)
    machine = runtime("external01").machine
    assert [order.name for order in ordering.orders_for(machine, now=upgrade.engine.now).commands] == ["slow"]
    if end == "cancel":
        rollout.cancel(run, by=upgrade.person, now=upgrade.engine.now)
    else:
        upgrade.engine.run(run, every=3)
        assert run.steps.get().reason == "slow on external01 did not end within 5 s: slow has yet to be taken on external01."
    assert ordering.orders_for(machine, now=upgrade.engine.now).commands == []
    assert CommandRun.objects.get().status == CommandStatus.CANCELLED


def test_an_address_is_asked_until_it_answers_as_expected(upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(steps, "probe", lambda step, attempt: asked.append(step))
    run = only(upgrade, StepKind.HTTP_CHECK, url="http://127.0.0.1:9/health", expected_status=204)
    engine = upgrade.engine
    engine.tick(run)
    step = run.steps.get()
    assert (asked, step.reason) == ([step.pk], "http://127.0.0.1:9/health is asked.")
    rollout.record_answer(step.pk, 1, status=None, reason="no answer within 3 s", now=engine.now)
    engine.now += timedelta(seconds=1)
    engine.tick(run)
    assert len(asked) == 1 and run.steps.get().reason.endswith("did not answer: no answer within 3 s; 204 is expected.")
    engine.now += timedelta(seconds=1)
    engine.tick(run)
    assert len(asked) == 2
    rollout.record_answer(step.pk, 1, status=204, reason="", now=engine.now)
    engine.tick(run)
    run.refresh_from_db()
    assert (run.status, run.steps.get().reason) == (RunStatus.SUCCEEDED, "http://127.0.0.1:9/health answered 204.")


def test_a_resumed_check_has_its_value_though_the_plan_lost_the_step(upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(steps, "probe", tasks.probe_http)
    monkeypatch.setattr(tasks, "_ask", lambda url: (asked.append(url), (503, ""))[1])
    properties.set_value(upgrade.environment, "erp.health", "up", by=upgrade.person)
    run = only(upgrade, StepKind.HTTP_CHECK, url="http://127.0.0.1:9/${erp.health}", timeout_seconds=4)
    assert upgrade.engine.run(run, every=3).status == RunStatus.TIMED_OUT
    plans.plan_of(upgrade.environment).steps.all().delete()
    properties.set_value(upgrade.environment, "erp.health", "ready", by=upgrade.person)
    upgrade.decide(run, Choice.RETRY)
    upgrade.engine.tick(run)
    assert (asked[0], asked[-1]) == ("http://127.0.0.1:9/up", "http://127.0.0.1:9/ready")
    properties.set_value(upgrade.environment, "erp.health", "newer", by=upgrade.person)
    tasks.probe_http(run.steps.get().pk, 2)
    assert asked[-1] == "http://127.0.0.1:9/ready", "the value that was frozen"


def test_waiting_until_healthy_waits_for_every_runtime_and_group(upgrade: Upgrade) -> None:
    run = only(upgrade, StepKind.WAIT_HEALTHY)
    upgrade.engine.machines.silent.add("external02")
    upgrade.engine.pass_time(20)
    upgrade.engine.tick(run)
    assert run.steps.get().reason == "external02 has not been heard from for 20 s."
    upgrade.engine.machines.silent.clear()
    upgrade.engine.pass_time(1)
    assert upgrade.engine.run(run).status == RunStatus.SUCCEEDED
    assert run.steps.get().reason == "external01.erp and external02.erp are healthy."


# ------------------------------------------------------------------------------------------------------- several people at once


@pytest.mark.django_db(transaction=True)
def test_of_several_decisions_in_one_moment_one_counts_and_the_others_are_told(upgrade: Upgrade) -> None:
    upgrade.engine.machines.failing["external02.erp"] = "no memory"
    run = upgrade.engine.run(upgrade.begin(), every=5)
    assert run.status in BROKEN
    upgrade.engine.machines.failing.clear()
    choices = (Choice.RETRY, Choice.ABORT, Choice.SKIP, Choice.RETRY, Choice.ROLL_BACK)
    results = together(*[lambda choice=choice: upgrade.decide(Deployment.objects.get(pk=run.pk), choice, "Now.") for choice in choices])
    made = [result for result in results if isinstance(result, Deployment)]
    refused = [result for result in results if not isinstance(result, Deployment)]
    assert len(made) == 1 and all(isinstance(result, NotAllowed) for result in refused), results
    assert Decision.objects.count() == 1
    # Where Skip was first, Balance failover waits for the release that was not brought, until its time is over.
    assert upgrade.engine.run(made[0], every=5).status in (RunStatus.SUCCEEDED, RunStatus.CANCELLED, *BROKEN)


@pytest.mark.django_db(transaction=True)
def test_skipping_twice_in_one_moment_skips_one_step_of_two_that_failed(upgrade: Upgrade) -> None:
    run = upgrade.begin()
    first, second = run.steps.filter(kind=StepKind.DEPLOY_RUNTIME)
    run.steps.filter(number__lt=first.number).update(status=RunStatus.SUCCEEDED)
    for step in (first, second):
        fields = {"stage_number": first.stage_number, "lane": step.machine, "status": RunStatus.FAILED, "reason": "no memory."}
        type(step).objects.filter(pk=step.pk).update(**fields)
    Deployment.objects.filter(pk=run.pk).update(status=RunStatus.FAILED)

    def skip() -> Deployment:
        row = Deployment.objects.get(pk=run.pk)
        return decisions.decide(row, Choice.SKIP, by=upgrade.person, now=upgrade.engine.now, reason="Now.", step=first.number)

    with pytest.raises(Invalid, match=f"say which one to skip, of steps {first.number} and {second.number}"):
        upgrade.decide(Deployment.objects.get(pk=run.pk), Choice.SKIP, "Now.")
    results = together(skip, skip)
    assert sorted(type(result).__name__ for result in results) == ["Deployment", "NotAllowed"], results
    assert [step.status for step in run.steps.filter(kind=StepKind.DEPLOY_RUNTIME)] == [RunStatus.SKIPPED, RunStatus.FAILED]
    assert [one.numbers for one in Decision.objects.all()] == [[first.number]]
    upgrade.decide(Deployment.objects.get(pk=run.pk), Choice.RETRY)
    assert Decision.objects.order_by("pk").last().numbers == [second.number]


@pytest.mark.django_db(transaction=True)
def test_a_cancel_that_meets_the_end_of_the_last_step_leaves_one_truth(upgrade: Upgrade) -> None:
    for _ in range(4):
        run = upgrade.begin()
        last = run.steps.order_by("number").last()
        assert last is not None
        upgrade.engine.run(run, until=last.number)
        upgrade.engine.pass_time(1)
        together(
            lambda pk=last.pk: rollout.tick(pk, now=upgrade.engine.now),
            lambda pk=run.pk: rollout.cancel(Deployment.objects.get(pk=pk), by=upgrade.person, now=upgrade.engine.now),
            lambda pk=last.pk: rollout.tick(pk, now=upgrade.engine.now),
        )
        run.refresh_from_db()
        last.refresh_from_db()
        assert run.status == last.status and run.status in (RunStatus.SUCCEEDED, RunStatus.CANCELLED)
        assert not run.alerting_off and not run.steps.filter(status__in=LIVE).exists()
