"""A small world for the product's real election: runtimes with clocks of their own, one store of records, links that lose and delay.

What is real: `decide()`, the runtime's loop, the coordinator with the very comparisons and writes that it builds, its watch, the keeper's
farewell. What stands in: etcd (one linearizable store that executes those comparisons and writes), the network, time, and the flows.

Everything that happens is a verb of `World`, so that a story is a list of steps that can be replayed, shortened and read.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import structlog

from runtimes.process import farewell
from runtimes.process.config import Loaded
from runtimes.process.etcd import Answer, Entry, Event, OutcomeUnknown, _from_b64
from runtimes.process.loop import Runtime
from runtimes.process.permits import Duty
from runtimes.process.records import ControlRecord, Disabled, OpenRequest, epoch_of, parse, plain
from runtimes.protocol import PROFILES, BundleContent, Cause, GroupSpec, Preference, RuntimeConfig, Timing, TimingProfile, TlsFiles

MACHINES = ("A", "B", "C")
RATES = {"A": 0.92, "B": 1.1, "C": 1.0}  # of the machines' clocks: apart by less than the guard allows
GROUPS = ("g", "h")
LAN = msgspec.structs.replace(PROFILES[TimingProfile.LAN], drain=0.6)
WAN = msgspec.structs.replace(PROFILES[TimingProfile.WAN], drain=0.6)
FINEST = 0.02  # seconds between two looks at the world while time passes
Operation = tuple[list[Any], list[Any], list[Any]]


class Violation(AssertionError):  # noqa: N818 - said by name
    """An invariant is broken; the text begins with its number."""


class Link(StrEnum):
    """Between one process and its router, for what is sent from now on."""

    FINE = "fine"
    LATE = "late"  # requests arrive when the step `commit` says so, mostly long after their time-out
    LOST = "lost"  # requests never arrive
    MUTE = "mute"  # requests are carried out, their answers are lost
    SLOW = "slow"  # requests are carried out, their answers wait until the link is fine again
    ACTS_LATE = "acts-late"  # as late, but only what takes or gives up; renewals are fine
    ACTS_SLOW = "acts-slow"


HEARS = (Link.FINE, Link.ACTS_LATE, Link.ACTS_SLOW)


def runtime_of(machine: str) -> str:
    return f"{machine.lower()}.erp"


def key_of(operation: dict[str, Any]) -> str:
    """The key of a comparison, or of a read, put or delete."""
    body = operation if "key" in operation else next(iter(operation.values()))
    return _from_b64(body["key"])


class Store:
    """One linearizable key-value store with revisions, as etcd is."""

    def __init__(self) -> None:
        self.revision = 1
        self.keys: dict[str, Entry] = {}

    def get(self, key: str) -> Entry:
        return self.keys.get(key, Entry(key, 0))

    def put(self, key: str, value: Any) -> Event:
        self.keys[key] = Entry(key, self.revision, value)
        return Event(self.keys[key], deleted=False)

    def delete(self, key: str) -> Event:
        self.keys.pop(key, None)
        return Event(Entry(key, self.revision), deleted=True)

    def transact(self, operation: Operation) -> tuple[Answer, list[Event]]:
        compare, success, failure = operation
        holds = all(self.get(key_of(each)).revision == int(each["mod_revision"]) for each in compare)
        operations = success if holds else failure
        if any("request_range" not in each for each in operations):
            self.revision += 1
        entries: dict[str, Entry] = {}
        events = []
        for each in operations:
            if "request_put" in each:
                events.append(self.put(key_of(each), json.loads(_from_b64(each["request_put"]["value"]))))
            elif "request_delete_range" in each:
                events.append(self.delete(key_of(each)))
            else:
                entries[key_of(each)] = self.get(key_of(each))
        return Answer(holds, self.revision, entries), events


@dataclass
class Request:
    """A transaction of one process on its way."""

    process: "Process"
    operation: Operation
    sent: float  # on the process's clock
    limit: float
    future: "asyncio.Future[Answer]"
    fate: Link
    answer: Answer | None = None


class Work:
    """Stands for a flow: it runs when it is started, and is busy when the story says so."""

    spec = SimpleNamespace(name="work")
    why_not_ready = "the story says so"
    last_activity = ""

    def __init__(self) -> None:
        self.ready, self.on, self.busy = True, False, False

    def start(self, duty: Duty) -> None:
        self.on = True

    def turn(self, *, leads: bool) -> None:
        pass

    def stop(self) -> None:
        self.on = False

    def abort(self) -> None:
        self.on = self.busy = False

    close = stop


class Process:
    """One process of a runtime: the product's, with this object as its etcd and its clock."""

    url = "the story's"

    def __init__(self, world: "World", machine: str, launch: int, timing: Timing) -> None:
        self.world, self.machine, self.name, self.timing = world, machine, f"{machine}{launch}", timing
        self.key = runtime_of(machine)
        self.paused = self.ended = False
        self.link = Link.FINE
        self.watching = True
        self.news: list[Event] = []
        self._arrived: asyncio.Queue[Event] = asyncio.Queue()
        home = world.home / self.name
        home.mkdir()
        config = RuntimeConfig(
            key=self.key,
            environment="test",
            machine=machine.lower(),
            connector="erp",
            launch=self.name,
            bundle="",
            digest="",
            release=1,
            etcd="https://the-story",
            tls=TlsFiles(authority="", machine=""),
            namespace="/",
            generation=1,
            timing=timing,
            data=str(home),
            permit=str(home / "permit"),
            preferences=dict.fromkeys(world.groups, Preference.LEADER if machine == "A" else Preference.BACKUP),
        )
        specs = [GroupSpec(id=each, name=each, failover=True, members=[runtime_of(name) for name in MACHINES]) for each in world.groups]
        bundle = BundleContent(environment="test", machine=config.machine, connector="erp", release=1, flows=[], groups=specs)
        self.runtime = Runtime(Loaded(config, bundle), None, structlog.get_logger(), self.clock)
        assert self.runtime._coordinator is not None
        self.coordinator = self.runtime._coordinator
        self.coordinator.etcd = self  # type: ignore[assignment]
        for seat in self.runtime._seats:
            seat.flows.append(Work())  # type: ignore[arg-type]
        self._turning: asyncio.Task[None] | None = None
        self._watch = asyncio.ensure_future(self.coordinator.watch(self.runtime._watched))

    def clock(self) -> float:
        return 1000.0 + self.world.now * RATES[self.machine]

    # ---------------------------------------------------------------------------------------------------------- as its etcd

    async def transact(self, compare: Any, success: Any, failure: Any, *, timeout: float) -> Answer:
        future = asyncio.get_running_loop().create_future()
        operation = self.world.wire(self, (list(compare), list(success), list(failure)))
        acts = any("request_put" in each and key_of(each).startswith("/leaders/") for each in operation[1])
        fate = {Link.ACTS_LATE: Link.LATE, Link.ACTS_SLOW: Link.SLOW}.get(self.link, self.link) if acts else self.link
        if fate in (Link.ACTS_LATE, Link.ACTS_SLOW):
            fate = Link.FINE
        self.world.requests.append(Request(self, operation, self.clock(), timeout, future, fate))
        return await future

    async def watch(self, keys: Sequence[str]) -> AsyncIterator[Event]:
        while True:
            yield await self._arrived.get()

    async def close(self) -> None:
        pass

    # --------------------------------------------------------------------------------------------------------------- living

    def turn(self) -> None:
        """One turn of the loop, unless it stands still or still waits for an answer."""
        if self.paused or self.ended or (self._turning is not None and not self._turning.done()):
            return
        if self._turning is not None:
            self._turning.result()
        self._turning = asyncio.ensure_future(self._turn())

    async def _turn(self) -> None:
        if self.runtime._finished():
            await self.runtime._end()
            self.ended = True
            return
        for _ in range(4):
            await self.runtime._session_step(self.coordinator)
            if not await self.runtime._group_step():
                return

    def hear(self) -> None:
        for event in self.news:
            self._arrived.put_nowait(event)
        self.news.clear()

    def emits(self) -> dict[str, int]:
        """Groups (with the epoch) in which this process may take or emit at this instant. A paused one counts: it may have been stopped
        just behind its check."""
        if self.ended:
            return {}
        return {seat.spec.id: seat.duty.epoch for seat in self.runtime._seats if seat.duty is not None and seat.duty.valid()}

    def end(self) -> None:
        self.ended = True
        for task in (self._turning, self._watch):
            if task is not None:
                task.cancel()

    def close_files(self) -> None:
        self.runtime._page.close()


class World:
    """Time, store, links and processes; each verb ends with a look at the invariants. Verbs that make no sense at the moment do nothing."""

    def __init__(self, *, groups: Sequence[str] = GROUPS, wire: Callable[[Process, Operation], Operation] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.home = Path(self._folder.name)
        self.groups = tuple(groups)
        self.wire = wire or (lambda process, operation: operation)
        self.now = 0.0
        self.store = Store()
        self.requests: list[Request] = []
        self.late: list[Operation] = []  # will be carried out, or never
        self.processes: list[Process] = []
        self.latest: dict[str, Process] = {}
        self.leaderships = 0
        self._launches = 0
        self._asked = 0
        self._highest = dict.fromkeys(self.groups, 0)
        self._disabled_at: dict[tuple[str, str], float] = {}
        self._loop = asyncio.new_event_loop()
        self._real_timeout = asyncio.timeout
        asyncio.timeout = lambda _: self._real_timeout(None)  # type: ignore[assignment] # time-outs are the world's: a busy computer adds none
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])

    def close(self) -> None:
        async def end() -> None:
            for process in self.processes:
                process.end()
            for request in self.requests:
                request.future.cancel()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            await asyncio.gather(*tasks, return_exceptions=True)

        self._loop.run_until_complete(end())
        for process in self.processes:
            process.close_files()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        asyncio.timeout = self._real_timeout
        structlog.reset_defaults()
        self._folder.cleanup()

    def do(self, verb: str, *words: Any) -> None:
        getattr(self, verb)(*words)

    # ----------------------------------------------------------------------------------------------------------------- verbs

    def go_on(self, seconds: float) -> None:
        """Time passes, and everybody does what he does."""
        self._run(self._go_on(seconds))

    def start(self, machine: str, timing: Timing = LAN) -> None:
        """Start the machine's runtime, unless its process lives."""
        if machine not in self.latest or self.latest[machine].ended:
            self.twin(machine, timing)

    def twin(self, machine: str, timing: Timing = LAN) -> None:
        """Start a process although another of the same runtime may live (a folder that was copied, an agent that was mistaken)."""

        async def begin() -> None:
            self._launches += 1
            process = Process(self, machine, self._launches, timing)
            self.latest[machine] = process
            self.processes.append(process)

        self._run(begin())

    def crash(self, machine: str) -> None:
        """The process dies, and nobody can tell."""
        if machine in self.latest:
            self.latest[machine].end()
            self.check()

    def crash_proven(self, machine: str) -> None:
        """The process dies and its keeper ends the session."""
        if machine in self.latest and not self.latest[machine].ended:
            self.latest[machine].end()
            self._farewell(self.latest[machine], late=False)
            self.check()

    def crash_proven_late(self, machine: str) -> None:
        """The process dies; what its keeper sends to end the session arrives when the step `commit` says so."""
        if machine in self.latest and not self.latest[machine].ended:
            self.latest[machine].end()
            self._farewell(self.latest[machine], late=True)

    def farewell_again(self, machine: str) -> None:
        """The keeper of a process that died before (and was followed by another) ends its session once more."""
        dead = [process for process in self.processes if process.machine == machine and process.ended]
        if dead:
            self._farewell(dead[0], late=False)
            self.check()

    def pause(self, machine: str) -> None:
        if machine in self.latest:
            self.latest[machine].paused = True

    def resume(self, machine: str) -> None:
        """Every process of the machine goes on."""
        for process in self.processes:
            if process.machine == machine:
                process.paused = False

    def link(self, machine: str, state: str) -> None:
        if machine in self.latest:
            self.latest[machine].link = Link(state)

    def watch(self, machine: str, on: bool) -> None:
        """Let the machine's process hear of changes between its renewals, or not."""
        if machine in self.latest:
            self.latest[machine].watching = on

    def commit(self, number: int = 0) -> None:
        """Carry out one of the late requests."""
        if self.late:
            self._carry_out(self.late.pop(number % len(self.late)))
            self.check()

    def disable(self, machine: str, group: str = "g") -> None:
        self._wish(
            group, lambda control: ControlRecord({**control.disabled, runtime_of(machine): Disabled("r")}, control.request, control.done)
        )

    def enable(self, machine: str, group: str = "g") -> None:
        def enabled(control: ControlRecord) -> ControlRecord:
            left = {key: value for key, value in control.disabled.items() if key != runtime_of(machine)}
            return ControlRecord(left, control.request, control.done)

        self._wish(group, enabled)

    def switch(self, machine: str, group: str = "g") -> None:
        self._asked += 1
        epoch = epoch_of(1, self.store.get(f"/leaders/{group}").revision)
        request = OpenRequest(f"r{self._asked}", runtime_of(machine), epoch, Cause.SWITCH)
        self._wish(group, lambda control: control if control.request else ControlRecord(control.disabled, request, control.done))

    def stop(self, machine: str) -> None:
        """A clean stop is asked for."""
        if machine in self.latest and not self.latest[machine].ended:
            self.latest[machine].runtime._stop("the story says so")

    def orphan(self, machine: str) -> None:
        """The process's keeper is gone."""

        class Gone:
            async def listen(self, *_: Any) -> None:
                pass

        if machine in self.latest and not self.latest[machine].ended:
            self._run(self.latest[machine].runtime._listen(Gone()))  # type: ignore[arg-type]
            self.check()

    def ready(self, machine: str, on: bool, group: str = "g") -> None:
        self._work(machine, "ready", on, group)

    def busy(self, machine: str, on: bool, group: str = "g") -> None:
        """Something is in flight there, or not any more."""
        self._work(machine, "busy", on, group)

    def calm(self) -> None:
        """Every fault clears. Raises Violation when not each group has exactly one leader within TTL + 2 election time-outs + 1 s, here
        5 s with restarts, drains and slow profiles (I2)."""
        for machine in MACHINES:
            for group in self.groups:
                self.enable(machine, group)
            for process in self.processes:
                if process.machine == machine and (process is not self.latest[machine] or process.runtime._stopping_since is not None):
                    process.end()
            self.resume(machine)
            self.start(machine)
            self.link(machine, Link.FINE)
            self.watch(machine, True)
            for group in self.groups:
                self.ready(machine, True, group)
                self.busy(machine, False, group)
        self.late.clear()
        self.go_on(3.0 + 2 * max(process.timing.ttl for process in self.processes))
        for group in self.groups:
            on = [process.name for process in self.processes if group in process.emits()]
            if len(on) != 1:
                raise Violation(f"I2: group {group} is led by {on or 'nobody'} although every fault has cleared")

    # ------------------------------------------------------------------------------------------------------------ invariants

    def check(self) -> None:
        """Raises Violation."""
        on = [(process, process.emits()) for process in self.processes]
        for group in self.groups:
            emitting = [(process, epochs[group]) for process, epochs in on if group in epochs]
            if len(emitting) > 1:
                who = " and ".join(f"{process.name} (epoch {epoch})" for process, epoch in emitting)
                raise Violation(f"I1: {who} may both emit in group {group} at {self.now:.2f} s")
            for process, epoch in emitting:
                if epoch < self._highest[group]:
                    raise Violation(f"I4: {process.name} emits in group {group} with epoch {epoch} after {self._highest[group]}")
                self._highest[group] = epoch
                since = self._disabled_at.get((group, process.key))
                limit = (process.timing.ttl - process.timing.guard) / RATES[process.machine]  # the longest permit that may stand by then
                if since is not None and self.now > since + limit + FINEST:
                    raise Violation(f"I5: {process.name} emits in group {group}, disabled {self.now - since:.2f} s ago")

    def _noticed(self, event: Event) -> None:
        """What a write means for the invariants, at its very instant."""
        kind, _, name = event.entry.key.strip("/").partition("/")
        if (
            kind == "leaders"
            and event.entry.value
            and event.entry.value["runtime"] is None
            and event.entry.value["cause"] == Cause.NOT_READY
        ):
            raise Violation(f"I2: group {name} was given up to nobody by a leader that is not ready")
        if kind == "leaders" and event.entry.value and event.entry.value["runtime"]:
            self.leaderships += 1
            control = parse(ControlRecord, self.store.get(f"/control/{name}").value) or ControlRecord()
            if event.entry.value["runtime"] in control.disabled:
                raise Violation(f"I5: {event.entry.value['runtime']} was made leader of group {name} although it is disabled")
        if kind == "control":
            control = parse(ControlRecord, event.entry.value) or ControlRecord()
            for machine in MACHINES:
                if runtime_of(machine) not in control.disabled:
                    self._disabled_at.pop((name, runtime_of(machine)), None)
                else:
                    self._disabled_at.setdefault((name, runtime_of(machine)), self.now)

    # ---------------------------------------------------------------------------------------------------------------- inside

    def _run(self, doing: Coroutine[Any, Any, None]) -> None:
        self._loop.run_until_complete(doing)

    async def _go_on(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(self.now + FINEST, end)
            self.check()  # permits that have not ended yet, before anybody does anything
            for process in self.processes:
                process.turn()
            for _ in range(6):  # a request, its answer, what follows from it, and again
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                moved = self._deliver()
                self.check()
                if not moved:
                    break
            await asyncio.sleep(0)

    def _deliver(self) -> bool:
        """Carry what is on its way, as the links allow; tells whether anything moved."""
        moved = False
        for request in list(self.requests):
            process = request.process
            if request.answer is None and request.fate in (Link.FINE, Link.MUTE, Link.SLOW):
                request.answer = self._carry_out(request.operation)
                moved = True
            elif request.fate == Link.LATE:
                self.late.append(request.operation)
                request.fate = Link.LOST
            arrives = request.fate == Link.FINE or (request.fate == Link.SLOW and process.link == Link.FINE)
            if process.paused and not process.ended:
                continue
            if request.future.done():
                self.requests.remove(request)
            elif request.answer is not None and arrives:
                request.future.set_result(request.answer)
                self.requests.remove(request)
                moved = True
            elif process.clock() - request.sent > request.limit:
                request.future.set_exception(OutcomeUnknown("no answer"))
                self.requests.remove(request)
                moved = True
        for process in self.processes:
            if process.news and process.watching and not process.paused and process.link in HEARS:
                process.hear()
                moved = True
        return moved

    def _carry_out(self, operation: Operation) -> Answer:
        answer, events = self.store.transact(operation)
        self._tell(events)
        return answer

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            self._noticed(event)
            for process in self.processes:
                if process.watching and not process.ended:
                    process.news.append(event)

    def _wish(self, group: str, make: Callable[[ControlRecord], ControlRecord]) -> None:
        control = parse(ControlRecord, self.store.get(f"/control/{group}").value) or ControlRecord()
        self.store.revision += 1
        self._tell([self.store.put(f"/control/{group}", plain(make(control)))])
        self.check()

    def _farewell(self, dead: Process, *, late: bool) -> None:
        """The keeper's own program, with this store at the other end of its connection."""

        class Connection:
            sock = None

            def close(self) -> None:
                pass

        class Files:
            def refresh(self) -> None:
                pass

        def post(_: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
            if path.endswith("range"):
                entry = self.store.get(_from_b64(body["key"]))
                value = farewell.base64.b64encode(json.dumps(entry.value).encode()).decode()
                return {"kvs": [{"value": value, "mod_revision": str(entry.revision)}]} if entry.revision else {}
            operation = self.wire(dead, (list(body["compare"]), list(body["success"]), []))
            if late:
                self.late.append(operation)
                raise OSError("no answer")
            return {"succeeded": self._carry_out(operation).succeeded}

        class Clock:
            """One try, unless it fails; then the time is over."""

            now = 0.0

            def monotonic(self) -> float:
                return self.now

            def sleep(self, _: float) -> None:
                self.now = 10.0

        stand_ins = {"_connection": lambda *_: Connection(), "_post": post, "time": Clock()}
        before = {name: getattr(farewell, name) for name in stand_ins}
        try:
            for name, each in stand_ins.items():
                setattr(farewell, name, each)
            farewell.end_session("https://the-story", "/", dead.key, dead.name, Files(), 1.0)  # type: ignore[arg-type]
        finally:
            for name, each in before.items():
                setattr(farewell, name, each)

    def _work(self, machine: str, what: str, on: bool, group: str) -> None:
        for seat in self.latest[machine].runtime._seats if machine in self.latest else ():
            if seat.spec.id == group:
                setattr(seat.flows[0], what, on)


Step = tuple[Any, ...]  # a verb and its words


def story(steps: Sequence[Step]) -> str:
    return "\n".join(f"  {verb}({', '.join(repr(word) for word in words)})" for verb, *words in steps)


def play(steps: Sequence[Step], **world: Any) -> World:
    """Everybody starts, then the steps. Raises Violation."""
    made = World(**world)
    try:
        for machine in MACHINES:
            made.start(machine)
        for verb, *words in steps:
            made.do(verb, *words)
    finally:
        made.close()
    return made


def shortest(steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """The story without every step that it does not need to fail."""
    left, size = list(steps), max(len(steps) // 2, 1)
    while True:
        at = 0
        while at < len(left):
            fewer = left[:at] + left[at + size :]
            if fails(fewer):
                left = fewer
            else:
                at += size
        if size == 1:
            return left
        size = max(size // 2, 1)
