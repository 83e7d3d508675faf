"""Deploy › Releases and the page of a release, as people use them."""

from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from deployments import plans, promotion, releases, schedules
from deployments.models import Activation, ActivationStatus, Deployment, Release
from portal import properties
from portal.models import Connector, Environment, Flow, Property
from runtimes.models import FailoverGroup, Machine
from tests import factories
from tests.deployments.conftest import save_version

LIST = "/projects/webshop/test/releases/"
PAGE = "/projects/webshop/releases/1/"


def test_a_new_release_shows_first_what_it_will_contain(client: Client, developer: User, flow: Flow) -> None:
    Flow.objects.create(connector=flow.connector, name="returns", inbound_kind="file", outbound_kind="log")
    flow.inbound_settings = {"folder": "${erp.other}"}
    flow.save()
    client.force_login(developer)
    html = client.get(f"{LIST}new/").content.decode()
    assert "1.0.0" in html and "edited since" in html
    assert "no saved version" in html.split("returns")[1]


def test_a_developer_makes_a_release(client: Client, developer: User, flow: Flow) -> None:
    client.force_login(developer)
    answer = client.post(f"{LIST}new/", {"name": "Orders", "note": "The first."})
    assert answer.url == f"{PAGE}?environment=test"
    html = client.get(LIST).content.decode()
    release = Release.objects.get()
    assert "Orders" in html and release.digest[:8] in html and "The first." in html


def test_a_refused_release_keeps_what_was_typed(client: Client, developer: User, erp: Connector) -> None:
    client.force_login(developer)
    html = client.post(f"{LIST}new/", {"name": "Orders", "note": "The first."}).content.decode()
    assert "No flow has a saved version" in html
    assert "The first." in html


def test_activation_names_each_missing_value_and_links_its_row(
    client: Client, developer: User, release: Release, filled: Environment, group: FailoverGroup
) -> None:
    Property.objects.filter(key="erp.outbox").delete()
    client.force_login(developer)
    answer = client.post(f"{LIST}1/activate/", {"when": "now"})
    html = answer.content.decode()
    assert answer.status_code == 200 and "while values are missing" in html
    assert html.count('href="/projects/webshop/test/properties/?q=erp.outbox"') == 1, "once, for all that lack it"
    assert "external01.erp" in html and "external02.erp" in html
    assert not Activation.objects.exists()


def test_an_activated_release_is_shown_so_and_can_be_deployed(
    client: Client, developer: User, release: Release, filled: Environment, group: FailoverGroup
) -> None:
    client.force_login(developer)
    assert "Activate on Test" in client.get(PAGE).content.decode()
    client.post(f"{LIST}1/activate/", {"when": "now"})
    assert releases.active(filled) == release
    assert "Deploy on Test" in client.get(PAGE).content.decode()
    assert 'data-status="active"' in client.get(LIST).content.decode()


@pytest.mark.usefixtures("far_future")
@pytest.mark.parametrize(
    ("zone", "at", "due"),
    [
        pytest.param("UTC", "2098-07-01T12:00", datetime(2098, 7, 1, 12, tzinfo=UTC), id="UTC"),
        pytest.param("Europe/Amsterdam", "2027-07-01T12:00", datetime(2027, 7, 1, 10, tzinfo=UTC), id="summer time"),
        pytest.param("Europe/Amsterdam", "2027-12-01T12:00", datetime(2027, 12, 1, 11, tzinfo=UTC), id="winter time"),
    ],
)
def test_an_activation_is_scheduled_in_the_environments_own_time(
    client: Client, developer: User, admin: User, release: Release, filled: Environment, zone: str, at: str, due: datetime
) -> None:
    promotion.set_rules(filled, time_zone=zone, by=admin, now=timezone.now())
    client.force_login(developer)
    assert zone in client.get(f"{LIST}1/activate/").content.decode()
    assert client.post(f"{LIST}1/activate/", {"when": "at", "at": at}).status_code == 302
    assert Activation.objects.get().due_at == due
    assert "Scheduled" in client.get(LIST).content.decode()


@pytest.mark.parametrize(
    ("zone", "at", "sentence"),
    [
        pytest.param("Europe/Amsterdam", "2027-03-28T02:30", "does not exist on Sun 28 Mar 2027", id="a skipped hour"),
        pytest.param("Europe/Amsterdam", "2027-10-31T02:30", "choose the first (00:30 UTC) or the second (01:30 UTC)", id="twice"),
        pytest.param("UTC", "", "Say when.", id="no time"),
        pytest.param("UTC", "2001-01-01T00:00", "in the future", id="the past"),
    ],
)
def test_a_refused_time_says_why(
    client: Client, developer: User, admin: User, release: Release, filled: Environment, zone: str, at: str, sentence: str
) -> None:
    promotion.set_rules(filled, time_zone=zone, by=admin, now=timezone.now())
    client.force_login(developer)
    answer = client.post(f"{LIST}1/activate/", {"when": "at", "at": at})
    assert answer.status_code == 200
    assert sentence in answer.content.decode()
    assert not Activation.objects.exists()


def test_a_schedule_is_cancelled(client: Client, developer: User, release: Release, filled: Environment) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(hours=1), by=developer, now=now)
    client.force_login(developer)
    client.post(f"/projects/webshop/test/activations/{planned.pk}/cancel/")
    planned.refresh_from_db()
    assert planned.status == ActivationStatus.CANCELLED


def test_an_activation_that_failed_at_night_is_told_in_the_morning(
    client: Client, developer: User, release: Release, test_environment: Environment
) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, test_environment, due_at=now + timedelta(seconds=1), by=developer, now=now)
    schedules.activate_due(planned.pk, now=now + timedelta(seconds=2))
    client.force_login(developer)
    assert "but was not activated" in client.get(LIST).content.decode()


@pytest.fixture
def active(release: Release, filled: Environment, group: FailoverGroup, developer: User) -> Release:
    """Release 1, active on Test, with the default plan."""
    releases.activate(release, filled, by=developer, now=timezone.now())
    plans.default_plan(filled)
    return release


def test_the_deploy_dialog_shows_the_steps_and_who_leads(client: Client, developer: User, active: Release) -> None:
    client.force_login(developer)
    html = client.get(f"{LIST}1/deploy/", headers={"HX-Request": "true"}).content.decode()
    assert "<html" not in html
    assert html.index("Deploy routers") < html.index("Deploy runtime external01.erp") < html.index("Balance failover")
    assert "erp-orders" in html.split("Who leads now")[1]


def test_deploying_leads_to_the_progress_page(client: Client, developer: User, active: Release) -> None:
    client.force_login(developer)
    answer = client.post(f"{LIST}1/deploy/")
    deployment = Deployment.objects.get()
    assert answer.url == f"/projects/webshop/test/deployments/{deployment.pk}/"
    assert "is being deployed on Test now" in client.get(LIST).content.decode()
    assert "runs" in client.post(f"{LIST}1/deploy/").content.decode()
    assert Deployment.objects.count() == 1


def test_a_silent_agent_forbids_deploying_and_the_dialog_says_so(client: Client, developer: User, active: Release) -> None:
    Machine.objects.filter(name="external02").update(last_report_at=timezone.now() - timedelta(minutes=5))
    client.force_login(developer)
    html = client.get(f"{LIST}1/deploy/").content.decode()
    assert "external02 has not been heard from" in html
    assert "disabled" in html.split('type="submit"')[-1].split(">")[0]


def test_production_is_confirmed_by_the_name_of_the_project(client: Client, operator: User, active: Release) -> None:
    client.force_login(operator)
    page = "/projects/webshop/production/releases/1/deploy/"
    assert "Type webshop, the name of the project" in client.post(page, {"confirm": "shop"}).content.decode()
    # Typed right, the product's own reasons are said: nothing is applied there.
    assert "Production has no machines" in client.post(page, {"confirm": "webshop"}).content.decode()


@pytest.mark.parametrize("tab", ["contents", "properties", "preflight", "deployments"])
def test_each_tab_shows_its_part_without_the_secret(client: Client, viewer: User, active: Release, filled: Environment, tab: str) -> None:
    properties.set_value(filled, "queues.url", "redis://:hunter2@10.0.0.1/0", secret=True, by=viewer)
    client.force_login(viewer)
    html = client.get(f"{PAGE}?tab={tab}&environment=test").content.decode()
    assert "hunter2" not in html
    shown = {
        "contents": "${erp.outbox}",
        "properties": "/srv/erp/outbox",
        "preflight": "What will be done",
        "deployments": "Not deployed yet",
    }
    assert shown[tab] in html


def test_the_properties_tab_names_every_flow_that_uses_a_value(client: Client, viewer: User, developer: User, flow: Flow) -> None:
    second = Flow.objects.create(
        connector=flow.connector,
        name="erp-sales",
        inbound_kind="file",
        inbound_settings={"folder": "${erp.outbox}"},
        outbound_kind="log",
    )
    save_version(second)
    releases.build(flow.connector.project, name="Two flows", by=developer)
    client.force_login(viewer)
    html = client.get(f"{PAGE}?tab=properties&environment=test").content.decode()
    row = html.split("external01.erp<")[1].split("<code>erp.outbox</code>")[1].split("</tr>")[0]
    assert f"flow {flow.name}, Folder of the inbound; flow erp-sales, Folder of the inbound</td>" in row


def test_the_properties_tab_names_what_is_missing_elsewhere(client: Client, viewer: User, active: Release) -> None:
    client.force_login(viewer)
    html = client.get(f"{PAGE}?tab=properties&environment=acceptance").content.decode()
    assert "lack a value on Acceptance" in html
    assert 'href="/projects/webshop/acceptance/properties/?q=erp.outbox"' in html


@pytest.mark.parametrize(
    ("person", "kind", "new", "activate"),
    [
        pytest.param("viewer", "test", 403, 403, id="a viewer only reads"),
        pytest.param("developer", "test", 200, 200, id="a developer releases and activates in Test"),
        pytest.param("developer", "production", 200, 403, id="but activates nothing in Production"),
        pytest.param("operator", "production", 200, 200, id="an operator does"),
        pytest.param("stranger", "test", 404, 404, id="a stranger learns nothing"),
    ],
)
def test_who_may_release_and_activate(
    client: Client, request: pytest.FixtureRequest, release: Release, person: str, kind: str, new: int, activate: int
) -> None:
    client.force_login(request.getfixturevalue(person))
    page = f"/projects/webshop/{kind}/releases/"
    assert client.get(f"{page}new/").status_code == new
    for act in ("activate", "deploy"):
        assert client.get(f"{page}1/{act}/").status_code == activate
        assert client.post(f"{page}1/{act}/", {"when": "now"}).status_code == activate
    assert client.get(page).status_code == (404 if person == "stranger" else 200)


def test_a_long_list_needs_no_more_queries_than_a_short_one(
    client: Client, viewer: User, release: Release, filled: Environment, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    many = [Release(project=release.project, number=number, name="More", content={}, digest="0" * 64) for number in range(2, 200)]
    Release.objects.bulk_create(many)
    for one in Release.objects.all()[:30]:
        factories.deployed(filled, one)
    client.force_login(viewer)
    with django_assert_max_num_queries(20):
        assert "Page 1 of 4" in client.get(LIST).content.decode()
