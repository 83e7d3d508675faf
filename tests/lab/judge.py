"""The independent judge: a source, the sinks' records, and a look at every permit page. It shares no code with the product's decisions.

One clock: CLOCK_BOOTTIME, which every network namespace of one kernel shares, so that the pages of two hosts can be compared.

- `Source` drops a numbered file into each connector's outbox all the time.
- `Sinks` records every commit: for the shared folder the kernel's own order of renames (inotify), for the queue the stream's order.
- `Pages` samples every runtime's permit page: who may take and emit now. Two at once is a violation of I1.
- `Records` reads leaders, sessions and controls from the routers.
"""

import base64
import contextlib
import ctypes
import hashlib
import http.client
import json
import os
import select
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.lab.clock import boot
from tests.lab.network import inside

PAGE = struct.Struct("<dI4x")  # permit_until (boot time), on
FENCED = "erp"  # this connector's first hop is a queue, which refuses a lower epoch; the other's a shared folder, which does not
AFTERWARDS = 1.0  # seconds after it went on in which a commit that was in flight has ended, and has been seen
QUEUES_DB = 1  # of the broker, as landscape and lab name it in the queues' URL
_libc = ctypes.CDLL(None, use_errno=True)


# -------------------------------------------------------------------------------------------------------------------- source


class Source:
    """Drops files, complete from their first moment, into `<shared>/<connector>/outbox`."""

    def __init__(self, shared: Path, connectors: tuple[str, ...], every: float = 0.06) -> None:
        self.shared, self.connectors, self.every = shared, connectors, every
        self.sent: dict[str, dict[str, float]] = {name: {} for name in connectors}  # by SHA-256: when
        self._end = threading.Event()
        self._hold = threading.Event()
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._end.wait(self.every):
            number += 1
            for name in self.connectors:
                data = f"{name} item {number} ".encode() * 8
                draft = self.shared / name / "draft"
                draft.write_bytes(data)
                digest = hashlib.sha256(data).hexdigest()
                draft.rename(self.shared / name / "outbox" / f"{number:06}.txt")
                self.sent[name][digest] = boot()

    def stop(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(5)


# --------------------------------------------------------------------------------------------------------------------- sinks


@dataclass
class Stood:
    """Something stood still: each of these connectors may have had one commit in flight, which goes on afterwards."""

    machine: str
    connectors: tuple[str, ...]
    since: float
    until: float = float("inf")  # when it went on, or died


@dataclass(frozen=True)
class Emit:
    """One commit at a sink."""

    at: float  # boot time at which the judge saw it; the order of the list is the sink's own
    epoch: int | None  # None: it cannot be told (its writer was killed between the commit and the receipt)
    id: str
    machine: str = ""

    def __str__(self) -> str:
        return f"{self.id} by {self.machine} under epoch {self.epoch} at {self.at:.3f}"


class Watch:
    """The kernel's order of what is renamed into a folder."""

    MOVED_TO = 0x80

    def __init__(self, folder: Path) -> None:
        self.events: list[tuple[float, str]] = []
        self._fd = _libc.inotify_init1(os.O_CLOEXEC)
        if self._fd < 0 or _libc.inotify_add_watch(self._fd, os.fsencode(folder), self.MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._end = False
        self._thread = threading.Thread(target=self._run, name="folder watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end:
            if not select.select([self._fd], [], [], 0.2)[0]:
                continue
            data, at = os.read(self._fd, 1 << 16), boot()
            while data:
                _, mask, _, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode(errors="surrogateescape")
                if mask & 0x4000:
                    raise RuntimeError("the judge's watch overflowed: it saw too little")
                self.events.append((at, name))
                data = data[16 + length :]

    def close(self) -> None:
        self._end = True
        self._thread.join(2)
        os.close(self._fd)


class Sinks:
    """Every commit at the two sinks."""

    def __init__(self, shared: Path, broker_socket: str, stream: str) -> None:
        self.shared = shared
        self._watch = Watch(shared / "tills" / "inbox")
        self._entries: list[Emit] = []
        self._contents: dict[str, dict[str, str]] = defaultdict(dict)  # by connector, by file name
        self._receipts: dict[str, tuple[list[dict[str, Any]], int]] = {}  # by connector: lines, and the bytes read
        words = [sys.executable, "-P", str(Path(__file__).with_name("queue_reader.py")), broker_socket, str(QUEUES_DB), stream]
        self._reader = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._reader.stdout is not None and self._reader.stdout.readline() == "reading\n"
        self._thread = threading.Thread(target=self._read, name="queue reader", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._reader.stdout is not None
        for line in self._reader.stdout:
            self._entries.append(Emit(*json.loads(line)))

    def receipts(self, connector: str) -> list[dict[str, Any]]:
        """Lines that the sink wrote, read on from where the last call ended; a torn line (its writer was killed) is left out."""
        found, offset = self._receipts.get(connector, ([], 0))
        with contextlib.suppress(FileNotFoundError), (self.shared / connector / "received.jsonl").open("rb") as file:
            file.seek(offset)
            whole, newline, _ = file.read().rpartition(b"\n")
            offset += len(whole) + len(newline)
            for line in whole.split(b"\n"):
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        self._receipts[connector] = found, offset
        return found

    def contents(self, connector: str) -> set[str]:
        """SHA-256 of every file that has arrived in the last folder: by its bytes, not by what the product says of it."""
        known = self._contents[connector]
        with os.scandir(self.shared / connector / "inbox") as files:
            for file in files:
                if file.name not in known and not file.name.startswith("."):
                    known[file.name] = hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
        return set(known.values())

    def emits(self, connector: str) -> list[Emit]:
        """What was committed, in the sink's own order."""
        if connector == FENCED:
            return list(self._entries)
        by_file: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in self.receipts(connector):
            by_file[line["file"]].append(line)
        events = list(self._watch.events)
        seen = Counter(name for _, name in events)
        emits = []
        turn: Counter[str] = Counter()
        for at, name in events:
            lines = by_file.get(name, [])
            if len(lines) == seen[name]:
                line = lines[turn[name]]
                emits.append(Emit(at, int(line["epoch"]), line["id"], line["machine"]))
            else:
                emits.append(Emit(at, None, name.partition("-")[0]))
            turn[name] += 1
        return emits

    def close(self) -> None:
        assert self._reader.stdin is not None and self._reader.stdout is not None
        self._reader.stdin.close()
        self._thread.join(6)
        self._reader.kill()
        self._reader.wait()
        self._reader.stdout.close()
        self._watch.close()


# --------------------------------------------------------------------------------------------------------------------- pages


@dataclass(frozen=True)
class Turn:
    """A permit page began or ended to say: I may take and emit."""

    at: float
    on: bool
    host: str


@dataclass
class Page:
    path: Path
    host: str
    connector: str
    shown: Callable[[float], float] = float  # the host's own clock at a real moment: in it the page is written
    fd: int = -1
    on: bool = False

    def read(self, now: float) -> bool:
        """May this runtime take and emit, by its own page."""
        try:
            if self.fd < 0:
                self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(self.fd, PAGE.size, 0)
        except OSError:
            return False
        if len(data) < PAGE.size:
            return False
        until, on = PAGE.unpack(data)
        return bool(on == 1 and until > self.shown(now))


class Pages:
    """Samples all pages, about every 2 ms."""

    EVERY = 0.002  # seconds

    def __init__(self, pages: list[Page], alive: Callable[[str, str], bool]) -> None:
        self.pages = pages
        self.alive = alive  # (host, connector): does its process live
        self.turns: dict[str, list[Turn]] = defaultdict(list)
        self.overlaps: list[str] = []
        self.longest_blind = 0.0
        self.samples = 0
        self.forbidden: dict[tuple[str, str], float] = {}  # (connector, host) -> disabled for good since
        self.disabled_led: list[str] = []
        self._lock = threading.Lock()
        self._end = False
        self._thread = threading.Thread(target=self._run, name="permit pages", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        before = boot()
        while not self._end:
            now = boot()
            self.longest_blind = max(self.longest_blind, now - before)
            before = now
            self.samples += 1
            on: dict[str, list[Page]] = defaultdict(list)
            for page in self.pages:
                is_on = page.read(now) and self.alive(page.host, page.connector)  # a dead process leaves its page as it was
                if is_on != page.on:
                    page.on = is_on
                    self.turns[page.connector].append(Turn(now, is_on, page.host))
                if is_on:
                    on[page.connector].append(page)
                    since = self.forbidden.get((page.connector, page.host))
                    if since is not None and now > since and self._holds(page):
                        self.disabled_led.append(f"{page.connector}: {page.host} is On although disabled since {since:.3f} (now {now:.3f})")
            for connector, both in on.items():
                if len(both) > 1:
                    self._judge(connector, both, now)
            time.sleep(self.EVERY)

    def _holds(self, page: Page) -> bool:
        """Asked twice, for a page may be half written and a dead process leaves its page as it was."""
        return self.alive(page.host, page.connector) and page.read(boot())

    def _judge(self, connector: str, both: list[Page], now: float) -> None:
        holding = [page for page in both if self._holds(page)]
        if len(holding) > 1:
            with self._lock:
                self.overlaps.append(f"{connector}: {' and '.join(page.host for page in holding)} both On at {now:.3f}")

    def on(self, connector: str) -> list[str]:
        """Hosts whose living process may take and emit."""
        return [page.host for page in self.pages if page.connector == connector and page.read(boot()) and self._holds(page)]

    def next_on(self, connector: str, after: float, host: str | None = None) -> float | None:
        """When (on `host`) a page turned On next after that instant; None when none did."""
        for turn in self.turns[connector]:
            if turn.on and turn.at > after and host in (None, turn.host):
                return turn.at
        return None

    def off_seconds(self, connector: str, host: str, since: float) -> float:
        """For how long in all that page did not say On since an instant at which it did."""
        total, off_at = 0.0, None
        for turn in [*self.turns[connector], Turn(boot(), True, host)]:
            if turn.host == host and turn.at > since:
                if turn.on and off_at is not None:
                    total, off_at = total + turn.at - off_at, None
                elif not turn.on:
                    off_at = turn.at
        return total

    def was_on(self, connector: str, host: str, since: float, until: float) -> tuple[bool, bool]:
        """Was that page On at some moment between the two, and was it all the time."""
        on, ever, always = False, False, True
        for turn in self.turns[connector]:
            if turn.host != host or turn.at > until:
                continue
            if turn.at > since:
                ever, always = ever or on, always and on
            on = turn.on
        return ever or on, always and on

    def close(self) -> None:
        self._end = True
        if self._thread.is_alive():
            self._thread.join(2)
        for page in self.pages:
            if page.fd >= 0:
                os.close(page.fd)


# --------------------------------------------------------------------------------------------------------------------- shown


class Shown:
    """Asks the portal twice a second what it shows, and compares it with the pages (I6: a shown fact is true or carries its age).

    A fact may be as old as its report, and a report as long under way as something stood still (`slack` says how long), and as this very
    question took: a portal that is slow to answer is slow to read reports too.
    """

    EVERY = 0.5
    UNDER_WAY = 3.0  # seconds a report takes at most while nothing stands still, on a busy computer
    SILENT = 11.0  # without a report for so long (10 s, and one for the question) every word but unknown is a lie

    def __init__(self, ask: Callable[[], list[dict[str, Any]] | None], pages: Pages, connector_of: Mapping[str, str]) -> None:
        self.ask, self.pages, self.connector_of = ask, pages, connector_of
        self.slack = 0.0
        self.lies: list[str] = []
        self.asked = self.compared = 0
        self._epochs: dict[str, int] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="what is shown", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(self.EVERY):
            began = boot()
            groups = self.ask()
            if groups is not None:
                self.asked += 1
                for group in groups:
                    self.compare(group, began, boot(), boot() - time.time())

    def compare(self, group: dict[str, Any], began: float, answered: float, offset: float) -> None:
        """One group as the API gave it, asked and answered at these boot times; `offset`: boot time minus the portal's wall clock."""
        name, connector = group["name"], self.connector_of[group["name"]]
        leaders = [member for member in group["members"] if member["status"] == "leader"]
        if len(leaders) > 1:
            self._lie(f"{name}: {len(leaders)} members are shown as leader")
        if group["epoch"] < self._epochs.get(name, 0):
            self._lie(f"{name}: the shown epoch went back from {self._epochs[name]} to {group['epoch']}")
        self._epochs[name] = group["epoch"]
        for member in group["members"]:
            if member["status"] == "unknown" or member["last_report_at"] is None:
                continue
            self.compared += 1
            reported = datetime.fromisoformat(member["last_report_at"]).timestamp() + offset
            said = (
                f"{name} on {member['machine']}: shown as {member['status']}, {member['state']}, reported {began - reported:.2f} s before"
            )
            if began - reported > self.SILENT:
                self._lie(f"{said}: too old to be shown as a fact")
            if member["status"] == "single-node":
                continue  # it runs without a permit, and so without a page that says so
            since = reported - self.UNDER_WAY - (answered - began) - self.slack
            ever, always = self.pages.was_on(connector, member["machine"], since, answered)
            if member["state"] == "on" and not ever:
                self._lie(f"{said}: it was Off all the time")
            if member["state"] == "off" and always:
                self._lie(f"{said}: it was On all the time")

    def _lie(self, said: str) -> None:
        self.lies.append(f"{said} (at {boot():.3f})")

    def close(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(12)


# ------------------------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Record:
    value: Any
    revision: int


class Records:
    """What the routers say. `ask` names the namespace and the client port of a host's router, and the folder of that host's certificate."""

    def __init__(self, ask: Callable[[str], tuple[str, int, Path] | None]) -> None:
        self.ask = ask

    def post(self, host: str, path: str, body: dict[str, Any], timeout: float = 1.0) -> Any:
        """One call of etcd's documented JSON gateway at a host's router. Raises OSError when it does not answer well in time."""
        where = self.ask(host)
        if where is None:
            raise OSError(f"{host} has no router yet")
        namespace, port, certificate = where
        context = ssl.create_default_context(cafile=str(certificate / "authority.pem"))
        context.load_cert_chain(certificate / "machine.pem")
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=context)
        try:
            with inside(namespace):
                connection.connect()
            connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse()
            data = answer.read()
            if answer.status != 200:
                raise OSError(f"{path}: {answer.status} {data[:200]!r}")
            return json.loads(data)
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"{path}: {error!r}") from error
        finally:
            connection.close()

    def all(self, host: str) -> dict[str, Record] | None:
        """Every key of the environment, through the majority; None when this host's router has none."""
        body = {"key": base64.b64encode(b"/baton/").decode(), "range_end": base64.b64encode(b"/baton0").decode()}
        try:
            answer = self.post(host, "/v3/kv/range", body)
        except OSError:
            return None
        found = {}
        for entry in answer.get("kvs", []):
            key = base64.b64decode(entry["key"]).decode().split("/", 3)[3]
            if key == "restarting":  # whose router's turn it is to restart: a bare name
                continue
            found[key] = Record(json.loads(base64.b64decode(entry["value"])), int(entry["mod_revision"]))
        return found

    def status(self, host: str) -> tuple[int, int] | None:
        """(own member id, raft leader's id; 0 for none)."""
        try:
            answer = self.post(host, "/v3/maintenance/status", {}, timeout=0.5)
        except OSError:
            return None
        return int(answer["header"]["member_id"]), int(answer.get("leader", 0))


def leader_of(records: dict[str, Record], connector: str) -> tuple[str | None, int]:
    """(machine, revision) of the leader record of this connector's group."""
    for key, record in records.items():
        if key.startswith("leaders/") and record.value.get("runtime"):
            machine, _, name = record.value["runtime"].partition(".")
            if name == connector:
                return machine, record.revision
    return None, 0


def group_of(records: dict[str, Record], connector: str) -> str | None:
    for key, record in records.items():
        if key.startswith("sessions/") and key.endswith(f".{connector}"):
            return next(iter(record.value.get("groups", {})), None)
    return None


# ------------------------------------------------------------------------------------------------------------------- verdict


@dataclass
class Verdict:
    """What the whole run came to."""

    overlaps: list[str] = field(default_factory=list)
    late: dict[str, list[str]] = field(default_factory=dict)  # emits under an epoch lower than one that had emitted before
    in_flight: list[str] = field(default_factory=list)  # late ones at the sink without a fence, by something that had just stood still
    lost: dict[str, int] = field(default_factory=dict)
    emitted: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    unknown_duplicates: dict[str, int] = field(default_factory=dict)  # the same bytes under two ids: a sink could not tell
    unattributed: dict[str, int] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)  # commits of which the judge has a receipt only, and not the order
    disabled_led: list[str] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)  # what the portal showed that was not so
    compared: int = 0  # members that it showed
    longest_blind: float = 0.0
    samples: int = 0

    def broken(self) -> list[str]:
        """Every violation of an invariant."""
        said = [*self.overlaps, *self.disabled_led, *self.lies, *(line for lines in self.late.values() for line in lines)]
        blind = [name for name, count in self.unseen.items() if count > self.emitted[name] * 0.02 + 5]
        said += [f"{name}: the judge did not see {self.unseen[name]} commits" for name in blind]
        said += [f"{name}: {count} items lost" for name, count in self.lost.items() if count]
        return said + [f"{name}: {count} duplicates under another id" for name, count in self.unknown_duplicates.items() if count]

    def lines(self) -> list[str]:
        said = [f"two active at once: {len(self.overlaps)} ({self.samples} samples, longest blind {self.longest_blind * 1000:.0f} ms)"]
        for name in sorted(self.emitted):
            said.append(
                f"{name}: {self.emitted[name]} emitted, {self.lost[name]} lost, {self.duplicates[name]} duplicates known by id, "
                f"{self.unknown_duplicates[name]} under another id, {len(self.late[name])} under a lower epoch, "
                f"{self.unattributed[name]} without a known epoch, {self.unseen[name]} unseen by the judge"
            )
        said.append(f"in flight in what stood still, committed afterwards where no fence is: {len(self.in_flight)}")
        said.append(f"disabled and leading: {len(self.disabled_led)}")
        said.append(f"shown by the portal and not so: {len(self.lies)} of {self.compared}")
        return [
            *said,
            *self.overlaps[:20],
            *self.disabled_led[:20],
            *self.lies[:20],
            *(line for lines in self.late.values() for line in lines[:20]),
        ]


def late_emits(emits: list[Emit]) -> list[Emit]:
    """Commits under a lower epoch after a higher one had committed (I1, I4)."""
    highest, late = 0, []
    for emit in emits:
        if emit.epoch is None or emit.epoch == 0:
            continue
        if emit.epoch < highest:
            late.append(emit)
        highest = max(highest, emit.epoch)
    return late


def in_flight(late: list[Emit], connector: str, stood: list[Stood]) -> list[Emit]:
    """Those that the one system call of something that stood still explains: one each time, by its machine, at most AFTERWARDS later."""
    free = [each for each in stood if connector in each.connectors]
    explained = []
    for emit in late:
        found = next((each for each in free if each.machine == emit.machine and each.since <= emit.at <= each.until + AFTERWARDS), None)
        if found is not None:
            free.remove(found)
            explained.append(emit)
    return explained


def judge(source: Source, sinks: Sinks, pages: Pages, shown: Shown, stood: list[Stood]) -> Verdict:
    """To be called once the source has stopped and what it sent had its time to arrive."""
    verdict = Verdict(
        pages.overlaps,
        disabled_led=pages.disabled_led,
        lies=shown.lies,
        compared=shown.compared,
        longest_blind=pages.longest_blind,
        samples=pages.samples,
    )
    for name in source.connectors:
        emits, receipts = sinks.emits(name), sinks.receipts(name)
        late = late_emits(emits)
        explained = [] if name == FENCED else in_flight(late, name, stood)
        verdict.in_flight += [f"{name}: {emit}" for emit in explained]
        verdict.late[name] = [f"{name}: {emit}" for emit in late if emit not in explained]
        ids = Counter(line["id"] for line in receipts)
        contents: dict[str, set[str]] = defaultdict(set)
        for line in receipts:
            contents[line["sha256"]].add(line["id"])
        verdict.emitted[name] = len(receipts)
        verdict.lost[name] = len(set(source.sent[name]) - sinks.contents(name))
        verdict.duplicates[name] = sum(count - 1 for count in ids.values())
        verdict.unknown_duplicates[name] = sum(len(each) - 1 for each in contents.values())
        verdict.unattributed[name] = sum(emit.epoch is None for emit in emits)
        verdict.unseen[name] = max(len(receipts) - len(emits), 0)
    return verdict
