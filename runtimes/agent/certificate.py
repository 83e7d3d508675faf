"""This machine's certificate: asked for with the agent's credential, renewed in time, laid down where router and runtimes read it.

The private key is made here and never leaves the machine. Nothing is restarted for a new certificate: etcd and our own clients read the
file anew at the next handshake (docs/decisions/0030-certificates.md). Imported by the agent only, for its library takes time to load.
"""

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runtimes.agent import linux
from runtimes.agent.client import NotKnown, PortalAway
from runtimes.agent.decide import retry_delay
from runtimes.agent.home import Home
from runtimes.protocol import RENEW_AFTER, CertificateAnswer, CertificateRequest, Trust

log = structlog.get_logger()
LOOK_SECONDS = 60.0  # between two looks at the calendar
LONGEST_WAIT = 60.0  # between two tries
ONE_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


@dataclass(frozen=True)
class Held:
    """What the certificate in machine.pem says."""

    names: frozenset[str]
    serial: int
    not_before: datetime
    not_after: datetime
    authority: str  # PEM of the authority that gave it, and after it of a former one that is trusted too

    @property
    def renewed_from(self) -> datetime:
        """From when on another one is asked for."""
        return self.not_before + (self.not_after - self.not_before) * RENEW_AFTER


def taken_back(home: Home) -> frozenset[int]:
    """Serial numbers of the certificates that were taken back, as far as this machine was told."""
    try:
        return frozenset(entry.serial_number for entry in x509.load_der_x509_crl(home.revoked.read_bytes()))
    except (OSError, ValueError):
        return frozenset()


def one_spelling(name: str) -> str:
    """As certificates bear it: FD00:0::2 is fd00::2 there."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def why_not_yet(held: Held | None, names: set[str]) -> str:
    """Why a router that must bear these names waits for a certificate; empty when this one will do."""
    if held is None:
        return "this machine has no certificate yet: its agent asks the portal for one"
    if missing := set(map(one_spelling, names)) - held.names:
        return f"this machine's certificate does not name {', '.join(sorted(missing))} yet: its agent asks the portal for another"
    return ""


def why_not_valid(held: Held, now: datetime) -> str:
    """Why a certificate does not count, by this machine's clock; empty when it does."""
    if now < held.not_before:
        return f"this machine's certificate is valid from {held.not_before:%Y-%m-%d} on, but its clock says {now:%Y-%m-%d}: set the clock"
    if now > held.not_after:
        return (
            f"this machine's certificate ended on {held.not_after:%Y-%m-%d} (its clock says {now:%Y-%m-%d}): "
            "let its agent reach the portal, or set the clock"
        )
    return ""


def why_renew(held: Held | None, trust: Trust | None, revoked: frozenset[int], now: datetime) -> str:
    """Why another certificate is to be asked for; empty when this one will do. `revoked`: serial numbers."""
    if held is None:
        return "this machine has none yet"
    if trust is None:
        return "its environment has no authority yet"
    if held.authority != trust.authority:
        return "its environment has another authority"
    if held.serial in revoked:
        return "the former one was taken back"
    if held.names != frozenset(map(one_spelling, trust.names)):
        return f"it shall name {', '.join(sorted(trust.names))}"
    if now >= held.renewed_from:
        return f"the former one ends on {held.not_after:%Y-%m-%d}"
    return ""


def make_request(machine: str) -> tuple[bytes, str]:
    """A new private key (PEM) and the request to certify it (PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, machine[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, request.public_bytes(serialization.Encoding.PEM).decode()


def read_certificate(pem: bytes, authority: str) -> Held:
    """The certificate in a PEM, given by this authority.

    Raises:
        ValueError: there is none, it is not signed by this authority, or a private key beside it is not its own.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    issuer = x509.load_pem_x509_certificate(authority.encode())  # the first: who gives certificates now
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, ValueError) as error:
        raise ValueError("it is not signed by the environment's authority") from error
    key = serialization.load_pem_private_key(pem, password=None)
    if key.public_key() != certificate.public_key():
        raise ValueError("it is for another private key")
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names = [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]
    return Held(frozenset(names), certificate.serial_number, certificate.not_valid_before_utc, certificate.not_valid_after_utc, authority)


def roots_of(authority: str) -> list[str]:
    """SHA-256 of each certificate in the authority's file, by which a router that runs is known to trust it."""
    return [hashlib.sha256(found.encode()).hexdigest() for found in ONE_CERTIFICATE.findall(authority)]


class Certificates:
    """Keeps machine.pem, authority.pem and revoked.crl as they have to be; `changed` is called after each change of them."""

    def __init__(
        self, home: Home, machine: str, ask: Callable[[CertificateRequest], Awaitable[CertificateAnswer]], changed: Callable[[], None]
    ) -> None:
        self.home = home
        self.machine = machine
        self.ask = ask
        self.changed = changed
        self.wake = asyncio.Event()
        self.trust: Trust | None = None
        self.ordered = False  # have orders ever said what to trust
        self.failures = 0
        self.again_at = 0.0  # monotonic
        self.held = self._read()

    def _read(self) -> Held | None:
        with contextlib.suppress(OSError, ValueError):
            return read_certificate(Path(self.home.tls.machine).read_bytes(), Path(self.home.tls.authority).read_text())
        return None

    # -------------------------------------------------------------------------------------------------------------- for the router

    def awaited(self, host: str) -> str:
        """What a router at this Internal IP waits for; empty when everything is here."""
        if not self.home.revoked.exists():
            return "the portal has not told yet which certificates are revoked"
        return why_not_yet(self.held, {self.machine, host})

    def trouble(self) -> str:
        """Why nobody will accept the certificate; empty when it is good, or when there is none."""
        return why_not_valid(self.held, datetime.now(UTC)) if self.held is not None else ""

    @property
    def roots(self) -> list[str]:
        """Whom an etcd that starts now trusts; a running one has read it once for all."""
        return roots_of(self.held.authority) if self.held is not None else []

    @property
    def revoked_list(self) -> str:
        """Digest of the list of revoked certificates that is in force here; empty: none was told yet."""
        try:
            return hashlib.sha256(self.home.revoked.read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""

    @property
    def just_revoked(self) -> frozenset[str]:
        """Machines whose certificates were taken back of late."""
        return frozenset(self.trust.taken_back) if self.trust is not None else frozenset()

    # --------------------------------------------------------------------------------------------------------------------- orders

    def take(self, trust: Trust | None) -> None:
        if self.ordered and trust == self.trust:
            return
        if trust is not None:
            self._keep_revoked(base64.b64decode(trust.revoked))
        self.trust, self.ordered = trust, True
        self.wake.set()

    def _keep_revoked(self, data: bytes) -> None:
        path = self.home.revoked
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == data:
                return
        x509.load_der_x509_crl(data)  # a file that etcd cannot read would stop every handshake
        linux.write_atomically(path, data)
        self.changed()

    # ----------------------------------------------------------------------------------------------------------------------- loop

    async def run(self) -> None:
        while True:
            self.wake.clear()
            because = self._why()
            wait = self.again_at - time.monotonic()
            if because and wait <= 0:
                await self._renew(because)
                continue
            try:
                await asyncio.wait_for(self.wake.wait(), wait if because else LOOK_SECONDS)
            except TimeoutError:
                pass

    def asks_for_another(self) -> bool:
        """Is another certificate on its way."""
        return bool(self._why())

    def _why(self) -> str:
        if self.held is not None and not self.ordered:
            return ""  # it goes on with what it has until it is told otherwise
        return why_renew(self.held, self.trust, self._revoked(), datetime.now(UTC))

    def _revoked(self) -> frozenset[int]:
        if self.trust is None:
            return frozenset()
        return frozenset(entry.serial_number for entry in x509.load_der_x509_crl(base64.b64decode(self.trust.revoked)))

    async def _renew(self, because: str) -> None:
        private, request = make_request(self.machine)
        try:
            answer = await self.ask(CertificateRequest(request=request))
            pem = private + answer.certificate.encode()
            held = read_certificate(pem, answer.authority)
            linux.write_atomically(Path(self.home.tls.authority), answer.authority.encode())
            linux.write_atomically(Path(self.home.tls.machine), pem)
        except (NotKnown, PortalAway, OSError, ValueError) as error:
            self.failures += 1
            self.again_at = time.monotonic() + retry_delay(self.failures, first=0.5, longest=LONGEST_WAIT)
            if self.failures in (1, 5) or self.failures % 100 == 0:
                log.warning("certificate_not_renewed", text=f"This machine gets no certificate now ({because}): {error}.")
            return
        self.held = held
        # The orders that say the same are on their way; and a clock a year ahead finds every new certificate too old.
        self.failures += 1
        self.again_at = time.monotonic() + retry_delay(self.failures, first=0.5, longest=LONGEST_WAIT)
        names = ", ".join(sorted(held.names))
        log.info("certificate_taken", text=f"This machine's certificate names {names}, until {held.not_after:%Y-%m-%d} ({because}).")
        if not why_renew(held, self.trust, self._revoked(), datetime.now(UTC)):
            self.failures = 0
        self.changed()
