"""Can this machine open a connection to its siblings' Internal IP : Failover port: measured, not assumed."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from runtimes.agent.linux import utc_now
from runtimes.protocol import PeerReport, RouterOrder

PROBE_SECONDS = 2.0  # between two rounds
CONNECT_SECONDS = 1.0


def addresses(order: RouterOrder | None, *, own: bool = False) -> dict[str, tuple[str, int]]:
    """Of every sibling, by machine name; `own`: of this machine too."""
    if order is None:
        return {}
    found = {}
    for name, url in order.members.items():
        parts = urlsplit(url)
        if (own or name != order.name) and parts.hostname and parts.port:
            found[name] = (parts.hostname, parts.port)
    return found


async def probe(host: str, port: int) -> str:
    """Open a connection and close it. Returns: empty when that works, else why not."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_SECONDS)
    except TimeoutError:
        return f"no answer within {CONNECT_SECONDS:g} s"
    except socket.gaierror as error:
        return f"the name {host} is not known ({error.strerror})"
    except OSError as error:  # asyncio's own text says that it failed, the number says why
        return os.strerror(error.errno) if error.errno else str(error)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return ""


class Peers:
    """Probes all siblings in rounds; `changed` is called when one's reachability changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.changed = changed
        self.order: RouterOrder | None = None
        self.known: dict[str, PeerReport] = {}

    def take(self, order: RouterOrder | None) -> None:
        self.order = order

    def report(self) -> list[PeerReport]:
        return list(self.known.values())

    async def run(self) -> None:
        while True:
            wanted = addresses(self.order)
            errors = await asyncio.gather(*(probe(*address) for address in wanted.values()))
            known = {
                machine: self._reading(machine, f"{host}:{port}", error)
                for (machine, (host, port)), error in zip(wanted.items(), errors, strict=True)
            }
            if known != self.known:
                self.known = known
                self.changed()
            await asyncio.sleep(PROBE_SECONDS)

    def _reading(self, machine: str, address: str, error: str) -> PeerReport:
        before = self.known.get(machine)
        same = before is not None and before.address == address and before.reachable == (not error)
        since = before.since if before is not None and same else utc_now()
        return PeerReport(machine=machine, address=address, reachable=not error, since=since, error=error)
