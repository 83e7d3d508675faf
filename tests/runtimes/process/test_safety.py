"""Never two, by random schedules: the production loop and coordinator on simulated clocks against a store that loses, delays and
commits late. Each schedule is a list of numbers, so that Hypothesis shrinks a violation to its shortest story.

Simulated: crashes (with and without a keeper), restarts, pauses, answers lost or late, transactions that commit long after their
time-out, clocks of different rates, switch, disable, enable, clean stops.
"""

import asyncio
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from runtimes.process import election
from runtimes.process.config import Loaded
from runtimes.process.etcd import Answer, Entry, OutcomeUnknown, _from_b64
from runtimes.process.loop import Runtime
from runtimes.process.permits import Duty, PermitPage
from runtimes.process.records import ControlRecord, Disabled, OpenRequest, epoch_of, parse, plain
from runtimes.protocol import BundleContent, Cause, GroupSpec, Preference, RuntimeConfig, Timing, TlsFiles

MEMBERS = ["m0.c", "m1.c", "m2.c"]
SPEC = GroupSpec(id="g", name="g", failover=True, members=MEMBERS)
RATES = [1.0, 1.1, 0.92]  # of the members' clocks: apart by less than the guard allows
TIMING = Timing(request_timeout=0.3)


class Store:
    """One linearizable key-value store with revisions, as etcd is."""

    def __init__(self) -> None:
        self.revision = 1
        self.keys: dict[str, Entry] = {}

    def get(self, key: str) -> Entry:
        return self.keys.get(key, Entry(key, 0))

    def transact(self, compare: list[Any], success: list[Any], failure: list[Any]) -> Answer:
        holds = all(self.get(_from_b64(each["key"])).revision == int(each["mod_revision"]) for each in compare)
        operations = success if holds else failure
        if any("request_range" not in operation for operation in operations):
            self.revision += 1
        entries: dict[str, Entry] = {}
        for operation in operations:
            for name, body in operation.items():
                key = _from_b64(body["key"])
                if name == "request_put":
                    self.keys[key] = Entry(key, self.revision, json.loads(_from_b64(body["value"])))
                elif name == "request_delete_range":
                    self.keys.pop(key, None)
                else:
                    entries[key] = self.get(key)
        return Answer(holds, self.revision, entries)


@dataclass
class Pending:
    """A transaction on its way: the scheduler commits it, delivers its answer, or does neither."""

    owner: "Member"
    operation: tuple[Any, Any, Any]
    future: "asyncio.Future[Answer]"
    answer: Answer | None = None


@dataclass
class Member:
    """One machine's process (its present launch) and its clock."""

    number: int
    world: "World"
    launches: int = 0
    runtime: Runtime | None = None
    task: "asyncio.Task[None] | None" = None
    paused: bool = False
    url: str = "simulated"

    def clock(self) -> float:
        return 1000.0 * (self.number + 1) + self.world.now * RATES[self.number]

    async def transact(self, compare: Any, success: Any, failure: Any, *, timeout: float) -> Answer:
        pending = Pending(self, (compare, success, failure), asyncio.get_running_loop().create_future())
        self.world.pending.append(pending)
        return await pending.future

    def start(self) -> None:
        self.launches += 1
        key = MEMBERS[self.number]
        home = self.world.home / f"{key}-{self.launches}"
        home.mkdir()
        config = RuntimeConfig(
            key=key,
            environment="test",
            machine=key.split(".")[0],
            connector="c",
            launch=f"{key}-{self.launches}",
            bundle="",
            digest="",
            release=1,
            etcd="https://simulated",
            tls=TlsFiles(authority="", machine=""),
            namespace="/",
            generation=1,
            timing=TIMING,
            data=str(home),
            permit=str(home / "permit"),
            preferences={"g": Preference.LEADER if self.number == 0 else Preference.BACKUP},
        )
        bundle = BundleContent(environment="test", machine=config.machine, connector="c", release=1, flows=[], groups=[SPEC])
        self.runtime = Runtime(Loaded(config, bundle), None, structlog.get_logger(), self.clock)
        assert self.runtime._coordinator is not None
        self.runtime._coordinator.etcd = self  # type: ignore[assignment]
        self.paused = False

    def crash(self, keeper: bool) -> None:
        launch = f"{MEMBERS[self.number]}-{self.launches}"
        if self.task is not None:
            self.task.cancel()
        self.task = self.runtime = None
        key = f"/sessions/{MEMBERS[self.number]}"
        entry = self.world.store.get(key)
        if keeper and entry.revision and entry.value["session"].startswith(f"{launch}:"):
            self.world.store.revision += 1
            del self.world.store.keys[key]

    def step(self) -> None:
        """One turn of the loop, unless the last one still waits for an answer."""
        if self.runtime is None or self.paused or (self.task is not None and not self.task.done()):
            return
        if self.task is not None:
            self.task.result()
        self.task = asyncio.ensure_future(_turn(self.runtime))

    def emits(self) -> bool:
        """May this process take or emit at this instant. A paused one counts: it may have been stopped just behind its check."""
        duty = self.runtime._seats[0].duty if self.runtime is not None else None
        return duty is not None and duty.valid()


async def _turn(runtime: Runtime) -> None:
    assert runtime._coordinator is not None
    await runtime._session_step(runtime._coordinator)
    await runtime._group_step()


@dataclass
class World:
    home: Path
    now: float = 0.0
    store: Store = field(default_factory=Store)
    pending: list[Pending] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    leaderships: int = 0
    requests: int = 0
    highest: int = 0
    leader: Any = None

    def check(self) -> None:
        emitting = [member.number for member in self.members if member.emits()]
        assert len(emitting) <= 1, f"two at {self.now:.3f}: {emitting}"
        entry = self.store.get("/leaders/g")
        if entry.revision and entry != self.leader:
            assert entry.revision > self.highest, "epochs only grow"
            self.highest, self.leader = entry.revision, entry
            self.leaderships += 1
            control = parse(ControlRecord, self.store.get("/control/g").value) or ControlRecord()
            assert entry.value["runtime"] not in control.disabled, "a disabled member was made the leader"

    def wish(self, make: Callable[[ControlRecord], ControlRecord]) -> None:
        control = parse(ControlRecord, self.store.get("/control/g").value) or ControlRecord()
        self.store.revision += 1
        self.store.keys["/control/g"] = Entry("/control/g", self.store.revision, plain(make(control)))

    def switch(self, to: str) -> None:
        entry = self.store.get("/leaders/g")
        self.requests += 1
        request = OpenRequest(f"r{self.requests}", to, epoch_of(1, entry.revision), Cause.SWITCH)
        self.wish(lambda control: control if control.request else ControlRecord(control.disabled, request, control.done))

    def disable(self, runtime: str) -> None:
        self.wish(lambda control: ControlRecord({**control.disabled, runtime: Disabled("r")}, control.request, control.done))

    def enable(self) -> None:
        self.wish(lambda control: ControlRecord({}, control.request, control.done))

    def event(self, rnd: random.Random) -> None:
        """One thing that happens."""
        kind = rnd.random()
        member = rnd.choice(self.members)
        if kind < 0.62:
            self.now += rnd.choice([0.001, 0.01, 0.05, 0.1])
            self._network(rnd)
        elif kind < 0.90:
            self._network(rnd)
        elif kind < 0.92:
            member.paused = not member.paused
        elif kind < 0.94:
            if member.runtime is not None:
                member.crash(keeper=rnd.random() < 0.5)
        elif kind < 0.96:
            if member.runtime is None:
                member.start()
        elif kind < 0.97:
            self.now += rnd.choice([0.3, 0.8, 1.0, 1.3])
        elif kind < 0.98:
            self.switch(rnd.choice(MEMBERS))
        elif kind < 0.99:
            self.disable(rnd.choice(MEMBERS)) if rnd.random() < 0.5 else self.enable()
        elif member.runtime is not None and rnd.random() < 0.3:
            member.runtime._stop("asked")
        for each in self.members:
            if rnd.random() < 0.8:
                each.step()

    def _network(self, rnd: random.Random) -> None:
        """Carry what is on its way: mostly at once, sometimes late, sometimes without an answer."""
        for pending in list(self.pending):
            fate = rnd.random()
            waits = not pending.future.done()
            if pending.answer is None and fate < 0.8:
                pending.answer = self.store.transact(*pending.operation)
            if pending.answer is not None and waits and not pending.owner.paused and fate < 0.75:
                pending.future.set_result(pending.answer)
            elif waits and fate > 0.94:
                pending.future.set_exception(OutcomeUnknown("no answer"))  # it may still be committed later
            if pending.answer is not None and pending.future.done():
                self.pending.remove(pending)


async def _play(schedule: list[int], home: Path) -> World:
    world = World(home)
    world.members = [Member(number, world) for number in range(len(MEMBERS))]
    for member in world.members:
        member.start()
    for number in schedule:
        world.event(random.Random(number))
        for _ in range(4):
            await asyncio.sleep(0)
        world.check()
    await _calm(world)
    tasks = [member.task for member in world.members if member.task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for pending in world.pending:
        pending.future.cancel()
    return world


async def _calm(world: World) -> None:
    """The last fault has cleared: exactly one leads within TTL + 2 election time-outs + 1 s (I2), here 4 s with restarts."""
    world.enable()
    for member in world.members:
        member.paused = False
        if member.runtime is None or member.runtime._stopping_since is not None:
            member.crash(keeper=True)
            member.start()
    for _ in range(400):
        world.now += 0.01
        for pending in world.pending:
            if pending.answer is None:
                pending.answer = world.store.transact(*pending.operation)
            if not pending.future.done():
                pending.future.set_result(pending.answer)
        world.pending.clear()
        for member in world.members:
            member.step()
        for _ in range(4):
            await asyncio.sleep(0)
        world.check()
    assert sum(member.emits() for member in world.members) == 1, "one leads once the faults are over"


def play(schedule: list[int]) -> World:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(PermitPage, "__del__", PermitPage.close, raising=False)
        real = asyncio.timeout
        patch.setattr(asyncio, "timeout", lambda _: real(None))  # time-outs are simulated: a busy machine adds none
        return asyncio.run(_play(schedule, Path(folder)))


SCHEDULES = st.lists(st.integers(0, 2**32), min_size=200, max_size=500)
CHECKS = settings(
    max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate, Phase.shrink)
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    yield
    structlog.reset_defaults()


@CHECKS
@given(SCHEDULES)
def test_never_two_emit_epochs_only_grow_and_a_disabled_member_never_leads(schedule: list[int]) -> None:
    play(schedule)


def test_schedules_do_change_leaders() -> None:
    rnd = random.Random(7)
    assert sum(play([rnd.getrandbits(32) for _ in range(500)]).leaderships for _ in range(5)) > 10


@pytest.mark.parametrize("rule", ["a full TTL", "the permit's end"])
def test_without_a_rule_two_are_found(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the same search finds two when a rule is removed."""
    if rule == "a full TTL":
        whole = election.vacancy
        hasty = Timing(ttl=0.3)

        def vacancy(view: election.GroupView, now: float) -> Any:
            return whole(replace(view, timing=hasty), now)

        monkeypatch.setattr(election, "vacancy", vacancy)
    else:
        monkeypatch.setattr(Duty, "valid", lambda duty: not duty._void)
    rnd = random.Random(2)
    with pytest.raises(AssertionError, match="two at"):
        for _ in range(60):
            play([rnd.getrandbits(32) for _ in range(500)])
