"""The demonstration: team Demo, project Webshop, three machines on one host; made on the first start, by the product's own acts.

`make` is one transaction: a start that was killed half-way begins it anew. From then on the project is the person's: nothing here
changes it again, except the address of the queues, when the broker of this home had to move.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from deployments import plans, releases, rollout
from deployments.models import BROKEN, LIVE, Deployment, RunStatus, StepRun
from portal import creation, design, properties, readiness, router_addresses
from portal.errors import NotAllowed
from portal.models import Connector, Environment, EnvironmentKind, Flow, MachineKind, Membership, Project, Property, Role, Team
from runtimes import architecture, failover, joining
from runtimes.models import Machine, Runtime
from runtimes.protocol import Preference

TEAM, PROJECT = "demo", "webshop"
MACHINES = {"core01": MachineKind.CORE, "external01": MachineKind.EXTERNAL, "external02": MachineKind.EXTERNAL}
PASSWORD = "baton"  # noqa: S105 - in the demonstration only; the runner prints it
PEOPLE = {"admin": Role.ADMINISTRATOR, "developer": Role.DEVELOPER, "operator": Role.OPERATOR, "viewer": Role.VIEWER}
# system, its connector, its flow, the queue it feeds, and the machine preferred to lead
SOURCES = (("ERP", "erp", "erp-orders", "orders", "external01"), ("Tills", "tills", "tills-sales", "sales", "external02"))
QUEUE = {"url": "${queues.url}", "prefix": "${queues.prefix}"}


@dataclass(frozen=True)
class Place:
    """What the demonstration must know of this host: BATON_HOME, the queues' address and prefix, the routers' ports."""

    home: Path
    queues_url: str
    queues_prefix: str
    failover_ports: Mapping[str, int]  # by machine

    @property
    def memory(self) -> Path:
        """A file that says the demonstration was made here, which address of the queues was filled in, and which one was deployed."""
        return self.home / "demonstration.json"

    def folder(self, *parts: str) -> Path:
        return self.home.joinpath("demo", *parts)


def environment() -> Environment | None:
    """Webshop Test; None when there is no demonstration (any more)."""
    return Environment.objects.filter(project__slug=PROJECT, project__team__slug=TEAM, kind=EnvironmentKind.TEST).first()


def prepare(place: Place) -> str:
    """Make the demonstration when this home never had one; give every agent that has to join its token. Returns a sentence."""
    for folder in (("erp", "outbox"), ("tills", "outbox"), ("warehouse", "inbox")):
        place.folder(*folder).mkdir(parents=True, exist_ok=True)
    known = _remembered(place)
    test = environment()
    if test is None and known is None:
        with transaction.atomic():
            test = make(place)
        said = "the demonstration was made: team Demo, project Webshop"
    else:
        said = "the demonstration is as you left it" if test else "there is no demonstration any more"
        if test and known and known["filled_in"] != place.queues_url and _move_queues(test, known["filled_in"], place):
            said = "the queues have another address now: it is filled in and will be deployed"
    if test:
        _give_tokens(test, place)
    _remember(place, filled_in=place.queues_url)
    return said


def make(place: Place) -> Environment:
    """Everything but the deployment, in the order a team would do it."""
    admin = _people()
    project = _project()
    _draw(project)
    _create(project, by=admin)
    test = project.environments.get(kind=EnvironmentKind.TEST)
    architecture.apply(test, seen=None, by=admin)
    _fill_in(test, place, by=admin)
    for _, connector, _, _, preferred in SOURCES:
        runtime = Runtime.objects.select_related("machine", "connector").get(
            environment=test, connector__name=connector, machine__name=preferred
        )
        failover.prefer(runtime, Preference.LEADER)
    plans.default_plan(test)
    release = releases.build(project, name="First release", note="Made with the demonstration.", by=admin)
    releases.activate(release, test, by=admin, now=timezone.now())
    return test


def _people() -> User:
    team = Team.objects.create(name="Demo", slug=TEAM)
    for name, role in PEOPLE.items():
        person = User.objects.filter(username=name).first() or User.objects.create_user(name, f"{name}@demo.invalid", PASSWORD)
        if role == Role.ADMINISTRATOR:
            person.is_staff = person.is_superuser = True
            person.save(update_fields=["is_staff", "is_superuser"])
        Membership.objects.create(team=team, user=person, role=role)
    return User.objects.get(username="admin")


def _project() -> Project:
    project = Project.objects.create(
        team=Team.objects.get(slug=TEAM),
        name="Webshop",
        slug=PROJECT,
        description="Orders of the ERP and sales of the tills reach the warehouse, whichever machine fails.",
    )
    for position, kind in enumerate(EnvironmentKind):
        Environment.objects.create(project=project, kind=kind, position=position)
    return project


def _draw(project: Project) -> None:
    """Design: systems, machines, placements; then Apply settings, which adds routers and witness."""
    machines = {name: design.add_machine(project, name=name, kind=kind) for name, kind in MACHINES.items()}
    for name, connector, *_ in SOURCES:
        design.create_system(project, name=name, multiple_runtimes=True, number_of_runtimes=2, failover=True)
        for machine in ("external01", "external02"):
            design.place(Connector.objects.get(project=project, name=connector), machines[machine])
    design.create_system(project, name="Warehouse")
    design.place(Connector.objects.get(project=project, name="warehouse"), machines["core01"])
    design.apply_settings(project)


def _create(project: Project, *, by: User) -> None:
    """Create: flows, failover transferred from Design, groups, first versions."""
    warehouse = Connector.objects.get(project=project, name="warehouse")
    made = []
    for _, name, flow, queue, _ in SOURCES:
        connector = Connector.objects.get(project=project, name=name)
        made.append(
            creation.save_flow(
                Flow(connector=connector),
                name=flow,
                inbound_kind="file",
                inbound_settings={"folder": f"${{{name}.outbox}}"},
                outbound_kind="queue",
                outbound_settings={**QUEUE, "queue": queue},
            )
        )
        creation.transfer_failover(connector, {flow: flow})
        made.append(
            creation.save_flow(
                Flow(connector=warehouse),
                name=f"warehouse-{queue}",
                inbound_kind="queue",
                inbound_settings={**QUEUE, "queue": queue},
                outbound_kind="file",
                outbound_settings={"folder": "${warehouse.inbox}", "receipts": "${warehouse.receipts}"},
            )
        )
    for saved in made:
        saved.refresh_from_db()
        creation.save_version(saved, "major", "Made with the demonstration.", by=by)


def _fill_in(test: Environment, place: Place, *, by: User) -> None:
    values = {
        "erp.outbox": str(place.folder("erp", "outbox")),
        "tills.outbox": str(place.folder("tills", "outbox")),
        "warehouse.inbox": str(place.folder("warehouse", "inbox")),
        "warehouse.receipts": str(place.folder("warehouse", "received.jsonl")),
        "queues.prefix": place.queues_prefix,
    }
    for machine, port in place.failover_ports.items():
        address_key, port_key = router_addresses.failover_keys(machine)
        values |= {address_key: "127.0.0.1", port_key: str(port)}  # all three machines are this host, on purpose
    router_addresses.mark_one_host(test, True, by=by)
    for key, value in values.items():
        properties.set_value(test, key, value, by=by)
    properties.set_value(test, "queues.url", place.queues_url, secret=True, by=by)


def _remembered(place: Place) -> dict[str, str] | None:
    """{"filled_in": …, "deployed": …}: addresses of the queues; None when no demonstration was ever made here."""
    try:
        known = json.loads(place.memory.read_text())
        return {"filled_in": str(known["filled_in"]), "deployed": str(known["deployed"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _remember(place: Place, **changes: str) -> None:
    before = _remembered(place) or {"filled_in": place.queues_url, "deployed": place.queues_url}
    _write_private(place.memory, json.dumps(before | changes))


def _move_queues(test: Environment, before: str, place: Place) -> bool:
    """The broker has another address than at the last start: fill it in wherever the old one stands. It works from the next deployment
    on, so `deployment_due` then asks for one. False: a person has filled in another address, which is left alone."""
    rows = [row for row in Property.objects.filter(environment=test, key="queues.url") if row.reveal() == before]
    for row in rows:
        properties.set_value(test, row.key, place.queues_url, machine=row.machine, connector=row.connector, by=None)
    if not rows:
        _remember(place, deployed=place.queues_url)
    return bool(rows)


def _give_tokens(test: Environment, place: Place) -> None:
    """A one-time token for each machine whose agent has yet to join, or lost its folder."""
    admin = User.objects.filter(is_superuser=True).order_by("pk").first()
    for machine in Machine.objects.filter(environment=test, name__in=MACHINES):
        joined = machine.has_agent and (place.home / "machines" / machine.name / "identity.json").exists()
        if admin and not joined:
            _write_private(place.home / "tokens" / machine.name, joining.register(machine, by=admin))


def _write_private(file: Path, text: str) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".tmp")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as stream:
        stream.write(text)
    draft.replace(file)


# ------------------------------------------------------------------------------------------------------- the first deployment


def unheard(test: Environment, *, since: datetime) -> list[str]:
    """Machines whose agent has not reported since then."""
    heard = Machine.objects.filter(environment=test, last_report_at__gte=since).values_list("name", flat=True)
    return sorted(set(Machine.objects.filter(environment=test).values_list("name", flat=True)) - set(heard))


def deployment_due(test: Environment, place: Place) -> Deployment | bool:
    """What this start has to see through: a deployment under way or broken off before any succeeded; True when one must be made (the
    first, or one that carries the queues' new address); False when nothing is due."""
    latest = test.deployments.order_by("-pk").first()
    if latest is not None and latest.status in LIVE:
        return latest
    if not test.deployments.filter(status=RunStatus.SUCCEEDED).exists():
        return latest if latest is not None and latest.status in BROKEN else latest is None
    known = _remembered(place)
    return known is not None and known["deployed"] != place.queues_url


def begin(due: Deployment | bool, test: Environment, place: Place) -> Deployment:
    """Start, or go on with, what is due. Raises NotAllowed with its reasons."""
    by = User.objects.filter(username="admin").first()
    now = timezone.now()
    if isinstance(due, Deployment):
        if due.status in BROKEN and by is not None:
            rollout.resume(due, by=by, now=now)
        return due
    release = releases.active(test)
    if release is None:
        raise NotAllowed("No release is active on Test: activate one on the page Releases.")
    deployment = rollout.prepare(release, on=test, by=by, now=now)
    _remember(place, deployed=place.queues_url)
    return deployment


def news(deployment: Deployment, told: set[int]) -> Iterator[str]:
    """A line for each step that ended since it was asked last; `told` remembers them."""
    steps = list(StepRun.objects.filter(deployment=deployment))
    for step in steps:
        if step.ended_at and step.started_at and step.pk not in told:
            told.add(step.pk)
            took = (step.ended_at - step.started_at).total_seconds()
            ending = RunStatus(step.status).label.lower()
            reason = "" if step.status == RunStatus.SUCCEEDED else f": {step.reason}"
            yield f"{step.number}/{len(steps)} {step.title}: {ending} after {took:.1f} s{reason}"


def first_deployment_ended_well(now: datetime) -> str:
    """A readiness check, for `make run` only: nothing of the demonstration runs before its first deployment."""
    started_at = readiness.stack_started_at()
    test = environment() if started_at else None
    if started_at is None or test is None or test.deployments.filter(status=RunStatus.SUCCEEDED).exists():
        return ""
    deployment = test.deployments.order_by("-pk").first()
    if deployment and deployment.status == RunStatus.CANCELLED and deployment.created_at < started_at:
        return ""  # at an earlier start, by a person who knows why
    if deployment is None:
        return "The first deployment has not begun yet."
    step = rollout.next_step(deployment)
    where = f" at “{step.title}”{': ' + step.reason if step.reason else ''}" if step else ""
    return f"The first deployment is {RunStatus(deployment.status).label.lower()}{where}".rstrip(".") + "."
