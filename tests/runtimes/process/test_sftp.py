"""Inbound and outbound `sftp` against a real SSH server (asyncssh's own), in a thread of its own."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import structlog

from runtimes.process.connectors import sftp
from runtimes.process.connectors.base import ConfigError, Item, ItemChanged, Origin, Refusing, Setting, Unavailable
from runtimes.process.connectors.sftp import SftpInbound, SftpOutbound
from runtimes.process.permits import Duty, PermitEnded
from runtimes.protocol import Component, ComponentKind
from tests.runtimes.process.lab import free_port, until

LATIN_1 = "bestelling-ü.xml".encode("latin-1")


class Ssh(asyncssh.SSHServer):
    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("erp", "s3cret")


class Server:
    """Serves a folder by SFTP."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.keeps = False  # lets nobody remove a file
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.client_key = asyncssh.generate_private_key("ssh-ed25519")
        (root.parent / "authorized").write_bytes(self.client_key.export_public_key())
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.acceptor: Any = asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result(10)

    async def _listen(self) -> Any:
        root, server = str(self.root), self

        class Folder(asyncssh.SFTPServer):
            def remove(self, path: bytes) -> Any:
                if server.keeps:
                    raise asyncssh.SFTPPermissionDenied("Permission denied")
                return super().remove(path)

        def sftp(channel: Any) -> asyncssh.SFTPServer:
            return Folder(channel, chroot=root)

        authorized = str(self.root.parent / "authorized")
        return await asyncssh.create_server(
            Ssh, "127.0.0.1", self.port, server_host_keys=[self.key], sftp_factory=sftp, authorized_client_keys=authorized
        )

    @property
    def host_key(self) -> str:
        return self.key.export_public_key().decode().strip()

    def close(self) -> None:
        async def end() -> None:
            self.acceptor.close()
            await self.acceptor.wait_closed()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "remote" / "box").mkdir(parents=True)
    made = Server(tmp_path / "remote")
    yield made
    made.close()


@pytest.fixture
def connect(server: Server, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(kind: type, **settings: str) -> Any:
        given = {
            "host": "127.0.0.1", "port": str(server.port), "user": "erp", "password": "s3cret", "host_key": server.host_key,
            "folder": "/box", "poll_seconds": "0.1", **settings,
        }  # fmt: skip
        if kind is SftpOutbound:
            del given["poll_seconds"]
        key = given.pop("key", "external01.erp")
        component = Component(kind=ComponentKind.SFTP, settings=given)
        side = "inbound" if kind is SftpInbound else "outbound"
        log = structlog.get_logger()
        made.append(kind(Setting("f", "erp-orders", component, side, key, "external01", tmp_path / "data", log)))
        made[-1].prepare()
        return made[-1]

    yield make
    for each in made:
        each.abort()
        loop = each._session._loop
        if loop is not None:
            time.sleep(0.05)
            loop.call_soon_threadsafe(loop.stop)
            deadline = time.monotonic() + 5
            while loop.is_running() and time.monotonic() < deadline:
                time.sleep(0.01)
            loop.close()


def duty(clock: Callable[[], float] = lambda: 0.0) -> Duty:
    return Duty("g", "orders", 5, 1.0, clock)


def settled(source: SftpInbound) -> list[Item]:
    """What the poll offers once everything was the same at two looks."""
    source.poll(duty())
    time.sleep(0.12)
    return list(source.poll(duty()))


def content(found: Item) -> bytes:
    with found.open() as chunks:
        return b"".join(chunks)


def item(data: bytes, **more: Any) -> Item:
    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        yield iter([data] if data else [])

    return Item("m1", LATIN_1, len(data), Origin("erp-orders", "orders", 5, "external01"), opened, **more)


# ---------------------------------------------------------------------------------------------------------------------- inbound


def test_files_are_taken_once_they_stand_still_and_leave_once_delivered(server: Server, connect: Callable[..., Any]) -> None:
    box = server.root / "box"
    data = os.urandom(700_000)
    (box / os.fsdecode(LATIN_1)).write_bytes(data)
    for name in (".hidden", "half.part", "half.tmp"):
        (box / name).write_bytes(b"x")
    (box / "folder").mkdir()
    source = connect(SftpInbound)
    assert source.depth() == (None, None) and source.poll(duty()) == []
    (found,) = settled(source)
    assert source.depth() == (1, None)
    assert (found.name, content(found), found.origin.epoch) == (LATIN_1, data, 5)
    (again,) = settled(connect(SftpInbound))
    assert again.id == found.id, "another machine knows it by the same id"
    source.remove(found, duty())
    assert not (box / os.fsdecode(LATIN_1)).exists() and source.answered_at() > 0


def test_of_more_files_than_one_look_takes_the_oldest_come_first_and_all_are_counted(
    server: Server, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "LISTED", 3)
    for number in range(10):
        path = server.root / "box" / f"{number}.xml"
        path.write_text("x")
        os.utime(path, (1_700_000_000 - number, 1_700_000_000 - number))
    source = connect(SftpInbound)
    assert [found.name for found in settled(source)] == [b"9.xml", b"8.xml", b"7.xml"]
    assert source.depth() == (10, None)


def test_a_file_that_changed_is_another_item_and_stays(server: Server, connect: Callable[..., Any]) -> None:
    path = server.root / "box" / "order"
    path.write_bytes(b"first")
    source = connect(SftpInbound)
    (found,) = settled(source)
    path.write_bytes(b"second, longer")
    with pytest.raises(ItemChanged):
        content(found)
    source.remove(found, duty())
    assert path.read_bytes() == b"second, longer"
    path.unlink()
    with pytest.raises(ItemChanged, match="went away"):
        content(found)


def test_a_file_that_went_away_is_not_asked_for_again_before_the_next_look(server: Server, connect: Callable[..., Any]) -> None:
    (server.root / "box" / "order").write_bytes(b"first")
    source = connect(SftpInbound)
    (found,) = settled(source)
    source._every, source._look_at = 3600.0, time.monotonic() + 3600.0
    (server.root / "box" / "order").unlink()
    with pytest.raises(ItemChanged, match="went away"):
        content(found)
    assert source.poll(duty()) == []


def test_a_rejected_file_comes_to_the_machine_and_can_be_tried_again(server: Server, connect: Callable[..., Any]) -> None:
    (server.root / "box" / "bad").write_bytes(b"<x/>")
    source = connect(SftpInbound)
    (found,) = settled(source)
    source.reject(found, "it is bad", duty(), 3)
    assert not (server.root / "box" / "bad").exists()
    (kept,) = source.failures.listed()[1]
    assert (kept.name, kept.reason, kept.item) == ("bad", "it is bad", found.id)
    source.failures.retry(kept.key)
    (again,) = source.poll(duty())
    assert (again.id, content(again)) == (found.id, b"<x/>")


def test_a_file_that_cannot_be_removed_is_taken_once_and_that_is_said(server: Server, connect: Callable[..., Any]) -> None:
    server.keeps = True
    for name in ("good", "bad"):
        (server.root / "box" / name).write_bytes(b"x")
    source = connect(SftpInbound)
    bad, good = sorted(settled(source), key=lambda each: each.name)
    says = "good is done with but cannot be removed: .*Permission denied.* let this user remove files"
    with pytest.raises(Unavailable, match=says):
        source.remove(good, duty())
    source.reject(bad, "it is bad", duty(), 3)
    for _ in range(3):
        with pytest.raises(Unavailable, match="done with but cannot be removed"):
            source.poll(duty())
        time.sleep(0.11)
    assert source.failures.count() == 1 and source.depth() == (0, None)
    (server.root / "box" / "other").write_bytes(b"y")
    assert until(lambda: _offered(source), 5)[0].name == b"other", "the others go on"
    server.keeps = False
    until(lambda: sorted(path.name for path in (server.root / "box").iterdir()) == ["other"] or (_offered(source), False)[1], 5)


def _offered(source: SftpInbound) -> list[Item]:
    try:
        return list(source.poll(duty()))
    except Unavailable:
        return []


def test_a_private_key_lets_in_too(server: Server, connect: Callable[..., Any]) -> None:
    (server.root / "box" / "order").write_bytes(b"x")
    private = server.client_key.export_private_key().decode()
    assert len(settled(connect(SftpInbound, password="", private_key=private))) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param({"password": "wrong"}, "does not let this user in", id="a wrong password"),
        pytest.param({"host_key": "other"}, "shows another host key", id="another server in its place"),
        pytest.param({"port": "1"}, "cannot be reached", id="nobody there"),
        pytest.param({"folder": "/nowhere"}, "the folder /nowhere is not on the server", id="no such folder"),
    ],
)
def test_a_server_that_is_not_as_expected_is_said_and_is_not_the_items_fault(
    server: Server, connect: Callable[..., Any], given: dict[str, str], says: str
) -> None:
    if given.get("host_key"):
        given = {"host_key": asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()}
    source = connect(SftpInbound, poll_seconds="30", **given)
    for _ in range(2):  # still true until the next look
        with pytest.raises(Unavailable, match=says):
            source.poll(duty())
    with pytest.raises(Unavailable, match=says):
        connect(SftpOutbound, **given).begin(duty())


def test_an_attempt_to_connect_is_cut_when_the_permit_ends(connect: Callable[..., Any]) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes the connection, and never says who it is
        target = connect(SftpOutbound, port=str(mute.getsockname()[1]))

        def begin() -> None:
            with pytest.raises(Unavailable) as refusal:
                target.begin(duty())
            said.append(str(refusal.value))

        worker = threading.Thread(target=begin)
        worker.start()
        until(lambda: target._session._loop is not None and target._session._loop.is_running(), 5)
        cut = time.monotonic()
        while worker.is_alive() and time.monotonic() - cut < 6:
            target.abort()
            worker.join(0.1)
        assert said and "given up while it was made" in said[0]


def test_a_connection_that_broke_is_made_anew(server: Server, connect: Callable[..., Any]) -> None:
    source = connect(SftpInbound)
    source.poll(duty())
    source.abort()
    time.sleep(0.2)
    (server.root / "box" / "order").write_bytes(b"x")
    assert len(settled(source)) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param({"host_key": ""}, "setting host_key .* is missing", id="nobody to trust"),
        pytest.param({"host_key": "ssh-ed25519 nonsense"}, "setting host_key .* cannot be read", id="no key"),
        pytest.param({"password": ""}, "setting password .* is missing, and so is private_key", id="no way in"),
        pytest.param({"private_key": "nonsense"}, "setting private_key .* cannot be read", id="no private key"),
        pytest.param({"port": "0"}, "setting port", id="no port"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(connect: Callable[..., Any], given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        connect(SftpInbound, **given)


# --------------------------------------------------------------------------------------------------------------------- outbound


def test_an_item_appears_whole_and_a_second_time_changes_nothing(server: Server, connect: Callable[..., Any]) -> None:
    target, data = connect(SftpOutbound), os.urandom(700_000)
    target.begin(duty())
    for _ in range(2):
        target.deliver(item(data), duty())
    assert [os.fsencode(path.name) for path in (server.root / "box").iterdir()] == [b"m1-" + LATIN_1]
    assert next((server.root / "box").iterdir()).read_bytes() == data


def test_an_ended_permit_leaves_nothing_that_a_reader_would_take(server: Server, connect: Callable[..., Any]) -> None:
    target = connect(SftpOutbound)
    target.begin(duty())
    answers = iter([0.0, 2.0])
    with pytest.raises(PermitEnded):
        target.deliver(item(b"x"), duty(clock=lambda: next(answers)))
    assert list((server.root / "box").iterdir()) == [], "nor anything else"


def test_a_former_leader_that_comes_to_itself_does_not_cut_what_the_next_one_sends(
    server: Server, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    former, leader, data = connect(SftpOutbound), connect(SftpOutbound, key="external02.erp"), os.urandom(600_000)
    former.begin(duty())
    leader.begin(duty())
    answers = iter([0.0, 2.0])

    @contextmanager
    def slowly() -> Iterator[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            yield data[:300_000]
            with pytest.raises(PermitEnded):
                former.deliver(item(data), duty(clock=lambda: next(answers)))
            yield data[300_000:]

        yield chunks()

    leader.deliver(replace(item(data), open=slowly), duty())
    (arrived,) = (server.root / "box").iterdir()
    assert arrived.read_bytes() == data


def test_an_upload_that_fails_leaves_neither_file_nor_handle(server: Server, connect: Callable[..., Any]) -> None:
    target = connect(SftpOutbound)
    target.begin(duty())

    @contextmanager
    def changes() -> Iterator[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            yield b"half of it"
            raise ItemChanged("it changed while it was read")

        yield chunks()

    for _ in range(3):
        with pytest.raises(ItemChanged):
            target.deliver(replace(item(b"x"), open=changes), duty())
    assert list((server.root / "box").iterdir()) == []
    assert not any((server.root / "box") in each.resolve().parents for each in Path("/proc/self/fd").iterdir())
    target.deliver(item(b"x"), duty())


@pytest.mark.parametrize("key", ["../../escape", "x" * 300, "ü" * 90])
def test_an_id_of_others_stays_in_the_folder(server: Server, connect: Callable[..., Any], key: str) -> None:
    target = connect(SftpOutbound)
    target.begin(duty())
    target.deliver(replace(item(b"x"), id=key), duty())
    (path,) = [path for path in server.root.parent.rglob("*") if path.is_file() and path.read_bytes() == b"x"]
    assert path.parent == server.root / "box" and len(os.fsencode(path.name)) <= 255


def test_a_connection_that_broke_before_the_rename_is_not_made_anew_for_it(
    server: Server, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another handshake could take longer than the permit lasts."""
    target = connect(SftpOutbound)
    target.begin(duty())
    session, broken = target._session, item(b"x")

    def checks() -> None:
        if len(asked) == 1:  # the last check is in the rename itself
            session._abort()
        asked.append(1)

    asked: list[int] = []
    held = duty()
    monkeypatch.setattr(Duty, "check", lambda _: checks())
    with pytest.raises(Unavailable, match="broke"):
        target.deliver(broken, held)
    assert all(path.name.startswith(".baton-") for path in (server.root / "box").iterdir())


def test_the_permit_is_asked_where_the_rename_is_made(server: Server, connect: Callable[..., Any]) -> None:
    target, threads = connect(SftpOutbound), []
    target.begin(duty())

    def clock() -> float:
        threads.append(threading.current_thread().name)
        return 0.0

    target.deliver(item(b"x"), duty(clock))
    assert threads[-1].startswith("sftp ")


def test_a_full_or_forbidden_folder_keeps_the_item(server: Server, connect: Callable[..., Any]) -> None:
    target = connect(SftpOutbound)
    target.begin(duty())
    (server.root / "box" / os.fsdecode(b"m1-" + LATIN_1)).mkdir()
    with pytest.raises(Refusing, match="refuses"):
        target.deliver(item(b"x"), duty())
