"""A project as a file: the same bytes every time, planned before it is applied, and applied whole or not at all."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from deployments import plans, project_file
from deployments.models import StepKind
from portal import properties
from portal.errors import Invalid, NotAllowed
from portal.models import Connector, Environment, EnvironmentKind, Flow, Project, Property, System, Team
from runtimes.models import FailoverGroup
from tests import factories

ALL = set(EnvironmentKind.values)


@pytest.fixture
def project(filled: Environment, flow: Flow, group: FailoverGroup, developer: User) -> Project:
    """The failover project with values, a secret, a type and a plan."""
    properties.set_value(filled, "erp.password", "hunter2", secret=True, by=developer)
    properties.set_value(filled, "erp.outbox", "/two", machine="external02", by=developer)
    properties.declare_type(filled.project, "queues.url", "url", by=developer)
    plans.default_plan(filled)
    plans.add_step(plans.plan_of(filled), StepKind.MANUAL, position=1, instruction="Call: the «ERP» team\nand wait")
    return filled.project


@pytest.fixture
def empty(team: Team) -> Project:
    return factories.project(team, "other")


def imported(project: Project, text: str, by: User) -> project_file.Imported:
    return project_file.apply(project, text, by=by, editable=ALL)


def test_the_same_project_gives_the_same_bytes_without_ids_or_secrets(project: Project) -> None:
    text = project_file.export(project)
    assert text == project_file.export(Project.objects.get(pk=project.pk))
    assert "hunter2" not in text
    assert "secret: true" in text
    flow = Flow.objects.get()
    assert flow.key not in text
    assert str(project.environments.first().cluster) not in text


def test_what_was_exported_changes_nothing(project: Project, developer: User) -> None:
    done = imported(project, project_file.export(project), developer)
    assert (done.differences, done.notes) == ([], [])
    assert Property.objects.get(key="erp.password").reveal() == "hunter2"


def test_another_project_becomes_the_same_and_exports_the_same(project: Project, empty: Project, developer: User) -> None:
    text = project_file.export(project)
    done = imported(empty, text, developer)
    assert any("Set the secret erp.password (global) on Test" in note for note in done.notes)
    test = empty.environments.get(kind="test")
    properties.set_value(test, "erp.password", "of its own", secret=True, by=developer)
    again = imported(empty, text, developer)
    assert again.differences == []
    assert project_file.export(empty) == text
    assert System.objects.get(project=empty).failover
    assert Connector.objects.get(project=empty).placements.count() == 2


def test_a_plan_shows_and_keeps_nothing(project: Project, developer: User) -> None:
    text = project_file.export(project)
    changed = (
        text.replace("value: /two", "value: /three")
        .replace("group: erp-orders", "group: null")
        .replace("  - name: erp\n", "  - name: erp\n")
    )
    changed = changed.replace("key: queues.prefix", "key: queues.suffix")
    found = project_file.plan(project, changed, by=developer, editable=ALL)
    told = {(item.verb, item.what): item.details for item in found.differences}
    assert told["change", "Test: property erp.outbox (external02)"] == ["value: /two → /three"]
    assert told["change", "flow erp.erp-orders"] == ["group: erp-orders → none"]
    assert told["delete", "Test: property queues.prefix (global)"] == []
    assert told["create", "Test: property queues.suffix (global)"] == ["value: baton:"]
    assert len(told) == 4
    assert project_file.export(project) == text
    done = project_file.apply(project, changed, by=developer, editable=ALL, seen=found.before)
    assert done.differences == found.differences
    assert project_file.export(project) == changed


def test_a_plan_of_yesterday_is_not_applied_to_a_changed_project(project: Project, filled: Environment, developer: User) -> None:
    text = project_file.export(project).replace("value: /two", "value: /three")
    found = project_file.plan(project, text, by=developer, editable=ALL)
    properties.set_value(filled, "erp.outbox", "/meanwhile", by=developer)
    with pytest.raises(NotAllowed, match="changed since this plan was shown"):
        project_file.apply(project, text, by=developer, editable=ALL, seen=found.before)
    assert Property.objects.get(key="erp.outbox", machine="").value == "/meanwhile"


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize(
    ("old", "new", "at", "what"),
    [
        pytest.param("value: /two", "value: relative", "key: erp.outbox\n      scope", "is no absolute path", id="a wrong value"),
        pytest.param("router: true", "route: true", None, "there is no field route", id="an unknown field"),
        pytest.param("group: erp-orders", "group: nobody", None, "no group of connector erp", id="an unknown group"),
        pytest.param("- external01.erp", "- external09.erp", None, "names no machine of this file", id="an unknown machine"),
        pytest.param("kind: balance-failover", "kind: hope", None, "no kind of step", id="an unknown step"),
        pytest.param("multiple: true", "multiple: perhaps", None, "is true or false", id="no flag"),
        pytest.param("queues.url: url", "queues.url: cron", None, "cannot be of type Cron", id="a type that values are not of"),
        pytest.param("secret: true", "secret: true\n      value: x", "value: x", "is a secret: leave its value out", id="a secret's value"),
        pytest.param("kind: file", "kind: carrier-pigeon", None, "There is no inbound of kind", id="an unknown component"),
        pytest.param("baton: 1", "baton: 2", None, "this portal reads", id="another format"),
        pytest.param("baton: 1", "baton: 1\nbaton: 1", None, "occurs twice", id="a repeated key"),
        pytest.param("baton: 1", "baton: &a 1", None, "anchors", id="an anchor"),
        pytest.param("baton: 1", "baton: [1", None, "no YAML", id="broken YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line_and_changes_nothing(
    project: Project, developer: User, old: str, new: str, at: str | None, what: str
) -> None:
    text = project_file.export(project)
    assert old in text
    wrong = text.replace(old, new, 1)
    for act in (project_file.plan, project_file.apply):
        with pytest.raises(Invalid) as refusal:
            act(project, wrong, by=developer, editable=ALL)
        assert refusal.value.sentence.startswith("Line "), refusal.value.sentence
        assert what in refusal.value.sentence
    assert project_file.export(project) == text
    if at is None and what not in ("no YAML", "occurs twice", "There is no inbound of kind"):
        assert f"Line {line_of(wrong, new.splitlines()[0])}:" in refusal.value.sentence


def test_what_runs_in_an_environment_is_not_dropped(project: Project, developer: User) -> None:
    text = project_file.export(project)
    document = json.loads(json.dumps(project_file.describe(project)))
    document |= {"systems": [], "placements": [], "groups": [], "flows": []}
    with pytest.raises(NotAllowed, match="Line "):
        imported(project, project_file.yaml_lines.dump(document), developer)
    assert project_file.export(project) == text


def test_an_environment_that_one_may_not_change_is_refused(project: Project, developer: User) -> None:
    text = project_file.export(project)
    document = project_file.describe(project)
    document["environments"]["production"]["properties"] = [{"key": "a", "value": "b"}]
    with pytest.raises(Invalid, match="you may not change Production"):
        project_file.plan(project, project_file.yaml_lines.dump(document), by=developer, editable={"test"})
    assert project_file.plan(project, text, by=developer, editable={"test"}).differences == []


def test_the_page_shows_the_plan_then_applies_it(client: Client, developer: User, viewer: User, project: Project) -> None:
    client.force_login(viewer)
    assert client.get("/projects/webshop/import/").status_code == 403
    text = client.get("/projects/webshop/export/").content.decode()
    assert text == project_file.export(project)
    client.force_login(developer)
    wrong = client.post("/projects/webshop/import/", {"text": text.replace("value: /two", "value: two"), "act": "plan"}).content.decode()
    assert "is no absolute path" in wrong
    page = client.post("/projects/webshop/import/", {"text": text.replace("value: /two", "value: /three"), "act": "plan"})
    assert "value: /two → /three" in page.content.decode()
    given: dict[str, Any] = {"text": text.replace("value: /two", "value: /three"), "seen": page.context["found"].before, "act": "apply"}
    assert "Imported." in client.post("/projects/webshop/import/", given).content.decode()
    assert Property.objects.get(machine="external02").value == "/three"


def test_the_api_plans_and_applies(client: Client, developer: User, stranger: User, project: Project) -> None:
    client.force_login(stranger)
    assert client.get("/api/v1/projects/webshop/export/").status_code == 404
    client.force_login(developer)
    text = client.get("/api/v1/projects/webshop/export/").content.decode()
    changed = text.replace("value: /two", "value: /three")
    answer = client.post("/api/v1/projects/webshop/import/", changed, content_type="application/yaml")
    assert (answer.status_code, answer.json()["applied"], len(answer.json()["differences"])) == (200, False, 1)
    assert Property.objects.get(machine="external02").value == "/two"
    answer = client.post("/api/v1/projects/webshop/import/?apply=true", {"text": changed}, content_type="application/json")
    assert answer.json()["applied"]
    assert Property.objects.get(machine="external02").value == "/three"
    refused = client.post("/api/v1/projects/webshop/import/", "baton: 7", content_type="text/yaml")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid")
