"""Deploy › Plan, as people use it."""

import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from deployments import plans
from deployments.models import Plan, Release, StepKind
from portal.models import Environment
from runtimes.models import FailoverGroup

PAGE = "/projects/webshop/test/plan/"


@pytest.fixture
def plan(test_environment: Environment, group: FailoverGroup) -> Plan:
    """The default plan: alerting off, routers, external01.erp, external02.erp, Balance failover."""
    return plans.default_plan(test_environment)


def kinds(plan: Plan) -> list[str]:
    return [step.kind for step in plan.steps.all()]


def test_an_empty_plan_offers_the_default_one(client: Client, developer: User, test_environment: Environment, group: FailoverGroup) -> None:
    client.force_login(developer)
    assert "The plan has no steps" in client.get(PAGE).content.decode()
    html = client.post(f"{PAGE}default/", follow=True).content.decode()
    assert html.index("Deploy routers") < html.index("external01.erp") < html.index('class="plan-step is-balance"')


def test_steps_of_now_are_only_replaced_when_that_is_confirmed(client: Client, developer: User, plan: Plan) -> None:
    plans.remove_step(plan.steps.get(position=1))
    client.force_login(developer)
    assert "confirm that the default plan shall replace them" in client.post(f"{PAGE}default/", follow=True).content.decode()
    assert plan.steps.count() == 4
    client.post(f"{PAGE}default/", {"replace": "yes"})
    assert plan.steps.count() == 5


def test_a_step_is_added_with_pickers_before_balance(client: Client, developer: User, plan: Plan) -> None:
    client.force_login(developer)
    form = client.get(f"{PAGE}steps/new/").content.decode()
    assert '<option value="external01|erp">external01.erp</option>' in form
    assert '<option value="erp-orders">erp-orders (erp)</option>' in form
    answer = client.post(f"{PAGE}steps/new/", {"kind": "restart-runtime", "runtime": "external01|erp", "timeout_seconds": "30"})
    assert answer.status_code == 302
    step = plan.steps.get(kind="restart-runtime")
    assert (step.position, step.machine, step.connector, step.timeout_seconds) == (5, "external01", "erp", 30)
    assert kinds(plan)[-1] == "balance-failover"


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        pytest.param({"kind": "deploy-runtime"}, "Pick the runtime.", id="no runtime"),
        pytest.param({"kind": "group-stop", "runtime": "external01|erp"}, "Pick the group.", id="no group"),
        pytest.param({"kind": "manual"}, "Say what the person shall do.", id="no instruction"),
        pytest.param({"kind": "deploy-runtime", "runtime": "external09|erp"}, "Select a valid choice", id="a runtime of nowhere"),
        pytest.param({"kind": "balance-failover"}, "this plan already has it", id="a second Balance failover"),
        pytest.param({"kind": "manual", "instruction": "Call.", "timeout_seconds": "0"}, "greater than or equal to 1", id="no time"),
    ],
)
def test_a_refused_step_says_why_and_keeps_what_was_typed(
    client: Client, developer: User, plan: Plan, form: dict[str, str], sentence: str
) -> None:
    client.force_login(developer)
    answer = client.post(f"{PAGE}steps/new/", {"timeout_seconds": "77"} | form)
    assert answer.status_code == 200
    assert sentence in answer.content.decode()
    assert plan.steps.count() == 5
    if "timeout_seconds" not in form:
        assert 'value="77"' in answer.content.decode()


def test_two_people_do_not_overwrite_each_others_step_unseen(client: Client, developer: User, plan: Plan) -> None:
    step = plan.steps.get(position=3)
    address = f"{PAGE}steps/{step.pk}/"
    client.force_login(developer)
    seen = re.search(r'name="seen" value="(\w+)"', client.get(address).content.decode())
    assert seen
    plans.change_step(step, retries=3)
    mine = {"runtime": "external01|erp", "timeout_seconds": "600", "seen": seen[1]}
    html = client.post(address, mine).content.decode()
    assert "Somebody changed this step since you opened it. Save again to replace that, or leave it." in html
    step.refresh_from_db()
    assert (step.retries, step.timeout_seconds) == (3, 120)
    seen = re.search(r'name="seen" value="(\w+)"', html)
    assert seen and client.post(address, mine | {"seen": seen[1]}).status_code == 302
    step.refresh_from_db()
    assert (step.retries, step.timeout_seconds) == (0, 600)


def test_a_step_is_changed(client: Client, developer: User, plan: Plan) -> None:
    step = plan.steps.get(position=3)
    client.force_login(developer)
    assert "selected>external01.erp" in client.get(f"{PAGE}steps/{step.pk}/").content.decode()
    client.post(f"{PAGE}steps/{step.pk}/", {"runtime": "external02|erp", "timeout_seconds": "600"})
    step.refresh_from_db()
    assert (step.kind, step.machine, step.connector, step.timeout_seconds) == (StepKind.DEPLOY_RUNTIME, "external02", "erp", 600)


def test_a_step_is_moved_and_the_plan_comes_back(client: Client, developer: User, plan: Plan) -> None:
    step = plan.steps.get(position=3)
    client.force_login(developer)
    html = client.post(f"{PAGE}steps/{step.pk}/move/", {"position": "4"}, headers={"HX-Request": "true"}).content.decode()
    assert html.strip().startswith('<div id="plan"')
    step.refresh_from_db()
    assert step.position == 4


@pytest.mark.parametrize("position", ["4", "9", "-1", "last"])
def test_balance_failover_stays_last_and_the_page_says_why(client: Client, developer: User, plan: Plan, position: str) -> None:
    balance = plan.steps.get(kind="balance-failover")
    client.force_login(developer)
    html = client.post(f"{PAGE}steps/{balance.pk}/move/", {"position": position}, headers={"HX-Request": "true"}).content.decode()
    assert "alert-danger" in html
    if position == "4":
        assert "Balance failover comes last" in html
    assert kinds(plan)[-1] == "balance-failover"


def test_a_plan_without_balance_is_complained_about_beside_it(client: Client, developer: User, plan: Plan) -> None:
    balance = plan.steps.get(kind="balance-failover")
    client.force_login(developer)
    client.post(f"{PAGE}steps/{balance.pk}/remove/")
    html = client.get(PAGE).content.decode()
    assert "erp-orders" in html.split("Check")[1]
    assert "Nothing to complain about" not in html


def test_stages_and_lanes_are_shown_and_a_dropped_step_joins_the_lane(client: Client, developer: User, plan: Plan) -> None:
    first, second = plan.steps.filter(kind="deploy-runtime")
    plans.change_step(first, stage="Runtimes", lane="orders")
    client.force_login(developer)
    html = client.get(PAGE).content.decode()
    assert [html.count(words) for words in ("Stage 1</span>", "Stage 2: Runtimes</span>", "Stage 3</span>")] == [1, 1, 1]
    client.post(f"{PAGE}steps/{second.pk}/move/", {"position": "4", "stage": "Runtimes", "lane": "sales"})
    html = client.get(PAGE).content.decode()
    assert "2 lanes side by side" in html
    assert ">orders</h3>" in html and ">sales</h3>" in html


def test_a_step_tells_in_one_line_what_a_person_set(plan: Plan) -> None:
    check = plans.add_step(plan, StepKind.HTTP_CHECK, url="http://shop/health", retries=2, condition="changed")
    assert plans.line_of(plans.written(check)) == (
        "HTTP check http://shop/health (retries 2, time limit 120 s, expects status 200, only when changed)"
    )
    assert plans.line_of(plans.written(plan.steps.get(position=2))) == "Deploy routers (time limit 120 s)"


def test_the_deploy_page_repeats_what_the_plans_check_says(client: Client, developer: User, active: Release, filled: Environment) -> None:
    plans.remove_step(plans.plan_of(filled).steps.get(machine="external02"))
    client.force_login(developer)
    assert "No step deploys external02.erp." in client.get("/projects/webshop/test/releases/1/deploy/").content.decode()


def test_a_plan_is_copied_only_where_one_may_edit(
    client: Client, developer: User, operator: User, plan: Plan, acceptance: Environment
) -> None:
    client.force_login(developer)
    assert client.post(f"{PAGE}copy/", {"to": "acceptance"}).status_code == 403
    client.force_login(operator)
    assert client.post(f"{PAGE}copy/", {"to": "acceptance"}).url == "/projects/webshop/acceptance/plan/"
    assert kinds(plans.plan_of(acceptance)) == kinds(plan)
    assert "confirm" in client.post(f"{PAGE}copy/", {"to": "acceptance"}, follow=True).content.decode()


def test_a_step_of_another_environment_is_not_found(client: Client, operator: User, plan: Plan, acceptance: Environment) -> None:
    client.force_login(operator)
    step = plan.steps.get(position=1)
    assert client.post(f"/projects/webshop/acceptance/plan/steps/{step.pk}/remove/").status_code == 404


@pytest.mark.parametrize(("person", "status"), [("viewer", 403), ("stranger", 404), ("operator", 302)])
def test_who_may_change_the_plan(client: Client, request: pytest.FixtureRequest, plan: Plan, person: str, status: int) -> None:
    client.force_login(request.getfixturevalue(person))
    assert client.post(f"{PAGE}steps/{plan.steps.first().pk}/remove/").status_code == status  # type: ignore[union-attr]
    page = client.get(PAGE)
    assert page.status_code == (404 if person == "stranger" else 200)
    assert ("Add step" in page.content.decode()) is (person == "operator")
