"""Rows for tests, made the short way. Journeys make theirs through the product's own acts instead."""

from datetime import datetime
from typing import Any

from django.contrib.auth.models import User
from django.utils import timezone

from deployments import frozen
from deployments.models import Deployment, Release, RunStatus, StepKind, StepRun
from portal.models import (
    Connector,
    DesignedMachine,
    Environment,
    EnvironmentKind,
    Flow,
    Group,
    MachineKind,
    Membership,
    Placement,
    Project,
    Role,
    System,
    Team,
)
from runtimes.models import FailoverGroup, GroupMember, Machine, Router, Runtime
from runtimes.protocol import RuntimeState, State, Status


def person(name: str, team: Team | None = None, role: Role = Role.VIEWER) -> User:
    user = User.objects.create_user(name, f"{name}@example.com", "baton")
    if team:
        Membership.objects.create(team=team, user=user, role=role)
    return user


def project(team: Team, slug: str = "webshop") -> Project:
    """A project with its three environments."""
    made = Project.objects.create(team=team, name=slug.capitalize(), slug=slug)
    for position, kind in enumerate(EnvironmentKind):
        Environment.objects.create(project=made, kind=kind, position=position)
    return made


def failover_design(project: Project) -> Connector:
    """ERP in failover on external01 and external02, witness on core01; flow erp-orders in its group, as after Create › transfer."""
    system = System.objects.create(
        project=project, name="ERP", slug="erp", multiple_runtimes=True, number_of_runtimes=2, failover=True, failover_applied=True
    )
    connector = Connector.objects.create(project=project, system=system, name="erp", failover=True)
    for name, kind in (("external01", MachineKind.EXTERNAL), ("external02", MachineKind.EXTERNAL), ("core01", MachineKind.CORE)):
        machine = DesignedMachine.objects.create(project=project, name=name, kind=kind, router=True)
        if kind == MachineKind.EXTERNAL:
            Placement.objects.create(connector=connector, machine=machine)
    group = Group.objects.create(connector=connector, name="erp-orders")
    Flow.objects.create(
        connector=connector,
        name="erp-orders",
        group=group,
        inbound_kind="file",
        inbound_settings={"folder": "${erp.outbox}"},
        outbound_kind="queue",
        outbound_settings={"url": "${queues.url}", "queue": "orders", "prefix": "${queues.prefix}"},
    )
    return connector


def applied(environment: Environment, connector: Connector) -> FailoverGroup:
    """The environment as after Apply, with joined agents that have just reported: machines, routers, runtimes, group and members."""
    now = timezone.now()
    group = connector.groups.get()
    failover_group = FailoverGroup.objects.create(environment=environment, group=group, name=group.name)
    for designed in environment.project.designed_machines.all():
        machine = Machine.objects.create(environment=environment, name=designed.name, kind=designed.kind, joined_at=now, last_report_at=now)
        if designed.router:
            Router.objects.create(machine=machine)
        if designed.placements.filter(connector=connector).exists():
            runtime = Runtime.objects.create(environment=environment, machine=machine, connector=connector, failover=True)
            GroupMember.objects.create(group=failover_group, runtime=runtime)
    return failover_group


def deployed(environment: Environment, release: Release, **more: Any) -> Deployment:
    """A deployment that ended well, with the one step that brought the release."""
    facts = {"status": RunStatus.SUCCEEDED, "started_at": timezone.now()} | more
    deployment = Deployment.objects.create(environment=environment, release=release, **facts)
    StepRun.objects.create(deployment=deployment, number=1, kind=StepKind.DEPLOY_MACHINE, machine="external01", status=RunStatus.SUCCEEDED)
    return deployment


def given(deployment: Deployment, *runtimes: str) -> Deployment:
    """The values of now, frozen for the deployment: these runtimes ("external01.erp"; none: all) run with them."""
    frozen.freeze(deployment, by=None, now=timezone.now())
    for runtime in Runtime.objects.filter(environment=deployment.environment):
        if not runtimes or runtime.key in runtimes:
            frozen.given(runtime, frozen.of(deployment))
    return deployment


def heard(
    group: FailoverGroup,
    machine: str,
    status: Status | str = Status.FOLLOWER,
    *,
    at: datetime | None = None,
    state: State | str | None = None,
    epoch: int = 41,
    release: int | None = 1,
    **more: Any,
) -> GroupMember:
    """What was last reported of the group's member on a machine; a later call replaces it."""
    member = GroupMember.objects.select_related("runtime__machine", "runtime__connector").get(group=group, runtime__machine__name=machine)
    runs = (Status.LEADER, Status.SINGLE_NODE)
    facts = {
        "observed_status": status,
        "observed_state": state or (State.ON if status in runs else State.OFF),
        "observed_epoch": 0 if status == Status.SINGLE_NODE else epoch,
        "observed_reason": f"{machine} says so.",
        "observed_ready": status in (Status.LEADER, Status.FOLLOWER),
        "observed_disabled": status == Status.DISABLED,
        "observed_at": at or timezone.now(),
        **more,
    }
    GroupMember.objects.filter(pk=member.pk).update(**facts)
    Runtime.objects.filter(pk=member.runtime_id).update(
        observed_release=release, observed_state=RuntimeState.READY, observed_pid=4711, observed_at=facts["observed_at"]
    )
    if status == Status.LEADER:
        FailoverGroup.objects.filter(pk=group.pk, epoch__lt=epoch).update(epoch=epoch)
    member.refresh_from_db()
    return member
