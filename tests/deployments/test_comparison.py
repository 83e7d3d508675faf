"""What differs: as tables, then between releases and what runs, on the page and in the API."""

from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from deployments import approvals, comparison, frozen, plans, releases, rollout, sides
from deployments.comparison import Line, Side, Value
from deployments.models import ApprovalRequest, EnvironmentRules, FrozenValues, Release, RunStatus, StepKind
from portal import properties
from portal.models import Environment, Flow, Group, PropertyChange
from runtimes.models import Runtime
from tests.deployments.conftest import Engine, save_version

PAGE = "/projects/webshop/test/releases/compare/"


def content(**changes: Any) -> dict[str, Any]:
    flow = {
        "id": "f1", "name": "orders", "version": "1.0.0", "connector": "erp", "group": "g1", "auto_start": True,
        "inbound": {"kind": "file", "settings": {"folder": "${erp.outbox}", "pattern": "*.xml"}},
        "outbound": {"kind": "queue", "settings": {"queue": "orders"}},
    }  # fmt: skip
    return {
        "flows": [flow],
        "groups": [{"id": "g1", "name": "erp-orders", "connector": "erp"}],
        "connectors": [{"name": "erp", "system": "ERP", "failover": True, "machines": ["external01", "external02"]}],
        "machines": [{"name": "external01", "kind": "external", "router": True}],
    } | changes


def flow(**changes: Any) -> dict[str, Any]:
    return content()["flows"][0] | changes


def side(given: dict[str, Any] | None = None, **more: Any) -> Side:
    return Side("release", given or content(), **more)


SENTENCES = [
    pytest.param({}, [], id="equal"),
    pytest.param(
        {"flows": [flow(id="f2", name="returns")]},
        ["Flow returns is new.", "Flow orders is gone.", "Group erp-orders changed: flows orders → returns."],
        id="another flow",
    ),
    pytest.param(
        {"flows": [flow(version="1.1.0")]}, ["Flow orders changed: version 1.0.0 → 1.1.0."], id="a newer version",
    ),
    pytest.param(
        {"flows": [flow(inbound={"kind": "file", "settings": {"folder": "/in", "pattern": "*.xml", "poll": "5"}})]},
        ["Flow orders changed: folder ${erp.outbox} → /in, “poll: 5” is new."],
        id="a setting changed, another came",
    ),
    pytest.param(
        {"flows": [flow(inbound={"kind": "file", "settings": {"folder": "${erp.outbox}"}})]},
        ["Flow orders changed: “pattern: *.xml” is gone."],
        id="a setting went",
    ),
    pytest.param(
        {"groups": [{"id": "g1", "name": "orders", "connector": "erp"}]},
        ["Flow orders changed: group erp-orders → orders.", "Group orders changed: name erp-orders → orders."],
        id="a renamed group is the same group",
    ),
    pytest.param(
        {"connectors": [{"name": "erp", "system": "ERP", "failover": False, "machines": ["external02", "external03"]}]},
        [
            "Connector erp changed: failover yes → no.",
            "erp on external01 is no longer placed.",
            "erp on external03 is a new placement.",
        ],
        id="failover off, and moved",
    ),
    pytest.param(
        {"machines": [{"name": "external01", "kind": "external", "router": False}]},
        ["Machine external01 changed: router yes → no."],
        id="a router went",
    ),
]  # fmt: skip


def copies(inbound: str, outbound: str) -> dict[str, Any]:
    """A flow from one folder to another."""
    return content(
        flows=[
            flow(**{side: {"kind": "file", "settings": {"folder": path}} for side, path in (("inbound", inbound), ("outbound", outbound))})
        ]
    )


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        pytest.param(("/a", "/x"), ("/b", "/y"), "inbound folder /a → /b, outbound folder /x → /y", id="both changed"),
        pytest.param(("/a", "/x"), ("/x", "/a"), "inbound folder /a → /x, outbound folder /x → /a", id="exchanged"),
        pytest.param(("/a", "/x"), ("/a", "/y"), "outbound folder /x → /y", id="one of two that are called alike"),
    ],
)
def test_of_two_settings_called_alike_each_is_compared_with_its_own(before: Any, after: Any, sentence: str) -> None:
    found = comparison.compare(side(copies(*before)), side(copies(*after)))
    assert found.sentences == [f"Flow orders changed: {sentence}."]


@pytest.mark.parametrize(("changes", "sentences"), SENTENCES)
def test_the_content_of_two_releases(changes: dict[str, Any], sentences: list[str]) -> None:
    found = comparison.compare(side(), side(content(**changes)))
    assert found.sentences == sentences
    assert found.equal is (not sentences)


@pytest.mark.parametrize(
    ("before", "after", "sentences"),
    [
        pytest.param({}, {}, [], id="no values"),
        pytest.param({("a", "global"): Value("1", "x")}, {("a", "global"): Value("1", "x")}, [], id="the same"),
        pytest.param(
            {("a", "global"): Value("1", "x")}, {("a", "global"): Value("2", "y")}, ["Property a (global) changed: 1 → 2."], id="changed"
        ),
        pytest.param(
            {("a", "global"): Value("", "x")}, {("a", "global"): Value("2\n3", "y")}, ["Property a (global) changed: empty → 2 …."],
            id="empty, and more than one line",
        ),
        pytest.param({}, {("a", "external01"): Value("1", "x")}, ["Property a (external01) is new."], id="new in a scope"),
        pytest.param(
            {("a", "global"): Value(None, "x", secret=True)}, {("a", "global"): Value(None, "y", secret=True)},
            ["Secret a (global) changed; its value is never shown."], id="a secret",
        ),
        pytest.param(
            {("a", "global"): Value("plain", "x")}, {("a", "global"): Value(None, "y", secret=True)},
            ["Secret a (global) changed; its value is never shown."], id="became a secret: what it was is not shown either",
        ),
        pytest.param({("a", "global"): Value(None, "x", secret=True)}, {}, ["Secret a (global) is gone."], id="a secret went"),
    ],
)  # fmt: skip
def test_values_of_properties(before: Any, after: Any, sentences: list[str]) -> None:
    found = comparison.compare(side(values=before), side(values=after))
    assert found.sentences == sentences
    shown = " ".join(line.text for section in found.sections for item in section.items for line in item.lines)
    assert "plain" not in shown


def test_a_value_that_a_side_does_not_use_has_not_gone() -> None:
    before = side(values={("a", "global"): Value("1", "x"), ("old", "global"): Value("2", "y")}, uses=["a", "old"])
    after = side(values={("a", "global"): Value("1", "x"), ("fresh", "global"): Value("3", "z")}, uses=["a", "fresh"])
    assert comparison.compare(before, after).sentences == [
        "Property fresh (global) is used for the first time.",
        "Property old (global) is no longer used; its value stays.",
    ]
    without = side(values={("a", "global"): Value("1", "x")}, uses=["a", "old"])
    assert comparison.compare(before, without).sentences == ["Property old (global) is gone."]


def test_preferences_and_plans() -> None:
    before = side(plan=["Deploy routers", "Balance failover"], preferences={"external01.erp": "leader"})
    after = side(plan=["Deploy routers", "Manual", "Balance failover"], preferences={"external01.erp": "backup", "external02.erp": "none"})
    found = comparison.compare(before, after)
    assert found.sentences == [
        "The plan changed: 1 step new, 0 steps gone.",
        "The preference of external01.erp changed: leader → backup.",
    ]
    (plan,) = [section for section in found.sections if section.key == "plan"]
    assert [(line.sign, line.text) for line in plan.items[0].lines] == [
        (" ", "Deploy routers"),
        ("+", "Manual"),
        (" ", "Balance failover"),
    ]


def test_a_release_from_before_plans_were_recorded_is_not_taken_for_one_without_a_plan() -> None:
    found = comparison.compare(side(plan=None), side(plan=["Deploy routers"]))
    assert found.equal and found.notes == ["Plans are not compared: there is none in release."]


def test_a_long_text_is_compared_line_by_line_and_equal_lines_far_away_are_left_out() -> None:
    text = [f"line {number}" for number in range(30)]
    changed = [*text[:20], "another", *text[21:]]

    def with_template(lines: list[str]) -> dict[str, Any]:
        return content(flows=[flow(outbound={"kind": "file", "settings": {"template": "\n".join(lines)}})])

    found = comparison.compare(side(with_template(text)), side(with_template(changed)))
    (item,) = found.sections[0].changes
    assert [line.text.strip() for line in item.lines if line.sign != " "] == ["line 20", "another"]
    assert item.shown[0] == Line("…", "27 equal lines") and item.shown[-1] == Line("…", "6 equal lines")
    assert len(item.shown) == 10


# ------------------------------------------------------------------------------------------------------------ frozen values


def test_a_deployment_goes_on_with_the_values_it_began_with(active: Release, engine: Engine, filled: Environment, developer: User) -> None:
    deployment = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    properties.set_value(filled, "erp.outbox", "/elsewhere", by=developer)
    assert engine.run(deployment).status == RunStatus.SUCCEEDED
    runtimes = Runtime.objects.filter(environment=filled).select_related("desired_bundle")
    assert all(b"/srv/erp/outbox" in bytes(runtime.desired_bundle.content) for runtime in runtimes if runtime.desired_bundle)
    kept = frozen.of(deployment)
    assert kept is not None and kept.digest != frozen.digest_of(frozen.present(active, filled))
    assert sides.running_and(active, filled).sentences == ["Property erp.outbox (global) changed: /srv/erp/outbox → /elsewhere."]


def test_a_frozen_secret_cannot_be_read_and_one_that_changed_stops_the_deployment(
    active: Release, engine: Engine, filled: Environment, developer: User
) -> None:
    properties.set_value(filled, "queues.url", "redis://:hunter2@127.0.0.1:7000/0", secret=True, by=developer)
    deployment = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    kept = frozen.of(deployment)
    assert kept is not None and "hunter2" not in str(kept.values)
    assert [row.reveal() for row in frozen.values_of(deployment) if row.key == "queues.url"] == ["redis://:hunter2@127.0.0.1:7000/0"]
    properties.set_value(filled, "queues.url", "redis://:other@127.0.0.1:7000/0", by=developer)
    engine.run(deployment)
    assert deployment.status == RunStatus.FAILED
    step = rollout.next_step(deployment)
    assert step is not None and "The secret queues.url was changed since" in step.reason and "resume the deployment" in step.reason
    rollout.resume(deployment, by=developer, now=engine.now)
    assert engine.run(deployment).status == RunStatus.SUCCEEDED
    assert "values that changed since: queues.url" in " ".join(line.text for line in deployment.log.all())
    assert [row.number for row in deployment.frozen.all()] == [2, 1]


def test_what_becomes_a_secret_is_told_nowhere_any_more(
    client: Client, active: Release, flow: Flow, engine: Engine, filled: Environment, developer: User, viewer: User, admin: User
) -> None:
    approvals.request(active, _asking_for_approval(filled), by=developer, now=engine.now)
    EnvironmentRules.objects.update(approvals=0)
    engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    properties.set_value(filled, "queues.url", "redis://:tr0ub4dor@127.0.0.1:7000/0", by=developer)
    save_version(flow, 1)
    later = releases.build(active.project, name="Later", by=developer)
    releases.activate(later, filled, by=developer, now=engine.now)
    deployment = rollout.prepare(later, on=filled, by=developer, now=engine.now)
    engine.run(deployment, until=2)
    asked = approvals.request(later, _asking_for_approval(filled), by=developer, now=engine.now)
    properties.declare_type(filled.project, "queues.url", "secret", by=developer)  # in the middle of the deployment

    kept = "".join(str(row.values) for row in [*FrozenValues.objects.all(), *ApprovalRequest.objects.all()])
    assert "tr0ub4dor" not in kept and "redis://" not in kept
    asked.refresh_from_db()
    assert approvals.state(later, filled, now=engine.now).requested, "the value is the same: nothing to approve anew"
    EnvironmentRules.objects.update(approvals=0)
    assert engine.run(deployment).status == RunStatus.SUCCEEDED
    bundles = [row.desired_bundle for row in Runtime.objects.filter(environment=filled).select_related("desired_bundle")]
    assert all(b"tr0ub4dor" in bundle.content.split(b'"secrets"')[1] for bundle in bundles if bundle), "its runtime masks it"
    client.force_login(viewer)
    for address in (f"{PAGE}?from=1&to=2&environment=test", f"/api/v1/releases/{later.pk}/compare/?with={active.pk}&environment=test"):
        answer = client.get(address).content.decode()
        assert "Secret queues.url (global) changed; its value is never shown." in answer and "redis://" not in answer, address


def test_values_frozen_in_the_instant_a_key_becomes_secret_are_told_as_a_secret(
    active: Release, engine: Engine, filled: Environment, developer: User
) -> None:
    deployment = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    before = frozen.of(deployment)
    assert before is not None
    readable, digest = before.values, before.digest
    properties.set_value(filled, "queues.url", "redis://127.0.0.1:7000/0", secret=True, by=developer)
    deployment.frozen.update(values=readable, digest=digest)  # as a transaction writes it that read the values before
    kept = frozen.of(deployment)
    assert kept is not None and "redis://" not in str(frozen.entries_of(kept, filled))


def test_what_was_frozen_readable_before_the_migration_is_hidden_by_it(
    active: Release, engine: Engine, filled: Environment, developer: User
) -> None:
    deployment = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    before, told = frozen.of(deployment), list(PropertyChange.objects.filter(key="queues.url").values_list("pk", "after"))
    assert before is not None
    properties.set_value(filled, "queues.url", "redis://127.0.0.1:7000/0", secret=True, by=developer)
    hidden = frozen.of(deployment)
    deployment.frozen.update(values=before.values, digest=before.digest)
    for pk, after in told:
        PropertyChange.objects.filter(pk=pk).update(after=after, secret_after=False)
    import_module("deployments.migrations.0013_what_became_secret_is_not_told").hide(apps, None)
    found = frozen.of(deployment)
    assert found is not None and hidden is not None and (found.values, found.digest) == (hidden.values, hidden.digest)
    assert not PropertyChange.objects.filter(after__contains="redis://").exists()


def test_a_key_is_secret_in_an_environment_when_one_of_its_values_is(release: Release, filled: Environment, developer: User) -> None:
    properties.set_value(filled, "queues.url", "redis://:tr0ub4dor@127.0.0.1:7000/0", machine="external01", secret=True, by=developer)
    entries = [entry for entry in frozen.present(release, filled) if entry["key"] == "queues.url"]
    assert [(entry["secret"], entry["value"]) for entry in entries] == [(True, None), (True, None)]


def _asking_for_approval(environment: Environment) -> Environment:
    EnvironmentRules.objects.update_or_create(environment=environment, defaults={"approvals": 1})
    return environment


def test_equal_values_have_an_equal_digest_whatever_their_order(release: Release, filled: Environment, developer: User) -> None:
    properties.set_value(filled, "queues.prefix", "baton:", secret=True, by=developer)
    entries = frozen.present(release, filled)
    assert frozen.digest_of(entries) == frozen.digest_of(reversed(entries))
    properties.set_value(filled, "queues.prefix", "other:", by=developer)
    after = frozen.present(release, filled)
    assert frozen.digest_of(entries) != frozen.digest_of(after)
    assert frozen.changed_keys(entries, after) == ["queues.prefix"]
    properties.set_value(filled, "not.of.this.release", "x", by=developer)
    assert frozen.digest_of(frozen.present(release, filled)) == frozen.digest_of(after)


# ---------------------------------------------------------------------------------------------------------------- the page


@pytest.fixture
def second(release: Release, flow: Flow, developer: User) -> Release:
    save_version(flow, 1, inbound={"kind": "file", "settings": {"folder": "/new/place"}})
    return releases.build(release.project, name="Second", by=developer)


def test_two_releases_side_by_side_line_by_line(client: Client, viewer: User, release: Release, second: Release) -> None:
    client.force_login(viewer)
    html = client.get(PAGE, {"from": "1", "to": "2"}).content.decode()
    assert "folder: ${erp.outbox}" in html and "folder: /new/place" in html
    assert "is-gone" in html and "is-new" in html
    assert "?from=2&amp;to=1" in html  # swap
    assert "Groups: equal" in html


def test_a_comparison_without_a_question_is_of_the_two_newest_until_something_runs(
    client: Client, developer: User, second: Release, active: Release, engine: Engine, filled: Environment
) -> None:
    client.force_login(developer)
    assert client.get(PAGE).context["before"].number == 1
    rollout.prepare(active, on=filled, by=developer, now=engine.now)
    engine.run(filled.deployments.get())
    answer = client.get(PAGE)
    assert answer.context["before"] is None and answer.context["after"] == second
    assert "what runs on Test (release 1, deployment" in answer.context["difference"].before


def test_no_difference_is_said_plainly(client: Client, viewer: User, release: Release) -> None:
    client.force_login(viewer)
    html = client.get(PAGE, {"from": "1", "to": "1"}).content.decode()
    assert "No difference" in html and "difference-item" not in html
    assert "difference-item" in client.get(PAGE, {"from": "1", "to": "1", "all": "1"}).content.decode()


def test_nothing_to_compare_names_the_next_step(client: Client, viewer: User, test_environment: Environment) -> None:
    client.force_login(viewer)
    html = client.get(PAGE).content.decode()
    assert "Nothing to compare yet" in html and "To the releases" in html


def test_an_unknown_release_and_a_stranger_find_nothing(client: Client, viewer: User, stranger: User, release: Release) -> None:
    client.force_login(viewer)
    assert client.get(PAGE, {"from": "99"}).status_code == 404
    client.force_login(stranger)
    assert client.get(PAGE).status_code == 404


def test_the_page_needs_few_queries_however_many_releases(
    client: Client, viewer: User, release: Release, developer: User, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(20):
        releases.build(release.project, name=f"n{number}", by=developer)
    client.force_login(viewer)
    with django_assert_max_num_queries(32):
        assert client.get(PAGE, {"from": "1", "to": "2"}).status_code == 200


def test_runtimes_that_run_something_else_are_named(active: Release, engine: Engine, filled: Environment, developer: User) -> None:
    rollout.prepare(active, on=filled, by=developer, now=engine.now)
    engine.run(filled.deployments.get())
    Runtime.objects.filter(machine__name="external02").update(observed_release=7)
    assert "external02.erp reported release 7, not 1." in sides.running_and(active, filled).notes


def test_a_changed_preference_and_a_changed_plan_show_against_what_runs(
    active: Release, engine: Engine, filled: Environment, developer: User
) -> None:
    rollout.prepare(active, on=filled, by=developer, now=engine.now)
    engine.run(filled.deployments.get())
    assert sides.running_and(active, filled).equal
    Runtime.objects.filter(machine__name="external01").update(preference="leader")
    plans.add_step(plans.plan_of(filled), StepKind.MANUAL, instruction="Look at it.", position=1)
    sentences = sides.running_and(active, filled).sentences
    assert sentences == ["The plan changed: 1 step new, 0 steps gone.", "The preference of external01.erp changed: none → leader."]


# ----------------------------------------------------------------------------------------------------------------- the API


def test_the_api_compares_with_a_release_and_with_what_runs(
    client: Client, developer: User, release: Release, second: Release, filled: Environment
) -> None:
    client.force_login(developer)
    address = f"/api/v1/releases/{second.pk}/compare/"
    found = client.get(address, {"with": release.pk}).json()
    assert found["equal"] is False and "folder ${erp.outbox} → /new/place" in found["sentences"][0]
    assert {"sign": "+", "text": "  folder: /new/place"} in found["sections"][0]["changes"][0]["lines"]
    running = client.get(address, {"environment": "test"}).json()
    assert running["before"] == "nothing" and "Flow erp-orders is new." in running["sentences"]
    both = client.get(address, {"with": release.pk, "environment": "test"}).json()
    assert any("never deployed on Test" in note for note in both["notes"])


@pytest.mark.parametrize(
    ("query", "field"),
    [({}, "with"), ({"environment": "moon"}, "environment"), ({"with": "999999"}, "with"), ({"with": "x"}, "with")],
)
def test_the_api_says_what_to_compare_with(client: Client, developer: User, release: Release, query: dict[str, str], field: str) -> None:
    client.force_login(developer)
    answer = client.get(f"/api/v1/releases/{release.pk}/compare/", query)
    assert answer.status_code == 400 and field in str(answer.json())


@pytest.mark.parametrize(("group", "starts"), [("g1", "with the leadership of its group"), (None, "yes")])
def test_a_grouped_flow_starts_with_leadership_whatever_was_chosen_before(group: str | None, starts: str) -> None:
    other = flow(id="f2", name="returns", group=group)
    found = comparison.compare(side(), side(content(flows=[flow(), other])))
    lines = [line.text for section in found.sections for item in section.items for line in item.lines if item.name == "returns"]
    assert f"auto start: {starts}" in lines


def test_group_names_are_shown_never_their_keys(release: Release, second: Release) -> None:
    key = Group.objects.get().key
    assert not any(
        key in line.text for section in sides.releases(release, second).sections for item in section.items for line in item.lines
    )
