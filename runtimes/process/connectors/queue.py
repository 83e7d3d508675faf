"""Inbound and outbound `queue`: Redis Streams, fenced by epoch.

Keys, all under the setting `prefix`:

    <queue>               the stream; one entry per item: its header, and where its bytes are
    <queue>:errors        entries that could not be delivered, with the reason; their bytes stay
    fence:<group id>      the highest epoch seen for a group; whoever comes with a lower one is refused
    upload:<attempt>      the item's bytes as a list of chunks; expires until the commit
    committed:<attempt>   an hour's memory of a commit, so that one of unknown outcome is asked again and not doubled

An item enters by one script: refuse a lower epoch, keep the upload, add the entry. Epoch 0 (a single node, an ungrouped flow) skips the
comparison and never moves the mark.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from runtimes.process.connectors.aside import KEPT_DAYS, KEPT_ITEMS, LISTED
from runtimes.process.connectors.base import (
    CHUNK,
    Fenced,
    Inbound,
    Item,
    ItemError,
    Origin,
    Outbound,
    Refusing,
    Setting,
    Unavailable,
    inbound,
    outbound,
)
from runtimes.process.permits import Duty
from runtimes.protocol import ComponentKind, FailedItem, epoch_words

CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 3.0
UPLOAD_SECONDS = 600  # an upload that nobody commits is gone after this
BATCH = 10
WAITING_LIMIT = 100  # entries held by this consumer at a time
ID_LIMIT = 200  # letters of an entry's own id
CONSUMERS = "baton"  # the one consumer group of a queue

# Refused epochs answer with this word first.
_FENCE = """
local epoch = tonumber(ARGV[1])
if epoch > 0 then
  local mark = tonumber(redis.call('GET', KEYS[1]) or '0')
  if epoch < mark then return {err = 'FENCED ' .. string.format('%.0f', mark)} end
  if epoch > mark then redis.call('SET', KEYS[1], ARGV[1]) end
end
"""
RAISE = _FENCE + "return 1"
APPEND = (
    _FENCE
    + """
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
"""
)
COMMIT = (
    """
local done = redis.call('GET', KEYS[4])
if done then return done end
"""
    + _FENCE
    + """
if redis.call('LLEN', KEYS[2]) ~= tonumber(ARGV[2]) then return {err = 'UPLOADLOST'} end
redis.call('PERSIST', KEYS[2])
local fields = {}
for i = 3, #ARGV do fields[#fields + 1] = ARGV[i] end
local id = redis.call('XADD', KEYS[3], '*', unpack(fields))
redis.call('SET', KEYS[4], id, 'EX', 3600)
return id
"""
)
# Reading is fenced too: a stale leader that read an entry would keep it from the new one.
READ = _FENCE + "return redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', KEYS[2], '>')"
# What this consumer was given before and has not finished: also what an answer held that never came.
READ_AGAIN = _FENCE + "return redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', KEYS[2], '0')"
CLAIM = _FENCE + "return redis.call('XAUTOCLAIM', KEYS[2], ARGV[2], ARGV[3], '0', ARGV[4], 'COUNT', '100')"
FINISH = (
    _FENCE
    + """
redis.call('XACK', KEYS[2], ARGV[2], ARGV[3])
redis.call('XDEL', KEYS[2], ARGV[3])
if KEYS[3] ~= '' then redis.call('DEL', KEYS[3]) end
return 1
"""
)
REJECT = (
    _FENCE
    + """
local entry = redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3])
if entry[1] then
  local fields = entry[1][2]
  fields[#fields + 1] = 'reason'
  fields[#fields + 1] = ARGV[4]
  fields[#fields + 1] = 'tries'
  fields[#fields + 1] = ARGV[5]
  redis.call('XADD', KEYS[3], '*', unpack(fields))
end
redis.call('XACK', KEYS[2], ARGV[2], ARGV[3])
redis.call('XDEL', KEYS[2], ARGV[3])
return 1
"""
)

# Back to the queue, or away for good: by a person, so no epoch is asked for.
RETRY = """
local entry = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])
if not entry[1] then return 0 end
local fields = {}
for i = 1, #entry[1][2], 2 do
  if entry[1][2][i] ~= 'reason' and entry[1][2][i] ~= 'tries' then
    fields[#fields + 1] = entry[1][2][i]
    fields[#fields + 1] = entry[1][2][i + 1]
  end
end
redis.call('XADD', KEYS[1], '*', unpack(fields))
redis.call('XDEL', KEYS[2], ARGV[1])
return 1
"""
DISCARD = """
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
if not entry[1] then return 0 end
for i = 1, #entry[1][2], 2 do
  if entry[1][2][i] == 'upload' then redis.call('DEL', entry[1][2][i + 1]) end
end
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
"""
SCRIPTS = (RAISE, APPEND, COMMIT, READ, READ_AGAIN, CLAIM, FINISH, REJECT, RETRY, DISCARD)


class Broker:
    """One connection pool to the queue's server, with short time-outs and no retries, and its errors in this project's words."""

    def __init__(self, setting: Setting) -> None:
        url = setting.text("url")
        self.queue = setting.text("queue")
        self.prefix = setting.text("prefix", "baton:")
        try:
            self._redis = redis.Redis.from_url(
                url,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
                decode_responses=False,
            )
        except ValueError as error:
            raise setting.error("url", f"is not usable: {error}", "write it as redis://host:port/0") from error
        self._address = url.rsplit("@", 1)[-1].removeprefix("redis://").rstrip("/")
        self._scripts = {text: self._redis.register_script(text) for text in SCRIPTS}

    @property
    def stream(self) -> str:
        return self.prefix + self.queue

    @property
    def errors(self) -> str:
        return f"{self.stream}:errors"

    def fence_key(self, duty: Duty) -> str:
        return f"{self.prefix}fence:{duty.group or ''}"

    def script(self, text: str, keys: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        return self.call(partial(self._scripts[text], keys=list(keys), args=list(args)))

    def command(self, *words: Any) -> Any:
        return self.call(partial(self._redis.execute_command, *words))

    def call(self, act: Any) -> Any:
        """Raises Fenced, UploadLost, NoQueue or Unavailable."""
        try:
            return act()
        except redis.ResponseError as error:
            text = str(error)
            if "FENCED" in text:
                mark = text.split("FENCED", 1)[1].split()[0].rstrip(",.")
                why = "another leads, or the routers were built anew without a new generation"
                raise Fenced(f"queue {self.queue} has seen epoch {epoch_words(int(mark))} of this group: {why}") from error
            if "UPLOADLOST" in text:
                raise UploadLost(f"the upload to queue {self.queue} was lost; it is sent again") from error
            if "NOGROUP" in text:
                raise NoQueue(f"queue {self.queue} was emptied; it is made again") from error
            raise Refusing(f"queue {self.queue} at {self._address} refuses: {error}") from error
        except (redis.RedisError, OSError, ValueError, AttributeError) as error:  # the last two: its socket was cut by `abort`
            raise Unavailable(f"queue {self.queue} at {self._address} cannot be reached: {error}") from error

    def fence(self, duty: Duty) -> None:
        """Raise the group's mark to this epoch, before anything is taken. A single node leaves it alone."""
        if duty.group is not None and duty.epoch > 0:
            self.script(RAISE, [self.fence_key(duty)], [duty.epoch])

    def check(self) -> None:
        """Does the server answer and let this user at the queue. Raises Unavailable."""
        self.command("XLEN", self.stream)

    def abort(self) -> None:
        try:
            self._redis.connection_pool.disconnect(inuse_connections=True)
        except Exception:  # noqa: S110 - another thread uses the socket that is shut here; nothing may reach the election loop
            pass


class UploadLost(Unavailable):
    pass


class NoQueue(Unavailable):
    pass


@outbound(ComponentKind.QUEUE)
class QueueOutbound(Outbound):
    """Settings: url, queue, prefix."""

    def __init__(self, setting: Setting) -> None:
        self._broker = Broker(setting)
        self._open: dict[tuple[str, int], tuple[list[Any], list[Any]]] = {}  # commits of unknown outcome, by item id and epoch

    def prepare(self) -> None:
        pass  # an absent queue is the queue's fault: items wait in the source

    def check(self) -> None:
        self._broker.check()

    def begin(self, duty: Duty) -> None:
        self._open.clear()
        self._broker.fence(duty)

    def deliver(self, item: Item, duty: Duty) -> None:
        unknown = self._open.get((item.id, duty.epoch))
        if unknown is not None:
            try:
                self._commit(item, duty, *unknown)
            except UploadLost:
                self._open.pop((item.id, duty.epoch), None)
            else:
                return
        attempt = uuid.uuid4().hex
        keys = [
            self._broker.fence_key(duty),
            f"{self._broker.prefix}upload:{attempt}",
            self._broker.stream,
            f"{self._broker.prefix}committed:{attempt}",
        ]
        self._commit(item, duty, keys, self._upload(item, duty, keys))

    def abort(self) -> None:
        self._broker.abort()

    def _upload(self, item: Item, duty: Duty, keys: Sequence[str]) -> list[Any]:
        """Send the bytes; gives the commit's arguments."""
        digest, size, count = hashlib.sha256(), 0, 0
        with item.open() as chunks:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                count += 1
                duty.check()
                self._broker.script(APPEND, keys[:2], [duty.epoch, chunk, UPLOAD_SECONDS])
        if item.sha256 is not None and digest.hexdigest() != item.sha256:
            raise ItemError(f"its content does not match its header: sha256 {digest.hexdigest()}, expected {item.sha256}")
        origin = item.origin
        fields: list[Any] = ["id", item.id, "name", item.name, "size", size, "sha256", digest.hexdigest(), "upload", keys[1]]
        fields += ["flow", os.fsencode(origin.flow), "group", os.fsencode(origin.group), "epoch", origin.epoch, "machine", origin.machine]
        if item.properties:
            fields += ["properties", json.dumps(dict(item.properties))]
        if duty.group is not None and duty.epoch == 0:
            fields += ["unfenced", "1"]
        return [duty.epoch, count, *fields]

    def _commit(self, item: Item, duty: Duty, keys: list[Any], args: list[Any]) -> None:
        mark = (item.id, duty.epoch)
        self._open[mark] = (keys, args)
        duty.check()
        try:
            self._broker.script(COMMIT, keys, args)
        except (Fenced, UploadLost):
            del self._open[mark]
            raise
        del self._open[mark]


class QueueErrors:
    """The stream `<prefix><queue>:errors`: every member of the group sees the same."""

    def __init__(self, broker: Broker, setting: Setting) -> None:
        self._broker = broker
        self._setting = setting

    def count(self) -> int:
        return int(self._broker.command("XLEN", self._broker.errors))

    def ordered(self) -> int:
        return 0  # they go back into the queue

    def listed(self) -> tuple[int, list[FailedItem]]:
        entries = self._broker.command("XREVRANGE", self._broker.errors, "+", "-", "COUNT", LISTED)
        return int(self._broker.command("XLEN", self._broker.errors)), [self._read(entry, fields_of(flat)) for entry, flat in entries]

    def content(self, key: str, limit: int) -> tuple[bytes, int]:
        entries = self._broker.command("XRANGE", self._broker.errors, _entry(key), _entry(key))
        if not entries:
            raise KeyError(key)
        fields = fields_of(entries[0][1])
        data, index = b"", 0
        while len(data) < limit and (chunk := self._broker.command("LINDEX", fields.get(b"upload", b""), index)) is not None:
            data, index = data + chunk, index + 1
        return data[:limit], _whole(fields.get(b"size"))

    def retry(self, key: str) -> None:
        if not self._broker.script(RETRY, [self._broker.stream, self._broker.errors], [_entry(key)]):
            raise KeyError(key)

    def discard(self, key: str) -> None:
        if not self._broker.script(DISCARD, [self._broker.errors], [_entry(key)]):
            raise KeyError(key)

    def sweep(self) -> None:
        """Keep at most so many, and for at most so many days."""
        days = self._setting.number("failed_days", KEPT_DAYS, 0.01, 3650)
        most = int(self._setting.number("failed_items", KEPT_ITEMS, 1, 100_000))
        oldest = f"{(time.time() - days * 86400) * 1000:.0f}-0"
        old = [entry for entry, _ in self._broker.command("XRANGE", self._broker.errors, "-", oldest, "COUNT", 100)]
        over = int(self._broker.command("XLEN", self._broker.errors)) - len(old) - most
        if over > 0:
            old = [entry for entry, _ in self._broker.command("XRANGE", self._broker.errors, "-", "+", "COUNT", len(old) + over)]
        for entry in old:
            self._broker.script(DISCARD, [self._broker.errors], [entry])
        if old:
            self._setting.log.warning(f"{len(old)} failed items were removed by retention ({days:g} days, {most} items)")

    def _read(self, entry: bytes, fields: dict[bytes, bytes]) -> FailedItem:
        def text(name: bytes) -> str:
            return fields.get(name, b"").decode("utf-8", "replace")[:500]

        moment = datetime.fromtimestamp(int(entry.split(b"-")[0]) / 1000, UTC)
        return FailedItem(
            key=entry.decode(),
            item=text(b"id") or entry.decode(),
            name=text(b"name"),
            size=_whole(fields.get(b"size")),
            reason=text(b"reason"),
            tries=_whole(fields.get(b"tries")),
            at=moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            epoch=_whole(fields.get(b"epoch")),
            machine=text(b"machine"),
        )


def _identity(told: bytes) -> str:
    """As whoever wrote the entry gave it, if every target can carry it (a header, a file's name); else a hash of it, the same each time."""
    text = told.decode("ascii", "replace")
    plain = text.isprintable() and text.isascii() and text == text.strip() and len(text) <= ID_LIMIT
    return text if plain else hashlib.sha256(told).hexdigest()[:32]


def fields_of(flat: Any) -> dict[bytes, bytes]:
    return flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=False))


def _whole(text: bytes | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _properties(text: bytes) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _entry(key: str) -> str:
    """Raises KeyError for what is no entry's id."""
    if not all(part.isdigit() for part in key.split("-")) or key.count("-") != 1:
        raise KeyError(key)
    return key


@inbound(ComponentKind.QUEUE)
class QueueInbound(Inbound):
    """Settings: url, queue, prefix. Entries that cannot be delivered go to the stream `<prefix><queue>:errors`."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._broker = Broker(setting)
        self._consumer = setting.key
        self.failures = QueueErrors(self._broker, setting)
        self._waiting: dict[bytes, Item] = {}  # read or claimed, not yet finished; oldest first
        self._delivered: dict[bytes, bytes] = {}  # entry -> upload: delivered by this process, but not yet taken off the queue
        self._unanswered = False  # was something read whose answer never came

    def prepare(self) -> None:
        pass

    def check(self) -> None:
        self._broker.check()

    def begin(self, duty: Duty) -> None:
        """Fence, then claim every entry that a former consumer had read but not finished."""
        self._waiting.clear()
        self._broker.fence(duty)
        self._make_group()
        cursor: bytes = b"0-0"
        while True:
            answer = self._broker.script(CLAIM, self._keys(duty), [duty.epoch, CONSUMERS, self._consumer, cursor])
            self._keep(answer[1])
            cursor = answer[0]
            if cursor == b"0-0":
                return

    def poll(self, duty: Duty) -> Sequence[Item]:
        """Entries that wait here, with fresh ones behind them, so that a failing one never holds up the rest."""
        for entry, upload in list(self._delivered.items()):
            self._finish(entry, upload, duty)
        if len(self._waiting) >= WAITING_LIMIT:
            return list(self._waiting.values())
        duty.check_take()
        try:
            if self._unanswered:
                self._read(READ_AGAIN, WAITING_LIMIT + 2 * BATCH, duty)
            self._unanswered = True
            self._read(READ, BATCH, duty)
        except NoQueue:
            self._waiting.clear()
            self._make_group()
            self._unanswered = False
            return []
        self._unanswered = False
        return list(self._waiting.values())

    def remove(self, item: Item, duty: Duty) -> None:
        entry, upload = item.handle
        self._waiting.pop(entry, None)
        self._delivered[entry] = upload
        self._finish(entry, upload, duty)

    def reject(self, item: Item, reason: str, duty: Duty, tries: int) -> None:
        entry, _ = item.handle
        keys = [*self._keys(duty), self._broker.errors]
        self._broker.script(REJECT, keys, [duty.epoch, CONSUMERS, entry, os.fsencode(reason), tries])
        self._waiting.pop(entry, None)
        self.failures.sweep()

    def wait_seconds(self) -> float:
        return 0.1

    def abort(self) -> None:
        self._broker.abort()

    def depth(self) -> tuple[int | None, int | None]:
        length = int(self._broker.command("XLEN", self._broker.stream))
        try:
            summary = self._broker.command("XPENDING", self._broker.stream, CONSUMERS) if length else [0]
        except NoQueue:
            summary = [0]
        pending = int(summary["pending"] if isinstance(summary, dict) else summary[0])
        return max(length - pending, 0), pending

    def _read(self, script: str, count: int, duty: Duty) -> None:
        answer = self._broker.script(script, self._keys(duty), [duty.epoch, CONSUMERS, self._consumer, count])
        for _, entries in answer or ():
            self._keep(entries)

    def _finish(self, entry: bytes, upload: bytes, duty: Duty) -> None:
        self._broker.script(FINISH, [*self._keys(duty), upload], [duty.epoch, CONSUMERS, entry])
        self._delivered.pop(entry, None)

    def _keys(self, duty: Duty) -> list[str]:
        return [self._broker.fence_key(duty), self._broker.stream]

    def _make_group(self) -> None:
        try:
            self._broker.command("XGROUP", "CREATE", self._broker.stream, CONSUMERS, "0", "MKSTREAM")
        except Unavailable as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _keep(self, entries: Any) -> None:
        for entry in entries or ():
            if entry and entry[1] and entry[0] not in self._delivered:
                self._waiting.setdefault(entry[0], self._item(entry[0], fields_of(entry[1])))

    def _item(self, entry: bytes, fields: dict[bytes, bytes]) -> Item:
        """An item from its entry; a malformed one can be held too, and fails when it is opened, so it moves aside like any other."""

        def text(name: bytes) -> str:
            return fields.get(name, b"").decode("utf-8", "replace")

        lacks = next((name.decode() for name in (b"id", b"upload", b"size") if not fields.get(name)), "")
        trouble = f"the entry has no {lacks}: it was not written by Baton" if lacks else ""
        numbers = {name: _whole(fields.get(name)) for name in (b"size", b"epoch")}
        origin = Origin(text(b"flow"), text(b"group"), numbers[b"epoch"], text(b"machine"))
        upload = fields.get(b"upload", b"")
        opener = partial(self._open, upload, numbers[b"size"], trouble)
        identity = _identity(fields.get(b"id") or entry)
        name = fields.get(b"name", b"")
        properties = _properties(fields.get(b"properties", b"{}"))
        return Item(identity, name, numbers[b"size"], origin, opener, (entry, upload), text(b"sha256") or None, properties)

    @contextmanager
    def _open(self, upload: bytes, size: int, trouble: str) -> Iterator[Iterator[bytes]]:
        if trouble:
            raise ItemError(trouble)
        yield self._chunks(upload, size)

    def _chunks(self, upload: bytes, size: int) -> Iterator[bytes]:
        index = received = 0
        while received < size:
            chunk = self._broker.command("LINDEX", upload, index)
            if chunk is None:
                raise ItemError(f"its bytes are gone from the queue after {received} of {size}")
            received += len(chunk)
            if received > size:
                raise ItemError(f"it has more bytes than its entry says: {size}")
            yield chunk
            index += 1


assert CHUNK <= 512 * 1024 * 1024  # a Redis value's limit
