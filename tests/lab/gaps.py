"""How long a group stands still: from the fault's instant to the next On elsewhere, by the judge's sampler (2 ms)."""

from collections.abc import Callable

from tests.lab.clock import boot
from tests.lab.lab import CONNECTORS, EXTERNAL, Host, Lab, until

FAULTS: dict[str, Callable[[Host, str], None]] = {
    "process killed": lambda host, connector: host.kill(f"process:{connector}"),
    "process hangs": lambda host, connector: host.stop(f"process:{connector}"),
    "process and keeper hang": lambda host, connector: host.stop(f"keeper:{connector}", f"process:{connector}"),
    "process ends in order": lambda host, connector: host.terminate(f"process:{connector}"),
    "machine isolated": lambda host, connector: host.isolate(),
    "machine powered off": lambda host, connector: host.power_off(),
}


def measure(lab: Lab, trials: int, say: Callable[[str], None]) -> None:
    """Each fault so many times, on whichever host leads, the connectors in turn; says trials, p50 and worst in milliseconds."""
    for name, bring_about in FAULTS.items():
        gaps = []
        for turn in range(trials):
            lab.heal()
            until(lambda: all(lab.settled(each) for each in CONNECTORS), 60, "every group has a leader and a follower", lab.facts)
            connector = CONNECTORS[turn % len(CONNECTORS)]
            leader = lab.leader(connector)
            assert leader is not None
            other = next(host for host in EXTERNAL if host != leader)
            lab.pauses += len(CONNECTORS)
            began = boot()
            bring_about(lab.hosts[leader], connector)
            at = until(lambda: lab.pages.next_on(connector, began, other), 30, f"{other} leads after: {name}", lab.facts)  # noqa: B023
            gaps.append((at - max(began, lab.hosts[leader].acted_at)) * 1000)
        gaps.sort()
        say(f"{name:<24} {len(gaps)} trials, p50 {gaps[len(gaps) // 2]:.0f} ms, worst {gaps[-1]:.0f} ms")
    lab.heal()
