"""What a deployment must never do to a failover group, pure: the engine asks before it orders anything, the preview asks in advance.

leader      a runtime that leads is only touched when another member is ready to take over (a person may override, with a reason)
last        the last member of a group that could lead is never stopped, whatever anybody says
one         of one group only one member is touched at a time
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Rule = Literal["", "leader", "last", "one"]


@dataclass(frozen=True)
class Sight:
    """One failover group, as far as the rules need it. Members are runtime keys."""

    group: str
    leader: str | None  # None: nobody is known to lead, so nothing can be interrupted
    ready: Sequence[str]  # who could take over now, the first to be asked first
    lacking: Mapping[str, str]  # why the others could not, a sentence each
    hopeless: bool = False  # waiting brings nobody: every other member is stopped, disabled or long silent


@dataclass(frozen=True)
class Gate:
    """May the runtime be touched now. `sentence` says why not, with the remedy; `waiting` may help unless it is hopeless."""

    rule: Rule = ""
    sentence: str = ""
    hopeless: bool = False

    @property
    def open(self) -> bool:
        return not self.rule

    @property
    def may_be_overridden(self) -> bool:
        return self.rule == "leader"


OPEN = Gate()


def touch(key: str, sights: Sequence[Sight], *, stops: bool, touched: Collection[str]) -> Gate:
    """May this runtime be redeployed, restarted or (`stops`) stopped for good.

    `touched` are the other members that a step of this deployment has ordered something and has not proven yet.
    """
    for sight in sights:
        members = {*sight.ready, *sight.lacking, *([sight.leader] if sight.leader else [])} - {key}
        others = sorted(members.intersection(touched))
        if others:
            return Gate("one", f"{' and '.join(others)} of {sight.group} is being changed: one member of a group at a time.")
    for sight in sights:
        ready = [other for other in sight.ready if other != key]
        if ready or sight.leader not in (None, key):
            continue
        why = " ".join(reason for other, reason in sorted(sight.lacking.items()) if other != key) or "It has no other member."
        if stops:
            return Gate(
                "last",
                f"{key} is the last member of {sight.group} that could lead, and the last one is never stopped. {why} "
                "To stop the group all the same, use Disable on its page.",
                hopeless=sight.hopeless,
            )
        if sight.leader == key:
            return Gate("leader", f"{key} leads {sight.group}, and no follower is ready to take over: {why}", hopeless=sight.hopeless)
    return OPEN
