"""Random fault sequences: a seed gives the same sequence again, whatever the hosts made of it the first time."""

import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.lab.judge import boot, late_emits
from tests.lab.lab import CONNECTORS, CORE, EXTERNAL, Lab, until

HOSTS = (*EXTERNAL, CORE)
RECOVERY_SECONDS = 60.0  # in which every group has one leader again, programs that were killed started again (I2; the figure is reported)


@dataclass(frozen=True)
class Fault:
    name: str
    begin: Callable[[Lab], None]
    pauses: int = 0  # commits that may have been in flight in what stood still


def _pair(dice: random.Random) -> tuple[str, str]:
    one, other = dice.sample(HOSTS, 2)
    return one, other


def fault(dice: random.Random) -> Fault:
    """One fault, chosen by the dice alone."""
    host, connector = dice.choice(EXTERNAL), dice.choice(CONNECTORS)
    one, other = _pair(dice)
    any_host = dice.choice((*EXTERNAL, *EXTERNAL, CORE))
    share = dice.choice((0.1, 0.3, 0.6))
    unit = dice.choice(("portal", "worker", "beat", "broker"))
    act, preferred = dice.choice(("kill", "kill", "stop")), dice.choice(EXTERNAL)
    process, keeper = f"process:{connector}", f"keeper:{connector}"
    kinds: list[Fault] = [
        *[Fault(f"kill {process} of {host}", lambda lab: lab.hosts[host].kill(process))] * 3,
        Fault(f"kill {keeper} of {host}", lambda lab: lab.hosts[host].kill(keeper)),
        Fault(f"kill {keeper} and {process} of {host}", lambda lab: lab.hosts[host].kill(keeper, process)),
        Fault(f"terminate {process} of {host}", lambda lab: lab.hosts[host].terminate(process)),
        *[Fault(f"stop {process} of {host}", lambda lab: lab.hosts[host].stop(process), 1)] * 2,
        Fault(f"stop {keeper} of {host}", lambda lab: lab.hosts[host].stop(keeper)),
        *[Fault(f"stop {keeper} and {process} of {host}", lambda lab: lab.hosts[host].stop(keeper, process), 1)] * 2,
        Fault(f"kill agent of {any_host}", lambda lab: lab.hosts[any_host].kill("agent")),
        Fault(f"stop agent of {any_host}", lambda lab: lab.hosts[any_host].stop("agent")),
        *[Fault(f"kill router of {any_host}", lambda lab: lab.hosts[any_host].kill("router"))] * 2,
        Fault(f"stop router of {any_host}", lambda lab: lab.hosts[any_host].stop("router")),
        Fault(f"kill router-keeper of {any_host}", lambda lab: lab.hosts[any_host].kill("router-keeper")),
        Fault(f"{act} {unit} of {CORE}", lambda lab: (lab.core.kill if act == "kill" else lab.core.stop)(unit)),
        *[Fault(f"isolate {any_host}", lambda lab: lab.hosts[any_host].isolate())] * 2,
        *[Fault(f"cut {one} and {other}", lambda lab: lab.cut(one, other))] * 2,
        *[Fault(f"cut {one} to {other} one way", lambda lab: lab.cut_one_way(one, other))] * 2,
        Fault(f"lose {share:.0%} between {one} and {other}", lambda lab: lab.lossy(one, other, share)),
        *[Fault(f"pause machine {host}", lambda lab: lab.hosts[host].pause(), len(CONNECTORS))] * 2,
        *[Fault(f"power off {host}", lambda lab: lab.hosts[host].power_off())] * 2,
        Fault(f"power off {CORE}", lambda lab: lab.core.power_off()),
        *[Fault(f"play {connector} on {preferred}", lambda lab: lab.play(connector, preferred))] * 2,
        Fault(f"disable and enable {connector} on {host}", lambda lab: lab.disable(connector, host)),
    ]
    return dice.choice(kinds)


def kind_of(name: str) -> str:
    """A fault's name without hosts and connectors."""
    for word in (*HOSTS, *CONNECTORS):
        name = name.replace(f":{word}", "").replace(f" of {word}", "").replace(word, "·")
    return name


@dataclass
class Figures:
    """What a sequence measured. Seconds."""

    faults: int = 0
    recovered: list[float] = field(default_factory=list)  # from the end of the last fault to one leader of each group
    broken: list[str] = field(default_factory=list)
    worst: tuple[float, str] = (0.0, "")
    gaps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by kind of a fault that was alone

    def measure(self, lab: Lab, kind: str, began: float, leaders: dict[str, str | None]) -> None:
        """From the fault to the next On of a group that went Off, on whichever host."""
        for connector, leader in leaders.items():
            turns = [turn for turn in lab.pages.turns[connector] if turn.at > began]
            back = next((turn for turn in turns if turn.on), None)
            if leader is not None and back is not None and any(not turn.on and turn.at <= back.at for turn in turns):
                self.gaps[f"{kind}, {'taken over' if back.host != leader else 'back on the same host'}"].append(back.at - began)

    def lines(self) -> list[str]:
        ordered = sorted(self.recovered) or [0.0]
        p50, p95 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
        return [
            f"faults: {self.faults} in {len(self.recovered)} rounds",
            f"one leader again after the last fault: p50 {p50:.2f} s, p95 {p95:.2f} s, worst {self.worst[0]:.2f} s ({self.worst[1]})",
            f"rounds that broke an invariant: {len(self.broken)}",
            *(
                f"gap, {kind}: {len(gaps)} trials, p50 {sorted(gaps)[len(gaps) // 2] * 1000:.0f} ms, worst {max(gaps) * 1000:.0f} ms"
                for kind, gaps in sorted(self.gaps.items())
            ),
            *self.broken,
        ]


def sequence(lab: Lab, *, faults: int, seed: int, say: Callable[[str], None], seconds: float = float("inf")) -> Figures:
    """Bring about so many faults (at most for so long), one to three at a time, and look at the invariants after each round."""
    dice = random.Random(seed)
    figures = Figures()
    deadline = time.monotonic() + seconds
    while figures.faults < faults and time.monotonic() < deadline:
        together = [(fault(dice), dice.uniform(0.05, 2.5)) for _ in range(dice.choice((1, 1, 1, 2, 2, 3)))]
        patient = dice.random() < 0.5  # every second round begins before the follower of the last one is ready
        words = ", ".join(f"{each.name} for {dwell:.2f} s" for each, dwell in together)
        leaders, began = {connector: lab.leader(connector) for connector in CONNECTORS}, boot()
        for each, dwell in together:
            figures.faults += 1
            lab.pauses += each.pauses
            each.begin(lab)
            time.sleep(dwell)
        lab.heal()
        cleared = boot()
        complaint = _recover(lab, patient=False)
        took = boot() - cleared
        complaint = complaint or lab.enable_all() or (_recover(lab, patient=True) if patient else "")
        figures.recovered.append(took)
        figures.worst = max(figures.worst, (took, words))
        complaint = complaint or _broken(lab)
        if len(together) == 1:
            figures.measure(lab, kind_of(together[0][0].name), began, leaders)
        say(f"{figures.faults:5} {took:6.2f} s  {words}" + (f"  BROKEN: {complaint}" if complaint else ""))
        if complaint:
            figures.broken.append(f"{words}: {complaint}")
            if len(figures.broken) >= 5:
                break
    return figures


def _recover(lab: Lab, patient: bool) -> str:
    """Wait until each group has exactly one leader (and, when patient, a ready follower). Returns what is wrong, else nothing."""
    try:
        until(lambda: all(lab.leader(connector) for connector in CONNECTORS), RECOVERY_SECONDS, "each group has one leader")
        if patient:
            until(
                lambda: all(lab.settled(connector) for connector in CONNECTORS), RECOVERY_SECONDS, "each group has a leader and a follower"
            )
    except AssertionError as error:
        return f"{error}; {lab.facts()}"
    return ""


def _broken(lab: Lab) -> str:
    """I1, I4 and I5, so far."""
    late = {connector: late_emits(lab.sinks.emits(connector)) for connector in CONNECTORS}
    said = [*lab.pages.overlaps, *lab.pages.disabled_led, *late["erp"]]
    if len(late["tills"]) > lab.pauses:
        said += late["tills"]
    new = [line for line in said if line not in lab.told]
    lab.told.update(new)
    return "; ".join(new[:3])
