"""Who may speak to an environment's routers: its own authority, the certificates it gave, and those it took back.

The environment's authority is made when its first machine asks for a certificate, and renewed by a person (`renew`, then `retire`).
Writes CertificateAuthority and MachineCertificate; whoever changes what machines must know raises their orders (fleet.touch).
"""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db import transaction
from django.db.models import F, Max, Q

from portal.errors import Busy, Invalid, NotAllowed
from portal.models import Environment
from runtimes import certificates, protocol
from runtimes.models import CertificateAuthority, Machine, MachineCertificate, Router

DUE_BEFORE_END = timedelta(days=2 * 365)  # so long before its end its renewal is due: machines then hold certificates for a year yet
JUST_REVOKED = timedelta(days=1)
# One that ends within this time should have been replaced days ago.
OVERDUE = (certificates.MACHINE_LIFE + certificates.EARLIER) * (1 - protocol.RENEW_AFTER) - protocol.RENEWAL_LATE


def trust(machine: Machine) -> protocol.Trust | None:
    """What the machine's agent needs to know of its environment's authority; None while no machine has asked for a certificate."""
    known: CertificateAuthority | None = getattr(machine.environment, "certificate_authority", None)
    if known is None:
        return None
    return protocol.Trust(authority=_trusted(known), revoked=known.revoked, names=_names(machine), taken_back=known.taken_back)


def _names(machine: Machine) -> list[str]:
    """That its certificate shall bear. A router whose address changed runs on at the former one until it can listen at the new one, and
    the others look where a call comes from."""
    router: Router | None = getattr(machine, "router", None)
    if router is None:
        return certificates.certified_names(machine.name)
    wished, at = router.desired_host, urlsplit(router.observed_address).hostname or ""
    return certificates.certified_names(machine.name, wished, *([at] if at != wished.lower() else []))


@transaction.atomic
def issue(machine: Machine, request: str, *, now: datetime) -> protocol.CertificateAnswer:
    """Sign a machine's request and note the certificate. Raises Invalid for a request that cannot be signed, NotAllowed without the key."""
    authority = _authority(machine.environment, now)
    key = _key(authority)
    names = _names(machine)
    try:
        made = certificates.issue(authority.certificate, key, request, machine=machine.name, names=names, now=now)
    except certificates.NotARequest as error:
        raise Invalid(str(error), field="request") from None
    MachineCertificate.objects.filter(authority=authority, expires_at__lt=now - certificates.EARLIER).delete()
    MachineCertificate.objects.create(
        authority=authority,
        machine=machine,
        name=machine.name,
        given_by=authority.number,
        serial=f"{made.serial_number:x}",
        names=names,
        issued_at=now,
        expires_at=made.not_valid_after_utc,
    )
    pem = made.public_bytes(serialization.Encoding.PEM).decode()
    return protocol.CertificateAnswer(certificate=pem + authority.bridge, authority=_trusted(authority))


@transaction.atomic
def revoke(machine: Machine, *, because: str, now: datetime) -> bool:
    """Take back every certificate of a machine, and have the routers end its connections.

    Returns: had it any; then the orders of its environment's machines have changed."""
    lock(machine)
    valid = MachineCertificate.objects.filter(machine=machine, revoked_at=None, expires_at__gt=now)
    if not valid.update(revoked_at=now, revoked_because=because):
        return False
    # The UPDATE is the lock: of two revocations at once the second makes its list when the first has committed.
    CertificateAuthority.objects.filter(environment_id=machine.environment_id).update(revoked_number=F("revoked_number") + 1)
    authority = CertificateAuthority.objects.get(environment_id=machine.environment_id)
    CertificateAuthority.objects.filter(pk=authority.pk).update(
        revoked=_list_of_revoked(authority, _key(authority), now), taken_back=_just_revoked(authority, now)
    )
    return True


def lock(machine: Machine) -> str | None:
    """Inside a transaction: from here on nobody else gives this machine a certificate, or takes one back. (SQLite's lock is the
    transaction.) Returns: the digest of its credential as it is now; None: it was removed."""
    return Machine.objects.select_for_update().filter(pk=machine.pk).values_list("credential_digest", flat=True).first()


def _list_of_revoked(authority: CertificateAuthority, key: bytes, now: datetime) -> str:
    """Of this authority and those before: etcd compares serial numbers only, which are 160 random bits."""
    listed = {
        int(each.serial, 16): each.revoked_at
        for each in authority.issued.filter(revoked_at__isnull=False, expires_at__gt=now - certificates.EARLIER)
        if each.revoked_at is not None
    }
    data = certificates.revocations(authority.certificate, key, listed, number=authority.revoked_number, now=now)
    return base64.b64encode(data).decode()


def _just_revoked(authority: CertificateAuthority, now: datetime) -> list[str]:
    return sorted({each.name for each in authority.issued.filter(revoked_at__gt=now - JUST_REVOKED)})


# -------------------------------------------------------------------------------------------------------- an authority is renewed


@dataclass(frozen=True)
class Standing:
    """How an environment's authority is, for people."""

    authority: CertificateAuthority
    ends: datetime
    overlaps: bool  # the former one is trusted too
    with_former: list[str]  # machines whose agent holds no certificate of the present one yet
    reads_former: list[str]  # machines whose running router trusts only the former one: it accepts the present one's by the bridge
    due: str  # what a person is to do now, as a sentence; empty: nothing


def standing(environment: Environment, *, now: datetime) -> Standing | None:
    """None: no machine has asked for a certificate yet."""
    authority = CertificateAuthority.objects.filter(environment=environment).first()
    if authority is None:
        return None
    with_former = _with_former(authority, now)
    overdue = _overdue([environment], now).get(environment.pk, "")
    return Standing(
        authority,
        certificates.end_of(authority.certificate),
        bool(authority.former),
        with_former,
        _reads_former(authority),
        _due(authority, with_former, overdue, now),
    )


def standings_due(environments: Iterable[Environment], *, now: datetime) -> dict[int, str]:
    """What is due, by environment id: two queries, and some more for each that is being renewed."""
    environments = list(environments)
    found = list(CertificateAuthority.objects.filter(environment__in=environments).select_related("environment"))
    overdue = _overdue(environments, now) if found else {}
    sentences = {
        authority.environment_id: _due(
            authority, _with_former(authority, now) if authority.former else [], overdue.get(authority.environment_id, ""), now
        )
        for authority in found
    }
    return {pk: sentence for pk, sentence in sentences.items() if sentence}


def _overdue(environments: Iterable[Environment], now: datetime) -> dict[int, str]:
    """Machines with a router whose certificate ends because their agents do not get another one, by environment id, in a sentence."""
    good = Q(certificates__revoked_at=None)
    routers = Machine.objects.filter(environment__in=environments, joined_at__lt=now - JUST_REVOKED, router__desired_running=True)
    ending = routers.annotate(ends=Max("certificates__expires_at", filter=good)).filter(Q(ends=None) | Q(ends__lt=now + OVERDUE))
    told: dict[int, list[str]] = {}
    for pk, name, ends in ending.order_by("name").values_list("environment_id", "name", "ends"):
        when = "it has none" if ends is None else f"{'ends' if ends > now else 'ended'} on {ends:%Y-%m-%d}"
        told.setdefault(pk, []).append(f"{name} ({when})")
    remedy = "see the log of the agent there, and let it run and reach the portal. Without a certificate a router is refused by the others."
    return {pk: f"The certificate of {' and of '.join(names)} is not renewed: {remedy}" for pk, names in told.items()}


def _due(authority: CertificateAuthority, with_former: list[str], overdue: str, now: datetime) -> str:
    ends, said = certificates.end_of(authority.certificate), []
    try:
        _key(authority)
    except NotAllowed as refusal:
        said.append(f"{refusal.sentence} Until then no certificate is renewed.")
    if ends - now > OVERDUE:  # no certificate outlives its authority
        said.append(overdue)
    if authority.former and not with_former:
        said.append("Every machine has a certificate of the new authority: retire the former one.")
    if not authority.former and now > ends - DUE_BEFORE_END:
        said.append(f"The certificate authority ends on {ends:%Y-%m-%d}, and every certificate with it: renew it.")
    return " ".join(filter(None, said))


def words(found: Standing | None) -> str:
    """How an authority is, as sentences for a terminal."""
    if found is None:
        return "There is no authority yet: it is made when the first machine asks for a certificate."
    said = [f"Authority {found.authority.number} ends on {found.ends:%Y-%m-%d}."]
    if found.overlaps:
        said.append("The former one is trusted too.")
    said += [f"{name} has no certificate of {'the new one' if found.overlaps else 'it'} yet." for name in found.with_former]
    said += [f"The router on {name} has read only the former one." for name in found.reads_former]
    return " ".join([*said, *([found.due] if found.due else [])])


def _with_former(authority: CertificateAuthority, now: datetime) -> list[str]:
    machines = Machine.objects.filter(environment=authority.environment_id, joined_at__isnull=False)
    good = MachineCertificate.objects.filter(authority=authority, given_by=authority.number, revoked_at=None, expires_at__gt=now)
    return sorted(machines.exclude(pk__in=good.values("machine")).values_list("name", flat=True))


def _reads_former(authority: CertificateAuthority) -> list[str]:
    root = hashlib.sha256(authority.certificate.encode()).hexdigest()
    routers = Router.objects.filter(machine__environment=authority.environment_id).select_related("machine")
    return sorted(router.machine.name for router in routers if router.observed_trusts and root not in router.observed_trusts)


@transaction.atomic
def renew(environment: Environment, *, now: datetime) -> CertificateAuthority:
    """Make a new authority, trusted beside the former one until `retire`. Machines get certificates of it by themselves; nothing restarts,
    for each certificate carries the former authority's word for the new one. The former one's private key is forgotten at once.

    Raises:
        NotAllowed: there is none yet, the former renewal is not finished, the key cannot be read, or the former one cannot vouch for it.
    """
    authority = CertificateAuthority.objects.filter(environment=environment).first()
    if authority is None:
        raise NotAllowed(f"{environment.name} has no authority yet: it is made when the first machine asks for a certificate.")
    if authority.former:
        raise NotAllowed(f"The authority of {environment.name} is being renewed: retire the former one first.")
    if late := _reads_former(authority):
        raise NotAllowed(f"The router on {' and '.join(late)} still trusts the authority before this one: it has to restart first.")
    certificate, key = certificates.make_authority(f"Baton {environment.cluster.hex[:12]} {authority.number + 1}", now)
    try:
        bridge = certificates.bridge(authority.certificate, _key(authority), certificate, now)
    except certificates.CannotBridge as error:
        remedy = "It can be replaced, and every router has to be ended once then (manage.py renew_authority --replace)."
        raise NotAllowed(f"The authority of {environment.name} cannot be renewed: {error}. {remedy}") from None
    renewed = CertificateAuthority.objects.filter(pk=authority.pk, number=authority.number).update(
        number=authority.number + 1,
        certificate=certificate,
        encrypted_key=_cipher().encrypt(key).decode(),
        former=authority.certificate,
        bridge=bridge,
        revoked_number=F("revoked_number") + 1,
        created_at=now,
    )
    if not renewed:
        raise Busy(f"Somebody else just renewed the authority of {environment.name}.")
    authority.refresh_from_db()
    # Whoever was taken back long ago is no news with this list: routers would restart for connections that have ended since.
    CertificateAuthority.objects.filter(pk=authority.pk).update(
        revoked=_list_of_revoked(authority, key, now), taken_back=_just_revoked(authority, now)
    )
    return authority


@transaction.atomic
def retire(environment: Environment, *, now: datetime) -> None:
    """Trust the former authority no more. Routers that have read only that one restart, one after another, each handing over first.

    Raises:
        NotAllowed: there is none, or a machine holds no certificate of the new one yet (named, with the remedy).
    """
    authority = CertificateAuthority.objects.filter(environment=environment).exclude(former="").first()
    if authority is None:
        raise NotAllowed(f"{environment.name} has no former authority to retire.")
    if waiting := _with_former(authority, now):
        raise NotAllowed(
            f"{' and '.join(waiting)} {'has' if len(waiting) == 1 else 'have'} no certificate of the new authority yet: "
            "start the agent there, or remove the machine; then retire the former one."
        )
    CertificateAuthority.objects.filter(pk=authority.pk).update(former="")


@transaction.atomic
def replace(environment: Environment, *, now: datetime) -> None:
    """Another authority instead of one whose key is lost with the portal's secret key, or that may not vouch for another. Nothing vouches
    for this one: running routers accept no certificate of it until they have restarted, all of them.

    Raises:
        NotAllowed: there is none, or it can be renewed, without any loss.
    """
    authority = CertificateAuthority.objects.filter(environment=environment).first()
    if authority is None:
        raise NotAllowed(f"{environment.name} has no authority yet: it is made when the first machine asks for a certificate.")
    certificate, key = certificates.make_authority(f"Baton {environment.cluster.hex[:12]} {authority.number + 1}", now)
    if _vouches(authority, certificate, now):
        raise NotAllowed(f"The {authority} can sign: renew it instead, which restarts nothing.")
    replaced = CertificateAuthority.objects.filter(pk=authority.pk, number=authority.number).update(
        number=authority.number + 1,
        certificate=certificate,
        encrypted_key=_cipher().encrypt(key).decode(),
        former="",
        bridge="",
        revoked_number=F("revoked_number") + 1,
        created_at=now,
    )
    if not replaced:
        raise Busy(f"Somebody else just replaced the authority of {environment.name}.")
    authority.refresh_from_db()
    CertificateAuthority.objects.filter(pk=authority.pk).update(revoked=_list_of_revoked(authority, key, now), taken_back=[])


def _vouches(authority: CertificateAuthority, successor: str, now: datetime) -> bool:
    try:
        return bool(certificates.bridge(authority.certificate, _key(authority), successor, now))
    except (NotAllowed, certificates.CannotBridge):
        return False


def _trusted(authority: CertificateAuthority) -> str:
    return authority.certificate + authority.former


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
            "Start the portal with the former secret key; where that is lost, replace the authority (manage.py renew_authority --replace)."
        ) from None


def _cipher() -> MultiFernet:
    """Encrypts under the secret key; decrypts under former ones too (settings.SECRET_KEY_FALLBACKS)."""
    return MultiFernet([_fernet(secret) for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)])


def _fernet(secret: str | bytes) -> Fernet:
    material = secret if isinstance(secret, bytes) else secret.encode()
    derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"baton: keys of certificate authorities").derive(material)
    return Fernet(base64.urlsafe_b64encode(derived))
