"""The Design phase: systems with their connectors, machines, placements; and Apply settings, which settles who runs in failover.

A wish stands in `System.failover` and the placements; Apply settings settles it in `System.failover_applied` and
`DesignedMachine.router`. Acts refuse by portal.errors.NotAllowed with the remedy.
"""

from dataclasses import dataclass, field
from functools import cached_property

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Prefetch, ProtectedError, QuerySet
from django.utils.text import slugify

from portal.errors import Busy, Invalid, NotAllowed, Stale
from portal.models import NAME, Connector, DesignedMachine, MachineKind, Placement, Project, System

MOST_VOTES = 5  # beyond five external machines the first five vote (docs/failover.md, Parts)


def _checked_name(name: str, what: str) -> str:
    try:
        NAME(name)
    except ValidationError as error:
        raise Invalid(f'"{name}" is no name for a {what}. {error.messages[0]}', field="name") from None
    return name


# ----------------------------------------------------------------------------------------------------------------- systems


def systems_of(project: Project) -> QuerySet[System]:
    """The project's systems with connectors, their placements and machines: three queries however many."""
    placements = Prefetch("placements", Placement.objects.select_related("machine").order_by("machine__name"))
    return project.systems.prefetch_related(Prefetch("connectors", Connector.objects.prefetch_related(placements)))


def _check_runtimes(name: str, *, multiple_runtimes: bool, number_of_runtimes: int, failover: bool) -> None:
    if failover and not multiple_runtimes:
        raise Invalid(f"{name} cannot run in failover with one runtime: turn on Multiple runtimes.", field="failover")
    if multiple_runtimes and number_of_runtimes < 2:
        raise Invalid("Multiple runtimes means at least 2: raise the number, or turn Multiple runtimes off.", field="number_of_runtimes")
    if number_of_runtimes > 9:
        raise Invalid("At most 9 runtimes of one connector.", field="number_of_runtimes")


def _check_external(system: System) -> None:
    on_core = Placement.objects.filter(connector__system=system, machine__kind=MachineKind.CORE).select_related("connector", "machine")
    for placement in on_core:
        raise Invalid(
            f"{system.name} cannot run in failover: {placement.connector} is on the core machine {placement.machine}. "
            "Move it to an external machine in Design › Architecture first.",
            field="failover",
        )


@transaction.atomic
def create_system(
    project: Project,
    *,
    name: str,
    description: str = "",
    multiple_runtimes: bool = False,
    number_of_runtimes: int = 1,
    failover: bool = False,
) -> System:
    """A system and its connector, named after it in lower case ("Web shop" → web-shop).

    Raises:
        Invalid: a name that is empty or taken, or failover without several runtimes.
    """
    slug = slugify(name)[:40].strip("-")
    if not slug or not slug[0].isalpha():
        raise Invalid(f'"{name}" gives no connector name: start with a letter.', field="name")
    _check_runtimes(name, multiple_runtimes=multiple_runtimes, number_of_runtimes=number_of_runtimes, failover=failover)
    if project.systems.filter(slug=slug).exists() or project.connectors.filter(name=slug).exists():
        raise Invalid(f"The project has a system {slug} already: choose another name.", field="name")
    system = System.objects.create(
        project=project,
        name=name,
        slug=slug,
        description=description,
        multiple_runtimes=multiple_runtimes,
        number_of_runtimes=number_of_runtimes if multiple_runtimes else 1,
        failover=failover,
    )
    Connector.objects.create(project=project, system=system, name=slug)
    return system


@transaction.atomic
def change_system(
    system: System, *, name: str, description: str, multiple_runtimes: bool, number_of_runtimes: int, failover: bool
) -> System:
    """Change the wish. Failover becomes real by Apply settings. The connector keeps its name.

    Raises:
        Invalid: failover with one runtime, or with a connector on a core machine.
    """
    _check_runtimes(name, multiple_runtimes=multiple_runtimes, number_of_runtimes=number_of_runtimes, failover=failover)
    if failover:
        _check_external(system)
    system.name, system.description = name, description
    system.multiple_runtimes, system.failover = multiple_runtimes, failover
    system.number_of_runtimes = number_of_runtimes if multiple_runtimes else 1
    system.save(update_fields=["name", "description", "multiple_runtimes", "failover", "number_of_runtimes"])
    return system


def remove_system(system: System) -> None:
    """Remove a system with its connectors and flows.

    Raises:
        NotAllowed: a runtime of it, or a group's history, exists in an environment.
    """
    try:
        with transaction.atomic():
            system.delete()
    except ProtectedError as error:
        holders = ", ".join(sorted({str(holder) for holder in error.protected_objects})[:4])
        raise NotAllowed(
            f"{system.name} was applied to an environment ({holders}) and its history is kept. Take it off its machines in "
            "Design › Architecture and apply that; the system itself stays."
        ) from None


# ---------------------------------------------------------------------------------------------------------------- machines


def add_machine(project: Project, *, name: str, kind: str) -> DesignedMachine:
    """Draw a machine. Raises Invalid for a name that is not allowed or taken."""
    _checked_name(name, "machine")
    try:
        with transaction.atomic():
            return DesignedMachine.objects.create(project=project, name=name, kind=MachineKind(kind))
    except IntegrityError:
        raise Invalid(f"The project has a machine {name} already: choose another name.", field="name") from None


def rename_machine(machine: DesignedMachine, name: str) -> None:
    """Another name. In an environment that is another machine: the next Apply there removes the old one and adds the new one.

    Raises:
        Invalid: a name that is not allowed or taken.
    """
    _checked_name(name, "machine")
    if machine.project.designed_machines.filter(name=name).exclude(pk=machine.pk).exists():
        raise Invalid(f"The project has a machine {name} already: choose another name.", field="name")
    machine.name = name
    machine.save(update_fields=["name"])


def remove_machine(machine: DesignedMachine) -> None:
    """Take a machine out of the drawing; environments follow at their next Apply.

    Raises:
        NotAllowed: connectors are still on it.
    """
    connectors = [str(placement.connector) for placement in machine.placements.select_related("connector")]
    if connectors:
        raise NotAllowed(f"{machine} still carries {', '.join(connectors)}: move them to another machine first.")
    machine.delete()


# -------------------------------------------------------------------------------------------------------------- placements


@transaction.atomic
def place(connector: Connector, machine: DesignedMachine) -> Placement:
    """Put a connector on a machine.

    Raises:
        Invalid: of another project.
        NotAllowed: it is there already, all its runtimes are placed, or it runs in failover and the machine is core.
    """
    if connector.project_id != machine.project_id:
        raise Invalid(f"{machine} belongs to another project.", field="machine")
    system = connector.system
    placed = list(connector.placements.select_related("machine"))
    if machine.pk in {placement.machine_id for placement in placed}:
        raise NotAllowed(f"{connector} is on {machine} already.")
    if system.failover and machine.kind == MachineKind.CORE:
        raise NotAllowed(f"{system.name} runs in failover, so {connector} belongs on external machines; {machine} is a core machine.")
    if len(placed) >= system.number_of_runtimes:
        where = ", ".join(sorted(str(placement.machine) for placement in placed))
        remedy = "raise its Number of runtimes" if system.multiple_runtimes else "turn on its Multiple runtimes"
        raise NotAllowed(
            f"{connector} is placed as often as it has runtimes ({where}): move one of them, or {remedy} in Design › Solution."
        )
    return Placement.objects.create(connector=connector, machine=machine)


@transaction.atomic
def move(connector: Connector, origin: DesignedMachine, target: DesignedMachine) -> Placement:
    """Take a connector from one machine to another in one stroke. Raises as `unplace` and `place` do; nothing is changed then."""
    unplace(connector, origin)
    return place(connector, target)


def unplace(connector: Connector, machine: DesignedMachine) -> None:
    """Take a connector off a machine. Raises NotAllowed when it is not there."""
    deleted, _ = Placement.objects.filter(connector=connector, machine=machine).delete()
    if not deleted:
        raise NotAllowed(f"{connector} is not on {machine}.")


# ---------------------------------------------------------------------------------------------------------- apply settings


@dataclass(frozen=True)
class Settings:
    """What Apply settings would settle; and what stands against it."""

    failover_on: list[System] = field(default_factory=list)
    failover_off: list[System] = field(default_factory=list)
    routers_on: list[DesignedMachine] = field(default_factory=list)
    routers_off: list[DesignedMachine] = field(default_factory=list)
    witness_on: list[DesignedMachine] = field(default_factory=list)
    witness_off: list[DesignedMachine] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # Apply is refused with these
    warnings: list[str] = field(default_factory=list)  # worth knowing, no obstacle

    @cached_property
    def sentences(self) -> list[str]:
        """The pop-up, line by line."""
        return [
            *(f"{system.name} gets failover ({_connectors(system)})." for system in self.failover_on),
            *(f"{system.name} no longer runs in failover ({_connectors(system)})." for system in self.failover_off),
            *(f"A router comes on the external machine {machine}." for machine in self.routers_on),
            *(f"The router on {machine} goes." for machine in self.routers_off),
            *(f"The witness comes on the core machine {machine}: a third vote, nothing else." for machine in self.witness_on),
            *(f"The witness on {machine} goes." for machine in self.witness_off),
        ]

    @property
    def anything(self) -> bool:
        return bool(self.sentences)

    @property
    def fingerprint(self) -> str:
        """What a person confirmed: sent back with Apply, so that a colleague's change in between is not settled unseen."""
        return "\n".join(self.sentences)


def _connectors(system: System) -> str:
    connectors = [connector.name for connector in system.connectors.all()]
    return f"connector{'s' if len(connectors) > 1 else ''} {', '.join(connectors)}"


def _placement_findings(system: System) -> tuple[list[str], list[str]]:
    """Problems of a system that shall run in failover; warnings of any other."""
    found = []
    for connector in system.connectors.all():
        machines = [placement.machine for placement in connector.placements.all()]
        if len(machines) != system.number_of_runtimes:
            where = f"placed on {', '.join(str(machine) for machine in machines)}" if machines else "placed nowhere"
            difference = system.number_of_runtimes - len(machines)
            remedy = f"place it on {difference} more" if difference > 0 else f"take it off {-difference} or raise the number"
            found.append(f"{connector} has {system.number_of_runtimes} runtimes and is {where}: {remedy}.")
        if system.failover:
            found += [
                f"{connector} runs in failover and is on the core machine {machine}: move it to an external machine."
                for machine in machines
                if machine.kind == MachineKind.CORE
            ]
    return (found, []) if system.failover else ([], found)


def votes(externals: int) -> int:
    """How many external machines vote."""
    return min(externals, MOST_VOTES)


def pending_settings(project: Project) -> Settings:
    """Where the drawing differs from what is settled. Four queries."""
    systems = list(systems_of(project))
    machines = list(project.designed_machines.all())
    externals = [machine for machine in machines if machine.kind == MachineKind.EXTERNAL]
    cores = [machine for machine in machines if machine.kind == MachineKind.CORE]
    problems: list[str] = []
    warnings: list[str] = []
    for system in systems:
        against, notes = _placement_findings(system)
        problems += against
        warnings += notes

    in_failover = any(system.failover for system in systems)
    routers = externals if in_failover else []
    witnesses: list[DesignedMachine] = []
    if in_failover and votes(len(externals)) % 2 == 0 and externals:
        witnesses = sorted(cores, key=lambda machine: not machine.router)[:1]
        if not witnesses:
            number = {2: "Two", 4: "Four"}[votes(len(externals))]
            problems.append(
                f"{number} votes without a witness cannot settle who leads when the machines lose sight of each other: "
                "add a core machine, or one more external machine."
            )
    return Settings(
        failover_on=[system for system in systems if system.failover and not system.failover_applied],
        failover_off=[system for system in systems if system.failover_applied and not system.failover],
        routers_on=[machine for machine in routers if not machine.router],
        routers_off=[machine for machine in externals if machine.router and machine not in routers],
        witness_on=[machine for machine in witnesses if not machine.router],
        witness_off=[machine for machine in cores if machine.router and machine not in witnesses],
        problems=problems,
        warnings=warnings,
    )


@transaction.atomic
def apply_settings(project: Project, *, seen: str | None = None) -> Settings:
    """Settle the pending settings: who runs in failover, and which machines get a router or the witness.

    `seen` is the `Settings.fingerprint` the person confirmed (None: a script that takes what comes).

    Raises:
        NotAllowed: something stands against it (`reasons`), or there is nothing to apply.
        Stale: the drawing changed since the person looked.
    """
    settings = pending_settings(project)
    if seen is not None and seen.split() != settings.fingerprint.split():
        raise Stale("The design changed since you looked. This is what would be applied now.")
    if settings.problems:
        raise NotAllowed("These settings cannot be applied yet.", reasons=settings.problems)
    if not settings.anything:
        raise NotAllowed("There is nothing to apply: the settings are as drawn.")
    wanted = {
        True: [machine.pk for machine in settings.routers_on + settings.witness_on],
        False: [machine.pk for machine in settings.routers_off + settings.witness_off],
    }
    for on, machines in wanted.items():
        moved = DesignedMachine.objects.filter(pk__in=machines, router=not on).update(router=on)
        if moved != len(machines):
            raise Busy("A colleague applied settings just now. Look again.")
    System.objects.filter(pk__in=[system.pk for system in settings.failover_on]).update(failover_applied=True)
    System.objects.filter(pk__in=[system.pk for system in settings.failover_off]).update(failover_applied=False)
    return settings
