"""Outbound `http`: each item is one request, with an idempotency key. Inbound `http`: a URL is polled, with cursor and ETag.

Certificates are always verified. Answers that say nothing about the item (408, 425, 429, 5xx, 401, 403, 404, 405, 407) keep it in the
source; 412 means that the receiver has seen a higher epoch; every other refusal is the item's own.
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx

from runtimes.process.connectors.aside import ErrorFolder
from runtimes.process.connectors.base import (
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
from runtimes.protocol import ComponentKind

TRIES = 4  # of one delivery, before the item waits in its source
CONNECT_SECONDS = 4.0  # less than the drain limit: nothing can cut an attempt to connect
BACKOFF_SECONDS, BACKOFF_LIMIT = 0.2, 5.0
RETRY_AFTER_LIMIT = 3600.0  # seconds that a server may ask us to wait
ANSWER_LIMIT = 64 * 1024 * 1024  # bytes of a polled answer, which is held in memory
ITEMS_LIMIT = 10_000  # items of one answer
MARK = 16  # letters of an item's id that are remembered where no cursor tells the new ones
ASKED = 1_000  # cursors in a row, each asked at once after the one before
REDIRECTS = 3
LATER = (408, 425, 429)
NOT_THE_ITEM = (401, 403, 404, 405, 407)  # the address or the password is wrong


HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110
HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")


def _headers(setting: Setting) -> dict[str, str]:
    """What every request bears. Raises ConfigError, which never shows a value: it may be a secret."""
    found = setting.pairs("headers", ":")
    for name, value in found.items():
        if not HEADER_NAME.fullmatch(name):
            raise setting.error("headers", f"has a name that is none: {name!r}", "write letters, digits and dashes, then the colon")
        if not HEADER_VALUE.fullmatch(value):
            raise setting.error(
                "headers",
                f"gives {name} a character that no header carries",
                "only ASCII goes there: write it percent-encoded or in base64, as that server reads it",
            )
    return found


class Caller:
    """One client of one server, whose sockets can be cut from another thread."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.url = setting.text("url")
        try:
            parsed = httpx.URL(self.url.replace("{cursor}", ""))
        except httpx.InvalidURL as error:
            raise setting.error("url", f"is not usable: {error}", "write it as https://host/path") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise setting.error("url", "is not usable", "write it as https://host/path")
        self.where = f"{parsed.scheme}://{parsed.netloc.decode().rpartition('@')[2]}{parsed.path}"
        self.headers = _headers(setting)
        seconds = setting.number("timeout_seconds", 10.0, 0.1, 300.0)
        ca_file = setting.text("ca_file", "\n").strip()
        try:
            verify = ssl.create_default_context(cafile=ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise setting.error("ca_file", f"cannot be read: {error}", "name a file of certificates in PEM") from error
        self._client = httpx.Client(
            verify=verify,
            timeout=httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
            trust_env=False,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=30),
        )
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    @contextmanager
    def call(
        self, method: str, url: str, *, follow: bool, check: Callable[[], None] | None = None, **more: Any
    ) -> Iterator[httpx.Response]:
        """The answer, its body unread; `check` is asked when a connection stands, immediately before the request leaves.

        Raises: Unavailable, and what `check` raises.
        """

        def trace(event: str, facts: dict[str, Any]) -> None:
            self._trace(event, facts)
            if check is not None and event.endswith("send_request_headers.started"):
                check()

        request = self._client.build_request(method, url, extensions={"trace": trace}, **more)
        try:
            response = self._client.send(request, stream=True)
            for _ in range(REDIRECTS):
                if not follow or response.next_request is None:
                    break
                response = self._follow(response, response.next_request)
            if follow and response.next_request is not None:
                response.close()
                raise Unavailable(f"{self.where} redirects more than {REDIRECTS} times: correct url")
            try:
                yield response
            finally:
                response.close()
        except httpx.TimeoutException as error:
            raise Unavailable(f"{self.where} did not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Unavailable(f"{self.where} cannot be reached: {error}") from error

    def _follow(self, response: httpx.Response, following: httpx.Request) -> httpx.Response:
        """Ask where it redirects to: on the same server only, for what the headers hold is meant for that. Raises Unavailable."""
        response.close()
        asked, target = response.request.url, following.url
        if target.host != asked.host or (asked.scheme == "https" and target.scheme != "https"):
            raise Unavailable(f"{self.where} redirects to {target.scheme}://{target.netloc.decode().rpartition('@')[2]}: correct url")
        return self._client.send(following, stream=True)

    def abort(self) -> None:
        """Cut every connection."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for each in sockets:
            with contextlib.suppress(OSError), each:
                each.shutdown(socket.SHUT_RDWR)

    def _trace(self, event: str, facts: dict[str, Any]) -> None:
        """Keep a second handle of each connection's socket: shutting it ends whatever waits on the first."""
        if event == "connection.connect_tcp.complete":
            made: socket.socket = facts["return_value"].get_extra_info("socket")
            with self._lock:
                for each in self._sockets:
                    each.close()
                self._sockets = [socket.socket(fileno=os.dup(made.fileno()))]


def retry_after(value: str, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, bounded; None: it says nothing readable."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), RETRY_AFTER_LIMIT)
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max((until - now).total_seconds(), 0.0), RETRY_AFTER_LIMIT)


@outbound(ComponentKind.HTTP)
class HttpOutbound(Outbound):
    """Settings: url, method, content_type, headers, timeout_seconds, ca_file."""

    def __init__(self, setting: Setting) -> None:
        self._caller = Caller(setting)
        self._method = setting.choice("method", ("POST", "PUT", "PATCH"))
        self._type = setting.text("content_type", "application/octet-stream")
        self._not_before = 0.0  # time.monotonic(): the server asked us to wait

    def prepare(self) -> None:
        pass

    def begin(self, duty: Duty) -> None:
        self._not_before = 0.0

    def deliver(self, item: Item, duty: Duty) -> None:
        if time.monotonic() < self._not_before:
            raise Unavailable(f"{self._caller.where} asked to be left alone for {self._not_before - time.monotonic():.0f} s more")
        wait = BACKOFF_SECONDS
        for number in range(1, TRIES + 1):
            status, reason, asked = self._try(item, duty)
            if 200 <= status < 300:
                return
            words = f"{self._caller.where} answered {status}{': ' + reason if reason else ''}"
            if status == 412:
                raise Fenced(f"{words}; it has seen a higher epoch of this group")
            if status in NOT_THE_ITEM or 300 <= status < 400:
                raise Refusing(f"{words}; correct the address, the method or the password")
            if status not in LATER and status < 500:
                raise ItemError(words)
            pause = asked if asked is not None else wait
            if number == TRIES or pause > BACKOFF_LIMIT or not duty.taking:
                self._not_before = time.monotonic() + (asked or 0.0)
                raise Refusing(words)
            self._sleep(pause, duty)
            wait = min(wait * 2, BACKOFF_LIMIT)

    def abort(self) -> None:
        self._caller.abort()

    def _try(self, item: Item, duty: Duty) -> tuple[int, str, float | None]:
        """Status, the first words of its reason, the seconds it asks us to wait."""
        with item.open() as chunks:
            body = self._body(chunks, duty)
            duty.check()
            with self._caller.call(
                self._method, self._caller.url, follow=False, check=duty.check, content=body, headers=self._headers(item, duty)
            ) as response:
                asked = retry_after(response.headers.get("Retry-After", ""), datetime.now(UTC))
                reason = "" if response.is_success else _first_words(response)
                return response.status_code, reason, asked

    def _body(self, chunks: Iterator[bytes], duty: Duty) -> Iterator[bytes]:
        """One chunk is held back, so that the permit is asked immediately before the last byte leaves."""
        held = b""
        for chunk in chunks:
            if held:
                duty.check()
                yield held
            held = chunk
        duty.check()
        if held:
            yield held

    def _headers(self, item: Item, duty: Duty) -> dict[str, str]:
        headers = {
            "Content-Type": self._type,
            "Content-Length": str(item.size),
            "Idempotency-Key": item.id,
            "Baton-Message-Id": item.id,
            "Baton-Flow": quote(item.origin.flow),
            "Baton-Machine": quote(item.origin.machine),
            "Baton-Group": quote(duty.group or ""),
            "Baton-Epoch": str(duty.epoch),
            "Baton-Item-Name": quote(item.name),
        }
        if duty.group is not None and duty.epoch == 0:
            headers["Baton-Unfenced"] = "1"
        return headers | self._caller.headers

    def _sleep(self, seconds: float, duty: Duty) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            duty.check()
            time.sleep(min(0.02, seconds))


def _first_words(response: httpx.Response) -> str:
    data = b""
    with contextlib.suppress(httpx.HTTPError):
        for chunk in response.iter_bytes(500):
            data += chunk
            if len(data) >= 500:
                break
    return " ".join(data[:300].decode("utf-8", "replace").split())


# ---------------------------------------------------------------------------------------------------------------------- inbound


@inbound(ComponentKind.HTTP)
class HttpInbound(Inbound):
    """Settings: url (may hold {cursor}), headers, poll_seconds, timeout_seconds, ca_file; items_path, id_path, cursor_path, first_cursor.

    It remembers {cursor, etag, modified, seen} and writes that down once every item of an answer was delivered or moved aside.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._caller = Caller(setting)
        self._every = setting.number("poll_seconds", 10.0, 0.1, 86400.0)
        self._items_path = setting.text("items_path", "\n").strip()
        self._id_path = setting.text("id_path", "\n").strip()
        self._cursor_path = setting.text("cursor_path", "\n").strip()
        self._first = setting.text("first_cursor", "\n").strip()
        if "{cursor}" in self._caller.url and not self._cursor_path:
            raise setting.error("cursor_path", "is missing though the URL has {cursor}", "say where the answer has the next cursor")
        self.failures: ErrorFolder = ErrorFolder(setting.data / "errors" / setting.flow_id, setting)
        self._known: dict[str, Any] = {}
        self._next: dict[str, Any] | None = None  # what to remember once all items of the answer are done
        self._waiting: list[Item] = []
        self._ask_at = 0.0  # time.monotonic()
        self._answered = 0.0  # time.time()
        self._pause = self._every  # until it is asked again: longer when it asked for that
        self._failed = ""  # why the last question brought nothing: true until the next one
        self._asked: set[str] = set()  # cursors since the last rest

    def prepare(self) -> None:
        self.failures.prepare()

    def begin(self, duty: Duty) -> None:
        self._waiting.clear()
        self._next = None
        self._ask_at = 0.0
        self._failed = ""
        self._known = self._setting.state.read(duty)

    def poll(self, duty: Duty) -> Sequence[Item]:
        self._settle(duty)
        again = self.failures.offered(duty)
        if not self._waiting and self._next is None and time.monotonic() >= self._ask_at:
            duty.check_take()
            self._failed = ""
            try:
                self._ask(duty)
            except Unavailable as error:
                self._failed = str(error)
                raise
            self._settle(duty)
        elif self._failed and not again:
            raise Unavailable(self._failed)
        return [*again, *self._waiting]

    def remove(self, item: Item, duty: Duty) -> None:
        if not self.failures.delivered(item):
            self._waiting = [other for other in self._waiting if other.id != item.id]
            self._settle(duty)

    def reject(self, item: Item, reason: str, duty: Duty, tries: int) -> None:
        self.failures.put(item, reason, tries)
        self._waiting = [other for other in self._waiting if other.id != item.id]
        self._settle(duty)

    def keep_up(self) -> None:
        self._setting.state.keep_up()

    def wait_seconds(self) -> float:
        return min(max(self._ask_at - time.monotonic(), 0.02), 0.5)

    def interval_seconds(self) -> float:
        return self._pause

    def answered_at(self) -> float:
        return self._answered

    def abort(self) -> None:
        self._caller.abort()

    def _settle(self, duty: Duty) -> None:
        """All of an answer is done: remember where to go on."""
        if self._next is not None and not self._waiting:
            if self._next != self._known:
                self._setting.state.write(duty, self._next)
            self._known, self._next = self._next, None

    def _ask(self, duty: Duty) -> None:
        self._pause = self._every
        self._ask_at = time.monotonic() + self._pause
        cursor = str(self._known.get("cursor", self._first))
        url = self._caller.url.replace("{cursor}", quote(cursor, safe=""))
        headers = dict(self._caller.headers)
        if self._known.get("url") == hashlib.sha256(url.encode()).hexdigest():
            headers |= {"If-None-Match": self._known["etag"]} if self._known.get("etag") else {}
            headers |= {"If-Modified-Since": self._known["modified"]} if self._known.get("modified") else {}
        with self._caller.call("GET", url, follow=True, headers=headers) as response:
            asked = retry_after(response.headers.get("Retry-After", ""), datetime.now(UTC))
            if asked is not None:
                self._pause = max(asked, self._every)
                self._ask_at = time.monotonic() + self._pause
            if response.status_code == 304 or response.status_code == 204:
                self._answered = time.time()
                return
            if response.status_code != 200:
                wait = f"; it is asked again in {self._ask_at - time.monotonic():.0f} s"
                words = _first_words(response) or response.reason_phrase
                raise Unavailable(f"{self._caller.where} answered {response.status_code}: {words}{wait}")
            body = self._read(response)
        self._answered = time.time()
        self._take(body, cursor, url, response.headers, duty)

    def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > ANSWER_LIMIT:
                raise Unavailable(f"{self._caller.where} answered with more than {ANSWER_LIMIT} bytes: ask it for less at a time")
        return bytes(body)

    def _take(self, body: bytes, cursor: str, url: str, headers: httpx.Headers, duty: Duty) -> None:
        answer: Any = None
        if self._items_path or self._cursor_path or self._id_path:
            try:
                answer = json.loads(body)
            except (ValueError, RecursionError) as error:
                kind = headers.get("Content-Type", "no content type")
                raise Unavailable(f"{self._caller.where} answered no JSON but {kind}: {error}; correct url or headers") from error
        contents = self._contents(body, answer)
        before = {str(key)[:MARK] for key in self._known.get("seen", ())}
        found = [(self._key(content, element, cursor), content, element is not None) for content, element in contents]
        fresh = [each for each in dict.fromkeys(found) if each[0][:MARK] not in before]
        self._waiting = [self._item(key, content, is_json, duty) for key, content, is_json in fresh]
        following = self._cursor(answer, cursor)
        self._next = {"url": hashlib.sha256(url.encode()).hexdigest()}
        if self._cursor_path:
            self._next["cursor"] = following
        else:
            self._next |= {"etag": headers.get("ETag", ""), "modified": headers.get("Last-Modified", "")}
        if following == cursor:  # the same question again: what it answered is not new then
            self._next["seen"] = [key[:MARK] for key, _, _ in found]
            self._next |= {"etag": headers.get("ETag", ""), "modified": headers.get("Last-Modified", "")}
        self._asked.add(cursor)
        if not found or following in self._asked or len(self._asked) >= ASKED:
            if found and following != cursor and following in self._asked:
                self._setting.log.warning(f"{self._caller.where} gives cursor {following[:100]} a second time: it goes in circles")
            self._asked.clear()
        elif self._pause == self._every:  # it did not ask to be left alone
            self._ask_at = time.monotonic()  # there may be more

    def _contents(self, body: bytes, answer: Any) -> list[tuple[bytes, Any]]:
        """Each item's bytes, and its JSON element where the answer is taken apart."""
        if not self._items_path:
            return [(body, None)] if body else []
        elements = answer if self._items_path == "." else at(answer, self._items_path)
        if not isinstance(elements, list):
            raise Unavailable(f"{self._caller.where} has no list at {self._items_path} in its answer: correct items_path")
        if len(elements) > ITEMS_LIMIT:
            raise Unavailable(f"{self._caller.where} answered with more than {ITEMS_LIMIT} items: ask it for less at a time")
        return [(json.dumps(each, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"), each) for each in elements]

    def _key(self, content: bytes, element: Any, cursor: str) -> str:
        own = at(element, self._id_path) if self._id_path and element is not None else None
        known = str(own) if isinstance(own, str | int) else f"{hashlib.sha256(content).hexdigest()}\0{cursor}"
        return hashlib.sha256(f"{self._setting.flow_id}\0{known}".encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _cursor(self, answer: Any, cursor: str) -> str:
        found = at(answer, self._cursor_path) if self._cursor_path else None
        if isinstance(found, dict | list):
            raise Unavailable(f"{self._caller.where} has no text or number at {self._cursor_path} in its answer: correct cursor_path")
        return str(found) if isinstance(found, str | int | float) and not isinstance(found, bool) and found != "" else cursor

    def _item(self, key: str, content: bytes, is_json: bool, duty: Duty) -> Item:
        origin = Origin(self._setting.flow, duty.group_name, duty.epoch, self._setting.machine)
        name = f"{self._setting.flow}-{key[:8]}.{'json' if is_json else 'bin'}".encode()
        return Item(key, name, len(content), origin, partial(_opened, content))


@contextmanager
def _opened(content: bytes) -> Iterator[Iterator[bytes]]:
    yield iter([content] if content else [])


def at(value: Any, path: str) -> Any:
    """What stands at a path such as `data.items.-1.id`; None: nothing."""
    for part in path.split(".") if path != "." else []:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.lstrip("-").isdigit() and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value
