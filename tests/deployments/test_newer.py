"""Newer than what runs: per runtime, the value it would get now against the one frozen for what it runs."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from deployments import grid, newer, sheet
from deployments.models import Deployment, Release
from portal import properties, vault
from portal.models import Connector, DesignedMachine, Environment, Flow, Placement, Property, PropertyChange, System
from runtimes.models import FailoverGroup, Machine, Runtime
from tests import factories

Act = Callable[[Environment, User], object]
EXTERNAL01, EXTERNAL02 = ("external01", "erp"), ("external02", "erp")


@pytest.fixture
def run(filled: Environment, release: Release, group: FailoverGroup, developer: User) -> Deployment:
    """Everything runs with the values of some minutes ago; queues.url is a secret."""
    properties.set_value(filled, "queues.url", "redis://:hunter2@127.0.0.1:7000/0", secret=True, by=developer)
    long_ago = timezone.now() - timedelta(minutes=10)
    Property.objects.update(updated_at=long_ago)
    PropertyChange.objects.update(at=long_ago)
    made = factories.given(factories.deployed(filled, release))
    made.frozen.update(created_at=long_ago + timedelta(minutes=5))
    return made


def places(environment: Environment, key: str = "erp.outbox") -> dict[newer.Scope, int]:
    """Who would get another value of the key, with the deployment whose values he runs with; all views agree."""
    needs = sheet.Needs(environment, sheet.used_in(environment.project_id))
    found = {place: given.pk for place, given in newer.find(environment, newer.what_runs(environment), needs.places).get(key, {}).items()}
    row = sheet.row(environment, key)
    marked = [line.newer for line in row.lines] + [row.taken_away]
    assert {place.scope for some in marked if some for place in some.places} == found.keys()
    assert (key in sheet.find(environment, only=["changed"]).keys) == bool(found)
    runtimes = {cell.column.scope: cell.changed for cell in grid.row(environment, key, "runtimes").cells}
    assert {scope for scope, changed in runtimes.items() if changed} == {scope for scope in found if scope[1]}
    return found


def value(text: str, machine: str = "", connector: str = "", key: str = "erp.outbox") -> Act:
    return lambda environment, by: properties.set_value(environment, key, text, machine=machine, connector=connector, by=by)


def no_value(machine: str = "", connector: str = "", key: str = "erp.outbox") -> Act:
    return lambda environment, by: properties.set_values([properties.Edit(environment, key, None, machine, connector)], by=by)


OLD = "/srv/erp/outbox"
STORIES = [
    pytest.param([], [], id="nothing was done"),
    pytest.param([value("/new")], [EXTERNAL01, EXTERNAL02], id="a value is changed"),
    pytest.param([value("/new"), value(OLD)], [], id="and set back"),
    pytest.param([value(OLD, "external02")], [], id="a narrower one says the same"),
    pytest.param([value("/two", "external02")], [EXTERNAL02], id="a narrower one says something else"),
    pytest.param([value("/two", "external02"), no_value("external02")], [], id="and is deleted"),
    pytest.param([value(OLD, "external01"), value("/new")], [EXTERNAL02], id="one keeps what all had"),
    pytest.param([value("/core", "core01")], [], id="for a machine without who uses it"),
    pytest.param([no_value()], [EXTERNAL01, EXTERNAL02], id="it is taken away"),
    pytest.param([no_value(), value(OLD, connector="erp")], [], id="and given to the connector"),
    pytest.param([no_value(), lambda environment, by: properties.undo_last(environment, by=by)], [], id="and that is undone"),
]


@pytest.mark.parametrize(("acts", "behind"), STORIES)
def test_values_are_compared_for_each_runtime(
    run: Deployment, filled: Environment, developer: User, acts: list[Act], behind: list[newer.Scope]
) -> None:
    for act in acts:
        act(filled, developer)
    assert places(filled) == dict.fromkeys(behind, run.pk)


def test_of_deployments_that_gave_other_values_each_is_named(run: Deployment, filled: Environment, developer: User) -> None:
    properties.set_value(filled, "erp.outbox", "/new", by=developer)
    later = factories.given(factories.deployed(filled, run.release), "external02.erp")
    assert places(filled) == {EXTERNAL01: run.pk}
    (line,) = sheet.row(filled, "erp.outbox").lines
    assert line.newer and line.newer.than == f"deployment #{run.pk} for external01.erp"
    properties.set_value(filled, "erp.outbox", "/newest", by=developer)
    assert places(filled) == {EXTERNAL01: run.pk, EXTERNAL02: later.pk}
    (line,) = sheet.row(filled, "erp.outbox").lines
    assert line.newer and line.newer.than == f"deployments #{run.pk} and #{later.pk}"


def test_a_value_that_was_taken_away_says_who_runs_with_it(run: Deployment, filled: Environment, developer: User) -> None:
    no_value()(filled, developer)
    row = sheet.row(filled, "erp.outbox")
    assert row.lines == [] and row.taken_away and row.taken_away.than == f"deployment #{run.pk}"


def test_a_secret_is_compared_by_what_was_frozen_and_opened_only_when_it_was_touched(
    run: Deployment, filled: Environment, developer: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(text: str, *, secret: bool | None = None) -> list[newer.Scope]:
        properties.set_value(filled, "queues.url", text, secret=secret, by=developer)
        return sorted(places(filled, "queues.url"))

    assert change("redis://:other@127.0.0.1:7000/0") == [EXTERNAL01, EXTERNAL02]
    assert change("redis://:hunter2@127.0.0.1:7000/0") == []
    assert change("redis://:hunter2@127.0.0.1:7000/0", secret=False) == [], "the value is the same"
    assert change("redis://:hunter2@127.0.0.1:7000/0", secret=True) == []
    assert change("redis://:other@127.0.0.1:7000/0") == [EXTERNAL01, EXTERNAL02]
    Property.objects.filter(key="queues.url").update(updated_at=timezone.now() - timedelta(hours=1))
    properties.set_value(filled, "erp.outbox", "/new", by=developer)

    def opened(token: str, **named: str) -> str:
        raise AssertionError("nobody touched a secret")

    monkeypatch.setattr(vault, "unseal", opened)
    assert places(filled, "erp.outbox") and not places(filled, "queues.url")


def test_a_readable_value_that_becomes_a_secret_is_no_newer_for_that(run: Deployment, filled: Environment, developer: User) -> None:
    properties.set_value(filled, "queues.prefix", "baton:", secret=True, by=developer)
    assert places(filled, "queues.prefix") == {}
    properties.set_value(filled, "queues.prefix", "other:", by=developer)
    assert sorted(places(filled, "queues.prefix")) == [EXTERNAL01, EXTERNAL02]


def test_a_runtime_that_does_not_use_the_key_is_not_marked(run: Deployment, filled: Environment, developer: User) -> None:
    project = filled.project
    system = System.objects.create(project=project, name="Shop", slug="shop")
    shop = Connector.objects.create(project=project, system=system, name="shop")
    Placement.objects.create(connector=shop, machine=DesignedMachine.objects.get(project=project, name="core01"))
    runtime = Runtime.objects.create(environment=filled, machine=Machine.objects.get(environment=filled, name="core01"), connector=shop)
    factories.given(run, runtime.key)
    value("/new")(filled, developer)
    assert sorted(places(filled)) == [EXTERNAL01, EXTERNAL02]
    value("x", key="nobody.uses")(filled, developer)
    assert places(filled, "nobody.uses") == {}


def test_of_a_key_that_what_runs_does_not_name_only_a_later_value_is_newer(run: Deployment, filled: Environment, developer: User) -> None:
    value("/x", key="erp.new")(filled, developer)
    Property.objects.filter(key="erp.new").update(updated_at=timezone.now() - timedelta(hours=1))
    PropertyChange.objects.filter(key="erp.new").update(at=timezone.now() - timedelta(hours=1))
    Flow.objects.update(inbound_settings={"folder": "${erp.outbox}", "error_folder": "${erp.new}"})
    assert places(filled, "erp.new") == {}, "it is older, and no deployment took it"
    value("/y", key="erp.new")(filled, developer)
    assert sorted(places(filled, "erp.new")) == [EXTERNAL01, EXTERNAL02]


def test_a_runtime_that_was_given_nothing_yet_runs_nothing(
    filled: Environment, release: Release, group: FailoverGroup, developer: User
) -> None:
    factories.given(factories.deployed(filled, release), "external01.erp")
    value("/new")(filled, developer)
    assert sorted(places(filled)) == [EXTERNAL01]


def test_an_address_of_a_router_is_held_against_the_last_deployment_that_ran(run: Deployment, filled: Environment, developer: User) -> None:
    key = "external02.failover.port"
    value("2381", key=key)(filled, developer)
    assert places(filled, key) == {("external02", ""): run.pk}
    value("2380", key=key)(filled, developer)
    assert places(filled, key) == {}
