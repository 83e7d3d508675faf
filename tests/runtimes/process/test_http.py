"""Outbound and inbound `http` against a real server over real sockets, also with TLS."""

import http.server
import json
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from runtimes.process.connectors.base import ConfigError, Fenced, Item, ItemError, Origin, Refusing, Setting, Unavailable
from runtimes.process.connectors.http import HttpInbound, HttpOutbound, at, retry_after
from runtimes.process.permits import Duty, PermitEnded
from runtimes.protocol import Component, ComponentKind
from tests.certified import Authority

EPOCH = 10**12 + 5


class Server:
    """Answers as told, one after another (the last one for ever), and remembers what was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: deque[tuple[int, dict[str, str], bytes]] = deque([(200, {}, b"")])
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.pause = threading.Event()
        self.pause.set()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.asked.append((self.command, self.path, dict(self.headers), body))
                server.pause.wait(20)
                status, headers, data = server.answers.popleft() if len(server.answers) > 1 else server.answers[0]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if status != 304:
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = answer  # noqa: N815 - the library's names

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        if context is not None:
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def says(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        self.answers = deque(answers)

    def close(self) -> None:
        self.pause.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def made() -> Iterator[list[Any]]:
    connectors: list[Any] = []
    yield connectors
    for each in connectors:
        each.abort()
        each._caller._client.close()


def setting(component: Component, tmp_path: Path, side: str = "outbound") -> Setting:
    return Setting("f", "erp-orders", component, side, "external01.erp", "external01", tmp_path / "data", structlog.get_logger())


@pytest.fixture
def outbound(server: Server, tmp_path: Path, made: list[Any]) -> Callable[..., HttpOutbound]:
    def make(**settings: str) -> HttpOutbound:
        component = Component(kind=ComponentKind.HTTP, settings={"url": f"{server.url}/orders", "timeout_seconds": "2", **settings})
        made.append(HttpOutbound(setting(component, tmp_path)))
        made[-1].begin(duty())
        return made[-1]

    return make


@pytest.fixture
def inbound(server: Server, tmp_path: Path, made: list[Any]) -> Callable[..., HttpInbound]:
    def make(**settings: str) -> HttpInbound:
        given = {"url": f"{server.url}/feed", "poll_seconds": "0.1", "timeout_seconds": "2", **settings}
        made.append(HttpInbound(setting(Component(kind=ComponentKind.HTTP, settings=given), tmp_path, "inbound")))
        made[-1].prepare()
        made[-1].begin(duty(0))
        return made[-1]

    return make


def item(content: bytes = b"<x/>", key: str = "m1") -> Item:
    @contextmanager
    def opening() -> Iterator[Iterator[bytes]]:
        yield iter([content[:2], content[2:]] if content else [])

    return Item(key, "bestelling-ü.xml".encode("latin-1"), len(content), Origin("erp-orders", "orders", EPOCH, "external01"), opening)


def duty(epoch: int = EPOCH, clock: Callable[[], float] = lambda: 0.0) -> Duty:
    return Duty("g", "orders", epoch, 1.0, clock)


def content(found: Item) -> bytes:
    with found.open() as chunks:
        return b"".join(chunks)


# --------------------------------------------------------------------------------------------------------------------- outbound


def test_an_item_is_one_request_with_its_id_as_idempotency_key_and_its_epoch(server: Server, outbound: Callable[..., HttpOutbound]) -> None:
    outbound(headers="Authorization: Bearer s3cret\nX-Team: erp", content_type="application/xml").deliver(item(), duty())
    ((method, path, headers, body),) = server.asked
    assert (method, path, body) == ("POST", "/orders", b"<x/>")
    assert (headers["Idempotency-Key"], headers["Baton-Group"], headers["Baton-Epoch"]) == ("m1", "g", str(EPOCH))
    assert (headers["Authorization"], headers["X-Team"], headers["Content-Type"]) == ("Bearer s3cret", "erp", "application/xml")
    assert headers["Baton-Item-Name"] == "bestelling-%FC.xml" and "Baton-Unfenced" not in headers


def test_an_empty_item_and_a_single_node_are_sent_too(server: Server, outbound: Callable[..., HttpOutbound]) -> None:
    outbound(method="PUT").deliver(item(b""), duty(0))
    ((method, _, headers, body),) = server.asked
    assert (method, body, headers["Baton-Unfenced"]) == ("PUT", b"", "1")


@pytest.mark.parametrize(
    ("answers", "asked", "ends"),
    [
        pytest.param([(503, {}, b""), (500, {}, b""), (201, {}, b"")], 3, None, id="it comes to itself"),
        pytest.param([(429, {"Retry-After": "1"}, b""), (200, {}, b"")], 2, None, id="it asks for a second"),
        pytest.param([(503, {}, b"overloaded")], 4, Refusing, id="it stays overloaded: the item waits in its source"),
        pytest.param([(503, {"Retry-After": "120"}, b"")], 1, Refusing, id="it asks for two minutes: the item waits in its source"),
        pytest.param([(422, {}, b"no such customer")], 1, ItemError, id="the item is wrong"),
        pytest.param([(401, {}, b"")], 1, Refusing, id="the password is wrong: not the item's fault"),
        pytest.param([(302, {"Location": "https://elsewhere"}, b"")], 1, Refusing, id="it is sent nowhere else"),
        pytest.param([(412, {}, b"")], 1, Fenced, id="it has seen a higher epoch"),
    ],
)
def test_what_an_answer_means(
    server: Server, outbound: Callable[..., HttpOutbound], answers: list[Any], asked: int, ends: type[Exception] | None
) -> None:
    server.says(*answers)
    target, began = outbound(), time.monotonic()
    if ends is None:
        target.deliver(item(), duty())
    else:
        with pytest.raises(ends, match=str(answers[0][0])):
            target.deliver(item(), duty())
    assert len(server.asked) == asked
    assert len({headers["Idempotency-Key"] for _, _, headers, _ in server.asked}) == 1
    if answers[0][1].get("Retry-After") == "1":
        assert time.monotonic() - began >= 1
    if answers[0][1].get("Retry-After") == "120":
        with pytest.raises(Unavailable, match="left alone for 1"):
            target.deliver(item(key="m2"), duty())
        assert len(server.asked) == asked, "it is left alone"


def test_an_ended_permit_sends_nothing_and_one_that_ends_halfway_keeps_the_last_byte(
    server: Server, outbound: Callable[..., HttpOutbound]
) -> None:
    with pytest.raises(PermitEnded):
        outbound().deliver(item(), duty(clock=lambda: 2.0))
    answers = iter([0.0, 0.0, 0.0, 2.0, 2.0, 2.0])
    with pytest.raises(PermitEnded):
        outbound().deliver(item(), duty(clock=lambda: next(answers)))
    assert all(body != b"<x/>" for _, _, _, body in server.asked)


def test_a_permit_that_ends_while_a_connection_is_made_sends_not_even_an_empty_item(
    server: Server, outbound: Callable[..., HttpOutbound]
) -> None:
    target, answers = outbound(), iter([0.0, 2.0, 2.0])
    with pytest.raises(PermitEnded):
        target.deliver(item(b""), duty(clock=lambda: next(answers)))
    assert server.asked == []
    target.deliver(item(b""), duty())
    assert len(server.asked) == 1


def test_an_emit_in_flight_is_cut_when_the_permit_ends(server: Server, outbound: Callable[..., HttpOutbound]) -> None:
    server.pause.clear()
    target, met = outbound(timeout_seconds="20"), []

    def deliver() -> None:
        try:
            target.deliver(item(), duty())
        except Unavailable as error:
            met.append(error)

    worker = threading.Thread(target=deliver)
    worker.start()
    while not server.asked:
        time.sleep(0.01)
    target.abort()
    worker.join(2)
    assert not worker.is_alive() and met


def test_a_server_that_is_away_or_silent_is_not_the_items_fault(
    server: Server, outbound: Callable[..., HttpOutbound], tmp_path: Path, made: list[Any]
) -> None:
    made.append(HttpOutbound(setting(Component(kind=ComponentKind.HTTP, settings={"url": "http://127.0.0.1:1/"}), tmp_path)))
    with pytest.raises(Unavailable, match="cannot be reached"):
        made[-1].deliver(item(), duty())
    server.pause.clear()
    with pytest.raises(Unavailable, match="did not answer in time"):
        outbound(timeout_seconds="0.2").deliver(item(), duty())


def test_a_server_that_does_not_let_itself_be_connected_is_given_up_before_a_drain_is(
    outbound: Callable[..., HttpOutbound], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can cut an attempt to connect: one that may take minutes would keep the group from being handed over."""
    monkeypatch.setattr("runtimes.process.connectors.http.CONNECT_SECONDS", 0.3, raising=False)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        target = outbound(url=f"http://127.0.0.1:{full.getsockname()[1]}/", timeout_seconds="4")
        started = time.monotonic()
        with pytest.raises(Unavailable, match="did not answer in time"):
            target.deliver(item(b"x"), duty())
        assert time.monotonic() - started < 3


def test_a_certificate_is_verified_and_an_own_authority_can_be_named(tmp_path: Path, made: list[Any]) -> None:
    authority = Authority(tmp_path / "tls")
    files = authority.files("machine")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.machine)
    server = Server(context)
    try:
        for ca_file in ("", files.authority):
            component = Component(kind=ComponentKind.HTTP, settings={"url": server.url, "ca_file": ca_file})
            made.append(HttpOutbound(setting(component, tmp_path)))
            if ca_file:
                made[-1].deliver(item(), duty())
            else:
                with pytest.raises(Unavailable, match="certificate verify failed"):
                    made[-1].deliver(item(), duty())
        assert len(server.asked) == 1
    finally:
        server.close()


# ---------------------------------------------------------------------------------------------------------------------- inbound


def taken(source: HttpInbound, held: Duty) -> list[bytes]:
    """Everything that one look brings, delivered."""
    found = [(each, content(each)) for each in source.poll(held)]
    for each, _ in found:
        source.remove(each, held)
    return [data for _, data in found]


def test_a_body_is_an_item_and_an_unchanged_one_is_not_fetched_again(server: Server, inbound: Callable[..., HttpInbound]) -> None:
    server.says((200, {"ETag": '"1"', "Last-Modified": "Sun, 22 Nov 2026 10:00:00 GMT"}, b"<x/>"), (304, {}, b""))
    source, held = inbound(headers="Accept: application/xml"), duty(0)
    assert taken(source, held) == [b"<x/>"]
    time.sleep(0.15)
    assert taken(source, held) == []
    first, second = (headers for _, _, headers, _ in server.asked)
    assert "If-None-Match" not in first and second["If-None-Match"] == '"1"' and second["If-Modified-Since"].startswith("Sun, 22")
    assert first["Accept"] == "application/xml" and source.answered_at() > 0


def test_a_body_that_stays_the_same_without_an_etag_is_one_item(server: Server, inbound: Callable[..., HttpInbound]) -> None:
    server.says((200, {}, b"a"), (200, {}, b"a"), (200, {}, b"b"), (200, {}, b"a"))
    source, found = inbound(), []
    for _ in range(4):
        found += taken(source, duty(0))
        time.sleep(0.12)
    assert found == [b"a", b"b", b"a"]


def pages(*numbers: list[int]) -> list[tuple[int, dict[str, str], bytes]]:
    return [
        (200, {}, json.dumps({"data": {"rows": [{"id": n} for n in rows], "next": str(rows[-1])} if rows else {"rows": []}}).encode())
        for rows in numbers
    ]


def test_a_cursor_goes_on_where_everything_was_delivered_also_for_the_next_leader(
    server: Server, inbound: Callable[..., HttpInbound]
) -> None:
    server.says(*pages([1, 2], [3], []))
    paths = {"url": f"{server.url}/feed?after={{cursor}}", "items_path": "data.rows", "cursor_path": "data.next", "first_cursor": "0"}
    source, held = inbound(**paths), duty(0)
    first, second = source.poll(held)
    assert (content(first), content(second)) == (b'{"id":1}', b'{"id":2}')
    source.remove(first, held)
    server.says(*pages([1, 2], [3], []))
    again = inbound(**paths)
    assert [each.id for each in again.poll(held)] == [first.id, second.id], "not all was done: the same again, under the same ids"
    for each in again.poll(held):
        again.remove(each, held)
    assert taken(again, held) == [b'{"id":3}']
    assert taken(inbound(**paths), held) == []
    assert [path.split("=")[1] for _, path, _, _ in server.asked] == ["0", "0", "2", "3"]


def test_a_cursor_that_moves_without_items_or_goes_in_circles_is_not_asked_without_a_rest(
    server: Server, inbound: Callable[..., HttpInbound]
) -> None:
    paths = {"url": f"{server.url}/feed?after={{cursor}}", "items_path": "rows", "cursor_path": "next", "first_cursor": "0"}
    server.says(*((200, {}, json.dumps({"rows": [], "next": f"t{moment}"}).encode()) for moment in range(50)))
    source, held = inbound(poll_seconds="30", **paths), duty(0)
    for _ in range(20):
        assert taken(source, held) == []
    assert len(server.asked) == 1, "a cursor that is a clock"
    circle = [(200, {}, b'{"rows": ["a"], "next": "1"}'), (200, {}, b'{"rows": ["b"], "next": "0"}')]
    server.asked.clear()
    server.says(*circle * 20)
    source = inbound(poll_seconds="30", **paths)
    for _ in range(20):
        taken(source, held)
    assert len(server.asked) == 3, "from where it was, and once round"


def test_a_good_answer_may_ask_to_be_left_alone_too(server: Server, inbound: Callable[..., HttpInbound]) -> None:
    server.says((200, {"Retry-After": "30"}, b'{"rows": ["a"], "next": "1"}'), (200, {}, b'{"rows": []}'))
    source = inbound(url=f"{server.url}/feed?after={{cursor}}", items_path="rows", cursor_path="next", first_cursor="0")
    assert taken(source, duty(0)) == [b'"a"'] and taken(source, duty(0)) == []
    assert len(server.asked) == 1 and source.interval_seconds() == 30


@pytest.mark.parametrize(
    ("following", "then"),
    [
        pytest.param("false", "0", id="no more"),
        pytest.param("null", "0", id="nothing"),
        pytest.param("1763800000.5", "1763800000.5", id="a moment"),
        pytest.param("17", "17", id="a number"),
    ],
)
def test_what_a_cursor_can_be(server: Server, inbound: Callable[..., HttpInbound], following: str, then: str) -> None:
    server.says((200, {}, f'{{"rows": ["a"], "next": {following}}}'.encode()), (200, {}, b'{"rows": []}'))
    paths = {"url": f"{server.url}/feed?after={{cursor}}", "items_path": "rows", "cursor_path": "next", "first_cursor": "0"}
    source = inbound(**paths)
    taken(source, duty(0))
    time.sleep(0.12)
    taken(source, duty(0))
    assert server.asked[1][1] == f"/feed?after={then}"


def test_a_long_list_without_a_cursor_is_taken_once(server: Server, inbound: Callable[..., HttpInbound]) -> None:
    server.says((200, {}, json.dumps([{"n": number} for number in range(9_000)]).encode()))
    source, held = inbound(items_path="."), duty(0)
    assert len(taken(source, held)) == 9_000
    time.sleep(0.12)
    assert taken(source, held) == []
    assert len(json.dumps(source._known)) < 256 * 1024, "it fits where the next leader finds it"


def test_a_redirect_is_followed_on_its_server_and_not_for_ever(server: Server, inbound: Callable[..., HttpInbound]) -> None:
    server.says((302, {"Location": "/there"}, b""), (307, {"Location": "/further"}, b""), (200, {}, b"found"))
    assert taken(inbound(headers="X-Key: k"), duty(0)) == [b"found"]
    assert [(path, headers["X-Key"]) for _, path, headers, _ in server.asked][1:] == [("/there", "k"), ("/further", "k")]
    server.says((302, {"Location": "/there"}, b""))
    with pytest.raises(Unavailable, match="redirects more than 3 times: correct url"):
        inbound().poll(duty(0))


def test_an_id_of_its_own_and_failed_items(server: Server, inbound: Callable[..., HttpInbound]) -> None:
    server.says((200, {}, b'[{"id": "A", "v": 1}]'), (200, {}, b'[{"id": "A", "v": 2}, {"id": "B"}]'))
    source, held = inbound(items_path=".", id_path="id"), duty(0)
    (first,) = source.poll(held)
    source.reject(first, "bad", held, 3)
    time.sleep(0.12)
    (second,) = source.poll(held)
    assert content(second) == b'{"id":"B"}', "A was there before"
    (kept,) = source.failures.listed()[1]
    source.failures.retry(kept.key)
    (again, _) = source.poll(held)
    assert again.id == first.id and content(again) == b'{"id":"A","v":1}'


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param((503, {"Retry-After": "30"}, b"busy"), "answered 503: busy; it is asked again in (29|30) s", id="busy"),
        pytest.param((401, {}, b""), "answered 401", id="not allowed"),
        pytest.param((200, {}, b"<html>"), "answered no JSON", id="not JSON"),
        pytest.param((200, {"Content-Type": "text/html"}, b"<p>"), "no JSON but text/html: .* correct url or headers", id="a page"),
        pytest.param((200, {}, b'{"rows": 3}'), "has no list at rows", id="no list"),
        pytest.param((503, {"Retry-After": "\xb2"}, b""), "answered 503: Service Unavailable", id="an unreadable wish"),
        pytest.param((302, {"Location": "http://localhost/"}, b""), "redirects to http://localhost: correct url", id="elsewhere"),
    ],
)
def test_a_strange_answer_is_said_and_asked_again_later(
    server: Server, inbound: Callable[..., HttpInbound], answer: Any, says: str
) -> None:
    server.says(answer)
    source = inbound(items_path="rows")
    with pytest.raises(Unavailable, match=says):
        source.poll(duty(0))
    assert source.answered_at() == 0 or answer[0] == 200
    with pytest.raises(Unavailable, match=says):
        source.poll(duty(0))  # still true
    assert len(server.asked) == 1, "not at once"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param({"url": "ftp://x"}, "setting url .* is not usable", id="another protocol"),
        pytest.param({"url": "http://x/{cursor}"}, "setting cursor_path .* is missing", id="a cursor from nowhere"),
        pytest.param({"url": "http://x", "headers": "Accept"}, "a line without ':'", id="no header"),
        pytest.param(
            {"url": "http://x", "headers": "Authorization: Bearer Tök3n"}, "gives Authorization a character .* in base64", id="not ASCII"
        ),
        pytest.param({"url": "http://x", "headers": "X y: z"}, "a name that is none: 'X y'", id="no name of a header"),
        pytest.param({"url": "https://x", "ca_file": "/no/such.pem"}, "setting ca_file .* cannot be read", id="no authority"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(tmp_path: Path, given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        HttpInbound(setting(Component(kind=ComponentKind.HTTP, settings=given), tmp_path, "inbound"))


NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param("5", 5.0, id="seconds"),
        pytest.param(format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0, id="a moment"),
        pytest.param(format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0, id="a moment that has passed"),
        pytest.param("999999", 3600.0, id="bounded"),
        pytest.param("soon", None, id="not readable"),
        pytest.param("", None, id="not said"),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("path", "found"),
    [("a.b", 1), ("c.-1.d", 3), ("c.0.d", 2), ("c.9.d", None), ("x.y", None), (".", {"a": {"b": 1}, "c": [{"d": 2}, {"d": 3}]})],
)
def test_paths_into_json(path: str, found: Any) -> None:
    assert at({"a": {"b": 1}, "c": [{"d": 2}, {"d": 3}]}, path) == found
