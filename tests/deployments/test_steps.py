"""What each kind of step orders, what it waits for, and what it says."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.contrib.auth.models import User

from deployments import plans, rollout
from deployments.looks import Outcome, done, failed, running, together
from deployments.models import Deployment, Release, RunStatus, Step, StepKind, StepLog, StepRun
from portal import properties
from portal.errors import Busy
from portal.models import Environment, Group, Property
from runtimes import architecture, failover, fleet
from runtimes.models import FailoverGroup, GroupMember, Machine, Router, Runtime
from runtimes.protocol import Preference, RouterState, RuntimeState, State, Status
from tests.deployments.conftest import Engine


@pytest.mark.parametrize(
    ("outcomes", "outcome"),
    [
        pytest.param([], done(""), id="nothing to do is done"),
        pytest.param([done("A."), done("B.")], done("A. B."), id="done when all are"),
        pytest.param([done("A."), running("B."), failed("C.")], running("B."), id="running while one runs"),
        pytest.param([done("A."), failed("B."), failed("C.")], failed("B. C."), id="then failed, with every reason"),
    ],
)
def test_one_outcome_of_several(outcomes: list[Outcome], outcome: Outcome) -> None:
    assert together(outcomes) == outcome


class Stage:
    """Runs plans of one step on a Test that was deployed before."""

    def __init__(self, engine: Engine, release: Release, environment: Environment, person: User) -> None:
        self.engine, self.release, self.environment, self.person = engine, release, environment, person
        self.machines = engine.machines

    def begin(self, kind: StepKind, **fields: str | int) -> Deployment:
        Step.objects.all().delete()
        plans.add_step(plans.plan_of(self.environment), kind, **fields)
        deployment = rollout.prepare(self.release, on=self.environment, by=self.person, now=self.engine.now)
        self.engine.tick(deployment)
        return deployment

    def run(self, kind: StepKind, *, every: float = 0.5, **fields: str | int) -> StepRun:
        deployment = self.engine.run(self.begin(kind, **fields), every=every)
        step = deployment.steps.get()
        assert deployment.status == (RunStatus.SUCCEEDED if step.status == RunStatus.SKIPPED else step.status)
        return step

    def prefer_nobody(self) -> None:
        Runtime.objects.update(preference=Preference.NONE)

    @property
    def leader(self) -> str:
        (key,) = self.machines.leaders.values()
        return key


@pytest.fixture
def fresh(active: Release, filled: Environment, engine: Engine, developer: User) -> Stage:
    """Nothing was deployed yet."""
    return Stage(engine, active, filled, developer)


@pytest.fixture
def stage(fresh: Stage) -> Stage:
    """The default plan was deployed; external01 leads erp-orders."""
    run = fresh.engine.run(rollout.prepare(fresh.release, on=fresh.environment, by=fresh.person, now=fresh.engine.now))
    assert run.status == RunStatus.SUCCEEDED
    assert fresh.leader == "external01.erp"
    return fresh


def runtime(machine: str) -> Runtime:
    return Runtime.objects.select_related("machine", "connector").get(machine__name=machine, connector__name="erp")


ON_2 = {"machine": "external02", "connector": "erp"}
ON_1 = {"machine": "external01", "connector": "erp"}


# ------------------------------------------------------------------------------------------------------------------- routers


def test_routers_are_ordered_together_at_the_addresses_of_the_properties(fresh: Stage) -> None:
    fresh.begin(StepKind.DEPLOY_ROUTERS)
    for router in Router.objects.select_related("machine"):
        assert router.desired_running
        assert router.desired_port == 2380
        assert set(router.desired_members) == {"core01", "external01", "external02"}
    assert Router.objects.get(machine__name="external02").desired_host == "10.0.0.12"


def test_a_majority_of_routers_is_enough_and_the_missing_one_is_named(fresh: Stage) -> None:
    fresh.machines.routers["external02"] = "port 2380 is taken"
    step = fresh.run(StepKind.DEPLOY_ROUTERS)
    assert step.status == RunStatus.SUCCEEDED
    assert step.reason == "2 of 3 routers run, a majority. Not yet: The router on external02 is failed: port 2380 is taken."


def test_without_a_majority_the_step_names_every_router_that_lacks(fresh: Stage) -> None:
    fresh.machines.routers = {"external01": "port 2380 is taken", "core01": "etcd 3.5.2 is refused"}
    step = fresh.run(StepKind.DEPLOY_ROUTERS, timeout_seconds=5)
    assert step.status == RunStatus.TIMED_OUT
    assert step.reason == (
        "No majority of the routers ran within 5 s: 1 of 3 routers run, no majority yet. "
        "The witness on core01 is failed: etcd 3.5.2 is refused. The router on external01 is failed: port 2380 is taken."
    )


def test_a_report_from_before_the_order_proves_no_router(fresh: Stage) -> None:
    Router.objects.update(observed_state=RouterState.RUNNING)
    run = fresh.begin(StepKind.DEPLOY_ROUTERS)
    assert run.steps.get().status == RunStatus.RUNNING
    assert "core01 has not taken its orders yet" in run.steps.get().reason


def test_a_router_without_an_address_names_its_keys(fresh: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "obstacles", lambda *_, **__: [])  # the value goes between preparing and this step
    properties.remove_value(fresh.environment, "external02.failover.port")
    step = fresh.run(StepKind.DEPLOY_ROUTERS)
    assert (step.status, step.reason) == (
        RunStatus.FAILED,
        "router on external02 needs a value for external02.failover.port (Failover port).",
    )
    assert not Router.objects.filter(desired_running=True).exists()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        pytest.param("10.0.0.11", "external01 already uses 10.0.0.11", id="a duplicate"),
        pytest.param("127.0.0.1", "127.0.0.1 is reachable only from external02 itself", id="loopback beside real addresses"),
    ],
)
def test_addresses_that_form_no_cluster_are_refused(fresh: Stage, value: str, sentence: str) -> None:
    Property.objects.filter(key="external02.failover.internal-ip").update(value=value)  # slipped past the form
    step = fresh.run(StepKind.DEPLOY_ROUTERS)
    assert step.status == RunStatus.FAILED
    assert step.reason.startswith(sentence)


def test_the_same_address_in_two_environments_is_named_with_its_remedy(fresh: Stage) -> None:
    acceptance = fresh.environment.project.environments.get(kind="acceptance")
    machine = Machine.objects.create(environment=acceptance, name="external01", kind="external")
    Router.objects.create(machine=machine, desired_running=True, desired_host="10.0.0.11", desired_port=2380)
    fresh.machines.routers["external01"] = "10.0.0.11:2380 is already taken by another program"
    reason = fresh.run(StepKind.DEPLOY_ROUTERS).reason
    assert "Acceptance is ordered to run at 10.0.0.11:2380 too" in reason
    assert "give one of them another Failover port (external01.failover.port)" in reason


def test_a_change_of_a_running_cluster_is_followed_until_its_end(stage: Stage) -> None:
    properties.set_value(stage.environment, "external01.failover.port", "2390", by=stage.person)
    stage.machines.plays_etcd = True
    step = stage.run(StepKind.DEPLOY_ROUTERS)
    assert step.status == RunStatus.SUCCEEDED, step.reason
    said = [line.text for line in StepLog.objects.filter(step=step)]
    assert any("external01 moves from https://10.0.0.11:2380 to https://10.0.0.11:2390" in line for line in said)
    assert [line for line, after in pairwise(said) if line == after] == [], "each sentence once"
    assert stage.machines.handed_over[-1] == ("external02.erp", "deploy"), "external01 led, and hands over first"
    assert Router.objects.get(machine__name="external01").desired_port == 2390


def test_a_change_while_another_router_is_away_fails_with_the_reason(stage: Stage) -> None:
    properties.set_value(stage.environment, "external01.failover.port", "2390", by=stage.person)
    stage.machines.plays_etcd = True
    stage.machines.silent.add("core01")
    stage.engine.now += timedelta(minutes=5)
    step = stage.run(StepKind.DEPLOY_ROUTERS)
    assert step.status == RunStatus.FAILED, step.reason
    assert step.reason.startswith("core01 must run before another router is changed")
    assert Router.objects.get(machine__name="external01").desired_port == 2380


def test_without_routers_there_is_nothing_to_do(fresh: Stage) -> None:
    Router.objects.all().delete()
    assert fresh.run(StepKind.DEPLOY_ROUTERS).reason == "There are no routers here: nothing runs in failover."


# ------------------------------------------------------------------------------------------------------------------ runtimes


def test_a_machine_is_deployed_with_all_its_runtimes(fresh: Stage) -> None:
    fresh.run(StepKind.DEPLOY_ROUTERS)
    step = fresh.run(StepKind.DEPLOY_MACHINE, machine="external01")
    assert (step.status, step.reason) == (RunStatus.SUCCEEDED, "external01.erp runs release 1.")
    assert runtime("external02").desired_bundle is None


def test_a_machine_without_runtimes_is_refused(fresh: Stage) -> None:
    assert fresh.run(StepKind.DEPLOY_MACHINE, machine="core01").reason == "core01 has no runtimes on Test: apply the architecture first."


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        pytest.param({"observed_state": RuntimeState.STARTING}, "external01.erp is starting.", id="not ready"),
        pytest.param({"observed_digest": "0" * 64}, "external01.erp is ready and still runs what it ran before.", id="another bundle"),
        pytest.param({"desired_restarts": 1}, "external01.erp is ready and still runs what it ran before.", id="an ordered restart"),
        pytest.param(
            {"observed_state": RuntimeState.BACKOFF, "observed_reason": "exited with status 3"},
            "external01.erp is backoff: exited with status 3.",
            id="in back-off",
        ),
    ],
)
def test_a_runtime_that_is_not_proven_keeps_the_step_waiting(stage: Stage, facts: dict[str, Any], sentence: str) -> None:
    Runtime.objects.filter(machine__name="external01").update(**facts)
    run = stage.begin(StepKind.START_RUNTIME, **ON_1)
    assert (run.steps.get().status, run.steps.get().reason) == (RunStatus.RUNNING, sentence)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        pytest.param(
            {"observed_status": Status.ISOLATED, "observed_reason": "no majority"},
            "external02.erp is isolated in group erp-orders: no majority.",
            id="isolated",
        ),
        pytest.param(
            {"observed_status": Status.UNKNOWN, "observed_reason": ""}, "external02.erp is unknown in group erp-orders.", id="unknown"
        ),
        pytest.param(
            {"observed_ready": False, "observed_reason": "the folder is missing"},
            "external02.erp follows in group erp-orders but is not ready to take over: the folder is missing.",
            id="a follower that could not take over",
        ),
        pytest.param({"observed_status": Status.DISABLED}, None, id="disabled by a person is settled"),
        pytest.param({"observed_status": Status.SINGLE_NODE}, None, id="a single node is settled"),
    ],
)
def test_a_runtime_is_proven_when_it_is_settled_in_its_groups(stage: Stage, facts: dict[str, Any], sentence: str | None) -> None:
    GroupMember.objects.filter(runtime__machine__name="external02").update(**facts)
    step = stage.begin(StepKind.DEPLOY_RUNTIME, **ON_2).steps.get()
    if sentence is None:
        assert (step.status, step.reason) == (RunStatus.SKIPPED, "external02.erp already runs this bundle: not restarted.")
    else:
        assert (step.status, step.reason) == (RunStatus.RUNNING, sentence)


def test_a_runtime_that_is_not_restarted_leaves_a_group_that_its_release_lacks(stage: Stage) -> None:
    """A sibling ran a newer release meanwhile, which has one more group; this one was left out, and the older release is deployed again."""
    runtime = Runtime.objects.get(machine__name="external02", connector__name="erp")
    newer = Group.objects.create(connector=runtime.connector, name="newer")
    group = FailoverGroup.objects.create(environment=runtime.environment, group=newer, name="newer", failover=True)
    GroupMember.objects.create(group=group, runtime=runtime)
    step = stage.run(StepKind.DEPLOY_RUNTIME, **ON_2)
    assert (step.status, step.reason) == (RunStatus.SKIPPED, "external02.erp already runs this bundle: not restarted.")
    assert not GroupMember.objects.filter(group=group).exists()


ONLY_WHO_LEADS = "follows external01.erp, which holds epoch 1·240"


@pytest.mark.parametrize(
    ("inbound", "said", "sentence"),
    [
        pytest.param({"reason": "the folder /srv/erp/outbox is missing"}, ONLY_WHO_LEADS,
                     "erp-orders is off: the folder /srv/erp/outbox is missing.", id="its inbound tells"),
        pytest.param({}, "the disk is full", "the disk is full.", id="its process tells"),
        pytest.param({}, ONLY_WHO_LEADS, "external02 does not say why.", id="nobody tells"),
        pytest.param({}, f"{ONLY_WHO_LEADS}; it is not ready to take over: flow erp-orders: the folder /srv is gone",
                     "flow erp-orders: the folder /srv is gone.", id="its process tells whom it follows too"),
    ],
)  # fmt: skip
def test_waiting_until_healthy_names_the_member_and_the_cause_not_the_epoch(
    stage: Stage, inbound: dict[str, Any], said: str, sentence: str
) -> None:
    key = FailoverGroup.objects.get().group.key
    facts = [{"flow": "f", "name": "erp-orders", "on": False, "group": key, **inbound}]
    Runtime.objects.filter(machine__name="external02").update(observed_flows=facts)
    GroupMember.objects.filter(runtime__machine__name="external02").update(observed_ready=False, observed_reason=said)
    step = stage.begin(StepKind.WAIT_HEALTHY).steps.get()
    assert step.reason == f"external02.erp follows in group erp-orders but is not ready to take over: {sentence}"
    group = FailoverGroup.objects.prefetch_related(failover.with_members()).get()
    view = failover.verdict(group, now=stage.engine.now)
    lacking = next(one for one in view.members if one.machine == "external02")
    assert failover.obstacle(view, lacking) == f"external02 is not ready: {sentence}"


def test_waiting_until_healthy_names_why_a_leader_is_off(stage: Stage) -> None:
    key = FailoverGroup.objects.get().group.key
    flow = {"flow": "f", "name": "erp-orders", "on": False, "group": key, "reason": "the host of its source cannot be found"}
    Runtime.objects.filter(machine__name="external01").update(observed_flows=[flow])
    told = {"observed_state": State.OFF, "observed_reason": "leads with epoch 1·240"}
    GroupMember.objects.filter(runtime__machine__name="external01").update(**told)
    said = "erp-orders: external01 leads, but its inbounds are Off: erp-orders is off: the host of its source cannot be found."
    assert stage.begin(StepKind.WAIT_HEALTHY).steps.get().reason == said


def test_waiting_until_healthy_names_the_group_that_nobody_leads_and_the_remedy(stage: Stage) -> None:
    GroupMember.objects.update(observed_status=Status.DISABLED, observed_state=State.OFF)
    step = stage.begin(StepKind.WAIT_HEALTHY, timeout_seconds=5).steps.get()
    remedy = "erp-orders: nobody leads, for every member is disabled. Enable one (Operate › Groups)."
    assert step.reason == remedy
    rollout.tick(step.pk, now=stage.engine.now + timedelta(seconds=6))
    step.refresh_from_db()
    assert step.reason == f"Not everything was healthy within 5 s. {remedy}"


def without_group(release: Release) -> None:
    """As if the release that is deployed now had been made after the group was taken away."""
    content = release.content | {"groups": []}
    Release.objects.filter(pk=release.pk).update(content=content)
    release.content = content


def test_nobody_waits_for_a_group_that_the_release_took_away(stage: Stage) -> None:
    """external02 was left out, so that its member of the group is still there: Isolated, for its routers are gone."""
    GroupMember.objects.filter(runtime__machine__name="external02").update(observed_status=Status.ISOLATED, observed_reason="no majority")
    without_group(stage.release)
    step = stage.run(StepKind.WAIT_HEALTHY)
    assert step.status == RunStatus.SUCCEEDED
    assert step.reason == ("external01.erp and external02.erp are healthy. Group erp-orders is not waited for: release 1 does not have it.")


def test_nobody_waits_for_a_runtime_that_the_release_stopped(stage: Stage) -> None:
    content = stage.release.content | {"groups": [], "flows": [], "connectors": []}
    Release.objects.filter(pk=stage.release.pk).update(content=content)
    for row in Runtime.objects.all():
        fleet.retire(row, "Release 1 has no connector erp.")
    stage.release.content = content
    stage.engine.pass_time(1)
    step = stage.run(StepKind.WAIT_HEALTHY, machine="external01")
    assert (step.status, step.reason) == (
        RunStatus.SUCCEEDED, "Nothing is to run here. external01.erp is not waited for: Release 1 has no connector erp.",
    )  # fmt: skip


def test_waiting_for_a_runtime_that_stays_stopped_ends_at_once(stage: Stage) -> None:
    fleet.hold(runtime("external02"), "deployment 1 changes who takes: flow erp-orders moves from group a to b.")
    stage.engine.pass_time(1)
    step = stage.run(StepKind.WAIT_HEALTHY)
    assert step.status == RunStatus.FAILED
    assert step.reason == (
        "external02.erp stays stopped until it is deployed: deployment 1 changes who takes: flow erp-orders moves from group a to b. "
        "Deploy it before this step."
    )


@pytest.mark.parametrize(("reason", "end"), [("", "."), ("starting", "."), ("the port is taken.", ": the port is taken.")])
def test_a_reason_that_only_says_the_state_again_is_left_out(stage: Stage, reason: str, end: str) -> None:
    Runtime.objects.filter(machine__name="external02").update(observed_state=RuntimeState.STARTING, observed_reason=reason)
    step = stage.begin(StepKind.WAIT_HEALTHY, **ON_2).steps.get()
    assert step.reason == f"external02.erp is starting{end}"


def test_a_failure_told_once_by_an_old_report_does_not_fail_the_step(fresh: Stage) -> None:
    fresh.run(StepKind.DEPLOY_ROUTERS)
    run = fresh.begin(StepKind.DEPLOY_RUNTIME, **ON_1)
    fresh.machines.failing["external01.erp"] = "of before"
    fresh.engine.pass_time(0.5)
    fresh.engine.tick(run)
    assert run.steps.get().status == RunStatus.RUNNING
    fresh.machines.failing.clear()
    fresh.engine.pass_time(0.5)
    assert fresh.engine.run(run).status == RunStatus.SUCCEEDED


def test_a_runtime_that_left_the_architecture_is_named(stage: Stage) -> None:
    run = stage.begin(StepKind.MANUAL, instruction="wait")
    StepRun.objects.filter(deployment=run).update(
        kind=StepKind.RESTART_RUNTIME, status=RunStatus.PENDING, machine="core01", connector="erp"
    )
    Deployment.objects.filter(pk=run.pk).update(status=RunStatus.RUNNING)
    stage.engine.tick(run)
    assert run.steps.get().reason == "core01.erp is no runtime on Test any more: the architecture was changed."


def test_a_stopped_runtime_is_started(stage: Stage) -> None:
    fleet.stop(runtime("external02"))
    stage.engine.pass_time(1)
    step = stage.run(StepKind.START_RUNTIME, **ON_2)
    assert (step.status, step.reason) == (RunStatus.SUCCEEDED, "external02.erp runs.")
    assert runtime("external02").observed_state == RuntimeState.READY


def test_what_was_never_deployed_is_not_started(fresh: Stage) -> None:
    for kind in (StepKind.START_RUNTIME, StepKind.RESTART_RUNTIME):
        step = fresh.run(kind, **ON_2)
        assert (step.status, step.reason) == (RunStatus.FAILED, "Nothing was deployed to external02.erp yet: deploy it first.")


def test_a_leader_hands_over_before_it_is_stopped(stage: Stage) -> None:
    step = stage.run(StepKind.STOP_RUNTIME, **ON_1)
    assert (step.status, step.reason) == (RunStatus.SUCCEEDED, "external01.erp is stopped.")
    assert stage.machines.handed_over == [("external02.erp", "deploy")]
    assert stage.machines.interrupted == []
    assert not runtime("external01").desired_running


def test_a_leader_hands_over_before_it_is_restarted(stage: Stage) -> None:
    step = stage.run(StepKind.RESTART_RUNTIME, **ON_1)
    assert (step.status, step.reason) == (RunStatus.SUCCEEDED, "external01.erp was restarted.")
    assert (runtime("external01").observed_restarts, stage.leader, stage.machines.interrupted) == (1, "external02.erp", [])


def test_a_runtime_that_does_not_stop_times_out(stage: Stage) -> None:
    stage.machines.silent.add("external02")
    step = stage.run(StepKind.STOP_RUNTIME, **ON_2, timeout_seconds=5)
    assert step.reason == "external02.erp did not stop within 5 s: external02 has not taken its orders yet."


# -------------------------------------------------------------------------------------------------------------------- groups


def test_group_start_brings_leadership_to_that_machine(stage: Stage) -> None:
    step = stage.run(StepKind.GROUP_START, **ON_2, group="erp-orders")
    assert (step.status, step.reason, stage.leader) == (RunStatus.SUCCEEDED, "external02.erp leads erp-orders.", "external02.erp")
    again = stage.run(StepKind.GROUP_START, **ON_2, group="erp-orders")
    assert again.status == RunStatus.SUCCEEDED
    assert stage.machines.handed_over == [("external02.erp", "switch")], "who leads already is not asked again"


def test_group_stop_takes_leadership_away_from_that_machine(stage: Stage) -> None:
    step = stage.run(StepKind.GROUP_STOP, **ON_1, group="erp-orders")
    assert (step.status, step.reason) == (RunStatus.SUCCEEDED, "external02.erp leads erp-orders.")
    assert stage.run(StepKind.GROUP_STOP, **ON_1, group="erp-orders").status == RunStatus.SUCCEEDED
    assert len(stage.machines.handed_over) == 1


def test_group_stop_without_a_follower_ends_with_the_reason(stage: Stage) -> None:
    fleet.stop(runtime("external02"))
    stage.engine.pass_time(1)
    step = stage.run(StepKind.GROUP_STOP, **ON_1, group="erp-orders", timeout_seconds=3)
    assert step.status == RunStatus.TIMED_OUT
    assert step.reason.startswith("erp-orders was not handed over within 3 s: No follower is ready to take over erp-orders")
    assert stage.leader == "external01.erp"


def test_a_refused_hand_over_fails_the_group_step(stage: Stage) -> None:
    stage.machines.refusing = "the drain limit of 5 s passed"
    step = stage.run(StepKind.GROUP_START, **ON_2, group="erp-orders")
    assert (step.status, step.reason) == (RunStatus.FAILED, "erp-orders was not handed over: the drain limit of 5 s passed.")


def test_a_group_that_is_not_deployed_is_named(fresh: Stage) -> None:
    step = fresh.run(StepKind.GROUP_START, **ON_2, group="erp-orders")
    assert step.reason == "external02.erp has no group erp-orders in what is deployed on Test: deploy it first."


# ------------------------------------------------------------------------------------------------------------------- balance


def test_balance_brings_each_group_to_its_preferred_machine(stage: Stage) -> None:
    failover.prefer(runtime("external02"), Preference.LEADER)
    step = stage.run(StepKind.BALANCE_FAILOVER)
    assert (step.status, stage.leader) == (RunStatus.SUCCEEDED, "external02.erp")
    (proof,) = step.memory["groups"]
    assert (proof["group"], proof["state"], proof["reason"]) == ("erp-orders", "done", "external02 leads erp-orders, as preferred.")
    assert (proof["leader"], proof["epoch"], proof["at"]) == ("external02.erp", 2, step.ended_at.isoformat())
    assert [(one["runtime"], one["status"], one["state"], one["release"]) for one in proof["members"]] == [
        ("external01.erp", "follower", "off", 1),
        ("external02.erp", "leader", "on", 1),
    ]
    assert all(one["heard_at"] for one in proof["members"])


def test_balance_without_a_preference_leaves_the_group_where_it_is_and_says_so(stage: Stage) -> None:
    stage.prefer_nobody()
    step = stage.run(StepKind.BALANCE_FAILOVER)
    assert step.status == RunStatus.SUCCEEDED
    assert step.reason == "erp-orders has no preferred leader: it stays where it is, on external01."
    assert stage.machines.handed_over == []


def test_balance_fails_with_one_reason_per_group(stage: Stage) -> None:
    failover.prefer(runtime("external02"), Preference.LEADER)
    stage.machines.silent.add("external02")
    stage.engine.pass_time(12)
    step = stage.run(StepKind.BALANCE_FAILOVER, every=5)
    assert step.status in (RunStatus.FAILED, RunStatus.TIMED_OUT)
    assert "external02" in step.reason and "has not been heard from" in step.reason
    assert stage.leader == "external01.erp", "leadership stays where it works"


def test_balance_with_nothing_to_balance(fresh: Stage) -> None:
    assert fresh.run(StepKind.BALANCE_FAILOVER).reason == "There is no failover group here: nothing to balance."


def test_balance_leaves_groups_alone_that_the_release_no_longer_has(stage: Stage) -> None:
    stage.release.content["groups"] = []
    Release.objects.filter(pk=stage.release.pk).update(content=stage.release.content)
    assert FailoverGroup.objects.exists()
    assert stage.run(StepKind.BALANCE_FAILOVER).reason == "There is no failover group here: nothing to balance."


# ----------------------------------------------------------------------------------------------------------------- the ground


def test_the_architecture_is_not_applied_while_a_deployment_runs(stage: Stage) -> None:
    stage.begin(StepKind.MANUAL, instruction="wait")
    Machine.objects.filter(name="core01").delete()  # so that there is something to apply
    with pytest.raises(Busy, match="is under way on Test: wait for it to end, or cancel it"):
        architecture.apply(stage.environment, seen=None, by=stage.person)
