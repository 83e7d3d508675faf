"""Operate › Timeline as lanes: who led when, from the changes each new leader told. Pure; time is an argument.

A change is told when the new leader's inbounds are On (`at`), with the measured gap since the old leader's last On. So the old
leader's stretch ends `gap_seconds` before `at`; a negative gap is an overlap: two were On, which must never be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from runtimes.boards import in_words
from runtimes.models import Alarm, LeadershipChange, LeadershipInterruption


@dataclass(frozen=True)
class Stretch:
    """A piece of a lane; left and width in percent of the window."""

    kind: str  # "lead", "gap", "overlap", "alone" or "unknown"
    left: float
    width: float
    title: str


@dataclass(frozen=True)
class Known:
    """The newest leadership: until when it is known to stand, and what is so since."""

    until: datetime
    kind: str = "unknown"  # or "gap"
    title: str = "not known: no report since"


@dataclass(frozen=True)
class Lane:
    machine: str
    stretches: list[Stretch]


@dataclass(frozen=True)
class Window:
    """What the lanes span."""

    start: datetime
    end: datetime

    def at(self, moment: datetime) -> float:
        """Percent from the left, within the window."""
        share = (moment - self.start) / (self.end - self.start)
        return round(100 * min(max(share, 0.0), 1.0), 3)

    def stretch(self, kind: str, start: datetime, end: datetime, title: str) -> Stretch | None:
        """None for what lies outside of the window."""
        if end <= self.start or start >= self.end or end < start:
            return None
        left = self.at(start)
        return Stretch(kind, left, round(self.at(end) - left, 3), title)

    def ticks(self, number: int = 5) -> list[datetime]:
        """Evenly spaced moments, first and last included."""
        return [self.start + (self.end - self.start) * step / (number - 1) for step in range(number)]


def lanes(
    machines: Sequence[str],
    changes: Sequence[LeadershipChange],
    window: Window,
    *,
    known: Known,
    interruptions: Sequence[LeadershipInterruption] = (),
    alone: Sequence[Alarm] = (),
) -> list[Lane]:
    """One lane per machine of a group. `changes` in any order, the last one before the window included; `known`: how far the newest of
    them goes; `interruptions` of a leadership that went on, and `alone`: when members ran alone, over all the rest."""
    ordered = sorted(changes, key=lambda change: change.epoch)
    drawn: dict[str, list[Stretch | None]] = {machine: [] for machine in machines}
    for number, change in enumerate(ordered):
        told = in_words(change)
        lane = drawn.setdefault(told.machine, [])
        if change.gap_seconds and change.previous:
            lane.append(gap(change, window))
        following = ordered[number + 1] if number + 1 < len(ordered) else None
        end = ended_at(following) if following else min(max(known.until, change.at), window.end)
        unseen = following is not None and following.previous and following.gap_seconds is None
        title = f"{told.machine} led, epoch {told.epoch}: {told.words}{'; nobody saw when it stopped' if unseen else ''}"
        lane.append(window.stretch("lead", change.at, end, title))
        if following is None:
            lane.append(window.stretch(known.kind, end, window.end, known.title))
    for broken in interruptions:
        machine, title = broken.runtime.partition(".")[0], f"nobody led for {broken.seconds:.3g} s, then {broken.runtime} led on"
        drawn.setdefault(machine, []).append(window.stretch("gap", broken.since, broken.until, title))
    for spell in alone:
        machine, until = spell.runtime.partition(".")[0], spell.cleared_at or window.end
        title = f"{machine} ran alone, without a majority: others may have consumed at once"
        drawn.setdefault(machine, []).append(window.stretch("alone", spell.since, until, title))
    return [Lane(machine, [piece for piece in pieces if piece]) for machine, pieces in drawn.items()]


def ended_at(following: LeadershipChange) -> datetime:
    """When the leader before `following` was last On."""
    return following.at - timedelta(seconds=max(following.gap_seconds or 0.0, 0.0))


def gap(change: LeadershipChange, window: Window) -> Stretch | None:
    """The time without a leader before this change, or the overlap when it is negative."""
    seconds = change.gap_seconds or 0.0
    if seconds < 0:
        return window.stretch("overlap", change.at, change.at - timedelta(seconds=seconds), f"two were On for {-seconds:.3g} s")
    return window.stretch("gap", ended_at(change), change.at, f"nobody led for {seconds:.3g} s")
