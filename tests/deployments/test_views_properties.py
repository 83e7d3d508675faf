"""Deploy › Properties, as people use it."""

import csv
import io
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from deployments.models import Release
from portal import properties, property_imports
from portal.models import Connector, Environment, Property
from runtimes.models import FailoverGroup
from tests import factories

PAGE = "/projects/webshop/test/properties/"


def row(html: str, key: str) -> str:
    """The part of the page that shows one key."""
    return html.split(f'data-key="{key}"')[1].split("</tbody>")[0]


def save(client: Client, key: str, value: str, **more: str) -> Any:
    return client.post(f"{PAGE}edit/", {"key": key, "scope": "|", "value": value} | more)


def test_every_key_in_use_has_a_row_before_any_value_exists(
    client: Client, viewer: User, erp: Connector, test_environment: Environment
) -> None:
    client.force_login(viewer)
    html = client.get(PAGE).content.decode()
    for key in ("external01.failover.internal-ip", "external02.failover.port", "core01.failover.port", "erp.outbox", "queues.url"):
        assert "Missing" in row(html, key)
    assert "external01.erp, external02.erp" in row(html, "erp.outbox")
    assert "flow erp-orders, Folder of the inbound" in row(html, "erp.outbox")
    # 6 of the routers, 3 that the two runtimes use; the filter counts the same
    assert '<span class="missing-count">9</span> keys lack a value on Test' in html
    assert re.search(r'Missing <span class="pill-count tone-red">9</span>', html)


def test_the_page_and_the_check_before_activation_miss_the_same(
    client: Client, viewer: User, release: Release, test_environment: Environment, group: FailoverGroup
) -> None:
    from deployments import releases, sheet

    found = sheet.read(test_environment)
    shown = {(place, key) for place, keys in found.missing_by_place.items() for key in keys}
    assert shown == {(entry.runtime, entry.key) for entry in releases.missing(release, test_environment)}


@pytest.mark.parametrize(
    ("query", "shown", "hidden"),
    [
        pytest.param("?q=external01.failover.internal-ip", "external01.failover.internal-ip", "external01.failover.port", id="search"),
        pytest.param("?only=missing", "queues.url", "erp.outbox", id="missing"),
        pytest.param("?only=failover", "core01.failover.port", "erp.outbox", id="failover"),
        pytest.param("?only=secret", "a.password", "erp.outbox", id="secret"),
        pytest.param("?only=unused", "a.password", "erp.outbox", id="unused"),
        pytest.param("?only=secret&only=unused&q=pass", "a.password", "queues.url", id="all at once"),
    ],
)
def test_filters_stand_in_the_address(
    client: Client, viewer: User, erp: Connector, test_environment: Environment, query: str, shown: str, hidden: str
) -> None:
    properties.set_value(test_environment, "erp.outbox", "/out", by=viewer)
    properties.set_value(test_environment, "a.password", "x", secret=True, by=viewer)
    client.force_login(viewer)
    html = client.get(PAGE + query).content.decode()
    assert f'data-key="{shown}"' in html
    assert f'data-key="{hidden}"' not in html


def test_the_most_specific_value_wins_and_the_row_says_who_gets_which(
    client: Client, viewer: User, erp: Connector, test_environment: Environment
) -> None:
    properties.set_value(test_environment, "erp.outbox", "/out", by=viewer)
    properties.set_value(test_environment, "erp.outbox", "/two", machine="external02", by=viewer)
    client.force_login(viewer)
    shown = row(client.get(PAGE).content.decode(), "erp.outbox")
    first, second = shown.split("<li>")[1:3]
    assert "/out" in first and "external01.erp" in first and "external02.erp" not in first
    assert "/two" in second and "external02.erp" in second


def test_a_developer_fills_in_a_global_value(client: Client, developer: User, erp: Connector, test_environment: Environment) -> None:
    client.force_login(developer)
    back = f"{PAGE}?q=external01"
    answer = save(client, "external01.failover.internal-ip", "10.0.0.11", next=back, add="True")
    assert answer.url == back
    assert "10.0.0.11" in row(client.get(back).content.decode(), "external01.failover.internal-ip")


def test_after_saving_one_never_lands_on_a_foreign_page(
    client: Client, developer: User, erp: Connector, test_environment: Environment
) -> None:
    client.force_login(developer)
    assert save(client, "erp.outbox", "/out", next="https://evil.example/", add="True").url == f"{PAGE}?q=erp.outbox"


def test_with_htmx_the_row_and_the_count_come_back(client: Client, developer: User, erp: Connector, test_environment: Environment) -> None:
    client.force_login(developer)
    form = {"key": "erp.outbox", "scope": "external01|erp", "value": "/out", "add": "True"}
    html = client.post(f"{PAGE}edit/", form, headers={"HX-Request": "true"}).content.decode()
    assert "<html" not in html
    assert "/out" in row(html, "erp.outbox")
    assert '<span class="missing-count">9</span>' in html, "external02 lacks it still"
    html = client.post(f"{PAGE}edit/", form | {"scope": "external02|"}, headers={"HX-Request": "true"}).content.decode()
    assert '<span class="missing-count">8</span>' in html


def test_a_refused_value_names_the_field_and_keeps_what_was_typed(
    client: Client, developer: User, erp: Connector, test_environment: Environment
) -> None:
    client.force_login(developer)
    answer = save(client, "external01.failover.port", "seventy", add="True")
    assert answer.status_code == 200
    html = answer.content.decode()
    assert "a number from 1 to 65535" in html
    assert "seventy" in html
    assert not Property.objects.exists()


def test_another_value_never_replaces_one_silently(client: Client, developer: User, erp: Connector, test_environment: Environment) -> None:
    properties.set_value(test_environment, "erp.outbox", "/out", by=developer)
    client.force_login(developer)
    html = save(client, "erp.outbox", "/other", add="True").content.decode()
    assert "edit that one, or pick another scope" in html
    assert Property.objects.get().value == "/out"


def test_a_secret_is_never_shown_again(client: Client, developer: User, erp: Connector, test_environment: Environment) -> None:
    properties.set_value(test_environment, "erp.password", "hunter2", secret=True, by=developer)
    client.force_login(developer)
    pages = [PAGE, f"{PAGE}edit/?key=erp.password", f"{PAGE[:-1]}.csv", "/projects/webshop/acceptance/properties/"]
    for page in pages:
        answer = client.get(page)
        assert answer.status_code == 200
        assert "hunter2" not in answer.content.decode(), page
    assert "set on" in row(client.get(PAGE).content.decode(), "erp.password")


def test_an_empty_secret_is_refused_instead_of_saved(
    client: Client, developer: User, erp: Connector, test_environment: Environment
) -> None:
    properties.set_value(test_environment, "erp.password", "hunter2", secret=True, by=developer)
    client.force_login(developer)
    assert "Type the new secret" in save(client, "erp.password", "", secret="on").content.decode()
    assert Property.objects.get().reveal() == "hunter2"


def test_a_deleted_value_gives_way_to_the_more_general_one(
    client: Client, developer: User, erp: Connector, test_environment: Environment
) -> None:
    properties.set_value(test_environment, "erp.outbox", "/out", by=developer)
    special = properties.set_value(test_environment, "erp.outbox", "/two", machine="external02", by=developer)
    client.force_login(developer)
    assert client.post(f"{PAGE}{special.pk}/delete/", {"seen": properties.tag(special)}).status_code == 302
    shown = row(client.get(PAGE).content.decode(), "erp.outbox")
    assert "/two" not in shown and "external01.erp, external02.erp" in shown


def test_a_value_newer_than_what_runs_is_marked(
    client: Client, viewer: User, filled: Environment, release: Release, group: FailoverGroup
) -> None:
    factories.given(factories.deployed(filled, release))
    properties.set_value(filled, "erp.outbox", "/elsewhere", by=viewer)
    client.force_login(viewer)
    html = client.get(PAGE).content.decode()
    assert "newer than deployment #" in row(html, "erp.outbox")
    assert "newer than deployment #" not in row(html, "queues.url")


def test_the_export_holds_what_the_filter_shows(client: Client, viewer: User, erp: Connector, test_environment: Environment) -> None:
    properties.set_value(test_environment, "erp.note", "=cmd()", by=viewer)
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/properties.csv?q=erp.").content.decode()
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(line["key"], line["scope"], line["value"]) for line in lines] == [("erp.note", "global", "'=cmd()"), ("erp.outbox", "", "")]


@pytest.mark.parametrize(
    "value", ["=a", "'=a'", "''-x", "-5", "'-5", "@", "'quoted", "a\tb", 'say "x"', "two\nlines", "\ttab", " blank ", "\rx"]
)
def test_an_exported_value_comes_back_as_it_was(client: Client, developer: User, test_environment: Environment, value: str) -> None:
    properties.set_value(test_environment, "erp.note", value, by=developer)
    client.force_login(developer)
    text = client.get(f"{PAGE[:-1]}.csv").content.decode()
    found = property_imports.preview(test_environment.project, text, environment="test", editable={"test"})
    assert [(read.verb, read.line.value) for read in found.reads if read.line.key == "erp.note"] == [("none", value)]


@pytest.mark.parametrize(
    ("person", "kind", "status"),
    [
        pytest.param("viewer", "test", 403, id="a viewer only reads"),
        pytest.param("developer", "test", 302, id="a developer edits in Test"),
        pytest.param("developer", "production", 403, id="but not in Production"),
        pytest.param("operator", "production", 302, id="an operator does"),
        pytest.param("stranger", "test", 404, id="a stranger learns nothing"),
    ],
)
def test_who_may_edit(client: Client, request: pytest.FixtureRequest, erp: Connector, person: str, kind: str, status: int) -> None:
    client.force_login(request.getfixturevalue(person))
    page = f"/projects/webshop/{kind}/properties/"
    assert client.post(f"{page}edit/", {"key": "a.b", "scope": "|", "value": "1", "add": "True"}).status_code == status
    assert client.get(page).status_code == (404 if person == "stranger" else 200)


def test_a_long_list_needs_no_more_queries_than_a_short_one(
    client: Client, viewer: User, erp: Connector, test_environment: Environment, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    many = [Property(environment=test_environment, key=f"key.{number:05}", value="x") for number in range(10_000)]
    Property.objects.bulk_create(many)
    client.force_login(viewer)
    with django_assert_max_num_queries(27):
        html = client.get(PAGE).content.decode()
    assert html.count("<tbody") == 100
    assert "Page 1 of 101" in html


def test_a_value_added_for_a_key_that_is_secret_elsewhere_is_a_secret_though_nobody_touched_the_box(
    client: Client, developer: User, viewer: User, acceptance: Environment, test_environment: Environment
) -> None:
    properties.set_value(acceptance, "erp.token", "hunter2", secret=True, by=developer)
    client.force_login(developer)
    form = client.get(f"{PAGE}edit/", {"key": "erp.token", "add": "1"}).context["form"]
    assert form.initial["secret"] is True, "the box says what will be kept"
    refused = save(client, "erp.token", "tr0ub4dor", scope="nowhere|")
    assert "tr0ub4dor" not in refused.content.decode()
    said = client.post(f"{PAGE}edit/", {"key": "erp.token", "scope": "|", "value": "tr0ub4dor", "add": "True"}, follow=True)
    assert "erp.token is saved (global), as a secret." in said.content.decode()
    assert Property.objects.get(environment=test_environment).secret
    client.force_login(viewer)
    for address in (
        f"{PAGE}?q=erp.token",
        "/projects/webshop/test/properties.csv",
        "/api/v1/properties/?environment=test",
        "/api/v1/projects/webshop/export/",
    ):
        answer = client.get(address)
        assert answer.status_code == 200 and "tr0ub4dor" not in answer.content.decode(), address


def test_the_admin_site_adds_a_secret_where_the_key_is_one_elsewhere(
    client: Client, admin: User, acceptance: Environment, test_environment: Environment
) -> None:
    properties.set_value(acceptance, "erp.token", "hunter2", secret=True, by=admin)
    client.force_login(admin)
    given = {"environment": test_environment.pk, "key": "erp.token", "machine": "", "connector": "", "value": "tr0ub4dor"}
    client.post("/admin/portal/property/add/", given)
    assert Property.objects.get(environment=test_environment).secret
