"""Inbounds and outbounds against real folders and a real queue."""

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from runtimes.process import fitness
from runtimes.process import flows as flow_module
from runtimes.process.connectors import INBOUNDS, OUTBOUNDS
from runtimes.process.connectors import queue as queue_connector
from runtimes.process.connectors.base import ConfigError, Fenced, Item, ItemChanged, ItemError, NotReady, Setting, Unavailable
from runtimes.process.connectors.file import FileInbound, FileOutbound, target_name
from runtimes.process.connectors.queue import QueueInbound, QueueOutbound
from runtimes.process.flows import Flow
from runtimes.process.permits import Duty, PermitEnded
from runtimes.protocol import Component, ComponentKind, FlowSpec
from tests.runtimes.process.lab import Broker, folder, queue, until

LATIN_1 = "bestellung-ü.xml".encode("latin-1")
EPOCH = 10**12 + 5


def setting(component: Component, tmp_path: Path, side: str = "inbound") -> Setting:
    log = structlog.get_logger()
    return Setting("f", "erp-orders", component, side, "external01.erp", "external01", tmp_path / "data", log)


def duty(epoch: int = EPOCH, clock: Callable[[], float] = lambda: 0.0) -> Duty:
    return Duty("g", "orders", epoch, 1.0, clock)


def settled(inbound: FileInbound, held: Duty) -> list[Item]:
    """What the poller offers once everything has stood still."""
    inbound.poll(held)
    time.sleep(0.55)
    return list(inbound.poll(held))


def content(item: Item) -> bytes:
    with item.open() as chunks:
        return b"".join(chunks)


@pytest.fixture
def source(tmp_path: Path) -> FileInbound:
    made = FileInbound(setting(folder(tmp_path / "outbox", error_folder=str(tmp_path / "errors")), tmp_path))
    made.prepare()
    return made


@pytest.fixture
def flows(tmp_path: Path) -> Iterator[Callable[..., Flow]]:
    made: list[Flow] = []

    def start(inbound: Component, outbound: Component, held: Duty, group: str | None = None) -> Flow:
        spec = FlowSpec(id="f", name="erp-orders", version="1.0.0", inbound=inbound, outbound=outbound, group=group)
        log = structlog.get_logger()
        flow = Flow(spec, key="e.erp", machine="e", data=tmp_path / "data", changed=lambda: None, log=log)
        flow.open()
        flow.start(held)
        made.append(flow)
        return flow

    yield start
    for flow in made:
        flow.close()
    until(lambda: not any(flow.busy for flow in made), 5)


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the connections of connectors that a test made itself."""
    made: list[Any] = []
    begin = queue_connector.Broker.__init__

    def remembered(broker: Any, *args: Any) -> None:
        begin(broker, *args)
        made.append(broker)

    monkeypatch.setattr(queue_connector.Broker, "__init__", remembered)
    yield
    for broker in made:
        broker.abort()


# ------------------------------------------------------------------------------------------------------------------------ file


def test_a_file_is_offered_once_it_has_stood_still_and_names_need_no_encoding(source: FileInbound, tmp_path: Path) -> None:
    for name, data in {LATIN_1: b"<x/>", b"empty": b"", b".hidden": b"x", b"a.tmp": b"x", b"b.part": b"x"}.items():
        (tmp_path / "outbox" / os.fsdecode(name)).write_bytes(data)
    (tmp_path / "outbox" / "folder").mkdir()
    assert source.poll(duty()) == []
    items = settled(source, duty())
    assert {item.name: content(item) for item in items} == {LATIN_1: b"<x/>", b"empty": b""}
    assert len({item.id for item in items}) == 2
    assert {item.id for item in source.poll(duty())} == {item.id for item in items}, "ids are stable"
    assert items[0].origin.group == "orders" and items[0].origin.epoch == EPOCH


def test_a_file_still_being_written_is_not_offered(source: FileInbound, tmp_path: Path) -> None:
    with (tmp_path / "outbox" / "growing").open("wb") as file:
        for _ in range(8):
            file.write(b"x")
            file.flush()
            assert source.poll(duty()) == []
            time.sleep(0.1)
    time.sleep(0.6)
    assert len(source.poll(duty())) == 1


def test_a_file_that_changes_while_it_is_read_drops_the_attempt_and_stays(source: FileInbound, tmp_path: Path) -> None:
    path = tmp_path / "outbox" / "order"
    path.write_bytes(b"first")
    (item,) = settled(source, duty())
    with item.open() as chunks, pytest.raises(ItemChanged):
        next(chunks)
        path.write_bytes(b"second, longer")
        list(chunks)
    source.remove(item, duty())
    assert path.read_bytes() == b"second, longer", "another file than the delivered one is not removed"


def test_a_rejected_file_moves_to_the_error_folder_with_its_reason(source: FileInbound, tmp_path: Path) -> None:
    (tmp_path / "outbox" / "bad").write_bytes(b"x")
    (item,) = settled(source, duty())
    source.reject(item, "it is bad", duty(), 3)
    assert (tmp_path / "errors" / "bad").read_bytes() == b"x"
    assert json.loads((tmp_path / "errors" / "bad.reason.json").read_text())["reason"] == "it is bad"
    (tmp_path / "outbox" / "bad").write_bytes(b"another")
    (item,) = settled(source, duty())
    source.reject(item, "bad again", duty(), 3)
    assert len(list((tmp_path / "errors").iterdir())) == 4, "the first is kept"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(LATIN_1, id="not UTF-8"),
        pytest.param(b"../../etc/passwd", id="leads out of the folder"),
        pytest.param(b"..", id="the folder above"),
        pytest.param(b"", id="no name"),
        pytest.param(b"x" * 300 + b".xml", id="too long"),
    ],
)
def test_a_target_name_stays_in_the_folder_and_fits(name: bytes) -> None:
    made = target_name("0" * 32, name)
    assert b"/" not in made and len(made) <= 255 and made.startswith(b"0" * 32 + b"-")
    if len(name) < 200 and b"/" not in name and name:
        assert made == b"0" * 32 + b"-" + name


def test_a_delivery_is_written_whole_then_receipted(source: FileInbound, tmp_path: Path) -> None:
    (tmp_path / "outbox" / os.fsdecode(LATIN_1)).write_bytes(b"<x/>")
    (item,) = settled(source, duty())
    target = FileOutbound(setting(folder(tmp_path / "inbox", receipts=str(tmp_path / "in" / "received.jsonl")), tmp_path, "outbound"))
    target.prepare()
    target.deliver(item, duty())
    (line,) = (tmp_path / "in" / "received.jsonl").read_text().splitlines()
    receipt = json.loads(line)
    assert set(receipt) == {"id", "flow", "group", "epoch", "machine", "sha256", "file", "received_at"}
    assert receipt["sha256"] == hashlib.sha256(b"<x/>").hexdigest()
    assert (receipt["flow"], receipt["group"], receipt["epoch"], receipt["machine"]) == ("erp-orders", "orders", EPOCH, "external01")
    assert "\\udcfc" in line and receipt["received_at"].endswith("Z")
    assert [os.fsencode(path.name) for path in (tmp_path / "inbox").iterdir()] == [os.fsencode(receipt["file"])]


def test_an_unfinished_file_that_cannot_be_removed_stands_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inbox").mkdir()
    for name in (".baton-a.part", ".baton-b.part"):
        (tmp_path / "inbox" / name).write_bytes(b"half")
        os.utime(tmp_path / "inbox" / name, (1, 1))
    unlink = Path.unlink

    def others(path: Path, **more: Any) -> None:
        if path.name == ".baton-a.part":
            raise PermissionError(1, "Operation not permitted")
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", others)
    target = FileOutbound(setting(folder(tmp_path / "inbox"), tmp_path, "outbound"))
    target.prepare()
    target.begin(duty())
    assert [path.name for path in (tmp_path / "inbox").iterdir()] == [".baton-a.part"]


def test_two_processes_of_one_number_do_not_write_into_the_same_unfinished_file(source: FileInbound, tmp_path: Path) -> None:
    """In containers the processes of both machines may have the same number; a former leader that was paused may come to itself."""
    (tmp_path / "outbox" / "order").write_bytes(b"x" * 100)
    (item,) = settled(source, duty())
    former, leader = (FileOutbound(setting(folder(tmp_path / "inbox"), tmp_path, "outbound")) for _ in range(2))
    leader.prepare()

    @contextmanager
    def slowly() -> Iterator[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            yield b"x" * 50
            with pytest.raises(PermitEnded):
                former.deliver(item, duty(clock=lambda: 2.0))
            yield b"x" * 50

        yield chunks()

    leader.deliver(replace(item, open=slowly), duty())
    (arrived,) = (tmp_path / "inbox").iterdir()
    assert arrived.read_bytes() == b"x" * 100


def test_a_wrong_hash_or_an_ended_permit_leaves_nothing_behind(source: FileInbound, tmp_path: Path) -> None:
    (tmp_path / "outbox" / "order").write_bytes(b"x")
    (item,) = settled(source, duty())
    target = FileOutbound(setting(folder(tmp_path / "inbox"), tmp_path, "outbound"))
    target.prepare()
    with pytest.raises(ItemError, match="does not match"):
        target.deliver(replace(item, sha256="00"), duty())
    with pytest.raises(PermitEnded):
        target.deliver(item, duty(clock=lambda: 1.0))
    assert list((tmp_path / "inbox").iterdir()) == []


def test_a_missing_or_wrong_setting_is_named_with_its_flow_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"flow erp-orders: setting folder of its file inbound is missing; fill it in"):
        INBOUNDS[ComponentKind.FILE](setting(Component(kind=ComponentKind.FILE), tmp_path))
    with pytest.raises(ConfigError, match=r"setting folder of its file outbound is not an absolute path"):
        OUTBOUNDS[ComponentKind.FILE](setting(Component(kind=ComponentKind.FILE, settings={"folder": "x"}), tmp_path, "outbound"))
    with pytest.raises(ConfigError, match=r"setting poll_seconds .* is not a number"):
        INBOUNDS[ComponentKind.FILE](setting(folder(tmp_path, poll_seconds="often"), tmp_path))
    with pytest.raises(ConfigError, match=r"setting url .* is not usable"):
        OUTBOUNDS[ComponentKind.QUEUE](
            setting(Component(kind=ComponentKind.QUEUE, settings={"url": "nowhere", "queue": "q"}), tmp_path, "outbound")
        )


# ----------------------------------------------------------------------------------------------------------------------- queue


def send(
    broker: Broker, tmp_path: Path, source: FileInbound, data: bytes = b"<x/>", held: Duty | None = None, name: bytes = LATIN_1
) -> None:
    (tmp_path / "outbox" / os.fsdecode(name)).write_bytes(data)
    held = held or duty()
    (item,) = settled(source, held)
    outbound = QueueOutbound(setting(queue(broker), tmp_path, "outbound"))
    outbound.begin(held)
    outbound.deliver(item, held)
    source.remove(item, held)


def consumer(broker: Broker, tmp_path: Path, key: str = "core01.warehouse") -> QueueInbound:
    return QueueInbound(replace(setting(queue(broker), tmp_path), key=key))


def test_an_item_passes_the_queue_byte_for_byte_with_its_origin(broker: Broker, tmp_path: Path, source: FileInbound) -> None:
    data = os.urandom(3 * 1024 * 1024 + 17)
    send(broker, tmp_path, source, data)
    inbound, free = consumer(broker, tmp_path), Duty(None, "", 0, 1.0, lambda: 0.0)
    inbound.begin(free)
    (item,) = inbound.poll(free)
    assert (item.name, content(item), item.sha256) == (LATIN_1, data, hashlib.sha256(data).hexdigest())
    assert (item.origin.flow, item.origin.group, item.origin.epoch, item.origin.machine) == ("erp-orders", "orders", EPOCH, "external01")
    inbound.remove(item, free)
    assert broker.client.xlen("t:orders") == 0
    assert list(broker.client.scan_iter("t:upload:*")) == [], "its bytes are gone with it"


def test_a_lower_epoch_is_refused_and_a_single_node_neither_compares_nor_lowers(
    broker: Broker, tmp_path: Path, source: FileInbound
) -> None:
    (tmp_path / "outbox" / "order").write_bytes(b"x")
    old, new, alone = duty(EPOCH), duty(EPOCH + 1), duty(0)
    (item,) = settled(source, old)
    stale, fresh = (QueueOutbound(setting(queue(broker), tmp_path, "outbound")) for _ in range(2))
    stale.begin(old)
    fresh.begin(new)
    with pytest.raises(Fenced, match="1·6"):
        stale.deliver(item, old)
    with pytest.raises(Fenced):
        stale.begin(old)
    assert broker.client.xlen("t:orders") == 0
    stale.begin(alone)
    stale.deliver(item, alone)
    ((_, fields),) = broker.client.xrange("t:orders")
    assert fields[b"unfenced"] == b"1"
    with pytest.raises(Fenced):
        stale.begin(old)


def test_an_ended_permit_commits_nothing(broker: Broker, tmp_path: Path, source: FileInbound) -> None:
    now = [0.0]
    held = duty(clock=lambda: now[0])
    (tmp_path / "outbox" / "order").write_bytes(b"")
    (item,) = settled(source, held)
    now[0] = 1.0
    with pytest.raises(PermitEnded):
        QueueOutbound(setting(queue(broker), tmp_path, "outbound")).deliver(item, held)
    assert broker.client.xlen("t:orders") == 0


def test_a_new_leader_claims_what_the_former_had_read_and_the_former_can_finish_nothing(
    broker: Broker, tmp_path: Path, source: FileInbound
) -> None:
    send(broker, tmp_path, source)
    old, new = duty(EPOCH), duty(EPOCH + 1)
    first, second = consumer(broker, tmp_path, "external01.w"), consumer(broker, tmp_path, "external02.w")
    first.begin(old)
    (item,) = first.poll(old)
    second.begin(new)
    with pytest.raises(Fenced):
        first.remove(item, old)
    with pytest.raises(Fenced):
        first.poll(old)
    (claimed,) = second.poll(new)
    assert (claimed.id, content(claimed)) == (item.id, b"<x/>")
    second.remove(claimed, new)
    assert broker.client.xlen("t:orders") == 0


def test_entries_whose_reading_was_never_answered_are_offered_all_the_same(
    broker: Broker, tmp_path: Path, source: FileInbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(broker, tmp_path, source, name=b"order")
    reader = consumer(broker, tmp_path)
    reader.begin(duty())
    asked = queue_connector.Broker.script

    def cut(self: Any, text: str, *args: Any) -> Any:
        answer = asked(self, text, *args)
        if text is queue_connector.READ:
            raise Unavailable("the connection broke before the answer came")
        return answer

    monkeypatch.setattr(queue_connector.Broker, "script", cut)
    with pytest.raises(Unavailable, match="before the answer came"):
        reader.poll(duty())
    monkeypatch.setattr(queue_connector.Broker, "script", asked)
    (item,) = reader.poll(duty())
    assert item.name == b"order"
    reader.remove(item, duty())
    assert reader.poll(duty()) == [] and reader.depth() == (0, 0)


def test_a_queue_that_is_away_is_not_the_items_fault(tmp_path: Path) -> None:
    gone = Component(kind=ComponentKind.QUEUE, settings={"url": "redis://127.0.0.1:1/0", "queue": "q"})
    with pytest.raises(Unavailable, match="cannot be reached"):
        QueueOutbound(setting(gone, tmp_path, "outbound")).begin(duty())


def test_an_emit_in_flight_is_cut_at_once_when_the_permit_ends(broker: Broker, tmp_path: Path, source: FileInbound) -> None:
    (tmp_path / "outbox" / "order").write_bytes(b"x")
    (item,) = settled(source, duty())
    outbound = QueueOutbound(setting(queue(broker), tmp_path, "outbound"))
    outbound.begin(duty())
    met: list[BaseException] = []

    def deliver() -> None:
        try:
            outbound.deliver(item, duty())
        except Unavailable as error:
            met.append(error)

    broker.process.send_signal(signal.SIGSTOP)
    try:
        worker = threading.Thread(target=deliver)
        worker.start()
        time.sleep(0.3)
        assert worker.is_alive()
        outbound.abort()
        worker.join(1)
        assert not worker.is_alive() and met
    finally:
        broker.process.send_signal(signal.SIGCONT)


def test_a_commit_of_unknown_outcome_is_asked_again_and_not_doubled(broker: Broker, tmp_path: Path, source: FileInbound) -> None:
    (tmp_path / "outbox" / "order").write_bytes(b"x")
    (item,) = settled(source, duty())
    outbound = QueueOutbound(setting(queue(broker), tmp_path, "outbound"))
    outbound.begin(duty())
    whole = outbound._broker.script

    def unanswered(text: str, keys: Any, args: Any) -> Any:
        whole(text, keys, args)
        if "XADD" in text:
            raise Unavailable("no answer")

    outbound._broker.script = unanswered  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        outbound.deliver(item, duty())
    outbound._broker.script = whole  # type: ignore[method-assign]
    outbound.deliver(item, duty())
    assert broker.client.xlen("t:orders") == 1


# ------------------------------------------------------------------------------------------------------------------------ flows


def test_an_undeliverable_entry_goes_to_the_error_stream_and_the_rest_arrives(
    broker: Broker, tmp_path: Path, source: FileInbound, flows: Callable[..., Flow]
) -> None:
    broker.client.xadd("t:orders", {"strange": "entry"})
    send(broker, tmp_path, source, b"lost", name=b"lost")
    broker.client.delete(*broker.client.scan_iter("t:upload:*"))
    send(broker, tmp_path, source, b"good", name=b"good")
    flow = flows(queue(broker), folder(tmp_path / "inbox"), Duty(None, "", 0, float("inf")))
    until(lambda: len(list((tmp_path / "inbox").glob("*-good"))) == 1, 3, "the good one arrives")
    until(lambda: broker.client.xlen("t:orders:errors") == 2, 6, "the bad ones are moved aside")
    reasons = [fields[b"reason"] for _, fields in broker.client.xrange("t:orders:errors")]
    assert b"was not written by Baton" in reasons[0] and b"gone from the queue" in reasons[1]
    assert broker.client.xlen("t:orders") == 0
    until(lambda: (flow.report().delivered, flow.report().failed) == (1, 2), 3, "counted once they are aside")


@pytest.mark.parametrize(
    "strange",
    [
        pytest.param({"id": b"best\xfcllung"}, id="an id that is no text"),
        pytest.param({"id": "bestellung-ü".encode()}, id="an id that no header carries"),
        pytest.param({"id": b"two\r\nlines"}, id="an id of two lines"),
        pytest.param({"id": b"x" * 5000}, id="an endless id"),
        pytest.param({"flow": b"fl\xffw", "group": b"\xff", "machine": b"\xff"}, id="an origin that is no text"),
    ],
)
def test_what_others_write_into_a_queue_can_be_carried_by_every_target(broker: Broker, tmp_path: Path, strange: dict[str, bytes]) -> None:
    free = Duty(None, "", 0, 1.0, lambda: 0.0)
    broker.client.rpush("t:upload:x", b"abc")
    entry: dict[Any, Any] = {"id": b"m1", "name": b"order", "size": 3, "upload": b"t:upload:x", "flow": b"f", **strange}
    broker.client.xadd("t:orders", entry)
    inbound = consumer(broker, tmp_path)
    inbound.begin(free)
    (item,) = inbound.poll(free)
    for text in (item.id, item.origin.flow, item.origin.group, item.origin.machine):
        quote(text)
    assert item.id.isascii() and item.id.isprintable() and len(item.id) <= 200
    target = FileOutbound(setting(folder(tmp_path / "inbox"), tmp_path, "outbound"))
    target.prepare()
    target.deliver(item, free)
    assert next((tmp_path / "inbox").iterdir()).read_bytes() == b"abc"
    inbound.begin(free)
    assert [again.id for again in inbound.poll(free)] == [item.id], "the same each time"


@pytest.mark.parametrize(
    ("size", "says"), [pytest.param("2", "more bytes than its entry says: 2", id="too few"), pytest.param("", "has no size", id="none")]
)
def test_an_entry_whose_size_is_wrong_is_its_own_fault(broker: Broker, tmp_path: Path, size: str, says: str) -> None:
    free = Duty(None, "", 0, 1.0, lambda: 0.0)
    broker.client.rpush("t:upload:x", b"abc")
    broker.client.xadd("t:orders", {"id": "m1", "name": "order", "size": size, "upload": "t:upload:x"})
    inbound = consumer(broker, tmp_path)
    inbound.begin(free)
    (item,) = inbound.poll(free)
    with pytest.raises(ItemError, match=says):
        content(item)


class Picky(FileOutbound):
    """A target that cannot take one kind of item."""

    def deliver(self, item: Item, duty: Duty) -> None:
        if item.name.startswith(b"bad"):
            raise ItemError("the target cannot take it")
        super().deliver(item, duty)


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OUTBOUNDS, ComponentKind.FILE, Picky)


@pytest.mark.usefixtures("picky")
def test_a_full_error_folder_leaves_the_item_and_never_blocks_the_rest(tmp_path: Path, flows: Callable[..., Flow]) -> None:
    (tmp_path / "outbox").mkdir()
    blocked = tmp_path / "errors"
    blocked.mkdir()
    for name in ("bad", "good-1", "good-2"):
        (tmp_path / "outbox" / name).write_bytes(b"x")
    flow = flows(folder(tmp_path / "outbox", error_folder=str(blocked)), folder(tmp_path / "inbox"), Duty(None, "", 0, float("inf")))
    until(lambda: flow.ready, 2)
    blocked.rmdir()
    blocked.write_bytes(b"a file is no folder, not even for root")
    until(lambda: flow.report().delivered == 2, 3, "the good ones arrive")
    time.sleep(2)
    assert (tmp_path / "outbox" / "bad").exists()
    (tmp_path / "outbox" / "good-3").write_bytes(b"x")
    until(lambda: flow.report().delivered == 3, 2, "a later one arrives too")


@pytest.mark.usefixtures("picky")
def test_an_item_the_target_cannot_take_is_moved_aside_after_bounded_tries(tmp_path: Path, flows: Callable[..., Flow]) -> None:
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "bad").write_bytes(b"x")
    flows(folder(tmp_path / "outbox"), folder(tmp_path / "inbox"), Duty(None, "", 0, float("inf")))
    until(lambda: (tmp_path / "data" / "errors" / "f" / "bad").exists(), 4, "it is moved aside")
    assert "cannot take" in (tmp_path / "data" / "errors" / "f" / "bad.reason.json").read_text()


def test_an_item_is_taken_once_however_often_its_target_is_away(
    tmp_path: Path, flows: Callable[..., Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, deliver = list[int](), FileOutbound.deliver

    def away(self: FileOutbound, item: Item, duty: Duty) -> None:
        tried.append(1)
        if len(tried) < 4:
            raise Unavailable("it is away")
        deliver(self, item, duty)

    monkeypatch.setattr(FileOutbound, "deliver", away)
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "order").write_bytes(b"x")
    flow = flows(folder(tmp_path / "outbox"), folder(tmp_path / "inbox"), duty())
    until(lambda: flow.report().delivered == 1, 10)
    assert (flow.report().taken, len(tried)) == (1, 4)


def test_an_item_that_goes_on_changing_is_not_tried_without_a_pause(
    tmp_path: Path, flows: Callable[..., Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def changes(self: FileOutbound, item: Item, duty: Duty) -> None:
        tried.append(time.monotonic())
        raise ItemChanged("it changed while it was read")

    monkeypatch.setattr(FileOutbound, "deliver", changes)
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "order").write_bytes(b"x")
    flows(folder(tmp_path / "outbox"), folder(tmp_path / "inbox"), duty())
    until(lambda: len(tried) >= 3, 10)
    assert all(later - earlier >= flow_module.CHANGED_SECONDS for earlier, later in pairwise(tried))


def test_a_voided_duty_never_comes_back(tmp_path: Path) -> None:
    held: Any = duty()
    held.check_take()
    held.void()
    held.extend(100.0)
    held.resume()
    assert not held.valid() and not held.taking


def test_an_inbound_that_is_on_and_hears_nothing_of_its_source_says_since_when(
    flows: Callable[..., Flow], broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_module, "SILENT_SECONDS", 0.5)
    flow = flows(queue(broker), folder(tmp_path / "inbox"), duty())
    until(lambda: flow.report().on and flow.report().last_poll, 5, "it is on and its source has answered")
    time.sleep(0.7)
    assert flow.report().silent_since == "", "an empty source answers too"
    broker.process.send_signal(signal.SIGSTOP)
    try:
        since = until(lambda: flow.report().silent_since, 5, "it is silent")
        time.sleep(0.3)
        assert flow.report().on and flow.report().silent_since == since, "the same moment at every look: no news"
    finally:
        broker.process.send_signal(signal.SIGCONT)
    until(lambda: not flow.report().silent_since, 5, "it hears again")


def test_an_inbound_whose_target_takes_nothing_says_since_when(
    flows: Callable[..., Flow], broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_module, "DELIVERING_SECONDS", 0.5)
    (tmp_path / "outbox").mkdir()
    flow = flows(folder(tmp_path / "outbox"), queue(broker), duty())
    until(lambda: flow.report().on, 5)
    broker.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(0.7)
        assert flow.report().undelivered_since == "", "it owes nothing"
        (tmp_path / "outbox" / "order").write_bytes(b"x")
        since = until(lambda: flow.report().undelivered_since, 10, "it says so")
        time.sleep(0.3)
        assert flow.report().on and flow.report().undelivered_since == since, "the same moment at every look: no news"
        assert "items wait in the source" in flow.report().reason
    finally:
        broker.process.send_signal(signal.SIGCONT)
    until(lambda: not flow.report().undelivered_since and flow.report().delivered == 1, 5, "it delivers")


def test_a_flow_that_does_not_lead_any_more_does_not_tell_what_it_failed_at(
    flows: Callable[..., Flow], broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "outbox").mkdir()
    flow = flows(folder(tmp_path / "outbox"), queue(broker), duty())
    until(lambda: flow.report().on, 5)
    broker.process.send_signal(signal.SIGSTOP)
    try:
        (tmp_path / "outbox" / "order").write_bytes(b"x")
        until(lambda: "items wait in the source" in flow.report().reason, 10, "it says what it fails at")
        flow.stop()
        until(lambda: not flow.busy and not flow.report().reason, 10, "that is over with its leadership")
    finally:
        broker.process.send_signal(signal.SIGCONT)


def test_a_folder_that_was_not_there_is_made_and_told(tmp_path: Path) -> None:
    """A mistyped name would else look like a source in which nothing ever comes."""
    (tmp_path / "there").mkdir()
    with structlog.testing.capture_logs() as logs:
        FileInbound(setting(folder(tmp_path / "there"), tmp_path)).prepare()
        assert logs == []
        FileInbound(setting(folder(tmp_path / "tpyo"), tmp_path)).prepare()
    (said,) = logs
    assert said["log_level"] == "warning"
    assert said["event"] == f"the folder to poll {tmp_path}/tpyo was not there and was made: is its name right?"


def test_a_folder_that_goes_away_makes_its_flow_not_ready_and_ready_again_when_it_is_back(
    flows: Callable[..., Flow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitness, "FOLLOWS_SECONDS", 0.5)
    monkeypatch.setattr(flow_module, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(flow_module, "LOOK_AGAIN_SECONDS", 0.1)
    flow = flows(folder(tmp_path / "outbox"), folder(tmp_path / "inbox"), duty(), group="g")

    def ready() -> bool:
        flow.turn(leads=False)
        return flow.ready

    until(ready, 3)
    (tmp_path / "inbox").rmdir()
    until(lambda: not ready(), 3)
    assert flow.why_not_ready == f"the folder to write to {tmp_path}/inbox is gone: bring it back, or choose another in the properties"
    assert not (tmp_path / "inbox").exists(), "nothing is made where a share may have been"
    (tmp_path / "inbox").mkdir()
    until(ready, 3)


def test_a_broker_that_does_not_answer_makes_no_flow_ready(broker: Broker, tmp_path: Path) -> None:
    made = [QueueInbound(setting(queue(broker), tmp_path)), QueueOutbound(setting(queue(broker), tmp_path, "outbound"))]
    for connector in made:
        connector.check()
    nowhere = Component(kind=ComponentKind.QUEUE, settings={"url": "redis://127.0.0.1:1/0", "queue": "q"})
    with pytest.raises(Unavailable, match="cannot be reached"):
        QueueInbound(setting(nowhere, tmp_path)).check()
    broker.client.set(made[0]._broker.stream, "no stream")
    with pytest.raises(Unavailable, match="refuses"):
        made[1].check()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_what_is_under_an_unmounted_share_is_not_taken_for_it(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "baton-test", str(share)], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    target = FileOutbound(setting(folder(share / "inbox"), tmp_path, "outbound"))
    source = FileInbound(setting(folder(share), tmp_path))
    try:
        target.prepare()
        source.prepare()
        target.check()
        source.check()
    finally:
        subprocess.run(["umount", str(share)], check=True)
    (share / "inbox").mkdir()
    for act in (target.check, source.check):
        with pytest.raises(NotReady, match=f"was on {share}, which is not mounted any more"):
            act()
    with pytest.raises(Unavailable, match="not mounted any more"):
        source.poll(duty())
    with pytest.raises(Unavailable, match="not mounted any more"):
        target.deliver(Item("1", b"x", 0, None, None), duty())  # type: ignore[arg-type]
    assert list((share / "inbox").iterdir()) == []
    for kind, side, path in ((FileInbound, "inbound", share), (FileOutbound, "outbound", share / "inbox")):
        after_a_restart = kind(setting(folder(path), tmp_path, side))
        with pytest.raises(
            NotReady, match=f"was on {share}, which is not mounted: mount it; .*delete {tmp_path}/data/mounts/f.{side}.json"
        ):
            after_a_restart.prepare()
        (tmp_path / "data" / "mounts" / f"f.{side}.json").unlink()
        after_a_restart.prepare()


def test_a_flow_that_fails_in_every_round_is_not_on_until_it_went_through_one(
    flows: Callable[..., Flow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, told, asked = threading.Event(), list[Flow](), list[bool]()
    broken.set()
    poll = FileInbound.poll

    def polled(inbound: FileInbound, held: Duty) -> Sequence[Item]:
        asked.extend(flow.on for flow in told)
        if broken.is_set():
            raise UnicodeEncodeError("ascii", "ö", 0, 1, "what nobody foresaw")
        return poll(inbound, held)

    monkeypatch.setattr(FileInbound, "poll", polled)
    (tmp_path / "outbox").mkdir()
    flow = flows(folder(tmp_path / "outbox"), folder(tmp_path / "inbox"), duty())
    until(lambda: "what nobody foresaw" in flow.reason, 10, "it says why")
    told.append(flow)
    until(lambda: len(asked) > 2, 20, "it started again")
    assert not any(asked) and not flow.on
    broken.clear()
    until(lambda: flow.on and not flow.reason, 10, "it went through a round")
