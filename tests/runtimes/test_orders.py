import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from portal.errors import Invalid, NotAllowed
from portal.models import DesignedMachine, Environment, Group
from runtimes import fleet, joining, ordering, protocol, votes
from runtimes.models import Bundle, FailoverGroup, GroupMember, GroupRequest, Machine, Router, Runtime
from tests.runtimes.conftest import NOW, content_for, routers_of, said, said_of

TWO = {"external01": ("10.0.0.1", 7400), "external02": ("10.0.0.2", 7400)}
THREE = {**TWO, "core01": ("10.0.0.3", 7400)}


def version(machine: Machine) -> int:
    machine.refresh_from_db()
    return machine.orders_version


def test_a_fresh_machine_is_ordered_its_runtimes_without_a_bundle(external01: Machine, group: FailoverGroup) -> None:
    orders = ordering.orders_for(external01, now=NOW)
    assert orders.namespace == group.environment.namespace
    assert orders.router is None
    assert [(runtime.key, runtime.digest, runtime.running) for runtime in orders.runtimes] == [("external01.erp", None, True)]


def test_orders_carry_bundle_preference_router_and_live_requests(
    external01: Machine, erp01: Runtime, group: FailoverGroup, routers_addressed: None
) -> None:
    Runtime.objects.filter(pk=erp01.pk).update(preference="leader")
    fleet.assign(erp01, fleet.store_bundle(group.environment, content_for(erp01, group, release=3)))
    live = GroupRequest.objects.create(
        group=group,
        kind="switch",
        machine="external02",
        expected_epoch=41,
        cause="switch",
        actor="operator",
        expires_at=NOW + timedelta(seconds=9),
    )
    GroupRequest.objects.create(
        group=group, kind="switch", cause="switch", actor="x", status="succeeded", expires_at=NOW + timedelta(seconds=9)
    )
    orders = ordering.orders_for(external01, now=NOW)
    (runtime,) = orders.runtimes
    assert (runtime.release, runtime.preferences) == (3, {group.group.key: "leader"})
    (request,) = orders.requests
    assert (request.id, request.group, request.machine, request.expected_epoch, request.valid_seconds) == (
        str(live.pk),
        group.group.key,
        "external02",
        41,
        9.0,
    )
    assert orders.router is not None
    assert (orders.router.name, orders.router.peer_host, orders.router.witness) == ("external01", "10.0.0.1", False)
    assert orders.router.members == {
        "external01": "https://10.0.0.1:7400",
        "external02": "https://10.0.0.2:7400",
        "core01": "https://10.0.0.3:7400",
    }


def test_a_request_past_its_time_is_not_carried(external01: Machine, group: FailoverGroup) -> None:
    GroupRequest.objects.create(group=group, kind="switch", cause="switch", actor="x", expires_at=NOW)
    assert ordering.orders_for(external01, now=NOW).requests == []


def test_a_request_goes_to_members_only(core01: Machine, group: FailoverGroup) -> None:
    GroupRequest.objects.create(group=group, kind="switch", cause="switch", actor="x", expires_at=NOW + timedelta(seconds=9))
    assert ordering.orders_for(core01, now=NOW).requests == []


def test_orders_cost_three_queries(
    external01: Machine, group: FailoverGroup, routers_addressed: None, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(3):
        ordering.orders_for(external01, now=NOW)


# ------------------------------------------------------------------------------------------------------------- bundles


def test_equal_content_is_one_bundle(erp01: Runtime, group: FailoverGroup) -> None:
    first, second = (fleet.store_bundle(group.environment, content_for(erp01, group)) for _ in range(2))
    assert first == second
    assert Bundle.objects.count() == 1
    assert protocol.digest_of(bytes(first.content)) == first.digest


def test_assigning_a_bundle_raises_the_orders_version_once(external01: Machine, erp01: Runtime, group: FailoverGroup) -> None:
    bundle = fleet.store_bundle(group.environment, content_for(erp01, group))
    before = version(external01)
    fleet.assign(erp01, bundle)
    fleet.assign(erp01, bundle)
    assert version(external01) == before + 1
    assert Runtime.objects.get(pk=erp01.pk).desired_bundle == bundle


def test_assigning_makes_the_failover_group_and_its_members(erp01: Runtime, erp02: Runtime, group: FailoverGroup) -> None:
    group.delete()
    bundle = fleet.store_bundle(erp01.environment, content_for(erp01, FailoverGroup(group=group.group, name="orders")))
    fleet.assign(erp01, bundle)
    made = FailoverGroup.objects.get(environment=erp01.environment)
    assert (made.group, made.name, made.failover) == (group.group, "orders", True)
    assert {member.runtime for member in made.members.all()} == {erp01, erp02}


def test_a_renamed_group_keeps_its_epoch_and_history(erp01: Runtime, group: FailoverGroup) -> None:
    FailoverGroup.objects.filter(pk=group.pk).update(epoch=77)
    renamed = FailoverGroup(group=group.group, name="orders-new")
    fleet.assign(erp01, fleet.store_bundle(erp01.environment, content_for(erp01, renamed)))
    group.refresh_from_db()
    assert (group.name, group.epoch) == ("orders-new", 77)


def test_a_group_that_left_the_release_loses_the_member_but_keeps_its_history(erp01: Runtime, erp02: Runtime, group: FailoverGroup) -> None:
    fleet.assign(erp01, fleet.store_bundle(erp01.environment, content_for(erp01, None)))
    assert FailoverGroup.objects.filter(pk=group.pk).exists()
    assert [member.runtime for member in group.members.all()] == [erp02]


def test_a_bundle_with_a_foreign_group_is_refused(erp01: Runtime, group: FailoverGroup) -> None:
    strange = FailoverGroup(group=Group(connector=erp01.connector, name="x", key="g-nowhere"), name="x")
    with pytest.raises(Invalid, match="g-nowhere"):
        fleet.assign(erp01, fleet.store_bundle(erp01.environment, content_for(erp01, strange)))
    assert Runtime.objects.get(pk=erp01.pk).desired_bundle is None


# ------------------------------------------------------------------------------------------- start, stop, restart, flows


def test_a_stop_persists_and_is_ordered_once(external01: Machine, erp01: Runtime) -> None:
    before = version(external01)
    fleet.stop(erp01)
    fleet.stop(erp01)
    assert version(external01) == before + 1
    assert not ordering.orders_for(external01, now=NOW).runtimes[0].running
    fleet.start(erp01)
    assert ordering.orders_for(external01, now=NOW).runtimes[0].running


def test_a_restart_counts_and_a_stopped_runtime_is_not_restarted(external01: Machine, erp01: Runtime) -> None:
    fleet.restart(erp01)
    fleet.restart(erp01)
    assert ordering.orders_for(external01, now=NOW).runtimes[0].restarts == 2
    fleet.stop(erp01)
    with pytest.raises(NotAllowed, match="start it instead"):
        fleet.restart(erp01)


def test_an_ungrouped_flow_is_stopped_and_started(external01: Machine, erp01: Runtime, group: FailoverGroup) -> None:
    fleet.assign(erp01, fleet.store_bundle(erp01.environment, content_for(erp01, group)))
    fleet.stop_flow(erp01, "f-free")
    assert ordering.orders_for(external01, now=NOW).runtimes[0].stopped_flows == ["f-free"]
    fleet.start_flow(erp01, "f-free")
    assert ordering.orders_for(external01, now=NOW).runtimes[0].stopped_flows == []


def with_flow(content: protocol.BundleContent, key: str, *, auto_start: bool) -> protocol.BundleContent:
    added = msgspec.structs.replace(content.flows[0], id=key, name=key, auto_start=auto_start)
    return msgspec.structs.replace(content, flows=[*content.flows, added])


def test_a_flow_that_does_not_start_by_itself_waits_for_a_person_once(external01: Machine, erp01: Runtime, group: FailoverGroup) -> None:
    def deploy(release: int) -> list[str]:
        content = with_flow(content_for(erp01, group, release=release), "f-shy", auto_start=False)
        fleet.assign(erp01, fleet.store_bundle(group.environment, content))
        return ordering.orders_for(external01, now=NOW).runtimes[0].stopped_flows

    assert deploy(1) == ["f-shy"]
    fleet.start_flow(erp01, "f-shy")
    assert deploy(2) == []
    fleet.stop_flow(erp01, "f-free")
    assert deploy(3) == ["f-free"]
    fleet.assign(erp01, fleet.store_bundle(group.environment, msgspec.structs.replace(content_for(erp01, group, release=4), flows=[])))
    assert ordering.orders_for(external01, now=NOW).runtimes[0].stopped_flows == [], "what is gone is not stopped"


@pytest.mark.parametrize(("flow", "sentence"), [("f-orders", "belongs to group erp-orders.*tab Groups"), ("f-none", "has no flow f-none")])
def test_a_grouped_or_unknown_flow_is_refused(erp01: Runtime, group: FailoverGroup, flow: str, sentence: str) -> None:
    fleet.assign(erp01, fleet.store_bundle(erp01.environment, content_for(erp01, group)))
    with pytest.raises(Invalid, match=sentence):
        fleet.stop_flow(erp01, flow)


def test_before_a_deployment_there_is_no_flow(erp01: Runtime) -> None:
    with pytest.raises(Invalid, match="Nothing was deployed"):
        fleet.stop_flow(erp01, "f-free")


# ------------------------------------------------------------------------------------------------------------- routers


def test_two_external_machines_and_a_witness_are_three_votes(group: FailoverGroup, external01: Machine, core01: Machine) -> None:
    before = version(external01)
    fleet.assign_routers(group.environment, THREE)
    fleet.assign_routers(group.environment, THREE)
    assert version(external01) == before + 1
    routers = routers_of(group.environment)
    assert all(router.desired_running and set(router.desired_members) == set(THREE) for router in routers.values())
    order = ordering.orders_for(core01, now=NOW).router
    assert order is not None and order.witness


@pytest.mark.parametrize(
    ("external", "core", "members", "gateways", "unused"),
    [
        pytest.param(1, 1, ["e1"], [], ["c1"], id="one vote needs no witness"),
        pytest.param(2, 1, ["c1", "e1", "e2"], [], [], id="two and the witness"),
        pytest.param(2, 2, ["c1", "e1", "e2"], [], ["c2"], id="one witness is enough"),
        pytest.param(3, 1, ["e1", "e2", "e3"], [], ["c1"], id="three leave the witness out"),
        pytest.param(3, 0, ["e1", "e2", "e3"], [], [], id="three"),
        pytest.param(4, 1, ["c1", "e1", "e2", "e3", "e4"], [], [], id="four and the witness"),
        pytest.param(5, 1, ["e1", "e2", "e3", "e4", "e5"], [], ["c1"], id="five leave the witness out"),
        pytest.param(7, 1, ["e1", "e2", "e3", "e4", "e5"], ["e6", "e7"], ["c1"], id="beyond five the first five vote"),
    ],
)
def test_votes_are_odd(external: int, core: int, members: list[str], gateways: list[str], unused: list[str]) -> None:
    kinds = {f"e{n}": "external" for n in range(1, external + 1)} | {f"c{n}": "core" for n in range(1, core + 1)}
    result = votes.electorate(kinds, {name: ("10.0.0.1", 7000 + 2 * index) for index, name in enumerate(kinds)})
    assert (sorted(result.members), result.gateways, result.unused) == (members, gateways, unused)


def test_a_voter_that_serves_others_needs_the_port_after_its_own_too() -> None:
    def addresses(count: int) -> dict[str, tuple[str, int]]:
        return {f"e{number}": ("10.0.0.1", 7000 + number) for number in range(count)}

    assert len(votes.electorate(dict.fromkeys(addresses(5), "external"), addresses(5)).members) == 5
    with pytest.raises(Invalid, match=r"e0 listens on 10\.0\.0\.1:7001 too, .*; e1 has that: leave a port free after each Failover port"):
        votes.electorate(dict.fromkeys(addresses(6), "external"), addresses(6))


@pytest.mark.parametrize(("count", "sentence"), [(2, "Two votes cannot decide a majority"), (4, "Four votes cannot decide a majority")])
def test_an_even_number_without_a_witness_is_refused(count: int, sentence: str) -> None:
    kinds = {f"e{n}": "external" for n in range(count)}
    with pytest.raises(Invalid, match=rf"{sentence}.*core machine"):
        votes.electorate(kinds, {name: ("10.0.0.1", 7000 + index) for index, name in enumerate(kinds)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param({"external02": ("10.0.0.1", 7400)}, "external01 and external02 both say 10.0.0.1:7400", id="used twice"),
        pytest.param({"external02": ("10.0.0.2", 0)}, "port 0 of external02", id="no port"),
        pytest.param({"external02": ("10.0.0.2", 65536)}, "port 65536 of external02", id="beyond the last port"),
        pytest.param({"external02": (" ", 7400)}, "external02 has no Internal IP", id="no address"),
        pytest.param({"external09": ("10.0.0.9", 7400)}, "external09 has no router in Test", id="unknown machine"),
    ],
)
def test_wrong_addresses_are_refused(group: FailoverGroup, change: dict[str, tuple[str, int]], sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        fleet.assign_routers(group.environment, {**THREE, **change})
    assert not any(router.desired_running for router in routers_of(group.environment).values())


def test_two_votes_without_a_witness_are_refused(group: FailoverGroup) -> None:
    Router.objects.filter(machine__name="core01").delete()
    with pytest.raises(Invalid, match="Two votes cannot decide a majority: external01 and external02 need a witness"):
        fleet.assign_routers(group.environment, TWO)


def test_an_external_router_without_address_is_named(group: FailoverGroup) -> None:
    with pytest.raises(Invalid, match=r"external02.failover.internal-ip"):
        fleet.assign_routers(group.environment, {"external01": ("10.0.0.1", 7400), "core01": ("10.0.0.3", 7400)})


def test_a_running_cluster_is_not_founded_again(group: FailoverGroup, routers_addressed: None) -> None:
    Router.objects.update(cluster_known=True)
    fleet.assign_routers(group.environment, THREE)
    with pytest.raises(NotAllowed, match="already run as one cluster: a deployment's step Deploy routers changes them"):
        fleet.assign_routers(group.environment, {**THREE, "external02": ("10.0.0.9", 7400)})
    assert routers_of(group.environment)["external02"].desired_host == "10.0.0.2"


def test_an_environment_without_routers_orders_none(test_environment: Environment) -> None:
    fleet.assign_routers(test_environment, {})
    assert not DesignedMachine.objects.filter(project=test_environment.project).exists()
    assert not GroupMember.objects.exists()


def test_a_token_names_who_made_it(external01: Machine, admin: User) -> None:
    joining.register(external01, by=admin)
    assert external01.join_tokens.get().created_by == admin


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one lock, and nobody can wait for another one")
def test_orders_and_reports_of_one_machine_never_wait_for_each_other(external01: Machine, erp01: Runtime, group: FailoverGroup) -> None:
    """A report takes the machine's row and then its runtimes'; an order that took them the other way round ended one of the two
    ("deadlock detected")."""
    errors: list[Exception] = []

    def again_and_again(act: Callable[[int], object]) -> None:
        try:
            for number in range(1, 60):
                act(number)
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    def report(number: int) -> None:
        fleet.record_report(
            external01, said(number, runtimes=[said_of(erp01, group, protocol.Status.LEADER, epoch=41)]), now=timezone.now()
        )

    def order(number: int) -> None:
        (fleet.restart if number % 3 else lambda runtime: fleet.hold(runtime, "until it is deployed"))(erp01)
        Runtime.objects.filter(pk=erp01.pk).update(held="")

    threads = [threading.Thread(target=again_and_again, args=[act]) for act in (report, order)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
