"""What the tabs of a machine's page show. Reads only, in a fixed number of queries however much runs there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from deployments.landscape import MachineBox, Part, RuntimeBox
from portal import router_addresses
from portal.models import Property
from runtimes import boards, clocks, items, protocol
from runtimes.models import Machine, Router, Runtime


@dataclass(frozen=True)
class Reach:
    """What one machine says of the way to another's Internal IP : Failover port, and when it said so."""

    peer: protocol.PeerReport
    said_by: Machine
    silent: bool  # who said it is silent now: the word is old

    @property
    def since(self) -> datetime | None:
        return clocks.read(self.peer.since)


@dataclass(frozen=True)
class Setting:
    """A failover setting of the machine: its placeholder and what that resolves to."""

    label: str
    key: str
    value: str | None
    suggestion: str = ""  # what the agent measured on its machine

    @property
    def placeholder(self) -> str:
        return f"${{{self.key}}}"


@dataclass(frozen=True)
class Preferring:
    """A failover runtime of the machine, its preference, and its siblings elsewhere."""

    box: RuntimeBox
    siblings: list[Runtime]
    groups: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FlowLine:
    """An inbound of a runtime: its group and status, whether it runs, and what it did."""

    runtime: Runtime
    flow: protocol.FlowReport
    part: Part | None  # its place in its group; None: it starts and stops by itself
    stopped: bool  # a person stopped it
    unknown: bool  # the machine is silent: On and Off are what was last heard

    @property
    def state(self) -> str:
        if self.unknown:
            return "unknown"
        if self.flow.on:
            return "stopping" if self.stopped and not self.flow.group else "on"
        return "off"

    @property
    def kept_at(self) -> datetime | None:
        return items.kept_at(self.flow, self.runtime, silent=self.unknown)

    @property
    def last_activity(self) -> datetime | None:
        return clocks.read(self.flow.last_activity)


def settings_of(machine: Machine, values: Sequence[Property]) -> list[Setting]:
    """Internal IP address and Failover port: placeholder and value."""
    address_key, port_key = router_addresses.failover_keys(machine.name)
    address, port = router_addresses.failover_address(machine.name, values)
    free_port = taken_for(machine) or machine.suggested_port
    port_suggested = str(free_port) if free_port else ""
    return [
        Setting("Internal IP address", address_key, address, machine.suggested_address),
        Setting("Failover port", port_key, port, port_suggested),
    ]


def suggested(machine: Machine, values: Sequence[Property]) -> dict[str, str]:
    """What the agent measured for settings that have no value yet, and for a port that is taken on its machine, by key."""
    taken = taken_for(machine)
    return {
        setting.key: setting.suggestion
        for setting in settings_of(machine, values)
        if setting.suggestion and (not setting.value or (taken is not None and setting.suggestion == str(taken) != setting.value))
    }


def taken_for(machine: Machine) -> int | None:
    """A port that is free on the machine, where its router's ordered one is taken by another program. None: it is not."""
    router: Router | None = getattr(machine, "router", None)
    return router.observed_free_port if router is not None else None


def reach(routers: Iterable[Router], *, now: datetime) -> list[Reach]:
    """Everything the environment's machines say of each other."""
    found = []
    for router in routers:
        silent = router.machine.is_silent(now=now)
        for peer in router.observed_peers:
            found.append(Reach(msgspec.convert(peer, protocol.PeerReport), router.machine, silent))
    return sorted(found, key=lambda reach: (reach.peer.machine, reach.said_by.name))


def flow_lines(box: MachineBox, connector: str = "") -> list[FlowLine]:
    """Every inbound on the machine (or of one of its runtimes), as last reported."""
    lines = []
    for runtime in box.runtimes:
        if connector and runtime.runtime.connector.name != connector:
            continue
        parts = {part.board.group.group.key: part for part in runtime.parts}
        for row in runtime.runtime.observed_flows:
            flow = msgspec.convert(row, protocol.FlowReport)
            stopped = flow.flow in runtime.runtime.desired_stopped_flows
            part = parts.get(flow.group) if flow.group else None
            lines.append(FlowLine(runtime.runtime, flow, part, stopped, runtime.state == "unknown"))
    return lines


def preferring(box: MachineBox, siblings: Iterable[Runtime]) -> list[Preferring]:
    """The failover runtimes of the machine with their siblings on other machines."""
    elsewhere: dict[int, list[Runtime]] = {}
    for sibling in siblings:
        elsewhere.setdefault(sibling.connector_id, []).append(sibling)
    return [
        Preferring(runtime, elsewhere.get(runtime.runtime.connector_id, []), [part.board.group.name for part in runtime.parts])
        for runtime in box.runtimes
        if runtime.runtime.failover
    ]


def consequences(boxes: Sequence[RuntimeBox], act: str) -> list[str]:
    """What starting, stopping or restarting these runtimes means, one sentence each."""
    together = {box.runtime.pk for box in boxes}
    return [sentence for box in boxes for sentence in [f"{VERBS[act]} {box.runtime.key}.", *lost_leads(box, act, together)]]


VERBS = {"start": "Starts the process of", "stop": "Stops the process of", "restart": "Stops and starts again"}


def lost_leads(box: RuntimeBox, act: str, together: set[int]) -> list[str]:
    """Who takes over the groups this runtime leads, when it stops (`together`: runtimes that stop with it)."""
    if act == "start":
        return []
    sentences = []
    for part in box.parts:
        name = part.board.group.name
        if part.line.said.status == protocol.Status.LEADER:
            heirs = [line for line in part.board.lines if may_take_over(line) and line.said.member.runtime_id not in together]
            heir = (
                f"{heirs[0].machine.name} takes over." if heirs else "nobody is ready to take over, so nothing is taken until it is back."
            )
            sentences.append(f"It leads {name}: {heir}")
    return sentences


def may_take_over(line: boards.MemberLine) -> bool:
    return line.said.status == protocol.Status.FOLLOWER and line.said.member.observed_ready
