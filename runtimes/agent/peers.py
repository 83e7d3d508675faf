"""Can this machine speak to its siblings' routers on Internal IP : Failover port: measured, not assumed."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Collection, Mapping
from urllib.parse import urlsplit

from runtimes.agent.certificate import taken_back
from runtimes.agent.home import Home
from runtimes.agent.linux import utc_now
from runtimes.process.tls import ClientTls
from runtimes.protocol import PeerReport, RouterOrder, RouterReport, RouterState, Wire

PROBE_SECONDS = 2.0  # between two rounds
CONNECT_SECONDS = 1.0
TAKEN_BACK = "it bears a certificate that was taken back"
NOT_ACCEPTED = "it does not accept this machine's certificate"
SILENT = "etcd does not answer"  # of a router whose process runs and says nothing


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


async def probe(host: str, port: int, tls: ClientTls, cluster: str = "", revoked: Collection[int] = ()) -> str:
    """Speak to a router as another router would, certificates included. Returns: empty when it answers, else why not.

    Args:
        cluster: id (hexadecimal) of the cluster that its member must be of; empty: any.
        revoked: serial numbers of certificates that were taken back: who calls looks at no list by himself, etcd neither.
    """
    try:
        tls.refresh()
    except OSError:
        return "this machine has no certificate yet"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await _ask(host, port, tls.context, cluster, revoked)
    except TimeoutError:
        return f"no answer within {CONNECT_SECONDS:g} s"
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not accepted here: {error.verify_message}"
    except ssl.SSLError as error:
        said = (error.reason or str(error)).replace("_", " ").lower()
        # With TLS 1.3 a server's alert comes after the client's own handshake.
        return f"{NOT_ACCEPTED}: {said}" if "alert" in said else f"it is no router of this cluster: {said}"
    except socket.gaierror as error:
        return f"the name {host} is not known ({error.strerror})"
    except OSError as error:  # asyncio's own text says that it failed, the number says why
        return os.strerror(error.errno) if error.errno else str(error)


async def _ask(host: str, port: int, context: ssl.SSLContext, cluster: str, revoked: Collection[int]) -> str:
    reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert()
        if int(shown["serialNumber"], 16) in revoked:
            return TAKEN_BACK
        where = f"[{host}]" if ":" in host else host
        path = "/members" if cluster else "/version"  # only of the first etcd says which cluster it is of
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {where}:{port}\r\nConnection: close\r\n\r\n".encode())
        try:
            head = await reader.readline()
        except ConnectionError:
            head = b""
        if not head:  # etcd looks at revocations and addresses after the handshake, and then only hangs up
            return f"{NOT_ACCEPTED}: it hung up"
        if not head.startswith(b"HTTP/1.1 200"):
            return f"it is no router: it says {head[:40]!r}"
        return "" if not cluster or await _cluster_of(reader) == cluster else "it is of another cluster"
    finally:
        writer.transport.abort()


async def _cluster_of(reader: asyncio.StreamReader) -> str:
    """What the head of an answer says of the cluster (etcd's own header); empty when nothing."""
    found = ""
    while (line := await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        if name.lower() == "x-etcd-cluster-id":
            found = value.strip()
    return found


def why_cut_off(router: RouterReport | None, peers: list[PeerReport], now: str) -> str:
    """What keeps this machine from the majority: its own router (first, where it stands still), else the siblings that it cannot
    reach; empty when neither is known.

    "external02 cannot be reached on 10.0.0.12:2380 since 12:03:41 UTC (no answer within 1 s)"
    """
    if router is None or router.state is RouterState.RUNNING:
        return ""
    if router.state in (RouterState.FAILED, RouterState.ABSENT):
        return f"this machine's router does not run: {router.reason or router.state}"
    said = [seen_so(peer, now) for peer in peers if not peer.reachable]
    if router.reason == SILENT:  # nobody is led from here before it answers, whoever else comes back
        return ", ".join(["this machine's own router does not answer", *said])
    return ", ".join(said) or f"this machine's router cannot help: {router.reason}"


def seen_so(peer: PeerReport, now: str) -> str:
    """ "external02 cannot be reached on 10.0.0.12:2380 since 12:03:41 UTC (no answer within 1 s)" """
    verb, error = ("is reached", "") if peer.reachable else ("cannot be reached", f" ({peer.error})")
    return f"{peer.machine} {verb} on {peer.address} since {clock_of(peer.since, now)}{error}"


def clock_of(moment: str, now: str) -> str:
    """A moment as a person reads it: the time, and the day when it is not today's."""
    day, _, time = moment.partition("T")
    return f"{time[:8]} UTC" if day == now.partition("T")[0] else f"{day} {time[:8]} UTC"


def who_refuses(peers: list[PeerReport]) -> str:
    """ "external02 does not accept this machine's certificate"; empty where no sibling that answers says so."""
    refusing = [peer.machine for peer in peers if not peer.reachable and peer.error.startswith(NOT_ACCEPTED)]
    return f"{' and '.join(refusing)} {'do' if len(refusing) > 1 else 'does'} not accept this machine's certificate" if refusing else ""


class Seen(Wire, frozen=True):
    """`peers.json`: the siblings as this machine's agent last saw them, for `baton-agent status` and the agent's next start."""

    peers: list[PeerReport] = []


def reading(before: PeerReport | None, machine: str, address: str, error: str) -> PeerReport:
    """What is seen of a sibling now; `before`: the last reading, whose moment stays while nothing changes."""
    revoked = error == TAKEN_BACK
    same = before is not None and (before.address, before.reachable, before.revoked) == (address, not error, revoked)
    since = before.since if before is not None and same else utc_now()
    return PeerReport(machine=machine, address=address, reachable=not error, since=since, error=error, revoked=revoked)


async def look_around(order: RouterOrder | None, home: Home, tls: ClientTls, known: Mapping[str, PeerReport]) -> dict[str, PeerReport]:
    """Every sibling, tried now."""
    wanted, revoked = addresses(order), taken_back(home)
    errors = await asyncio.gather(*(probe(*address, tls, revoked=revoked) for address in wanted.values()))
    return {
        machine: reading(known.get(machine), machine, f"{host}:{port}", error)
        for (machine, (host, port)), error in zip(wanted.items(), errors, strict=True)
    }


class Peers:
    """Probes all siblings in rounds; `changed` is called when one's reachability changes."""

    def __init__(self, home: Home, changed: Callable[[], None]) -> None:
        self.home = home
        self.tls = ClientTls(home.tls)
        self.changed = changed
        self.order: RouterOrder | None = None
        self.known: dict[str, PeerReport] = {peer.machine: peer for peer in (home.read("peers.json", Seen) or Seen()).peers}

    def take(self, order: RouterOrder | None) -> None:
        self.order = order

    def report(self) -> list[PeerReport]:
        return list(self.known.values())

    async def ask(self, cluster: str) -> dict[str, str]:
        """Every sibling's router, asked now: does a member of this very cluster answer within CONNECT_SECONDS; else why not."""
        wanted, revoked = addresses(self.order), taken_back(self.home)
        said = await asyncio.gather(*(probe(*address, self.tls, cluster, revoked) for address in wanted.values()))
        return dict(zip(wanted, said, strict=True))

    async def run(self) -> None:
        while True:
            known = await look_around(self.order, self.home, self.tls, self.known)
            if known != self.known:
                self.known = known
                with contextlib.suppress(OSError):  # a full disk: what is written there is only older
                    self.home.write("peers.json", Seen(peers=list(known.values())))
                self.changed()
            await asyncio.sleep(PROBE_SECONDS)
