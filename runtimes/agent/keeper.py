"""A keeper: the small parent of one launched process, its router's etcd included.

`python -m runtimes.agent.keeper <spec.json>` detaches from its caller, takes the lock of its folder, starts the program and stays
until the program and everything it started are gone. It outlives the agent. Contract: docs/failover.md, Parts; `runtimes/protocol.py`.

One keeper is one launch. When the program ends, the keeper kills what is left of its tree, deletes the dead process's session (proven
death: the follower takes over at once), leaves `exit.json` and ends; the agent starts a new keeper for the next launch.

    keeper.lock   held while the keeper lives: never two processes of one runtime
    keeper.sock   KeeperCommand in, KeeperNews out, JSON lines
    exit.json     the last KeeperNews of a launch that ended, with every event nobody has stored yet
    process.log   the program's output, at most twice logbook.LOG_FILE_BYTES

Exit status of the caller's side: 0 started, 3 another keeper holds the lock, 4 could not start (the reason is on standard error).
Imports are few on purpose: a restart waits for them.
"""

import contextlib
import fcntl
import importlib
import mmap
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from runtimes.agent import linux
from runtimes.agent.lines import Lines
from runtimes.agent.logbook import LOG_LINES_PER_NEWS, LogBook
from runtimes.protocol import (
    ALONE_BECAUSE,
    CANNOT_RUN,
    CONTROL_FD_ENV,
    LIFELINE_FD_ENV,
    MOST_KEPT,
    PERMIT,
    PRESENCE_FD_ENV,
    SIGN_OF_LIFE_SECONDS,
    Cause,
    FlowReport,
    GroupReport,
    KeeperCommand,
    KeeperNews,
    LeadershipEnd,
    LogLevel,
    LogLine,
    ProcessNews,
    RanAlone,
    Status,
    TlsFiles,
    Wire,
    decode,
    encode,
)

WATCH_SECONDS = 0.02  # between two looks at the permit page
SILENCE_SECONDS = 3.0  # without a word from the process, after which nothing it said counts any more
HUNG_SECONDS = 30.0  # without a word, after which it is killed, so that it starts anew
LONGEST_LOOK = 0.5  # a longer time between two looks is time in which this keeper, or the whole machine, stood still
MARKER_ENV = "BATON_KEEPER_FOLDER"  # borne by every process of the tree, so that a killed keeper's leftovers are found
STARTED, LOCKED, REFUSED = 0, 3, 4


class KeeperSpec(Wire, frozen=True):
    """What to keep. Times in seconds."""

    name: str  # runtime key, or "router"
    launch: str
    folder: str
    argv: list[str]
    environment: dict[str, str] = {}
    without: str = ""  # inherited environment entries that begin with this are left out
    permit: str | None = None  # path of the permit page; None: no watchdog
    runtime: str | None = None  # whose session to delete; None: the program has none
    etcd: str | None = None
    tls: TlsFiles | None = None  # with `etcd`
    namespace: str = ""
    previous_launch: str | None = None  # a launch whose keeper could not delete its session itself
    lifeline_seconds: float = 4.0  # from the lifeline's end to SIGKILL
    after_locks: str = ""  # the runtimes' folder: at the lifeline's end wait until no keeper there holds its lock (routers end last) …
    after_locks_seconds: float = 4.5  # … but no longer than this …
    grace_seconds: float = 0.0  # … and no less: other machines' runtimes may still be handing over through this router


def exit_sentence(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"exited with status {os.waitstatus_to_exitcode(status)}"


def permit_overrun(page: mmap.mmap, now: float) -> float | None:
    """Seconds since the permit ended while the process still says On; None while all is well."""
    until, on = PERMIT.unpack_from(page, 0)
    return now - until if on == 1 and now > until else None


def silence(before: float, passed: float) -> float:
    """Seconds without a word, `passed` seconds (boot-time clock) after it was `before`: only time in which this keeper was awake counts,
    so that a machine that was suspended does not find all its processes hanging."""
    return before + min(max(passed, 0.0), LONGEST_LOOK)


class Connection(Lines):
    """An agent at the keeper's socket, or an onlooker: who has never sent a command gets no log lines, for each is sent only once."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.owed = True  # does it need a fresh KeeperNews
        self.told_at = 0.0  # monotonic: when it was given one last
        self.is_agent = False


class Keeper:
    """State of one launch; `run()` returns when the tree is empty and the agent was told."""

    def __init__(self, spec: KeeperSpec) -> None:
        self.spec = spec
        self.folder = Path(spec.folder)
        self.selector = selectors.DefaultSelector()
        self.connections: list[Connection] = []
        self.status: int | None = None  # wait status of the program
        self.pid: int | None = None
        self.stop_at: float | None = None  # monotonic: SIGKILL then
        self.stop_pending = ""  # why SIGTERM was sent
        self.killing = ""  # why the tree is being killed; empty: it is not
        self.beyond = False  # is there something in it that this user cannot kill
        self.lifeline_ended_at: float | None = None
        self.log_sent = 0  # lines some agent has received
        self.numbered = 0
        self.pending: list[tuple[int, ProcessNews]] = []
        self.dropped = 0
        self.ready = False
        self.was_ready = False
        self.reason = ""
        self.groups: list[GroupReport] = []
        self.flows: list[FlowReport] = []
        self.silent_for: float | None = None  # seconds; None: the process has not spoken yet
        self.looked_at = linux.boot_seconds()
        self.hangs = ""
        self.page: mmap.mmap | None = None

    # ------------------------------------------------------------------------------------------------------------- start

    def start(self) -> None:
        """Lock, sweep, listen, launch. Raises: OSError, RuntimeError with the reason."""
        self.lock = linux.lock(self.folder / "keeper.lock")
        if self.lock is None:
            raise BlockingIOError("another keeper holds the lock")
        marker = f"{MARKER_ENV}={self.folder}".encode()
        left = linux.end_marked(marker, patience=5.0)
        if left:
            raise RuntimeError(f"processes {left} of an earlier launch do not end")
        (self.folder / "exit.json").unlink(missing_ok=True)
        self.log = LogBook(self.spec.name, self.folder / "process.log")
        self._listen()
        self._open_permit()
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        self._catch_signals()
        self._watch_lifeline()
        self._launch()

    def _listen(self) -> None:
        path = self.folder / "keeper.sock"
        path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            with linux.short_path(path) as short:
                self.listener.bind(short)
        finally:
            os.umask(before)
        self.listener.listen(8)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)

    def _open_permit(self) -> None:
        if self.spec.permit is None:
            return
        handle = os.open(self.spec.permit, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, 0)  # a page of the former launch says nothing about this one
            os.posix_fallocate(handle, 0, PERMIT.size)  # a full disk must fail here, not as SIGBUS in the process
            self.page = mmap.mmap(handle, PERMIT.size)
        finally:
            os.close(handle)

    def _catch_signals(self) -> None:
        self.wake, wake_end = socket.socketpair()
        self.wake.setblocking(False)
        wake_end.setblocking(False)
        self.wake_end = wake_end
        signal.set_wakeup_fd(wake_end.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, lambda *_: None)  # an ignored signal would be inherited by the program, a handler is not
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, _: self.stop(self.spec.lifeline_seconds, f"its keeper got signal {got}"))
        self.selector.register(self.wake, selectors.EVENT_READ, self._drain_wake)

    def _watch_lifeline(self) -> None:
        self.presence = _descriptor(PRESENCE_FD_ENV)  # only held: its end tells the runner that this keeper is gone
        self.lifeline = _descriptor(LIFELINE_FD_ENV)
        if self.lifeline is not None:
            self.selector.register(self.lifeline, selectors.EVENT_READ, self._lifeline_event)

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        environment = {name: value for name, value in os.environ.items() if name not in (LIFELINE_FD_ENV, PRESENCE_FD_ENV)}
        if self.spec.without:
            environment = {name: value for name, value in environment.items() if not name.startswith(self.spec.without)}
        environment |= self.spec.environment
        environment |= {CONTROL_FD_ENV: str(theirs.fileno()), MARKER_ENV: str(self.folder)}
        keeper = os.getpid()
        self.started_at = linux.utc_now()
        self.process = subprocess.Popen(
            self.spec.argv,
            stdin=subprocess.DEVNULL,
            stdout=log_write,
            stderr=log_write,
            cwd=self.folder,
            env=environment,
            pass_fds=[theirs.fileno()],
            preexec_fn=lambda: linux.die_with_parent(keeper),  # safe: this keeper has one thread so far
        )
        self.pid = self.process.pid
        theirs.close()
        os.close(log_write)
        os.set_blocking(log_read, False)
        self.log_pipe: int | None = log_read
        self.selector.register(log_read, selectors.EVENT_READ, self._log_event)
        self.control: Lines | None = Lines(ours)
        self.selector.register(ours, selectors.EVENT_READ, self._control_event)
        threading.Thread(target=self._prepare_proof, daemon=True).start()

    # --------------------------------------------------------------------------------------------------------------- loop

    def run(self) -> None:
        """Until the tree is empty."""
        while not self._tree_is_empty():
            for key, _ in self.selector.select(self._patience()):
                act: Callable[[], None] = key.data
                act()
            self._watch()
            self._listen_for_silence()
            self._advance_stop()
            self._publish()
        self._finish()

    def _patience(self) -> float | None:
        if self.killing or self.status is not None:
            return 0.1 if self.beyond else 0.002
        if self.page is not None or any(connection.owed for connection in self.connections):
            return WATCH_SECONDS
        if any(connection.is_agent for connection in self.connections):
            return 0.1
        return 0.1 if self.stop_at is not None or self.lifeline_ended_at is not None else None

    def _tree_is_empty(self) -> bool:
        """Reap whatever has ended; when the program itself has ended, kill what is left of its tree."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True  # as a subreaper we inherit every orphan: no children means an empty tree
            if pid == 0:
                break
            if pid == self.pid:
                self.status = status
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.killing = self.killing or "left behind"
        if self.killing:
            self._kill_tree()
        return False

    def _kill_tree(self) -> None:
        for child in linux.descendants(os.getpid()):
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:
                if not self.beyond:
                    self.log.say(LogLevel.ERROR, f"process {child} became another user, so its keeper cannot end it and waits for it")
                self.beyond = True

    def _watch(self) -> None:
        if self.page is None or self.killing:
            return
        now = linux.boot_seconds()
        if permit_overrun(self.page, now) is None:
            return
        over = permit_overrun(self.page, now)  # read twice: a renewal may have been half written
        if over is not None:
            self.kill(f"killed by its keeper: permit ended {over * 1000:.0f} ms ago, still On")

    def _listen_for_silence(self) -> None:
        """A process that speaks once speaks every second from then on; after SILENCE_SECONDS without a word it hangs."""
        now, before = linux.boot_seconds(), self.looked_at
        self.looked_at = now
        if self.silent_for is None or self.page is None or self.killing or self.status is not None:
            return
        self.silent_for = silence(self.silent_for, now - before)
        if self.silent_for > SILENCE_SECONDS and not self.hangs:
            self.hangs = f"the process of {self.spec.name} has not answered for {SILENCE_SECONDS:g} s (pid {self.pid})"
            self.log.say(LogLevel.WARNING, self.hangs)
            self._owe()
        if self.silent_for > HUNG_SECONDS and self.stop_at is None and self.lifeline_ended_at is None:
            self.kill(f"killed by its keeper: it had not answered for {HUNG_SECONDS:g} s")

    def _speaks(self) -> None:
        """A word came from the process."""
        self.silent_for = 0.0
        if self.hangs:
            self.hangs = ""
            self.log.say(LogLevel.INFO, f"the process of {self.spec.name} answers again")
            self._owe()

    def kill(self, reason: str) -> None:
        """SIGKILL to the whole tree, now."""
        self.killing = self.killing or reason
        self._kill_tree()
        self.log.say(LogLevel.ERROR, reason)

    def stop(self, within: float, why: str) -> None:
        """SIGTERM to the program, SIGKILL of the tree after so many seconds. A second call may only shorten the time."""
        until = time.monotonic() + max(within, 0.0)
        if self.stop_at is None and self.pid is not None and self.status is None:
            self.stop_pending = why
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
        self.stop_within = within
        self.stop_at = until if self.stop_at is None else min(self.stop_at, until)

    def _advance_stop(self) -> None:
        if self.lifeline_ended_at is not None and self.stop_at is None and self._siblings_are_gone():
            self.stop(self.spec.lifeline_seconds, "the program that started this machine's agent has ended")
        if self.stop_at is not None and not self.killing and time.monotonic() >= self.stop_at:
            self.kill(f"killed by its keeper: it did not stop within {self.stop_within:g} s")

    def _siblings_are_gone(self) -> bool:
        if not self.spec.after_locks or self.lifeline_ended_at is None:
            return True
        waited = time.monotonic() - self.lifeline_ended_at
        if waited < self.spec.grace_seconds or waited > self.spec.after_locks_seconds:
            return waited > self.spec.after_locks_seconds
        return not any(linux.is_locked(path) for path in Path(self.spec.after_locks).glob("*/keeper.lock"))

    # ------------------------------------------------------------------------------------------------------------- events

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self.listener.accept()
            connection = Connection(sock)
            self.connections.append(connection)
            self.selector.register(sock, selectors.EVENT_READ, lambda: self._connection_event(connection))

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.wake.recv(4096)

    def _lifeline_event(self) -> None:
        assert self.lifeline is not None
        if os.read(self.lifeline, 64) == b"":
            self.selector.unregister(self.lifeline)
            self.lifeline_ended_at = time.monotonic()

    def _log_event(self) -> None:
        if self.log_pipe is None:
            return
        try:
            data = os.read(self.log_pipe, 65_536)
        except BlockingIOError:
            return
        if data:
            self.log.feed(data)
            self._owe()
        else:
            self.selector.unregister(self.log_pipe)
            os.close(self.log_pipe)
            self.log_pipe = None

    def _control_event(self) -> None:
        assert self.control is not None
        lines = self.control.read()
        for line in lines or []:
            try:
                self._take(decode(ProcessNews, line))
            except msgspec.MsgspecError as error:
                self.log.say(LogLevel.ERROR, f"the process sent news that cannot be read: {error}")
        if lines is None:
            self.selector.unregister(self.control.sock)
            self.control.sock.close()
            self.control = None

    def _take(self, news: ProcessNews) -> None:
        """Whoever listens is told when something changed; a sign of life, or the same again, is no news."""
        self._speaks()
        before = (self.ready, self.reason, self.groups, self.flows, self.numbered)
        if news.ready is not None:
            self.ready = news.ready
            self.was_ready = self.was_ready or news.ready
            self.reason = news.reason
        if news.groups is not None:
            self.groups = news.groups
        if news.flows is not None:
            self.flows = news.flows
        if any(said is not None for said in (news.event, news.ended, news.alone, news.outcome)):
            self._keep(ProcessNews(event=news.event, ended=news.ended, alone=news.alone, outcome=news.outcome))
        if before != (self.ready, self.reason, self.groups, self.flows, self.numbered):
            self._owe()

    def _keep(self, news: ProcessNews) -> None:
        """For the agent, until it acknowledges; of more than it would keep itself, the latest."""
        self.numbered += 1
        self.pending.append((self.numbered, news))
        if len(self.pending) > MOST_KEPT:
            del self.pending[0]
            if not self.dropped:
                self.log.say(
                    LogLevel.WARNING, f"no agent asks for what {self.spec.name} tells: of more than {MOST_KEPT} the oldest are dropped"
                )
            self.dropped += 1

    def _tell_ends(self) -> None:
        """The leaderships that ended with the process: what it led by its own last word, and what its death was."""
        cause = Cause.HANG if self.killing.startswith("killed by its keeper: permit") else Cause.CRASH
        for group in self.groups if self.spec.runtime is not None else []:
            if group.status is Status.SINGLE_NODE and group.reason.startswith(ALONE_BECAUSE):
                ran = RanAlone(
                    group=group.group,
                    runtime=self.spec.runtime or "",
                    reason=group.reason,
                    since=group.since,
                    until=linux.utc_now(),
                    until_boot=linux.boot_seconds(),
                    boot_id=linux.boot_id(),
                )
                self._keep(ProcessNews(alone=ran))
            if group.status is Status.LEADER and group.epoch and group.leader == self.spec.runtime:
                self._keep(
                    ProcessNews(
                        ended=LeadershipEnd(
                            group=group.group,
                            epoch=group.epoch,
                            runtime=self.spec.runtime or "",
                            cause=cause,
                            reason=self._exit_reason(),
                            at=linux.utc_now(),
                            at_boot=linux.boot_seconds(),
                            boot_id=linux.boot_id(),
                        )
                    )
                )

    def _connection_event(self, connection: Connection) -> None:
        lines = connection.read()
        if lines and not connection.is_agent:
            connection.is_agent = connection.owed = True
        for line in lines or []:
            try:
                self._obey(decode(KeeperCommand, line))
            except msgspec.MsgspecError as error:
                self.log.say(LogLevel.ERROR, f"the agent sent a command that cannot be read: {error}")
        if lines is None:
            self._drop(connection)

    def _obey(self, command: KeeperCommand) -> None:
        if command.acknowledge is not None:
            self.pending = [item for item in self.pending if item[0] > command.acknowledge]
        if command.to_process is not None and self.control is not None:
            self.control.write(encode(command.to_process))
        if command.stop_within is not None:
            self.stop(command.stop_within, "ordered")

    def _drop(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
            self.selector.unregister(connection.sock)
            connection.sock.close()

    # --------------------------------------------------------------------------------------------------------------- news

    def _owe(self) -> None:
        for connection in self.connections:
            connection.owed = True

    def news(self, log: list[LogLine]) -> KeeperNews:
        return KeeperNews(
            launch=self.spec.launch,
            keeper_pid=os.getpid(),
            pid=self.pid,
            started_at=self.started_at,
            exit_reason=self._exit_reason(),
            was_ready=self.was_ready,
            ready=self.ready and self.pid is not None and not self.hangs,
            reason=self.reason,
            speaks=True,
            hangs=self.hangs,
            groups=self.groups,
            flows=self.flows,
            pending=self.pending,
            log=log,
        )

    def _exit_reason(self) -> str:
        if self.status is None or self.pid is not None:
            return ""
        if self.killing.startswith("killed"):
            return self.killing
        if self.stop_pending and os.waitstatus_to_exitcode(self.status) in (0, -signal.SIGTERM):
            return f"stopped: {self.stop_pending}"
        ended = exit_sentence(self.status)
        cannot = os.WIFEXITED(self.status) and os.WEXITSTATUS(self.status) == CANNOT_RUN
        return f"{ended}: {self.reason}" if cannot and self.reason else ended

    def _publish(self) -> None:
        """Send the whole picture to whoever is owed one and has read the last; a slow agent gets fewer, never older, news."""
        for connection in list(self.connections):
            if connection.is_agent and time.monotonic() - connection.told_at > SIGN_OF_LIFE_SECONDS:
                connection.owed = True
            if connection.owed and not connection.unsent:
                connection.told_at = time.monotonic()
                log: list[LogLine] = []
                if connection.is_agent:
                    log, self.log_sent = self.log.since(self.log_sent)
                connection.owed = connection.is_agent and self.log_sent < self.log.total
                connection.unsent = encode(self.news(log)) + b"\n"
            if connection.unsent and not connection.write():
                self._drop(connection)
        if self.control is not None and self.control.unsent:
            self.control.write()

    # ---------------------------------------------------------------------------------------------------------------- end

    def _prepare_proof(self) -> None:
        """Load what deletes a session while there is time, so that a death is proven within milliseconds."""
        if self.spec.runtime is None:
            return
        time.sleep(0.3)  # the program's own start goes first
        importlib.import_module("runtimes.process.farewell")
        if self.spec.previous_launch is not None:
            self._end_session(self.spec.previous_launch, patience=5.0)

    def _end_session(self, launch: str, patience: float) -> bool:
        """Delete the session of a launch whose tree is proven empty, trying for `patience` seconds.

        Returns: False when the router did not answer in time; the session then ends by silence.
        """
        if self.spec.runtime is None or self.spec.etcd is None or self.spec.tls is None:
            return True
        from runtimes.process.farewell import end_session
        from runtimes.process.tls import ClientTls

        began = time.monotonic()
        tls = ClientTls(self.spec.tls)
        said = end_session(self.spec.etcd, self.spec.namespace, self.spec.runtime, launch, tls, timeout=patience)
        answered = time.monotonic() - began < patience
        self.log.say(LogLevel.INFO if answered else LogLevel.WARNING, said)
        return answered

    def _finish(self) -> None:
        """The tree is empty: prove the death, leave the record, tell the agent, end."""
        proven = self._end_session(self.spec.launch, patience=0.5)
        for _ in range(64):  # what the process said and wrote last is still in the pipes
            if self.control is not None:
                self._control_event()
            self._log_event()
        self.log.finish()
        self.pid = None
        self._tell_ends()
        last_words, _ = self.log.since(max(self.log_sent, self.log.total - LOG_LINES_PER_NEWS))
        try:
            linux.write_atomically(self.folder / "exit.json", encode(self.news(last_words)), durable=False)
        except OSError as error:  # a full disk: who is connected is told all the same
            self.log.say(LogLevel.ERROR, f"how {self.spec.name} ended cannot be written down: {error}")
        self._owe()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            self._publish()
            if not any(connection.owed or connection.unsent for connection in self.connections):
                break
            time.sleep(0.005)
        for connection in list(self.connections):
            self._drop(connection)
        (self.folder / "keeper.sock").unlink(missing_ok=True)
        self.listener.close()
        assert self.lock is not None
        fcntl.flock(self.lock, fcntl.LOCK_UN)  # the restart need wait neither for this program's last breath nor for a router that is away
        for _ in range(10):
            if proven or self.lifeline_ended_at is not None or self._lifeline_is_over():
                return
            proven = self._end_session(self.spec.launch, patience=0.5)

    def _lifeline_is_over(self) -> bool:
        return self.lifeline is not None and bool(select.select([self.lifeline], [], [], 0)[0])


def _descriptor(name: str) -> int | None:
    """A descriptor inherited by number in an environment variable, made private to this process."""
    text = os.environ.get(name, "")
    if not text.isdigit():
        return None
    try:
        os.set_inheritable(int(text), False)
    except OSError:
        return None  # the number was inherited, the descriptor was not
    return int(text)


def detach() -> int | None:
    """Leave the caller's session and process tree.

    Returns: in the keeper a descriptor to report on; in the caller's child None, after the keeper has reported (never returns: exits).
    """
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    if os.fork() != 0:
        os.close(report_write)
        said = b"".join(iter(lambda: os.read(report_read, 4096), b""))
        if said == b"started":
            os._exit(STARTED)
        os.write(2, said or b"the keeper ended before it could say why\n")
        os._exit(LOCKED if said.startswith(b"locked") else REFUSED)
    os.close(report_read)
    os.setsid()
    return report_write


def main(arguments: list[str]) -> int:
    spec = decode(KeeperSpec, Path(arguments[0]).read_bytes())
    report = detach()
    assert report is not None
    os.chdir(spec.folder)
    null = os.open(os.devnull, os.O_RDONLY)
    errors = os.open(Path(spec.folder) / "keeper.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.dup2(null, 0)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    os.close(null)
    os.close(errors)
    keeper = Keeper(spec)
    try:
        keeper.start()
    except BlockingIOError:
        with contextlib.suppress(BrokenPipeError):
            os.write(report, b"locked: another keeper runs this program")
        return LOCKED
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        with contextlib.suppress(BrokenPipeError):
            os.write(report, f"cannot start {spec.argv[0]}: {error}".encode())
        return REFUSED
    with contextlib.suppress(
        BrokenPipeError
    ):  # the agent that asked for it was killed meanwhile: the program runs, the next agent finds it
        os.write(report, b"started")
    os.close(report)
    keeper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
