"""Hosts of the lab as network namespaces on one bridge; the bridge stands in a namespace of its own, so this host's network is untouched.

Every name begins with `bl<pid>-`; whatever bears it is removed at the end, also after a failure. Needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN),
iproute2 and iptables. A cut is an iptables drop at the receiver, so an open connection learns nothing of it, as in a real network.
"""

import array
import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

CLONE_NEWNET = 0x40000000
ETH_P_ALL, PACKET_OUTGOING, SIOCETHTOOL = 0x0003, 4, 0x8946
ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO = 0x17, 0x1F, 0x24
RUN = Path("/run/netns")
FREEZER = Path("/sys/fs/cgroup/freezer")  # cgroup v1 …
UNIFIED = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))  # … or v2
_libc = ctypes.CDLL(None, use_errno=True)


class NoLab(Exception):  # noqa: N818 - said by name
    """This host cannot have a lab; the sentence says why."""


def run(*command: str) -> str:
    """Run a tool of iproute2 or iptables to its end. Raises RuntimeError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def check_possible() -> None:
    """Raises NoLab with the reason when namespaces, bridges or packet filters cannot be had here."""
    for tool in ("ip", "iptables", "nsenter"):
        if shutil.which(tool) is None:
            raise NoLab(f"the lab needs the program {tool}: run .ci/system-packages")
    if not Path("/usr/bin/etcd").exists():
        raise NoLab("the lab needs Debian's /usr/bin/etcd: run .ci/system-packages")
    name = f"bl{os.getpid()}-probe"
    try:
        run("ip", "netns", "add", name)
    except (RuntimeError, OSError) as error:
        raise NoLab(f"network namespaces cannot be made here (they need CAP_NET_ADMIN and CAP_SYS_ADMIN): {error}") from error
    try:
        for words in (("ip", "link", "add", "br0", "type", "bridge"), ("iptables", "-w", "-A", "INPUT", "-s", "10.77.0.1", "-j", "DROP")):
            run("ip", "netns", "exec", name, *words)
    except RuntimeError as error:
        raise NoLab(f"a bridge or a packet filter cannot be made in a namespace here: {error}") from error
    finally:
        run("ip", "netns", "del", name)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in that namespace: what it connects meanwhile stays there. Other threads are not concerned."""
    home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(os.open(RUN / namespace, os.O_RDONLY | os.O_CLOEXEC), close=True)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(descriptor: int, close: bool = False) -> None:
    try:
        if _libc.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}")
    finally:
        if close:
            os.close(descriptor)


class Freezer:
    """A cgroup that holds everything of one host, to stop and continue it whole. Without cgroups: SIGSTOP to each process."""

    def __init__(self, name: str) -> None:
        self.group: Path | None = None
        self.version = 0
        for version, root in ((1, FREEZER), *((2, root) for root in UNIFIED)):
            if (root / ("tasks" if version == 1 else "cgroup.controllers")).exists():
                with contextlib.suppress(OSError):
                    (root / name).mkdir()
                    self.group, self.version = root / name, version
                    return

    def adopting(self, command: Sequence[str]) -> list[str]:
        """The command, started inside the cgroup. A shell moves itself there: nothing may run between fork and exec of a program with
        threads, as the lab is one."""
        if self.group is None:
            return list(command)
        return ["/bin/sh", "-c", f'echo 0 > "{self.group}/cgroup.procs" && exec "$@"', "sh", *command]

    def freeze(self, pids: Sequence[int]) -> None:
        self._set(frozen=True, pids=pids)

    def thaw(self, pids: Sequence[int]) -> None:
        self._set(frozen=False, pids=pids)

    def _set(self, *, frozen: bool, pids: Sequence[int]) -> None:
        if self.group is None:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)
            return
        if self.version == 2:
            (self.group / "cgroup.freeze").write_text("1" if frozen else "0")
            return
        state = self.group / "freezer.state"
        wanted = "FROZEN" if frozen else "THAWED"
        deadline = time.monotonic() + 2
        while True:
            state.write_text(wanted)
            if state.read_text().strip() == wanted:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{state} does not become {wanted}")
            time.sleep(0.001)

    def remove(self) -> None:
        deadline = time.monotonic() + 3
        while self.group is not None:
            try:
                self.group.rmdir()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


class SlowLink:
    """Stands between a host and the bridge and hands every frame on after a while: this kernel may have no netem."""

    def __init__(self, switch: str, ends: tuple[str, str], seconds: float) -> None:
        self.seconds = seconds
        with inside(switch):
            self._ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) for _ in ends]
        for end, name in zip(self._ends, ends, strict=True):
            end.bind((name, 0))
            end.setblocking(False)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="slow link", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        waiting: deque[tuple[float, int, bytes]] = deque()
        while not self._ended:
            patience = 0.05 if not waiting else max(0.0, waiting[0][0] - time.monotonic())
            for end in select.select(self._ends, [], [], min(patience, 0.05))[0]:
                with contextlib.suppress(OSError):  # no more frames for now; or the link is down, and may come up again
                    while True:
                        frame, facts = end.recvfrom(65_535)
                        if facts[2] != PACKET_OUTGOING:  # what was sent here comes by once more
                            waiting.append((time.monotonic() + self.seconds, 1 - self._ends.index(end), frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, target, frame = waiting.popleft()
                with contextlib.suppress(OSError):  # a link that is down, a frame too long
                    self._ends[target].send(frame)

    def close(self) -> None:
        self._ended = True
        self._thread.join(2)
        for end in self._ends:
            end.close()


def whole_frames(interface: str) -> None:
    """Let the sender compute checksums and segments itself, so that a frame can be read and sent again. In the thread's namespace."""
    with socket.socket() as any_socket:
        for command in (ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO):
            order = array.array("B", struct.pack("II", command, 0))
            request = struct.pack("16sP16x", interface.encode(), order.buffer_info()[0])
            fcntl.ioctl(any_socket, SIOCETHTOOL, request)


class Wire:
    """One host's place in the network: a namespace with one interface on the bridge."""

    def __init__(self, network: "Network", name: str, address: str) -> None:
        self.network, self.name, self.address = network, name, address
        self.namespace = f"{network.prefix}-{name}"
        self.port = f"p-{name}"[:15]  # the bridge's end
        self.freezer = Freezer(self.namespace)
        run("ip", "netns", "add", self.namespace)
        switch = network.switch
        run("ip", "-n", switch, "link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "-n", switch, "link", "set", self.port, "master", "br0", "up")
        run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        run("ip", "-n", self.namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", self.namespace, "link", "set", "eth0", "up")
        with inside(self.namespace):
            whole_frames("eth0")
        with inside(switch):
            whole_frames("br0")
        self._slow: SlowLink | None = None
        self.inode = (RUN / self.namespace).stat().st_ino

    def start(self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path, fds: Sequence[int] = ()) -> int:
        """Start a program on this host; the process id is its own. It is in a session of its own."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.freezer.adopting(["nsenter", f"--net={RUN / self.namespace}", "--", *command]),
                cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, pass_fds=list(fds),
            )  # fmt: skip
        self.network.children.append(process)
        return process.pid

    def pids(self) -> list[int]:
        """Every process of this host."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if (folder / "ns/net").stat().st_ino == self.inode:
                        found.append(int(folder.name))
        return found

    # ------------------------------------------------------------------------------------------------------------- the link

    def link(self, *, up: bool) -> None:
        run("ip", "-n", self.network.switch, "link", "set", self.port, "up" if up else "down")

    def slow(self, seconds: float) -> None:
        """Every frame to and from this host takes so long, each way."""
        if self._slow is not None:
            self._slow.seconds = seconds
            return
        near, far = f"n-{self.name}"[:15], f"f-{self.name}"[:15]
        for words in (
            ("add", near, "type", "veth", "peer", "name", far),
            ("set", near, "up"),
            ("set", far, "master", "br0", "up"),
            ("set", self.port, "nomaster"),
        ):
            run("ip", "-n", self.network.switch, "link", *words)
        with inside(self.network.switch):
            whole_frames(near)
            whole_frames(far)
        self._slow = SlowLink(self.network.switch, (self.port, near), seconds)

    def quick(self) -> None:
        if self._slow is None:
            return
        self._slow.close()
        self._slow = None
        run("ip", "-n", self.network.switch, "link", "del", f"n-{self.name}"[:15])
        run("ip", "-n", self.network.switch, "link", "set", self.port, "master", "br0")

    def drop_from(self, other: "Wire", probability: float | None = None) -> None:
        """Let nothing of `other` in (or lose that share of it)."""
        run(*self._rule("-A", other, probability))

    def forget_drops(self) -> None:
        for chain in ("INPUT", "OUTPUT"):
            run("ip", "netns", "exec", self.namespace, "iptables", "-w", "-F", chain)

    def refuse(self, port: int) -> None:
        """A firewall that answers: no connection to that port of this host, none from here to that port elsewhere."""
        for chain in ("INPUT", "OUTPUT"):
            words = ["-A", chain, "!", "-i" if chain == "INPUT" else "-o", "lo", "-p", "tcp", "--dport", str(port)]
            run("ip", "netns", "exec", self.namespace, "iptables", "-w", *words, "-j", "REJECT", "--reject-with", "tcp-reset")

    def _rule(self, act: str, other: "Wire", probability: float | None) -> list[str]:
        share = [] if probability is None else ["-m", "statistic", "--mode", "random", "--probability", str(probability)]
        return ["ip", "netns", "exec", self.namespace, "iptables", "-w", act, "INPUT", "-s", other.address, *share, "-j", "DROP"]

    # ------------------------------------------------------------------------------------------------------------------ end

    def kill_all(self) -> None:
        """SIGKILL to every process of the host until none is left."""
        deadline = time.monotonic() + 5
        while pids := [pid for pid in self.pids() if not _is_zombie(pid)]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: processes {pids} do not end")
            self.network.reap()
            time.sleep(0.005)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


class Network:
    """A bridge with hosts. `close` removes everything that this object made."""

    made = 0  # in this program, so that two do not share names

    def __init__(self, addresses: Mapping[str, str]) -> None:
        check_possible()
        Network.made += 1
        self.prefix = f"bl{os.getpid()}" + (f".{Network.made}" if Network.made > 1 else "")
        self.switch = f"{self.prefix}-switch"
        self.children: list[subprocess.Popen[bytes]] = []
        self.wires: dict[str, Wire] = {}
        try:
            run("ip", "netns", "add", self.switch)
            run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
            run("ip", "-n", self.switch, "link", "set", "br0", "up")
            for name, address in addresses.items():
                self.wires[name] = Wire(self, name, address)
        except BaseException:
            self.close()
            raise

    def reap(self) -> None:
        self.children = [child for child in self.children if child.poll() is None]

    def close(self) -> None:
        troubles: list[Exception] = []
        for wire in self.wires.values():
            for act in (wire.quick, lambda w=wire: w.freezer.thaw(w.pids()), wire.kill_all, self.reap, wire.freezer.remove):
                try:
                    act()
                except (OSError, RuntimeError) as error:
                    troubles.append(error)
        for child in self.children:  # killed, yet the kernel may still be busy ending its threads
            try:
                child.wait(5)
            except subprocess.TimeoutExpired as error:
                troubles.append(error)
        for name in sorted(path.name for path in RUN.iterdir() if path.name.startswith(f"{self.prefix}-")):
            try:
                run("ip", "netns", "del", name)
            except RuntimeError as error:
                troubles.append(error)
        if troubles:
            raise ExceptionGroup("the lab could not be taken down whole", troubles)
