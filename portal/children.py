"""Child processes of the stack runner: started so that none can outlive it, logged within bounds, restarted when they die.

Each child is in a session of its own, so that a Ctrl-C or a signal to the runner's process group reaches the runner only, which then
stops everything in order. The kernel kills a child whose runner is gone (PR_SET_PDEATHSIG).
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOG_BYTES = 5_000_000  # kept twice: <name>.log and <name>.log.1
QUICK_SECONDS = 10.0  # a life shorter than this counts towards the back-off
LONGEST_PAUSE = 30.0

_libc = ctypes.CDLL(None, use_errno=True)  # loaded before any fork


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent dies."""
    _libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def _die_with(parent: int) -> Callable[[], None]:
    def prepare() -> None:
        die_with_parent()
        if os.getppid() != parent:  # it died before the wish was made
            os._exit(1)

    return prepare


@dataclass(frozen=True)
class Program:
    """What to run. `log` None: it writes where the runner writes."""

    name: str
    command: Sequence[str | Path]
    folder: Path
    environment: Mapping[str, str]
    log: Path | None = None
    descriptors: Sequence[int] = ()
    once: bool = False  # a task: ends by itself, and is started again only when a signal ended it


@dataclass
class Child:
    """One program under supervision."""

    program: Program
    process: subprocess.Popen[bytes] | None = None
    due_at: float = 0.0  # CLOCK_MONOTONIC of the next start
    quick_deaths: int = 0
    done: bool = False  # a task that ended by itself
    exit_status: int | None = None
    started_at: float = field(default=0.0)

    @property
    def name(self) -> str:
        return self.program.name

    def start(self) -> None:
        program = self.program
        program.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            output = None
            if program.log is not None:
                program.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                output = opened.enter_context(program.log.open("ab"))
            self.process = subprocess.Popen(
                program.command,
                cwd=program.folder,
                env=dict(program.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
                pass_fds=program.descriptors,
                # The runner has one thread, which is what makes a preexec_fn safe; and PR_SET_PDEATHSIG follows the thread that forked.
                preexec_fn=_die_with(os.getpid()),
            )
        self.started_at = time.monotonic()
        self.exit_status = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def ended(self) -> str | None:
        """How the process ended, said once per death; None while it lives or waits for its next start."""
        if self.process is None or self.process.poll() is None:
            return None
        self.exit_status = self.process.returncode
        self.process = None
        if self.program.once and self.exit_status >= 0:
            self.done = True
        lived = time.monotonic() - self.started_at
        self.quick_deaths = self.quick_deaths + 1 if lived < QUICK_SECONDS else 0
        self.due_at = time.monotonic() + pause_before_restart(self.quick_deaths)
        return how_it_ended(self.exit_status)

    def send(self, signal_number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal_number)

    def last_words(self, lines: int = 5) -> list[str]:
        """The end of its log, for a runner that has to explain why it does not start."""
        if self.program.log is None:
            return []
        try:
            with self.program.log.open("rb") as stream:
                stream.seek(max(0, self.program.log.stat().st_size - 8192))
                return stream.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return []

    def bound_log(self, *, at_start: bool = False) -> None:
        """Keep the log within LOG_BYTES; the writer appends, so its file can be copied and cut without telling it."""
        log = self.program.log
        with contextlib.suppress(OSError):
            if log is not None and log.stat().st_size > (0 if at_start else LOG_BYTES):
                shutil.copyfile(log, log.with_name(log.name + ".1"))
                os.truncate(log, 0)


def pause_before_restart(quick_deaths: int) -> float:
    """Seconds: none for the first two quick deaths in a row, then 1, doubling to 30."""
    return 0.0 if quick_deaths < 3 else min(2.0 ** (quick_deaths - 3), LONGEST_PAUSE)


def how_it_ended(status: int) -> str:
    """ "exited with status 3" or "was killed by signal 9 (SIGKILL)"."""
    if status >= 0:
        return f"exited with status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by signal {-status} ({signal.Signals(-status).name})"
    return f"was killed by signal {-status}"


def stop(children: Sequence[Child], *, within: float, with_signal: int = signal.SIGTERM) -> None:
    """Ask all to end, wait for them together, kill what is left."""
    for child in children:
        child.send(with_signal)
    deadline = time.monotonic() + within
    while any(child.alive for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    for child in children:
        child.send(signal.SIGKILL)
    for child in children:
        if child.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(2)


def of_home(home: Path, marker: str) -> list[int]:
    """Process ids, other than ours, that were started with this BATON_HOME and the variable `marker` in their environment."""
    wanted = b"BATON_HOME=" + os.fsencode(home)
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            entries = (folder / "environ").read_bytes().split(b"\0")
            if wanted in entries and any(entry.startswith(marker.encode() + b"=") for entry in entries):
                found.append(int(folder.name))
    return found
