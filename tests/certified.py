"""A certificate authority for tests without a portal, made by the product's own functions."""

import base64
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from runtimes import certificates
from runtimes.agent.certificate import make_request
from runtimes.protocol import CertificateAnswer, TlsFiles, Trust


class Authority:
    """Gives certificates, takes them back; `folder` holds its own certificate and what it gave by `files`."""

    def __init__(self, folder: Path, name: str = "test") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self.key = certificates.make_authority(name, datetime.now(UTC))
        self.former, self.bridge = "", ""
        self.taken_back: list[str] = []
        self.revoked: dict[int, datetime] = {}
        self.issued: list[x509.Certificate] = []
        self.lists = 0
        self.list = b""
        self.revoked_file = folder / "revoked.crl"
        self._make_list()

    def answer(self, request: str, machine: str, host: str = "", now: datetime | None = None) -> CertificateAnswer:
        names = certificates.certified_names(machine, host)
        moment = now or datetime.now(UTC)
        made = certificates.issue(self.certificate, self.key, request, machine=machine, names=names, now=moment)
        self.issued.append(made)
        pem = made.public_bytes(serialization.Encoding.PEM).decode()
        return CertificateAnswer(certificate=pem + self.bridge, authority=self.certificate + self.former)

    def renew(self) -> None:
        """As runtimes.authority.renew."""
        now, former, key = datetime.now(UTC), self.certificate, self.key
        self.certificate, self.key = certificates.make_authority("renewed", now)
        self.former, self.bridge = former, certificates.bridge(former, key, self.certificate, now)
        self._make_list()

    def retire(self) -> None:
        self.former = ""

    def files(self, machine: str, now: datetime | None = None) -> TlsFiles:
        """A machine with a certificate, as its agent would lay it down."""
        private, request = make_request(machine)
        answer = self.answer(request, machine, now=now)
        authority, own = self.folder / f"{machine}-authority.pem", self.folder / f"{machine}.pem"
        authority.write_text(answer.authority)
        own.write_bytes(private + answer.certificate.encode())
        return TlsFiles(authority=str(authority), machine=str(own))

    def revoke(self, certificate: x509.Certificate) -> None:
        self.revoked[certificate.serial_number] = datetime.now(UTC)
        self.taken_back.append(str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))
        self._make_list()

    def trust(self, machine: str, host: str = "") -> Trust:
        names = certificates.certified_names(machine, host)
        revoked = base64.b64encode(self.list).decode()
        return Trust(authority=self.certificate + self.former, revoked=revoked, names=names, taken_back=self.taken_back)

    def _make_list(self) -> None:
        self.lists += 1
        self.list = certificates.revocations(self.certificate, self.key, self.revoked, number=self.lists, now=datetime.now(UTC))
        self.revoked_file.write_bytes(self.list)
