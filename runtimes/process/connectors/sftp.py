"""Inbound and outbound `sftp`: files in a folder of an SSH server, whose host key is always verified.

asyncssh lives in an event loop of its own thread; the flow's worker waits for each call, never longer than CALL_SECONDS.
"""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import asyncssh

from runtimes.process.connectors.aside import Again, ErrorFolder
from runtimes.process.connectors.base import (
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
    outbound,
)
from runtimes.process.connectors.file import left_alone, target_name
from runtimes.process.permits import Duty
from runtimes.protocol import ComponentKind

CONNECT_SECONDS, CALL_SECONDS = 10.0, 30.0
DISCARD_SECONDS = 2.0  # to remove what a failed upload left
CHUNK = 256 * 1024  # bytes of one read or write
LISTED = 10_000  # files of a folder that one poll takes: the oldest
LOOK_SECONDS = 10.0  # a look at a folder of even more goes on for so long; then the oldest of those seen are taken

T = TypeVar("T")
Identity = tuple[int, int]  # size, modification time (whole seconds: the protocol knows no more)


class Session:
    """One connection, made when it is needed and made anew when it broke. Errors come in this project's words."""

    def __init__(self, setting: Setting) -> None:
        self._host = setting.text("host")
        self._port = int(setting.number("port", 22, 1, 65535))
        self._where = f"{self._host}:{self._port}"
        self.folder = setting.text("folder").rstrip("/") or "/"
        try:
            keys = [asyncssh.import_public_key(row) for row in setting.rows("host_key")]
        except (asyncssh.KeyImportError, ValueError) as error:
            raise setting.error(
                "host_key", f"cannot be read: {error}", "write it as ssh-ed25519 AAAA…, as ssh-keyscan prints it"
            ) from error
        if not keys:
            raise setting.error("host_key", "is missing", "write the server's public key, as ssh-keyscan prints it after the name")
        self._options: dict[str, Any] = {
            "username": setting.text("user"),
            "known_hosts": (keys, [], []),
            "config": None,
            "agent_path": None,
        }
        password, private = setting.text("password", "\n").strip("\n"), setting.text("private_key", "\n").strip("\n")
        if not password and not private:
            raise setting.error("password", "is missing, and so is private_key", "fill in one of them")
        try:
            self._options["client_keys"] = [asyncssh.import_private_key(private + "\n")] if private else None
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError) as error:
            raise setting.error(
                "private_key", f"cannot be read: {error}", "give a key in OpenSSH's or PEM form, without a passphrase"
            ) from error
        self._options["password"] = password or None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: asyncssh.SSHClientConnection | None = None
        self._client: asyncssh.SFTPClient | None = None
        self._connecting: asyncio.Future[Any] | None = None  # while a connection is made
        self._lock = threading.Lock()

    def run(self, act: "Coroutine[Any, Any, T]", seconds: float = CALL_SECONDS) -> T:
        """Wait for a call. Raises Unavailable, Refusing (the server answers with a refusal), FileNotFoundError."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name=f"sftp {self._where}", daemon=True).start()
            loop = self._loop
        future = asyncio.run_coroutine_threadsafe(act, loop)
        try:
            return future.result(seconds)
        except asyncssh.SFTPNoSuchFile as error:
            raise FileNotFoundError(str(error)) from error
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            self.drop()
            raise Unavailable(f"the connection to {self._where} broke: {error}") from error
        except asyncssh.SFTPError as error:
            raise Refusing(f"{self._where} refuses: {error}") from error
        except asyncssh.HostKeyNotVerifiable as error:
            raise Unavailable(f"{self._where} shows another host key than the one in the settings: {error}") from error
        except asyncssh.PermissionDenied as error:
            raise Unavailable(f"{self._where} does not let this user in: {error}") from error
        except TimeoutError as error:
            future.cancel()
            self.drop()
            raise Unavailable(f"{self._where} did not answer within {seconds:g} s") from error
        except CancelledError as error:  # by `drop`, while a connection was made
            raise Unavailable(f"the connection to {self._where} was given up while it was made") from error
        except (asyncssh.Error, OSError) as error:
            self.drop()
            raise Unavailable(f"{self._where} cannot be reached: {error}") from error

    async def client(self) -> asyncssh.SFTPClient:
        if self._client is None:
            connecting = asyncssh.connect(self._host, self._port, keepalive_interval=15, **self._options)
            self._connecting = asyncio.ensure_future(asyncio.wait_for(connecting, CONNECT_SECONDS))
            try:
                self._connection = await self._connecting
            finally:
                self._connecting = None
            self._client = await self._connection.start_sftp_client()
        return self._client

    def standing(self) -> asyncssh.SFTPClient:
        """The client of the connection that stands: who commits must not spend his permit on another handshake. Raises Unavailable."""
        if self._client is None:
            raise Unavailable(f"the connection to {self._where} broke")
        return self._client

    def drop(self) -> None:
        """Cut the connection, at once; never blocks."""
        loop = self._loop
        if loop is not None and loop.is_running():
            loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        connection, self._connection, self._client = self._connection, None, None
        if connection is not None:
            connection.abort()


@dataclass(frozen=True, slots=True)
class Remote:
    """A file as the poll saw it."""

    name: bytes
    path: bytes
    identity: Identity


def identity_of(attributes: asyncssh.SFTPAttrs) -> Identity:
    return int(attributes.size or 0), int(attributes.mtime or 0)


def _oldest(found: list[Remote]) -> list[Remote]:
    return sorted(found, key=lambda each: (each.identity[1], each.name))[:LISTED]


@inbound(ComponentKind.SFTP)
class SftpInbound(Inbound):
    """Settings: host, port, user, password, private_key, host_key, folder, poll_seconds."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._session = Session(setting)
        self._every = setting.number("poll_seconds", 5.0, 0.1, 3600.0)
        self.failures: ErrorFolder = ErrorFolder(setting.data / "errors" / setting.flow_id, setting)
        self._seen: dict[bytes, Identity] = {}
        self._waiting: dict[bytes, Item] = {}
        self._done: dict[bytes, Identity] = {}  # delivered or aside, but not yet removed: never taken twice by this process
        self._look_at = 0.0  # time.monotonic()
        self._answered = 0.0
        self._count: int | None = None  # files of the last look of this leadership
        self._failed = ""  # why the last look brought nothing: true until the next one

    def prepare(self) -> None:
        self.failures.prepare()

    def begin(self, duty: Duty) -> None:
        self._seen.clear()
        self._waiting.clear()
        self._look_at, self._failed = 0.0, ""

    def poll(self, duty: Duty) -> Sequence[Item]:
        """Regular files of the folder itself that were the same at two looks, the oldest first."""
        again = self.failures.offered(duty)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + self._every
            self._failed = ""
            try:
                count, found = self._session.run(self._list())
            except (FileNotFoundError, Unavailable) as error:
                gone = f"the folder {self._session.folder} is not on the server: create it, or correct the setting"
                self._failed = gone if isinstance(error, FileNotFoundError) else str(error)
                self._waiting.clear()
                raise Unavailable(self._failed) from error
            self._answered = time.time()
            self._done = {each.name: each.identity for each in found if self._done.get(each.name) == each.identity}
            settled = [each for each in found if self._seen.get(each.name) == each.identity and each.name not in self._done]
            self._seen = {each.name: each.identity for each in found}
            self._count = count - len(self._done)
            self._remove_left([each for each in found if each.name in self._done])
            self._waiting = {each.name: self._item(each, duty) for each in settled}
        if self._failed and not again and not self._waiting:
            raise Unavailable(self._failed)
        return [*again, *self._waiting.values()]

    def remove(self, item: Item, duty: Duty) -> None:
        """Only if it is still the file that was delivered; otherwise it is another item, and stays."""
        if not self.failures.delivered(item):
            self._finish(item.handle)

    def reject(self, item: Item, reason: str, duty: Duty, tries: int) -> None:
        """It comes to this machine's error folder, then leaves the server."""
        self.failures.put(item, reason, tries)
        if not isinstance(item.handle, Again):
            with contextlib.suppress(Unavailable):  # the next look tries again, and says so
                self._finish(item.handle)

    def wait_seconds(self) -> float:
        return min(max(self._look_at - time.monotonic(), 0.05), 1.0)

    def interval_seconds(self) -> float:
        return self._every

    def answered_at(self) -> float:
        return self._answered

    def abort(self) -> None:
        self._session.drop()

    def stop(self, duty: Duty) -> None:
        self._count = None

    def depth(self) -> tuple[int | None, int | None]:
        return self._count, None

    def _finish(self, found: Remote) -> None:
        """Raises Unavailable when it cannot be removed: it is not taken again, and the next look tries to remove it."""
        self._waiting.pop(found.name, None)
        self._done[found.name] = found.identity

        async def act() -> None:
            client = await self._session.client()
            if identity_of(await client.lstat(found.path)) == found.identity:
                await client.remove(found.path)

        try:
            with contextlib.suppress(FileNotFoundError):
                self._session.run(act())
        except Unavailable as error:
            name = found.name.decode("utf-8", "replace")
            self._failed = f"{name} is done with but cannot be removed: {error}; let this user remove files"
            raise Unavailable(self._failed) from error
        self._done.pop(found.name, None)

    def _remove_left(self, left: Sequence[Remote]) -> None:
        """What could not be removed before; the first refusal is enough for one look."""
        with contextlib.suppress(Unavailable):
            for each in left:
                self._finish(each)

    async def _list(self) -> tuple[int, list[Remote]]:
        """How many files were seen, and the oldest of them."""
        client = await self._session.client()
        folder = self._session.folder.encode()
        count, found, until = 0, list[Remote](), time.monotonic() + LOOK_SECONDS
        async for entry in client.scandir(folder):
            name = entry.filename if isinstance(entry.filename, bytes) else entry.filename.encode("utf-8", "surrogateescape")
            regular = entry.attrs.type == asyncssh.FILEXFER_TYPE_REGULAR
            if regular and not left_alone(name):
                count += 1
                found.append(Remote(name, folder.rstrip(b"/") + b"/" + name, identity_of(entry.attrs)))
            if len(found) >= 2 * LISTED:
                found = _oldest(found)
            if count >= LISTED and time.monotonic() > until:
                break
        return count, _oldest(found)

    def _item(self, found: Remote, duty: Duty) -> Item:
        size, modified = found.identity
        text = b"\0".join([self._setting.flow_id.encode(), found.path, b"%d" % size, b"%d" % modified])
        origin = Origin(self._setting.flow, duty.group_name, duty.epoch, self._setting.machine)
        return Item(hashlib.sha256(text).hexdigest()[:32], found.name, size, origin, partial(self._open, found), found)

    @contextmanager
    def _open(self, found: Remote) -> Iterator[Iterator[bytes]]:
        async def start() -> Any:
            client = await self._session.client()
            if identity_of(await client.lstat(found.path)) != found.identity:
                raise ItemChanged("it changed before it was read")
            return await client.open(found.path, "rb")

        try:
            file = self._session.run(start())
        except (FileNotFoundError, ItemChanged) as error:
            self._waiting.pop(found.name, None)  # the next look finds what there is now
            raise ItemChanged("it went away before it was read" if isinstance(error, FileNotFoundError) else str(error)) from error
        try:
            yield self._chunks(file, found)
        finally:
            with contextlib.suppress(Unavailable, FileNotFoundError):
                self._session.run(file.close())

    def _chunks(self, file: Any, found: Remote) -> Iterator[bytes]:
        received = 0
        while chunk := self._session.run(file.read(CHUNK, received)):
            received += len(chunk)
            if received > found.identity[0]:
                raise ItemChanged("it grew while it was read")
            yield chunk
        if received != found.identity[0]:
            raise ItemChanged("it became shorter while it was read")


@outbound(ComponentKind.SFTP)
class SftpOutbound(Outbound):
    """Settings: host, port, user, password, private_key, host_key, folder. A file appears whole, by a rename, as `<id>-<name>`."""

    def __init__(self, setting: Setting) -> None:
        self._session = Session(setting)
        # Of this runtime alone: a former leader that was paused must not cut what the next one is sending. It finds its own again.
        self._part = hashlib.sha256(setting.key.encode()).hexdigest()[:8].encode() + b".part"

    def prepare(self) -> None:
        pass

    def begin(self, duty: Duty) -> None:
        async def look() -> None:
            client = await self._session.client()
            await client.stat(self._session.folder)

        try:
            self._session.run(look())
        except FileNotFoundError as error:
            raise Unavailable(f"the folder {self._session.folder} is not on the server: create it, or correct the setting") from error

    def deliver(self, item: Item, duty: Duty) -> None:
        base = self._session.folder.encode().rstrip(b"/") + b"/"
        part, target = base + b".baton-" + target_name(item.id[:64], self._part), base + target_name(item.id, item.name)
        digest = hashlib.sha256()

        async def create() -> Any:
            return await (await self._session.client()).open(part, "wb")

        async def commit() -> None:
            client = self._session.standing()
            try:
                duty.check()
                await client.posix_rename(part, target)
            except asyncssh.SFTPOpUnsupported:
                duty.check()
                await client.rename(part, target)

        file: Any = None
        try:
            file = self._session.run(create())
            sent = 0
            with item.open() as chunks:
                for chunk in chunks:
                    for start in range(0, len(chunk), CHUNK):
                        duty.check()
                        piece = chunk[start : start + CHUNK]
                        self._session.run(file.write(piece, sent))
                        digest.update(piece)
                        sent += len(piece)
            self._session.run(file.close())
            if item.sha256 is not None and digest.hexdigest() != item.sha256:
                raise ItemError(f"its content does not match its header: sha256 {digest.hexdigest()}, expected {item.sha256}")
            self._session.run(commit())
        except BaseException as error:
            if file is not None:
                self._discard(file, part)
            if isinstance(error, FileNotFoundError):
                gone = f"the folder {self._session.folder} is not on the server: create it, or correct the setting"
                raise Unavailable(gone) from error
            raise

    def _discard(self, file: Any, part: bytes) -> None:
        """An upload that failed: the server has only so many handles. Over the connection that stands; else the next try writes over it."""

        async def act() -> None:
            client = self._session.standing()
            await file.close()
            await client.remove(part)

        with contextlib.suppress(Unavailable, FileNotFoundError):
            self._session.run(act(), DISCARD_SECONDS)

    def abort(self) -> None:
        self._session.drop()
