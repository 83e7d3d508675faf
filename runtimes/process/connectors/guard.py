"""The guard of one started command: a small parent that never leaves anything of it running.

Started as `python -I -S guard.py <page descriptor> <report descriptor> <runtime's pid> <program> <argument>…` by `program.py`. Standard
library only, and few imports: a takeover waits for it.

It is a subreaper, so whatever the program starts, also in sessions of its own, stays below it. It kills the whole tree when

- the program itself has ended (what it left behind goes with it),
- the moment in the page (PAGE, written by the runtime while its permit lasts) has passed, whoever else stands still,
- the runtime process has ended, however.

SIGTERM is passed on to the program. It reports lines on the descriptor: `pid <n>`, `error <text>`, `left <n>` (processes that
the program left behind), `status <wait status>`; the last one comes when the tree is empty.
"""

import ctypes
import mmap
import os
import select
import signal
import struct
import sys
import time

PAGE = struct.Struct("<d")  # until: seconds on CLOCK_BOOTTIME
WATCH_SECONDS = 0.02
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - pathlib is slow to load
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:  # noqa: PTH123
                found += [int(word) for word in file.read().split()]
    except OSError:
        pass
    return found


def descendants(pid: int) -> list[int]:
    """The tree below a process, parents before their children."""
    found = children(pid)
    for child in found:  # the list grows while it is walked
        found += children(child)
    return found


def living(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except OSError:
        return False


def kill_below(pid: int) -> None:
    for child in descendants(pid):
        try:
            os.kill(child, signal.SIGKILL)
        except OSError:
            pass  # gone, or another user's: the loop comes back to it


def run(page: mmap.mmap, report: int, parent: int, argv: list[str]) -> int:
    """Until the tree is empty; the program's wait status."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    wake, wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
    got: list[int] = []
    number: int
    ours = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
    for number in ours:
        signal.signal(number, lambda number, _: got.append(number))
    failed, failing = os.pipe2(os.O_CLOEXEC)
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals():  # what Python ignores, or whoever started it (nohup, a shell's &), would be inherited
                if number in ours or signal.getsignal(number) == signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != me:
                os._exit(127)
            os.execvp(argv[0], argv)  # noqa: S606 - no shell is meant
        except OSError as error:
            os.write(failing, (error.strerror or str(error)).encode())
        os._exit(127)
    os.close(failing)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # the pipes shall end when the program closes them, not when its guard does
        os.dup2(null, number)
    status: int | None = None
    killing = os.getppid() != parent
    asked = [wake, failed]  # the start may hang (a file system that is gone): the permit is looked at meanwhile
    while True:
        if failed in asked and select.select([failed], [], [], 0)[0]:
            asked.remove(failed)
            refusal = os.read(failed, 1000)
            os.write(report, b"error " + refusal + b"\n" if refusal else b"pid %d\n" % pid)
        while True:
            try:
                gone, its = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return status if status is not None else 0
            if gone == 0:
                break
            if gone == pid:
                status, killing = its, True
                left = sum(living(child) for child in descendants(me))
                if left:
                    os.write(report, b"left %d\n" % left)
        if time.clock_gettime(time.CLOCK_BOOTTIME) >= PAGE.unpack_from(page, 0)[0]:
            killing = True
        while got:
            number = got.pop(0)
            if number == signal.SIGUSR1:
                killing = True
            elif number != signal.SIGCHLD and status is None:
                try:
                    os.kill(pid, signal.SIGTERM)
                except OSError:
                    pass  # it became another user: this guard must not end before it
        if killing:
            kill_below(me)
        select.select(asked, [], [], 0.002 if killing else WATCH_SECONDS)
        try:
            os.read(wake, 4096)
        except BlockingIOError:
            pass


def main() -> None:
    descriptor, report, parent = (int(word) for word in sys.argv[1:4])
    os.set_inheritable(report, False)
    page = mmap.mmap(descriptor, PAGE.size, access=mmap.ACCESS_READ)
    os.close(descriptor)
    status = run(page, report, parent, sys.argv[4:])
    try:
        os.write(report, b"status %d\n" % status)
    except OSError:
        pass  # the runtime is gone


if __name__ == "__main__":
    main()
