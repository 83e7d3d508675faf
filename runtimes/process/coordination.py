"""The election's I/O: this process's session and its own transactions in etcd (docs/failover.md, "Sessions are observed records").

One own transaction is open at a time (the loop awaits each), none is retried, an answer after its time-out is thrown away. Every own
transaction compares and rewrites the own session, so each is a renewal too: its answer names the groups that this session leads.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from runtimes.process.election import GroupView
from runtimes.process.etcd import Answer, Entry, Etcd, OutcomeUnknown, delete, put, read, unchanged
from runtimes.process.permits import ALWAYS, NEVER, Clock, boot_clock
from runtimes.process.records import (
    ControlRecord,
    GroupMark,
    LeaderRecord,
    Observed,
    SessionRecord,
    control_key,
    leader_key,
    parse,
    plain,
    session_key,
)
from runtimes.protocol import Cause, GroupSpec, RequestOutcome, RuntimeConfig


class Result(StrEnum):
    DONE = "done"
    REFUSED = "refused"  # a comparison failed: nothing was written
    UNKNOWN = "unknown"  # it may have been carried out, or may yet be


class Coordinator:
    """The records as last received, the own session, and the permits that its renewals gave."""

    def __init__(
        self,
        etcd: Etcd,
        config: RuntimeConfig,
        groups: Sequence[GroupSpec],
        marks: Callable[[], dict[str, GroupMark]],
        clock: Clock = boot_clock,
        design: str = "",
    ) -> None:
        self.etcd = etcd
        self.me = config.key
        self.timing = config.timing
        self.groups = {group.id: group for group in groups}
        self.started = False
        self.contact_until = NEVER
        self.heard = False  # has a majority ever answered
        self._lost_since = ALWAYS  # when the first of the unanswered requests was sent, all made without standing still
        self.sent_at = NEVER  # of the newest own transaction
        self._asked_at = NEVER  # the one before it
        self.permits: dict[str, float] = dict.fromkeys(self.groups, NEVER)
        self.held_off: set[str] = set()
        self.trouble = ""
        self.last_on: dict[str, tuple[str, float]] = {}  # by group: the peer last seen On, and when
        self.last_sign: dict[str, float] = {}  # by peer: when its last write was received
        self.named: dict[str, int] = {}  # by runtime: the newest write that made it a leader
        self.awaited: frozenset[str] = frozenset()  # runtimes whose next renewal is to wake the loop
        self._namespace = config.namespace
        self._launch = config.launch
        self._release, self._design = config.release, design
        self._marks = marks
        self._clock = clock
        self._number = 1
        self._counter = 0
        self._revision = 0  # of the own last write
        self._told_at = ALWAYS  # when the watch last told something, or was opened; ALWAYS: there is none
        self._doubt = asyncio.Event()  # does the watch still work
        self._as_of: dict[str, int] = {}  # by key: the store's revision at which it was last received
        self._entries: dict[str, Entry] = {}
        self._sessions: dict[str, Observed] = {}
        self._runtimes = sorted({self.me, *(member for group in groups for member in group.members)})

    # ------------------------------------------------------------------------------------------------------------- what is known

    @property
    def session(self) -> str:
        return f"{self._launch}:{self._number}"

    @property
    def own_session(self) -> Observed | None:
        """The record at the own key, whoever wrote it; None while nothing was read."""
        return self._sessions.get(self.me)

    @property
    def sessions(self) -> Mapping[str, Observed]:
        return self._sessions

    def leader(self, group: str) -> tuple[LeaderRecord | None, int]:
        entry = self._entries.get(leader_key(self._namespace, group))
        return (parse(LeaderRecord, entry.value), entry.revision) if entry else (None, 0)

    def control(self, group: str) -> tuple[ControlRecord | None, int]:
        """The group's wishes; None when the record stands but cannot be read (a newer program's): then nothing may be done."""
        entry = self._entries.get(control_key(self._namespace, group))
        if entry is None or entry.revision == 0:
            return ControlRecord(), 0
        return parse(ControlRecord, entry.value), entry.revision

    def watched(self) -> list[str]:
        return self._keys()

    def lost_since(self, now: float) -> float:
        """Since when no majority has answered although it was asked all the time; ALWAYS: it has answered, or this process stood still."""
        return self._lost_since if now - self.sent_at <= self.timing.ttl else ALWAYS

    # ---------------------------------------------------------------------------------------------------------------- own session

    async def look(self) -> Result:
        """Read everything before a session starts. Never grants a permit."""
        sent = self.sent_at = self._clock()
        try:
            answer = await self._ask([], [read(key) for key in self._keys()], [], sent)
        except OutcomeUnknown as error:
            self.trouble = str(error)
            return Result.UNKNOWN
        self._receive(answer)
        self._adopt_own()
        return Result.DONE

    async def start(self) -> Result:
        """Begin a session over what stands at the own key (absent, or stood still for a TTL: the caller has decided that)."""
        observed = self.own_session
        assert observed is not None and not self.started
        self._revision = observed.revision
        return await self._transact([], [])

    async def renew(self) -> Result:
        return await self._transact([], [])

    async def end(self) -> Result:
        """Delete the own session: the last own transaction."""
        sent = self.sent_at = self._clock()
        key = session_key(self._namespace, self.me)
        try:
            answer = await self._ask([unchanged(key, self._revision)], [delete(key)], [], sent)
        except OutcomeUnknown as error:
            self.trouble = str(error)
            return Result.UNKNOWN
        self.started = False
        return Result.DONE if answer.succeeded else Result.REFUSED

    # ------------------------------------------------------------------------------------------------------------- own transactions

    async def take(self, view: GroupView, cause: Cause, actor: str) -> Result:
        """Become the leader: the leader key as seen, its holder's session as it was watched, control unchanged, the own session mine."""
        compare = [
            unchanged(leader_key(self._namespace, view.spec.id), view.leader_revision),
            unchanged(control_key(self._namespace, view.spec.id), view.control_revision),
        ]
        leader = view.leader
        if leader is not None and leader.runtime is not None and leader.runtime != self.me:
            observed = view.sessions[leader.runtime]
            # A record of another session cannot become the leader's again (a session starts only after its forerunner's permits ended),
            # so only the leader's own, standing or absent, must be compared.
            if observed.record is None or observed.record.session == leader.session:
                compare.append(unchanged(session_key(self._namespace, leader.runtime), observed.revision))
        previous = (leader.runtime or leader.previous) if leader else None
        record = LeaderRecord(self.me, self.session, cause, actor, previous)
        return await self._transact(compare, [put(leader_key(self._namespace, view.spec.id), plain(record))])

    async def give_up(self, view: GroupView, to: str | None, cause: Cause, actor: str, outcome: RequestOutcome | None) -> Result:
        """Hand the group to `to`, or leave it vacant. The caller has turned the group Off and voided its duty before.

        The group is held off until a later renewal succeeds, whatever comes of this (failover.md, Give up).
        """
        group = view.spec.id
        self.permits[group] = NEVER
        self.held_off.add(group)
        compare = [
            unchanged(leader_key(self._namespace, group), view.leader_revision),
            unchanged(control_key(self._namespace, group), view.control_revision),
        ]
        session = None
        request = view.control.request.id if outcome and view.control.request else None
        if to is not None:
            observed = view.sessions[to]
            assert observed.record is not None
            session = observed.record.session
            compare.append(unchanged(session_key(self._namespace, to), observed.revision))
        puts = [put(leader_key(self._namespace, group), plain(LeaderRecord(to, session, cause, actor, self.me, request)))]
        if outcome is not None:
            puts.append(put(control_key(self._namespace, group), plain(view.control.closing(outcome))))
        return await self._transact(compare, puts)

    async def close_request(self, view: GroupView, outcome: RequestOutcome) -> Result:
        """End the open request without a change of leader."""
        key = control_key(self._namespace, view.spec.id)
        return await self._transact([unchanged(key, view.control_revision)], [put(key, plain(view.control.closing(outcome)))])

    async def watch(self, woken: Callable[[bool], None]) -> None:
        """Follow the watched keys for ever; `woken(True)` asks for a renewal at once, `woken(False)` for a decision.

        Only who is made the leader needs a renewal, for its permit. Any other would come in between the leader's look at this session and
        its give-up, which compares it.

        A connection behind a gateway may stand though nobody is at its other end any more: the watch is opened anew when a request was
        not answered, or when it has told nothing for a TTL while this session was renewed (each renewal is news to a watch that works).
        """
        while True:
            self._told_at = self._clock()
            self._doubt.clear()
            following, doubt = asyncio.create_task(self._follow(woken)), asyncio.create_task(self._doubt.wait())
            try:
                await asyncio.wait((following, doubt), return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    following.result()
            except OutcomeUnknown:
                await asyncio.sleep(self.timing.renewal)
            finally:
                for task in (following, doubt):
                    task.cancel()
                await asyncio.gather(following, doubt, return_exceptions=True)

    async def _follow(self, woken: Callable[[bool], None]) -> None:
        """Raises: OutcomeUnknown when the watch breaks."""
        async for event in self.etcd.watch(self.watched()):
            self._told_at = self._clock()
            key = event.entry.key
            entry = Entry(key, 0) if event.deleted else event.entry
            if not self._note(key, entry, event.entry.revision, self._told_at):
                continue
            if not self._is_session(key):
                woken(self._is_leader(key) and self.named.get(self.me) == entry.revision)
            elif event.deleted or self._runtime_of(key) in self.awaited:
                woken(False)

    # ---------------------------------------------------------------------------------------------------------------------- inside

    def _keys(self) -> list[str]:
        return [
            *(session_key(self._namespace, runtime) for runtime in self._runtimes),
            *(leader_key(self._namespace, group) for group in self.groups),
            *(control_key(self._namespace, group) for group in self.groups),
        ]

    async def _ask(self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any], sent: float) -> Answer:
        timeout = self.timing.request_timeout
        if sent - self._asked_at > self.timing.ttl:  # it stood still since: of that time it knows nothing
            self._lost_since = ALWAYS
        self._asked_at = sent
        try:
            async with asyncio.timeout(timeout):
                answer = await self.etcd.transact(compare, success, failure, timeout=timeout)
        except TimeoutError as error:
            self._lost(sent)
            raise OutcomeUnknown(f"the router at {self.etcd.url} did not answer within {timeout:g} s") from error
        except OutcomeUnknown:
            self._lost(sent)
            raise
        if self._clock() - sent > timeout:  # paused meanwhile: the answer is as late as this process
            raise OutcomeUnknown("this process stood still while it waited for an answer")
        self.heard, self._lost_since = True, ALWAYS
        return answer

    def _lost(self, sent: float) -> None:
        """One more request without an answer."""
        self._doubt.set()
        stood_still = self._clock() - sent > self.timing.ttl
        self._lost_since = ALWAYS if stood_still else min(self._lost_since, sent)

    async def _transact(self, compare: Iterable[Any], puts: Iterable[Any]) -> Result:
        """One own transaction on the own last write, which it rewrites; its success is a renewal."""
        key = session_key(self._namespace, self.me)
        self._counter += 1
        record = SessionRecord(self.session, self._counter, self.me, self._release, self._marks(), self.timing.ttl, self._design)
        reads = [read(each) for each in self._keys()]
        sent = self.sent_at = self._clock()
        try:
            answer = await self._ask([unchanged(key, self._revision), *compare], [put(key, plain(record)), *puts, *reads], reads, sent)
        except OutcomeUnknown as error:
            self.trouble = str(error)
            return Result.UNKNOWN
        self._receive(answer)
        if not answer.succeeded:
            self._adopt_own()
            return Result.REFUSED
        self.started = True
        self._revision = answer.entries[key].revision
        self.trouble = ""
        if sent - self._told_at > self.timing.ttl:
            self._doubt.set()
        self.held_off.clear()
        self._grant(sent + self.timing.ttl - self.timing.guard)
        return Result.DONE

    def _grant(self, until: float) -> None:
        """A permit for the groups that this very answer names with this very session, and in which this member is not disabled."""
        self.contact_until = until
        for group in self.groups:
            leader, _ = self.leader(group)
            if leader is None or leader.runtime != self.me or leader.session != self.session:
                self.permits[group] = NEVER
            else:
                control, _ = self.control(group)
                if control is not None and self.me not in control.disabled:
                    self.permits[group] = until

    def _adopt_own(self) -> None:
        """After a refusal: an own write of unknown outcome has come true, or nothing moved, or the session is lost."""
        observed = self._sessions[self.me]
        if observed.record is not None and observed.record.session == self.session:
            self._revision = observed.revision
            self.started = True
        elif self.started:
            self.started = False
            self._number += 1
            self.permits = dict.fromkeys(self.groups, NEVER)
            self.contact_until = NEVER
            self.held_off.clear()
            self.trouble = "its session was ended by another; it begins a new one"

    def _receive(self, answer: Answer) -> None:
        received = self._clock()
        for key, entry in answer.entries.items():
            self._note(key, entry, answer.revision, received)
        for group in self.groups:  # a leader that this release does not know as a member is observed too
            leader, _ = self.leader(group)
            if leader is not None and leader.runtime is not None and leader.runtime not in self._runtimes:
                self._runtimes.append(leader.runtime)

    def _note(self, key: str, entry: Entry, as_of: int, received: float) -> bool:
        """Keep what is newer than what is known; tells whether it was news."""
        if as_of < self._as_of.get(key, -1):
            return False
        self._as_of[key] = as_of
        known = self._entries.get(key)
        self._entries[key] = entry
        if known is not None and known.revision == entry.revision:
            return False
        if self._is_session(key):
            self._observe(self._runtime_of(key), entry, received)
        elif self._is_leader(key) and (leader := parse(LeaderRecord, entry.value)) is not None and leader.runtime is not None:
            self.named[leader.runtime] = max(self.named.get(leader.runtime, 0), entry.revision)
        return True

    def _observe(self, runtime: str, entry: Entry, received: float) -> None:
        record = parse(SessionRecord, entry.value)
        self._sessions[runtime] = Observed(record, entry.revision, received)
        if record is not None and runtime != self.me:
            self.last_sign[runtime] = received
            for group, mark in record.groups.items():
                if mark.on:
                    self.last_on[group] = (runtime, received)

    def _is_session(self, key: str) -> bool:
        return key.startswith(f"{self._namespace}sessions/")

    def _is_leader(self, key: str) -> bool:
        return key.startswith(leader_key(self._namespace, ""))

    def _runtime_of(self, key: str) -> str:
        return key.removeprefix(f"{self._namespace}sessions/")
