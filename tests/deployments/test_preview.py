"""What the preview says is what the run does, step by step, with machines that obey and report."""

import re
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.test import Client

from deployments import plans, preview, promotion, releases, rollout, sides, steps
from deployments.models import BROKEN, Choice, Deployment, Release, RunStatus, StepKind, StepRun
from deployments.preview import Preview
from portal import creation, properties
from portal.errors import NotAllowed
from portal.models import Connector, DesignedMachine, Environment, Flow, Group, MachineKind, Placement, System
from runtimes import failover, fleet
from runtimes.models import Machine, Runtime
from runtimes.protocol import CommandReport, CommandStatus, Preference
from tests.deployments.conftest import Engine, save_version
from tests.deployments.test_decisions import Upgrade, runtime, upgrade

__all__ = ["upgrade"]
STATUS = {"runs": RunStatus.SUCCEEDED, "skipped": RunStatus.SKIPPED, "fails": RunStatus.FAILED, "waits": RunStatus.WAITING}


def compare(upgrade: Upgrade, foreseen: Preview, run: Deployment) -> None:
    """Run it and hold every step against what was said of it."""
    machines, engine = upgrade.engine.machines, upgrade.engine
    recipe = list(plans.plan_of(upgrade.environment).steps.all())
    names = {group.key: group.name for group in preview.look(run.release, upgrade.environment, recipe, now=engine.now).groups}
    for told in foreseen.steps:
        ran = {row.key: (row.observed_digest, row.observed_restarts) for row in Runtime.objects.select_related("machine", "connector")}
        machines.handed_over.clear()
        machines.interrupted_groups.clear()
        for _ in range(60):
            step = run.steps.get(number=told.number)
            if step.status not in (RunStatus.PENDING, RunStatus.RUNNING):
                break
            rollout.tick(step.pk, now=engine.now)
            engine.pass_time(2)
        where = f"step {told.number}, {told.title}: {step.reason}"
        assert step.status in (STATUS[told.outcome], RunStatus.TIMED_OUT if told.outcome == "fails" else None), where
        changed = [
            row.key
            for row in Runtime.objects.select_related("machine", "connector")
            if (row.observed_digest, row.observed_restarts) != ran[row.key] and row.observed_digest
        ]
        assert sorted(changed) == sorted(told.restarts), where
        assert [(key, cause) for key, cause in machines.handed_over] == [(one.after, one.cause) for one in told.hand_overs], where
        assert {names[key]: leader for key, leader in machines.leaders.items()} == {
            name: leader for name, leader in told.leaders.items() if leader
        }, where
        assert sorted({names[key] for key in machines.interrupted_groups}) == sorted(told.interrupted), where
        if told.outcome == "fails":
            break


def everyday(upgrade: Upgrade) -> Release:
    return upgrade.release(1)


def unchanged(upgrade: Upgrade) -> Release:
    made = releases.build(upgrade.environment.project, name="The same", by=upgrade.person)
    releases.activate(made, upgrade.environment, by=upgrade.person, now=upgrade.engine.now)
    return made


def one_value(upgrade: Upgrade) -> Release:
    properties.set_value(upgrade.environment, "erp.outbox", "/srv/other", machine="external02", by=upgrade.person)
    return Release.objects.get()


def followers_first(upgrade: Upgrade) -> Release:
    plans.followers_first_plan(upgrade.environment, now=upgrade.engine.now)
    return upgrade.release(1)


def followers_first_from_the_backup(upgrade: Upgrade) -> Release:
    failover.prefer(runtime("external02"), Preference.LEADER)
    return followers_first(upgrade)


def followers_first_with_nothing_changed(upgrade: Upgrade) -> Release:
    plans.followers_first_plan(upgrade.environment, now=upgrade.engine.now)
    return unchanged(upgrade)


def followers_first_with_a_value_of_the_leader(upgrade: Upgrade) -> Release:
    plans.followers_first_plan(upgrade.environment, now=upgrade.engine.now)
    properties.set_value(upgrade.environment, "erp.outbox", "/srv/other", machine="external01", by=upgrade.person)
    return Release.objects.get()


def other_preference(upgrade: Upgrade) -> Release:
    failover.prefer(runtime("external02"), Preference.LEADER)
    return upgrade.release(1)


def follower_stopped(upgrade: Upgrade) -> Release:
    fleet.stop(runtime("external02"))
    upgrade.engine.pass_time(1)
    return upgrade.release(1)


def all_kinds(upgrade: Upgrade) -> Release:
    plan, two = plans.plan_of(upgrade.environment), {"machine": "external02", "connector": "erp"}
    plan.steps.all().delete()
    plans.add_step(plan, StepKind.RESTART_RUNTIME, machine="external01", connector="erp")
    plans.add_step(plan, StepKind.STOP_RUNTIME, machine="external01", connector="erp")
    plans.add_step(plan, StepKind.START_RUNTIME, machine="external01", connector="erp")
    plans.add_step(plan, StepKind.GROUP_STOP, **two, group="erp-orders")
    plans.add_step(plan, StepKind.GROUP_START, **two, group="erp-orders")
    plans.add_step(plan, StepKind.RESTART_RUNTIME, **two, condition="changed")
    plans.add_step(plan, StepKind.DEPLOY_MACHINE, machine="external02")
    plans.add_step(plan, StepKind.RESTART_RUNTIME, **two, condition="changed")
    plans.add_step(plan, StepKind.WAIT_HEALTHY)
    plans.add_step(plan, StepKind.MANUAL, instruction="Look.")
    return upgrade.release(1)


def last_member(upgrade: Upgrade) -> Release:
    plan = plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    for machine in ("external01", "external02"):
        plans.add_step(plan, StepKind.STOP_RUNTIME, machine=machine, connector="erp", timeout_seconds=20)
    return upgrade.release(1)


def another_flow(connector: Connector, name: str, *, group: str = "") -> Flow:
    grouped = Group.objects.create(connector=connector, name=group) if group else None
    like = Flow.objects.get(connector__name="erp", name="erp-orders")
    copied = {side: getattr(like, side) for side in ("inbound_kind", "inbound_settings", "outbound_kind", "outbound_settings")}
    return Flow.objects.create(connector=connector, name=name, group=grouped, **copied)


def with_shop(upgrade: Upgrade, group: str = "shop-sales") -> None:
    """The connector shop beside erp on both external machines, in release 2, which runs."""
    project = upgrade.environment.project
    system = System.objects.create(project=project, name="Shop", slug="shop", multiple_runtimes=True, number_of_runtimes=2)
    shop = Connector.objects.create(project=project, system=system, name="shop", failover=True)
    for machine in Machine.objects.filter(environment=upgrade.environment, kind="external"):
        Placement.objects.create(connector=shop, machine=project.designed_machines.get(name=machine.name))
        Runtime.objects.create(environment=upgrade.environment, machine=machine, connector=shop, failover=True)
    properties.set_value(upgrade.environment, "erp.outbox", "/srv/shop", connector="shop", machine="external01", by=upgrade.person)
    save_version(another_flow(shop, "shop-sales", group=group))
    save_version(another_flow(shop, "shop-free"))
    plans.default_plan(upgrade.environment)
    assert upgrade.engine.run(upgrade.begin()).status == RunStatus.SUCCEEDED
    upgrade.engine.machines.handed_over.clear()


def back_without_a_connector(upgrade: Upgrade, group: str = "shop-sales") -> Release:
    """Release 1 knows erp alone."""
    with_shop(upgrade, group)
    release = Release.objects.get(number=1)
    releases.activate(release, upgrade.environment, by=upgrade.person, now=upgrade.engine.now)
    return release


def back_without_a_connector_on_one_machine_that_other_steps_name(upgrade: Upgrade) -> Release:
    release, plan = back_without_a_connector(upgrade), plans.plan_of(upgrade.environment)
    shop = {"machine": "external02", "connector": "shop"}
    plans.add_step(plan, StepKind.GROUP_START, **shop, group="shop-sales", position=1)
    plans.add_step(plan, StepKind.RESTART_RUNTIME, **shop, position=2)
    plans.add_step(plan, StepKind.FLOW_STOP, **shop, flow="shop-free", position=3)
    plans.add_step(plan, StepKind.WAIT_HEALTHY, **shop, position=4)
    fleet.stop(runtime("external02", "shop"))
    upgrade.engine.pass_time(1)
    return release


def back_without_a_group(upgrade: Upgrade) -> Release:
    save_version(another_flow(upgrade.flow.connector, "erp-bills", group="erp-bills"))
    assert upgrade.engine.run(upgrade.begin()).status == RunStatus.SUCCEEDED
    release = Release.objects.get(number=1)
    releases.activate(release, upgrade.environment, by=upgrade.person, now=upgrade.engine.now)
    return release


def two_groups_of_one_name(upgrade: Upgrade) -> Release:
    """That of erp is led by external01, that of shop by external02."""
    with_shop(upgrade, group="erp-orders")
    shop = Group.objects.get(connector__name="shop")
    upgrade.engine.machines.lead(shop.key, "external02.shop")
    upgrade.engine.pass_time(1)
    plans.followers_first_plan(upgrade.environment, now=upgrade.engine.now)
    save_version(Flow.objects.get(name="shop-sales"), 9, name="shop-sales-9")
    return upgrade.release(9)


def back_without_the_namesake_of_another_connector(upgrade: Upgrade) -> Release:
    return back_without_a_connector(upgrade, group="erp-orders")


def another_group_of_the_same_name(upgrade: Upgrade) -> Release:
    """erp-orders was renamed and left, and another one made; a group that ran is kept for its history."""
    flow = upgrade.flow
    former = flow.connector.groups.get()
    creation.rename_group(former, "old-orders")
    creation.pick_group(flow, None, new_name="erp-orders")
    return upgrade.release(1)


def only_steps(upgrade: Upgrade, *kinds: StepKind) -> Release:
    """A plan of nothing but these on external02.erp."""
    plan = plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    for kind in kinds:
        target = {} if kind == StepKind.WAIT_HEALTHY else {"machine": "external02", "connector": "erp"}
        plans.add_step(plan, kind, timeout_seconds=20, **target)
    return Release.objects.get()


def restart_of_what_a_person_stopped(upgrade: Upgrade) -> Release:
    fleet.stop(runtime("external02"))
    upgrade.engine.pass_time(1)
    return only_steps(upgrade, StepKind.RESTART_RUNTIME)


def restart_of_what_an_earlier_step_stopped(upgrade: Upgrade) -> Release:
    return only_steps(upgrade, StepKind.STOP_RUNTIME, StepKind.START_RUNTIME, StepKind.STOP_RUNTIME, StepKind.RESTART_RUNTIME)


def restart_and_start_before_the_deployment(upgrade: Upgrade) -> Release:
    only_steps(
        upgrade, StepKind.RESTART_RUNTIME, StepKind.DEPLOY_RUNTIME, StepKind.STOP_RUNTIME, StepKind.START_RUNTIME, StepKind.DEPLOY_RUNTIME
    )
    return upgrade.release(1)


def start_of_what_is_held(upgrade: Upgrade) -> Release:
    fleet.hold(runtime("external02"), "deployment 1 changes who takes.")
    upgrade.engine.pass_time(1)
    return only_steps(upgrade, StepKind.START_RUNTIME)


def restart_of_what_is_held(upgrade: Upgrade) -> Release:
    fleet.hold(runtime("external02"), "deployment 1 changes who takes.")
    upgrade.engine.pass_time(1)
    return only_steps(upgrade, StepKind.RESTART_RUNTIME)


def waited_for_while_a_sibling_is_held(upgrade: Upgrade) -> Release:
    fleet.hold(runtime("external02"), "deployment 1 changes who takes.")
    upgrade.engine.pass_time(1)
    release, plan = only_steps(upgrade), plans.plan_of(upgrade.environment)
    plans.add_step(plan, StepKind.WAIT_HEALTHY, machine="external01", timeout_seconds=20)
    return release


def stop_of_the_last_one_of_a_connector_that_the_release_lacks(upgrade: Upgrade) -> Release:
    release, plan = back_without_a_connector(upgrade), plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    plans.add_step(plan, StepKind.DEPLOY_MACHINE, machine="external01")
    plans.add_step(plan, StepKind.STOP_RUNTIME, machine="external02", connector="shop", timeout_seconds=20)
    return release


def waited_for_in_a_lane_beside_what_deploys_nothing_of_it(upgrade: Upgrade) -> Release:
    fleet.hold(runtime("external02"), "deployment 1 changes who takes.")
    upgrade.engine.pass_time(1)
    release, plan = only_steps(upgrade), plans.plan_of(upgrade.environment)
    plans.add_step(plan, StepKind.DEPLOY_RUNTIME, machine="external01", connector="erp", stage="All", lane="one")
    plans.add_step(plan, StepKind.WAIT_HEALTHY, timeout_seconds=20, stage="All", lane="two")
    return release


def a_machine_of_which_one_runtime_is_refused_and_the_other_goes_on(upgrade: Upgrade) -> Release:
    with_shop(upgrade)
    fleet.stop(runtime("external02"))
    upgrade.engine.pass_time(1)
    release, plan = upgrade.release(7), plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    properties.set_value(upgrade.environment, "erp.outbox", "/srv/elsewhere", by=upgrade.person)
    properties.set_value(upgrade.environment, "erp.outbox", "/srv/shop2", connector="shop", machine="external01", by=upgrade.person)
    plans.add_step(plan, StepKind.DEPLOY_MACHINE, machine="external01", timeout_seconds=60)
    return release


def stopped_and_then_balanced(upgrade: Upgrade) -> Release:
    release = only_steps(upgrade, StepKind.STOP_RUNTIME)
    plans.add_step(plans.plan_of(upgrade.environment), StepKind.BALANCE_FAILOVER, timeout_seconds=20)
    return release


def balanced_though_no_step_deploys_one(upgrade: Upgrade) -> Release:
    only_steps(upgrade, StepKind.DEPLOY_RUNTIME)
    plans.add_step(plans.plan_of(upgrade.environment), StepKind.BALANCE_FAILOVER, timeout_seconds=20)
    return unchanged(upgrade)


def stopped_and_then_waited_for(upgrade: Upgrade) -> Release:
    return only_steps(upgrade, StepKind.STOP_RUNTIME, StepKind.WAIT_HEALTHY, StepKind.START_RUNTIME, StepKind.WAIT_HEALTHY)


SCENES: list[Callable[[Upgrade], Release]] = [
    everyday, unchanged, one_value, followers_first_with_nothing_changed, followers_first_with_a_value_of_the_leader, followers_first,
    followers_first_from_the_backup, other_preference, follower_stopped, all_kinds,
    last_member,
    back_without_a_connector, back_without_a_connector_on_one_machine_that_other_steps_name, back_without_a_group,
    two_groups_of_one_name, back_without_the_namesake_of_another_connector, another_group_of_the_same_name,
    restart_and_start_before_the_deployment, restart_of_what_a_person_stopped, restart_of_what_an_earlier_step_stopped,
    start_of_what_is_held, restart_of_what_is_held,
    waited_for_while_a_sibling_is_held, stop_of_the_last_one_of_a_connector_that_the_release_lacks,
    waited_for_in_a_lane_beside_what_deploys_nothing_of_it, a_machine_of_which_one_runtime_is_refused_and_the_other_goes_on,
    stopped_and_then_waited_for, stopped_and_then_balanced, balanced_though_no_step_deploys_one,
]  # fmt: skip


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_the_run_does_what_the_preview_said(upgrade: Upgrade, scene: Callable[[Upgrade], Release]) -> None:
    release = scene(upgrade)
    foreseen = preview.preview(release, upgrade.environment, now=upgrade.engine.now)
    assert foreseen.obstacles == [], foreseen.obstacles
    run = rollout.prepare(release, on=upgrade.environment, by=upgrade.person, now=upgrade.engine.now)
    assert len(foreseen.steps) == run.steps.count() or foreseen.steps[-1].outcome == "fails"
    compare(upgrade, foreseen, run)


def test_followers_first_moves_a_group_once_and_balance_proves_it_where_it_is(upgrade: Upgrade) -> None:
    """external01 is preferred and leads: it must give up once, and is not given back by a second gap."""
    release = followers_first(upgrade)
    foreseen = preview.preview(release, upgrade.environment, now=upgrade.engine.now)
    assert foreseen.hand_overs == {"erp-orders": 1}
    run = upgrade.engine.run(rollout.prepare(release, on=upgrade.environment, by=upgrade.person, now=upgrade.engine.now))
    assert (run.status, upgrade.engine.machines.handed_over) == (RunStatus.SUCCEEDED, [("external02.erp", "switch")])
    balance = run.steps.get(kind=StepKind.BALANCE_FAILOVER)
    assert balance.reason == (
        "erp-orders was handed over once in this deployment and stays on external02. "
        "external01 is preferred: Play there brings it back, or the next deployment."
    )
    assert [one["leader"] for one in balance.memory["groups"]] == ["external02.erp"]
    upgrade.engine.machines.handed_over.clear()
    plans.followers_first_plan(upgrade.environment, now=upgrade.engine.now)
    again = upgrade.release(2)
    run = upgrade.engine.run(rollout.prepare(again, on=upgrade.environment, by=upgrade.person, now=upgrade.engine.now))
    assert upgrade.engine.machines.handed_over == [("external01.erp", "switch")], "the next one brings it back, by one gap again"
    assert run.steps.get(kind=StepKind.BALANCE_FAILOVER).reason == "external01 leads erp-orders, as preferred."


def test_followers_first_leaves_a_group_alone_whose_leader_does_not_change(upgrade: Upgrade) -> None:
    engine, release = upgrade.engine, Release.objects.get()
    plans.followers_first_plan(upgrade.environment, now=engine.now)
    assert plans.lint(plans.plan_of(upgrade.environment)) == []

    def hand_overs() -> tuple[str, list[tuple[str, str]]]:
        engine.machines.handed_over.clear()
        foreseen = preview.preview(release, upgrade.environment, now=engine.now)
        run = engine.run(rollout.prepare(release, on=upgrade.environment, by=upgrade.person, now=engine.now))
        assert run.status == RunStatus.SUCCEEDED
        assert sum(foreseen.hand_overs.values()) == len(engine.machines.handed_over)
        return run.steps.get(kind=StepKind.GROUP_START).reason, engine.machines.handed_over

    needless = "external01.erp leads erp-orders, and this deployment does not change it: no hand-over is needed."
    assert hand_overs() == (needless, [])
    properties.set_value(upgrade.environment, "erp.outbox", "/srv/other", machine="external02", by=upgrade.person)
    assert hand_overs() == (needless, [])
    properties.set_value(upgrade.environment, "erp.outbox", "/srv/third", machine="external01", by=upgrade.person)
    assert hand_overs() == ("external02.erp leads erp-orders.", [("external02.erp", "switch")])


def test_two_groups_of_one_name_are_told_apart_and_each_is_handed_over_once(upgrade: Upgrade) -> None:
    release = two_groups_of_one_name(upgrade)
    foreseen = preview.preview(release, upgrade.environment, now=upgrade.engine.now)
    assert foreseen.leaders == {"erp-orders of erp": "external01.erp", "erp-orders of shop": "external02.shop"}
    assert foreseen.hand_overs == {"erp-orders of erp": 1, "erp-orders of shop": 1}
    run = rollout.prepare(release, on=upgrade.environment, by=upgrade.person, now=upgrade.engine.now)
    assert upgrade.engine.run(run).status == RunStatus.SUCCEEDED
    assert upgrade.engine.machines.handed_over == [("external02.erp", "switch"), ("external01.shop", "switch")]


def with_wms(upgrade: Upgrade) -> dict[str, Flow]:
    """A second connector, wms, without failover: on external01 and on external03, each with a flow of its own."""
    project, flows = upgrade.environment.project, {}
    system = System.objects.create(project=project, name="WMS", slug="wms")
    connector = Connector.objects.create(project=project, system=system, name="wms")
    designed = DesignedMachine.objects.create(project=project, name="external03", kind=MachineKind.EXTERNAL)
    Machine.objects.create(environment=upgrade.environment, name="external03", kind=MachineKind.EXTERNAL, joined_at=upgrade.engine.now)
    for name in ("external01", "external03"):
        machine = project.designed_machines.get(name=name)
        Placement.objects.create(connector=connector, machine=machine)
        Runtime.objects.create(
            environment=upgrade.environment, machine=Machine.objects.get(environment=upgrade.environment, name=name), connector=connector
        )
    assert designed.placements.count() == 1
    flows["stock"] = Flow.objects.create(
        connector=connector,
        name="stock",
        inbound_kind="file",
        inbound_settings={"folder": "/srv/wms"},
        outbound_kind="file",
        outbound_settings={"folder": "/srv/stock"},
    )
    save_version(flows["stock"])
    upgrade.engine.pass_time(1)
    return flows


def newest(upgrade: Upgrade) -> Release:
    made = releases.build(upgrade.environment.project, name="With WMS", by=upgrade.person)
    releases.activate(made, upgrade.environment, by=upgrade.person, now=upgrade.engine.now)
    return made


def test_only_when_changed_looks_at_the_runtime_not_at_its_machine(upgrade: Upgrade) -> None:
    with_wms(upgrade)
    plan = plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    plans.add_step(plan, StepKind.DEPLOY_MACHINE, machine="external01")  # erp is what it was, wms is new
    for connector in ("erp", "wms"):
        plans.add_step(plan, StepKind.RESTART_RUNTIME, machine="external01", connector=connector, condition="changed")
    release = newest(upgrade)
    foreseen = preview.preview(release, upgrade.environment, now=upgrade.engine.now)
    assert [step.outcome for step in foreseen.steps] == ["runs", "skipped", "runs"]
    assert foreseen.steps[0].restarts == ["external01.wms"]
    run = rollout.prepare(release, on=upgrade.environment, by=upgrade.person, now=upgrade.engine.now)
    compare(upgrade, foreseen, run)
    assert run.steps.get(number=2).reason == "This deployment did not change external01.erp: nothing to do."


def test_only_a_runtime_whose_own_flows_name_a_key_runs_with_other_values_of_it(upgrade: Upgrade) -> None:
    """external03.wms was looked at by the deployment that failed and left as it was: its bundle holds no erp.outbox."""
    with_wms(upgrade)
    engine, environment = upgrade.engine, upgrade.environment
    plan = plans.plan_of(environment)
    plan.steps.all().delete()
    for machine in ("external03", "external02", "external01"):
        plans.add_step(plan, StepKind.DEPLOY_MACHINE, machine=machine)
    assert engine.run(rollout.prepare(newest(upgrade), on=environment, by=upgrade.person, now=engine.now)).status == RunStatus.SUCCEEDED
    properties.set_value(environment, "erp.outbox", "/srv/other", by=upgrade.person)
    run = upgrade.begin()
    engine.machines.failing["external02.erp"] = "no such folder"
    engine.run(run, every=5)
    assert run.status in BROKEN
    assert run.steps.get(machine="external03").status == RunStatus.SKIPPED
    notes = [note for note in sides.running_side(environment).notes if "other values" in note]
    assert notes == [f"external02.erp runs with other values of erp.outbox, frozen by deployment {run.pk}."]


def test_what_a_first_attempt_changed_is_changed(upgrade: Upgrade) -> None:
    plan = plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    plans.add_step(plan, StepKind.DEPLOY_MACHINE, machine="external02")
    plans.add_step(plan, StepKind.RESTART_RUNTIME, machine="external02", connector="erp", condition="changed")
    run = upgrade.begin()
    upgrade.engine.machines.failing["external02.erp"] = "no memory"
    assert upgrade.engine.run(run).status == RunStatus.FAILED
    upgrade.engine.machines.failing.clear()
    upgrade.engine.pass_time(1)  # it runs the new bundle meanwhile, so that the second attempt finds nothing to do
    upgrade.decide(run, Choice.RETRY)
    upgrade.engine.run(run)
    assert [step.status for step in run.steps.all()] == [RunStatus.SKIPPED, RunStatus.SUCCEEDED]


def test_two_connectors_two_lanes_a_machine_left_out_a_check_and_a_command(upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch) -> None:
    with_wms(upgrade)
    engine, plan = upgrade.engine, plans.plan_of(upgrade.environment)
    plan.steps.all().delete()
    plans.add_step(plan, StepKind.DEPLOY_RUNTIME, machine="external02", connector="erp", stage="All", lane="erp")
    plans.add_step(plan, StepKind.DEPLOY_RUNTIME, machine="external01", connector="erp", stage="All", lane="erp")
    plans.add_step(plan, StepKind.DEPLOY_MACHINE, machine="external03", stage="All", lane="wms")
    plans.add_step(plan, StepKind.DEPLOY_RUNTIME, machine="external01", connector="wms", stage="All", lane="wms")
    plans.add_step(plan, StepKind.RUN_COMMAND, machine="external01", command="flush", stage="All", lane="wms", condition="changed")
    plans.add_step(plan, StepKind.RUN_COMMAND, machine="external03", command="flush")
    plans.add_step(plan, StepKind.HTTP_CHECK, url="http://127.0.0.1:9/health", condition="changed")
    plans.add_step(plan, StepKind.WAIT_HEALTHY, machine="external01")
    plans.add_step(plan, StepKind.BALANCE_FAILOVER)
    save_version(upgrade.flow, 1)
    release = newest(upgrade)
    engine.machines.commands["flush"] = CommandReport(id="", status=CommandStatus.SUCCEEDED, exit_status=0)
    engine.machines.silent.add("external03")
    engine.pass_time(20)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(steps, "probe", lambda step, attempt: asked.append((step, attempt)))

    def pass_time(seconds: float) -> None:
        while asked:
            rollout.record_answer(*asked.pop(), status=200, reason="", now=engine.now)
        Engine.pass_time(engine, seconds)

    monkeypatch.setattr(engine, "pass_time", pass_time)
    foreseen = preview.preview(release, upgrade.environment, now=engine.now, leaving_out=["external03"])
    assert foreseen.obstacles == []
    assert [step.outcome for step in foreseen.steps] == [
        "runs", "runs", "skipped", "runs", "runs", "skipped", "runs", "runs", "runs",
    ]  # fmt: skip
    run = rollout.prepare(release, on=upgrade.environment, by=upgrade.person, now=engine.now, leaving_out=["external03"])
    compare(upgrade, foreseen, run)
    run.refresh_from_db()
    assert run.status == RunStatus.SUCCEEDED


def test_a_command_that_the_machines_list_does_not_have_is_told_before(upgrade: Upgrade) -> None:
    engine, plan = upgrade.engine, plans.plan_of(upgrade.environment)
    release = only_steps(upgrade)
    plans.add_step(plan, StepKind.RUN_COMMAND, machine="external01", command="nope", timeout_seconds=20)
    assert plans.lint(plan) and not any("nope:" in finding for finding in plans.lint(plan)), "an older agent does not tell"
    assert preview.preview(release, upgrade.environment, now=engine.now).stops_at is None
    engine.machines.listed_commands = ["flush", "hello"]
    engine.pass_time(1)
    said = "external01 does not run nope: its own list (commands.toml) has flush, hello."
    assert f"Step 1, Run command on machine external01 nope: {said}" in plans.lint(plan)
    stops = preview.preview(release, upgrade.environment, now=engine.now).stops_at
    assert stops is not None and stops.sentence == said
    engine.machines.listed_commands = ["nope"]
    engine.pass_time(1)
    assert preview.preview(release, upgrade.environment, now=engine.now).stops_at is None


def test_without_the_machine_that_leads_a_group_balance_cannot_prove_it_and_that_is_said_before(upgrade: Upgrade) -> None:
    engine, release = upgrade.engine, upgrade.release(1)
    (group,) = engine.machines.leaders
    engine.machines.lead(group, "external02.erp")
    engine.pass_time(1)
    engine.machines.silent.add("external02")
    engine.pass_time(20)
    foreseen = preview.preview(release, upgrade.environment, now=engine.now, leaving_out=["external02"])
    stops = foreseen.stops_at
    assert stops is not None and stops.kind == StepKind.BALANCE_FAILOVER and foreseen.obstacles == []
    said = (
        "external02 led erp-orders when it was last heard of, and nobody is known to lead it since: "
        "without external02 it cannot be proven. Play another member first, or Disable external02 (Operate › Groups)."
    )
    assert said in stops.sentence
    run = rollout.prepare(release, on=upgrade.environment, by=upgrade.person, now=engine.now, leaving_out=["external02"])
    assert engine.run(run, every=5).status == RunStatus.TIMED_OUT
    assert said in run.steps.get(kind=StepKind.BALANCE_FAILOVER).reason, "and when it has stopped there, what to do"
    offer = upgrade.offer(run, Choice.ROLL_BACK)
    assert offer is not None and "external02 led erp-orders when it was last heard of" in offer.effect
    engine.machines.lead(group, "external01.erp")  # Play, or Disable of the other one
    engine.pass_time(1)
    assert preview.preview(release, upgrade.environment, now=engine.now, leaving_out=["external02"]).stops_at is None


def test_what_a_roll_back_stopped_stays_so_and_comes_back_with_a_release_that_has_it(upgrade: Upgrade) -> None:
    release, engine = back_without_a_connector(upgrade), upgrade.engine
    assert "Release 1 has no connector shop: it is stopped on external01 and external02, with everything that it takes." in (
        releases.warnings(release, upgrade.environment)
    )
    run = engine.run(rollout.prepare(release, on=upgrade.environment, by=upgrade.person, now=engine.now))
    shop = runtime("external01", "shop")
    assert (run.status, shop.observed_state, shop.memberships.count()) == (RunStatus.SUCCEEDED, "stopped", 0)
    assert "shop-sales" not in str(run.steps.get(kind=StepKind.BALANCE_FAILOVER).memory)
    with pytest.raises(NotAllowed, match=r"Release 1 has no connector shop\. Deploy a release to start it"):
        fleet.start(shop)
    newer = Release.objects.get(number=2)
    releases.activate(newer, upgrade.environment, by=upgrade.person, now=engine.now)
    run = engine.run(rollout.prepare(newer, on=upgrade.environment, by=upgrade.person, now=engine.now))
    shop.refresh_from_db()
    assert (run.status, shop.observed_state, shop.memberships.count(), shop.held) == (RunStatus.SUCCEEDED, "ready", 1, "")


def test_a_connector_that_the_release_lacks_and_no_step_deploys_is_told(upgrade: Upgrade) -> None:
    release, plan = back_without_a_connector(upgrade), plans.plan_of(upgrade.environment)
    for step in plan.steps.filter(connector="shop", machine="external02"):
        plans.remove_step(step)
    gaps = preview.preview(release, upgrade.environment, now=upgrade.engine.now).gaps
    assert gaps == [
        "Release 1 has no connector shop: it is stopped on external01, with everything that it takes.",
        "Release 1 has no connector shop, and no step deploys external02.shop: what ran before runs on there. "
        "Add a step that deploys or stops it.",
    ]


def test_a_first_deployment_is_foreseen_too(active: Release, filled: Environment, engine: Engine, developer: User) -> None:
    failover.prefer(runtime("external02"), Preference.LEADER)
    foreseen = preview.preview(active, filled, now=engine.now)
    assert [step.outcome for step in foreseen.steps] == ["runs"] * 5
    assert [step.leaders["erp-orders"] for step in foreseen.steps] == [
        None, None, "external01.erp", "external01.erp", "external02.erp",
    ]  # fmt: skip
    assert foreseen.seconds is None
    assert [step.starts for step in foreseen.steps] == [[], [], ["external01.erp"], ["external02.erp"], []]
    assert [step.restarted for step in foreseen.steps] == [[]] * 5
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    assert (run.status, engine.machines.handed_over) == (RunStatus.SUCCEEDED, [("external02.erp", "balance")])
    after = preview.preview(active, filled, now=engine.now)
    assert after.seconds is not None and after.hand_overs == {}
    assert [step.outcome for step in after.steps] == ["runs", "runs", "skipped", "skipped", "runs"]


def test_a_step_that_never_ended_well_here_is_not_counted_as_nothing(upgrade: Upgrade) -> None:
    release = everyday(upgrade)
    StepRun.objects.filter(kind=StepKind.BALANCE_FAILOVER).update(status=RunStatus.FAILED)
    foreseen = preview.preview(release, upgrade.environment, now=upgrade.engine.now)
    assert (foreseen.seconds is not None, foreseen.untimed) == (True, 1)
    StepRun.objects.update(status=RunStatus.FAILED)
    foreseen = preview.preview(release, upgrade.environment, now=upgrade.engine.now)
    assert (foreseen.seconds, foreseen.untimed) == (None, len(foreseen.steps))


def test_a_long_plan_knows_its_first_steps_too(upgrade: Upgrade) -> None:
    run = Deployment.objects.get()
    known = {"deployment": run, "kind": StepKind.HTTP_CHECK, "status": RunStatus.SUCCEEDED, "started_at": run.started_at}
    StepRun.objects.bulk_create(StepRun(number=100 + number, ended_at=run.ended_at, **known) for number in range(300))
    foreseen = preview.preview(everyday(upgrade), upgrade.environment, now=upgrade.engine.now)
    assert (foreseen.untimed, foreseen.seconds is None) == (0, False)


def test_the_preview_says_why_a_runtime_changes_and_when_there_is_no_standby(upgrade: Upgrade) -> None:
    foreseen = preview.preview(everyday(upgrade), upgrade.environment, now=upgrade.engine.now)
    first, second = foreseen.steps[2], foreseen.steps[3]
    assert first.sentence == "external01.erp: flow orders-1 1.0.0 → 1.1.0."
    assert [one.sentence for one in first.hand_overs] == ["erp-orders is handed over from external01.erp to external02.erp."]
    assert (first.starts, first.restarted) == ([], ["external01.erp"])
    assert (first.without_standby, second.without_standby) == (["erp-orders"], ["erp-orders"])
    assert foreseen.hand_overs == {"erp-orders": 2}


def test_a_missing_value_stops_the_preview_where_it_would_stop_the_run(upgrade: Upgrade) -> None:
    release = everyday(upgrade)
    properties.remove_value(upgrade.environment, "erp.outbox")
    foreseen = preview.preview(release, upgrade.environment, now=upgrade.engine.now)
    assert foreseen.missing and foreseen.steps[-1].outcome == "fails"
    assert foreseen.steps[-1].sentence == "A value is missing for external01.erp."


def test_the_preview_stops_where_routers_or_the_plan_lack_a_value(upgrade: Upgrade) -> None:
    release = everyday(upgrade)
    plans.add_step(plans.plan_of(upgrade.environment), StepKind.HTTP_CHECK, url="http://${shop.host}/health")
    foreseen = preview.preview(release, upgrade.environment, now=upgrade.engine.now)
    assert foreseen.stops_at is not None
    assert (foreseen.stops_at.kind, foreseen.stops_at.sentence) == (StepKind.HTTP_CHECK, "A value is missing for its address.")
    for machine in ("external01", "core01"):
        properties.remove_value(upgrade.environment, f"{machine}.failover.port")
    stop = preview.preview(release, upgrade.environment, now=upgrade.engine.now).stops_at
    assert stop is not None and stop.kind == StepKind.DEPLOY_ROUTERS
    assert stop.sentence == "2 values are missing for the witness on core01 and the router on external01."


def test_the_dialog_names_each_missing_value_once_and_the_step_that_would_stop(client: Client, upgrade: Upgrade) -> None:
    release = everyday(upgrade)
    properties.remove_value(upgrade.environment, "erp.outbox")
    client.force_login(upgrade.person)
    html = client.get(f"/projects/webshop/test/releases/{release.number}/deploy/").content.decode()
    text = " ".join(re.sub(r"<[^>]*>", " ", html).split())
    assert text.count("erp.outbox") == 1 and "Folder of the inbound: external01.erp, external02.erp" in text
    assert html.count('name="value:erp.outbox"') == 1
    assert "1 key lacks a value on Test" in text
    assert re.search(r"the run would stop at step 3, [^:]+: A value is missing for external01\.erp\.", text)
    assert ": </p>" not in html and "<p></p>" not in html


def test_the_preview_has_a_page_and_an_api(client: Client, upgrade: Upgrade, viewer: User, stranger: User) -> None:
    release = everyday(upgrade)
    client.force_login(upgrade.person)
    html = client.get(f"/projects/webshop/test/releases/{release.number}/deploy/").content.decode()
    assert "erp-orders: 2 hand-overs" in html and "erp-orders is without a standby meanwhile." in html
    client.force_login(viewer)
    told = client.get(f"/api/v1/releases/{release.pk}/preview/?environment=test").json()
    assert [step["restarts"] for step in told["steps"]] == [[], [], ["external01.erp"], ["external02.erp"], []]
    assert told["hand_overs"] == {"erp-orders": 2}
    assert told["rules"] == []
    promotion.set_rules(upgrade.environment, approvals=1, by=upgrade.person, now=upgrade.engine.now)
    (rule,) = client.get(f"/api/v1/releases/{release.pk}/preview/?environment=test").json()["rules"]
    assert rule.startswith(f"Release {release.number} lacks approval on Test")
    assert client.get(f"/api/v1/releases/{release.pk}/preview/").status_code == 400
    client.force_login(stranger)
    assert client.get(f"/api/v1/releases/{release.pk}/preview/?environment=test").status_code == 404
