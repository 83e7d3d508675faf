"""Small parts of agent and keeper: logs within bounds, the spool, the watchdog's rule, what the home keeps."""

import asyncio
import errno
import io
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import msgspec
import pytest

from runtimes.agent import linux, logbook
from runtimes.agent.decide import Keeping
from runtimes.agent.etcd_member import Health
from runtimes.agent.home import Home, TamperedBundle
from runtimes.agent.keeper import Keeper, KeeperSpec, permit_overrun, silence
from runtimes.agent.logbook import LOG_FILE_BYTES, LOG_LINES, LogBook, read_log_line
from runtimes.agent.peers import addresses, why_cut_off
from runtimes.agent.program import Program
from runtimes.agent.router import RouterSupervisor
from runtimes.agent.spool import LOG_LINES as SENT_LINES
from runtimes.agent.spool import PER_REPORT, LogBuffer, Spool, Spooled
from runtimes.agent.supervisor import BundleUnavailable, RuntimeSupervisor, Surroundings
from runtimes.protocol import (
    PERMIT,
    PROFILES,
    Cause,
    ClusterMember,
    LeadershipEnd,
    LeadershipEvent,
    LogLevel,
    LogLine,
    MemberAct,
    MemberChange,
    Orders,
    PeerReport,
    ProcessNews,
    Report,
    RequestOutcome,
    RequestStatus,
    RouterOrder,
    RouterReport,
    RouterState,
    RuntimeOrder,
    RuntimeState,
    Timing,
    TimingProfile,
    digest_of,
    encode,
)
from tests.runtimes.agent.conftest import content, disk_full, erp

NEAR = PeerReport(machine="core01", address="10.0.0.10:2380", reachable=True, since="2026-11-22T08:00:00.000000Z", error="")
CUT_OFF = PeerReport(
    machine="external02", address="10.0.0.12:2380", reachable=False, since="2026-11-22T12:03:41.123456Z", error="no answer within 1 s"
)
LONG_AGO = PeerReport(
    machine="external02", address="10.0.0.12:2380", reachable=False, since="2026-11-20T23:59:59.000000Z", error="Connection refused"
)


@pytest.mark.parametrize(
    ("raw", "level", "text"),
    [
        pytest.param(b"plain words", LogLevel.INFO, "plain words", id="anything else"),
        pytest.param(
            b'{"level": "warning", "event": "a folder is away", "flow": "f1", "timestamp": "x"}',
            LogLevel.WARNING,
            "a folder is away flow=f1",
            id="structlog",
        ),
        pytest.param(
            b'{"event": "inbounds On", "runtime": "external01.erp", "gap_seconds": 0.07442383, "previous": null}',
            LogLevel.INFO,
            "inbounds On gap_seconds=0.074",
            id="numbers to read, nothing twice, nothing empty",
        ),
        pytest.param(
            b'{"level":"warn","ts":"t","caller":"c","msg":"slow fdatasync","took":"1.2s"}',
            LogLevel.WARNING,
            "slow fdatasync took=1.2s",
            id="etcd",
        ),
        pytest.param(b'{"level":"fatal","msg":"no space"}', LogLevel.ERROR, "no space", id="the end of etcd"),
        pytest.param(b'{"not": "a log line"}', LogLevel.INFO, '{"not": "a log line"}', id="JSON of another kind"),
        pytest.param(b'{"half', LogLevel.INFO, '{"half', id="half a line"),
        pytest.param(b"\xff\x00x", LogLevel.INFO, "�x", id="not UTF-8, and NUL"),
    ],
)
def test_lines_of_output_become_levels_and_sentences(raw: bytes, level: LogLevel, text: str) -> None:
    assert read_log_line(raw) == (level, text)


def test_a_talkative_program_fills_neither_memory_nor_disk_and_the_loss_is_told(tmp_path: Path) -> None:
    book = LogBook("external01.erp", tmp_path / "process.log")
    line = b"x" * 999 + b"\n"
    for _ in range(LOG_LINES * 3):
        book.feed(line)
    lines, cursor = book.since(0)
    assert lines[0].text == f"{LOG_LINES * 2} log lines were dropped"
    assert len(book.lines) == LOG_LINES
    while True:
        more, cursor = book.since(cursor)
        if not more:
            break
    assert cursor == LOG_LINES * 3
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * LOG_FILE_BYTES
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    book.file.close()


def test_a_log_that_cannot_be_turned_over_ends_no_keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, or was made read-only for its errors."""
    book, open_private = LogBook("external01.erp", tmp_path / "process.log"), logbook.open_private
    line = b"x" * 999_999 + b"\n"

    def full(path: Path) -> io.FileIO:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logbook, "open_private", full)
    for _ in range(5):
        book.feed(line)
    monkeypatch.setattr(logbook, "open_private", open_private)
    book.feed(b"and on\n")
    assert (tmp_path / "process.log").read_text() == "and on\n"
    assert (tmp_path / "process.log.1").stat().st_size == 2_000_000
    book.file.close()


def test_a_line_without_end_is_cut() -> None:
    book = LogBook("r", Path("/dev/null"))
    book.feed(b"y" * 50_000)
    assert book.total == 1
    assert book.partial == b""
    book.file.close()


@pytest.mark.parametrize(
    ("until", "on", "over"),
    [
        pytest.param(100.0, 1, None, id="on, within the permit"),
        pytest.param(99.0, 1, 0.5, id="on, past the permit"),
        pytest.param(99.0, 0, None, id="off, past the permit"),
    ],
)
def test_the_watchdog_strikes_only_when_the_permit_has_ended_and_the_process_still_says_on(
    until: float, on: int, over: float | None
) -> None:
    page = mmap.mmap(-1, PERMIT.size)
    page.write(PERMIT.pack(until, on))
    assert permit_overrun(page, 99.5) == over
    page.close()


def line(text: str) -> LogLine:
    return LogLine(runtime="agent", at="", level=LogLevel.INFO, text=text)


def test_the_agents_log_buffer_drops_the_oldest_and_says_how_many() -> None:
    logs = LogBuffer()
    for number in range(SENT_LINES + 7):
        logs.add(line(str(number)))
    assert [item.text for item in logs.take()[:2]] == ["7 log lines were dropped while the portal was away", "7"]


def test_log_lines_that_come_while_a_report_is_under_way_are_kept() -> None:
    logs = LogBuffer()
    logs.add(line("sent"))
    assert [item.text for item in logs.take()] == ["sent"]
    logs.add(line("new"))
    logs.stored()
    assert [item.text for item in logs.take()] == ["new"]


EVENT = LeadershipEvent(group="g", epoch=1, runtime="external01.erp", previous=None, cause=Cause.FIRST)
END = LeadershipEnd(group="g", epoch=1, runtime="external01.erp", cause=Cause.CRASH, reason="killed by signal 9")


def test_the_spool_survives_the_agent_and_forgets_only_what_was_stored(tmp_path: Path) -> None:
    spool = Spool(Home(tmp_path))
    spool.store(ProcessNews(event=EVENT))
    spool.store(ProcessNews(event=EVENT))
    spool.store(ProcessNews(ended=END))
    spool.store(ProcessNews(outcome=RequestOutcome(id="r", status=RequestStatus.SUCCEEDED)))
    again = Spool(Home(tmp_path))
    assert (again.events, again.ends, [outcome.id for outcome in again.outcomes]) == ([EVENT], [END], ["r"])
    again.stored(Report(agent_version="1", boot_id="", started_at="", orders_version=0, sequence=1, events=[EVENT], ends=[END]))
    left = Spool(Home(tmp_path))
    assert (left.events, left.ends, len(left.outcomes)) == ([], [], 1)


def test_what_piled_up_without_a_portal_is_told_in_parts_and_ends_before_events(tmp_path: Path) -> None:
    spool = Spool(Home(tmp_path))
    spool.events = [msgspec.structs.replace(EVENT, epoch=number) for number in range(PER_REPORT + 2)]
    spool.ends = [msgspec.structs.replace(END, epoch=number) for number in range(PER_REPORT + 1)]
    told, longs = [], []
    while (part := spool.next()) != Spooled():
        told.append((len(part.ends), len(part.events)))
        longs.append(spool.is_long())
        spool.stored(Report(agent_version="1", boot_id="", started_at="", orders_version=0, sequence=1, events=part.events, ends=part.ends))
    assert (told, longs) == ([(PER_REPORT, 0), (1, PER_REPORT), (0, 2)], [True, True, False])


def test_an_end_replaces_running_and_never_the_other_way_round(tmp_path: Path) -> None:
    spool = Spool(Home(tmp_path))
    for status in (RequestStatus.RUNNING, RequestStatus.SUCCEEDED, RequestStatus.RUNNING):
        spool.add_outcome(RequestOutcome(id="r", status=status))
    assert [outcome.status for outcome in spool.outcomes] == [RequestStatus.SUCCEEDED]


def test_a_full_disk_keeps_nothing_from_the_portal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(Home(tmp_path))
    monkeypatch.setattr(linux, "write_atomically", disk_full)
    with pytest.raises(OSError, match="No space left"):
        spool.store(ProcessNews(event=EVENT))
    spool.add_outcome(RequestOutcome(id="r", status=RequestStatus.SUCCEEDED))
    report = Report(
        agent_version="1", boot_id="", started_at="", orders_version=0, sequence=1, events=spool.events, outcomes=spool.outcomes
    )
    assert (report.events, len(report.outcomes)) == ([EVENT], 1)
    spool.stored(report)
    assert (spool.events, spool.outcomes) == ([], [])


TELLS = """
import json, os, socket, sys, time
control = socket.socket(fileno=int(os.environ["BATON_CONTROL_FD"]))
say = lambda **news: control.sendall(json.dumps(news).encode() + b"\\n")
say(event={"group": "g", "epoch": 1, "runtime": "external01.erp", "previous": None, "cause": "first"})
for number in range(1000):
    say(ready=True, reason=f"word {number}")
    time.sleep(0.02)
"""


def test_a_program_is_heard_and_told_on_while_the_disk_is_full(tmp_path: Path) -> None:
    """The leadership it tells of stays with its keeper until there is room; meanwhile nothing is taken for a fact that is none any more."""

    async def scenario() -> None:
        full, stored = True, []

        def store(news: ProcessNews) -> None:
            if full:
                disk_full()
            stored.append(news)

        async def when(true: Callable[[], bool]) -> None:
            async with asyncio.timeout(10):
                while not true():
                    changed.clear()
                    await changed.wait()

        async def hears_on(program: Program) -> None:
            before = program.news.reason if program.news is not None else ""
            await when(lambda: program.news is not None and program.news.reason != before and program.news.pending == waits)

        changed = asyncio.Event()
        first = Program("external01.erp", tmp_path, changed.set, store, lambda _: None)
        await first.launch("l1", [sys.executable, "-c", TELLS], {})
        waits = [(1, ProcessNews(event=EVENT))]
        await hears_on(first)
        await first.let_go()
        again = Program("external01.erp", tmp_path, changed.set, store, lambda _: None)
        await again.attach()  # an agent that starts anew hears of it with the first word
        try:
            await hears_on(again)
            assert (again.keeping, stored) == (Keeping.ALIVE, [])
            full, waits = False, []
            await hears_on(again)
            assert stored == [ProcessNews(event=EVENT)]
            full = True
        finally:
            again.stop("the test is over", 0.0)
            await when(lambda: again.keeping is Keeping.GONE)
            await again.let_go()
        assert again.exit_reason.startswith("killed by its keeper")

    asyncio.run(scenario())


def test_a_bundle_is_verified_when_it_comes_and_whenever_it_is_read(tmp_path: Path) -> None:
    home = Home(tmp_path)
    digest = digest_of(b"good")
    with pytest.raises(TamperedBundle, match=f"expected SHA-256 {digest}, got {digest_of(b'bad')}"):
        home.keep_bundle(digest, b"bad")
    assert home.bundle(digest) is None
    home.keep_bundle(digest, b"good")
    assert home.bundle(digest) == b"good"
    home.bundle_path(digest).write_bytes(b"changed on disk")
    assert home.bundle(digest) is None


def test_a_digest_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TamperedBundle, match="is not a SHA-256 digest"):
        Home(tmp_path).keep_bundle("../../etc/passwd", b"")


def test_everything_the_home_keeps_is_private_and_a_broken_file_is_as_good_as_none(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.write("orders.json", Orders(version=1, namespace="/b/"))
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert (home.root / "orders.json").stat().st_mode & 0o777 == 0o600
    (home.root / "orders.json").write_text("{")
    assert home.read("orders.json", Orders) is None


def test_runtime_keys_never_leave_the_runtimes_folder(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for key in ("../x", ".", "..", "a/b", "external01.erp"):
        assert home.runtime(key).parent == home.root / "runtimes"


def test_a_lock_is_one_processs(tmp_path: Path) -> None:
    assert linux.lock(tmp_path / "x.lock") is not None
    assert linux.lock(tmp_path / "x.lock") is None
    assert linux.is_locked(tmp_path / "x.lock")
    assert not linux.is_locked(tmp_path / "y.lock")


def test_siblings_are_probed_at_their_own_address() -> None:
    members = {"a": "https://10.0.0.1:7000", "b": "https://10.0.0.2:7001", "c": "https://[fd00::3]:7002"}
    order = RouterOrder(name="a", peer_host="10.0.0.1", peer_port=7000, cluster_token="t", members=members)
    assert addresses(order) == {"b": ("10.0.0.2", 7001), "c": ("fd00::3", 7002)}
    assert addresses(None) == {}


@pytest.mark.parametrize(
    ("before", "passed", "after"),
    [
        pytest.param(1.0, 0.02, 1.02, id="a look after 20 ms"),
        pytest.param(1.0, 0.5, 1.5, id="a keeper that was kept waiting"),
        pytest.param(1.0, 3600.0, 1.5, id="a machine that was suspended for an hour"),
        pytest.param(1.0, -1.0, 1.0, id="never less"),
    ],
)
def test_only_time_in_which_the_keeper_was_awake_counts_as_silence(before: float, passed: float, after: float) -> None:
    assert silence(before, passed) == pytest.approx(after)


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """Of a process that just spoke; the boot-time clock stands at 100 s, nobody is really killed."""
    monkeypatch.setattr(linux, "boot_seconds", lambda: 100.0)
    monkeypatch.setattr(linux, "descendants", lambda pid: [])
    made = Keeper(KeeperSpec(name="external02.erp", launch="l1", folder=str(tmp_path), argv=[]))
    made.log = LogBook("external02.erp", tmp_path / "process.log")
    made.page = mmap.mmap(-1, PERMIT.size)
    made.pid, made.started_at = 4711, ""
    yield made
    made.log.file.close()


def test_what_a_keeper_keeps_for_an_agent_that_never_comes_has_an_end(keeper: Keeper) -> None:
    """Each news bears all of it: without an end it would once be longer than an agent reads."""
    for _ in range(2_010):
        keeper._keep(ProcessNews(event=EVENT))
    assert [number for number, _ in keeper.pending] == list(range(11, 2_011)), "the latest"
    said = [line.text for line in keeper.log.lines]
    assert said == ["no agent asks for what external02.erp tells: of more than 2000 the oldest are dropped"]


def look(keeper: Keeper, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The keeper looks five times a second for so long."""
    start = keeper.looked_at
    for turn in range(1, round(seconds * 5) + 1):
        monkeypatch.setattr(linux, "boot_seconds", lambda turn=turn: start + turn / 5)
        keeper._listen_for_silence()


def test_a_process_hangs_only_once_it_has_spoken_and_no_longer_when_it_speaks_again(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(keeper, monkeypatch, 60)
    assert (keeper.hangs, keeper.killing) == ("", ""), "it may still be starting"
    keeper._take(ProcessNews(ready=True, groups=[], flows=[]))
    look(keeper, monkeypatch, 2.8)
    assert keeper.hangs == ""
    look(keeper, monkeypatch, 0.6)
    assert keeper.hangs == "the process of external02.erp has not answered for 3 s (pid 4711)"
    assert (keeper.news([]).ready, keeper.news([]).hangs) == (False, keeper.hangs)
    keeper._take(ProcessNews())
    assert (keeper.news([]).ready, keeper.news([]).hangs) == (True, "")


def test_a_process_that_became_another_user_ends_no_keeper(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs sudo, under an agent that is not root."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(linux, "descendants", lambda pid: [4712, 4713])
    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(os, "waitpid", lambda pid, options: (0, 0))
    keeper.kill("killed by its keeper: for this test")
    assert not keeper._tree_is_empty(), "nor is its death proven"
    assert [line.text for line in keeper.log.lines if "4712 became another user" in line.text] != []


def test_a_process_that_hangs_for_half_a_minute_is_killed_unless_it_is_stopping(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper._take(ProcessNews(ready=True))
    keeper.stop_at = 1e9
    look(keeper, monkeypatch, 40)
    assert keeper.killing == "", "its own time limit ends it"
    keeper.stop_at = None
    keeper._take(ProcessNews())
    look(keeper, monkeypatch, 29.8)
    assert keeper.killing == ""
    look(keeper, monkeypatch, 0.6)
    assert keeper.killing == "killed by its keeper: it had not answered for 30 s"


def test_a_sign_of_life_or_the_same_again_is_no_news(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    owed: list[None] = []
    monkeypatch.setattr(keeper, "_owe", lambda: owed.append(None))
    keeper._take(ProcessNews(ready=True, groups=[], flows=[]))
    assert len(owed) == 1
    keeper._take(ProcessNews())
    keeper._take(ProcessNews(ready=True, groups=[], flows=[]))
    assert len(owed) == 1
    keeper._take(ProcessNews(ready=False, reason="stopping"))
    assert len(owed) == 2


def test_a_runtime_whose_bundle_is_on_its_way_is_starting_and_failed_only_once_it_cannot_be_had(tmp_path: Path) -> None:
    async def scenario() -> None:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        asked = asyncio.Event()

        async def fetch(digest: str) -> bytes:
            asked.set()
            return await answer

        home = Home(tmp_path)
        runtime = RuntimeSupervisor("external01.erp", home, fetch=fetch, changed=lambda: None, spool=Spool(home), logs=LogBuffer())
        around = Surroundings(namespace="/baton/1/", generation=1, timing=Timing(), etcd=None, machine="external01")
        runtime.take(RuntimeOrder(key="external01.erp", connector="erp", running=True, digest="0" * 64, release=1), around)
        running = asyncio.create_task(runtime.run())
        await asked.wait()
        assert runtime.state() == (RuntimeState.STARTING, "the bundle of release 1 is being fetched")
        answer.set_exception(BundleUnavailable("the portal does not answer"))
        assert runtime.fetching is not None
        await runtime.fetching
        assert runtime.state() == (RuntimeState.FAILED, "the portal does not answer")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runtime.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("router", "peers", "said"),
    [
        pytest.param(None, [], "", id="no router here"),
        pytest.param(
            RouterReport(state=RouterState.RUNNING), [CUT_OFF], "", id="a majority answers: that one sibling is away is not the cause"
        ),
        pytest.param(
            RouterReport(state=RouterState.NO_MAJORITY, reason="it sees no majority of the cluster's members"),
            [CUT_OFF, NEAR],
            "external02 cannot be reached on 10.0.0.12:2380 since 12:03:41 UTC (no answer within 1 s)",
            id="a sibling, with address and time",
        ),
        pytest.param(
            RouterReport(state=RouterState.NO_MAJORITY, reason="it sees no majority of the cluster's members"),
            [LONG_AGO],
            "external02 cannot be reached on 10.0.0.12:2380 since 2026-11-20 23:59:59 UTC (Connection refused)",
            id="since before today",
        ),
        pytest.param(
            RouterReport(state=RouterState.STARTING, reason="etcd does not answer yet: ReadTimeout"),
            [CUT_OFF],
            "external02 cannot be reached on 10.0.0.12:2380 since 12:03:41 UTC (no answer within 1 s)",
            id="a router that starts and finds nobody",
        ),
        pytest.param(
            RouterReport(state=RouterState.FAILED, reason="10.0.0.11:2380 is already taken by another program"),
            [CUT_OFF],
            "this machine's router does not run: 10.0.0.11:2380 is already taken by another program",
            id="the own router comes first",
        ),
        pytest.param(
            RouterReport(state=RouterState.NO_MAJORITY, reason="etcd does not answer"),
            [CUT_OFF, NEAR],
            "this machine's own router does not answer, "
            "external02 cannot be reached on 10.0.0.12:2380 since 12:03:41 UTC (no answer within 1 s)",
            id="the own router stands still, and a sibling's too",
        ),
        pytest.param(
            RouterReport(state=RouterState.NO_MAJORITY, reason="it sees no majority of the cluster's members"),
            [NEAR],
            "this machine's router cannot help: it sees no majority of the cluster's members",
            id="everybody answers",
        ),
    ],
)
def test_why_a_machine_is_cut_off_is_said_with_peer_address_and_time(
    router: RouterReport | None, peers: list[PeerReport], said: str
) -> None:
    assert why_cut_off(router, peers, "2026-11-22T12:10:00.000000Z") == said


def test_a_process_is_given_the_time_to_stop_that_its_own_profile_promises_it(tmp_path: Path) -> None:
    """It may run under another one than the environment has by now."""
    home = Home(tmp_path)
    runtime = RuntimeSupervisor("external01.erp", home, fetch=no_bundle, changed=lambda: None, spool=Spool(home), logs=LogBuffer())
    data = encode(content(timing=PROFILES[TimingProfile.WAN]))
    home.keep_bundle(digest_of(data), data)
    around = Surroundings(namespace="/baton/1/", generation=1, timing=PROFILES[TimingProfile.LAN], etcd=None, machine="external01")
    assert runtime._stop_seconds() == 12.0, "nothing is known of it"
    runtime.take(erp(digest_of(data)), around)
    assert runtime._stop_seconds() == 5.0 + 4.0 + 3.0
    data = encode(content())
    home.keep_bundle(digest_of(data), data)
    runtime.take(erp(digest_of(data)), around)
    assert runtime._stop_seconds() == 5.0 + 1.0 + 3.0


async def no_bundle(_: str) -> bytes:
    raise BundleUnavailable


DIES = """
import ctypes, os, platform, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # only this thread ends
"""


def test_a_process_whose_first_thread_is_dead_is_not_proven_gone_while_another_works() -> None:
    """As one that is killed while it writes to a disk that hangs: nothing of its environment is left in its first thread."""
    marker = f"BATON_TEST_MARKER={os.getpid()}"
    name, _, value = marker.partition("=")
    command = [sys.executable, "-c", DIES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {name: value}) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        until = time.monotonic() + 10
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not linux.is_over(process.pid)
        assert linux.processes_marked(marker.encode()) == [process.pid]
        assert linux.end_marked(marker.encode(), patience=10) == []
        assert linux.is_over(process.pid)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        pytest.param(True, "it sees no majority of the cluster's members", id="what needs a majority waits for one"),
        pytest.param(False, "etcd does not answer", id="the process stands still"),
    ],
)
def test_a_router_without_a_majority_is_not_said_to_be_silent(answers: bool, said: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if answers and request.url.path == "/v3/maintenance/status":
            return httpx.Response(200, json={"header": {"member_id": "1"}, "leader": "0"})
        raise httpx.ReadTimeout("nothing came", request=request)

    async def work() -> Health:
        order = RouterOrder(name="external01", peer_host="127.0.0.1", peer_port=2380, cluster_token="t", members={"external01": ""})
        client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        router = SimpleNamespace(
            health=Health(RouterState.RUNNING, ""), client=client, tls=SimpleNamespace(refresh=lambda: None), asked="", _port=lambda: 2379
        )
        router._post = lambda path, body: RouterSupervisor._post(router, path, body)  # type: ignore[arg-type]
        await RouterSupervisor._look(router, None, order)  # type: ignore[arg-type]
        await client.aclose()
        return router.health

    health = asyncio.run(work())
    assert (health.state, health.reason) == (RouterState.NO_MAJORITY, said)


@pytest.mark.parametrize(
    ("withdrawn", "late", "made"),
    [
        pytest.param(False, False, True, id="it stands and is in time"),
        pytest.param(True, False, False, id="the portal took it back"),
        pytest.param(False, True, False, id="its time is over"),
    ],
)
def test_a_change_of_the_members_waits_for_a_majority_only_while_it_is_wished(withdrawn: bool, late: bool, made: bool) -> None:
    """Its deployment was cancelled while the router saw no majority: minutes later nobody is to be removed."""
    asked: list[str] = []

    async def post(path: str, body: object) -> dict[str, object]:
        asked.append(path)
        return {}

    async def look(launched: object, order: object) -> None: ...

    member = ClusterMember(id="f1", name="external02", url="https://10.0.0.2:7400")
    change = MemberChange(id="c1", act=MemberAct.REMOVE, listed=[member], member="f1", valid_seconds=-1.0 if late else 10.0)
    order = RouterOrder(name="external01", peer_host="10.0.0.1", peer_port=7400, cluster_token="t", members={})
    router = SimpleNamespace(
        health=Health(RouterState.NO_MAJORITY, ""),
        order=order,
        change=None,
        changed_last=("", ""),
        listed=[member],
        wake=asyncio.Event(),
        program=SimpleNamespace(what=lambda kind: None),
        _post=post,
        _look=look,
    )
    RouterSupervisor.take(router, order, change)  # type: ignore[arg-type]
    asyncio.run(RouterSupervisor._make_change(router))  # type: ignore[arg-type]
    assert asked == []
    RouterSupervisor.take(router, order, None if withdrawn else change)  # type: ignore[arg-type]
    router.health = Health(RouterState.RUNNING, "")
    asyncio.run(RouterSupervisor._make_change(router))  # type: ignore[arg-type]
    assert asked == (["/v3/cluster/member/remove"] if made else [])
    assert router.changed_last == ("c1", "it could not be made in time" if late else ""), "the portal asks another one"


@pytest.mark.parametrize(
    ("inherited", "given"),
    [
        pytest.param("", "{root}", id="nothing"),
        pytest.param("/opt/more", "{root}:/opt/more", id="another folder stays"),
        pytest.param("/opt/more:{root}", "/opt/more:{root}", id="the package among others"),
    ],
)
def test_what_a_keeper_is_started_with_keeps_what_the_agent_was(monkeypatch: pytest.MonkeyPatch, inherited: str, given: str) -> None:
    root = linux.package_root()
    monkeypatch.setenv("PYTHONPATH", inherited.format(root=root))
    assert linux.python_environment() == {"PYTHONPATH": given.format(root=root)}
