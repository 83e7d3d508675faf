"""Free ports on loopback, below the kernel's ephemeral range, remembered in a file.

Two stacks may look for ports in the same instant: whoever takes one also binds an abstract unix socket named after it, which lives
in the same network namespace as the port itself and vanishes with its process. No file, nothing to clean up.
"""

import errno
import json
import secrets
import socket
from pathlib import Path

LOWEST = 10_000
RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class NoPort(Exception):  # noqa: N818 - a refusal, said by name
    """A sentence on the port that cannot be had, with the remedy."""


def listen(port: int) -> socket.socket:
    """The portal's own listening socket on 127.0.0.1. Raises NoPort naming the port and the remedy."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise NoPort(f"Port {port} on 127.0.0.1 is taken by another program. Choose another one: make run PORT={port + 1}") from None
        raise NoPort(f"Port {port} on 127.0.0.1 cannot be used ({error.strerror}). Choose another one: make run PORT=8000") from None
    return listener


def is_free(port: int) -> bool:
    """Nothing listens on this port of loopback, nor on it everywhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def span() -> range:
    """Where ports are picked: below the ephemeral range, out of which the kernel hands ports to outgoing connections."""
    first_ephemeral = int(RANGE_FILE.read_text().split()[0])
    lowest = LOWEST if first_ephemeral > LOWEST + 1000 else 1024
    if first_ephemeral <= lowest + 16:
        raise NoPort(
            f"The ephemeral ports begin at {first_ephemeral}, which leaves none below: raise net.ipv4.ip_local_port_range by sysctl."
        )
    return range(lowest, first_ephemeral)


class Ports:
    """The ports of one BATON_HOME, by name: "broker", "external01.failover"."""

    def __init__(self, file: Path, *, avoid: int) -> None:
        self.file = file
        self.avoid = avoid  # PORT, which the person chose
        self.moved: list[str] = []  # remembered ports that another program holds now, and that were picked anew
        self._held: list[socket.socket] = []
        try:
            self._known: dict[str, int] = json.loads(file.read_text())
        except (FileNotFoundError, ValueError):
            self._known = {}

    def take(self, name: str, *, keep: bool = False) -> int:
        """The remembered port, or a free one that is remembered from now on; held against other stacks until this process ends.

        `keep`: the number is fixed elsewhere by now (the routers' cluster knows it), so it is returned even while another program has it.
        """
        known = self._known.get(name)
        if known is not None:
            if known != self.avoid and self._hold(known):
                return known
            self.moved.append(name)
            if keep:
                return known
        choices = span()
        for _ in range(1000):
            port = secrets.choice(choices)
            if port != self.avoid and port not in self._known.values() and self._hold(port):
                self._known[name] = port
                self._write()
                return port
        raise NoPort(f"No free port was found on 127.0.0.1 between {choices.start} and {choices.stop - 1}.")

    def release(self) -> None:
        """Hold none any more, as the end of the process would."""
        for claim in self._held:
            claim.close()
        self._held.clear()

    def _hold(self, port: int) -> bool:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0baton-port-{port}")
        except OSError:
            claim.close()
            return False
        if not is_free(port):
            claim.close()
            return False
        self._held.append(claim)
        return True

    def _write(self) -> None:
        draft = self.file.with_suffix(".tmp")
        draft.write_text(json.dumps(self._known, indent=1, sort_keys=True) + "\n")
        draft.replace(self.file)
