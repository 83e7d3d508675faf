"""Failed items as the agent answers for them: real error folders, a real queue."""

import base64
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from runtimes.agent.items import SHOWN_BYTES, answered
from runtimes.process import flows
from runtimes.process.connectors.aside import LISTED, ErrorFolder
from runtimes.process.connectors.base import Item, ItemError, Origin, Setting, Unavailable
from runtimes.process.connectors.file import FileInbound
from runtimes.process.connectors.queue import QueueInbound
from runtimes.process.flows import Flow, Trouble
from runtimes.process.permits import Duty, PermitEnded
from runtimes.protocol import BundleContent, Component, ComponentKind, FlowSpec, Inquiry, InquiryAnswer, ItemAct
from tests.runtimes.process.lab import Broker, folder, queue, until
from tests.runtimes.process.test_connectors import send, source

__all__ = ["source"]
FREE = Duty(None, "", 0, float("inf"))


class Machine:
    """One machine with one flow, as its agent sees it."""

    def __init__(self, home: Path, inbound: Component, secrets: list[str] | None = None) -> None:
        flow = FlowSpec(id="f", name="erp-orders", version="1", inbound=inbound, outbound=Component(kind=ComponentKind.LOG))
        self.content = BundleContent(
            environment="test", machine="external01", connector="erp", release=1, flows=[flow], groups=[], secrets=secrets or []
        )
        self.data = home / "data"
        self.setting = Setting("f", "erp-orders", inbound, "inbound", "external01.erp", "external01", self.data, structlog.get_logger())

    def ask(self, act: ItemAct, *keys: str) -> InquiryAnswer:
        return answered(Inquiry(id="i", runtime="external01.erp", flow="f", act=act, keys=list(keys)), (self.content, self.data))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, folder(tmp_path / "outbox"), ["hunter2secret"])


def fail(inbound: FileInbound, path: Path, content: bytes, reason: str = "it is bad") -> Item:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    inbound.poll(FREE)
    time.sleep(0.55)
    (item,) = inbound.poll(FREE)
    inbound.reject(item, reason, FREE, 3)
    return item


def test_it_is_listed_shown_with_secrets_masked_tried_again_under_its_id_and_gone(machine: Machine, tmp_path: Path) -> None:
    inbound = FileInbound(machine.setting)
    failed = fail(inbound, tmp_path / "outbox" / "order.xml", b"<x password='hunter2secret'/>", "refused hunter2secret")
    answer = machine.ask(ItemAct.LIST)
    (item,) = answer.items
    assert (answer.total, item.item, item.name, item.tries, item.size) == (1, failed.id, "order.xml", 3, 29)
    assert item.reason == "refused •••"
    seen = machine.ask(ItemAct.VIEW, item.key)
    assert base64.b64decode(seen.content).decode() == "<x password='•••'/>" and seen.size == 29
    assert machine.ask(ItemAct.RETRY, item.key).total == 0
    (again,) = inbound.poll(FREE)
    assert (again.id, again.name) == (failed.id, b"order.xml")
    with again.open() as chunks:
        assert b"".join(chunks) == b"<x password='hunter2secret'/>"
    inbound.reject(again, "still bad", FREE, 3)
    (item,) = machine.ask(ItemAct.LIST).items
    assert item.reason == "still bad" and item.item == failed.id
    machine.ask(ItemAct.RETRY)
    (again,) = inbound.poll(FREE)
    inbound.remove(again, FREE)
    assert inbound.poll(FREE) == [] and machine.ask(ItemAct.LIST).total == 0


def test_it_is_discarded_and_asking_twice_says_so(machine: Machine, tmp_path: Path) -> None:
    inbound = FileInbound(machine.setting)
    fail(inbound, tmp_path / "outbox" / os.fsdecode(b"\xff-order"), b"x")
    (item,) = machine.ask(ItemAct.LIST).items
    done = machine.ask(ItemAct.DISCARD, item.key)
    assert (done.problem, done.acted, done.done) == ("", 1, [item])
    again = machine.ask(ItemAct.DISCARD, item.key)
    assert (again.problem, again.acted, again.done) == ("1 of 1 was gone already.", 0, [])
    assert "is gone" in machine.ask(ItemAct.VIEW, item.key).problem
    assert not any(path.is_file() for path in (machine.data / "errors" / "f").rglob("*"))


def item(content: bytes, name: bytes = b"order") -> Item:
    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        yield iter([content])

    return Item("m1", name, len(content), Origin("erp-orders", "", 0, "external01"), opened)


def read(each: Item) -> bytes:
    with each.open() as chunks:
        return b"".join(chunks)


def test_two_of_one_name_that_are_tried_again_are_two(machine: Machine) -> None:
    failures = ErrorFolder(machine.data / "errors" / "f", machine.setting)
    failures.prepare()
    for content in (b"first", b"second"):
        failures.put(item(content, name=b"order.xml"), "it is bad", 3)
        failures.retry(failures.listed()[1][0].key)
    offered = failures.offered(FREE)
    assert (failures.count(), failures.ordered()) == (0, 2)
    assert sorted(read(each) for each in offered) == [b"first", b"second"] and {each.name for each in offered} == {b"order.xml"}


def test_flows_that_share_a_folder_have_each_their_own(machine: Machine) -> None:
    """Tried again it would else go to the target of whichever flow looks first."""
    orders = ErrorFolder(machine.data / "errors", machine.setting)
    invoices = ErrorFolder(machine.data / "errors", replace(machine.setting, flow_id="g", flow="invoices"))
    orders.prepare()
    orders.put(item(b"an order"), "it is bad", 3)
    invoices.put(item(b"an invoice"), "it is bad", 3)
    assert (orders.count(), invoices.count()) == (1, 1)
    (failed,) = orders.listed()[1]
    orders.retry(failed.key)
    assert [read(each) for each in orders.offered(FREE)] == [b"an order"] and orders.ordered() == 1
    assert invoices.offered(FREE) == [] and (invoices.ordered(), invoices.count()) == (0, 1)


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.EOPNOTSUPP])
def test_an_error_folder_without_hard_links_gives_its_items_back_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    failures = ErrorFolder(machine.data / "errors" / "f", machine.setting)
    failures.prepare()
    failures.put(item(b"order"), "it is bad", 3)
    (failed,) = failures.listed()[1]
    monkeypatch.setattr(os, "link", refuse)
    failures.retry(failed.key)
    (again,) = failures.offered(FREE)
    assert (read(again), again.id, failures.count(), failures.ordered()) == (b"order", "m1", 0, 1)
    with pytest.raises(KeyError):
        failures.retry(failed.key)
    assert failures.delivered(again) and list(failures.folder.glob("*.reason.json")) == []


def test_an_item_whose_source_breaks_while_it_is_kept_leaves_no_reason_behind(machine: Machine) -> None:
    @contextmanager
    def breaks() -> Iterator[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            yield b"half of"
            raise Unavailable("the connection broke")

        yield chunks()

    failures = ErrorFolder(machine.data / "errors" / "f", machine.setting)
    failures.prepare()
    with pytest.raises(Unavailable, match="the connection broke"):
        failures.put(replace(item(b""), open=breaks), "it is bad", 3)
    assert list(failures.folder.iterdir()) == []


def test_a_reason_that_a_killed_process_left_is_no_item(machine: Machine) -> None:
    failures = ErrorFolder(machine.data / "errors" / "f", machine.setting)
    failures.prepare()
    failures.put(item(b"whole"), "it is bad", 3)
    failures.note(b"nothing", {"id": "m2", "reason": "it is bad", "at": "2026-11-23T10:00:00Z"})
    total, items = failures.listed()
    assert (failures.count(), total, [each.item for each in items]) == (1, 1, ["m1"])


def test_what_fails_at_the_target_of_an_item_tried_again_is_told_as_the_targets(machine: Machine) -> None:
    failures = ErrorFolder(machine.data / "errors" / "f", machine.setting)
    failures.prepare()
    failures.put(item(b"order"), "it is bad", 3)
    failures.retry(failures.listed()[1][0].key)
    (again,) = failures.offered(FREE)
    with pytest.raises(OSError, match="No space left"), again.open() as chunks:
        next(chunks)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_can_be_copied_aside_but_not_removed_is_not_copied_again_and_again(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbound = FileInbound(machine.setting)
    inbound.prepare()
    source = tmp_path / "outbox" / "order"
    rename, unlink = os.rename, os.unlink

    def elsewhere(old: Any, new: Any) -> None:
        if os.fsdecode(old) == str(source):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(old, new)

    def kept(path: Any, **more: Any) -> None:
        if os.fsdecode(path) == str(source):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, **more)

    monkeypatch.setattr(os, "rename", elsewhere)
    monkeypatch.setattr(os, "unlink", kept)
    with pytest.raises(Unavailable, match="does not take order"):
        fail(inbound, source, b"x")
    assert list((machine.data / "errors" / "f").iterdir()) == [] and source.read_bytes() == b"x"


def test_whoever_is_first_has_it_when_two_try_again_or_one_discards(machine: Machine) -> None:
    failures = ErrorFolder(machine.data / "errors" / "f", machine.setting)
    failures.prepare()
    acts = [failures.retry, failures.retry, failures.discard]
    for _ in range(60):
        failures.put(item(b"x"), "it is bad", 3)
        key = failures.listed()[1][0].key
        done: list[str] = []
        ready = threading.Barrier(len(acts))

        def act(what: Callable[[str], None], key: str = key, done: list[str] = done, ready: threading.Barrier = ready) -> None:
            ready.wait()
            with suppress(KeyError):
                what(key)
                done.append(what.__name__)

        threads = [threading.Thread(target=act, args=(what,)) for what in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(done) == 1, done
        offered = failures.offered(FREE)
        assert [read(each) for each in offered] == ([b"x"] if done == ["retry"] else [])
        for each in offered:
            failures.delivered(each)
        assert not [path for path in failures.folder.rglob("*") if path.is_file()], "nothing is left behind"


def test_every_item_means_every_one_also_of_more_than_a_list_names(machine: Machine, tmp_path: Path) -> None:
    failures = ErrorFolder(machine.data / "errors" / "f", machine.setting)
    failures.prepare()
    for _ in range(LISTED + 50):
        failures.put(item(b"x"), "it is bad", 3)
    answer = machine.ask(ItemAct.RETRY)
    offered = failures.offered(FREE)
    assert (answer.total, answer.problem, len(offered)) == (0, "", LISTED + 50)
    for each in offered:
        failures.put(each, "still bad", 3)
    assert machine.ask(ItemAct.LIST).total == LISTED + 50
    assert machine.ask(ItemAct.DISCARD).total == 0 and failures.offered(FREE) == []


def test_an_item_is_not_moved_aside_once_the_permit_has_ended(machine: Machine, tmp_path: Path) -> None:
    flow = Flow(
        machine.content.flows[0],
        key="external01.erp",
        machine="external01",
        data=machine.data,
        changed=lambda: None,
        log=structlog.get_logger(),
    )
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "order").write_bytes(b"x")
    flow._inbound.prepare()
    flow._inbound.poll(FREE)
    time.sleep(0.55)
    (item,) = flow._inbound.poll(FREE)
    ended = Duty("g", "orders", 5, 1.0, lambda: 2.0)
    with pytest.raises(PermitEnded):
        flow._aside(item, ended, Trouble(3, 0.0, "it is bad"))
    assert (tmp_path / "outbox" / "order").exists()
    assert machine.ask(ItemAct.LIST).total == 0


def test_what_was_laid_there_instead_of_an_item_is_never_followed_nor_waited_for(machine: Machine, tmp_path: Path) -> None:
    inbound, errors = FileInbound(machine.setting), machine.data / "errors" / "f"
    fail(inbound, tmp_path / "outbox" / "order", b"x")
    (item,) = machine.ask(ItemAct.LIST).items
    (tmp_path / "private").write_bytes(b"a secret of the agent's user")
    (errors / "order").unlink()
    (errors / "order").symlink_to(tmp_path / "private")
    assert machine.ask(ItemAct.VIEW, item.key).content == ""
    (errors / "order").unlink()
    os.mkfifo(errors / "order")
    answer = machine.ask(ItemAct.VIEW, item.key)
    assert (answer.content, "no regular file" in answer.problem) == ("", True)
    assert machine.ask(ItemAct.LIST).items == []
    machine.ask(ItemAct.RETRY, item.key)
    assert inbound.poll(FREE) == []
    os.mkfifo(errors / "pipe.reason.json")
    assert machine.ask(ItemAct.LIST).total == 0, "a reason without an item"
    assert machine.ask(ItemAct.LIST).items == []


def test_a_huge_item_is_shown_in_part_and_a_key_leads_nowhere_else(machine: Machine, tmp_path: Path) -> None:
    fail(FileInbound(machine.setting), tmp_path / "outbox" / "big", bytes(SHOWN_BYTES + 5))
    (item,) = machine.ask(ItemAct.LIST).items
    seen = machine.ask(ItemAct.VIEW, item.key)
    assert len(base64.b64decode(seen.content)) == SHOWN_BYTES and seen.size == SHOWN_BYTES + 5
    for key in ("../../etc/passwd", "", "big"):
        assert "is gone" in machine.ask(ItemAct.VIEW, key).problem


def test_what_cannot_be_answered_says_why(machine: Machine, tmp_path: Path) -> None:
    inquiry = Inquiry(id="i", runtime="external01.erp", flow="other", act=ItemAct.LIST)
    assert "has no flow other" in answered(inquiry, (machine.content, machine.data)).problem
    assert "Nothing was deployed" in answered(inquiry, None).problem
    away = Machine(tmp_path, Component(kind=ComponentKind.QUEUE, settings={"url": "redis://127.0.0.1:1/0", "queue": "q"}))
    assert "cannot be reached" in away.ask(ItemAct.LIST).problem


def item_of(number: int) -> Item:
    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        yield iter([b"x"])
        raise ItemError("never reached by a whole item")

    return Item(f"m{number}", b"same name", 1, Origin("erp-orders", "", 0, "external01"), opened)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        pytest.param({"failed_items": "3"}, {"m3", "m4", "m5"}, id="too many: the oldest go"),
        pytest.param({"failed_days": "1"}, {"m4", "m5"}, id="too old"),
        pytest.param({}, {"m0", "m1", "m2", "m3", "m4", "m5"}, id="as usual: a month, a thousand"),
    ],
)
def test_retention_by_number_and_age(machine: Machine, given: dict[str, str], left: set[str]) -> None:
    setting = replace(machine.setting, component=Component(kind=ComponentKind.FILE, settings=given))
    errors = ErrorFolder(machine.data / "errors" / "f", setting)
    for number in range(6):
        errors.put(item_of(number), "bad", 3)
        note = max((machine.data / "errors" / "f").glob("*.reason.json"), key=lambda path: path.stat().st_mtime)
        age = 2 * 86400 if number < 4 else 60
        os.utime(note, (time.time() - age + number, time.time() - age + number))
    errors.sweep()
    assert {item.item for item in errors.listed()[1]} == left


def test_what_cannot_be_removed_keeps_nothing_else(machine: Machine) -> None:
    errors = ErrorFolder(machine.data / "errors" / "f", machine.setting)
    errors.put(item_of(1), "bad", 3)
    (machine.data / "errors" / "f" / "0.reason.json").mkdir()  # as one of another user
    for note in (machine.data / "errors" / "f").glob("*.reason.json"):
        os.utime(note, (time.time() - 31 * 86400,) * 2)
    errors.put(item_of(2), "bad", 3)
    assert [item.item for item in errors.listed()[1]] == ["m2"]


def test_retention_needs_no_new_failure_and_covers_what_waits_to_be_tried_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a flow that was mended, on a machine that follows: nothing fails there any more, and nothing is tried."""
    monkeypatch.setattr(flows, "GAUGE_SECONDS", 0.05)
    errors = ErrorFolder(machine.data / "errors" / "f", machine.setting)
    for number in range(4):
        errors.put(item_of(number), "bad", 3)
    for item in errors.listed()[1]:
        if item.item in ("m2", "m3"):
            errors.retry(item.key)
    notes = {json.loads(path.read_text())["id"]: path for path in (machine.data / "errors" / "f").rglob("*.reason.json")}
    for key in ("m1", "m3"):
        os.utime(notes[key], (time.time() - 31 * 86400,) * 2)
    spec = FlowSpec(id="f", name="erp-orders", version="1", inbound=machine.setting.component, outbound=Component(kind=ComponentKind.LOG))
    flow = Flow(spec, key="external01.erp", machine="external01", data=machine.data, changed=lambda: None, log=structlog.get_logger())
    flow.open()
    try:
        until(lambda: (flow.report().kept, flow.report().again) == (1, 1), 5, "the two old ones are gone, the others are not")
        assert not notes["m1"].exists() and not notes["m3"].exists() and notes["m0"].exists() and notes["m2"].exists()
        assert len(list((machine.data / "errors" / "f").rglob("*"))) == 5, "with their items"
    finally:
        flow.close()


def test_those_of_a_queue_are_the_same_for_every_machine(broker: Broker, tmp_path: Path, source: FileInbound) -> None:
    send(broker, tmp_path, source, b"<x/>", name=b"order.xml")
    machine = Machine(tmp_path, queue(broker))
    inbound = QueueInbound(machine.setting)
    inbound.begin(FREE)
    (item,) = inbound.poll(FREE)
    assert inbound.depth() == (0, 1)
    inbound.reject(item, "it is bad", FREE, 3)
    (failed,) = machine.ask(ItemAct.LIST).items
    assert (failed.item, failed.name, failed.reason, failed.tries, failed.size) == (item.id, "order.xml", "it is bad", 3, 4)
    assert base64.b64decode(machine.ask(ItemAct.VIEW, failed.key).content) == b"<x/>"
    assert machine.ask(ItemAct.RETRY, failed.key).total == 0 and inbound.depth() == (1, 0)
    (again,) = inbound.poll(FREE)
    assert again.id == item.id
    inbound.reject(again, "still", FREE, 3)
    machine.ask(ItemAct.DISCARD)
    assert list(broker.client.scan_iter("t:upload:*")) == [] and broker.client.xlen("t:orders:errors") == 0
    assert "is gone" in machine.ask(ItemAct.VIEW, "not an entry").problem


def test_those_of_a_queue_are_kept_to_a_number_and_an_age(broker: Broker, tmp_path: Path) -> None:
    component = replace(Machine(tmp_path, queue(broker)).setting).component
    settings = {**component.settings, "failed_items": "2", "failed_days": "1"}
    machine = Machine(tmp_path, Component(kind=ComponentKind.QUEUE, settings=settings))
    now = int(time.time() * 1000)
    for number, age in enumerate((3 * 86400, 100, 50, 0)):
        broker.client.xadd(
            "t:orders:errors", {"id": f"m{number}", "reason": "bad", "upload": f"t:upload:{number}"}, id=f"{now - age * 1000}-0"
        )
        broker.client.rpush(f"t:upload:{number}", b"x")
    QueueInbound(machine.setting).failures.sweep()
    assert [item.item for item in machine.ask(ItemAct.LIST).items] == ["m3", "m2"]
    assert sorted(broker.client.scan_iter("t:upload:*")) == [b"t:upload:2", b"t:upload:3"]
