"""The environment Test as applied, its agents, and short ways to say what an agent reports."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.utils import timezone

from portal.models import Connector, Environment
from runtimes import fleet, joining, protocol
from runtimes.models import FailoverGroup, Machine, Router, Runtime
from tests import factories

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def group(test_environment: Environment, erp: Connector) -> FailoverGroup:
    return factories.applied(test_environment, erp)


@pytest.fixture
def external01(group: FailoverGroup) -> Machine:
    return Machine.objects.get(environment=group.environment, name="external01")


@pytest.fixture
def external02(group: FailoverGroup) -> Machine:
    return Machine.objects.get(environment=group.environment, name="external02")


@pytest.fixture
def core01(group: FailoverGroup) -> Machine:
    return Machine.objects.get(environment=group.environment, name="core01")


@pytest.fixture
def erp01(external01: Machine) -> Runtime:
    return Runtime.objects.select_related("machine", "connector").get(machine=external01)


@pytest.fixture
def erp02(external02: Machine) -> Runtime:
    return Runtime.objects.select_related("machine", "connector").get(machine=external02)


@pytest.fixture
def routers_addressed(group: FailoverGroup) -> None:
    fleet.assign_routers(
        group.environment, {"external01": ("10.0.0.1", 7400), "external02": ("10.0.0.2", 7400), "core01": ("10.0.0.3", 7400)}
    )


@pytest.fixture
def file_database(transactional_db: None, tmp_path: Path) -> Iterator[None]:
    """For races: a database in a file, with the locks of the real one, holding what the fixtures before this one made.
    (SQLite in memory knows no waiting for a lock.) PostgreSQL needs nothing."""
    default = connections["default"]
    default.ensure_connection()
    if default.vendor != "sqlite":
        yield
        return
    memory, name = default.connection, default.settings_dict["NAME"]
    copy = sqlite3.connect(tmp_path / "portal.sqlite3")
    memory.backup(copy)
    copy.close()
    default.connection, default.settings_dict["NAME"] = None, str(tmp_path / "portal.sqlite3")
    yield
    default.close()
    default.connection, default.settings_dict["NAME"] = memory, name


def said(sequence: int = 1, *, started_at: str = "2026-11-22T11:00:00Z", **more: object) -> protocol.Report:
    """A report of an agent."""
    return protocol.Report(
        **{"agent_version": "0.1.0", "boot_id": "boot-1", "started_at": started_at, "orders_version": 1, "sequence": sequence, **more}  # type: ignore[arg-type]
    )


def said_of(
    runtime: Runtime,
    group: FailoverGroup | None = None,
    status: protocol.Status = protocol.Status.FOLLOWER,
    *,
    epoch: int = 0,
    state: protocol.State | None = None,
    release: int | None = 1,
    **more: object,
) -> protocol.RuntimeReport:
    """What an agent says of a ready runtime, and of its part in a group."""
    on = state or (protocol.State.ON if status == protocol.Status.LEADER else protocol.State.OFF)
    groups = []
    if group is not None:
        groups = [
            protocol.GroupReport(group=group.group.key, status=status, state=on, reason=f"{runtime.key} says so", epoch=epoch, ready=True)
        ]
    return protocol.RuntimeReport(
        **{"key": runtime.key, "state": protocol.RuntimeState.READY, "pid": 4711, "release": release, "groups": groups, **more}  # type: ignore[arg-type]
    )


def joined(machine: Machine, by: User) -> str:
    """The credential of a freshly joined agent."""
    token = joining.register(machine, by=by)
    return joining.join(protocol.JoinRequest(token=token, agent_version="0.1.0"), now=timezone.now()).credential


def content_for(
    runtime: Runtime, group: FailoverGroup | None, *, release: int = 1, members: list[str] | None = None
) -> protocol.BundleContent:
    """A bundle with one flow in the group, and one without a group."""
    key = group.group.key if group else None
    inbound = protocol.Component(kind=protocol.ComponentKind.FILE, settings={"folder": "/data/in"})
    outbound = protocol.Component(kind=protocol.ComponentKind.LOG)
    flows = [protocol.FlowSpec(id="f-free", name="free", version="1.0.0", inbound=inbound, outbound=outbound)]
    groups = []
    if group and key:
        flows.append(protocol.FlowSpec(id="f-orders", name="erp-orders", version="1.0.0", inbound=inbound, outbound=outbound, group=key))
        groups.append(protocol.GroupSpec(id=key, name=group.name, failover=True, members=members or ["external01.erp", "external02.erp"]))
    return protocol.BundleContent(
        environment="test", machine=runtime.machine.name, connector="erp", release=release, flows=flows, groups=groups
    )


def routers_of(environment: Environment) -> dict[str, Router]:
    return {router.machine.name: router for router in Router.objects.filter(machine__environment=environment).select_related("machine")}
