"""A project as a file: the same bytes every time, planned before it is applied, and applied whole or not at all."""

import json
import re
from datetime import time, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.test import Client
from django.utils import timezone

from deployments import plans, project_file, promotion, releases, retention
from deployments.models import StepKind
from portal import creation, properties, router_addresses
from portal.errors import Invalid, NotAllowed
from portal.models import Connector, Environment, EnvironmentKind, Flow, FlowVersion, Project, Property, System, Team
from runtimes import failback
from runtimes.models import FailbackPolicy, FailoverGroup, GroupRequest, Runtime
from runtimes.protocol import IsolationPolicy
from tests import factories
from tests.deployments.conftest import save_version

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


def test_whatever_order_a_database_gives_the_bytes_are_the_same(full: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL sorts "erp-b" behind "erp.a" or before it, as its collation says."""
    text, ordered = project_file.export(full), QuerySet.order_by

    def backwards(rows: QuerySet[Any], *fields: str) -> QuerySet[Any]:
        return ordered(rows, *fields) if fields in ((), ("position",)) else ordered(rows, *fields).reverse()

    monkeypatch.setattr(QuerySet, "order_by", backwards)
    assert project_file.export(full) == text


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


def test_a_flow_is_not_called_edited_because_its_version_left_a_choice_open(project: Project, empty: Project, developer: User) -> None:
    """As a version that was saved before its kind had that choice, or a file that people write."""
    row = Flow.objects.get(connector__project=project)
    creation.save_flow(
        row,
        name=row.name,
        inbound_kind="file",
        inbound_settings={"folder": "${erp.outbox}"},
        outbound_kind="http",
        outbound_settings={"url": "${erp.orders}", "method": "POST"},
    )
    creation.save_version(row, "minor", by=developer)
    text = project_file.export(project)
    assert text.count("method: POST") == 2
    imported(empty, text.replace("            method: POST\n", "", 1).replace("method: POST\n", "", 1), developer)
    flow = Flow.objects.get(connector__project=empty)
    assert not creation.has_unsaved_changes(flow)
    assert [draft.unsaved for draft in releases.drafts(empty)] == [False]


def test_a_plan_shows_and_keeps_nothing(project: Project, developer: User) -> None:
    text = project_file.export(project)
    changed = (
        text.replace("value: /two", "value: /three")
        .replace("group: erp-orders", "group: null", 1)
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


@pytest.mark.parametrize(
    ("part", "told", "says"),
    [
        pytest.param("rules", {"windows": [{"days": ["mon"], "opens": "08:00", "closes": "17:00"}]}, "days is a text of digits", id="days"),
        pytest.param(
            "rules", {"windows": [{"days": "0", "from": "08:00", "closes": "17:00"}]}, "no field from; known are closes, days", id="window"
        ),
        pytest.param(
            "rules", {"windows": [{"days": "0", "opens": "8:00", "closes": "17:00"}]}, 'opens: "8:00" is no time of day', id="time"
        ),
        pytest.param("rules", {"freezes": [{"starts_at": "2027-01-04T08:00:00Z"}]}, "no field starts_at; known are from", id="freeze"),
        pytest.param("rules", {"freezes": [{"from": "tomorrow"}]}, 'from: "tomorrow" is no moment', id="moment"),
        pytest.param(
            "failback", {"erp/erp-order": {"policy": "automatic"}}, "erp/erp-order is no group of this file: .*erp/erp-orders", id="group"
        ),
        pytest.param("isolation", {"erp.erp-orders": "run-alone"}, "erp.erp-orders is no group of this file", id="its name"),
        pytest.param("preferences", {"external09.erp": "leader"}, "external09.erp is no placement of this file", id="placement"),
        pytest.param("policies", {"timing_profile": "fast"}, "timing_profile is one of .*lan", id="profile"),
    ],
)
def test_a_misspelt_rule_or_policy_is_refused_with_its_own_line(
    project: Project, admin: User, part: str, told: dict[str, Any], says: str
) -> None:
    document = project_file.describe(project)
    document["environments"]["test"][part] = told
    text = project_file.yaml_lines.dump(document)
    with pytest.raises(Invalid, match=says) as refusal:
        imported(project, text, admin)
    word = next(iter(told)) if part in ("failback", "isolation", "preferences", "policies") else says.split()[0].rstrip(":")
    if "no field" not in says:
        assert f"Line {line_of(text, '- days' if word == 'days' else word)}:" in refusal.value.sentence


def test_a_description_of_a_saved_version_is_no_silent_change_and_a_wrong_value_is_told_once(project: Project, developer: User) -> None:
    document = project_file.describe(project)
    version = next(flow for flow in document["flows"] if flow["versions"])["versions"][0]
    version["description"] = "Told otherwise."
    with pytest.raises(Invalid, match="saved here with another description"):
        imported(project, project_file.yaml_lines.dump(document), developer)
    text = project_file.export(project)
    assert "queues.url: url" in text
    with pytest.raises(Invalid) as refusal:
        imported(project, text.replace("queues.url: url", "queues.url: cron", 1), developer)
    assert refusal.value.sentence.count("Test, global:") == 1


@pytest.mark.parametrize(
    ("step", "says"),
    [
        pytest.param({"kind": "manual", "instruction": "Call.", "confirm_role": "boss"}, "boss is no role", id="a role"),
        pytest.param({"kind": "alerting-off", "retries": 9999}, "number from 0 to 10", id="retries"),
        pytest.param({"kind": "alerting-off", "timeout_seconds": 0}, "number of seconds from 1", id="a time-out"),
        pytest.param({"kind": "run-command", "machine": "external01", "command": "a b"}, "letters, digits", id="a command"),
        pytest.param({"kind": "http-check", "url": "ftp://x"}, "begins with http", id="an address"),
        pytest.param({"kind": "http-check", "url": "http://x", "expected_status": 99}, "from 100 to 599", id="a status"),
        pytest.param({"kind": "manual"}, "what the person should do", id="no instruction"),
        pytest.param({"kind": "run-command", "machine": ["external01"], "command": "x"}, "machine is a text", id="a list"),
    ],
)
def test_a_step_in_a_file_is_checked_as_one_that_is_entered(project: Project, developer: User, step: dict[str, Any], says: str) -> None:
    document = project_file.describe(project)
    document["environments"]["test"]["plan"] = [step]
    with pytest.raises(Invalid, match=f"Line [0-9]+: .*{says}"):
        imported(project, project_file.yaml_lines.dump(document), developer)


def test_the_mark_of_one_host_is_taken_back_only_where_the_addresses_agree(project: Project, filled: Environment, developer: User) -> None:
    router_addresses.mark_one_host(filled, True, by=developer)
    properties.set_value(filled, "external01.failover.port", "2381", by=developer)
    properties.set_value(filled, "external01.failover.internal-ip", "10.0.0.12", by=developer)
    document = project_file.describe(Project.objects.get(pk=project.pk))
    document["environments"]["test"]["policies"]["one_host"] = False
    text = project_file.yaml_lines.dump(document)
    with pytest.raises(Invalid, match=r"Line [0-9]+: external02 already uses 10\.0\.0\.12"):
        imported(project, text, developer)
    imported(project, text.replace("value: 10.0.0.12", "value: 10.0.0.13", 1), developer)
    filled.refresh_from_db()
    assert not filled.one_host


@pytest.mark.parametrize(
    "text", ["22:30", "0123", "on", "No", "0x1f", "1_000", "+5", "1e3", "2026-11-22", "5.0", "0o17", "true", "-7", "12"]
)
def test_a_value_stays_what_was_written(project: Project, filled: Environment, developer: User, text: str) -> None:
    given = project_file.export(project).replace("value: /two", f"value: /two/{text}").replace("value: 'baton:'", f"value: {text}")
    imported(project, given, developer)
    assert Property.objects.get(environment=filled, key="queues.prefix").value == text


@pytest.mark.parametrize(("old", "new"), [("connector: erp", "connector: [erp]"), ("group: erp-orders", "group: [erp-orders]")])
def test_a_list_where_a_name_belongs_is_refused_with_its_line(project: Project, developer: User, old: str, new: str) -> None:
    with pytest.raises(Invalid, match=r"Line [0-9]+: (connector|group) is a text"):
        imported(project, project_file.export(project).replace(old, new), developer)


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


@pytest.mark.parametrize("editable", [{"test"}, ALL], ids=["as the page says", "whatever the page says"])
def test_a_type_in_a_file_seals_no_value_that_one_may_not_change(
    project: Project, developer: User, operator: User, editable: set[str]
) -> None:
    production = project.environments.get(kind="production")
    properties.set_value(production, "erp.token", "readable", by=operator)
    document = project_file.describe(project)
    document["types"]["erp.token"] = "secret"
    document["environments"]["production"]["properties"] = [{"key": "erp.token", "secret": True}]
    text = project_file.yaml_lines.dump(document)
    for act in (project_file.plan, project_file.apply):
        with pytest.raises(NotAllowed, match="Production"):
            act(project, text, by=developer, editable=editable)
    assert Property.objects.get(key="erp.token").value == "readable"
    with pytest.raises(Invalid, match="you may not change Production"):  # an operator in a file that is applied for Test alone
        project_file.apply(project, text, by=operator, editable={"test"})
    project_file.apply(project, text, by=operator, editable=ALL)
    assert Property.objects.get(key="erp.token").secret


def test_what_a_file_says_of_secrets_is_so_after_one_import_and_another_changes_nothing(
    project: Project, developer: User, operator: User
) -> None:
    test, production = project.environments.get(kind="test"), project.environments.get(kind="production")
    properties.set_value(test, "erp.token", "was readable", by=developer)
    properties.set_value(production, "erp.key", "hunter3", secret=True, by=operator)
    document = project_file.describe(project)
    told = [item for item in document["environments"]["test"]["properties"] if item["key"] != "erp.token"]
    document["environments"]["test"]["properties"] = [*told, {"key": "erp.token", "secret": True}, {"key": "erp.key", "value": "in git"}]
    text = project_file.yaml_lines.dump(document)
    assert project_file.plan(project, text, by=operator, editable=ALL).differences
    imported(project, text, operator)
    sealed, readable = (Property.objects.get(environment=test, key=key) for key in ("erp.token", "erp.key"))
    assert (sealed.secret, sealed.reveal()) == (True, "was readable") and (readable.secret, readable.value) == (False, "in git")
    again = project_file.plan(project, text, by=operator, editable=ALL)
    assert (again.differences, again.notes) == ([], [])

    document["types"]["erp.key"] = "secret"
    text = project_file.yaml_lines.dump(document)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "in git" in line)
    with pytest.raises(Invalid, match=rf"Line ({line - 1}|{line}): erp\.key is of type secret: say “secret: true” instead of its value"):
        project_file.plan(project, text, by=operator, editable=ALL)


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


@pytest.fixture
def full(project: Project, group: FailoverGroup, admin: User) -> Project:
    """With everything that a file can say."""
    now = timezone.now()
    test = group.environment
    for machine in ("external01", "external02"):
        factories.heard(group, machine)
    failback.set_policy(group, FailbackPolicy.WINDOW, stable_seconds=60, window=(time(22), time(23, 30)), zone="Europe/Amsterdam")
    FailoverGroup.objects.filter(pk=group.pk).update(isolation_policy=IsolationPolicy.RUN_ALONE)
    Runtime.objects.filter(machine__name="external02").update(preference="leader")
    promotion.set_rules(
        test, by=admin, now=now, approvals=2, time_zone="Europe/Amsterdam",
        windows_=[promotion.WindowInput("01234", time(8), time(17)), promotion.WindowInput("6", time(22), time(2))],
    )  # fmt: skip
    promotion.freeze(test, starts_at=now, ends_at=now + timedelta(days=2), reason="Audit: «year's end»", by=admin, now=now)
    retention.set_rule(project, by=admin, enabled=True, keep_last=7)
    flow = Flow.objects.get()
    save_version(flow, 1, inbound={"kind": "file", "settings": {"folder": "${erp.other}\\n", "poll_seconds": "1"}})
    save_version(flow, 10, group=None, group_name=None)
    return project


def told(found: project_file.Imported) -> set[tuple[str, str]]:
    return {(item.verb, item.what) for item in found.differences}


def test_what_was_changed_after_an_export_comes_back_to_the_byte(full: Project, group: FailoverGroup, admin: User) -> None:
    text = project_file.export(full)
    assert imported(full, text, admin).differences == []
    now, test = timezone.now(), group.environment
    failback.set_policy(group, FailbackPolicy.MANUAL, stable_seconds=300)
    FailoverGroup.objects.filter(pk=group.pk).update(isolation_policy=IsolationPolicy.STOP)
    promotion.set_rules(test, by=admin, now=now, approvals=0, windows_=[])
    promotion.lift(test.freezes.get(), by=admin, now=now)
    retention.set_rule(full, by=admin, enabled=False)
    Runtime.objects.update(preference="none")
    FlowVersion.objects.all().delete()
    Property.objects.filter(secret=False).delete()
    Flow.objects.get().delete()
    planned = project_file.plan(full, text, by=admin, editable=ALL)
    assert project_file.export(full) != text  # a plan keeps nothing
    done = imported(full, text, admin)
    assert (
        told(planned)
        == told(done)
        >= {
            ("create", "flow erp.erp-orders version 1.10.0"),
            ("change", "Test: rules"),
            ("create", "Test: isolation policy of erp/erp-orders"),
            ("create", "Test: failback of erp/erp-orders"),
            ("change", "retention of releases"),
        }
    )
    assert project_file.export(full) == text
    assert GroupRequest.objects.get().policy == IsolationPolicy.RUN_ALONE  # the machines are asked, not only the row changed
    assert [row.number for row in FlowVersion.objects.all()] == ["1.10.0", "1.1.0", "1.0.0"]


def test_a_whole_project_comes_into_an_empty_portal_to_the_byte(full: Project, empty: Project, admin: User) -> None:
    """In two imports: what stands on runtimes and their groups follows when those are there, and the first says so."""
    Environment.objects.filter(project=full, kind="test").update(timing_profile="wan")
    text = project_file.export(full)
    assert "timing_profile: wan" in text
    first = imported(empty, text, admin)
    assert any("erp/erp-orders" in note for note in first.notes) and any("erp.password" in note for note in first.notes)
    arrived = project_file.export(empty).splitlines()
    without = [line for line in text.splitlines() if line not in arrived]
    of_groups = (
        "isolation:",
        "failback:",
        "preferences:",
        "erp/erp-orders",
        "external02.erp",
        "policy:",
        "stable_seconds:",
        "from:",
        "until:",
    )
    lacking = (*of_groups, "zone:", "erp.password", "secret:")
    assert [line for line in without if not any(part in line for part in lacking)] == []
    test = empty.environments.get(kind="test")
    group = factories.applied(test, Connector.objects.get(project=empty))
    for machine in ("external01", "external02"):
        factories.heard(group, machine)
    properties.set_value(test, "erp.password", "of its own", secret=True, by=admin)
    assert imported(empty, text, admin).notes == []
    assert project_file.export(empty) == text


def test_a_file_may_change_a_type_together_with_the_values_that_are_not_of_it(
    project: Project, filled: Environment, developer: User
) -> None:
    properties.set_value(filled, "erp.limit", "many", by=developer)
    text = project_file.export(project)
    typed = text.replace("types:\n", "types:\n  erp.limit: number\n")
    with pytest.raises(Invalid, match=r"^Line \d+: erp.limit cannot be of type Whole number: 1 value is not"):
        imported(project, typed, developer)
    assert told(imported(project, typed.replace("value: many", "value: '12'"), developer)) == {
        ("create", "type of erp.limit"), ("change", "Test: property erp.limit (global)"),
    }  # fmt: skip
    assert properties.expectations(project.pk)["erp.limit"].kind == "number"
    with pytest.raises(Invalid, match=r"^Line \d+: .*is no whole number"):
        imported(project, typed.replace("value: many", "value: more"), developer)
    assert told(imported(project, text, developer)) == {("delete", "type of erp.limit"), ("change", "Test: property erp.limit (global)")}


def test_a_saved_version_never_changes_by_a_file_and_one_that_it_leaves_out_goes(full: Project, admin: User) -> None:
    text = project_file.export(full)
    with pytest.raises(
        Invalid, match=r"^Line \d+: version 1\.1\.0 of erp-orders is saved here with another content, and versions never change"
    ):
        imported(full, text.replace("folder: ${erp.other}", "folder: ${erp.changed}"), admin)
    start, end = text.index("  - version: 1.1.0"), text.index("  - version: 1.10.0")
    assert told(imported(full, text[:start] + text[end:], admin)) == {("delete", "flow erp.erp-orders version 1.1.0")}
    without = re.sub(r"  versions:\n(  - version.*\n(    .*\n)*)+", "", text)
    assert "1.10.0" not in without
    assert imported(full, without, admin).differences == []  # a file that says nothing of versions leaves them


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        pytest.param(
            "    auto_start: true\n    inbound", "    auto_start: yes\n    inbound", "auto_start is true or false", id="a text for a flag"
        ),
        pytest.param("version: 1.10.0", "version: 1.10", '"1.10" is no version', id="a number of two parts"),
        pytest.param("opens: 08:00", "opens: 8 o'clock", "is no time", id="a time"),
        pytest.param("opens: 08:00", 'opens: "08:00Z"', "its zone stands beside it", id="a time of its own zone"),
        pytest.param("approvals: 2", "approvals: 200", "a number from 0 to 20", id="too many approvals"),
        pytest.param("approvals: 2", "approvals: many", "approvals is of another kind", id="no number"),
        pytest.param("time_zone: Europe/Amsterdam", "time_zone: Mars/Olympus", "Mars/Olympus", id="a time zone"),
        pytest.param("keep_last: 7", "keep_last: 0", "from", id="retention"),
        pytest.param("policy: window", "policy: sometimes", "failback is a mapping with its policy", id="failback"),
        pytest.param("erp/erp-orders: run-alone", "erp/erp-orders: run-away", "run-away is no policy", id="isolation"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_line_and_changes_nothing(full: Project, admin: User, old: str, new: str, sentence: str) -> None:
    text = project_file.export(full).replace("'08:00'", "08:00")
    assert old in text
    with pytest.raises(Invalid) as refused:
        imported(full, text.replace(old, new, 1).replace("opens: 08:00", "opens: '08:00'"), admin)
    assert re.match(r"Line \d+: ", refused.value.sentence)
    assert sentence in refused.value.sentence
    assert project_file.export(full).replace("'08:00'", "08:00") == text


@pytest.mark.parametrize("line", ["approvals: 0", "enabled: false", "erp/erp-orders: stop", "policy: manual", "reason: Another"])
def test_a_file_gives_nobody_rights_that_the_pages_refuse(full: Project, developer: User, line: str) -> None:
    name = line.split(":")[0]
    text = re.sub(rf"(?m)^( *){re.escape(name)}: .*$", rf"\1{line}", project_file.export(full), count=1)
    if name == "policy":
        text = re.sub(r"(?m)^ +(from: '22|until: '23|zone:).*\n", "", text)
    with pytest.raises(Invalid, match=r"^Line \d+: .*needs the role"):
        imported(full, text, developer)


def test_the_mark_of_one_host_is_not_taken_back_by_a_file_while_addresses_say_otherwise(project: Project, developer: User) -> None:
    test = project.environments.get(kind="test")
    router_addresses.mark_one_host(test, True, by=developer)
    properties.set_value(test, "external01.failover.port", "2381", by=developer)
    properties.set_value(test, "external01.failover.internal-ip", "10.0.0.12", by=developer)  # external02 has it too
    text = project_file.export(project).replace("one_host: true", "one_host: false", 1)
    with pytest.raises(Invalid, match=r"^Line \d+: .*already uses 10\.0\.0\.12"):
        imported(project, text, developer)
    without = re.sub(r"(?m)^    properties:\n(    - .*\n|      .*\n)+", "", text)
    assert "external01.failover.internal-ip" not in without
    with pytest.raises(Invalid, match=r"^Line \d+: The addresses say otherwise"):
        imported(project, without, developer)
