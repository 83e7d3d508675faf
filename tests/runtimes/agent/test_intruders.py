"""Who has no certificate of the environment, and what becomes of him at a real router; and renewal under a leading runtime."""

import asyncio
import base64
import hashlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from runtimes.agent.peers import probe
from runtimes.agent.router import LEAVE_SECONDS, Cleared, pick_port
from runtimes.process.etcd import Etcd, OutcomeUnknown, put, read, unchanged
from runtimes.process.tls import ClientTls
from runtimes.protocol import TimingProfile, TlsFiles, encode
from tests.certified import Authority
from tests.runtimes.agent.conftest import Host, LittlePortal, cluster, eventually
from tests.runtimes.agent.test_failover import EXTERNAL, Landscape

pytestmark = pytest.mark.journey
ETCD = "/usr/bin/etcd"
LEADER = "/baton/1/leaders/g1"


def knock(port: int, context: ssl.SSLContext | None, path: str) -> str:
    """What a router's port answers: an HTTP status, or "refused: …"."""
    connection: http.client.HTTPConnection = (
        http.client.HTTPConnection("127.0.0.1", port, timeout=3)
        if context is None
        else http.client.HTTPSConnection("127.0.0.1", port, timeout=3, context=context)
    )
    body = json.dumps({"key": base64.b64encode(LEADER.encode()).decode()})
    try:
        connection.request("POST" if path.startswith("/v3") else "GET", path, body if path.startswith("/v3") else None)
        answer = connection.getresponse()
        data = answer.read()
        return f"{answer.status} {data[:60]!r}"
    except (OSError, http.client.HTTPException) as error:
        return f"refused: {error}"
    finally:
        connection.close()


def without_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def bearing(files: TlsFiles) -> ssl.SSLContext:
    """He shows this certificate and accepts whoever answers."""
    context = without_certificate()
    context.load_cert_chain(files.machine)
    return context


def take_the_lead(url: str, tls: TlsFiles) -> bool:
    """The transaction that makes a leader, as a runtime process sends it."""

    async def attempt() -> bool:
        client = Etcd(url, tls)
        try:
            return (await client.transact([unchanged(LEADER, 0)], [put(LEADER, "me"), read(LEADER)], [], timeout=3)).succeeded
        except OutcomeUnknown:
            return False
        finally:
            await client.close()

    return asyncio.run(attempt())


def joins(peer: str, own: TlsFiles, authority: str, folder: Path) -> tuple[int, str]:
    """An etcd that wants to be a member of the cluster behind `peer`. Returns: its exit status and what it said."""
    mine, client = (f"https://127.0.0.1:{pick_port('127.0.0.1')}" for _ in range(2))
    command = [ETCD, "--name=intruder", f"--data-dir={folder / 'intruder'}", f"--listen-peer-urls={mine}"]
    command += [f"--initial-advertise-peer-urls={mine}", f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
    command += [f"--initial-cluster=external01={peer},intruder={mine}", "--initial-cluster-state=existing"]
    for prefix in ("", "peer-"):
        command += [f"--{prefix}cert-file={own.machine}", f"--{prefix}key-file={own.machine}"]
        command += [f"--{prefix}trusted-ca-file={authority}", f"--{prefix}client-cert-auth=true"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture
def router(host: Host, portal: LittlePortal) -> tuple[int, int]:
    """(client port, peer port) of a running router."""
    order = cluster("external01")["external01"]
    portal.order("external01", router=order)
    host.start()
    found = eventually(
        lambda: report.router if (report := portal.last("external01")) and report.router and report.router.state == "running" else None, 20
    )
    return found.client_port, order.peer_port


def test_nobody_without_a_certificate_of_the_environment_reads_leads_or_joins(
    router: tuple[int, int], portal: LittlePortal, host: Host, tmp_path: Path
) -> None:
    client_port, peer_port = router
    url = f"https://127.0.0.1:{client_port}"
    other = Authority(tmp_path / "production", "another environment")
    alone = Authority(tmp_path / "alone", "made by hand")  # its own authority: what a self-signed certificate comes to
    theirs = other.files("external01")
    # The authority's certificate is no secret: everybody may trust the router. What counts is whom it trusts.
    ours = str(host.home / "tls" / "authority.pem")
    intruders = {
        "plain": None,
        "no certificate": without_certificate(),
        "self-signed": bearing(alone.files("external01")),
        "another environment's": bearing(theirs),
    }
    for name, context in intruders.items():
        for port, path in ((client_port, "/v3/kv/range"), (client_port, "/health"), (peer_port, "/members"), (peer_port, "/version")):
            answer = knock(port, context, path)
            assert answer.startswith("refused: ") or answer.startswith("400 b'Client sent an HTTP request to an HTTPS"), (
                name,
                path,
                answer,
            )
    assert not take_the_lead(url, TlsFiles(authority=ours, machine=theirs.machine))
    status, said = joins(f"https://127.0.0.1:{peer_port}", theirs, ours, tmp_path)
    assert status != 0 and "cluster" in said, said

    # with the machine's own it is all possible: what was refused was the certificate
    own = TlsFiles(authority=ours, machine=str(host.home / "tls" / "machine.pem"))
    assert knock(client_port, bearing(own), "/v3/kv/range").startswith("200 ")
    assert knock(peer_port, bearing(own), "/version").startswith("200 ")
    assert take_the_lead(url, own)
    assert portal.last("external01").router.state == "running"


def test_a_revoked_certificate_is_refused_from_the_next_connection_on(router: tuple[int, int], portal: LittlePortal) -> None:
    client_port, peer_port = router
    stolen = portal.authority.files("external02")
    mark = portal.authority.issued[-1]
    assert knock(client_port, bearing(stolen), "/v3/kv/range").startswith("200 ")
    assert asyncio.run(probe("127.0.0.1", peer_port, ClientTls(stolen))) == ""
    portal.authority.revoke(mark)
    portal.tell_trust()
    eventually(lambda: knock(client_port, bearing(stolen), "/v3/kv/range").startswith("refused: "))
    assert knock(peer_port, bearing(stolen), "/members").startswith("refused: ")
    assert not take_the_lead(f"https://127.0.0.1:{client_port}", stolen)
    assert "does not accept this machine's certificate" in asyncio.run(probe("127.0.0.1", peer_port, ClientTls(stolen)))
    time.sleep(1.5)
    assert portal.last("external01").router.state == "running", "the machine's own goes on"


def connected(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection that was made and stands, with one answer read from it."""
    wrapped = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 3))
    wrapped.sendall(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert wrapped.recv(4096).startswith(b"HTTP/1.1 200")
    return wrapped


def stands(connection: ssl.SSLSocket) -> bool:
    """Does the router still answer on it."""
    try:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        return connection.recv(4096).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def stranger(port: int, files: TlsFiles) -> subprocess.Popen[str]:
    """Another program of this machine that holds a connection to the client port, and says so; it ends when the connection does."""
    program = (
        "import socket, ssl, sys\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE\n"
        f"context.load_cert_chain({files.machine!r})\n"
        f"held = context.wrap_socket(socket.create_connection(('127.0.0.1', {port})))\n"
        "held.sendall(b'GET /version HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); print(held.recv(12), flush=True)\n"
        "held.settimeout(60)\n"
        "while held.recv(4096): pass\n"
    )
    made = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None and "HTTP/1.1" in made.stdout.readline()
    return made


def test_connections_that_stood_when_their_certificate_was_revoked_end_within_seconds(
    router: tuple[int, int], portal: LittlePortal, host: Host
) -> None:
    client_port, peer_port = router
    stolen = portal.authority.files("external02")
    mark = portal.authority.issued[-1]
    peer = connected(peer_port, bearing(stolen))
    local = stranger(client_port, stolen)
    time.sleep(2.0)
    assert stands(peer) and local.poll() is None, "nothing ends them while the certificate is good"
    started = launched(host)

    portal.authority.revoke(mark)
    portal.tell_trust()
    began = time.monotonic()
    try:
        eventually(lambda: not stands(peer) and local.poll() is not None, within=LEAVE_SECONDS + 8)
        assert time.monotonic() - began > LEAVE_SECONDS - 1, "the router does not restart for connections that end by themselves"
    finally:
        peer.close()
        local.kill()
        local.communicate(timeout=5)
    restarted = eventually(lambda: (launch := launched(host)) != started and launch, within=15)
    eventually(lambda: knock(client_port, bearing(own_of(host)), "/version").startswith("200 "), within=15)
    # another one is revoked whose bearer is not connected: nothing restarts
    portal.authority.files("external03")
    portal.authority.revoke(portal.authority.issued[-1])
    portal.tell_trust()
    time.sleep(LEAVE_SECONDS / 4)
    eventually(lambda: (host.home / "router" / "cleared.json").read_bytes() == cleared_by(host))
    assert launched(host) == restarted


def launched(host: Host) -> str:
    """Names the launch of a machine's router."""
    return str(json.loads((host.home / "router" / "launch.json").read_text())["launch"])


def own_of(host: Host) -> TlsFiles:
    return TlsFiles(authority=str(host.home / "tls" / "authority.pem"), machine=str(host.home / "tls" / "machine.pem"))


def cleared_by(host: Host) -> bytes:
    return encode(Cleared(revoked=hashlib.sha256((host.home / "tls" / "revoked.crl").read_bytes()).hexdigest()))


def shown(port: int, tls: TlsFiles) -> int:
    """Serial number of the certificate that a router shows."""
    with socket.create_connection(("127.0.0.1", port), 3) as plain, bearing(tls).wrap_socket(plain) as wrapped:
        data = wrapped.getpeercert(binary_form=True)
        assert data is not None
        return x509.load_der_x509_certificate(data).serial_number


def test_a_renewal_moves_no_leadership_and_restarts_nothing(tmp_path: Path, hosts: Callable[[str], Host], portal: LittlePortal) -> None:
    portal.certifies_as_of = datetime.now(UTC) - timedelta(days=300)  # more than two thirds of their life are over
    land = Landscape(tmp_path, hosts, portal, TimingProfile.WAN)  # no load of this computer shall move it either
    leader, follower = eventually(land.settled, within=30)

    def facts() -> list[object]:
        groups = [land.group(name) for name in EXTERNAL]
        pids = [land.pid(name) for name in EXTERNAL]
        routers = [(home.home / "router" / "keeper.sock").stat().st_ino for home in land.machines.values()]
        return [[(group.status, group.epoch) for group in groups], pids, routers]

    def old(name: str) -> bool:
        return x509.load_pem_x509_certificate((land.machines[name].home / "tls" / "machine.pem").read_bytes()).not_valid_after_utc < soon

    soon = datetime.now(UTC) + timedelta(days=100)
    before = facts()
    assert all(old(name) for name in land.machines)
    portal.certifies_as_of = None
    eventually(lambda: not any(old(name) for name in land.machines), within=90)
    renewed = {made.serial_number for made in portal.authority.issued if made.not_valid_after_utc > soon}
    own = TlsFiles(
        authority=str(land.machines[leader].home / "tls" / "authority.pem"), machine=str(land.machines[leader].home / "tls" / "machine.pem")
    )
    assert shown(portal.last(leader).router.client_port, own) in renewed, "etcd shows the new one without a restart"
    land.arrives("after the renewal")
    time.sleep(2.5)
    eventually(lambda: facts() == before)  # a moment of doubt on a busy computer is no change: epochs, processes and routers are
    land.machines[leader].kill_agent()
    eventually(lambda: all(peer.reachable for peer in portal.last(follower).peers))


@pytest.mark.long  # the lab's test_trust.py does so on three hosts
def test_the_authority_is_renewed_without_a_leadership_change_and_the_former_one_retired_with_hand_overs(
    tmp_path: Path, hosts: Callable[[str], Host], portal: LittlePortal
) -> None:
    land = Landscape(tmp_path, hosts, portal, TimingProfile.WAN)
    leader, _ = eventually(land.settled, within=30)

    def routers() -> dict[str, str]:
        return {name: launched(machine) for name, machine in land.machines.items()}

    def certificate_of(name: str) -> bytes:
        return (land.machines[name].home / "tls" / "machine.pem").read_bytes()

    def as_now() -> list[object]:
        return [[(group.status, group.epoch) for group in map(land.group, EXTERNAL)], routers()]

    before, former = as_now(), {name: certificate_of(name) for name in land.machines}
    portal.authority.renew()
    portal.tell_trust()
    eventually(lambda: all(certificate_of(name) != former[name] for name in land.machines), within=20)
    land.arrives("in the overlap")
    time.sleep(2.5)
    eventually(lambda: as_now() == before)  # neither a router restarts nor a leadership changes
    assert all(peer.reachable for name in land.machines for peer in portal.last(name).peers)

    began = routers()
    portal.authority.retire()
    portal.tell_trust()
    moved: list[str] = []

    def all_restarted() -> bool:
        who = land.leader()
        if who is not None and (not moved or moved[-1] != who):
            moved.append(who)
        return all(routers()[name] != began[name] for name in began)

    eventually(all_restarted, within=60)
    eventually(land.settled, within=20)
    land.arrives("after the former one is gone")
    events = [event for name in EXTERNAL for event in land.told(name)]
    anew = {event.epoch: event for event in events if event.epoch > before[0][EXTERNAL.index(leader)][1]}
    assert anew and all(event.cause == "deploy" for event in anew.values()), [(event.cause, event.actor) for event in anew.values()]
    assert any(event.actor.startswith("restart of the router on") for event in anew.values())
    # whoever bears a certificate of the former authority only is nobody now
    new = TlsFiles(authority=str(land.machines[leader].home / "tls" / "authority.pem"), machine=str(tmp_path / "former.pem"))
    (tmp_path / "former.pem").write_bytes(former["core01"])
    for name in land.machines:
        port = land.routers[name].peer_port  # it may be starting yet
        eventually(lambda port=port: "does not accept" in asyncio.run(probe("127.0.0.1", port, ClientTls(new))), within=20)
