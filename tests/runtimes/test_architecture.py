from datetime import timedelta
from typing import Any

import msgspec
import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from portal.errors import NotAllowed, Stale
from portal.models import Connector, DesignedMachine, Environment, MachineKind, Placement, System
from runtimes import architecture, fleet, membership, ordering, protocol
from runtimes.models import FailoverGroup, GroupMember, LeadershipChange, Machine, Router, Runtime
from tests.runtimes.conftest import content_for, said, said_of


def sentences(environment: Environment) -> list[str]:
    return [change.sentence for change in architecture.diff(environment)]


def apply(environment: Environment, by: User) -> list[architecture.Change]:
    return architecture.apply(environment, seen=None, by=by)


def stop(runtime: Runtime) -> None:
    fleet.stop(runtime)
    Runtime.objects.filter(pk=runtime.pk).update(observed_state="stopped")


@pytest.fixture
def warehouse(erp: Connector) -> Connector:
    """A connector without failover, on the core machine."""
    system = System.objects.create(project=erp.project, name="Warehouse", slug="warehouse")
    connector = Connector.objects.create(project=erp.project, system=system, name="warehouse")
    Placement.objects.create(connector=connector, machine=DesignedMachine.objects.get(project=erp.project, name="core01"))
    return connector


def test_the_pop_up_names_routers_first_and_then_everything(test_environment: Environment, warehouse: Connector) -> None:
    assert sentences(test_environment) == [
        "Router on external01 will be created.",
        "Router on external02 will be created.",
        "Witness on core01 will be created.",
        "Machine core01 (core) will be created; register its agent afterwards.",
        "Machine external01 (external) will be created; register its agent afterwards.",
        "Machine external02 (external) will be created; register its agent afterwards.",
        "Runtime core01.warehouse will be created.",
        "Runtime external01.erp will be created, in failover.",
        "Runtime external02.erp will be created, in failover.",
    ]


def test_apply_does_what_the_pop_up_said_and_then_nothing_is_left(
    test_environment: Environment, warehouse: Connector, developer: User
) -> None:
    seen = architecture.diff(test_environment)
    assert architecture.apply(test_environment, seen=seen, by=developer) == seen
    assert sentences(test_environment) == []
    assert apply(test_environment, developer) == []
    assert {runtime.key: runtime.failover for runtime in Runtime.objects.all()} == {
        "core01.warehouse": False,
        "external01.erp": True,
        "external02.erp": True,
    }
    assert set(Router.objects.values_list("machine__name", flat=True)) == {"external01", "external02", "core01"}


def test_other_environments_are_left_alone(test_environment: Environment, acceptance: Environment, erp: Connector, developer: User) -> None:
    apply(test_environment, developer)
    assert not Machine.objects.filter(environment=acceptance).exists()
    assert len(sentences(acceptance)) == 8


def test_before_failover_was_transferred_no_router_comes(test_environment: Environment, erp: Connector) -> None:
    Connector.objects.update(failover=False)
    assert not [change for change in architecture.diff(test_environment) if change.kind in ("router", "witness")]
    assert "Runtime external01.erp will be created." in sentences(test_environment)


def test_a_machine_without_failover_gets_no_router(test_environment: Environment, warehouse: Connector) -> None:
    machine = DesignedMachine.objects.create(project=test_environment.project, name="external03", router=True)
    Placement.objects.create(connector=warehouse, machine=machine)
    assert not [change for change in architecture.diff(test_environment) if change.name == "external03" and change.kind == "router"]


def test_a_design_that_changed_since_is_shown_again(
    test_environment: Environment, erp: Connector, warehouse: Connector, developer: User
) -> None:
    seen = architecture.diff(test_environment)
    Placement.objects.filter(connector=warehouse).delete()
    with pytest.raises(Stale) as refusal:
        architecture.apply(test_environment, seen=seen, by=developer)
    assert "Router on external01 will be created." in refusal.value.reasons
    assert "Runtime core01.warehouse will be created." not in refusal.value.reasons
    assert not Machine.objects.exists()


def test_turning_failover_on_changes_the_runtimes_that_are_there(test_environment: Environment, erp: Connector, developer: User) -> None:
    Connector.objects.update(failover=False)
    apply(test_environment, developer)
    Connector.objects.update(failover=True)
    assert sentences(test_environment) == [
        "Router on external01 will be created.",
        "Router on external02 will be created.",
        "Witness on core01 will be created.",
        "Runtime external01.erp will run in failover, from its next deployment on.",
        "Runtime external02.erp will run in failover, from its next deployment on.",
    ]
    apply(test_environment, developer)
    assert all(Runtime.objects.values_list("failover", flat=True))


def test_turning_failover_off_ends_preferences_and_the_cluster(group: FailoverGroup, developer: User, routers_addressed: None) -> None:
    environment = group.environment
    Runtime.objects.filter(machine__name="external01").update(preference="leader")
    Router.objects.update(cluster_known=True)
    Connector.objects.update(failover=False)
    apply(environment, developer)
    assert set(Runtime.objects.values_list("failover", "preference")) == {(False, "none")}
    assert not Router.objects.exists()
    environment.refresh_from_db()
    assert environment.generation == 2, "a cluster that is built anew has higher epochs"


def run(group: FailoverGroup, *runtimes: Runtime) -> None:
    """They lead and follow in failover, by fresh reports."""
    for number, runtime in enumerate(runtimes):
        bundle = fleet.store_bundle(group.environment, content_for(runtime, group))
        fleet.assign(runtime, bundle)
        status = protocol.Status.FOLLOWER if number else protocol.Status.LEADER
        fleet.record_report(runtime.machine, said(runtimes=[said_of(runtime, group, status, digest=bundle.digest)]), now=timezone.now())
    Router.objects.update(cluster_known=True)


def without_failover(group: FailoverGroup, runtime: Runtime, sequence: int) -> None:
    """A deployment gave it a bundle that does not fail over, and it runs that."""
    content = content_for(runtime, group, release=2)
    content = msgspec.structs.replace(content, groups=[msgspec.structs.replace(spec, failover=False) for spec in content.groups])
    bundle = fleet.store_bundle(group.environment, content)
    fleet.assign(runtime, bundle)
    alone = said_of(runtime, group, protocol.Status.SINGLE_NODE, digest=bundle.digest, state=protocol.State.ON)
    fleet.record_report(runtime.machine, said(sequence, runtimes=[alone]), now=timezone.now())
    membership.wake(group.environment_id, runtime.machine.name)


def test_routers_stay_while_anything_runs_in_failover_and_then_go_by_themselves(
    group: FailoverGroup, erp01: Runtime, erp02: Runtime, developer: User, routers_addressed: None
) -> None:
    """Without them both members would stand still, or worse; who takes failover off does so by a deployment."""
    environment = group.environment
    run(group, erp01, erp02)
    before = [ordering.orders_for(runtime.machine, now=timezone.now()).router for runtime in (erp01, erp02)]
    Connector.objects.update(failover=False)
    assert "Router on external01 will be removed once a deployment has taken everything here out of failover." in sentences(environment)
    apply(environment, developer)
    assert [ordering.orders_for(runtime.machine, now=timezone.now()).router for runtime in (erp01, erp02)] == before
    environment.refresh_from_db()
    assert environment.generation == 1 and not fleet.has_routers(environment.pk), "what is deployed now does not fail over"
    assert sentences(environment) == []

    without_failover(group, erp01, 2)
    assert Router.objects.filter(leaving=True).count() == 3, "external02 still runs in failover"
    without_failover(group, erp02, 2)
    assert not Router.objects.exists()
    environment.refresh_from_db()
    assert environment.generation == 2


def test_routers_that_are_leaving_stay_when_failover_comes_back(
    group: FailoverGroup, erp01: Runtime, erp02: Runtime, developer: User, routers_addressed: None
) -> None:
    run(group, erp01, erp02)
    Connector.objects.update(failover=False)
    apply(group.environment, developer)
    Connector.objects.update(failover=True)
    apply(group.environment, developer)
    assert Router.objects.filter(leaving=False, cluster_known=True).count() == 3


def test_a_member_that_stopped_for_good_holds_no_router_back(
    group: FailoverGroup, erp01: Runtime, erp02: Runtime, developer: User, routers_addressed: None
) -> None:
    run(group, erp01, erp02)
    stop(erp01)
    fleet.stop(erp02)  # and its machine is gone
    Machine.objects.filter(name="external02").update(last_report_at=timezone.now() - timedelta(minutes=9))
    Connector.objects.update(failover=False)
    apply(group.environment, developer)
    assert not Router.objects.exists()


def test_a_router_of_a_running_cluster_stays_until_it_was_let_go(group: FailoverGroup, developer: User, routers_addressed: None) -> None:
    Router.objects.update(cluster_known=True)
    Placement.objects.filter(machine__name="external02").delete()
    Runtime.objects.filter(machine__name="external02").update(desired_running=False)
    DesignedMachine.objects.filter(name="external02").delete()
    environment = group.environment
    said = sentences(environment)
    assert "Router on external02 will leave the running cluster with the next deployment (step Deploy routers)." in said
    assert any(line.startswith("Witness on core01 will vote no longer with the next deployment: 1 of the routers vote") for line in said)
    assert any(line.endswith("its log, once its router has left the cluster.") for line in said)
    apply(environment, developer)
    assert Router.objects.get(machine__name="external02").leaving
    assert sentences(environment) == [], "it is on its way, and not offered again"
    environment.refresh_from_db()
    assert environment.generation == 1, "the cluster goes on"


def test_a_leaving_router_that_is_designed_again_stays(group: FailoverGroup, developer: User, routers_addressed: None) -> None:
    Router.objects.update(cluster_known=True)
    DesignedMachine.objects.filter(name="external02").update(router=False)
    apply(group.environment, developer)
    DesignedMachine.objects.filter(name="external02").update(router=True)
    assert any("the running cluster takes it in with the next deployment" in line for line in sentences(group.environment))
    apply(group.environment, developer)
    assert not Router.objects.get(machine__name="external02").leaving


def test_a_running_runtime_is_not_removed(group: FailoverGroup, erp02: Runtime, developer: User) -> None:
    fleet.assign(erp02, fleet.store_bundle(group.environment, content_for(erp02, group)))
    Placement.objects.filter(machine__name="external02").delete()
    DesignedMachine.objects.filter(name="external02").update(router=False)
    for state, running in (("ready", True), ("ready", False), ("stopped", True)):
        Runtime.objects.filter(pk=erp02.pk).update(observed_state=state, desired_running=running)
        with pytest.raises(NotAllowed, match=r"external02.erp still runs: stop it first"):
            apply(group.environment, developer)
    stop(erp02)
    apply(group.environment, developer)
    assert not Runtime.objects.filter(pk=erp02.pk).exists()


def test_a_runtime_on_a_machine_that_is_gone_for_good_can_be_removed_once_it_was_told_to_stop(
    group: FailoverGroup, external02: Machine, erp02: Runtime, developer: User
) -> None:
    Runtime.objects.filter(pk=erp02.pk).update(observed_state="ready", desired_running=False)
    Machine.objects.filter(pk=external02.pk).update(last_report_at=timezone.now() - timedelta(minutes=9))
    DesignedMachine.objects.filter(name="external02").delete()
    apply(group.environment, developer)
    assert not Machine.objects.filter(name="external02").exists()


def test_a_removed_machine_takes_its_members_along_and_leaves_the_history(group: FailoverGroup, erp02: Runtime, admin: User) -> None:
    LeadershipChange.objects.create(group=group, epoch=41, runtime="external02.erp", cause="first", at=timezone.now())
    DesignedMachine.objects.filter(name="external02").delete()
    assert sentences(group.environment) == [
        "Router on external02 will be removed.",
        "Machine external02 will be removed, with its agent's credential and its log.",
        "Runtime external02.erp will be removed.",
    ]
    apply(group.environment, admin)
    assert [member.runtime.key for member in GroupMember.objects.all()] == ["external01.erp"]
    assert group.changes.get().runtime == "external02.erp"


def test_a_machine_that_becomes_a_core_machine_says_so(group: FailoverGroup, developer: User) -> None:
    DesignedMachine.objects.filter(name="core01").update(kind=MachineKind.EXTERNAL, router=False)
    assert "Machine core01 will be external instead of core." in sentences(group.environment)
    apply(group.environment, developer)
    assert Machine.objects.get(name="core01").kind == "external"


def test_a_guard_forbids_it(test_environment: Environment, erp: Connector, developer: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def a_deployment_runs(environment: Environment) -> None:
        raise NotAllowed(f"A deployment runs on {environment.name}.")

    monkeypatch.setattr(architecture, "guards", [a_deployment_runs])
    with pytest.raises(NotAllowed, match="A deployment runs on Test"):
        apply(test_environment, developer)
    assert not Machine.objects.exists()


def test_every_machine_hears_of_the_change(group: FailoverGroup, external01: Machine, warehouse: Connector, developer: User) -> None:
    before = external01.orders_version
    apply(group.environment, developer)
    external01.refresh_from_db()
    assert external01.orders_version == before + 1


def test_the_difference_costs_the_same_queries_however_large(
    test_environment: Environment, warehouse: Connector, developer: User, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(5):
        architecture.diff(test_environment)
    apply(test_environment, developer)
    with django_assert_num_queries(5):
        architecture.diff(test_environment)
