"""Inbound and outbound `amqp`: AMQP 0-9-1, as RabbitMQ speaks it.

One connection per inbound, held only while this runtime leads, and one per outbound, made with its first leadership; its name tells the
broker's people who it is. A thread per connection answers heartbeats while the flow's worker is busy elsewhere. A connection that had any
error is never used again.

Headers of what is published: Baton-Flow, Baton-Machine, Baton-Group, Baton-Epoch, Baton-Item-Name, Baton-Unfenced; the message id is the
property message-id. A broker compares no epochs: who consumes can, by Baton-Epoch.
"""

import hashlib
import io
import itertools
import shutil
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote_to_bytes

import amqp

from runtimes.process.connectors.amqp_message import Arrived, NotHeld
from runtimes.process.connectors.amqp_session import ERRORS, Session, words_of
from runtimes.process.connectors.aside import ErrorFolder
from runtimes.process.connectors.base import (
    CHUNK,
    Inbound,
    Item,
    ItemChanged,
    ItemError,
    Origin,
    Outbound,
    Refusing,
    Setting,
    Unavailable,
    inbound,
    make_folder,
    outbound,
)
from runtimes.process.permits import Duty
from runtimes.protocol import ComponentKind

PREFETCH = 10
HELD_LIMIT = 64 * 1024 * 1024  # bytes of unacknowledged messages; beyond it they come one at a time
ROOM = 64 * 1024 * 1024  # bytes that stay free on the disk beside a message that is held in a file
REST_SECONDS, REST_LIMIT = 120.0, 6 * 3600.0  # without holding anything; longer where the broker counts how often it got messages back
SETTLED = 10_000  # ids of acknowledged messages that this process knows again
CONTENT_LIMIT = 64 * 1024 * 1024  # bytes of one message, which is held in memory; brokers have limits of their own
TRIES = 4  # of one publication that the broker refuses, before the item waits in its source
BACKOFF_SECONDS, BACKOFF_LIMIT = 0.2, 2.0
SUFFIXES = {"application/json": "json", "application/xml": "xml", "text/xml": "xml", "text/csv": "csv", "text/plain": "txt"}


# ---------------------------------------------------------------------------------------------------------------------- inbound


@dataclass(frozen=True, slots=True)
class Delivery:
    """Handle of a message: its connection, its tag there, whether its publisher gave it an id, and where a larger body is."""

    connection: int
    tag: int
    known: bool
    file: Path | None  # with its body
    returned: int  # how often the broker got it back, where it counts that (quorum queues, which have a limit of it)


@inbound(ComponentKind.AMQP)
class AmqpInbound(Inbound):
    """Settings: host, port, tls, ca_file, certificate_file, key_file, virtual_host, user, password, heartbeat_seconds, timeout_seconds;
    queue, declare, exchange, routing_key, prefetch, exclusive, without_id.

    Messages are acknowledged once they were delivered or moved aside. Those held besides go back to the queue with the leadership.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._queue = setting.text("queue")
        self._declare = setting.choice("declare", ("no", "classic", "quorum"))
        self._exchange = setting.text("exchange", "\n").strip()
        self._key = setting.text("routing_key", "\n").strip()
        self._prefetch = int(setting.number("prefetch", PREFETCH, 1, 1000))
        self._exclusive = setting.choice("exclusive", ("no", "yes")) == "yes"
        self._without_id = setting.choice("without_id", ("each", "content", "refuse"))
        self._session = Session(setting, self._consume, self._place)
        self.failures: ErrorFolder = ErrorFolder(setting.data / "errors" / setting.flow_id, setting)
        self._folder = setting.data / "arrived" / setting.flow_id  # bodies of larger messages, while they are held
        self._files = itertools.count()
        self._window = self._prefetch
        self._unlimited = False  # does the queue take messages back as often as it has to
        self._full_until, self._full = 0.0, ""  # the disk has no room for what comes (time.monotonic(), sentence)
        self._arrived: deque[Arrived] = deque()
        self._cancelled = False
        self._waiting: dict[int, Item] = {}  # by delivery tag: held, not yet acknowledged
        self._settled: OrderedDict[str, None] = OrderedDict()  # message ids of what was acknowledged here: the broker may not know

    def prepare(self) -> None:
        self.failures.prepare()
        make_folder(self._folder, "the folder of messages that are held")
        self._clear()  # what a killed process held came back to the queue

    def begin(self, duty: Duty) -> None:
        self._session.close()
        self._window = self._prefetch
        self._wait_for_room()
        duty.check_take()
        self._session.call(lambda _: None)

    def poll(self, duty: Duty) -> Sequence[Item]:
        self._wait_for_room()
        duty.check_take()
        self._session.call(self._read)
        while self._arrived:
            self._keep(self._arrived.popleft(), duty)
        return [*self.failures.offered(duty), *self._waiting.values()]

    def remove(self, item: Item, duty: Duty) -> None:
        if not self.failures.delivered(item):
            self._acknowledge(item)

    def reject(self, item: Item, reason: str, duty: Duty, tries: int) -> None:
        self.failures.put(item, reason, tries)
        if isinstance(item.handle, Delivery):
            self._acknowledge(item)

    def wait_seconds(self) -> float:
        return 0.02

    def interval_seconds(self) -> float:
        return self._session.heartbeat

    def answered_at(self) -> float:
        return self._session.heard

    def abort(self) -> None:
        self._session.abort()

    def rest(self) -> float:
        """A message that is not acknowledged within the broker's consumer_timeout (30 min) ends its channel, comes back and counts as one
        more delivery: after some 20 of them a quorum queue gives it up. So nothing is held, and where the broker counts, what is given
        back is taken again the later the more often that was."""
        counted = 0 if self._unlimited else max((item.handle.returned for item in self._waiting.values()), default=0)
        self._session.close()
        self._clear()
        seconds: float = min(REST_SECONDS * 2.0 ** min(counted, 20), REST_LIMIT)
        self._setting.log.warning(f"the target has taken nothing for long: what was held goes back to the queue, for up to {seconds:g} s")
        return seconds

    def stop(self, duty: Duty) -> None:
        """Give back what is held: the broker puts it where it was in the queue, for the next leader."""
        self._session.close()
        self._clear()

    def depth(self) -> tuple[int | None, int | None]:
        ready = self._session.aside(lambda channel: channel.queue_declare(self._queue, passive=True).message_count)
        return ready, None if ready is None else len(self._waiting)

    def _consume(self, channel: Any) -> None:
        """Make a new connection's channel ready: from here on the broker sends."""
        self._clear()  # what an earlier connection brought: the broker sends it again
        self._cancelled = False
        if self._declare == "no":
            channel.queue_declare(self._queue, passive=True)
        elif self._declare != "quorum" or not self._declare_unlimited(channel):
            channel.queue_declare(self._queue, durable=True, auto_delete=False, arguments={"x-queue-type": self._declare})
        if self._exchange:
            channel.queue_bind(self._queue, self._exchange, self._key)
        channel.basic_qos(0, self._window, False)
        channel.basic_consume(self._queue, exclusive=self._exclusive, callback=self._arrived.append, on_cancel=self._on_cancel)

    def _declare_unlimited(self, channel: Any) -> bool:
        """As a quorum queue that never gives up a message because it came back so often. False: it is there with a limit, or this broker
        (before RabbitMQ 4) has none unless it is set. Asked on a channel of its own, which a refusal ends."""
        asking = channel.connection.channel()
        try:
            limits = {"x-queue-type": "quorum", "x-delivery-limit": -1}
            asking.queue_declare(self._queue, durable=True, auto_delete=False, arguments=limits)
            self._unlimited = True
        except amqp.PreconditionFailed:
            self._unlimited = False
        with suppress(*ERRORS):
            asking.close()
        return self._unlimited

    def _wait_for_room(self) -> None:
        """Raises Unavailable."""
        if time.monotonic() < self._full_until:
            raise Unavailable(self._full)

    def _on_cancel(self, tag: str) -> None:
        self._cancelled = True

    def _read(self, channel: Any) -> None:
        """What the broker has sent by now."""
        while len(self._arrived) < self._prefetch and self._session.drain(0.002):
            pass
        if self._cancelled:
            raise amqp.NotFound(f"the queue {self._queue} was deleted or moved: the broker ended this consumer", reply_code=404)

    def _acknowledge(self, item: Item) -> None:
        """Raises Unavailable: then the broker sends it again, and it is known by its id."""
        handle: Delivery = item.handle
        if handle.known:
            self._settled[item.id] = None
            while len(self._settled) > SETTLED:
                self._settled.popitem(last=False)
        if self._session.on(handle.connection, partial(self._settle, tag=handle.tag)) and handle.file is not None:
            handle.file.unlink(missing_ok=True)

    def _settle(self, channel: Any, tag: int) -> None:
        self._waiting.pop(tag, None)
        channel.basic_ack(tag)

    def _clear(self) -> None:
        """Hold nothing any more."""
        self._waiting.clear()
        self._arrived.clear()
        with suppress(OSError):
            for path in self._folder.iterdir():
                path.unlink(missing_ok=True)

    def _place(self, size: int) -> Path:
        """A file for a larger body, when there is room for it. Raises NotHeld."""
        held = sum(message.body_size for message in self._arrived) + sum(item.size for item in self._waiting.values())
        if held and held + size > HELD_LIMIT:
            self._window = 1
            raise NotHeld(f"with one of {size} bytes the messages held exceed {HELD_LIMIT} bytes: they go back and come one at a time")
        if shutil.disk_usage(self._folder).free < size + ROOM:
            self._full_until = time.monotonic() + REST_SECONDS  # not at once: the broker counts what it gets back
            self._full = f"there is no room in {self._folder} for a message of {size} bytes"
            raise NotHeld(self._full)
        return self._folder / f"{next(self._files)}"

    def _keep(self, message: Arrived, duty: Duty) -> None:
        """Hold a message that has arrived, unless it was done here before and only its acknowledgement was lost."""
        item = self._item(message, duty)
        if message.delivery_info["redelivered"]:
            if item.handle.known and item.id in self._settled:
                self._setting.log.info(f"item {item.id} came again and had been delivered: it is acknowledged again", item=item.id)
                self._acknowledge(item)
                return
            self._setting.log.info(f"item {item.id} was sent before, and may have been delivered then (redelivered)", item=item.id)
        self._waiting[item.handle.tag] = item

    def _item(self, message: Arrived, duty: Duty) -> Item:
        info, properties = message.delivery_info, message.properties
        headers: Mapping[str, Any] = properties.get("application_headers") or {}
        facts = _facts(info, properties, headers)
        own, trouble = facts.get("message_id", ""), message.trouble
        if own:
            key = identity(self._setting.flow_id, own, facts.get("app_id", ""), message.digest.digest())
        elif self._without_id == "content":
            told = "\0".join(f"{name}={facts[name]}" for name in sorted(facts) if name != "redelivered")
            key = identity(self._setting.flow_id, "", told, message.digest.digest())
        else:
            key = uuid.uuid4().hex
            if self._without_id == "refuse":
                trouble = trouble or "it has no message-id: let its publisher set one, or choose another way for messages without"
        name = _name(headers, f"{self._setting.flow}-{key}", str(properties.get("content_type") or ""))
        origin = Origin(self._setting.flow, duty.group_name, duty.epoch, self._setting.machine)
        handle = Delivery(self._session.number, info["delivery_tag"], bool(own), message.file, _number(headers.get("x-delivery-count")))
        shown = {name: value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name, value in facts.items()}
        opened = partial(_opened, message.file or _body(message), trouble)
        return Item(key, name, message.body_size, origin, opened, handle, properties=shown)


def identity(flow_id: str, message_id: str, publisher: str, digest: bytes) -> str:
    """The id of a message's item. A message-id alone names no message: publishers number theirs from 1, each of them, and anew after a
    start. So its flow, its publisher (app-id) and its content belong to it."""
    told = "\0".join(f"{len(part)}:{part}" for part in (flow_id, message_id, publisher))
    return hashlib.sha256(told.encode("utf-8", "surrogateescape") + digest).hexdigest()[:32]


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _body(message: Arrived) -> bytes:
    return message.body if isinstance(message.body, bytes) else message.body.encode()  # the library gives none as an empty text


def _facts(info: Mapping[str, Any], properties: Mapping[str, Any], headers: Mapping[str, Any]) -> dict[str, str]:
    """What a template finds as item.properties, as text."""
    facts = {name: str(info[name]) for name in ("exchange", "routing_key")}
    facts["redelivered"] = "yes" if info["redelivered"] else "no"
    for name in ("message_id", "content_type", "content_encoding", "correlation_id", "reply_to", "type", "timestamp", "app_id"):
        if properties.get(name) not in (None, ""):
            facts[name] = str(properties[name])
    for name, value in headers.items():  # a name that is no text comes as bytes
        if isinstance(name, str) and isinstance(value, str | int | float | bool) and not name.startswith("x-"):
            facts[f"header.{name}"] = str(value)
    return facts


def _name(headers: Mapping[str, Any], made: str, content_type: str) -> bytes:
    """As a Baton elsewhere named it, or by its content."""
    given = headers.get("Baton-Item-Name")
    if isinstance(given, str) and given:
        return unquote_to_bytes(given)
    return f"{made}.{SUFFIXES.get(content_type.partition(';')[0].strip().lower(), 'bin')}".encode()


@contextmanager
def _opened(body: bytes | Path, trouble: str) -> Iterator[Iterator[bytes]]:
    if isinstance(body, bytes):
        yield _chunks(io.BytesIO(body), trouble)
        return
    try:
        file = body.open("rb")
    except OSError as error:
        raise ItemChanged(f"it is not held any more: {error.strerror}") from error
    with file:
        yield _chunks(file, trouble)


def _chunks(file: BinaryIO, trouble: str) -> Iterator[bytes]:
    """Its content, so that also what cannot be delivered can be moved aside whole. Raises ItemError at the end of one in trouble."""
    yield from iter(partial(file.read, CHUNK), b"")
    if trouble:
        raise ItemError(trouble)


# --------------------------------------------------------------------------------------------------------------------- outbound


@outbound(ComponentKind.AMQP)
class AmqpOutbound(Outbound):
    """Settings: the connection's as above; exchange, routing_key, declare, content_type. Every message is persistent and mandatory, and
    delivered when the broker has confirmed it."""

    def __init__(self, setting: Setting) -> None:
        self._exchange = setting.text("exchange", "\n").strip()
        self._key = setting.text("routing_key", "\n").strip()
        self._declare = setting.choice("declare", ("no", "queue", "direct", "topic", "fanout"))
        self._type = setting.text("content_type", "\n").strip()
        if not self._exchange and not self._key:
            raise setting.error("routing_key", "is missing, and so is exchange", "name a queue as routing key, or an exchange")
        if self._declare == "queue" and self._exchange:
            raise setting.error("declare", "is queue, but an exchange is set", "leave exchange empty, or declare an exchange")
        if self._declare not in ("no", "queue") and not self._exchange:
            raise setting.error("exchange", f"is missing, though a {self._declare} exchange is to be declared", "name the exchange")
        self._session = Session(setting, self._ready)
        self._sent = 0  # messages on this channel: the broker counts like this
        self._numbers: dict[str, int] = {}  # those without an answer, by message id
        self._answers: dict[str, bool] = {}  # confirmed or refused
        self._returned: dict[str, str] = {}  # unroutable, with the broker's word

    def prepare(self) -> None:
        pass

    def begin(self, duty: Duty) -> None:
        if self._numbers or self._answers:
            self._session.close()  # what an earlier leadership left unanswered goes out again
        duty.check()
        self._session.call(lambda _: None)

    def deliver(self, item: Item, duty: Duty) -> None:
        if item.size > CONTENT_LIMIT:
            raise ItemError(f"it has {item.size} bytes: a message takes at most {CONTENT_LIMIT}")
        with item.open() as chunks:
            body = b"".join(chunks)
        if item.sha256 is not None and hashlib.sha256(body).hexdigest() != item.sha256:
            raise ItemError(f"its content does not match its header: expected sha256 {item.sha256}")
        properties = self._properties(item, duty)
        message = amqp.Message(body, **properties)
        wait = BACKOFF_SECONDS
        for number in range(1, TRIES + 1):
            if self._session.call(partial(self._publish, key=properties["message_id"], message=message, duty=duty)):
                return
            if number == TRIES or not duty.taking:
                raise Refusing(f"the broker at {self._session.where} does not take it for {self._target} (nack): is a queue full?")
            until = time.monotonic() + wait
            while time.monotonic() < until:
                duty.check()
                time.sleep(0.02)
            wait = min(wait * 2, BACKOFF_LIMIT)

    def abort(self) -> None:
        self._session.abort()

    @property
    def _target(self) -> str:
        return f"exchange {self._exchange}, routing key {self._key or '(none)'}" if self._exchange else f"queue {self._key}"

    def _ready(self, channel: Any) -> None:
        """Make a new connection's channel ready."""
        self._sent = 0
        for each in (self._numbers, self._answers, self._returned):
            each.clear()
        if self._declare == "queue":
            channel.queue_declare(self._key, durable=True, auto_delete=False)
        elif self._declare != "no":
            channel.exchange_declare(self._exchange, self._declare, durable=True, auto_delete=False)
        elif self._exchange:
            channel.exchange_declare(self._exchange, "", passive=True)
        else:
            channel.queue_declare(self._key, passive=True)
        channel.events["basic_ack"].add(partial(self._on_answer, True))
        channel.events["basic_nack"].add(partial(self._on_answer, False))
        channel.events["basic_return"].add(self._on_return)
        channel.confirm_select()

    def _publish(self, channel: Any, key: str, message: Any, duty: Duty) -> bool:
        """Confirmed, or refused. One that this connection sent before and that has no answer yet is waited for, not sent twice.

        Raises Unavailable, Refusing, PermitEnded, and what the library raises.
        """
        if key not in self._numbers and key not in self._answers:
            self._session.refuse_blocked()
            self._sent += 1
            self._numbers[key] = self._sent
            duty.check()
            channel.basic_publish(message, self._exchange, self._key, mandatory=True, timeout=self._session.timeout)
        until = time.monotonic() + self._session.timeout
        while key not in self._answers:
            self._session.drain(0.1)
            self._session.tick()
            if key not in self._answers:
                self._session.refuse_blocked()
                if time.monotonic() >= until:
                    raise Unavailable(f"the broker at {self._session.where} did not confirm within {self._session.timeout:g} s")
        confirmed, returned = self._answers.pop(key), self._returned.pop(key, "")
        if returned:
            raise Refusing(f"the broker at {self._session.where} has nowhere to put it ({returned}): bind a queue for {self._target}")
        return confirmed

    def _on_answer(self, confirmed: bool, last: int, multiple: bool) -> None:
        for key, number in list(self._numbers.items()):
            if number == last or (multiple and number < last):
                del self._numbers[key]
                self._answers[key] = confirmed

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self._returned[str(message.properties.get("message_id", ""))] = words_of(error)

    def _properties(self, item: Item, duty: Duty) -> dict[str, Any]:
        headers: dict[str, Any] = {
            "Baton-Flow": quote(item.origin.flow),
            "Baton-Machine": quote(item.origin.machine),
            "Baton-Group": quote(duty.group or ""),
            "Baton-Epoch": duty.epoch,
            "Baton-Item-Name": quote(item.name[:1000]),
        }
        if duty.group is not None and duty.epoch == 0:
            headers["Baton-Unfenced"] = True
        return {
            "message_id": _short(item.id),
            "delivery_mode": 2,
            "content_type": _short(self._type or item.properties.get("content_type", "application/octet-stream")),
            "timestamp": int(time.time()),
            "app_id": "baton",
            "application_headers": headers,
        }


def _short(text: str) -> str:
    """As a property takes it: at most 255 bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return data.decode() if len(data) <= 255 else hashlib.sha256(data).hexdigest()
