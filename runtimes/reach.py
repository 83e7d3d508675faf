"""The peers' test of a machine's Internal IP and Failover port, before its router runs there: asked here, made by the agents.

The owner of the address listens first; once it says so, the others are told to connect. What came of it stands beside the value, and a
test says nothing of another value.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from django.db import transaction

from portal import vault
from portal.errors import Invalid, NotAllowed
from portal.models import Environment, Property
from portal.router_addresses import ADDRESS_SUFFIX, PORT_SUFFIX, failover_address, failover_keys, is_failover_key
from runtimes import fleet, protocol
from runtimes.models import Machine, ReachResult, ReachTest, Router
from runtimes.protocol import ReachOutcome
from runtimes.reach_orders import TESTED_BY_OWNER, peers

TEST_SECONDS = 20.0  # until an answer that did not come is missed


@dataclass(frozen=True)
class Said:
    """One other machine's part in a test."""

    machine: str
    outcome: ReachOutcome | None  # None: it has not answered
    reason: str = ""
    seconds: float | None = None
    at: datetime | None = None

    @property
    def sentence(self) -> str:
        """ "reachable from external02 in 0.6 ms" """
        if self.outcome is None:
            return f"{self.machine} has not answered"
        if self.outcome == ReachOutcome.REACHABLE:
            took = f" in {self.seconds * 1000:.1f} ms" if self.seconds is not None else ""
            return f"reachable from {self.machine}{took}"
        return f"{_WORDS[self.outcome]} from {self.machine}: {self.reason}"


_WORDS = {
    ReachOutcome.REFUSED: "refused",
    ReachOutcome.TIMED_OUT: "timed out",
    ReachOutcome.WRONG_ANSWER: "another answerer",
    ReachOutcome.NO_WAY: "no way",
    ReachOutcome.FAILED: "not tried",
}


@dataclass(frozen=True)
class Tested:
    """The last test of a machine's address."""

    test: ReachTest
    owner: Said
    others: list[Said]
    under_way: bool
    current: bool  # it was made with the address and port that are filled in now

    @property
    def address(self) -> str:
        return f"[{self.test.host}]:{self.test.port}" if ":" in self.test.host else f"{self.test.host}:{self.test.port}"

    @property
    def tone(self) -> str:
        """ "blue" while it is made, "gray" of a former value, "green" when all others reach it, else "red"."""
        if self.under_way:
            return "blue"
        if not self.current:
            return "gray"
        return "green" if self.others and all(said.outcome == ReachOutcome.REACHABLE for said in self.others) else "red"

    @cached_property
    def sentences(self) -> list[str]:
        """What is wrong, first of the machine itself; else how each other one reaches it."""
        name = self.test.machine.name
        if self.under_way:
            return [f"{name} is tried on {self.address}"]
        if self.owner.outcome is None:
            return [f"the agent of {name} did not take part: it is silent, or older than this portal"]
        if self.owner.outcome not in TESTED_BY_OWNER:
            return [f"{name} cannot listen on {self.address}: {self.owner.reason}"]
        return [said.sentence for said in self.others]

    @property
    def certainly_not(self) -> bool:
        """Proven from both sides that no router could be reached there."""
        if self.under_way or not self.current:
            return False
        if self.owner.outcome in (ReachOutcome.TAKEN, ReachOutcome.NOT_HERE):
            return True
        heard = self.owner.outcome == ReachOutcome.LISTENING
        return heard and any(said.outcome == ReachOutcome.REFUSED for said in self.others)


# --------------------------------------------------------------------------------------------------------------------- ask


@transaction.atomic
def ask(machine: Machine, *, actor: str, now: datetime) -> ReachTest:
    """Have the peers try the machine's Internal IP : Failover port as filled in now. A former test of it is forgotten.

    Raises:
        NotAllowed: no router here, no value, a silent machine, or nobody else to try.
    """
    if not Router.objects.filter(machine=machine).exists():
        raise NotAllowed(f"{machine.name} has no router: its address is not needed.")
    host, port = failover_address(machine.name, _values(machine.environment))
    lacking = [key for key, value in zip(failover_keys(machine.name), (host, port), strict=True) if not value]
    if lacking or not host or not port:
        raise NotAllowed(f"Fill in {' and '.join(lacking)} first.")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise Invalid(f'"{port}" is no port: correct {failover_keys(machine.name)[1]}.', field="value")
    if machine.is_silent(now=now):
        raise NotAllowed(f"{machine.name} is silent: its agent has to listen on the address while the others try it.")
    if not [peer for peer in peers(machine) if not peer.is_silent(now=now)]:
        raise NotAllowed(f"No other machine of {machine.environment.name} is heard from: nobody can try the address.")
    ReachTest.objects.filter(machine=machine).delete()
    test = ReachTest.objects.create(
        machine=machine,
        host=host,
        port=int(port),
        secret=vault.seal(secrets.token_urlsafe(32)),
        actor=actor[:150],
        created_at=now,
        expires_at=now + timedelta(seconds=TEST_SECONDS),
    )
    fleet.touch(machine, *peers(machine))
    return test


def _values(environment: Environment) -> list[Property]:
    return list(Property.objects.filter(environment=environment, key__contains=".failover."))


# --------------------------------------------------------------------------------------------------------------------- read


def tested(environments: Iterable[Environment], *, now: datetime) -> dict[tuple[int, str], Tested]:
    """The last test of every machine that has one, by environment's id and machine's name. A fixed number of queries."""
    ids = [environment.pk for environment in environments]
    tests = list(ReachTest.objects.filter(machine__environment__in=ids).select_related("machine").prefetch_related("results__machine"))
    if not tests:
        return {}
    others: dict[int, list[Machine]] = {}
    for machine in Machine.objects.filter(environment__in=ids, router__isnull=False).order_by("name"):
        others.setdefault(machine.environment_id, []).append(machine)
    values: dict[int, list[Property]] = {}
    for row in Property.objects.filter(environment__in=ids, key__contains=".failover."):
        values.setdefault(row.environment_id, []).append(row)
    found = {}
    for test in tests:
        where, name = test.machine.environment_id, test.machine.name
        results = {result.machine.name: result for result in test.results.all()}
        known = failover_address(name, values.get(where, []))
        found[where, name] = Tested(
            test=test,
            owner=_said(name, results),
            others=[_said(peer.name, results) for peer in others.get(where, []) if peer.pk != test.machine_id],
            under_way=test.ended_at is None and test.expires_at > now,
            current=known == (test.host, str(test.port)),
        )
    return found


def _said(machine: str, results: Mapping[str, ReachResult]) -> Said:
    result = results.get(machine)
    if result is None:
        return Said(machine, None)
    return Said(machine, ReachOutcome(result.outcome), result.reason, result.seconds, result.at)


@dataclass(frozen=True)
class Finding:
    """What the preflight says of one machine's address."""

    machine: str
    sentence: str
    blocks: bool


def findings(environment: Environment, *, now: datetime) -> list[Finding]:
    """Of every router that does not run yet at its filled-in address: what its peers' test said, or that nobody has tried.

    It blocks only when it is certain: both agents are there, and the port was refused or cannot be had. Where a router runs, its peers
    measure it all the time, and no test is asked for.
    """
    routers = list(
        Router.objects.filter(machine__environment=environment, leaving=False).select_related("machine").order_by("machine__name")
    )
    if len(routers) < 2:
        return []
    known, values = tested([environment], now=now), _values(environment)
    found = []
    for router in routers:
        machine = router.machine
        host, port = failover_address(machine.name, values)
        runs = router.observed_state == protocol.RouterState.RUNNING and (router.desired_host, str(router.desired_port)) == (host, port)
        if runs or not host or not port or machine.is_silent(now=now):
            continue
        last = known.get((environment.pk, machine.name))
        if last is None or not last.current:
            sentence = f"{host}:{port} of {machine.name} was not tried by the other machines yet."
            found.append(Finding(machine.name, sentence, blocks=False))
        elif last.tone == "red":
            said = "; ".join(text for text in last.sentences if not text.startswith("reachable from "))
            found.append(Finding(machine.name, f"{last.address} of {machine.name}: {said}.", blocks=last.certainly_not))
    return found


def owner_of(key: str) -> str:
    """The machine whose Internal IP or Failover port this key is; empty for any other key."""
    return key.removesuffix(ADDRESS_SUFFIX).removesuffix(PORT_SUFFIX) if is_failover_key(key) else ""
