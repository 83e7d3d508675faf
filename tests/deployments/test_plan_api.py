"""The plan of an environment over the API: read, replaced, edited step by step, made, copied; never over somebody else's edit."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.test import APIClient

from deployments import plans
from deployments.models import Release, StepKind
from portal.models import Environment
from tests.deployments.conftest import Engine
from tests.test_api import client_of

PLAN = "/api/v1/projects/webshop/environments/test/plan/"
ONE, TWO = {"machine": "external01", "connector": "erp"}, {"machine": "external02", "connector": "erp"}


@pytest.fixture
def api(active: Release, developer: User) -> APIClient:
    """A developer; Test has the default plan: alerting off, routers, two runtimes, balance."""
    return client_of(developer)


def titles(answer: Any) -> list[str]:
    assert answer.status_code in (200, 201), answer.json()
    return [step["title"] for step in answer.json()["steps"]]


def test_the_plan_is_read_with_what_is_wrong_with_it(api: APIClient, filled: Environment, viewer: User, stranger: User) -> None:
    answer = client_of(viewer).get(PLAN)
    assert titles(answer) == [step.title for step in plans.plan_of(filled).steps.all()]
    assert answer["ETag"] == f'"{answer.json()["digest"]}"' and answer.json()["findings"] == []
    plans.remove_step(plans.plan_of(filled).steps.get(kind=StepKind.DEPLOY_ROUTERS))
    after = client_of(viewer).get(PLAN)
    assert "no Deploy routers step does" in after.json()["findings"][0] and after["ETag"] != answer["ETag"]
    assert client_of(stranger).get(PLAN).status_code == 404
    assert client_of(viewer).put(PLAN, {"steps": []}, format="json").status_code == 403


def test_what_was_read_can_be_written_back(api: APIClient, filled: Environment) -> None:
    answer = api.get(PLAN)
    steps = [{name: value for name, value in step.items() if name not in ("id", "position", "title")} for step in answer.json()["steps"]]
    again = api.put(PLAN, {"steps": steps}, format="json", headers={"If-Match": answer["ETag"]})
    assert titles(again) == titles(answer) and again["ETag"] == answer["ETag"]
    fewer = api.put(PLAN, {"steps": [steps[0], {"kind": "restart-runtime", **TWO}, steps[-1]]}, format="json")
    assert titles(fewer)[1] == "Restart runtime external02.erp"


@pytest.mark.parametrize(
    ("steps", "field", "says"),
    [
        pytest.param([{"kind": "alerting-off"}, {"kind": "restart-runtime", "machine": "x", "connector": "erp"}], "steps.1.machine",
                     "Step 2, Restart runtime x.erp: x is no machine on Test.", id="a target that is not there"),
        pytest.param([{"kind": "balance-failover"}, {"kind": "alerting-off"}], "position", "comes last", id="Balance not last"),
        pytest.param([{"kind": "alerting-off", "kindly": 1}], "steps.0.kindly", "no such field", id="a misspelt field"),
        pytest.param([{"kind": "dance"}], "steps.0.kind", '"dance" is none of: alerting-off, deploy-routers,', id="an unknown kind"),
        pytest.param([{"kind": "alerting-off", "retries": 99}], "steps.0.retries", "from 0 to 10", id="too many retries"),
    ],
)  # fmt: skip
def test_one_wrong_step_replaces_nothing(api: APIClient, filled: Environment, steps: list[Any], field: str, says: str) -> None:
    before = api.get(PLAN)["ETag"]
    answer = api.put(PLAN, {"steps": steps}, format="json")
    assert answer.status_code == 400 and says in str(answer.json()["errors"][field])
    assert api.get(PLAN)["ETag"] == before


def test_steps_are_added_changed_moved_and_removed(api: APIClient) -> None:
    answer = api.post(f"{PLAN}steps/", {"kind": "manual", "instruction": "Call.", "stage": "Before"}, format="json")
    assert answer.status_code == 201 and titles(answer)[-2:] == ["Manual: wait for a person", "Balance failover"]
    (manual,) = [step for step in answer.json()["steps"] if step["kind"] == "manual"]
    assert manual["timeout_seconds"] == 24 * 3600
    own = f"{PLAN}steps/{manual['id']}/"
    changed = api.patch(own, {"position": 1, "timeout_seconds": 60, "confirm_role": "operator"}, format="json").json()["steps"][0]
    assert (changed["id"], changed["timeout_seconds"], changed["confirm_role"], changed["instruction"]) == (
        manual["id"], 60, "operator", "Call.",
    )  # fmt: skip
    assert api.patch(own, {"position": 99}, format="json").json()["errors"] == {"position": ["Position 99 does not exist: choose 1 to 6."]}
    assert api.patch(own, {"kind": "alerting-off"}, format="json").status_code == 400
    assert "Manual: wait for a person" not in titles(api.delete(own))
    assert api.delete(own).status_code == 200
    assert api.patch(own, {"retries": 1}, format="json").status_code == 404


@pytest.mark.parametrize("act", ["put", "add", "change", "remove", "default", "followers"])
def test_an_edit_of_what_somebody_changed_meanwhile_is_refused(api: APIClient, filled: Environment, act: str) -> None:
    seen = {"If-Match": api.get(PLAN)["ETag"]}
    step = plans.plan_of(filled).steps.get(kind=StepKind.ALERTING_OFF)
    plans.change_step(plans.plan_of(filled).steps.get(machine="external01"), retries=2)
    acts = {
        "put": lambda: api.put(PLAN, {"steps": []}, format="json", headers=seen),
        "add": lambda: api.post(f"{PLAN}steps/", {"kind": "manual", "instruction": "x"}, format="json", headers=seen),
        "change": lambda: api.patch(f"{PLAN}steps/{step.pk}/", {"retries": 1}, format="json", headers=seen),
        "remove": lambda: api.delete(f"{PLAN}steps/{step.pk}/", headers=seen),
        "default": lambda: api.post(f"{PLAN}default/", headers=seen),
        "followers": lambda: api.post(f"{PLAN}followers-first/", headers=seen),
    }
    answer = acts[act]()
    assert answer.status_code == 412 and "Somebody changed the plan of Test" in answer.json()["detail"]
    assert plans.plan_of(filled).steps.count() == 5


def test_default_and_followers_first_plans_are_made(api: APIClient, filled: Environment, engine: Engine, developer: User) -> None:
    api.put(PLAN, {"steps": []}, format="json")
    assert api.get(PLAN).json()["problems"] == ["The plan of Test has no steps: make the default plan or add steps."]
    assert len(titles(api.post(f"{PLAN}default/"))) == 5
    refused = api.post(f"{PLAN}followers-first/")
    assert (refused.status_code, titles(api.get(PLAN))[0]) == (200, "Alerting off until the deployment ends")


def test_a_plan_is_copied_to_another_environment(api: APIClient, acceptance: Environment, operator: User) -> None:
    plans.add_step(plans.plan_of(acceptance), StepKind.ALERTING_OFF)
    theirs = api.get(PLAN.replace("/test/", "/acceptance/")).json()["digest"]
    plans.add_step(plans.plan_of(acceptance), StepKind.MANUAL, instruction="Wait.")
    assert api.post(f"{PLAN}copy/", {"environment": "acceptance"}, format="json").status_code == 403
    api = client_of(operator)
    stale = api.post(f"{PLAN}copy/", {"environment": "acceptance", "seen": theirs}, format="json")
    assert stale.status_code == 412
    answer = api.post(f"{PLAN}copy/", {"environment": "acceptance"}, format="json")
    assert answer.json()["environment"] == "acceptance" and titles(answer) == titles(api.get(PLAN))
    assert "external01 is no machine on Acceptance." in answer.json()["problems"][0]
    assert api.post(f"{PLAN}copy/", {"environment": "test"}, format="json").status_code == 400
