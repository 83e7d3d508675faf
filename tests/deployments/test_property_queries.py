"""However many properties and flows there are: the same number of queries for each view of them."""

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from deployments import frozen, plans, releases, sheet
from deployments.models import Release, StepKind
from portal import properties
from portal.models import Connector, Environment, Flow, FlowVersion, Property
from runtimes.models import FailoverGroup
from tests import factories

BASE = "/projects/webshop/test/properties"
SIZES = (15, 150)
ADDRESSES = [
    *(f"{BASE}/grid/?by={by}" for by in ("environments", "machines", "runtimes")),
    *(f"{BASE}/grid/?by=environments&only={name}" for name in sheet.FILTERS),
    f"{BASE}/grid/?by=runtimes&only=missing&page=2",
    f"{BASE}/",
    f"{BASE}.csv",
    f"{BASE}/key/?key=more.00000",
    f"{BASE}/history/",
    f"{BASE}/bulk/?by=runtimes&keys=more.00000&keys=more.00001",
]


def more(environment: Environment, connector: Connector, size: int) -> None:
    """So many flows, each naming four keys of its own; of every fourth key the value is missing."""
    keys = [f"more.{number:05}" for number in range(4 * size)]
    flows = [
        Flow(
            connector=connector,
            name=f"more-{number}",
            inbound_kind="file",
            inbound_settings={"folder": f"${{{keys[4 * number]}}}", "error_folder": f"${{{keys[4 * number + 1]}}}"},
            outbound_kind="file",
            outbound_settings={"folder": f"${{{keys[4 * number + 2]}}}", "receipts": f"${{{keys[4 * number + 3]}}}"},
        )
        for number in range(size)
    ]
    Flow.objects.bulk_create(flows)
    FlowVersion.objects.bulk_create(FlowVersion(flow=flow, major=1, minor=0, patch=0, definition=flow.definition()) for flow in flows)
    filled = [key for number, key in enumerate(keys) if number % 4]
    Property.objects.bulk_create(Property(environment=environment, key=key, value="/srv") for key in filled)


def grow(environment: Environment, connector: Connector, size: int) -> None:
    Flow.objects.filter(name__startswith="more-").delete()
    Property.objects.filter(key__startswith="more.").delete()
    more(environment, connector, size)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_view_needs_no_more_queries_when_there_is_more(
    client: Client, developer: User, test_environment: Environment, erp: Connector, address: str
) -> None:
    client.force_login(developer)
    client.get(address)  # the first visit remembers where the person is
    counts = []
    for size in SIZES:
        grow(test_environment, erp, size)
        with CaptureQueriesContext(connection) as queries:
            assert client.get(address).status_code == 200
        counts.append(len(queries))
    assert counts[1] <= counts[0]  # fewer, where none of the page's rows is a router's address: then nobody asks for peers' tests


@pytest.mark.parametrize("address", [f"{BASE}/grid/?by=runtimes&only=changed", f"{BASE}/?only=changed"])
def test_what_is_newer_than_what_runs_needs_the_same_number_of_queries_at_two_sizes(
    client: Client, developer: User, test_environment: Environment, erp: Connector, group: FailoverGroup, address: str
) -> None:
    client.force_login(developer)
    client.get(address)
    counts = []
    for size in SIZES:
        grow(test_environment, erp, size)
        run = factories.given(factories.deployed(test_environment, releases.build(test_environment.project, name="Much", by=developer)))
        again = factories.given(factories.deployed(test_environment, run.release), "external02.erp")
        changed = list(Property.objects.filter(key__startswith="more."))
        properties.set_values([properties.Edit(test_environment, row.key, "/new") for row in changed], by=developer)
        with CaptureQueriesContext(connection) as queries:
            html = client.get(address).content.decode()
        assert f'<span class="pill-count">{3 * size}</span>' in html and run.pk < again.pk
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_the_check_of_missing_values_needs_the_same_number_of_queries_at_two_sizes(
    developer: User, test_environment: Environment, erp: Connector
) -> None:
    counts = []
    for size in SIZES:
        grow(test_environment, erp, size)
        release = releases.build(test_environment.project, name="Much", by=developer)
        with CaptureQueriesContext(connection) as queries:
            lacking = releases.missing(release, test_environment)
        assert len([item for item in lacking if item.key.startswith("more.")]) == 2 * size  # on two machines
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_page_and_check_agree_on_what_is_missing(developer: User, test_environment: Environment, erp: Connector) -> None:
    grow(test_environment, erp, SIZES[0])
    Property.objects.create(environment=test_environment, key="more.00000", machine="external02", value="/only-there")
    release = releases.build(test_environment.project, name="Much", by=developer)
    checked = {(item.runtime, item.key) for item in releases.missing(release, test_environment) if item.key.startswith("more.")}
    shown = {
        (place, key) for place, keys in sheet.find(test_environment).missing_by_place.items() for key in keys if key.startswith("more.")
    }
    assert shown == checked
    assert ("external01.erp", "more.00000") in shown
    assert ("external02.erp", "more.00000") not in shown


def test_the_address_of_an_http_check_is_a_use_like_any_other(developer: User, release: Release, filled: Environment) -> None:
    plans.add_step(plans.plan_of(filled), StepKind.HTTP_CHECK, url="http://${shop.host}/health")
    (lacking,) = releases.missing(release, filled)
    assert lacking.sentence == "the plan needs a value for shop.host (HTTP check http://${shop.host}/health)."
    assert sheet.find(filled).missing_by_place == {"the plan": ["shop.host"]}
    properties.set_value(filled, "shop.host", "shop.example.com", by=developer)
    assert releases.missing(release, filled) == []
    assert sheet.find(filled, only=["unused"]).keys == []
    assert "shop.host" in {entry["key"] for entry in frozen.present(release, filled)}
