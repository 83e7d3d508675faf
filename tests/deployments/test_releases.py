"""Releases: built once, chosen when nothing is missing, now or at a time; and what a runtime gets from one."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import close_old_connections
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from deployments import plans, releases
from deployments.models import Activation, ActivationStatus, Release, StepKind
from portal import properties
from portal.errors import Invalid, NotAllowed
from portal.models import Connector, Environment, Flow, Group, Project, Property
from portal.property_values import Values
from runtimes import protocol
from runtimes.models import FailoverGroup, Router, Runtime
from tests import factories
from tests.deployments.conftest import VALUES, save_version


def together(*acts: Callable[[], object]) -> list[object]:
    """Run the acts at the same time, each on its own connection; what each returned or raised."""
    start = threading.Barrier(len(acts))
    results: list[object] = [None] * len(acts)

    def run(number: int, act: Callable[[], object]) -> None:
        start.wait()
        try:
            results[number] = act()
        except Exception as error:
            results[number] = error
        finally:
            close_old_connections()

    threads = [threading.Thread(target=run, args=(number, act)) for number, act in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# ------------------------------------------------------------------------------------------------------------------- build


def test_a_release_holds_the_latest_saved_version_of_every_flow(flow: Flow, developer: User) -> None:
    save_version(flow, 10, description="by number, not by text")
    save_version(flow, 9)
    Flow.objects.create(connector=flow.connector, name="draft", inbound_kind="file", outbound_kind="log")
    release = releases.build(flow.connector.project, name=" Summer ", note="n", by=developer)
    assert (release.number, release.name, release.created_by) == (1, "Summer", developer)
    assert [(item["name"], item["version"], item["connector"]) for item in release.content["flows"]] == [("erp-orders", "1.10.0", "erp")]
    assert release.content["groups"] == [{"id": Group.objects.get().key, "name": "erp-orders", "connector": "erp"}]
    assert release.content["connectors"] == [
        {"name": "erp", "system": "ERP", "failover": True, "machines": ["external01", "external02"]},
    ]
    assert [(item["name"], item["kind"], item["router"]) for item in release.content["machines"]] == [
        ("core01", "core", True),
        ("external01", "external", True),
        ("external02", "external", True),
    ]


def test_equal_content_has_an_equal_digest_and_its_own_number(release: Release, flow: Flow, developer: User) -> None:
    again = releases.build(release.project, name="Second", by=developer)
    assert (again.number, again.digest) == (2, release.digest)
    save_version(flow, 1)
    assert releases.build(release.project, name="Third", by=developer).digest != release.digest


def test_a_release_never_follows_later_edits(release: Release, flow: Flow) -> None:
    Group.objects.update(name="renamed")
    flow.inbound_settings = {"folder": "/elsewhere"}
    flow.save()
    release.refresh_from_db()
    assert release.content["groups"][0]["name"] == "erp-orders"
    assert release.content["flows"][0]["inbound"]["settings"] == {"folder": "${erp.outbox}"}


def test_a_release_needs_a_name_and_a_saved_flow(webshop: Project, erp: Connector, developer: User) -> None:
    with pytest.raises(Invalid, match="Give the release a name") as refusal:
        releases.build(webshop, name="  ", by=developer)
    assert refusal.value.field == "name"
    with pytest.raises(Invalid, match="No flow has a saved version: save one in Create"):
        releases.build(webshop, name="First", by=developer)


def test_a_saved_version_in_a_group_that_is_gone_is_refused(flow: Flow, developer: User) -> None:
    Group.objects.all().delete()
    with pytest.raises(Invalid, match=r"Flow erp-orders 1\.0\.0 is in group erp-orders, which is gone"):
        releases.build(flow.connector.project, name="First", by=developer)


@pytest.mark.django_db(transaction=True)
def test_two_people_making_releases_at_once_get_two_numbers(flow: Flow, developer: User) -> None:
    project = flow.connector.project
    made = together(*[lambda name=name: releases.build(project, name=name, by=developer) for name in ("a", "b", "c")])
    assert sorted(item.number for item in made if isinstance(item, Release)) == [1, 2, 3]


# ------------------------------------------------------------------------------------------------------------ what it needs


def test_every_missing_value_is_named_per_runtime_and_router(release: Release, test_environment: Environment) -> None:
    sentences = [item.sentence for item in releases.missing(release, test_environment)]
    assert "external01.erp needs a value for erp.outbox (flow erp-orders, Folder of the inbound)." in sentences
    assert "external02.erp needs a value for erp.outbox (flow erp-orders, Folder of the inbound)." in sentences
    assert "router on external02 needs a value for external02.failover.internal-ip (Internal IP)." in sentences
    assert "witness on core01 needs a value for core01.failover.port (Failover port)." in sentences
    assert len(sentences) == 2 * 3 + 3 * 2


def test_the_applied_machines_count_once_there_are_some(
    release: Release, filled: Environment, group: FailoverGroup, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    Property.objects.filter(key="erp.outbox").update(machine="external01")
    Runtime.objects.filter(machine__name="external01").delete()
    with django_assert_num_queries(7):
        found = releases.missing(release, filled)
    assert [item.sentence for item in found] == ["external02.erp needs a value for erp.outbox (flow erp-orders, Folder of the inbound)."]


def test_warnings_name_what_activation_allows(release: Release, filled: Environment, group: FailoverGroup) -> None:
    (sentence,) = releases.warnings(release, filled)
    assert sentence.startswith("A failover group exists (erp-orders), but no Balance failover step does: ")
    plans.default_plan(filled)
    assert releases.warnings(release, filled) == []
    Router.objects.filter(machine__name="external02").delete()
    assert releases.warnings(release, filled)[0].startswith(
        "erp fails over in this release and stands still on external02, where no router"
    )
    Router.objects.all().delete()
    assert releases.warnings(release, filled)[0].startswith("Test has no routers, so nothing fails over there")


def test_warnings_name_an_ungrouped_inbound_and_a_connector_without_runtime(
    flow: Flow, filled: Environment, developer: User, group: FailoverGroup
) -> None:
    save_version(flow, 1, group=None, group_name=None)
    release = releases.build(filled.project, name="Ungrouped", by=developer)
    assert releases.warnings(release, filled) == ["Flow erp-orders has no group: it takes on external01 and external02 at the same time."]
    Runtime.objects.all().delete()
    assert releases.warnings(release, filled) == ["Connector erp has no runtime on Test: its flows run nowhere there."]


@pytest.mark.parametrize(("way", "warned"), [({}, True), ({"without_id": "each"}, True), ({"without_id": "refuse"}, False)])
def test_warnings_name_amqp_messages_that_cannot_be_known_again(
    flow: Flow, filled: Environment, developer: User, group: FailoverGroup, way: dict[str, str], warned: bool
) -> None:
    plans.default_plan(filled)
    save_version(flow, 1, inbound={"kind": "amqp", "settings": {"host": "h", "user": "u", "password": "p", "queue": "q", **way}})
    release = releases.build(filled.project, name="From a queue", by=developer)
    said = releases.warnings(release, filled)
    assert bool(said) is warned and all("gives a message without message-id a new id at each delivery" in sentence for sentence in said)


# ----------------------------------------------------------------------------------------------------------------- bundles


def test_a_bundle_holds_resolved_settings_and_all_siblings(release: Release, filled: Environment, group: FailoverGroup) -> None:
    runtime = Runtime.objects.get(machine__name="external02")
    bundle = releases.bundle_for(release, runtime, Values(Property.objects.filter(environment=filled)))
    (flow,) = bundle.flows
    assert (bundle.environment, bundle.machine, bundle.connector, bundle.release) == ("test", "external02", "erp", 1)
    assert bundle.cluster == filled.cluster.hex, "no environment shares a bundle with another"
    assert flow.inbound == protocol.Component(kind=protocol.ComponentKind.FILE, settings={"folder": VALUES["erp.outbox"]})
    assert flow.outbound.settings == {"url": VALUES["queues.url"], "queue": "orders", "prefix": "baton:"}
    assert bundle.groups == [
        protocol.GroupSpec(id=group.group.key, name="erp-orders", failover=True, members=["external01.erp", "external02.erp"])
    ]
    assert protocol.decode(protocol.BundleContent, protocol.encode(bundle)) == bundle


@pytest.mark.parametrize("lacking", ["transfer", "sibling", "router", "router that stays"])
def test_failover_needs_transfer_a_sibling_and_routers(
    flow: Flow, filled: Environment, developer: User, group: FailoverGroup, lacking: str
) -> None:
    if lacking == "transfer":
        Connector.objects.update(failover=False)
    elif lacking == "sibling":
        Runtime.objects.filter(machine__name="external01").delete()
    elif lacking == "router that stays":
        Router.objects.update(leaving=True)  # Apply took failover off; they serve what still runs
    else:
        Router.objects.all().delete()
    release = releases.build(filled.project, name="First", by=developer)
    bundle = releases.bundle_for(release, Runtime.objects.get(machine__name="external02"), Values(Property.objects.all()))
    assert [spec.failover for spec in bundle.groups] == [False]


def test_a_bundle_is_refused_naming_the_keys_without_a_value(release: Release, filled: Environment, group: FailoverGroup) -> None:
    properties.remove_value(filled, "erp.outbox")
    properties.remove_value(filled, "queues.url")
    with pytest.raises(NotAllowed) as refusal:
        releases.bundle_for(release, Runtime.objects.get(machine__name="external02"), Values(Property.objects.all()))
    assert refusal.value.reasons == [
        "external02.erp needs a value for erp.outbox (flow erp-orders, Folder of the inbound).",
        "external02.erp needs a value for queues.url (flow erp-orders, Server of the outbound).",
    ]


# ----------------------------------------------------------------------------------------------------------------- activate


def test_activation_is_refused_with_one_reason_per_missing_value(release: Release, test_environment: Environment, developer: User) -> None:
    with pytest.raises(NotAllowed, match="9 keys lack a value for release 1 on Test: fill in Deploy › Properties") as refusal:
        releases.activate(release, test_environment, by=developer, now=timezone.now())
    assert len(refusal.value.reasons) == 12
    assert releases.active(test_environment) is None


def test_more_failover_groups_than_one_runtime_can_lead_are_refused(
    release: Release, filled: Environment, developer: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MOST_FAILOVER_GROUPS", 1)
    releases.refuse_incomplete(release, filled)
    release.content["groups"].append({"id": "another", "name": "another", "connector": "erp"})
    with pytest.raises(
        NotAllowed, match="erp has 2 groups in failover, and one runtime leads at most 1: put some of its flows into one group"
    ):
        releases.activate(release, filled, by=developer, now=timezone.now())
    release.content["connectors"][0]["failover"] = False
    releases.refuse_incomplete(release, filled)


def test_activating_replaces_the_former_choice(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    first = releases.activate(release, filled, by=developer, now=now)
    assert releases.activate(release, filled, by=developer, now=now) == first
    later = releases.build(release.project, name="Second", by=developer)
    releases.activate(later, filled, by=developer, now=now)
    first.refresh_from_db()
    assert first.status == ActivationStatus.REPLACED
    assert releases.active(filled) == later


def test_a_release_of_another_project_is_refused(release: Release, developer: User) -> None:
    other = factories.project(release.project.team, "depot").environments.get(kind="test")
    with pytest.raises(Invalid, match="another project"):
        releases.activate(release, other, by=developer, now=timezone.now())


@pytest.mark.django_db(transaction=True)
def test_of_two_activations_at_once_exactly_one_stays_active(release: Release, filled: Environment, developer: User) -> None:
    others = [releases.build(release.project, name=name, by=developer) for name in ("b", "c")]
    now = timezone.now()
    results = together(*[lambda chosen=chosen: releases.activate(chosen, filled, by=developer, now=now) for chosen in (release, *others)])
    assert all(isinstance(item, Activation) for item in results)
    assert Activation.objects.filter(status=ActivationStatus.ACTIVE).count() == 1


def test_warnings_do_not_forbid(release: Release, filled: Environment, group: FailoverGroup, developer: User) -> None:
    plans.add_step(plans.plan_of(filled), StepKind.DEPLOY_ROUTERS)
    assert releases.warnings(release, filled)
    assert releases.activate(release, filled, by=developer, now=timezone.now()).status == ActivationStatus.ACTIVE


def test_a_release_says_what_it_does_not_hold(flow: Flow, developer: User, client: Client, filled: Environment) -> None:
    Flow.objects.create(connector=flow.connector, name="returns", inbound_kind="file", outbound_kind="log")
    whole = releases.build(flow.connector.project, name="Before", by=developer)
    Flow.objects.filter(pk=flow.pk).update(inbound_settings={"folder": "${erp.other}"})
    client.force_login(developer)
    answer = client.post("/api/v1/releases/", {"project": "webshop", "name": "After"}, content_type="application/json").json()
    remedy = "save a version in Create › Flows, then make a new release."
    left_out = f"Flow returns (erp) had no saved version and was left out: {remedy}"
    edited = f"Flow erp-orders (erp) was edited since 1.0.0, which the release has: its edits are not in it. To have them, {remedy}"
    assert whole.omissions == [left_out] and answer["omissions"] == [edited, left_out]
    assert answer["digest"] == whole.digest, "what it does not hold is no part of its content"
    page = client.get(f"/projects/webshop/releases/{answer['number']}/").content.decode()
    assert left_out in page and edited in page
    compared = client.get(f"/api/v1/releases/{answer['id']}/compare/?with={whole.pk}").json()
    assert f"Release {answer['number']}: {edited}" in compared["notes"]
    made = client.post("/projects/webshop/test/releases/new/", {"name": "Third"}, follow=True).content.decode()
    assert left_out in made


@pytest.mark.parametrize(
    ("act", "body"),
    [
        pytest.param("activate", {"due_At": "2030-01-01T02:00:00Z", "deploys": True}, id="it would be activated at once"),
        pytest.param("deployments", {"leave_out": ["external01"]}, id="nobody would be left out"),
    ],
)
def test_a_misspelt_field_is_refused_and_nothing_is_done(
    client: Client, developer: User, filled: Environment, release: Release, act: str, body: dict[str, Any]
) -> None:
    client.force_login(developer)
    answer = client.post(f"/api/v1/releases/{release.pk}/{act}/", {"environment": "test"} | body, content_type="application/json")
    assert (answer.status_code, "There is no such field" in answer.json()["detail"]) == (400, True), answer.json()
    assert not release.activations.exists()
