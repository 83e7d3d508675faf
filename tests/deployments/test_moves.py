"""A flow that moves between groups, or a group that enters or leaves failover, never runs both ways at once."""

from datetime import datetime

import pytest
from django.contrib.auth.models import User

from deployments import moves, plans, releases, rollout
from deployments.models import Deployment, Release, RunStatus, StepKind, StepLog
from deployments.moves import Layout, disagreements
from portal.errors import NotAllowed
from portal.models import Connector, Environment, Flow, Group
from runtimes import fleet, ordering
from runtimes.fleet import layout_digest
from runtimes.models import Bundle, Machine, Runtime
from tests.deployments.conftest import Engine, save_version

A, B = {"a": ("orders", True)}, {"b": ("bulk", True)}
ALONE = {"a": ("orders", False)}


def layout(flows: dict[str, str | None], groups: dict[str, tuple[str, bool]]) -> Layout:
    return Layout({key: (f"flow-{key}", group) for key, group in flows.items()}, groups)


@pytest.mark.parametrize(
    ("ran", "comes", "clauses"),
    [
        pytest.param(layout({"1": "a"}, A), layout({"1": "a"}, A), [], id="the same"),
        pytest.param(layout({"1": "a"}, A), layout({"1": "a"}, {"a": ("renamed", True)}), [], id="a renamed group keeps its id"),
        pytest.param(layout({"1": "a"}, A), layout({"1": "a", "2": "a"}, A), [], id="a new flow is taken by nobody yet"),
        pytest.param(layout({"1": "a", "2": "a"}, A), layout({"1": "a"}, A), [], id="a flow that goes is taken by nobody else"),
        pytest.param(layout({"1": "a"}, A), layout({"1": "a", "2": "b"}, A | B), [], id="a new group with a new flow"),
        pytest.param(
            layout({"1": "a"}, A),
            layout({"1": "b"}, B),
            ["flow flow-1 moves from group orders to bulk"],
            id="a flow moves to another group",
        ),
        pytest.param(
            layout({"1": "a", "2": "b"}, A | B),
            layout({"1": "b", "2": "a"}, A | B),
            ["flow flow-1 moves from group orders to bulk", "flow flow-2 moves from group bulk to orders"],
            id="two flows change places",
        ),
        pytest.param(layout({"1": "a"}, A), layout({"1": None}, {}), ["flow flow-1 leaves group orders"], id="a flow leaves its group"),
        pytest.param(layout({"1": None}, {}), layout({"1": "a"}, A), ["flow flow-1 comes into group orders"], id="a flow gets a group"),
        pytest.param(layout({"1": "a"}, A), layout({"1": "a"}, ALONE), ["group orders leaves failover"], id="failover off"),
        pytest.param(layout({"1": "a"}, ALONE), layout({"1": "a"}, A), ["group orders comes into failover"], id="failover on"),
        pytest.param(layout({"1": "a"}, ALONE), layout({"1": "a"}, ALONE), [], id="single nodes stay single nodes"),
    ],
)
def test_what_must_not_run_at_once(ran: Layout, comes: Layout, clauses: list[str]) -> None:
    assert disagreements(ran, comes) == clauses


def test_of_a_bundle_that_nobody_can_read_only_an_equal_layout_may_run_beside_it() -> None:
    comes = layout({"1": "a", "2": None}, A)
    ran = layout_digest([("2", None), ("1", "a")], [("a", True)])
    assert moves._disagreements(Bundle(content=b"", layout=ran), comes) == []
    for other in (layout_digest([("1", "a")], [("a", True)]), layout_digest([("2", None), ("1", "a")], [("a", False)]), ""):
        (clause,) = moves._disagreements(Bundle(content=b"", layout=other), comes)
        assert "cannot be read" in clause


# ---------------------------------------------------------------------------------------------------------------- deploying


class Move:
    """Release 1 runs on both machines in group erp-orders; release 2, which is active, has the flow in group bulk."""

    def __init__(self, engine: Engine, environment: Environment, person: User, first: Release, second: Release) -> None:
        self.engine, self.machines = engine, engine.machines
        self.environment, self.person, self.first, self.second = environment, person, first, second

    def activate(self, release: Release) -> None:
        releases.activate(release, self.environment, by=self.person, now=self.engine.now)

    def prepare(self, release: Release | None = None) -> Deployment:
        return rollout.prepare(release or self.second, on=self.environment, by=self.person, now=self.engine.now)

    def never_at_once(self) -> bool:
        release_of = dict(Bundle.objects.values_list("digest", "release_number"))
        return not any(len({release_of[digest] for digest in at_once}) > 1 for at_once in self.machines.together)


@pytest.fixture
def move(active: Release, flow: Flow, erp: Connector, filled: Environment, engine: Engine, developer: User) -> Move:
    ran = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    assert ran.status == RunStatus.SUCCEEDED
    bulk = Group.objects.create(connector=erp, name="bulk")
    save_version(flow, 1, group=bulk.key, group_name="bulk")
    second = releases.build(filled.project, name="Second", by=developer)
    made = Move(engine, filled, developer, active, second)
    made.activate(second)
    engine.machines.handed_over.clear()
    return made


def runtime(machine: str) -> Runtime:
    return Runtime.objects.select_related("machine", "connector").get(machine__name=machine, connector__name="erp")


def log(deployment: Deployment) -> list[str]:
    return [line.text for line in StepLog.objects.filter(step__deployment=deployment)]


GAP = "erp stops on external01 and external02 before the new release starts anywhere: flow erp-orders moves from group erp-orders to bulk"


def test_all_members_stop_before_any_starts_with_the_new_groups(move: Move) -> None:
    run = move.engine.run(move.prepare())
    assert run.status == RunStatus.SUCCEEDED
    assert move.never_at_once()
    assert {item.observed_release for item in Runtime.objects.all()} == {2}
    assert all(item.desired_running and not item.held for item in Runtime.objects.all())
    assert f"There is a gap: {GAP}." in log(run)
    assert "external02.erp: proven stopped. external01.erp may start." in log(run)
    assert ("external02.erp", "deploy") not in move.machines.handed_over, "a hand-over is pointless"


def test_bundles_made_before_their_layout_was_kept_are_compared_all_the_same(move: Move) -> None:
    Bundle.objects.update(layout="")
    run = move.engine.run(move.prepare())
    assert run.status == RunStatus.SUCCEEDED
    assert move.never_at_once()
    assert f"There is a gap: {GAP}." in log(run)


def test_a_renamed_group_stops_nothing(move: Move, flow: Flow) -> None:
    Group.objects.filter(name="erp-orders").update(name="orders")
    save_version(flow, 2, group_name="orders")
    third = releases.build(move.environment.project, name="Third", by=move.person)
    move.activate(third)
    run = move.engine.run(move.prepare(third))
    assert run.status == RunStatus.SUCCEEDED
    assert not any("There is a gap" in line for line in log(run))
    assert not move.never_at_once(), "they were deployed one after the other, as always"


def test_the_first_deployment_has_nothing_to_stop(active: Release, filled: Environment, engine: Engine, developer: User) -> None:
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    assert run.status == RunStatus.SUCCEEDED
    assert not any("There is a gap" in line for line in log(run))


def test_a_silent_sibling_is_not_taken_for_stopped(move: Move) -> None:
    move.engine.pass_time(1)
    run = move.engine.run(move.prepare(), until=3)
    move.machines.silent.add("external02")
    move.engine.run(run, every=5)
    assert run.status == RunStatus.TIMED_OUT
    step = run.steps.get(number=3)
    assert step.reason.startswith(f"external01.erp did not report ready within 120 s: {GAP}. ")
    assert "It cannot be proven that external02.erp stopped: external02 has not been heard from for " in step.reason
    assert runtime("external01").observed_release == 1, "it goes on with what it ran"
    move.machines.silent.clear()
    move.engine.pass_time(1)
    rollout.resume(run, by=move.person, now=move.engine.now)
    assert move.engine.run(run).status == RunStatus.SUCCEEDED
    assert move.never_at_once()
    assert runtime("external02").observed_release == 2


def test_a_machine_that_falls_silent_after_it_proved_the_stop_holds_nobody_up(move: Move) -> None:
    run = move.engine.run(move.prepare(), until=3)
    move.engine.tick(run)
    move.engine.pass_time(0.5)  # external02 takes the orders and reports no process
    move.machines.silent.add("external02")
    move.engine.run(run, until=4, every=5)
    assert run.steps.get(number=3).status == RunStatus.SUCCEEDED
    assert runtime("external01").observed_release == 2


def test_cancelling_in_the_gap_leaves_nobody_able_to_start_the_former_groups(move: Move) -> None:
    run = move.engine.run(move.prepare(), until=4)
    rollout.cancel(run, by=move.person, now=move.engine.now)
    held = runtime("external02")
    assert held.desired_running, "that it should run is not forgotten"
    with pytest.raises(NotAllowed, match=r"external02\.erp stays stopped until it is deployed: deployment \d+ changes who takes: flow"):
        fleet.start(held)
    with pytest.raises(NotAllowed, match="Deploy a release to start it"):
        fleet.restart(held)
    move.engine.pass_time(1)
    assert runtime("external02").observed_state == "stopped"
    move.activate(move.first)  # back to the former groups: now external01 has to stop first
    back = move.engine.run(move.prepare(move.first))
    assert back.status == RunStatus.SUCCEEDED
    assert {item.observed_release for item in Runtime.objects.all()} == {1}
    assert move.never_at_once()


def test_a_plan_that_would_leave_a_sibling_stopped_is_refused_before_anything_is_touched(move: Move) -> None:
    plan = plans.plan_of(move.environment)
    plans.remove_step(plan.steps.get(machine="external02"))
    sentence = (
        "external02.erp would have to stop (flow erp-orders moves from group erp-orders to bulk), and no later step deploys it: "
        "add Deploy runtime external02.erp to the plan."
    )
    assert rollout.obstacles(move.second, move.environment, now=move.engine.now) == [sentence]
    plans.add_step(plan, StepKind.DEPLOY_MACHINE, machine="external02")
    run = move.prepare()
    run.steps.filter(machine="external02").delete()  # however it came about
    move.engine.run(run)
    assert run.status == RunStatus.FAILED
    assert run.steps.get(number=3).reason == sentence
    assert not runtime("external02").held
    assert Machine.objects.get(name="external02").orders_taken == Machine.objects.get(name="external02").orders_version


def test_activation_warns_of_the_gap(move: Move) -> None:
    assert releases.warnings(move.second, move.environment) == [f"Deploying it makes a gap: {GAP}."]
    assert releases.warnings(move.first, move.environment) == []


def test_turning_failover_off_stops_all_first(move: Move, erp: Connector) -> None:
    type(erp).objects.filter(pk=erp.pk).update(failover=False)
    flow = Flow.objects.get(connector=erp)
    save_version(flow, 3)
    third = releases.build(move.environment.project, name="Third", by=move.person)
    move.activate(third)
    assert "group erp-orders leaves failover" in releases.warnings(third, move.environment)[0]
    move.engine.run(move.prepare(third), until=5)
    assert move.never_at_once()


def test_a_stopped_sibling_with_the_former_groups_cannot_be_started_beside_the_new_ones(move: Move) -> None:
    fleet.stop(runtime("external02"))
    move.engine.pass_time(1)
    run = move.engine.run(move.prepare(), until=4)
    with pytest.raises(NotAllowed, match="stays stopped until it is deployed"):
        fleet.start(runtime("external02"))
    assert move.engine.run(run).status == RunStatus.SUCCEEDED
    assert "external02.erp was stopped by a person; deploying starts it." in log(run)


def test_orders_of_a_held_runtime_say_stopped(move: Move) -> None:
    held = runtime("external02")
    fleet.hold(held, "a test.")
    now: datetime = move.engine.now
    (order,) = ordering.orders_for(held.machine, now=now).runtimes
    assert (order.running, Runtime.objects.get(pk=held.pk).desired_running) == (False, True)
