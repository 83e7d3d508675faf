"""X.509 as Baton uses it: an authority per environment, a certificate per machine, a list of revoked ones. Pure: time is an argument.

Contract and reasons: docs/decisions/0030-certificates.md. Keys are EC P-256. A certificate is good for both ends of a connection, for every
router is a server and a client of its peers.
"""

import ipaddress
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

EARLIER = timedelta(hours=48)  # valid from so long before issue: clocks of machines differ
AUTHORITY_LIFE = timedelta(days=20 * 365)
MACHINE_LIFE = timedelta(days=365)  # renewed after two thirds, so the portal may be away for four months
LOOPBACK = ("localhost", "127.0.0.1")  # a machine's own runtimes reach their router there


class NotARequest(ValueError):  # noqa: N818 - said by name
    """What was sent is no certificate signing request that can be signed; the message says why."""


class CannotBridge(ValueError):  # noqa: N818 - said by name
    """The former authority cannot vouch for its successor; the message says why."""


def make_authority(name: str, now: datetime) -> tuple[str, bytes]:
    """A new authority. Returns: its certificate (PEM) and its private key (PKCS 8, PEM, unencrypted: encrypt it before it is kept)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    certificate = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)  # machines, and the authority that follows it
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate), key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def bridge(former: str, key: bytes, successor: str, now: datetime) -> str:
    """The successor's key, certified by the former authority (PEM). Beside a certificate that the successor gave, it lets whoever trusts
    only the former one accept it: an etcd that runs has read once for all whom it trusts.

    Raises:
        CannotBridge: the former authority may certify machines only.
    """
    issuer, subject = x509.load_pem_x509_certificate(former.encode()), x509.load_pem_x509_certificate(successor.encode())
    if issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0:
        raise CannotBridge("it was made by an earlier version of Baton and may certify machines only")
    public = subject.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    builder = _builder(subject.subject, issuer.subject, public, now, issuer.not_valid_after_utc - now, authority=issuer)
    made = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(_private(key), hashes.SHA256())
    )
    return _pem(made)


def end_of(certificate: str) -> datetime:
    """When a certificate (PEM) ends."""
    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc


def issue(authority: str, key: bytes, request: str, *, machine: str, names: Collection[str], now: datetime) -> x509.Certificate:
    """A machine's certificate. Of the request only the public key counts: who it is for, and which names it bears, is said here.

    Raises:
        NotARequest: `request` is none, is not signed by its own key, or its key is not EC P-256.
    """
    public = _public_key(request)
    issuer = x509.load_pem_x509_certificate(authority.encode())
    life = min(MACHINE_LIFE, issuer.not_valid_after_utc - now)  # nobody accepts it longer than its authority
    builder = _builder(_name(machine), issuer.subject, public, now, life, authority=issuer)
    return (
        builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(_private(key), hashes.SHA256())
    )


def revocations(authority: str, key: bytes, revoked: Mapping[int, datetime], *, number: int, now: datetime) -> bytes:
    """The list of revoked certificates (DER, which every etcd reads), by serial number with the moment of revocation.

    It is valid as long as its authority: there is no second place to fetch a newer one from, and etcd does not look at the date.
    """
    issuer = x509.load_pem_x509_certificate(authority.encode())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - EARLIER)
        .next_update(issuer.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_authority_id(issuer), critical=False)
    )
    for serial, at in sorted(revoked.items()):
        builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build())
    return builder.sign(_private(key), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def certified_names(machine: str, *hosts: str) -> list[str]:
    """What a machine's certificate names: itself, loopback, and its Internal IP (or host name) once it is known; while it moves, both."""
    return sorted({machine, *LOOPBACK, *filter(None, hosts)})


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
    authority: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder if authority is None else builder.add_extension(_authority_id(authority), critical=False)


def _authority_id(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _usage(*, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _public_key(request: str) -> ec.EllipticCurvePublicKey:
    try:
        asked = x509.load_pem_x509_csr(request.encode())
        proven = asked.is_signature_valid
        public = asked.public_key()
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise NotARequest(f"This is no certificate signing request in PEM: {error}") from None
    if not proven:
        raise NotARequest("The certificate signing request is not signed by the key that it asks to certify.")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise NotARequest("The key of the certificate signing request is not EC P-256.")
    return public


def _private(key: bytes) -> ec.EllipticCurvePrivateKey:
    found = serialization.load_pem_private_key(key, password=None)
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    return found


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
