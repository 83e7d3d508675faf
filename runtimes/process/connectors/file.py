"""Inbound `file` polls a folder, outbound `file` writes into one. Names are bytes throughout: they need not be UTF-8."""

import hashlib
import json
import os
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from runtimes.process.connectors.aside import Again, ErrorFolder, facts_of, fit, now_text
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
from runtimes.process.connectors.place import Place
from runtimes.process.files import sync_folder
from runtimes.process.permits import Duty
from runtimes.protocol import ComponentKind

SETTLE_SECONDS = 0.5  # a file is taken once it was seen unchanged for so long
COUNTED = 100_000
ABANDONED_SECONDS = 3600  # our own unfinished files older than this are swept

Identity = tuple[int, int, int]  # inode, size, mtime_ns


@dataclass(frozen=True, slots=True)
class Found:
    """A file as the poller saw it."""

    path: bytes
    name: bytes
    identity: Identity


def left_alone(name: bytes) -> bool:
    """Hidden, or still being written."""
    return name.startswith(b".") or name.lower().endswith((b".tmp", b".part"))


def identity_of(status: os.stat_result) -> Identity:
    return status.st_ino, status.st_size, status.st_mtime_ns


@inbound(ComponentKind.FILE)
class FileInbound(Inbound):
    """Settings: folder, error_folder (default: `errors/<flow id>` in the runtime's own folder), poll_seconds (default 0.1)."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._folder = setting.folder("folder")
        self._place = Place(self._folder, "the folder to poll", setting)
        self._errors = setting.folder("error_folder", setting.data / "errors" / setting.flow_id)
        if self._errors == self._folder:
            raise setting.error("error_folder", "is the polled folder itself", "choose another folder")
        self.failures = ErrorFolder(self._errors, setting)
        self._wait = setting.seconds("poll_seconds", 0.1)
        self._poll_seconds = self._wait
        self._seen: dict[bytes, tuple[Identity, float]] = {}
        self._delivered: dict[bytes, Identity] = {}  # delivered, but could not be removed: never delivered twice by this process

    def prepare(self) -> None:
        self._place.prepare()
        make_folder(self._errors, "the error folder")

    def check(self) -> None:
        self._place.check()

    def begin(self, duty: Duty) -> None:
        self._seen.clear()

    def poll(self, duty: Duty) -> Sequence[Item]:
        """Regular files of the folder itself that stood unchanged for half a second, the oldest first."""
        started = time.monotonic()
        found: dict[bytes, tuple[Identity, float]] = {}
        ready: list[Found] = []
        if unmounted := self._place.unmounted():
            raise Unavailable(unmounted)
        try:
            with os.scandir(os.fsencode(self._folder)) as entries:
                for entry in entries:
                    seen = self._look(entry, started, duty)
                    if seen is not None:
                        found[entry.name] = (seen.identity, self._since(seen, started))
                        if started - found[entry.name][1] >= SETTLE_SECONDS:
                            ready.append(seen)
        except OSError as error:
            raise Unavailable(f"the folder {self._folder} cannot be read: {error.strerror}") from error
        self._seen = found
        self._wait = max(self._poll_seconds, 5 * (time.monotonic() - started))  # a huge folder is not scanned all the time
        ready.sort(key=lambda each: (each.identity[2], each.name))
        return [*self.failures.offered(duty), *(self._item(each, duty) for each in ready)]

    def remove(self, item: Item, duty: Duty) -> None:
        """Only if it is still the file that was delivered; otherwise it is another item, and stays."""
        if self.failures.delivered(item):
            return
        found: Found = item.handle
        try:
            if identity_of(os.lstat(found.path)) == found.identity:
                os.unlink(found.path)  # noqa: PTH108
        except FileNotFoundError:
            pass
        except OSError as error:
            self._delivered[found.name] = found.identity
            raise Unavailable(f"{os.fsdecode(found.path)} was delivered but cannot be removed: {error.strerror}") from error

    def reject(self, item: Item, reason: str, duty: Duty, tries: int) -> None:
        if isinstance(item.handle, Again):
            self.failures.put(item, reason, tries)
            return
        found: Found = item.handle
        try:
            if identity_of(os.lstat(found.path)) != found.identity:
                return
            self._move_aside(found, item, reason, tries)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Unavailable(f"the error folder {self._errors} does not take {os.fsdecode(found.name)}: {error.strerror}") from error

    def wait_seconds(self) -> float:
        return self._wait

    def abort(self) -> None:
        pass

    def depth(self) -> tuple[int | None, int | None]:
        """Files that a poll would look at; of a huge folder only the first are counted."""
        try:
            with os.scandir(os.fsencode(self._folder)) as entries:
                return sum(not left_alone(entry.name) and entry.is_file(follow_symlinks=False) for entry in islice(entries, COUNTED)), None
        except OSError as error:
            raise Unavailable(f"the folder {self._folder} cannot be read: {error.strerror}") from error

    def _look(self, entry: "os.DirEntry[bytes]", now: float, duty: Duty) -> Found | None:
        name = entry.name
        if left_alone(name):
            return None
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        seen = Found(entry.path, name, identity_of(status))
        if self._delivered.get(name) == seen.identity:
            self._retry_removal(seen)
            return None
        return seen

    def _retry_removal(self, seen: Found) -> None:
        try:
            os.unlink(seen.path)  # noqa: PTH108
            del self._delivered[seen.name]
        except OSError:
            pass

    def _since(self, seen: Found, now: float) -> float:
        identity, since = self._seen.get(seen.name, (None, now))
        return since if identity == seen.identity else now

    def _item(self, found: Found, duty: Duty) -> Item:
        inode, size, modified = found.identity
        text = b"\0".join([self._setting.flow_id.encode(), found.path, b"%d" % size, b"%d" % modified, b"%d" % inode])
        origin = Origin(self._setting.flow, duty.group_name, duty.epoch, self._setting.machine)
        return Item(hashlib.sha256(text).hexdigest()[:32], found.name, size, origin, partial(self._open, found), found)

    @contextmanager
    def _open(self, found: Found) -> Iterator[Iterator[bytes]]:
        try:
            descriptor = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ItemChanged("it went away before it was read") from error
        except OSError as error:
            raise ItemError(f"it cannot be opened: {error.strerror}") from error
        try:
            yield self._chunks(descriptor, found)
        finally:
            os.close(descriptor)

    def _chunks(self, descriptor: int, found: Found) -> Iterator[bytes]:
        try:
            while True:
                if identity_of(os.fstat(descriptor)) != found.identity:
                    raise ItemChanged("it changed while it was read")
                chunk = os.read(descriptor, CHUNK)
                if not chunk:
                    break
                yield chunk
            if identity_of(os.lstat(found.path)) != found.identity:
                raise ItemChanged("it was replaced while it was read")
        except FileNotFoundError as error:
            raise ItemChanged("it went away while it was read") from error
        except OSError as error:
            raise ItemError(f"it cannot be read: {error.strerror}") from error

    def _move_aside(self, found: Found, item: Item, reason: str, tries: int) -> None:
        """First the reason, then the file: a file in the error folder always has its reason beside it."""
        self._errors.mkdir(parents=True, exist_ok=True)
        name = self.failures.free_name(found.name)
        folder = os.fsencode(self._errors)
        target = os.path.join(folder, name)  # noqa: PTH118
        note = self.failures.note(name, facts_of(item, reason, tries) | {"source": os.fsdecode(found.path)})
        try:
            try:
                os.rename(found.path, target)  # noqa: PTH104
            except OSError as error:
                if error.errno != 18:  # EXDEV: another file system
                    raise
                self._copy_aside(found, folder, target)
        except OSError:
            Path(os.fsdecode(note)).unlink(missing_ok=True)
            raise
        self.failures.sweep()

    def _copy_aside(self, found: Found, folder: bytes, target: bytes) -> None:
        part = os.path.join(folder, b".baton-%d.part" % found.identity[0])  # noqa: PTH118
        try:
            try:
                with self._open(found) as chunks, open(part, "wb") as file:  # noqa: PTH123
                    for chunk in chunks:
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
            except (ItemChanged, ItemError) as error:
                raise OSError(5, str(error)) from error
            os.rename(part, target)  # noqa: PTH104
            try:
                sync_folder(folder)
                os.unlink(found.path)  # noqa: PTH108
            except OSError:  # it stays where it was: no copy more at each try
                os.unlink(target)  # noqa: PTH108
                raise
        finally:
            Path(os.fsdecode(part)).unlink(missing_ok=True)


@outbound(ComponentKind.FILE)
class FileOutbound(Outbound):
    """Settings: folder, receipts (optional path of a JSON-lines file that gets one line per delivery)."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._folder = setting.folder("folder")
        self._place = Place(self._folder, "the folder to write to", setting)
        self._own = uuid.uuid4().hex[:12].encode()  # in a container on each machine all processes may have the same number
        self._receipts = setting.folder("receipts") if setting.component.settings.get("receipts") else None

    def prepare(self) -> None:
        self._place.prepare()
        if self._receipts is not None:
            make_folder(self._receipts.parent, "the folder of the receipts")

    def check(self) -> None:
        self._place.check()

    def begin(self, duty: Duty) -> None:
        """Sweep what a killed process left half written."""
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    ours = entry.name.startswith(".baton-") and entry.name.endswith(".part")
                    with suppress(OSError):  # gone meanwhile, or another user's: it stands in nobody's way
                        if ours and time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_SECONDS:
                            Path(entry.path).unlink()
        except OSError as error:
            raise Unavailable(f"the folder {self._folder} cannot be read: {error.strerror}") from error

    def deliver(self, item: Item, duty: Duty) -> None:
        if unmounted := self._place.unmounted():
            raise Unavailable(unmounted)
        folder = os.fsencode(self._folder)
        name = target_name(item.id, item.name)
        part = os.path.join(folder, b".baton-%s.part" % target_name(item.id[:64], self._own))  # noqa: PTH118
        try:
            digest = self._write(part, item)
            if item.sha256 is not None and digest != item.sha256:
                raise ItemError(f"its content does not match its header: sha256 {digest}, expected {item.sha256}")
            duty.check()
            os.rename(part, os.path.join(folder, name))  # noqa: PTH104, PTH118
            sync_folder(folder)
            if self._receipts is not None:
                self._receipt(self._receipts, item, name, digest)
        except OSError as error:
            raise Refusing(f"cannot write to {self._folder}: {error.strerror}") from error
        finally:
            _remove(part)

    def abort(self) -> None:
        pass

    def _write(self, part: bytes, item: Item) -> str:
        digest = hashlib.sha256()
        with item.open() as chunks, open(part, "wb") as file:  # noqa: PTH123
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _receipt(self, receipts: Path, item: Item, name: bytes, digest: str) -> None:
        line = {
            "id": item.id,
            "flow": item.origin.flow,
            "group": item.origin.group,
            "epoch": item.origin.epoch,
            "machine": item.origin.machine,
            "sha256": digest,
            "file": name.decode("utf-8", "surrogateescape"),
            "received_at": now_text(),
        }
        data = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        descriptor = os.open(receipts, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            if os.write(descriptor, data) != len(data):  # a full disk: the line is torn, end it so that the next one stands alone
                os.write(descriptor, b"\n")
                raise OSError(28, "no space left for the receipt")
        finally:
            os.close(descriptor)


def target_name(item_id: str, name: bytes) -> bytes:
    """`<id>-<original name>`: the name byte for byte, except that it cannot leave the folder nor be longer than a name may be."""
    safe_id = item_id.encode().replace(b"/", b"_").replace(b"\0", b"_")[:100]
    return fit(safe_id + b"-", name.replace(b"/", b"_").replace(b"\0", b"_") or b"item", b"")


def _remove(path: bytes) -> None:
    try:
        os.unlink(path)  # noqa: PTH108
    except OSError:
        pass
