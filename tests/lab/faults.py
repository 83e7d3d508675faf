"""Random fault sequences: a seed gives the same sequence again, whatever the hosts made of it the first time."""

import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.lab.clock import boot
from tests.lab.lab import CONNECTORS, CORE, EXTERNAL, Lab, until

HOSTS = (*EXTERNAL, CORE)
I2_SECONDS = 2.6  # TTL + 2 election time-outs + 1 s: a leader again, once every program runs again
PATIENCE = float(os.environ.get("LAB_PATIENCE", "2"))  # times that bound before a round counts as broken: three hosts share few processors
RECOVERY_SECONDS = 60.0  # in which every program runs again and a leader is there
SETTLE_SECONDS = 2.0  # for which the effects of a pause may last in what is shown


@dataclass(frozen=True)
class Fault:
    name: str
    begin: Callable[[Lab], bool]  # whether it took effect


def fault(dice: random.Random) -> Fault:
    """One fault, chosen by the dice alone. The number before each is its weight."""
    host, connector = dice.choice(EXTERNAL), dice.choice(CONNECTORS)
    one, other = dice.sample(HOSTS, 2)
    anywhere = dice.choice((*EXTERNAL, *EXTERNAL, CORE))
    share, delay = dice.choice((0.1, 0.3, 0.6)), dice.choice((0.005, 0.03, 0.15))
    step = dice.choice((-86_400.0, -3.0, 0.7, 3_600.0, 86_400.0))
    unit = dice.choice(("portal", "worker", "beat", "broker"))
    act = dice.choice(("kill", "kill", "stop"))
    preferred = dice.choice(EXTERNAL)
    process, keeper = f"process:{connector}", f"keeper:{connector}"
    kinds: list[tuple[int, str, Callable[[Lab], bool]]] = [
        (3, f"kill {process} of {host}", lambda lab: lab.hosts[host].kill(process)),
        (1, f"kill {keeper} of {host}", lambda lab: lab.hosts[host].kill(keeper)),
        (1, f"kill {keeper} and {process} of {host}", lambda lab: lab.hosts[host].kill(keeper, process)),
        (1, f"kill agent and {process} of {host}", lambda lab: lab.hosts[host].kill("agent", process)),
        (1, f"kill agent and router of {anywhere}", lambda lab: lab.hosts[anywhere].kill("agent", "router")),
        (
            1,
            f"kill every keeper of {host}",
            lambda lab: lab.hosts[host].kill("router-keeper", *(f"keeper:{each}" for each in CONNECTORS)),
        ),
        (1, f"terminate {process} of {host}", lambda lab: lab.hosts[host].terminate(process)),
        (2, f"stop {process} of {host}", lambda lab: lab.hosts[host].stop(process)),
        (1, f"stop {keeper} of {host}", lambda lab: lab.hosts[host].stop(keeper)),
        (2, f"stop {keeper} and {process} of {host}", lambda lab: lab.hosts[host].stop(keeper, process)),
        (1, f"stop {process} and router of {host}", lambda lab: lab.hosts[host].stop(process, "router")),
        (1, f"kill agent of {anywhere}", lambda lab: lab.hosts[anywhere].kill("agent")),
        (1, f"stop agent of {anywhere}", lambda lab: lab.hosts[anywhere].stop("agent")),
        (2, f"upgrade agent of {anywhere}", lambda lab: lab.hosts[anywhere].upgrade_agent()),
        (2, f"kill router of {anywhere}", lambda lab: lab.hosts[anywhere].kill("router")),
        (1, f"stop router of {anywhere}", lambda lab: lab.hosts[anywhere].stop("router")),
        (1, f"kill router-keeper of {anywhere}", lambda lab: lab.hosts[anywhere].kill("router-keeper")),
        (1, f"fill the disk of the router of {anywhere}", lambda lab: lab.fill_router_disk(anywhere)),
        (1, f"fill the disk and kill the router of {anywhere}", lambda lab: lab.fill_router_disk(anywhere, kill=True)),
        (1, f"take the port of the router of {anywhere}", lambda lab: lab.take_router_port(anywhere)),
        (2, f"{act} {unit} of {CORE}", lambda lab: (lab.core.kill if act == "kill" else lab.core.stop)(unit)),
        (2, f"isolate {anywhere}", lambda lab: lab.hosts[anywhere].isolate()),
        (2, f"cut {one} and {other}", lambda lab: lab.cut(one, other)),
        (2, f"cut {one} to {other} one way", lambda lab: lab.cut_one_way(one, other)),
        (1, f"lose {share:.0%} between {one} and {other}", lambda lab: lab.lossy(one, other, share)),
        (2, f"slow link of {anywhere} by {delay * 1000:.0f} ms", lambda lab: lab.slow(anywhere, delay)),
        (2, f"step the clock of {host} by {step:+g} s", lambda lab: lab.step_clock(host, step)),
        (2, f"pause machine {host}", lambda lab: lab.hosts[host].pause()),
        (2, f"power off {host}", lambda lab: lab.hosts[host].power_off()),
        (1, f"power off {CORE}", lambda lab: lab.core.power_off()),
        (2, f"play {connector} on {preferred}", lambda lab: lab.play(connector, preferred)),
        (1, f"disable and enable {connector} on {host}", lambda lab: lab.disable(connector, host)),
    ]
    (_, name, begin) = dice.choices(kinds, [weight for weight, *_ in kinds])[0]
    return Fault(name, begin)


def kind_of(name: str) -> str:
    """A fault's name without hosts, connectors and figures."""
    name = re.sub(r" by [-+\d.]+ m?s$", "", name)
    for word in (*HOSTS, *CONNECTORS):
        name = name.replace(f":{word}", "").replace(f" of {word}", "").replace(word, "·")
    return name


@dataclass
class Figures:
    """What a sequence measured. Seconds."""

    faults: int = 0  # that took effect
    without_effect: int = 0  # nothing was there to kill, or the wish was refused
    began: float = field(default_factory=time.monotonic)
    healed: list[float] = field(default_factory=list)  # from the end of the last fault to one leader of each group
    recovered: list[float] = field(default_factory=list)  # the same from when, besides, every program ran again
    broken: list[str] = field(default_factory=list)
    worst: tuple[float, str] = (0.0, "")
    worst_recovery: tuple[float, str] = (0.0, "")
    gaps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by kind of a fault that was alone

    def measure(self, lab: Lab, kind: str, began: float, leaders: dict[str, str | None]) -> None:
        """From the fault to the next On of a group that went Off, on whichever host."""
        for connector, leader in leaders.items():
            turns = [turn for turn in lab.pages.turns[connector] if turn.at > began]
            back = next((turn for turn in turns if turn.on), None)
            if leader is not None and back is not None and any(not turn.on and turn.at <= back.at for turn in turns):
                self.gaps[f"{kind}, {'taken over' if back.host != leader else 'back on the same host'}"].append(back.at - began)

    def lines(self) -> list[str]:
        took = time.monotonic() - self.began
        p50, p95 = _percentile(self.healed, 0.5), _percentile(self.healed, 0.95)
        late = sum(seconds > I2_SECONDS for seconds in self.recovered)
        return [
            f"faults: {self.faults} in {len(self.healed)} rounds, {took / max(self.faults, 1):.2f} s each; "
            f"{self.without_effect} more found nothing to do and are not counted",
            f"one leader again after the last fault: p50 {p50:.2f} s, p95 {p95:.2f} s, worst {self.worst[0]:.2f} s ({self.worst[1]})",
            f"the same once every program ran again (I2, {I2_SECONDS:g} s): worst {self.worst_recovery[0]:.2f} s, later than that: {late}",
            f"rounds that broke an invariant: {len(self.broken)}",
            *(
                f"gap, {kind}: {len(gaps)} trials, p50 {_percentile(gaps, 0.5) * 1000:.0f} ms, worst {max(gaps) * 1000:.0f} ms"
                for kind, gaps in sorted(self.gaps.items())
            ),
            *self.broken,
        ]


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values) or [0.0]
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def sequence(lab: Lab, *, faults: int, seed: int, say: Callable[[str], None], seconds: float = float("inf")) -> Figures:
    """Bring about so many faults (at most for so long), one to four at a time, and look at the invariants after each round."""
    dice = random.Random(seed)
    figures = Figures()
    deadline = time.monotonic() + seconds
    while figures.faults < faults and time.monotonic() < deadline:
        together = [
            (fault(dice), dice.choice((0.02, 0.3, 0.9, 1.5)) * dice.uniform(0.5, 1.5)) for _ in range(dice.choice((1, 1, 2, 2, 3, 4)))
        ]
        patient = dice.random() < 0.4  # the other rounds begin before the follower of the last one is ready
        words = ", ".join(f"{each.name} for {dwell:.2f} s" for each, dwell in together)
        leaders, began = {connector: lab.leader(connector) for connector in CONNECTORS}, boot()
        lab.shown.slack = sum(dwell for _, dwell in together) + SETTLE_SECONDS
        before = figures.faults
        for each, dwell in together:
            if each.begin(lab):
                figures.faults += 1
            else:
                figures.without_effect += 1
                words = words.replace(each.name, f"{each.name} (nothing to do)", 1)
            time.sleep(dwell)
        lab.heal()
        complaint = _one_leader_again(lab, figures, words)
        enabled = lab.enable_all()  # whatever else is wrong: the next round begins with everybody
        complaint = complaint or enabled or (_settle(lab) if patient else "")
        complaint = complaint or _broken(lab, late=patient)
        if len(together) == 1 and figures.faults > before:
            figures.measure(lab, kind_of(together[0][0].name), began, leaders)
        say(f"{figures.faults:5} {figures.healed[-1]:6.2f} s  {words}" + (f"  BROKEN: {complaint}" if complaint else ""))
        if complaint:
            figures.broken.append(f"{words}: {complaint}")
            say(f"at {time.time():.3f}:\n{lab.logs()}")
            if len(figures.broken) >= 5:
                break
    return figures


def _one_leader_again(lab: Lab, figures: Figures, words: str) -> str:
    """Wait for one leader of each group, and measure it. Returns what is wrong, else nothing."""
    cleared, whole = boot(), None
    while not all(lab.leader(connector) for connector in CONNECTORS):
        now = boot()
        whole = whole or (now if lab.whole() else None)
        if (whole is not None and now - whole > I2_SECONDS * PATIENCE) or now - cleared > RECOVERY_SECONDS:
            figures.healed.append(now - cleared)
            figures.recovered.append(now - (whole or cleared))
            return f"I2: no leader of each group {now - cleared:.2f} s after the last fault; {lab.facts()}"
        time.sleep(0.01)
    now = boot()
    figures.healed.append(now - cleared)
    figures.recovered.append(now - whole if whole is not None else 0.0)
    figures.worst = max(figures.worst, (figures.healed[-1], words))
    figures.worst_recovery = max(figures.worst_recovery, (figures.recovered[-1], words))
    return ""


def _settle(lab: Lab) -> str:
    """Wait until each group has a ready follower too, and the portal shows so."""
    try:
        until(lambda: all(lab.settled(connector) for connector in CONNECTORS), RECOVERY_SECONDS, "each group has a leader and a follower")
    except AssertionError as error:
        return f"{error}; {lab.facts()}"
    return ""


def _broken(lab: Lab, late: bool) -> str:
    """I1, I5 and I6 so far; with `late` also I4, for which every commit is read."""
    said = [*lab.pages.overlaps, *lab.pages.disabled_led, *lab.shown.lies]
    if late:
        verdict = lab.judged()
        said += [line for lines in verdict.late.values() for line in lines]
    new = [line for line in said if line not in lab.told]
    lab.told.update(new)
    return "; ".join(new[:3])
