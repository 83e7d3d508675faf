"""Preferences, balance and switches of failover groups: the portal's wishes, and its verdict on what it heard."""

from dataclasses import dataclass
from datetime import datetime

from runtimes import protocol
from runtimes.models import FailoverGroup, GroupMember, GroupRequest, Runtime


@dataclass(frozen=True)
class MemberVerdict:
    """What may be said of a member now. `reason` is one sentence; `age_seconds` None: never heard of."""

    member: GroupMember
    status: protocol.Status
    state: protocol.State
    reason: str
    age_seconds: float | None


@dataclass(frozen=True)
class Verdict:
    """What may be said of a group now: at most one leader; silent agents and lower epochs are Unknown."""

    group: FailoverGroup
    members: list[MemberVerdict]
    leader: MemberVerdict | None
    healthy: bool  # exactly one leader, On; every other member Follower or Disabled, Off, fresh
    problems: list[str]  # one sentence each; empty when healthy


def verdict(group: FailoverGroup, *, now: datetime) -> Verdict:
    """Pure over rows already read: give it groups with members__runtime__machine and __connector prefetched."""
    raise NotImplementedError


def prefer(runtime: Runtime, preference: protocol.Preference) -> None:
    """Set a runtime's preference. At most one Leader per connector and environment: choosing it makes the former one Backup."""
    raise NotImplementedError


def switch(
    group: FailoverGroup,
    *,
    candidate: str | None,
    expected_leader: str | None,
    actor: str,
    cause: protocol.Cause = protocol.Cause.SWITCH,
    now: datetime,
) -> GroupRequest:
    """Ask for a hand-over to the member on machine `candidate` (None: Stop; any ready follower takes over).

    Raises:
        Invalid (status 404, code "unknown-candidate"): no member of the group is on that machine.
        Busy: a live request exists. Stale: `expected_leader` is given and does not lead.
        NotReady: the candidate is disabled, silent or not ready, or no follower is ready (offers Disable).
    """
    raise NotImplementedError


def disable(group: FailoverGroup, machine: str, *, actor: str, now: datetime) -> GroupRequest:
    raise NotImplementedError


def enable(group: FailoverGroup, machine: str, *, actor: str, now: datetime) -> GroupRequest:
    raise NotImplementedError


def consequence(group: FailoverGroup, member: GroupMember, action: str, *, now: datetime) -> str:
    """What Play, Stop, Disable or Enable ("play", "stop", "disable", "enable") would do, in words for the button's title."""
    raise NotImplementedError


def member_on(group: FailoverGroup, machine: str) -> GroupMember:
    """The group's member on a machine. Raises UnknownCandidate (404) naming the machines that have one."""
    raise NotImplementedError


@dataclass(frozen=True)
class Balanced:
    """One look at a group during Balance failover: done, or what it waits for, or why it cannot."""

    group: FailoverGroup
    done: bool
    failed: bool
    reason: str


def balance(group: FailoverGroup, *, release: int, actor: str, step_began_at: datetime, now: datetime) -> Balanced:
    """One idempotent step towards "the preferred member leads, proven": asks for the hand-over when it is due, else looks.

    Never overrides a switch made after the step began, never enables (docs/failover.md, Balance failover).
    """
    raise NotImplementedError
