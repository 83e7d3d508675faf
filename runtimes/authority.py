"""Who may speak to an environment's routers: its own authority, the certificates it gave, and those it took back.

The environment's authority is made when its first machine asks for a certificate. Writes CertificateAuthority and MachineCertificate;
whoever changes what machines must know raises their orders (fleet.touch).
"""

import base64
from datetime import datetime

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db import transaction
from django.db.models import F

from portal.errors import Invalid, NotAllowed
from portal.models import Environment
from runtimes import certificates, protocol
from runtimes.models import CertificateAuthority, Machine, MachineCertificate, Router


def trust(machine: Machine) -> protocol.Trust | None:
    """What the machine's agent needs to know of its environment's authority; None while no machine has asked for a certificate."""
    known: CertificateAuthority | None = getattr(machine.environment, "certificate_authority", None)
    if known is None:
        return None
    router: Router | None = getattr(machine, "router", None)
    names = certificates.certified_names(machine.name, router.desired_host if router is not None else "")
    return protocol.Trust(authority=known.certificate, revoked=known.revoked, names=names)


@transaction.atomic
def issue(machine: Machine, request: str, *, now: datetime) -> protocol.CertificateAnswer:
    """Sign a machine's request and note the certificate. Raises Invalid for a request that cannot be signed, NotAllowed without the key."""
    authority = _authority(machine.environment, now)
    key = _key(authority)
    router: Router | None = getattr(machine, "router", None)
    names = certificates.certified_names(machine.name, router.desired_host if router is not None else "")
    try:
        made = certificates.issue(authority.certificate, key, request, machine=machine.name, names=names, now=now)
    except certificates.NotARequest as error:
        raise Invalid(str(error), field="request") from None
    MachineCertificate.objects.filter(authority=authority, expires_at__lt=now - certificates.EARLIER).delete()
    MachineCertificate.objects.create(
        authority=authority,
        machine=machine,
        name=machine.name,
        serial=f"{made.serial_number:x}",
        names=names,
        issued_at=now,
        expires_at=made.not_valid_after_utc,
    )
    pem = made.public_bytes(serialization.Encoding.PEM).decode()
    return protocol.CertificateAnswer(certificate=pem, authority=authority.certificate)


@transaction.atomic
def revoke(machine: Machine, *, because: str, now: datetime) -> bool:
    """Take back every certificate of a machine. Returns: had it any; then the orders of its environment's machines have changed."""
    valid = MachineCertificate.objects.filter(machine=machine, revoked_at=None, expires_at__gt=now)
    if not valid.update(revoked_at=now, revoked_because=because):
        return False
    # The UPDATE is the lock: of two revocations at once the second makes its list when the first has committed.
    CertificateAuthority.objects.filter(environment_id=machine.environment_id).update(revoked_number=F("revoked_number") + 1)
    authority = CertificateAuthority.objects.get(environment_id=machine.environment_id)
    listed = {
        int(each.serial, 16): each.revoked_at
        for each in authority.issued.filter(revoked_at__isnull=False, expires_at__gt=now - certificates.EARLIER)
        if each.revoked_at is not None
    }
    data = certificates.revocations(authority.certificate, _key(authority), listed, number=authority.revoked_number, now=now)
    CertificateAuthority.objects.filter(pk=authority.pk).update(revoked=base64.b64encode(data).decode())
    return True


def _authority(environment: Environment, now: datetime) -> CertificateAuthority:
    known = CertificateAuthority.objects.filter(environment=environment).first()
    if known is not None:
        return known
    certificate, key = certificates.make_authority(f"Baton {environment.cluster.hex[:12]}", now)
    revoked = certificates.revocations(certificate, key, {}, number=1, now=now)
    made, _ = CertificateAuthority.objects.get_or_create(  # of two machines that ask at once, one makes it
        environment=environment,
        defaults={
            "certificate": certificate,
            "encrypted_key": _cipher().encrypt(key).decode(),
            "revoked": base64.b64encode(revoked).decode(),
            "created_at": now,
        },
    )
    return made


def _key(authority: CertificateAuthority) -> bytes:
    try:
        return _cipher().decrypt(authority.encrypted_key.encode())
    except InvalidToken:
        raise NotAllowed(
            f"The {authority} cannot sign: its key was encrypted under another BATON_SECRET_KEY. "
            "Start the portal with the former secret key."
        ) from None


def _cipher() -> MultiFernet:
    """Encrypts under the secret key; decrypts under former ones too (settings.SECRET_KEY_FALLBACKS)."""
    return MultiFernet([_fernet(secret) for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)])


def _fernet(secret: str | bytes) -> Fernet:
    material = secret if isinstance(secret, bytes) else secret.encode()
    derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"baton: keys of certificate authorities").derive(material)
    return Fernet(base64.urlsafe_b64encode(derived))
