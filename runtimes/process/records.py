"""What stands in etcd (docs/failover.md, Keys), as read-only records, and where it stands."""

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from runtimes.protocol import (
    GENERATION_STEP,
    LONGEST_TTL,
    BundleContent,
    Cause,
    IsolationPolicy,
    Preference,
    RequestOutcome,
    digest_of,
    encode,
)

KEPT_OUTCOMES = 8  # per group, so that an order carried twice finds how it ended


def session_key(namespace: str, runtime: str) -> str:
    return f"{namespace}sessions/{runtime}"


def leader_key(namespace: str, group: str) -> str:
    return f"{namespace}leaders/{group}"


def control_key(namespace: str, group: str) -> str:
    return f"{namespace}control/{group}"


class GroupMark(msgspec.Struct, frozen=True):
    """What a runtime says about itself in one group, for its peers to judge."""

    ready: bool
    on: bool
    preference: Preference


class SessionRecord(msgspec.Struct, frozen=True):
    """`sessions/<runtime>`: rewritten at every renewal; the counter makes each write another value."""

    session: str  # "<launch>:<n>"
    counter: int
    runtime: str
    release: int
    groups: dict[str, GroupMark] = {}
    ttl: float = 1.0  # seconds that this write may give a permit for, guard included; who takes from it waits so long (before this
    # field was written everybody's was 1.0)
    design: str = ""  # of the flows that it runs (design_of): equal where releases differ by their number or a machine's values only


class LeaderRecord(msgspec.Struct, frozen=True):
    """`leaders/<group>`: who leads, and how it came. Without a runtime the group was released and is vacant."""

    runtime: str | None
    session: str | None
    cause: Cause
    actor: str = ""
    previous: str | None = None
    request: str | None = None  # the request that this hand-over fulfilled


class OpenRequest(msgspec.Struct, frozen=True):
    """The one open hand-over request of a group."""

    id: str
    to: str | None  # runtime key; None: any ready follower
    expected_epoch: int
    cause: Cause
    actor: str = ""


class Disabled(msgspec.Struct, frozen=True):
    request: str
    actor: str = ""
    cause: Cause = Cause.DISABLE


class ControlRecord(msgspec.Struct, frozen=True):
    """`control/<group>`: wishes that the election obeys."""

    disabled: dict[str, Disabled] = {}  # by runtime key
    request: OpenRequest | None = None
    done: list[RequestOutcome] = []  # the last ones, oldest first
    isolation: IsolationPolicy = IsolationPolicy.STOP

    def closing(self, outcome: RequestOutcome) -> "ControlRecord":
        """The record without its open request, remembering how it ended."""
        return msgspec.structs.replace(self, request=None).remembering(outcome)

    def remembering(self, outcome: RequestOutcome) -> "ControlRecord":
        return msgspec.structs.replace(self, done=[*self.done, outcome][-KEPT_OUTCOMES:])

    def outcome_of(self, request: str) -> RequestOutcome | None:
        return next((outcome for outcome in self.done if outcome.id == request), None)


@dataclass(frozen=True, slots=True)
class Observed:
    """A runtime's session as this process sees it. `since`: its own boot-time clock when it first received exactly this write."""

    record: SessionRecord | None  # None: absent (or unreadable)
    revision: int  # 0: absent
    since: float

    @property
    def ttl(self) -> float:
        """Seconds for which its owner may act on this write: what the write itself says, never the observer's own profile. A write that
        cannot be read (a newer program's) is given the longest of all profiles."""
        return self.record.ttl if self.record is not None else LONGEST_TTL


R = TypeVar("R", bound=msgspec.Struct)


def parse(kind: type[R], value: Any) -> R | None:
    """A record from an entry's JSON value; None when absent or unreadable."""
    if value is None:
        return None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def plain(record: msgspec.Struct) -> Any:
    """The record as JSON values."""
    return msgspec.to_builtins(record)


def design_of(bundle: BundleContent) -> str:
    """Which flows in which versions and groups a runtime runs, apart from its release's number and its machine's values."""
    flows = sorted((flow.id, flow.version, flow.group or "") for flow in bundle.flows)
    return digest_of(encode(flows))[:16]


def epoch_of(generation: int, leader_revision: int) -> int:
    return generation * GENERATION_STEP + leader_revision
