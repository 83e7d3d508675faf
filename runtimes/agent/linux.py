"""What the agent and its keepers ask of the Linux kernel: process trees, prctl, the boot clock, locks, safe file writes."""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one argument. Raises: OSError."""
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(parent: int) -> None:
    """Run in a fresh child before exec: the kernel kills this process when `parent` ends, however it ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(127)


def boot_seconds() -> float:
    """CLOCK_BOOTTIME: goes on through a suspend, untouched by changes of the wall clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Changes with every boot of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def utc_now() -> str:
    """RFC 3339 UTC with microseconds."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1_000_000):06d}Z"


def children(pid: int) -> list[int]:
    """Direct children of all threads of a process; empty when it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(word) for word in (task / "children").read_bytes().split()]
    return found


def descendants(pid: int) -> list[int]:
    """The tree below a process, parents before their children."""
    found = children(pid)
    for child in found:  # the list grows while it is walked
        found += children(child)
    return found


def processes_marked(marker: bytes) -> list[int]:
    """Processes whose environment holds the entry `marker` ("NAME=value"): what a killed keeper may have left behind.

    A process that is dying has none any more in its first thread, while another may still be in a system call.
    """
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        if marker in _environment(process).split(b"\0"):
            found.append(int(process.name))
    return found


def _environment(process: Path) -> bytes:
    """Empty when nobody in this process has one, or it may not be read."""
    with contextlib.suppress(OSError):
        if found := (process / "environ").read_bytes():
            return found
    with contextlib.suppress(OSError):
        for task in (process / "task").iterdir():
            with contextlib.suppress(OSError):
                if found := (task / "environ").read_bytes():
                    return found
    return b""


def _begun(pid: int) -> str:
    """When this process began, by which it is known from a later one of the same number; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def is_over(pid: int) -> bool:
    """Does no thread of this process run any more: it is gone, or waits for its parent only."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return True
    for task in tasks:
        with contextlib.suppress(OSError):
            if (task / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X"):
                return False
    return True


def end_marked(marker: bytes, patience: float) -> list[int]:
    """Kill every process that bears the marker, and wait until they are gone.

    Returns: the processes that are still there after `patience` seconds (none: proven gone).
    """
    until = time.monotonic() + patience
    known: dict[int, str] = {}  # with its start: one that was killed may lose its environment before its last thread has ended
    while True:
        known = {pid: begun for pid, begun in known.items() if begun == _begun(pid)} | {
            pid: _begun(pid) for pid in processes_marked(marker)
        }
        left = sorted(pid for pid, begun in known.items() if begun and not is_over(pid))
        if not left or time.monotonic() > until:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def lock(path: Path) -> int | None:
    """Take an exclusive lock that ends with this process. Returns: the descriptor that holds it, or None when another holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def is_locked(path: Path) -> bool:
    """Does some process hold this lock now."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Lay down a file of mode 0600, whole or not at all; `durable`: it survives a power cut once this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A spelling of a socket's path that fits the 108 bytes of a unix address, however deep the folder is."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def first_ephemeral_port() -> int:
    """Ports below this one are never handed out by the kernel, so one picked there stays ours between starts."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32768


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def why_not_free(host: str, port: int) -> str:
    """Try to listen on host:port. Returns: empty when that works, else a sentence that names it and the remedy."""
    with socket.socket(family_of(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"{host}:{port} is already taken by another program{_named(port)}: stop that program or choose another failover port"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"{host} is not an address of this machine: correct its Internal IP address"
            return f"cannot listen on {host}:{port}: {error.strerror or error}"
    return ""


def _named(port: int) -> str:
    """ " (nginx, pid 4711)": who listens there, where this user may see it; another user's program is told to root only."""
    inodes = {
        words[9]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for words in (line.split() for line in _lines(table)[1:])
        if len(words) > 9 and words[3] == "0A" and int(words[1].rsplit(":", 1)[1], 16) == port
    }
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if any(str(handle.readlink()) in sockets for handle in (process / "fd").iterdir()):
                return f" ({(process / 'comm').read_text().strip()}, pid {process.name})"
    return ""


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def package_root() -> str:
    """The folder from which `runtimes` is imported, for the import path of the programs we start."""
    return str(Path(__file__).resolve().parents[2])


def python_command(module: str) -> list[str]:
    """This interpreter running a module of this very code, wherever its working directory is."""
    return [sys.executable, "-P", "-m", module]


def python_environment() -> dict[str, str]:
    """Environment entries that make `python_command` find the package."""
    rest = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    root = package_root()
    return {"PYTHONPATH": os.pathsep.join(rest if root in rest else [root, *rest])}
