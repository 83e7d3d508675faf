"""An environment's machines as the pages draw them: boxes with runtimes and routers, what was wished, what was heard, what differs.

Reads only, in a fixed number of queries however many machines there are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.core.exceptions import ObjectDoesNotExist

from deployments.models import Activation, ActivationStatus, Release
from portal.models import Environment, MachineKind
from runtimes import boards, protocol
from runtimes.boards import Board, MemberLine
from runtimes.models import Machine, Router, Runtime


@dataclass(frozen=True)
class Part:
    """A runtime's place in one group."""

    board: Board
    line: MemberLine


@dataclass(frozen=True)
class RuntimeBox:
    runtime: Runtime
    state: str  # protocol.RuntimeState; "unknown" when its machine is silent, "absent" when it was never heard of
    reason: str
    release: int | None  # what its process runs, as last heard; the active one where that gave it the very same
    wished: int | None  # what it is ordered to run, likewise
    differs: str  # why its release is not the active one; empty when it is
    parts: list[Part] = field(default_factory=list)

    @property
    def leads(self) -> list[str]:
        """Names of the groups it leads."""
        return [part.board.group.name for part in self.parts if part.line.said.status == protocol.Status.LEADER]

    @property
    def disabled(self) -> list[Part]:
        return [part for part in self.parts if any(button.act == "enable" for button in part.line.buttons)]


@dataclass(frozen=True)
class RouterBox:
    router: Router
    is_witness: bool
    state: str  # protocol.RouterState, or "unknown" when its machine is silent

    @property
    def name(self) -> str:
        return "Witness" if self.is_witness else "Router"


@dataclass(frozen=True)
class MachineBox:
    machine: Machine
    silent: bool  # it has an agent that does not report
    router: RouterBox | None
    runtimes: list[RuntimeBox]

    @property
    def status(self) -> str:
        """ "unregistered", "unknown" or "reporting"."""
        if not self.machine.has_agent:
            return "unregistered"
        return "unknown" if self.silent else "reporting"


def active_releases(environments: Iterable[Environment]) -> dict[int, Release]:
    """The active release per environment id, without its content; one query."""
    rows = Activation.objects.filter(environment__in=environments, status=ActivationStatus.ACTIVE).select_related("release")
    return {row.environment_id: row.release for row in rows.defer("release__content")}


def machine_boxes(
    environment: Environment, active: Release | None, *, now: datetime, found: Sequence[Board] | None = None
) -> list[MachineBox]:
    """Every machine of the environment, the core machine last."""
    found = boards.boards([environment], now=now) if found is None else found
    machines = environment.machines.select_related("router", "environment").prefetch_related(
        "runtimes__connector", "runtimes__desired_bundle", "runtimes__machine"
    )
    boxes = [machine_box(machine, active, found, now=now) for machine in machines]
    return sorted(boxes, key=lambda box: (box.machine.kind == MachineKind.CORE, box.machine.name))


def machine_box(machine: Machine, active: Release | None, found: Sequence[Board], *, now: datetime) -> MachineBox:
    """One machine from rows already read."""
    silent = machine.is_silent(now=now)
    parts: dict[int, list[Part]] = {}
    for board in found:
        for line in board.lines:
            parts.setdefault(line.said.member.runtime_id, []).append(Part(board, line))
    runtimes = sorted(machine.runtimes.all(), key=lambda runtime: runtime.connector.name)
    return MachineBox(
        machine=machine,
        silent=machine.has_agent and silent,
        router=router_box(machine, silent=silent),
        runtimes=[runtime_box(runtime, active, parts.get(runtime.pk, []), silent=silent) for runtime in runtimes],
    )


def router_of(machine: Machine) -> Router | None:
    """The machine's router or witness, or None."""
    try:
        return machine.router
    except ObjectDoesNotExist:
        return None


def router_box(machine: Machine, *, silent: bool) -> RouterBox | None:
    router = router_of(machine)
    if router is None:
        return None
    state = "unknown" if silent and machine.has_agent else router.observed_state
    return RouterBox(router, machine.kind == MachineKind.CORE, state)


def runtime_box(runtime: Runtime, active: Release | None, parts: list[Part], *, silent: bool) -> RuntimeBox:
    heard = runtime.observed_at is not None
    told = "unknown" if silent else runtime.observed_state
    same = active is not None and runtime.bundle_release == active.number
    return RuntimeBox(
        runtime=runtime,
        state=told if heard else "absent",
        reason=runtime.observed_reason,
        release=None if runtime.held else active.number if same and active else runtime.observed_release,
        wished=active.number if same and active else runtime.desired_release,
        differs=difference(runtime, active),
        parts=parts,
    )


def difference(runtime: Runtime, active: Release | None) -> str:
    """Why what this runtime runs is not what was activated; empty when it is, or when there is nothing to compare."""
    wished = runtime.desired_release
    if runtime.held:
        return f"Stopped until it is deployed: {runtime.held}"
    if active is None or runtime.bundle_release == active.number:  # a later release gave it the same, and is active no more
        return ""
    if runtime.observed_release is None:
        return f"Nothing runs here yet; release {active.number} is active." if wished is None else f"Release {wished} is on its way."
    if runtime.observed_release != active.number:
        return f"Runs release {runtime.observed_release}; release {active.number} is active."
    if runtime.desired_bundle_id and runtime.observed_digest and runtime.observed_digest != runtime.desired_bundle_id:
        return f"Runs an earlier deployment of release {active.number}."
    return ""
