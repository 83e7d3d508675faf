"""The inbound `timer`, and what flows remember across a change of leader: real schedules, a real etcd."""

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import structlog

from runtimes.process.connectors.base import ConfigError, Fenced, FlowState, Setting, Unavailable
from runtimes.process.connectors.timer import TimerInbound, due
from runtimes.process.etcd import Etcd, put, read, unchanged
from runtimes.process.permits import Duty
from runtimes.process.records import epoch_of, leader_key
from runtimes.process.state import FileState, GroupState
from runtimes.protocol import BundleContent, Component, ComponentKind, FlowSpec, GroupSpec, Preference
from tests.runtimes.process.lab import NAMESPACE, Broker, EtcdCluster, Launched, launch, queue, until

AMSTERDAM = ZoneInfo("Europe/Amsterdam")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "last", "now", "missed", "fires", "left_out"),
    [
        pytest.param("*/5 * * * *", "2026-11-22T10:01", "2026-11-22T10:04", "once", [], 0, id="not yet"),
        pytest.param("*/5 * * * *", "2026-11-22T10:01", "2026-11-22T10:05:01", "once", ["10:05"], 0, id="now"),
        pytest.param("*/5 * * * *", "2026-11-22T10:05", "2026-11-22T10:05:01", "once", [], 0, id="it has fired"),
        pytest.param("*/5 * * * *", "2026-11-22T10:01", "2026-11-22T10:17", "once", ["10:15"], 2, id="missed: the latest, once"),
        pytest.param("*/5 * * * *", "2026-11-22T10:01", "2026-11-22T10:17", "every", ["10:05", "10:10", "10:15"], 0, id="missed: each"),
        pytest.param("*/5 * * * *", "2026-11-22T10:01", "2026-11-22T10:17", "none", [], 3, id="missed: none"),
        pytest.param("*/5 * * * *", "2026-11-22T10:01", "2026-11-22T10:15:30", "none", ["10:15"], 2, id="in time all the same"),
        pytest.param("* * * * *", "1990-01-01T10:00", "2026-11-22T10:00:30", "none", ["10:00"], 1439, id="decades of minutes, at once"),
        pytest.param("30 8 * * mon-fri", "2026-11-20T08:00", "2026-11-23T07:31", "once", ["07:30"], 0, id="Monday 8:30 in Amsterdam"),
    ],
)
def test_which_instants_fire(schedule: str, last: str, now: str, missed: str, fires: list[str], left_out: int) -> None:
    fired, left = due(schedule, AMSTERDAM, utc(last), utc(now), missed)
    assert [f"{moment:%H:%M}" for moment in fired] == fires and len(left) == left_out


@pytest.mark.parametrize(
    ("schedule", "last", "now", "fires"),
    [
        pytest.param("30 2 * * *", "2026-03-28T12:00", "2026-03-29T12:00", 1, id="02:30 does not exist that night: it comes once"),
        pytest.param("30 2 * * *", "2026-10-24T12:00", "2026-10-25T12:00", 1, id="02:30 comes twice that night: it fires once"),
    ],
)
def test_when_clocks_change(schedule: str, last: str, now: str, fires: int) -> None:
    assert len(due(schedule, AMSTERDAM, utc(last), utc(now), "every")[0]) == fires


def timer(tmp_path: Path, **settings: str) -> TimerInbound:
    component = Component(kind=ComponentKind.TIMER, settings={"schedule": "* * * * *", **settings})
    log = structlog.get_logger()
    return TimerInbound(Setting("f", "nightly", component, "inbound", "external01.erp", "external01", tmp_path / "data", log))


def test_an_instant_is_an_item_with_the_same_id_everywhere_and_is_remembered_once_delivered(tmp_path: Path) -> None:
    held, now = Duty("g", "orders", 0, float("inf")), utc("2026-11-22T10:00:30")
    first = timer(tmp_path, time_zone="Europe/Amsterdam")
    first.clock = lambda: now
    first.begin(held)
    assert first.poll(held) == []
    now = utc("2026-11-22T10:01:00")
    (item,) = first.poll(held)
    with item.open() as chunks:
        assert json.loads(b"".join(chunks)) == {
            "instant": "2026-11-22T10:01:00Z",
            "local": "2026-11-22T11:01:00+01:00",
            "schedule": "* * * * *",
        }
    again = timer(tmp_path)
    again.clock = lambda: now
    again.begin(held)
    (same,) = again.poll(held)
    assert same.id == item.id, "it was not delivered yet"
    again.remove(same, held)
    assert again.poll(held) == []
    first.begin(held)
    assert first.poll(held) == [], "another leader finds it done"


def test_an_instant_that_fails_while_later_ones_go_is_neither_left_out_nor_are_they_fired_again(tmp_path: Path) -> None:
    held, now = Duty("g", "orders", 0, float("inf")), utc("2026-11-22T10:00:30")
    made = timer(tmp_path, missed="every")
    made.clock = lambda: now
    made.begin(held)
    now = utc("2026-11-22T10:03:30")
    first, second, third = made.poll(held)
    made.remove(second, held)  # the target refused the first one for now
    after_a_crash = timer(tmp_path, missed="every")
    after_a_crash.clock = lambda: now
    after_a_crash.begin(held)
    assert first.id in {item.id for item in after_a_crash.poll(held)}, "the next leader has it"
    made.remove(third, held)
    assert [item.id for item in made.poll(held)] == [first.id]
    made.remove(first, held)
    assert made.poll(held) == [], "what went before it does not come again"
    after_a_crash.begin(held)
    assert after_a_crash.poll(held) == []


def test_a_clock_that_was_wrong_stops_no_timer_for_ever(tmp_path: Path) -> None:
    """A leader whose clock ran ahead remembered an instant of the future; then another leads, or its clock was set right."""
    held, now = Duty("g", "orders", 0, float("inf")), utc("2026-11-22T10:00:30")
    made = timer(tmp_path)
    made.clock = lambda: now
    made.begin(held)
    now = utc("2030-01-01T00:00:00")
    for item in made.poll(held):
        made.remove(item, held)
    now = utc("2026-11-22T10:02:30")
    assert made.poll(held) == [], "it goes on from now"
    now = utc("2026-11-22T10:03:00")
    (item,) = made.poll(held)
    assert b"100300" in item.name
    made.remove(item, held)
    now = utc("2026-11-22T09:50:00")
    with pytest.raises(Unavailable, match="10:03 UTC, lies 13 minutes ahead of this clock: nothing fires before that; correct the clocks"):
        made.poll(held)


def test_a_content_of_its_own(tmp_path: Path) -> None:
    held, now = Duty("g", "orders", 0, float("inf")), utc("2026-11-22T10:00:30")
    made = timer(tmp_path, content="run {instant}")
    made.clock = lambda: now
    made.begin(held)
    now = utc("2026-11-22T10:01:00")
    (item,) = made.poll(held)
    with item.open() as chunks:
        assert b"".join(chunks) == b"run 2026-11-22T10:01:00Z"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param({"schedule": "61 * * * *"}, "setting schedule .* is no schedule", id="no such minute"),
        pytest.param({"schedule": "* * * * * *"}, "not five fields", id="seconds are not offered"),
        pytest.param({"schedule": "0 0 31 2 *"}, "Bad day-of-month", id="the 31st of February"),
        pytest.param({"time_zone": "Mars/Olympus"}, "names no time zone", id="no such zone"),
        pytest.param({"missed": "perhaps"}, "is none of once, every, none", id="no such policy"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(tmp_path: Path, given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        timer(tmp_path, **given)


# ------------------------------------------------------------------------------------------------------------ what is remembered


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def test_who_no_longer_leads_writes_nothing(router: EtcdCluster, loop: asyncio.AbstractEventLoop) -> None:
    etcd = Etcd(router.urls[0], router.tls)
    key = leader_key(NAMESPACE, "g")

    def lead() -> Duty:
        async def write() -> int:
            await etcd.transact([unchanged("other", 0)], [put(key, {"runtime": "x"})], [], timeout=2)
            return (await etcd.transact([], [read(key)], [], timeout=2)).entries[key].revision

        revision = asyncio.run_coroutine_threadsafe(write(), loop).result(5)
        return Duty("g", "orders", epoch_of(3, revision), float("inf"))

    state = GroupState(lambda: etcd, loop, NAMESPACE, "g", "f")
    try:
        old = lead()
        assert state.read(old) == {}
        state.write(old, {"cursor": "1"})
        new = lead()
        assert state.read(new) == {"cursor": "1"}
        state.write(new, {"cursor": "2"})
        with pytest.raises(Fenced):
            state.write(old, {"cursor": "1"})
        assert state.read(old) == {"cursor": "2"}
    finally:
        asyncio.run_coroutine_threadsafe(etcd.close(), loop).result(5)


def test_who_runs_alone_goes_on_where_the_group_was_on_every_member(tmp_path: Path) -> None:
    """Not from the first cursor, nor from what this machine remembered when it last ran alone."""

    class Away(FileState):
        def read(self, duty: Duty) -> dict[str, object]:
            raise Unavailable("no majority")

    def member(name: str, shared: type[FileState] = FileState) -> FlowState:
        return FlowState(shared(tmp_path / "shared.json"), FileState(tmp_path / name / "f.json"))

    leads, alone = Duty("g", "orders", 10**12 + 5, float("inf")), Duty("g", "orders", 0, float("inf"))
    member("follower").write(alone, {"cursor": "of last winter"})
    member("leader").write(leads, {"cursor": "7"})
    assert member("leader", Away).read(alone) == {"cursor": "7"}
    member("follower").keep_up()
    member("follower", Away).keep_up()
    assert member("follower", Away).read(alone) == {"cursor": "7"}
    member("follower").write(alone, {"cursor": "8"})
    assert member("leader").read(leads) == {"cursor": "7"}, "what one did alone is its own"


def test_what_a_single_node_remembers_is_on_disk_before_it_takes_the_place_of_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut an empty file would stop the flow for good."""
    synced: list[bytes] = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").resolve().read_bytes()))
    FileState(tmp_path / "state" / "f.json").write(Duty(None, "", 0, float("inf")), {"cursor": "1"})
    assert synced == [b'{"cursor": "1"}']
    (tmp_path / "state" / "f.json").write_bytes(b"")
    with pytest.raises(Unavailable, match="without that file it begins anew"):
        FileState(tmp_path / "state" / "f.json").read(Duty(None, "", 0, float("inf")))


def test_the_next_leader_goes_on_after_a_crash(tmp_path: Path, three_routers: EtcdCluster, broker: Broker) -> None:
    """A timer that is due: the first leader has fired every missed minute; the second fires none of them again."""
    three_routers.clear()
    inbound = Component(kind=ComponentKind.TIMER, settings={"schedule": "* * * * *", "missed": "every"})
    flow = FlowSpec(id="f", name="nightly", version="1", inbound=inbound, outbound=queue(broker), group="g")
    members = ["external01.erp", "external02.erp"]
    past = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()

    async def remember() -> None:
        etcd = Etcd(three_routers.urls[0], three_routers.tls)
        await etcd.transact([], [put(f"{NAMESPACE}state/f", {"last": past})], [], timeout=2)
        await etcd.close()

    asyncio.run(remember())
    processes: list[Launched] = []

    def start(number: int) -> Launched:
        bundle = BundleContent(
            environment="test", machine=f"external0{number}", connector="erp", release=1, flows=[flow],
            groups=[GroupSpec(id="g", name="orders", failover=True, members=members)],
        )  # fmt: skip
        wish = {"g": Preference.LEADER if number == 1 else Preference.BACKUP}
        processes.append(launch(tmp_path, bundle, members[number - 1], three_routers.urls[number], number, wish, tls=three_routers.tls))
        return processes[-1]

    def fired() -> list[bytes]:
        return [fields[b"id"] for _, fields in broker.client.xrange("t:orders")]

    try:
        first = start(1)
        until(lambda: len(fired()) >= 5, 15, "the missed minutes are fired")
        second = start(2)
        until(second.follows, 10)
        first.kill(keeper=True)
        until(second.leads, 5)
        until(lambda: second.flows["f"].last_poll, 8, "it has looked at its schedule")
        assert len(fired()) == len(set(fired())) <= 7, "none of them again"
        assert three_routers.read("state/f")["last"] > past
    finally:
        for process in processes:
            process.close()
