"""Certificates of machines: when one counts, when another is asked for, and what a sibling's router answers without a good one."""

import asyncio
import base64
import ssl
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from runtimes import certificates
from runtimes.agent.certificate import Certificates, Held, make_request, read_certificate, why_not_valid, why_not_yet, why_renew
from runtimes.agent.client import PortalAway
from runtimes.agent.home import Home
from runtimes.agent.peers import probe
from runtimes.process.tls import ClientTls
from runtimes.protocol import CertificateAnswer, CertificateRequest, TlsFiles, Trust
from tests.certified import Authority

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
NAMES = ["10.0.0.1", "127.0.0.1", "external01", "localhost"]
HELD = Held(frozenset(NAMES), 7, NOW - timedelta(hours=48), NOW + timedelta(days=365), "CA")
TRUST = Trust(authority="CA", revoked="", names=NAMES)


# -------------------------------------------------------------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    ("at", "said"),
    [
        pytest.param(timedelta(0), "", id="now"),
        pytest.param(timedelta(days=-1), "", id="a clock a day behind the portal's"),
        pytest.param(timedelta(days=1), "", id="a clock a day ahead"),
        pytest.param(timedelta(hours=-48), "", id="a clock 48 hours behind"),
        pytest.param(timedelta(hours=-49), "set the clock", id="a clock 49 hours behind"),
        pytest.param(timedelta(days=364), "", id="the last day"),
        pytest.param(timedelta(days=366), "ended on", id="it has ended"),
    ],
)
def test_when_a_certificate_counts(at: timedelta, said: str) -> None:
    found = why_not_valid(HELD, NOW + at)
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize(
    ("held", "trust", "revoked", "at", "said"),
    [
        pytest.param(HELD, TRUST, {8}, 0, "", id="all is well"),
        pytest.param(None, None, set(), 0, "has none", id="the first one, before orders say anything"),
        pytest.param(None, TRUST, set(), 0, "has none", id="the first one"),
        pytest.param(HELD, None, set(), 0, "no authority", id="joined elsewhere, where nobody has asked before"),
        pytest.param(HELD, Trust(authority="CB", revoked="", names=NAMES), set(), 0, "another authority", id="joined elsewhere"),
        pytest.param(HELD, TRUST, {7, 8}, 0, "taken back", id="registered anew"),
        pytest.param(HELD, Trust(authority="CA", revoked="", names=["x"]), set(), 0, "it shall name x", id="another address"),
        pytest.param(HELD, TRUST, set(), 240, "", id="before two thirds of its life"),
        pytest.param(HELD, TRUST, set(), 244, "ends on", id="after two thirds of its life"),
    ],
)
def test_when_another_certificate_is_asked_for(held: Held | None, trust: Trust | None, revoked: set[int], at: int, said: str) -> None:
    found = why_renew(held, trust, frozenset(revoked), NOW + timedelta(days=at))
    assert said in found and bool(said) == bool(found)


def test_a_router_waits_for_a_certificate_that_bears_its_address() -> None:
    assert "no certificate yet" in why_not_yet(None, {"10.0.0.1"})
    assert "does not name 10.0.0.9" in why_not_yet(HELD, {"10.0.0.1", "10.0.0.9"})
    assert why_not_yet(HELD, {"external01", "10.0.0.1"}) == ""


@pytest.mark.parametrize("host", ["fd00::2", "FD00::2", "fd00:0:0::2", "external01.example.com"])
def test_an_address_may_be_spelt_in_any_way(host: str, tmp_path: Path) -> None:
    private, request = make_request("external01")
    authority = Authority(tmp_path)
    answer = authority.answer(request, "external01", host, NOW)
    held = read_certificate(private + answer.certificate.encode(), answer.authority)
    assert why_not_yet(held, {"external01", host}) == ""
    assert why_renew(held, authority.trust("external01", host), frozenset(), NOW) == "", "else it would ask for ever"


# ------------------------------------------------------------------------------------------------------------------ certificates


def test_a_certificate_says_who_where_and_for_what(tmp_path: Path) -> None:
    _, request = make_request("whatever the agent says")
    authority = Authority(tmp_path)
    pem = authority.answer(request, "external01", "10.0.0.1", NOW).certificate
    made = x509.load_pem_x509_certificate(pem.encode())
    assert made.not_valid_before_utc == NOW - timedelta(hours=48)
    assert made.subject.rfc4514_string() == "CN=external01", "of the request only the key counts"
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"external01", "localhost"}
    assert {str(each) for each in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "10.0.0.1"}
    purposes = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def foreign_signature() -> str:
    """A request for one's key, its signature broken."""
    _, pem = make_request("external01")
    data = bytearray(x509.load_pem_x509_csr(pem.encode()).public_bytes(serialization.Encoding.DER))
    data[-1] ^= 1
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{base64.b64encode(data).decode()}\n-----END CERTIFICATE REQUEST-----\n"


def signed_by(key: "ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey") -> str:
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        pytest.param(lambda: "please", "no certificate signing request", id="no request"),
        pytest.param(lambda: "", "no certificate signing request", id="nothing"),
        pytest.param(foreign_signature, "signed by the key|no certificate signing request", id="somebody else's key"),
        pytest.param(lambda: signed_by(rsa.generate_private_key(65537, 2048)), "not EC P-256", id="another kind of key"),
        pytest.param(lambda: signed_by(ec.generate_private_key(ec.SECP384R1())), "not EC P-256", id="another curve"),
    ],
)
def test_what_is_not_signed(tmp_path: Path, request_of: Callable[[], str], said: str) -> None:
    with pytest.raises(certificates.NotARequest, match=said):
        Authority(tmp_path).answer(request_of(), "external01")


def test_a_certificate_of_another_authority_or_for_another_key_is_not_taken(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    private, request = make_request("external01")
    other, _ = make_request("external01")
    given = ours.answer(request, "external01").certificate.encode()
    assert read_certificate(private + given, ours.certificate).names == {"external01", "localhost", "127.0.0.1"}
    with pytest.raises(ValueError, match="not signed by"):
        read_certificate(private + given, theirs.certificate)
    with pytest.raises(ValueError, match="another private key"):
        read_certificate(other + given, ours.certificate)


def test_the_list_of_revoked_names_them_and_is_what_etcd_reads(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.files("external01")
    authority.revoke(authority.issued[0])
    found = x509.load_der_x509_crl(authority.list)
    assert [entry.serial_number for entry in found] == [authority.issued[0].serial_number]
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode()).public_key()
    assert isinstance(issuer, ec.EllipticCurvePublicKey)
    assert found.is_signature_valid(issuer)


# --------------------------------------------------------------------------------------------------------------------- the agent


class Portal:
    """Gives certificates when it is there."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.away = False
        self.asked = 0

    async def certify(self, request: CertificateRequest) -> CertificateAnswer:
        self.asked += 1
        if self.away:
            raise PortalAway("it is away")
        return self.authority.answer(request.request, "external01", "10.0.0.1")


def laid(home: Home) -> bytes:
    """The certificate file; empty while there is none."""
    path = Path(home.tls.machine)
    return path.read_bytes() if path.exists() else b""


def replace_by(file: str, by: str) -> None:
    Path(by).replace(file)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is a file's or another task's
            await asyncio.sleep(0.01)


def test_an_agent_asks_lays_down_privately_and_asks_again_when_it_was_taken_back(tmp_path: Path) -> None:
    async def story() -> None:
        portal, home = Portal(tmp_path / "authority"), Home(tmp_path / "home")
        part = Certificates(home, "external01", portal.certify, lambda: None)
        assert "revoked" in part.awaited("10.0.0.1")
        work = asyncio.create_task(part.run())
        await until(lambda: part.held is not None)
        part.take(portal.authority.trust("external01", "10.0.0.1"))
        assert part.awaited("10.0.0.1") == part.trouble() == ""
        for path in (home.revoked, Path(home.tls.machine), Path(home.tls.authority)):
            assert path.stat().st_mode & 0o777 == 0o600
        assert home.revoked.parent.stat().st_mode & 0o777 == 0o700
        first = part.held
        portal.authority.revoke(portal.authority.issued[0])
        part.take(portal.authority.trust("external01", "10.0.0.1"))
        await until(lambda: part.held != first)
        assert [entry.serial_number for entry in x509.load_der_x509_crl(home.revoked.read_bytes())] == [first.serial]
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

        again = Certificates(home, "external01", portal.certify, lambda: None)
        assert again.held == part.held, "a restarted agent knows what it has"
        assert portal.asked == 2

    asyncio.run(story())


def test_a_portal_that_is_away_is_asked_again_and_the_former_certificate_stays(tmp_path: Path) -> None:
    async def story() -> None:
        portal, home = Portal(tmp_path / "authority"), Home(tmp_path / "home")
        part = Certificates(home, "external01", portal.certify, lambda: None)
        portal.away = True
        work = asyncio.create_task(part.run())
        await until(lambda: portal.asked > 1)
        assert part.held is None and laid(home) == b""
        portal.away = False
        await until(lambda: part.held is not None)
        held, before = part.held, laid(home)
        portal.away = True
        part.take(portal.authority.trust("external01", "10.0.0.9"))
        asked = portal.asked
        await until(lambda: portal.asked > asked)
        assert part.held == held and laid(home) == before
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(story())


# ----------------------------------------------------------------------------------------------------------------------- probing


async def ask(context: ssl.SSLContext | None, tls: TlsFiles, cluster: str = "", revoked: Collection[int] = ()) -> str:
    """What a probe says of a server with this context that answers as etcd does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(4096)
            writer.write(b"HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: 87e5\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # refused handshakes are what is tested
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        return await probe("127.0.0.1", server.sockets[0].getsockname()[1], ClientTls(tls), cluster, revoked)
    finally:
        server.close()


def router_of(authority: Authority, trusts: Authority, now: datetime | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.files("sibling", now).machine)
    context.load_verify_locations(cadata=trusts.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_a_probe_tells_whose_certificate_is_refused(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs", "theirs")
    mine = ours.files("external01")
    now = datetime.now(UTC)

    def said(context: ssl.SSLContext | None) -> str:
        return asyncio.run(ask(context, mine))

    assert said(router_of(ours, ours)) == ""
    assert asyncio.run(ask(router_of(ours, ours), mine, "87e5")) == ""
    assert asyncio.run(ask(router_of(ours, ours), mine, "1")) == "it is of another cluster"
    shown = frozenset(each.serial_number for each in ours.issued)
    taken_back = "it bears a certificate that was taken back"
    assert asyncio.run(ask(router_of(ours, ours), mine, revoked=shown)) == "", "another's"
    server = router_of(ours, ours)
    assert asyncio.run(ask(server, mine, revoked={ours.issued[-1].serial_number})) == taken_back, "etcd itself would not look"
    assert said(router_of(theirs, ours)).startswith("its certificate is not accepted here: ")
    assert "does not accept this machine's certificate" in said(router_of(ours, theirs))
    assert "is no router of this cluster" in said(None)
    assert "expired" in said(router_of(ours, ours, now - timedelta(days=366)))
    assert "not yet valid" in said(router_of(ours, ours, now + timedelta(days=3)))
    assert said(router_of(ours, ours, now + timedelta(days=1))) == "", "clocks a day apart do no harm"
    nothing = TlsFiles(authority=str(tmp_path / "none"), machine=str(tmp_path / "none"))
    assert asyncio.run(probe("127.0.0.1", 1, ClientTls(nothing))) == "this machine has no certificate yet"
    assert "refused" in asyncio.run(probe("127.0.0.1", 1, ClientTls(mine))).lower()


def test_a_client_shows_a_renewed_certificate_from_the_next_connection_on(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine = authority.files("external01")
    tls = ClientTls(mine)
    shown: list[str] = []

    async def once(port: int) -> None:
        tls.refresh()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls.context, server_hostname="127.0.0.1")
        await reader.read()
        writer.close()

    async def story() -> None:
        def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            shown.append(writer.get_extra_info("peercert")["serialNumber"].lstrip("0").lower())
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=router_of(authority, authority))
        port = server.sockets[0].getsockname()[1]
        await once(port)
        renewed = authority.files("renewed")
        replace_by(mine.machine, renewed.machine)
        await once(port)
        server.close()

    asyncio.run(story())
    serials = {f"{made.serial_number:x}" for made in authority.issued}
    assert len(set(shown)) == 2 and set(shown) <= serials


def test_while_the_authority_is_renewed_everybody_accepts_everybody_and_afterwards_the_former_counts_no_more(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    before = authority.files("before")  # trusts the former one only, as an etcd that was started before
    former = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    former.load_cert_chain(before.machine)
    former.load_verify_locations(cafile=before.authority)
    former.verify_mode = ssl.CERT_REQUIRED
    authority.renew()
    mine = authority.files("external01")
    both = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    both.load_cert_chain(mine.machine)
    both.load_verify_locations(cafile=mine.authority)
    both.verify_mode = ssl.CERT_REQUIRED

    def said(context: ssl.SSLContext, tls: TlsFiles) -> str:
        return asyncio.run(ask(context, tls))

    assert [said(server, client) for server in (former, both) for client in (before, mine)] == ["", "", "", ""]
    authority.retire()
    after = authority.files("external02")
    only = router_of(authority, authority)  # trusts the new one only
    assert said(only, after) == said(former, mine) == "", "a router that has yet to restart takes the new ones too"
    assert "does not accept" in said(only, before)
    assert said(former, after).startswith("its certificate is not accepted here: ")


def test_a_client_that_goes_on_trusts_a_retired_authority_no_more(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine = authority.files("external01")
    tls, server = ClientTls(mine), router_of(authority, authority)

    async def handshake() -> str:
        tls.refresh()
        running = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=server)
        try:
            port = running.sockets[0].getsockname()[1]
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls.context, server_hostname="127.0.0.1")
            writer.close()
            return ""
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        finally:
            running.close()

    assert asyncio.run(handshake()) == ""
    authority.renew()
    authority.retire()
    replacement = authority.files("later")
    replace_by(mine.machine, replacement.machine)
    replace_by(mine.authority, replacement.authority)
    assert asyncio.run(handshake()) != "", "one and the same client, from its next connection on"
