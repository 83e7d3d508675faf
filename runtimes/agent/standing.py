"""Connections that stood when a certificate was taken back. etcd asks for certificates at the handshake only, so whoever was connected
stays so until the connection ends: these are the ones that have to.

From the kernel's table of connections (/proc/net/tcp): which may belong to somebody whose certificate was revoked. Who is a member of the
cluster, and was not among those revoked, may stay; so may this machine's own programs.
"""

import contextlib
import ipaddress
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED = "01"
LOOPBACK = "127.0.0.1"  # where a router's client port is
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


@dataclass(frozen=True)
class Connection:
    """One end of it, as the kernel lists it."""

    local_port: int
    remote_host: str
    remote_port: int
    inode: int


def parse(table: str) -> list[Connection]:
    """The connections that stand, of one of the kernel's tables."""
    found = []
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == ESTABLISHED:
            host, port = words[2].split(":")
            found.append(Connection(int(words[1].split(":")[1], 16), _host(host), int(port, 16), int(words[9])))
    return found


def _host(digits: str) -> str:
    """The kernel writes each 32 bits in the machine's own order (little-endian wherever Baton runs)."""
    data = b"".join(bytes.fromhex(digits[place : place + 8])[::-1] for place in range(0, len(digits), 8))
    address = ipaddress.ip_address(data)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def suspects(
    connections: Iterable[Connection],
    *,
    network_ports: Collection[int],
    client_port: int,
    trusted_hosts: Collection[str],
    own_sockets: Collection[int],
) -> frozenset[Connection]:
    """Connections to this router that may be a revoked certificate's.

    Args:
        network_ports: where other machines reach it.
        client_port: where this machine's own programs do, on loopback: the other end of each such connection is listed here too.
        trusted_hosts: addresses of members whose certificates are good.
        own_sockets: inodes of the agent's and its programs' sockets.
    """
    return frozenset(
        connection
        for connection in connections
        if (connection.local_port in network_ports and connection.remote_host not in trusted_hosts)
        or (connection.remote_port == client_port and connection.remote_host == LOOPBACK and connection.inode not in own_sockets)
    )


def own_pids(marker: bytes) -> list[int]:
    """This agent, and every process of this user that a keeper here has started: its environment has an entry that begins so."""
    found, user = [os.getpid()], os.geteuid()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not process.name.isdigit() or process.stat().st_uid != user:
                continue
            if any(entry.startswith(marker) for entry in (process / "environ").read_bytes().split(b"\0")):
                found.append(int(process.name))
    return found


def read_tables() -> list[Connection]:
    found: list[Connection] = []
    for table in TABLES:
        with contextlib.suppress(OSError):
            found += parse(Path(table).read_text())
    return found


def sockets_of(pids: Iterable[int]) -> set[int]:
    """Inodes of the sockets that these processes hold, as far as this user may look."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError, ValueError):
                    target = str(handle.readlink())
                    if target.startswith("socket:["):
                        found.add(int(target[8:-1]))
    return found
