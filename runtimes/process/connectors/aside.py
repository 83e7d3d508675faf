"""Items that could not be delivered, in a folder of this machine: the item, and beside it the reason.

<name>               the item, byte for byte
<name>.reason.json   id, flow, flow_id, name, reason, tries, at, epoch, machine; flows that share the folder have each their own items
again/               pairs that somebody ordered to be tried again: the inbound offers them like new items
"""

import errno
import hashlib
import itertools
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from runtimes.process.connectors.base import CHUNK, Item, ItemChanged, ItemError, Origin, Setting, Unavailable, make_folder
from runtimes.process.files import sync_folder
from runtimes.process.permits import Duty
from runtimes.protocol import FailedItem

REASON = b".reason.json"
NAME_LIMIT = 255  # bytes of a file name on Linux
KEPT_DAYS, KEPT_ITEMS = 30.0, 1000  # what a flow keeps of its failed items, unless its settings say otherwise
LISTED = 200
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # what a file system without hard links answers
OWNERS_KNOWN = 10_000  # reasons of which this process remembers whose they are


@dataclass(frozen=True, slots=True)
class Again:
    """Handle of an item that is tried again."""

    path: bytes


def now_text() -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fit(before: bytes, name: bytes, after: bytes) -> bytes:
    """One file name of at most 255 bytes; a shortened one keeps its end (the suffix) and says which by a hash."""
    room = NAME_LIMIT - len(before) - len(after)
    if len(name) <= room:
        return before + name + after
    mark = b"~" + hashlib.sha256(name).hexdigest()[:8].encode() + b"~"
    tail = name[-16:]
    return before + name[: room - len(mark) - len(tail)] + mark + tail + after


def safe_name(name: bytes) -> bytes:
    """A file name that cannot leave its folder."""
    made = name.replace(b"/", b"_").replace(b"\0", b"_") or b"item"
    return b"_" + made if made in (b".", b"..", b"again") else made


def facts_of(item: Item, reason: str, tries: int) -> dict[str, Any]:
    return {
        "id": item.id,
        "flow": item.origin.flow,
        "name": os.fsdecode(item.name),
        "reason": reason,
        "tries": tries,
        "at": now_text(),
        "epoch": item.origin.epoch,
        "machine": item.origin.machine,
        "properties": dict(item.properties),
    }


class ErrorFolder:
    """One flow's failed items on this machine. Acts raise OSError when the folder does not take or give."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder = folder
        self._setting = setting
        self._bytes = os.fsencode(folder)
        self._again = os.path.join(self._bytes, b"again")  # noqa: PTH118
        self._owned: dict[tuple[bytes, int, int], bool] = {}  # by path, inode and time of a reason: is it of this flow

    def prepare(self) -> None:
        make_folder(self.folder, "the error folder")

    # --------------------------------------------------------------------------------------------------- the flow's own thread

    def free_name(self, name: bytes, folder: bytes | None = None) -> bytes:
        """A name that is free here (or in `folder`), with the one of its reason."""
        name, folder = safe_name(name), folder or self._bytes
        for number in itertools.count():
            tried = fit(REASON, name, b".%d" % number if number else b"").removeprefix(REASON)  # room for its reason's name
            if not any(os.path.lexists(os.path.join(folder, tried + end)) for end in (b"", REASON)):  # noqa: PTH118
                return tried
        raise AssertionError

    def note(self, name: bytes, facts: dict[str, Any]) -> bytes:
        """Write the reason; gives its path. First the reason, then the item: an item here always has its reason beside it."""
        path = os.path.join(self._bytes, name + REASON)  # noqa: PTH118
        with open(path, "xb") as file:  # noqa: PTH123
            try:
                file.write(json.dumps(facts | {"flow_id": self._setting.flow_id}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.unlink(path)  # noqa: PTH108
                raise
        return path

    def put(self, item: Item, reason: str, tries: int) -> None:
        """Keep a copy. Raises Unavailable when the folder does not take it."""
        if isinstance(item.handle, Again):
            self._put_back(item, item.handle, reason, tries)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = self.free_name(item.name)
            note = self.note(name, facts_of(item, reason, tries))
            target = os.path.join(self._bytes, name)  # noqa: PTH118
            part = os.path.join(self._bytes, b".part-" + key_of(note).encode())  # noqa: PTH118 - nobody tries half an item again
            try:
                with suppress(FileNotFoundError):
                    os.unlink(part)  # noqa: PTH108
                with open(part, "xb") as file:  # noqa: PTH123
                    with suppress(ItemError, ItemChanged), item.open() as chunks:  # what of it can be read
                        for chunk in chunks:
                            file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(part, target)  # noqa: PTH104
                sync_folder(self._bytes)  # its source forgets it next
            except BaseException:  # its source broke, too
                for left in (part, target, note):
                    Path(os.fsdecode(left)).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise Unavailable(f"the error folder {self.folder} does not take it: {error.strerror}") from error
        self.sweep()

    def offered(self, duty: Duty) -> list[Item]:
        """What shall be tried again, oldest first."""
        found = []
        with suppress(OSError):
            for name in sorted(os.listdir(self._again)):  # noqa: PTH208
                if not name.endswith(REASON) and (item := self._offer(name, duty)) is not None:
                    found.append(item)
        return found

    def delivered(self, item: Item) -> bool:
        """Forget an item that was tried again with success; False: it is none of these."""
        if not isinstance(item.handle, Again):
            return False
        for path in (item.handle.path, item.handle.path + REASON):
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
        return True

    def sweep(self, now: float | None = None) -> None:
        """Keep at most so many, and for at most so many days; those to be tried again for as many days since they failed."""
        days = self._setting.number("failed_days", KEPT_DAYS, 0.01, 3650)
        most = int(self._setting.number("failed_items", KEPT_ITEMS, 1, 100_000))
        oldest = (now or time.time()) - days * 86400
        for folder, limit in ((self._bytes, float(most)), (self._again, float("inf"))):
            for index, (modified, note) in enumerate(self._notes(folder)):
                if index < limit and modified >= oldest:
                    continue
                kept = f"{days:g} days, {most} items"
                try:
                    if self._remove(note.removesuffix(REASON), folder):
                        self._setting.log.warning(f"a failed item was removed by retention ({kept})", name=os.fsdecode(note))
                except OSError as error:  # of another user, say: the others go all the same
                    self._setting.log.warning(
                        f"a failed item beyond retention ({kept}) cannot be removed: {error.strerror}", name=os.fsdecode(note)
                    )

    # --------------------------------------------------------------------------------------------------------- what people do

    def count(self) -> int:
        return self._count(self._bytes)

    def ordered(self) -> int:
        return self._count(self._again)

    def _count(self, folder: bytes) -> int:
        return len(self._whole(folder))

    def _whole(self, folder: bytes) -> list[tuple[float, bytes]]:
        """Reasons whose items are there: one without the other is being moved, or was left by a process that was killed."""
        names = set[bytes]()
        with suppress(OSError):
            names = set(os.listdir(folder))  # noqa: PTH208
        return [(moment, note) for moment, note in self._notes(folder) if note.removesuffix(REASON) in names]

    def listed(self) -> tuple[int, list[FailedItem]]:
        """How many there are, and the newest of them."""
        notes = self._whole(self._bytes)
        return len(notes), [item for _, note in notes[:LISTED] if (item := self._read(note)) is not None]

    def content(self, key: str, limit: int) -> tuple[bytes, int]:
        """The first bytes of an item, and its whole size. Raises KeyError."""
        path = os.path.join(self._bytes, self._named(key))  # noqa: PTH118
        try:
            with _regular(path) as file:
                return file.read(limit), os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise KeyError(key) from None

    def retry(self, key: str) -> None:
        """Offer it again. Raises KeyError.

        The item gets a second name first, so that it is never nowhere; whoever moves or removes its reason has it.
        """
        path = os.path.join(self._bytes, self._named(key))  # noqa: PTH118
        os.makedirs(self._again, exist_ok=True)  # noqa: PTH103
        target = os.path.join(self._again, self.free_name(os.path.basename(path), self._again))  # noqa: PTH118, PTH119
        try:
            os.link(path, target)
        except (FileNotFoundError, FileExistsError):
            raise KeyError(key) from None
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            self._move_again(path, target, key)
            return
        try:
            os.rename(path + REASON, target + REASON)  # noqa: PTH104
        except FileNotFoundError:
            os.unlink(target)  # noqa: PTH108
            raise KeyError(key) from None
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108

    def _move_again(self, path: bytes, target: bytes, key: str) -> None:
        """Where no file can have two names (a Windows share): its reason is copied first, so that it is never without one."""
        try:
            with _regular(path + REASON) as file, open(target + REASON, "xb") as copy:  # noqa: PTH123
                copy.write(file.read())
            try:
                os.rename(path, target)  # noqa: PTH104
            except OSError:
                os.unlink(target + REASON)  # noqa: PTH108
                raise
        except (FileNotFoundError, FileExistsError):
            raise KeyError(key) from None
        with suppress(FileNotFoundError):
            os.unlink(path + REASON)  # noqa: PTH108

    def discard(self, key: str) -> None:
        """Remove it for good. Raises KeyError."""
        if not self._remove(self._named(key)):
            raise KeyError(key)

    # ----------------------------------------------------------------------------------------------------------------- inside

    def _named(self, key: str) -> bytes:
        with suppress(OSError):
            for name in os.listdir(self._bytes):  # noqa: PTH208
                if name.endswith(REASON) and key_of(name) == key:
                    return name.removesuffix(REASON)
        raise KeyError(key)

    def _remove(self, name: bytes, folder: bytes | None = None) -> bool:
        """False: somebody else has it."""
        path = os.path.join(folder or self._bytes, name)  # noqa: PTH118
        try:
            os.unlink(path + REASON)  # noqa: PTH108
        except FileNotFoundError:
            return False
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108
        return True

    def _read(self, note: bytes) -> FailedItem | None:
        path = os.path.join(self._bytes, note)  # noqa: PTH118
        try:
            with _regular(path) as file:
                facts = json.loads(file.read())
            size = _size(path.removesuffix(REASON))
            return FailedItem(
                key=key_of(note),
                item=str(facts["id"]),
                name=_shown(str(facts.get("name") or facts.get("file", ""))),
                size=size,
                reason=_shown(str(facts["reason"])),
                tries=int(facts.get("tries", 0)),
                at=str(facts["at"]),
                epoch=int(facts.get("epoch", 0)),
                machine=str(facts.get("machine", self._setting.machine)),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None  # being written or removed in this moment, or not ours

    def _offer(self, name: bytes, duty: Duty) -> Item | None:
        path = os.path.join(self._again, name)  # noqa: PTH118
        try:
            with _regular(path + REASON) as file:
                facts = json.loads(file.read())
            if facts.get("flow_id", self._setting.flow_id) != self._setting.flow_id:
                return None
            size = _size(path)
            origin = Origin(self._setting.flow, duty.group_name, duty.epoch, self._setting.machine)
            opened, properties = partial(_opened, path), dict(facts.get("properties", {}))
            return Item(str(facts["id"]), os.fsencode(str(facts["name"])), size, origin, opened, Again(path), properties=properties)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _notes(self, folder: bytes) -> list[tuple[float, bytes]]:
        """When each of this flow's was written and its name, the newest first."""
        found: list[tuple[float, bytes]] = []
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(REASON):
                    with suppress(FileNotFoundError):  # somebody has just removed it
                        facts = entry.stat(follow_symlinks=False)
                        if self._is_ours(entry.path, facts):
                            found.append((facts.st_mtime, entry.name))
        return sorted(found, reverse=True)

    def _is_ours(self, note: bytes, status: os.stat_result) -> bool:
        """What does not say whose it is (an older one, or one that is being written) counts as ours."""
        mark = (note, status.st_ino, status.st_mtime_ns)
        if mark not in self._owned:
            try:
                with _regular(note) as file:
                    flow_id = json.loads(file.read()).get("flow_id", self._setting.flow_id)
            except (OSError, ValueError, AttributeError):
                return True
            if len(self._owned) >= OWNERS_KNOWN:
                self._owned.clear()
            self._owned[mark] = flow_id == self._setting.flow_id
        return self._owned[mark]

    def _put_back(self, item: Item, handle: Again, reason: str, tries: int) -> None:
        try:
            name = self.free_name(item.name)
            note = self.note(name, facts_of(item, reason, tries))
            try:
                os.rename(handle.path, os.path.join(self._bytes, name))  # noqa: PTH104, PTH118
            except OSError:
                os.unlink(note)  # noqa: PTH108
                raise
            with suppress(FileNotFoundError):
                os.unlink(handle.path + REASON)  # noqa: PTH108
        except OSError as error:
            raise Unavailable(f"the error folder {self.folder} does not take it: {error.strerror}") from error


def key_of(note: bytes) -> str:
    """How people name a failed item: any file name may stand behind it."""
    return hashlib.sha256(note).hexdigest()[:16]


def _shown(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:500]


def _regular(path: bytes) -> BinaryIO:
    """An item or its reason: never what a link that somebody laid here points to, nor a pipe that would be waited for. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def _size(path: bytes) -> int:
    """Of a regular file. Raises OSError."""
    facts = os.lstat(path)
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return facts.st_size


@contextmanager
def _opened(path: bytes) -> Iterator[Iterator[bytes]]:
    try:
        file = _regular(path)
    except OSError as error:
        raise ItemChanged(f"it cannot be read: {error.strerror}") from error
    with file:  # what fails in its body is the target's
        yield _chunks(file)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    try:
        yield from iter(partial(file.read, CHUNK), b"")
    except OSError as error:
        raise ItemChanged(f"it cannot be read: {error.strerror}") from error
