"""The wire's side of the peers' test of an address (runtimes/reach.py): what agents are ordered, and what they answer."""

import uuid
from collections.abc import Iterable
from datetime import datetime

from django.db.models import Exists, OuterRef

from portal import vault
from runtimes import protocol
from runtimes.models import Machine, ReachResult, ReachTest
from runtimes.protocol import ReachOutcome

LISTEN_SECONDS = 10.0  # how long the owner waits for the others
TESTED_BY_OWNER = (ReachOutcome.LISTENING, ReachOutcome.ROUTER)


def peers(machine: Machine) -> list[Machine]:
    """The other machines of its environment that have a router."""
    return list(Machine.objects.filter(environment_id=machine.environment_id, router__isnull=False).exclude(pk=machine.pk).order_by("name"))


def open_beside(now: datetime) -> Exists:
    """Is a test open in a machine's environment: a part of the query that reads the machine."""
    return Exists(ReachTest.objects.filter(machine__environment=OuterRef("environment"), ended_at=None, expires_at__gt=now))


def orders(machine: Machine, *, now: datetime) -> list[protocol.ReachOrder]:
    """Tests that this machine takes part in now: of its own address at once, of others' once they listen. Two queries."""
    tests = (
        ReachTest.objects.filter(machine__environment_id=machine.environment_id, ended_at=None, expires_at__gt=now)
        .select_related("machine")
        .prefetch_related("results")
        .order_by("created_at")
    )
    found = []
    for test in tests:
        said = {result.machine_id: result.outcome for result in test.results.all()}
        ready = said.get(test.machine_id) in TESTED_BY_OWNER
        if test.machine_id != machine.pk and (not ready or machine.pk in said):
            continue
        found.append(
            protocol.ReachOrder(
                id=str(test.pk),
                machine=test.machine.name,
                host=test.host,
                port=test.port,
                secret=vault.unseal(test.secret),
                router=said.get(test.machine_id) == ReachOutcome.ROUTER,
                valid_seconds=LISTEN_SECONDS,
            )
        )
    return found


def store(machine: Machine, answers: Iterable[protocol.ReachAnswer], *, now: datetime) -> list[Machine]:
    """Write down what a machine's agent says of the tests it took part in, inside the caller's transaction; answers may come twice.

    Returns: machines whose orders change by that.
    """
    concerned: list[Machine] = []
    for answer in answers:
        try:
            key = uuid.UUID(answer.id)
        except ValueError:
            continue
        open_now = ReachTest.objects.filter(pk=key, ended_at=None, expires_at__gt=now)
        test = open_now.filter(machine__environment_id=machine.environment_id).select_related("machine").first()
        if test is None:
            continue
        facts = {"outcome": answer.outcome, "reason": answer.reason[:500], "seconds": answer.seconds, "at": now}
        _, new = ReachResult.objects.get_or_create(test=test, machine=machine, defaults=facts)
        if not new:
            continue
        answered = set(ReachResult.objects.filter(test=test).values_list("machine_id", flat=True))
        others = peers(test.machine)
        failed = machine.pk == test.machine_id and answer.outcome not in TESTED_BY_OWNER
        if failed or answered >= {test.machine_id, *(peer.pk for peer in others if not peer.is_silent(now=now))}:
            ReachTest.objects.filter(pk=test.pk, ended_at=None).update(ended_at=now)
            concerned += [test.machine, *others]
        elif machine.pk == test.machine_id:
            concerned += others
    return concerned
