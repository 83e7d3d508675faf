"""Inbound and outbound `amqp` against a real RabbitMQ, alone and in two runtimes of one group."""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from amqp.basic_message import Message

from runtimes.process import flows
from runtimes.process.connectors import amqp as connector
from runtimes.process.connectors.amqp import AmqpInbound, AmqpOutbound
from runtimes.process.connectors.base import ConfigError, Item, ItemError, Origin, Refusing, Setting, Unavailable
from runtimes.process.flows import Flow
from runtimes.process.permits import Duty, PermitEnded
from runtimes.protocol import BundleContent, Component, ComponentKind, FlowSpec, GroupSpec, Preference
from tests.certified import Authority
from tests.runtimes.process.lab import Broker, EtcdCluster, Launched, launch, until
from tests.runtimes.process.lab import queue as valkey_queue
from tests.runtimes.process.rabbit import PASSWORD, SMALL, USER, Rabbit


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    made = Rabbit(tmp_path_factory.mktemp("rabbit"))
    yield made
    made.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of this test's own queue."""
    return f"q-{request.node.name[5:60]}"


@pytest.fixture
def connect(rabbit: Rabbit, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(kind: type, **settings: str) -> Any:
        given = {"host": "127.0.0.1", "port": str(rabbit.port), "user": USER, "password": PASSWORD, **settings}
        component = Component(kind=ComponentKind.AMQP, settings=given)
        side = "inbound" if kind is AmqpInbound else "outbound"
        data = tmp_path / f"data-{len(made)}"
        made.append(kind(Setting("f", "erp-orders", component, side, "external01.erp", "external01", data, structlog.get_logger())))
        made[-1].prepare()
        return made[-1]

    yield make
    for each in made:
        each._session.close()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("heartbeat")], 8, "no thread is left")


def duty(clock: Callable[[], float] = lambda: 0.0, epoch: int = 5) -> Duty:
    return Duty("g", "orders", epoch, 1.0, clock)


def held(source: AmqpInbound, count: int) -> list[Item]:
    """What the poll offers once that many have come."""
    return list(until(lambda: (found := source.poll(duty())) and len(found) >= count and found, 5, f"{count} messages"))


def own(found: Item) -> str:
    """Its publisher's message-id."""
    return found.properties["message_id"]


def content(found: Item) -> bytes:
    with found.open() as chunks:
        return b"".join(chunks)


def item(data: bytes, key: str = "m1", **more: Any) -> Item:
    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        yield iter([data] if data else [])

    return Item(key, "bestelling-ü.xml".encode("latin-1"), len(data), Origin("erp-orders", "orders", 5, "external01"), opened, **more)


# ---------------------------------------------------------------------------------------------------------------------- inbound


def test_messages_come_in_order_and_leave_the_queue_once_delivered(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    rabbit.queue(name)
    rabbit.publish(name, b"first", b"", b"\xff\xfe", content_type="text/plain", content_encoding="utf-8", correlation_id="c-1")
    source = connect(AmqpInbound, queue=name)
    source.begin(duty())
    found = held(source, 3)
    assert [own(each) for each in found] == [f"{name}-0", f"{name}-1", f"{name}-2"], "the publisher's message-id"
    assert [content(each) for each in found] == [b"first", b"", b"\xff\xfe"], "bytes, whatever their encoding is said to be"
    assert found[0].origin == Origin("erp-orders", "orders", 5, "external01") and found[0].name.endswith(b".txt")
    told = found[0].properties
    assert (told["routing_key"], told["redelivered"], told["correlation_id"], told["content_type"]) == (name, "no", "c-1", "text/plain")
    assert until(lambda: source.depth() == (0, 3) and source.depth(), 5) and source.answered_at() > 0
    source.remove(found[0], duty())
    source.stop(duty())
    assert source.stopped() and source.depth() == (None, None), "nobody is asked by one that does not lead"
    until(lambda: rabbit.count(name) == 2, 5, "the two that were not delivered are given back")
    second = connect(AmqpInbound, queue=name)
    second.begin(duty())
    again = held(second, 2)
    assert [each.id for each in again] == [each.id for each in found[1:]], "the same ids"
    assert own(again[0]) == f"{name}-1" and again[0].properties["redelivered"] == "yes"
    for each in again:
        second.remove(each, duty())
    second.stop(duty())
    assert rabbit.count(name) == 0


def test_no_more_is_held_than_the_prefetch_says_and_nothing_once_nothing_may_be_taken(
    rabbit: Rabbit, connect: Callable[..., Any], name: str
) -> None:
    rabbit.queue(name)
    rabbit.publish(name, *[b"x"] * 5)
    source = connect(AmqpInbound, queue=name, prefetch="2")
    ended = duty()
    ended.stop_taking()
    with pytest.raises(PermitEnded):
        source.begin(ended)
    assert rabbit.count(name) == 5
    source.begin(duty())
    first, _ = held(source, 2)
    time.sleep(0.1)
    assert len(source.poll(duty())) == 2 and rabbit.count(name) == 3
    source.remove(first, duty())
    assert until(lambda: rabbit.count(name) == 2 and [own(each) for each in source.poll(duty())] == [f"{name}-1", f"{name}-2"], 5)
    with pytest.raises(PermitEnded):
        source.poll(ended)


def test_a_lost_acknowledgement_is_made_up_for_and_the_item_is_not_delivered_twice(
    rabbit: Rabbit, connect: Callable[..., Any], name: str
) -> None:
    rabbit.queue(name)
    rabbit.publish(name, b"delivered", b"not yet")
    source = connect(AmqpInbound, queue=name)
    source.begin(duty())
    found = held(source, 2)
    source.abort()
    with pytest.raises(Unavailable):
        source.poll(duty())
    source.remove(found[0], duty())  # the target had it; its acknowledgement cannot be sent any more
    until(lambda: [own(each) for each in source.poll(duty())] == [f"{name}-1"], 5, "only the other comes again")
    (other,) = source.poll(duty())
    source.remove(other, duty())
    source.stop(duty())
    assert rabbit.count(name) == 0


@pytest.mark.parametrize(
    ("way", "same"), [pytest.param("each", False, id="a new id each"), pytest.param("content", True, id="by their content")]
)
def test_messages_without_an_id_get_one_as_the_setting_says(
    rabbit: Rabbit, connect: Callable[..., Any], name: str, way: str, same: bool
) -> None:
    rabbit.queue(name)
    rabbit.publish(name, b"tick", b"tick", b"tock", message_id=None)
    source = connect(AmqpInbound, queue=name, without_id=way)
    source.begin(duty())
    first, second, third = held(source, 3)
    assert (first.id == second.id) is same and third.id != first.id
    source.stop(duty())
    source.begin(duty())
    assert ([each.id for each in held(source, 3)] == [first.id, second.id, third.id]) is same


def test_messages_without_an_id_can_be_refused(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    rabbit.queue(name)
    rabbit.publish(name, b"tick", message_id=None)
    source = connect(AmqpInbound, queue=name, without_id="refuse")
    source.begin(duty())
    (found,) = held(source, 1)
    with pytest.raises(ItemError, match="it has no message-id"):
        content(found)
    source.reject(found, "it has no message-id", duty(), 3)
    (kept,) = source.failures.listed()[1]
    assert source.failures.content(kept.key, 10) == (b"tick", 4), "moved aside whole"


@pytest.mark.parametrize("given", ["../../etc/passwd", "een\nregel", "ü" * 120, "x" * 255, ".hidden"])
def test_an_id_that_is_no_name_becomes_one_and_stays_the_same(rabbit: Rabbit, connect: Callable[..., Any], given: str) -> None:
    queue = rabbit.queue("odd-ids")
    rabbit.publish(queue, b"x", message_id=given)
    source = connect(AmqpInbound, queue=queue)
    source.begin(duty())
    (found,) = held(source, 1)
    assert found.id.isalnum() and len(found.id) == 32
    source.stop(duty())
    source.begin(duty())
    (again,) = held(source, 1)
    assert again.id == found.id
    source.remove(again, duty())


@pytest.mark.parametrize(
    ("second", "same"),
    [
        pytest.param({"queue": "invoices"}, False, id="of another queue, whose publisher numbers from 1 too"),
        pytest.param({"app_id": "till-2"}, False, id="of another publisher on this queue"),
        pytest.param({"body": b"another"}, False, id="of a publisher whose counter began anew"),
        pytest.param({"timestamp": 7}, True, id="published a second time, because its confirmation was lost"),
    ],
)
def test_a_message_id_alone_names_no_message(rabbit: Rabbit, connect: Callable[..., Any], second: dict[str, Any], same: bool) -> None:
    found = []
    for number, more in enumerate(({}, second)):
        given = {"queue": "orders", "app_id": "till-1", "body": b"one", **more}
        body, queue = given.pop("body"), rabbit.queue(given.pop("queue"))
        rabbit.publish(queue, body, message_id="1", **given)
        source = connect(AmqpInbound, queue=queue)
        if queue == "invoices":
            source._setting = replace(source._setting, flow_id="another flow")
        source.begin(duty())
        found += held(source, 1)
        source.remove(found[number], duty())
        source.stop(duty())
    assert (found[0].id == found[1].id) is same


@pytest.mark.parametrize(
    ("given", "fact", "told"),
    [
        pytest.param({"message_id": b"bestelling-\xfc"}, "message_id", "bestelling-\ufffd", id="its id"),
        pytest.param({"app_id": b"\xff" * 255}, "app_id", "\ufffd" * 255, id="its publisher's name"),
        pytest.param({"correlation_id": b"\xff"}, "correlation_id", "\ufffd", id="a property"),
        pytest.param({"application_headers": {b"\xfcber": 1, "of": "erp"}}, "header.of", "erp", id="a header's name"),
        pytest.param({"application_headers": {"from": b"\xfc", "of": "erp"}}, "header.of", "erp", id="a header's value"),
        pytest.param({"queue": b"orders.\xfc"}, "routing_key", "orders.\ufffd", id="its routing key"),
        pytest.param({"queue": b"orders." + b"\xff" * 248}, "exchange", "amq.topic", id="a long routing key"),
    ],
)
def test_a_text_that_is_not_utf_8_stops_nothing(
    rabbit: Rabbit, connect: Callable[..., Any], given: dict[str, Any], fact: str, told: str
) -> None:
    queue = rabbit.queue("latin-1")
    rabbit.on_channel(lambda channel: channel.queue_bind(queue, "amq.topic", "orders.#"))
    more = {"message_id": "m1", **{name: value for name, value in given.items() if name != "queue"}}
    rabbit.publish(given.get("queue", "orders.eu"), b"first", exchange="amq.topic", **more)
    rabbit.publish(queue, b"second")
    source = connect(AmqpInbound, queue=queue)
    source.begin(duty())
    first, second = held(source, 2)
    assert (content(first), content(second), first.properties[fact]) == (b"first", b"second", told)
    source.stop(duty())
    source.begin(duty())
    assert held(source, 2)[0].id == first.id
    for each in source.poll(duty()):
        source.remove(each, duty())
    source.stop(duty())
    assert rabbit.count(queue) == 0


def test_a_message_whose_headers_cannot_be_read_is_moved_aside_whole(
    rabbit: Rabbit, connect: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rabbit.queue(name)
    table = b"\x04when" + b"T" + b"\xff" * 8  # a moment after the year 9999
    monkeypatch.setattr(Message, "_serialize_properties", lambda _: b"\x20\x80" + len(table).to_bytes(4) + table + b"\x02m1")
    rabbit.publish(name, b"x" * 100_000)
    monkeypatch.undo()
    source = connect(AmqpInbound, queue=name)
    source.begin(duty())
    (found,) = held(source, 1)
    assert own(found) == "m1"
    with pytest.raises(ItemError, match="its headers cannot be read"):
        content(found)
    source.reject(found, "its headers cannot be read", duty(), 3)
    (kept,) = source.failures.listed()[1]
    assert source.failures.content(kept.key, 1) == (b"x", 100_000) and not list(source._folder.iterdir())
    source.stop(duty())
    assert rabbit.count(name) == 0


def test_an_acknowledgement_is_never_made_on_another_connection(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    rabbit.queue(name)
    rabbit.publish(name, *[b"x"] * 5)
    source = connect(AmqpInbound, queue=name)
    source.begin(duty())
    found = held(source, 5)
    source.remove(found[0], duty())
    source.remove(found[1], duty())
    with source._session._lock:  # the gauge asks, and the connection breaks under it
        worker = threading.Thread(target=source.remove, args=(found[2], duty()))
        worker.start()
        time.sleep(0.1)
        source._session.drop()
    worker.join(5)
    source.stop(duty())
    until(lambda: rabbit.count(name) == 3, 5, "none but the two was acknowledged")


def test_large_messages_are_held_in_files_and_one_at_a_time_when_together_they_are_too_much(
    rabbit: Rabbit, connect: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "HELD_LIMIT", 3_000_000)
    rabbit.queue(name)
    bodies = [os.urandom(2_000_000) for _ in range(4)]
    rabbit.publish(name, b"small")
    rabbit.publish(name, *bodies)
    source = connect(AmqpInbound, queue=name)
    with pytest.raises(Unavailable, match="exceed 3000000 bytes: they go back and come one at a time"):
        source.begin(duty())
        until(lambda: len(source.poll(duty())) > 3, 5)
    came: list[bytes] = []
    while len(came) < 5:
        (found,) = held(source, 1)
        assert len(list(source._folder.iterdir())) == (found.size > 100_000)
        assert len(content(found)) == found.size, "it can be read twice"
        came.append(content(found))
        source.remove(found, duty())
    assert came == [b"small", *bodies] and not list(source._folder.iterdir())
    source.stop(duty())
    assert rabbit.count(name) == 0


@contextmanager
def flowing(rabbit: Rabbit, data: Path, queue: str, **target: str) -> Iterator[Flow]:
    """From the queue to the target, under a duty that does not end."""
    given = {"host": "127.0.0.1", "port": str(rabbit.port), "user": USER, "password": PASSWORD}
    inbound = Component(kind=ComponentKind.AMQP, settings={**given, "queue": queue})
    outbound = Component(kind=ComponentKind.AMQP, settings={**given, **target})
    spec = FlowSpec(id="f", name="erp-orders", version="1.0.0", inbound=inbound, outbound=outbound)
    flow = Flow(spec, key="external01.erp", machine="external01", data=data, changed=lambda: None, log=structlog.get_logger())
    flow.open()
    flow.start(duty())
    try:
        yield flow
    finally:
        flow.close()
        until(lambda: not flow._thread.is_alive(), 5)


def test_for_a_target_that_stays_away_nothing_is_held_until_it_is_back(
    rabbit: Rabbit, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "HOLD_SECONDS", 0.3)
    rabbit.queue(name)
    rabbit.on_channel(lambda channel: channel.exchange_declare("away", "fanout", durable=True, auto_delete=False))
    with flowing(rabbit, tmp_path, name, exchange="away") as flow:
        until(lambda: flow.on, 5)
        rabbit.on_channel(lambda channel: channel.exchange_delete("away"))
        rabbit.publish(name, b"one", b"two")
        until(lambda: rabbit.count(name) == 2, 10, "they wait in the queue itself")
        time.sleep(0.5)
        assert rabbit.count(name) == 2 and flow.on and "no exchange 'away'" in flow.reason, "its reason stays"
        rabbit.on_channel(lambda channel: channel.exchange_declare("away", "fanout", durable=True, auto_delete=False))
        rabbit.on_channel(lambda channel: channel.queue_bind(rabbit.queue("back"), "away"))
        until(lambda: flow.report().delivered == 2, 8, "though the rest is longer: the target was seen to come back")
    rabbit.on_channel(lambda channel: channel.exchange_delete("away"))


def test_a_target_that_answers_and_takes_nothing_is_left_alone_for_a_while(
    rabbit: Rabbit, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "HOLD_SECONDS", 0.3)
    monkeypatch.setattr(flows, "REST_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(connector, "REST_SECONDS", 2.0)
    rabbit.publish(rabbit.queue(name), b"one")
    with flowing(rabbit, tmp_path, name, exchange="amq.direct", routing_key="nobody") as flow:
        until(lambda: rabbit.count(name) == 0, 5)
        until(lambda: rabbit.count(name) == 1, 5, "it is given back")
        rabbit.on_channel(lambda channel: channel.queue_bind(rabbit.queue("somebody"), "amq.direct", "nobody"))
        time.sleep(0.5)
        assert rabbit.count(name) == 1 and "nowhere to put it" in flow.reason
        until(lambda: flow.report().delivered == 1, 5, "it is tried again by itself")


@pytest.mark.parametrize(("kind", "expected"), [("classic", [120, 120, 120]), ("quorum", [120, 240, 480])])
def test_a_broker_that_counts_what_comes_back_is_asked_the_less_often(
    rabbit: Rabbit, connect: Callable[..., Any], kind: str, expected: list[float]
) -> None:
    queue = rabbit.queue(f"rests-{kind}", arguments={"x-queue-type": kind})
    rabbit.publish(queue, b"x")
    source = connect(AmqpInbound, queue=queue)
    told = []
    for _ in expected:
        source.begin(duty())
        held(source, 1)
        told.append(source.rest())
        until(lambda: rabbit.count(queue) == 1, 5, "nothing is held")
    assert told == expected


def test_a_message_for_which_the_disk_has_no_room_stays_in_the_queue(
    rabbit: Rabbit, connect: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rabbit.queue(name)
    rabbit.publish(name, b"x" * 1_000_000)
    monkeypatch.setattr(connector, "ROOM", 10**18)
    monkeypatch.setattr(connector, "REST_SECONDS", 1.0)
    source = connect(AmqpInbound, queue=name)

    def refused() -> None:
        source.begin(duty())
        until(lambda: source.poll(duty()), 5)

    for _ in range(2):
        with pytest.raises(Unavailable, match=r"there is no room in .* for a message of 1000000 bytes"):
            refused()
    assert source._session.number == 1, "it does not come and go all the time"
    monkeypatch.undo()
    time.sleep(1.0)
    source.begin(duty())
    assert len(content(held(source, 1)[0])) == 1_000_000


def test_a_rejected_message_becomes_a_failed_item_and_can_be_tried_again(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    rabbit.queue(name)
    rabbit.publish(name, b"<x/>", correlation_id="c-1")
    source = connect(AmqpInbound, queue=name)
    source.begin(duty())
    (found,) = held(source, 1)
    source.reject(found, "it is bad", duty(), 3)
    assert source.poll(duty()) == []
    (kept,) = source.failures.listed()[1]
    assert (kept.item, kept.reason, source.failures.content(kept.key, 10)) == (found.id, "it is bad", (b"<x/>", 4))
    source.failures.retry(kept.key)
    (again,) = source.poll(duty())
    assert (again.id, content(again), again.properties["correlation_id"]) == (found.id, b"<x/>", "c-1")
    source.remove(again, duty())
    assert source.poll(duty()) == [] and source.failures.count() == 0
    source.stop(duty())
    assert rabbit.count(name) == 0


def test_a_busy_worker_keeps_its_connection(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    rabbit.queue(name)
    rabbit.publish(name, b"x")
    source = connect(AmqpInbound, queue=name, heartbeat_seconds="2")
    source.begin(duty())
    (found,) = held(source, 1)
    number, heard = source._session.number, source.answered_at()
    time.sleep(5)  # the broker gives up a consumer that is silent for two heartbeats
    source.remove(found, duty())
    assert source.poll(duty()) == [] and source._session.number == number and source.answered_at() > heard
    source.stop(duty())
    assert rabbit.count(name) == 0


def test_a_queue_that_is_deleted_is_said_and_found_again(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    rabbit.queue(name)
    source = connect(AmqpInbound, queue=name)
    source.begin(duty())
    rabbit.delete(name)

    def said() -> str:
        try:
            return str(source.poll(duty()) or "")
        except Unavailable as error:
            return str(error)

    until(lambda: "was deleted or moved" in said(), 5)
    assert "no queue" in said() and "create it there, or let this flow declare it" in said()
    rabbit.publish(rabbit.queue(name), b"back")
    assert content(held(source, 1)[0]) == b"back"


@pytest.mark.parametrize("tls", ["no", "yes"])
def test_a_hand_over_waits_a_moment_only_for_a_broker_that_stands_still(rabbit: Rabbit, connect: Callable[..., Any], tls: str) -> None:
    rabbit.publish(rabbit.queue(f"still-{tls}"), b"x")
    port = {"tls": "yes", "port": str(rabbit.tls_port), "ca_file": rabbit.tls.authority} if tls == "yes" else {}
    source = connect(AmqpInbound, queue=f"still-{tls}", **port)
    source.begin(duty())
    held(source, 1)
    rabbit.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        source.stop(duty())
        assert source.stopped() and time.monotonic() - began < 2.5
    finally:
        rabbit.signal(signal.SIGCONT)
    until(lambda: rabbit.count(f"still-{tls}") == 1, 5, "it is given back")


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_queue_can_be_declared_and_bound(rabbit: Rabbit, connect: Callable[..., Any], kind: str) -> None:
    source = connect(AmqpInbound, queue=f"made-{kind}", declare=kind, exchange="amq.topic", routing_key=f"orders.{kind}.#")
    source.begin(duty())
    rabbit.publish(f"orders.{kind}.eu", b"bound", exchange="amq.topic")
    (found,) = held(source, 1)
    assert (content(found), found.properties["exchange"]) == (b"bound", "amq.topic")
    with pytest.raises(Refusing, match="it exists otherwise: set that this flow does not declare it"):
        connect(AmqpInbound, queue=f"made-{kind}", declare="quorum" if kind == "classic" else "classic").begin(duty())


def test_only_one_consumes_where_that_is_asked_for(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    rabbit.publish(rabbit.queue(name), b"x")
    first, second = connect(AmqpInbound, queue=name, exclusive="yes"), connect(AmqpInbound, queue=name, exclusive="yes")
    first.begin(duty())
    with pytest.raises(Refusing, match="another consumer has it"):
        second.begin(duty())
    first.stop(duty())
    second.begin(duty())
    assert len(held(second, 1)) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param({"password": "wrong"}, "does not let this user in: .* correct user and password", id="a wrong password"),
        pytest.param({"user": "guest-of-erp", "virtual_host": "/"}, "give this user the permission on virtual host /", id="no permission"),
        pytest.param({"virtual_host": "nowhere"}, "correct virtual_host", id="no such virtual host"),
        pytest.param({"virtual_host": "other"}, "correct virtual_host, or give this user access", id="a virtual host of others"),
        pytest.param({"port": "1"}, "cannot be reached: .*refused", id="nobody there"),
        pytest.param({"tls": "yes"}, "does not speak TLS as expected|cannot be reached", id="TLS to a plain port"),
    ],
)
def test_a_broker_that_is_not_as_expected_is_said_and_is_not_the_items_fault(
    rabbit: Rabbit, connect: Callable[..., Any], given: dict[str, str], says: str
) -> None:
    rabbit.queue("there")
    with pytest.raises(Unavailable, match=says):
        connect(AmqpInbound, queue="there", **given).begin(duty())
    target = connect(AmqpOutbound, routing_key="there", **given)
    with pytest.raises(Unavailable, match=says):
        target.begin(duty())
        target.deliver(item(b"x"), duty())  # RabbitMQ asks for the permission to write when something is written
    assert rabbit.count("there") == 0


def test_tls_verifies_the_broker_and_can_show_an_own_certificate(
    rabbit: Rabbit, connect: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    own = rabbit.authority.files("erp")
    settings = {"tls": "yes", "port": str(rabbit.tls_port), "ca_file": rabbit.tls.authority}
    target = connect(AmqpOutbound, routing_key=name, declare="queue", certificate_file=own.machine, key_file=own.machine, **settings)
    target.begin(duty())
    target.deliver(item(os.urandom(700_000)), duty())
    source = connect(AmqpInbound, queue=name, **settings)
    source.begin(duty())
    (found,) = held(source, 1)
    assert found.size == 700_000
    source.remove(found, duty())
    source.stop(duty())
    assert rabbit.count(name) == 0
    other = Authority(tmp_path / "other").files("broker").authority
    with pytest.raises(Unavailable, match=r"shows a certificate that is not trusted: .*correct ca_file or host"):
        connect(AmqpInbound, queue=name, **settings | {"ca_file": other}).begin(duty())
    with pytest.raises(Unavailable, match="shows a certificate that is not trusted"):
        connect(AmqpInbound, queue=name, **settings | {"ca_file": ""}).begin(duty())


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        pytest.param(AmqpInbound, {"queue": ""}, "setting queue .* is missing", id="no queue"),
        pytest.param(AmqpInbound, {"queue": "q", "prefetch": "0"}, "setting prefetch", id="nothing to hold"),
        pytest.param(AmqpInbound, {"queue": "q", "tls": "yes", "ca_file": "/nowhere"}, "ca_file .* cannot be read", id="no authority"),
        pytest.param(AmqpInbound, {"queue": "q", "tls": "yes", "key_file": "/k"}, "certificate_file .* is missing", id="a lone key"),
        pytest.param(AmqpOutbound, {}, "setting routing_key .* is missing, and so is exchange", id="nowhere to send"),
        pytest.param(AmqpOutbound, {"routing_key": "q", "exchange": "e", "declare": "queue"}, "leave exchange empty", id="of both"),
        pytest.param(AmqpOutbound, {"routing_key": "q", "declare": "topic"}, "setting exchange .* is missing", id="a nameless exchange"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_its_remedy(connect: Callable[..., Any], kind: type, given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        connect(kind, **given)


# --------------------------------------------------------------------------------------------------------------------- outbound


def test_an_item_is_published_persistent_with_its_id_and_whose_it_is(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    target = connect(AmqpOutbound, routing_key=name, declare="queue", content_type="application/xml")
    target.begin(duty())
    for key, data in (("m1", b"<x/>"), ("m2", b""), ("m3", os.urandom(3_000_000))):
        target.deliver(item(data, key), duty())
        message = rabbit.take(name)
        assert message.body == data or (message.body, data) == ("", b"")
        told = message.properties
        assert (told["message_id"], told["delivery_mode"], told["content_type"], told["app_id"]) == (key, 2, "application/xml", "baton")
    assert message.headers == {
        "Baton-Flow": "erp-orders", "Baton-Machine": "external01", "Baton-Group": "g", "Baton-Epoch": 5,
        "Baton-Item-Name": "bestelling-%FC.xml",
    }  # fmt: skip
    target.deliver(item(b"x"), Duty("g", "orders", 0, 1.0, lambda: 0.0))
    assert rabbit.take(name).headers["Baton-Unfenced"] is True


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_an_exchange_can_be_declared_and_what_it_cannot_route_stays(rabbit: Rabbit, connect: Callable[..., Any], kind: str) -> None:
    target = connect(AmqpOutbound, exchange=f"made-{kind}", routing_key="orders.eu", declare=kind)
    target.begin(duty())
    with pytest.raises(Refusing, match=f"nowhere to put it .*NO_ROUTE.*: bind a queue for exchange made-{kind}, routing key orders.eu"):
        target.deliver(item(b"x"), duty())
    queue = rabbit.queue(f"of-{kind}")
    rabbit.on_channel(lambda channel: channel.queue_bind(queue, f"made-{kind}", "orders.eu"))
    target.deliver(item(b"x"), duty())
    assert rabbit.take(queue).body == b"x" and rabbit.take(queue) is None


@pytest.mark.parametrize("given", [{"routing_key": "nowhere"}, {"exchange": "nowhere", "routing_key": "x"}])
def test_a_target_that_is_not_there_is_said_before_anything_is_taken(connect: Callable[..., Any], given: dict[str, str]) -> None:
    with pytest.raises(Refusing, match=r"no (queue|exchange) 'nowhere'.*create it there, or let this flow declare it"):
        connect(AmqpOutbound, **given).begin(duty())


def test_a_full_queue_is_asked_a_few_times_then_the_item_waits(
    rabbit: Rabbit, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "BACKOFF_SECONDS", 0.02)
    target = connect(AmqpOutbound, routing_key="full-orders", declare="queue")
    target.begin(duty())
    target.deliver(item(b"x"), duty())
    with pytest.raises(Refusing, match=r"does not take it for queue full-orders \(nack\): is a queue full\?"):
        target.deliver(item(b"y", "m2"), duty())
    assert target._sent == 1 + connector.TRIES
    assert rabbit.take("full-orders").body == b"x"
    until(lambda: not target.deliver(item(b"y", "m2"), duty()), 5)
    assert rabbit.take("full-orders").body == b"y"


def test_what_is_larger_than_the_broker_takes_is_the_items_own_fault(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    target = connect(AmqpOutbound, routing_key=name, declare="queue")
    target.begin(duty())
    with pytest.raises(ItemError, match=r"message size .* is larger than configured max size"):
        target.deliver(item(b"x" * (SMALL + 1)), duty())
    target.deliver(item(b"small", "m2"), duty())
    assert rabbit.take(name).body == b"small"


def test_an_ended_permit_publishes_nothing(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    target = connect(AmqpOutbound, routing_key=name, declare="queue")
    target.begin(duty())
    with pytest.raises(PermitEnded):
        target.deliver(item(b"x"), duty(clock=lambda: 2.0))
    assert rabbit.count(name) == 0


def test_a_broker_that_stands_still_is_waited_for_and_one_message_is_sent_once(
    rabbit: Rabbit, connect: Callable[..., Any], name: str
) -> None:
    target = connect(AmqpOutbound, routing_key=name, declare="queue", timeout_seconds="0.5")
    target.begin(duty())
    rabbit.signal(signal.SIGSTOP)
    try:
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"did not confirm within 0\.5 s"):
                target.deliver(item(b"x"), duty())
    finally:
        rabbit.signal(signal.SIGCONT)
    until(lambda: rabbit.count(name) == 1, 5)
    target.deliver(item(b"x"), duty())
    assert rabbit.count(name) == 1, "its confirmation was waited for; it was not published again"


def test_an_abort_cuts_a_publication_at_once(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    target = connect(AmqpOutbound, routing_key=name, declare="queue")
    target.begin(duty())
    rabbit.signal(signal.SIGSTOP)
    try:
        threading.Timer(0.2, target.abort).start()
        began = time.monotonic()
        with pytest.raises(Unavailable):
            target.deliver(item(b"x" * 3_000_000), duty())
        assert time.monotonic() - began < 2
    finally:
        rabbit.signal(signal.SIGCONT)
    target.deliver(item(b"y", "m2"), duty())
    assert until(lambda: rabbit.take(name), 5).body in (b"y", b"x" * 3_000_000)


def test_a_broker_short_of_memory_is_waited_for_with_the_reason(rabbit: Rabbit, connect: Callable[..., Any], name: str) -> None:
    target = connect(AmqpOutbound, routing_key=name, declare="queue", timeout_seconds="5")
    target.begin(duty())
    keys = iter(f"m{number}" for number in range(1000))
    key, said = "", ""

    def delivered() -> bool:
        nonlocal said
        try:
            target.deliver(item(b"x", key), duty())
        except Unavailable as error:
            said = str(error)
            return False
        return True

    rabbit.control("set_vm_memory_high_watermark", "0.00001")
    try:
        while not said:  # the broker looks every few seconds
            key = next(keys)
            delivered()
            time.sleep(0.02)
        assert "is short of memory or disk space" in said
    finally:
        rabbit.control("set_vm_memory_high_watermark", "0.8")
    until(delivered, 10)
    assert rabbit.count(name) == int(key[1:]) + 1, "each of them once"


# ------------------------------------------------------------------------------------------------------------- in two runtimes


def test_a_failover_in_the_middle_loses_nothing_and_what_came_twice_is_known_by_its_id(
    tmp_path: Path, rabbit: Rabbit, three_routers: EtcdCluster, broker: Broker
) -> None:
    """RabbitMQ → runtime → queue, 200 messages; the leader is killed, then leadership is handed over, while they pass."""
    three_routers.clear()
    rabbit.queue("sales")
    settings = {"host": "127.0.0.1", "port": str(rabbit.port), "user": USER, "password": PASSWORD, "queue": "sales"}
    source = Component(kind=ComponentKind.AMQP, settings=settings)
    flow = FlowSpec(id="f", name="till-sales", version="1.0.0", inbound=source, outbound=valkey_queue(broker), group="g")
    members = ["external01.tills", "external02.tills"]
    processes: list[Launched] = []

    def start(number: int, preference: Preference) -> Launched:
        bundle = BundleContent(
            environment="test", machine=f"external0{number}", connector="tills", release=1, flows=[flow],
            groups=[GroupSpec(id="g", name="sales", failover=True, members=members)],
        )  # fmt: skip
        etcd, tls = three_routers.urls[number], three_routers.tls
        processes.append(launch(tmp_path, bundle, members[number - 1], etcd, len(processes), {"g": preference}, tls=tls))
        return processes[-1]

    def sales() -> list[str]:
        return [fields[b"id"].decode() for _, fields in broker.client.xrange("t:orders")]

    published = [f"sale-{number}" for number in range(200)]
    known = {key: connector.identity("f", key, "", hashlib.sha256(json.dumps({"sale": key}).encode()).digest()) for key in published}

    def publish(*keys: str) -> None:
        for key in keys:
            rabbit.publish("sales", json.dumps({"sale": key}).encode(), message_id=key)

    try:
        first = start(1, Preference.LEADER)
        until(first.leads, 10, "the first leads")
        second = start(2, Preference.BACKUP)
        until(second.follows, 10, "the second follows")
        publish(*published[:60])
        tills = threading.Thread(target=publish, args=published[60:150])
        tills.start()
        until(lambda: len(sales()) >= 80, 10)
        first.kill(keeper=True)
        until(second.leads, 5, "the second leads")
        third = start(1, Preference.LEADER)
        until(third.follows, 10)
        tills.join(20)
        tills = threading.Thread(target=publish, args=published[150:190])
        tills.start()
        second.process.terminate()  # a planned stop hands over
        assert second.process.wait(10) == 0
        until(third.leads, 5, "the third leads")
        tills.join(20)
        publish(*published[190:])
        until(lambda: set(sales()) == {known[key] for key in published}, 10, "all have come")
        assert rabbit.count("sales") == 0
        came = sales()
        twice = {key for key in came if came.count(key) > 1}
        assert len(twice) <= connector.PREFETCH, "only what was in flight in the crash"
        epochs = [int(fields[b"epoch"]) for _, fields in broker.client.xrange("t:orders")]
        assert epochs == sorted(epochs) and len(set(epochs)) == 3
    finally:
        for process in processes:
            process.close()
