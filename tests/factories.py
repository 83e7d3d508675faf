"""Rows for tests, made the short way. Journeys make theirs through the product's own acts instead."""

from django.contrib.auth.models import User
from django.utils import timezone

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
