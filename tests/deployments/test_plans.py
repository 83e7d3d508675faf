"""Plans: a good default, edits that keep Balance failover last, and sentences on what is weak."""

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from deployments import plans
from deployments.models import Plan, Step, StepKind
from portal import creation
from portal.errors import Invalid, NotAllowed
from portal.models import Connector, Environment, System
from runtimes.models import FailoverGroup, Machine, Router, Runtime
from runtimes.protocol import Status
from tests import factories
from tests.deployments.test_releases import together

RULE = "Balance failover comes last, after the deployment of all runtimes"


@pytest.fixture
def plan(test_environment: Environment, group: FailoverGroup) -> Plan:
    """The default plan: 1 alerting off, 2 routers, 3 external01.erp, 4 external02.erp, 5 Balance failover."""
    return plans.default_plan(test_environment)


def kinds(plan: Plan) -> list[str]:
    steps = list(Step.objects.filter(plan=plan).order_by("position"))
    assert [step.position for step in steps] == list(range(1, len(steps) + 1)), "positions are dense"
    return [step.kind for step in steps]


def at(plan: Plan, position: int) -> Step:
    return Step.objects.get(plan=plan, position=position)


def warehouse(environment: Environment) -> Runtime:
    system = System.objects.create(project=environment.project, name="Warehouse", slug="warehouse")
    connector = Connector.objects.create(project=environment.project, system=system, name="warehouse")
    return Runtime.objects.create(
        environment=environment, machine=Machine.objects.get(environment=environment, name="core01"), connector=connector
    )


def test_the_default_plan_deploys_routers_core_and_externals_and_balances_last(plan: Plan) -> None:
    warehouse(plan.environment)
    made = plans.default_plan(plan.environment)
    assert made == plan
    assert [step.title for step in plan.steps.all()] == [
        "Alerting off until the deployment ends",
        "Deploy routers",
        "Deploy runtime core01.warehouse",
        "Deploy runtime external01.erp",
        "Deploy runtime external02.erp",
        "Balance failover",
    ]
    assert plans.lint(plan) == []


def test_without_failover_the_default_plan_has_no_routers_and_no_balance(plan: Plan) -> None:
    Router.objects.all().delete()
    Runtime.objects.update(failover=False)
    assert kinds(plans.default_plan(plan.environment)) == ["alerting-off", "deploy-runtime", "deploy-runtime"]


def test_a_default_plan_needs_an_applied_architecture(acceptance: Environment) -> None:
    with pytest.raises(NotAllowed, match="Acceptance has no runtimes: apply the architecture first"):
        plans.default_plan(acceptance)


def test_a_new_step_comes_before_balance(plan: Plan) -> None:
    step = plans.add_step(plan, StepKind.RESTART_RUNTIME, machine="external01", connector="erp", timeout_seconds=30)
    assert (step.position, step.timeout_seconds) == (5, 30)
    assert kinds(plan)[-2:] == ["restart-runtime", "balance-failover"]


def test_a_step_is_inserted_where_asked(plan: Plan) -> None:
    plans.add_step(plan, StepKind.MANUAL, position=1, instruction="Tell the warehouse.")
    assert kinds(plan) == ["manual", "alerting-off", "deploy-routers", "deploy-runtime", "deploy-runtime", "balance-failover"]


def test_balance_in_the_middle_is_refused(plan: Plan) -> None:
    plans.remove_step(at(plan, 5))
    with pytest.raises(Invalid, match=f"{RULE}: Deploy runtime external02.erp would come after it"):
        plans.add_step(plan, StepKind.BALANCE_FAILOVER, position=4)
    assert plans.add_step(plan, StepKind.BALANCE_FAILOVER).position == 5
    assert len(kinds(plan)) == 5


def test_a_second_balance_is_refused(plan: Plan) -> None:
    with pytest.raises(Invalid, match=f"{RULE}: this plan already has it"):
        plans.add_step(plan, StepKind.BALANCE_FAILOVER)


def test_nothing_is_added_or_moved_behind_balance(plan: Plan) -> None:
    with pytest.raises(Invalid, match=RULE):
        plans.add_step(plan, StepKind.STOP_RUNTIME, position=6, machine="external01", connector="erp")
    with pytest.raises(Invalid, match=RULE):
        plans.move_step(at(plan, 1), 5)
    with pytest.raises(Invalid, match=RULE):
        plans.move_step(at(plan, 5), 2)
    assert kinds(plan) == ["alerting-off", "deploy-routers", "deploy-runtime", "deploy-runtime", "balance-failover"]


@pytest.mark.parametrize(("old", "new"), [(1, 4), (4, 1), (2, 3), (3, 3)])
def test_moving_keeps_the_order_of_the_others(plan: Plan, old: int, new: int) -> None:
    names = [step.title for step in plan.steps.all()]
    plans.move_step(at(plan, old), new)
    names.insert(new - 1, names.pop(old - 1))
    assert [step.title for step in plan.steps.all()] == names
    kinds(plan)


def test_positions_that_do_not_exist_are_refused(plan: Plan) -> None:
    for position in (0, 7):
        with pytest.raises(Invalid, match="choose 1 to 6"):
            plans.add_step(plan, StepKind.DEPLOY_ROUTERS, position=position)
    with pytest.raises(Invalid, match="choose 1 to 5"):
        plans.move_step(at(plan, 1), 6)


@pytest.mark.parametrize(
    ("kind", "fields", "field", "sentence"),
    [
        pytest.param(
            "deploy-machine", {"machine": "external09"}, "machine", "external09 is no machine on Test. There is core01", id="machine"
        ),
        pytest.param("deploy-machine", {}, "machine", "Choose a machine", id="no machine"),
        pytest.param(
            "deploy-runtime", {"machine": "core01", "connector": "erp"}, "connector", "core01.erp is no runtime on Test", id="runtime"
        ),
        pytest.param("stop-runtime", {"machine": "external01"}, "connector", "Choose a runtime. There is erp", id="no connector"),
        pytest.param(
            "group-stop",
            {"machine": "external01", "connector": "erp", "group": "sales"},
            "group",
            "sales is no group of erp on Test. There is erp-orders",
            id="group",
        ),
        pytest.param("manual", {"instruction": " "}, "instruction", "Say what the person should do", id="manual without words"),
        pytest.param("deploy-routers", {"timeout_seconds": 0}, "timeout_seconds", "number of seconds", id="no time"),
        pytest.param("deploy-routers", {"timeout_seconds": "soon"}, "timeout_seconds", "number of seconds", id="time in words"),
        pytest.param("deploy-routers", {"colour": "red"}, "colour", "no field colour", id="unknown field"),
        pytest.param("dance", {}, "kind", "no kind of step", id="unknown kind"),
    ],
)
def test_a_wrong_step_is_refused_naming_its_field(plan: Plan, kind: str, fields: dict[str, str | int], field: str, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence) as refusal:
        plans.add_step(plan, kind, **fields)  # type: ignore[arg-type]
    assert refusal.value.field == field
    assert len(kinds(plan)) == 5


def test_a_step_is_changed_and_keeps_the_rest(plan: Plan) -> None:
    step = at(plan, 3)
    plans.change_step(step, timeout_seconds="300")
    assert (step.machine, step.connector, step.timeout_seconds) == ("external01", "erp", 300)
    with pytest.raises(Invalid, match="external07 is no machine"):
        plans.change_step(step, machine="external07")


def test_removing_closes_the_gap_and_may_be_repeated(plan: Plan) -> None:
    step = at(plan, 2)
    plans.remove_step(step)
    plans.remove_step(step)
    assert kinds(plan) == ["alerting-off", "deploy-runtime", "deploy-runtime", "balance-failover"]
    with pytest.raises(NotAllowed, match="This step is gone"):
        plans.move_step(step, 1)


def test_a_plan_is_copied_and_lint_names_what_is_not_there(plan: Plan, acceptance: Environment) -> None:
    copy = plans.copy_to(plan, acceptance)
    assert kinds(copy) == kinds(plan)
    assert (
        "Step 3, Deploy runtime external01.erp: external01 is no machine on Acceptance. There is none: apply the architecture first."
        in (plans.problems(copy))
    )
    with pytest.raises(Invalid, match="plan of Test already"):
        plans.copy_to(plan, plan.environment)


def test_lint_finds_a_missing_balance(plan: Plan) -> None:
    plans.remove_step(at(plan, 5))
    (sentence,) = plans.lint(plan)
    assert sentence.startswith("A failover group exists (erp-orders), but no Balance failover step does: add it as the last step")


def test_lint_finds_a_runtime_that_is_not_deployed(plan: Plan) -> None:
    plans.remove_step(at(plan, 4))
    assert plans.lint(plan) == ["No step deploys external02.erp. Balance failover needs every runtime on the release that is deployed."]
    plans.add_step(plan, StepKind.DEPLOY_MACHINE, machine="external02")
    assert plans.lint(plan) == []


def test_lint_finds_routers_missing_or_late(plan: Plan) -> None:
    plans.move_step(at(plan, 2), 4)
    assert plans.lint(plan) == [
        "Deploy routers comes after the deployment of a runtime: put it first, runtimes in failover need their router."
    ]
    plans.remove_step(at(plan, 4))
    assert plans.lint(plan) == ["Routers exist, but no Deploy routers step does: add it before the runtimes are deployed."]


def test_lint_finds_alerting_off_too_late_and_an_empty_plan(plan: Plan) -> None:
    plans.move_step(at(plan, 1), 4)
    assert plans.lint(plan) == ["Alerting off comes after the first deployment of a runtime: alerts are sent until then."]
    Step.objects.all().delete()
    assert plans.lint(plan) == ["The plan of Test has no steps: make the default plan or add steps."]


@pytest.mark.django_db(transaction=True)
def test_people_editing_at_once_leave_a_dense_plan_with_balance_last(plan: Plan, developer: User) -> None:
    first, second = at(plan, 3), at(plan, 4)
    together(
        lambda: plans.add_step(plan, StepKind.MANUAL, instruction="a"),
        lambda: plans.add_step(plan, StepKind.MANUAL, position=1, instruction="b"),
        lambda: plans.move_step(first, 1),
        lambda: plans.remove_step(second),
    )
    assert sorted(kinds(plan)) == ["alerting-off", "balance-failover", "deploy-routers", "deploy-runtime", "manual", "manual"]
    assert kinds(plan)[-1] == "balance-failover"


def test_the_followers_first_plan_upgrades_the_follower_hands_over_and_then_the_former_leader(plan: Plan) -> None:
    now = timezone.now()
    group = FailoverGroup.objects.get()
    factories.heard(group, "external01", Status.LEADER, at=now)
    factories.heard(group, "external02", Status.FOLLOWER, at=now)
    warehouse(plan.environment)
    plans.followers_first_plan(plan.environment, now=now)
    assert [(step.stage, step.lane, step.title) for step in plan.steps.all()] == [
        ("", "", "Alerting off until the deployment ends"),
        ("", "", "Deploy routers"),
        ("Single runtimes", "core01", "Deploy runtime core01.warehouse"),
        ("Followers", "erp", "Deploy runtime external02.erp"),
        ("Followers", "erp", "Wait until healthy external02.erp"),
        ("Hand over", "erp", "Start group on a runtime external02.erp erp-orders"),
        ("Former leaders", "erp", "Deploy runtime external01.erp"),
        ("Former leaders", "erp", "Wait until healthy external01.erp"),
        ("", "", "Balance failover"),
    ]
    assert plans.lint(plan) == []


def test_a_copied_plan_keeps_lanes_and_conditions_and_says_what_is_not_there(plan: Plan, acceptance: Environment) -> None:
    plan.steps.all().delete()
    one = {"machine": "external01", "connector": "erp"}
    plans.add_step(plan, StepKind.DEPLOY_RUNTIME, **one, stage="All", lane="a", retries=2, timeout_seconds=300)
    plans.add_step(plan, StepKind.RESTART_RUNTIME, **one, stage="All", lane="b", condition="changed")
    plans.add_step(plan, StepKind.MANUAL, instruction="Call.", confirm_role="operator")
    plans.add_step(plan, StepKind.BALANCE_FAILOVER, hand_overs="once")
    copied = plans.copy_to(plan, acceptance)
    assert plans.digest(acceptance) == plans.digest(plan.environment)
    assert [(step.stage, step.lane, step.condition) for step in copied.steps.all()][:2] == [("All", "a", "always"), ("All", "b", "changed")]
    there = [finding for finding in plans.problems(copied) if "external01 is no machine on Acceptance." in finding]
    assert [finding.split(",")[0] for finding in there] == ["Step 1", "Step 2"]


def test_groups_of_one_name_in_two_connectors_each_have_their_own_leader_and_hand_over(plan: Plan) -> None:
    now, project = timezone.now(), plan.environment.project
    system = System.objects.create(project=project, name="Tills", slug="tills")
    tills = Connector.objects.create(project=project, system=system, name="tills", failover=True)
    erps = FailoverGroup.objects.get()
    other = FailoverGroup.objects.create(environment=plan.environment, group=tills.groups.create(name="erp-orders"), name="erp-orders")
    for name, leads_erp in (("external01", True), ("external02", False)):
        machine = Machine.objects.get(environment=plan.environment, name=name)
        runtime = Runtime.objects.create(environment=plan.environment, machine=machine, connector=tills, failover=True)
        other.members.create(runtime=runtime)
        factories.heard(erps, name, Status.LEADER if leads_erp else Status.FOLLOWER, at=now)
        factories.heard(other, name, Status.FOLLOWER if leads_erp else Status.LEADER, at=now)
    plans.followers_first_plan(plan.environment, now=now)
    moving = ("deploy-runtime", "group-start")
    assert [(step.stage, step.lane, step.title) for step in plan.steps.all() if step.kind in moving] == [
        ("Followers", "erp", "Deploy runtime external02.erp"),
        ("Followers", "tills", "Deploy runtime external01.tills"),
        ("Hand over", "erp", "Start group on a runtime external02.erp erp-orders"),
        ("Hand over", "tills", "Start group on a runtime external01.tills erp-orders"),
        ("Former leaders", "erp", "Deploy runtime external01.erp"),
        ("Former leaders", "tills", "Deploy runtime external02.tills"),
    ]


def test_a_group_that_was_renamed_since_is_handed_over_by_the_name_that_the_next_release_has(plan: Plan) -> None:
    now, group = timezone.now(), FailoverGroup.objects.get()
    factories.heard(group, "external01", Status.LEADER, at=now)
    factories.heard(group, "external02", Status.FOLLOWER, at=now)
    creation.rename_group(group.group, "orders")
    plans.followers_first_plan(plan.environment, now=now)
    assert plan.steps.get(kind=StepKind.GROUP_START).group == "orders"
    assert plans.problems(plan) == []


def test_without_a_known_leader_there_is_no_follower_to_begin_with(plan: Plan) -> None:
    with pytest.raises(NotAllowed, match="Nobody is known to lead erp-orders of connector erp, so there is no follower to begin with"):
        plans.followers_first_plan(plan.environment, now=timezone.now())


def test_members_of_whole_machines_in_two_lanes_are_warned_of_and_what_never_changes_too(plan: Plan) -> None:
    plan.steps.all().delete()
    plans.add_step(plan, StepKind.RESTART_RUNTIME, machine="external01", connector="erp", condition="changed")
    for machine in ("external01", "external02"):
        plans.add_step(plan, StepKind.DEPLOY_MACHINE, machine=machine, stage="All", lane=machine)
    plans.add_step(plan, StepKind.RESTART_RUNTIME, machine="external02", connector="erp", condition="changed")
    found = plans.lint(plan)
    assert "Stage All changes runtimes of erp in the lanes external01 and external02: they wait for each other" in " ".join(found)
    assert [sentence for sentence in found if "never runs" in sentence] == [
        "Step 1, Restart runtime external01.erp, runs only when changed, and no step before deploys external01.erp: it never runs."
    ]
    Runtime.objects.update(failover=False)
    assert "they wait for each other" not in " ".join(plans.lint(plan)), "only members of a group do"


def test_a_step_moved_into_a_stage_joins_it_and_members_in_two_lanes_are_warned_of(plan: Plan) -> None:
    for position, lane in ((3, "a"), (4, "b")):
        plans.change_step(at(plan, position), stage="Upgrade", lane=lane)
    assert "in the lanes a and b: they wait for each other" in " ".join(plans.lint(plan))
    plans.add_step(plan, StepKind.MANUAL, position=1, instruction="Call.")
    plans.move_step(at(plan, 1), 4)
    step = at(plan, 4)
    assert (step.kind, step.stage, step.lane) == ("manual", "Upgrade", "a")


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        pytest.param(StepKind.RUN_COMMAND, {"machine": "external01", "command": "rm -rf /"}, "command", id="a command is a name"),
        pytest.param(StepKind.HTTP_CHECK, {"url": "ftp://x"}, "url", id="an address of http"),
        pytest.param(StepKind.HTTP_CHECK, {"url": "http://x", "expected_status": 99}, "expected_status", id="a status"),
        pytest.param(StepKind.FLOW_STOP, {"machine": "external01", "connector": "erp", "flow": "erp-orders"}, "flow", id="a grouped flow"),
        pytest.param(StepKind.MANUAL, {"instruction": "Call.", "confirm_role": "king"}, "confirm_role", id="a role"),
        pytest.param(StepKind.WAIT_HEALTHY, {"machine": "core09"}, "machine", id="a machine"),
        pytest.param(StepKind.ALERTING_OFF, {"condition": "never"}, "condition", id="a condition"),
        pytest.param(StepKind.ALERTING_OFF, {"retries": 11}, "retries", id="too many retries"),
    ],
)
def test_what_a_step_may_say(plan: Plan, kind: StepKind, fields: dict[str, str | int], field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        plans.add_step(plan, kind, **fields)
    assert refusal.value.field == field
