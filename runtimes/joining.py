"""How an agent becomes a machine's: a one-time token, the credential that it gets for it, the certificate that it asks for with that."""

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.utils import timezone

from portal.errors import Invalid, NotAllowed
from portal.prepared import Prepared
from runtimes import authority, fleet, ordering, protocol, wakeup
from runtimes.models import JoinToken, Machine


def _digest(secret: str) -> str:
    """What is kept of a token or credential. Both are 256 random bits, so a plain hash cannot be guessed backwards."""
    return hashlib.sha256(secret.encode()).hexdigest()


def register(machine: Machine, *, by: AbstractBaseUser) -> str:
    """Make a one-time join token for the machine's agent; earlier unused ones end. Returns the token, which is shown once."""
    now = timezone.now()
    token = f"join-{secrets.token_urlsafe(32)}"  # never begins with a dash, which a command line would take for an option
    with transaction.atomic():
        JoinToken.objects.filter(machine=machine, used_at=None, expires_at__gt=now).update(expires_at=now)
        JoinToken.objects.create(
            machine=machine,
            digest=_digest(token),
            created_by_id=by.pk,
            expires_at=now + timedelta(seconds=settings.JOIN_TOKEN_VALID_SECONDS),
        )
    return token


def join(request: protocol.JoinRequest, *, now: datetime) -> protocol.JoinAnswer:
    """Exchange a one-time token for the machine's credential. An agent that joined before is replaced (its credential ends).

    The agent that used the token may ask again with the same `attempt`, for its answer may have been lost: it gets a new credential,
    until the token expires or another one is used.

    Raises:
        Invalid: the token is unknown, used or expired; says where to get a new one.
    """
    if request.protocol_version != protocol.PROTOCOL_VERSION:
        raise Invalid(
            f"This portal speaks protocol {protocol.PROTOCOL_VERSION}, the agent {request.protocol_version}: "
            "install the agent of this portal's version.",
            field="protocol_version",
        )
    token = JoinToken.objects.filter(digest=_digest(request.token)).select_related("machine__environment__project").first()
    remedy = "Make a new one in Deploy › Architecture: right-click the machine, Register."
    if token is None:
        raise Invalid(f"This token is unknown. {remedy}", field="token")
    again = _asks_again(token, request)
    if token.used_at is not None and not again:
        raise Invalid(f"This token was already used, at {token.used_at:%Y-%m-%d %H:%M:%S} UTC. {remedy}", field="token")
    credential = secrets.token_urlsafe(32)
    attempt = _digest(request.attempt) if request.attempt else ""
    with transaction.atomic():
        unspent = JoinToken.objects.filter(pk=token.pk, used_at=token.used_at, expires_at__gt=now)
        if not unspent.update(used_at=now, attempt_digest=attempt):
            token = JoinToken.objects.select_related("machine").get(pk=token.pk)
            # Perhaps by its own former call, which it gave up waiting for and which was answered now.
            if token.expires_at > now and _asks_again(token, request):
                return join(request, now=now)
            word = "expired" if token.expires_at <= now else "was used by another agent just now"
            raise Invalid(f"This token {word}. {remedy}", field="token")
        if authority.revoke(token.machine, because="its agent was registered anew", now=now):
            fleet.touch(*Machine.objects.filter(environment_id=token.machine.environment_id))
        else:
            transaction.on_commit(lambda: wakeup.send([token.machine_id]))  # an agent that waits with the former credential is sent away
        # The new agent counts its reports anew; what the former one said stays, with its age.
        Machine.objects.filter(pk=token.machine_id).update(
            credential_digest=_digest(credential),
            joined_at=now,
            agent_version=request.agent_version[:40],
            agent_started_at="",
            report_sequence=0,
        )
    environment = token.machine.environment
    return protocol.JoinAnswer(
        credential=credential, machine=token.machine.name, environment=environment.kind, project=environment.project.slug
    )


def _asks_again(token: JoinToken, request: protocol.JoinRequest) -> bool:
    """Is this the agent that used the token, before any other agent joined for the machine."""
    same = bool(request.attempt) and hmac.compare_digest(token.attempt_digest, _digest(request.attempt))
    return same and token.used_at is not None and token.used_at == token.machine.joined_at


_holding = Prepared(
    lambda digest: (
        Machine.objects.filter(credential_digest=digest)
        .select_related("environment__project", "router")
        .defer(*ordering.FACTS_OF_ROUTER)
        .order_by("pk")[:1]
    )
)


def machine_of(credential: str) -> Machine | None:
    """The machine whose agent holds this credential, with its router."""
    digest = _digest(credential)
    machine = _holding.first(digest)
    return machine if machine is not None and hmac.compare_digest(machine.credential_digest, digest) else None


@transaction.atomic
def certify(machine: Machine, request: protocol.CertificateRequest, *, now: datetime) -> protocol.CertificateAnswer:
    """A certificate for the machine's router and runtimes; the former one stays valid until it expires, for connections in the making.

    Raises:
        Invalid: `request` is no certificate signing request that can be signed.
        NotAllowed: the authority's key cannot be read with this portal's secret key; or the machine was registered anew while this call
            was under way, or removed: whoever holds the former credential gets no certificate any more.
    """
    if authority.lock(machine) != machine.credential_digest:
        raise NotAllowed(f"The agent of {machine.name} was registered anew, or the machine removed: this one gets no certificate any more.")
    return authority.issue(machine, request.request, now=now)
