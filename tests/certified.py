"""A certificate authority for tests without a portal, made by the product's own functions."""

import base64
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from runtimes import certificates
from runtimes.agent.certificate import make_request
from runtimes.protocol import CertificateAnswer, TlsFiles, Trust


class Authority:
    """Gives certificates, takes them back; `folder` holds its own certificate and what it gave by `files`."""

    def __init__(self, folder: Path, name: str = "test") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self.key = certificates.make_authority(name, datetime.now(UTC))
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
        return CertificateAnswer(certificate=made.public_bytes(serialization.Encoding.PEM).decode(), authority=self.certificate)

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
        self._make_list()

    def trust(self, machine: str, host: str = "") -> Trust:
        names = certificates.certified_names(machine, host)
        return Trust(authority=self.certificate, revoked=base64.b64encode(self.list).decode(), names=names)

    def _make_list(self) -> None:
        self.lists += 1
        self.list = certificates.revocations(self.certificate, self.key, self.revoked, number=self.lists, now=datetime.now(UTC))
        self.revoked_file.write_bytes(self.list)
