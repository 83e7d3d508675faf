"""Writes a person's wish for a group into `control/<group>` (docs/failover.md, Hand-over and Disable). Called by the agent.

Nothing here votes: the leader, or the member concerned, obeys what stands there.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from runtimes.process.etcd import Answer, Etcd, OutcomeUnknown, put, read, read_prefix, unchanged
from runtimes.process.records import (
    ControlRecord,
    Disabled,
    LeaderRecord,
    OpenRequest,
    SessionRecord,
    control_key,
    epoch_of,
    leader_key,
    parse,
    plain,
    session_key,
)
from runtimes.protocol import (
    UPGRADE,
    GroupRequest,
    IsolationPolicy,
    RequestKind,
    RequestOutcome,
    RequestStatus,
    Timing,
    epoch_words,
)

POLICY_WORDS = {IsolationPolicy.STOP: "stops", IsolationPolicy.RUN_ALONE: "runs alone"}
TRIES = 5  # when another writes the same record in between; each try reads anew


class RefusedError(Exception):
    """The wish cannot be carried out, with its code."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Picture:
    """One reading of everything that a wish depends on."""

    control: ControlRecord
    control_revision: int
    leader: LeaderRecord | None
    leader_revision: int
    sessions: Mapping[str, tuple[SessionRecord, int]]  # by runtime, with the revision

    def epoch(self, generation: int) -> int:
        return epoch_of(generation, self.leader_revision) if self.leader is not None and self.leader.runtime is not None else 0


async def place_request(
    client: Etcd,
    namespace: str,
    request: GroupRequest,
    *,
    member: str,
    generation: int,
    timing: Timing,
    activated: int | None = None,
    asks: bool = False,
) -> RequestOutcome:
    """Carry one wish into etcd through this machine's router. Carrying it twice, or from two machines, has the effect of once.

    Args:
        client: of this machine's router; it stays open.
        member: key of any runtime of the group's connector ("external01.erp"): tells which connector `request.machine` runs.
        activated: number of the activated release; a candidate must run it, the leader's, or the very flows that the leader runs (a runtime
            that a release does not change keeps a bundle of the former number). None: not compared.
        asks: the wish was written before: only how it ended is asked for, and nothing is written.

    Returns:
        RUNNING: a switch stands in control/<group>; the member that closes it reports the outcome (ProcessNews.outcome), and calling
        again tells it too. SUCCEEDED, or FAILED with `code` busy, stale, not-ready, disabled or no-majority (then it may be tried again
        while it is valid).
    """
    trouble = ""
    for _ in range(TRIES):
        try:
            picture = await look(client, namespace, request.group, timing)
            if asks:
                return _ended(request, picture)
            outcome, changed = await _judge(client, namespace, request, picture, member, generation, timing, activated)
            if changed is None:
                return outcome
            key = control_key(namespace, request.group)
            compare = [
                unchanged(key, picture.control_revision),
                unchanged(leader_key(namespace, request.group), picture.leader_revision),
            ]
            if (await _transact(client, compare, [put(key, plain(changed))], [], timing)).succeeded:
                return outcome
        except RefusedError as refusal:
            return RequestOutcome(id=request.id, status=RequestStatus.FAILED, code=refusal.code, reason=str(refusal))
        except OutcomeUnknown as error:
            trouble = str(error)  # it may have been written: the next reading finds it by the request's id
            await asyncio.sleep(timing.renewal / 2)
    if trouble:
        return RequestOutcome(id=request.id, status=RequestStatus.FAILED, code="no-majority", reason=trouble)
    reason = f"the record of the group changed {TRIES} times while the wish was written; try again"
    return RequestOutcome(id=request.id, status=RequestStatus.FAILED, code="busy", reason=reason)


def _ended(request: GroupRequest, picture: Picture) -> RequestOutcome:
    """How a wish that was written has ended, as far as etcd remembers. Raises: RefusedError when it does not."""
    if picture.control.request is not None and picture.control.request.id == request.id:
        return _running(request)
    known = picture.control.outcome_of(request.id)
    if known is None:
        raise RefusedError("stale", "it does not stand any more, and how it ended is not remembered; look who leads")
    return known


async def _judge(
    client: Etcd,
    namespace: str,
    request: GroupRequest,
    picture: Picture,
    member: str,
    generation: int,
    timing: Timing,
    activated: int | None,
) -> tuple[RequestOutcome, ControlRecord | None]:
    """The outcome, with the record to write for it (None: nothing is to be written)."""
    control = picture.control
    known = control.outcome_of(request.id)
    if known is not None:
        return known, None
    if control.request is not None and control.request.id == request.id:
        return _running(request), None
    if request.kind == RequestKind.OTHER:
        raise RefusedError("not-known", UPGRADE)
    if request.kind == RequestKind.POLICY:
        if request.policy is None:
            raise RefusedError("not-ready", "the request names no isolation policy")
        outcome = _succeeded(request, f"without a majority a member of this group {POLICY_WORDS[request.policy]}")
        return outcome, msgspec.structs.replace(control, isolation=request.policy).remembering(outcome)
    runtime = _runtime(request, member)
    if request.kind == RequestKind.DISABLE:
        assert runtime is not None
        outcome = _succeeded(request, _disabled(runtime, picture))
        disabled = {**control.disabled, runtime: Disabled(request.id, request.actor, request.cause)}
        return outcome, msgspec.structs.replace(control, disabled=disabled).remembering(outcome)
    if request.kind == RequestKind.ENABLE:
        assert runtime is not None
        outcome = _succeeded(request, f"{runtime} is enabled")
        disabled = {key: value for key, value in control.disabled.items() if key != runtime}
        return outcome, msgspec.structs.replace(control, disabled=disabled).remembering(outcome)
    epoch = picture.epoch(generation)
    if control.request is not None and control.request.expected_epoch == epoch:
        raise RefusedError(
            "busy", f"another switch of this group is under way (asked by {control.request.actor or 'somebody'}); wait for it"
        )
    if control.request is not None:  # its leadership is over, and nobody has led since who would have closed it
        reason = "leadership changed before the request was carried out"
        control = control.closing(RequestOutcome(id=control.request.id, status=RequestStatus.FAILED, code="stale", reason=reason))
    leader = _leader(picture)
    if request.expected_epoch is not None and request.expected_epoch != epoch:
        raise RefusedError("stale", f"leadership has changed meanwhile: {leader} holds epoch {epoch_words(epoch)}; look again and repeat")
    if runtime == leader:
        return _succeeded(request, f"{leader} leads already"), None
    await _require_ready(client, namespace, request.group, picture, runtime, leader, activated, timing)
    wish = OpenRequest(request.id, runtime, epoch, request.cause, request.actor)
    return _running(request), msgspec.structs.replace(control, request=wish)


def _runtime(request: GroupRequest, member: str) -> str | None:
    if request.machine is None:
        if request.kind != RequestKind.SWITCH:
            raise RefusedError("not-ready", f"{request.kind} needs a machine")
        return None
    return f"{request.machine}.{member.split('.', 1)[1]}"


def _leader(picture: Picture) -> str:
    if picture.leader is None or picture.leader.runtime is None:
        raise RefusedError("not-ready", "nobody leads this group now, so nobody can hand it over; a ready member takes it by itself")
    return picture.leader.runtime


async def _require_ready(
    client: Etcd,
    namespace: str,
    group: str,
    picture: Picture,
    runtime: str | None,
    leader: str,
    activated: int | None,
    timing: Timing,
) -> None:
    """The candidate, or with None at least one follower, is ready; its session is seen to move, which only a living process does."""
    if runtime is not None:
        candidates = [runtime]
    else:
        candidates = [key for key, (record, _) in picture.sessions.items() if key != leader and group in record.groups]
    reasons = {key: _why_not(key, picture, group, leader, activated) for key in candidates}
    standing = [key for key, reason in reasons.items() if not reason]
    if standing:
        if await moving(client, namespace, {key: picture.sessions[key] for key in standing}, timing, enough=1):
            return
        reasons.update({key: f"the session of {key} stands still" for key in standing})
    disabled = runtime is not None and runtime in picture.control.disabled
    raise RefusedError("disabled" if disabled else "not-ready", "; ".join(reasons.values()) or "this group has no other member that runs")


def _why_not(key: str, picture: Picture, group: str, leader: str, activated: int | None) -> str:
    if key in picture.control.disabled:
        return f"{key} is disabled; enable it first"
    if key not in picture.sessions:
        return f"{key} has no session: its process does not run, or its router is not connected"
    record = picture.sessions[key][0]
    mark = record.groups.get(group)
    if mark is None:
        return f"the release of {key} does not know this group; deploy it"
    if not mark.ready:
        return f"{key} says that it is not ready"
    leads = picture.sessions[leader][0] if leader in picture.sessions else None
    like_leader = leads is not None and (record.release == leads.release or record.design == leads.design != "")
    if activated is not None and record.release != activated and not like_leader:
        return f"{key} runs release {record.release}, neither the activated one nor the leader's; deploy it"
    return ""


async def moving(
    client: Etcd, namespace: str, read_so: Mapping[str, tuple[SessionRecord, int]], timing: Timing, *, enough: int
) -> set[str]:
    """Which of these sessions (runtime -> record and revision as read) get a new write within their TTL; asks no longer once `enough` have.

    Raises:
        OutcomeUnknown: no majority answers.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + max((record.ttl for record, _ in read_so.values()), default=0.0)
    found: set[str] = set()
    while len(found) < enough and loop.time() < deadline:
        await asyncio.sleep(timing.renewal / 4)
        answer = await _transact(client, [], [read(session_key(namespace, key)) for key in read_so], [], timing)
        found |= {
            key for key, (_, revision) in read_so.items() if answer.entries[session_key(namespace, key)].revision not in (0, revision)
        }
    return found


async def look(client: Etcd, namespace: str, group: str, timing: Timing) -> Picture:
    """Read everything about one group through the majority.

    Raises:
        OutcomeUnknown: no majority answers. RefusedError: a newer program wrote the record.
    """
    prefix = session_key(namespace, "")
    reads = [read(control_key(namespace, group)), read(leader_key(namespace, group)), read_prefix(prefix)]
    entries = (await _transact(client, [], reads, [], timing)).entries
    control, leader = entries[control_key(namespace, group)], entries[leader_key(namespace, group)]
    sessions = {}
    for key, entry in entries.items():
        record = parse(SessionRecord, entry.value) if key.startswith(prefix) else None
        if record is not None:
            sessions[key.removeprefix(prefix)] = (record, entry.revision)
    return Picture(
        _control(parse(ControlRecord, control.value), control.revision),
        control.revision,
        parse(LeaderRecord, leader.value),
        leader.revision,
        sessions,
    )


def _control(record: ControlRecord | None, revision: int) -> ControlRecord:
    if record is None and revision != 0:
        raise RefusedError("not-ready", "the record of this group was written by a newer program; upgrade this machine's agent")
    return record or ControlRecord()


async def _transact(client: Etcd, compare: Any, success: Any, failure: Any, timing: Timing) -> Answer:
    # A person's wish may wait a little longer than a renewal may.
    return await client.transact(compare, success, failure, timeout=max(1.0, timing.request_timeout))


def _disabled(runtime: str, picture: Picture) -> str:
    """What Disable does, in the words that fit: a follower has nothing to stop."""
    if runtime in picture.control.disabled:
        return f"{runtime} was disabled already"
    if picture.leader is not None and picture.leader.runtime == runtime:
        return f"{runtime}, which led, is disabled: it stops its inbounds, gives leadership up, and leads no more until it is enabled"
    return f"{runtime} is disabled: it takes no leadership until it is enabled"


def _running(request: GroupRequest) -> RequestOutcome:
    return RequestOutcome(id=request.id, status=RequestStatus.RUNNING, reason="the leader drains and hands over")


def _succeeded(request: GroupRequest, reason: str) -> RequestOutcome:
    return RequestOutcome(id=request.id, status=RequestStatus.SUCCEEDED, reason=reason)
