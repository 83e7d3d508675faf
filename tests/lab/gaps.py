"""How long a group stands still: from the fault's instant to the next On elsewhere, by the judge's sampler (2 ms); in a hand-over from Off
to On, by a stopwatch (0.5 ms)."""

import math
import time
from collections.abc import Callable, Sequence

from tests.lab.clock import boot
from tests.lab.lab import CONNECTORS, EXTERNAL, Host, Lab, until
from tests.lab.stopwatch import Stopwatch

FAULTS: dict[str, Callable[[Host, str], bool]] = {
    "crash": lambda host, connector: host.kill(f"process:{connector}"),
    "hang": lambda host, connector: host.stop(f"process:{connector}"),
    "hang with its keeper": lambda host, connector: host.stop(f"keeper:{connector}", f"process:{connector}"),
    "clean end": lambda host, connector: host.terminate(f"process:{connector}"),
    "isolated": lambda host, connector: host.isolate(),
    "power-off": lambda host, connector: host.power_off(),
}
KINDS = (*FAULTS, "hand-over", "agent restart")


def measure(
    lab: Lab, kinds: Sequence[str], trials: int, say: Callable[[str], None], until_moment: float = math.inf
) -> dict[str, list[float]]:
    """Each kind so many times, on whichever host leads, the connectors in turn, while time.monotonic() is below `until_moment`.

    Returns the gaps in milliseconds by kind.
    """
    gaps: dict[str, list[float]] = {}
    for kind in kinds:
        found = gaps[kind] = []
        for turn in range(trials):
            if time.monotonic() > until_moment:
                break
            lab.heal()
            until(lambda: all(lab.settled(each) for each in CONNECTORS), 60, "every group has a leader and a follower", lab.facts)
            connector = CONNECTORS[turn % len(CONNECTORS)]
            leader = lab.leader(connector)
            assert leader is not None
            other = next(host for host in EXTERNAL if host != leader)
            if kind == "hand-over":
                found.append(_handed_over(lab, connector, leader, other))
            elif kind == "agent restart":
                found.append(_agent_restarted(lab, connector, leader))
            else:
                found.append(_fault(lab, kind, connector, leader, other))
        if found:
            say(line(kind, found))
    lab.heal()
    return gaps


def _fault(lab: Lab, kind: str, connector: str, leader: str, other: str) -> float:
    began = boot()
    assert FAULTS[kind](lab.hosts[leader], connector), f"there was nothing to hit: {kind}"
    at = until(lambda: lab.pages.next_on(connector, began, other), 30, f"{other} leads after: {kind}", lab.facts)
    return (at - max(began, lab.hosts[leader].acted_at)) * 1000


def _handed_over(lab: Lab, connector: str, leader: str, other: str) -> float:
    """From the old leader's page Off to the new one's On."""
    began = boot()
    old, new = (lab.hosts[host].home / "runtimes" / f"{host}.{connector}" / "permit" for host in (leader, other))
    with Stopwatch([old, new]) as stopwatch:
        until(lambda: lab.play(connector, other), 20, "Play is accepted", lab.facts)
        until(lambda: lab.pages.next_on(connector, began, other), 30, f"{other} leads after Play", lab.facts)
    return stopwatch.gap(old, new) * 1000


def _agent_restarted(lab: Lab, connector: str, leader: str) -> float:
    """How long the leader was not On while its agent died and came back."""
    host, began = lab.hosts[leader], boot()
    before = host.units["agent"].pid
    host.kill("agent")
    until(lambda: host.units["agent"].pid != before and host.part("agent"), 20, "the agent is back", lab.facts)
    time.sleep(1.5)  # it finds its keepers, and reports
    return lab.pages.off_seconds(connector, leader, began) * 1000


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank: of fewer than a hundred trials, p99 is the worst."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def line(kind: str, gaps: Sequence[float]) -> str:
    ordered = sorted(gaps)
    p50, p95, p99 = (percentile(ordered, share) for share in (0.5, 0.95, 0.99))
    return f"{kind:<28} {len(ordered):>4} trials   p50 {p50:7.1f}   p95 {p95:7.1f}   p99 {p99:7.1f} ms"
