"""Design -> machines, runtimes and routers of one environment: what Apply would change, and Apply."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction
from django.utils import timezone

from portal.errors import Busy, NotAllowed, Stale
from portal.models import Connector, DesignedMachine, Environment, MachineKind, Placement
from runtimes import authority, fleet, votes
from runtimes.models import Machine, Router, Runtime
from runtimes.protocol import Preference, RuntimeState

# Called before an environment is changed; raises NotAllowed when it must not be now. deployments adds "a deployment runs".
guards: list[Callable[[Environment], None]] = []

RUNS = (RuntimeState.STARTING, RuntimeState.READY, RuntimeState.HANGING, RuntimeState.BACKOFF)


@dataclass(frozen=True)
class Change:
    """One line of the pop-up: act "create", "remove" or "change"; kind "machine", "runtime", "router", "witness" or "failover"."""

    act: str
    kind: str
    name: str
    sentence: str  # "Router on external01 will be created."


@dataclass(frozen=True)
class _Drawn:
    """What the design asks for: machine names, (machine, connector) names, and names of machines with a router."""

    machines: dict[str, DesignedMachine]
    runtimes: dict[tuple[str, str], Connector]
    routers: set[str]


@dataclass(frozen=True)
class _Present:
    """What the environment has, by the same names."""

    machines: dict[str, Machine]
    runtimes: dict[tuple[str, str], Runtime]
    routers: dict[str, Router]  # that stay, as far as the environment knows
    leaving: set[str]  # machines whose routers go as soon as nothing needs them and the cluster has let them go, removed ones with them

    @cached_property
    def needing(self) -> set[str]:
        """Machines where something runs in failover, or is ordered to. Asked only where routers are to go."""
        environment = next((machine.environment_id for machine in self.machines.values()), None)
        return {runtime.machine.name for runtime in fleet.needing_routers(environment)} if environment is not None else set()

    @property
    def has_cluster(self) -> bool:
        return any(router.cluster_known for router in self.routers.values())

    def stays_for_now(self, router: Router, *, cluster_goes_on: bool) -> bool:
        """Does a router that the design has no more go later than by Apply: what runs in failover must not lose it, and a cluster that
        goes on lets its members go one at a time. Where nothing is to fail over any more all go together."""
        return router.cluster_known or router.machine.name in self.needing if cluster_goes_on else bool(self.needing)


def _drawn(environment: Environment) -> _Drawn:
    machines = {machine.name: machine for machine in DesignedMachine.objects.filter(project=environment.project_id)}
    placements = Placement.objects.filter(machine__project=environment.project_id).select_related("machine", "connector")
    runtimes = {(placement.machine.name, placement.connector.name): placement.connector for placement in placements}
    hosts = {machine for (machine, _), connector in runtimes.items() if connector.failover}
    routers = {
        name
        for name, machine in machines.items()
        # A witness serves the connectors of other machines: it is there as long as anything runs in failover.
        if machine.router and (name in hosts or (machine.kind == MachineKind.CORE and hosts))
    }
    return _Drawn(machines, runtimes, routers)


def _present(environment: Environment) -> _Present:
    machines = {machine.name: machine for machine in Machine.objects.filter(environment=environment)}
    runtimes = Runtime.objects.filter(environment=environment).select_related("machine", "connector", "desired_bundle")
    routers = Router.objects.filter(machine__environment=environment).select_related("machine")
    leaving = {router.machine.name for router in routers if router.leaving}
    return _Present(
        machines,
        {(runtime.machine.name, runtime.connector.name): runtime for runtime in runtimes.defer("desired_bundle__content")},
        {router.machine.name: router for router in routers if not router.leaving},
        leaving,
    )


# --------------------------------------------------------------------------------------------------------------------- diff


def diff(environment: Environment) -> list[Change]:
    """Everything Apply would do now, routers first; empty when the environment is as designed."""
    return _differences(_drawn(environment), _present(environment))


def _differences(drawn: _Drawn, present: _Present) -> list[Change]:
    return [
        *_router_changes(drawn, present),
        *_machine_changes(drawn, present),
        *_runtime_changes(drawn, present),
    ]


def _router_changes(drawn: _Drawn, present: _Present) -> list[Change]:
    """In a running cluster members come and go one at a time, with the next deployment; one that ends goes when nothing needs it."""
    goes_on = present.has_cluster and bool(drawn.routers)
    comes = "; the running cluster takes it in with the next deployment (step Deploy routers)" if goes_on else ""

    def line(name: str, act: str, kind: str) -> Change:
        noun = "witness" if kind == MachineKind.CORE else "router"
        sentence = f"{noun.capitalize()} on {name} will be {act}d{comes}."
        if act == "remove" and present.stays_for_now(present.routers[name], cluster_goes_on=bool(drawn.routers)):
            sentence = f"{noun.capitalize()} on {name} will leave the running cluster with the next deployment (step Deploy routers)."
            if not drawn.routers:
                sentence = f"{noun.capitalize()} on {name} will be removed once a deployment has taken everything here out of failover."
            elif name in present.needing:
                sentence = (
                    f"{noun.capitalize()} on {name} will stay while something there runs in failover: one deployment ends that, and the "
                    "one after it lets it leave the running cluster (step Deploy routers)."
                )
        return Change(act, noun, name, sentence)

    created = [line(name, "create", drawn.machines[name].kind) for name in sorted(drawn.routers - present.routers.keys())]
    removed = [line(name, "remove", present.machines[name].kind) for name in sorted(present.routers.keys() - drawn.routers)]
    changes = [*created, *removed, *(_vote_changes(drawn, present) if goes_on else [])]
    return sorted(changes, key=lambda change: (change.kind != "router", change.act, change.name))


def _vote_changes(drawn: _Drawn, present: _Present) -> list[Change]:
    """Routers that stay and get or lose their vote, because votes are always odd and at most five."""
    before = votes.electors({name: present.machines[name].kind for name in present.routers})
    after = votes.electors({name: drawn.machines[name].kind for name in drawn.routers})
    changes = []
    for name in sorted(drawn.routers & present.routers.keys()):
        if (name in before.voters) != (name in after.voters):
            noun = "witness" if drawn.machines[name].kind == MachineKind.CORE else "router"
            how = "will get a vote" if name in after.voters else "will vote no longer"
            why = f"{len(after.voters)} of the routers vote, always an odd number"
            changes.append(Change("change", noun, name, f"{noun.capitalize()} on {name} {how} with the next deployment: {why}."))
    return changes


def _machine_changes(drawn: _Drawn, present: _Present) -> list[Change]:
    changes = [
        Change("create", "machine", name, f"Machine {name} ({drawn.machines[name].kind}) will be created; register its agent afterwards.")
        for name in sorted(drawn.machines.keys() - present.machines.keys())
    ]
    changes += [
        Change("change", "machine", name, f"Machine {name} will be {drawn.machines[name].kind} instead of {present.machines[name].kind}.")
        for name in sorted(drawn.machines.keys() & present.machines.keys())
        if drawn.machines[name].kind != present.machines[name].kind
    ]
    for name in sorted(present.machines.keys() - drawn.machines.keys() - present.leaving):
        router = present.routers.get(name)
        stays = router is not None and present.stays_for_now(router, cluster_goes_on=bool(drawn.routers))
        when = ", once its router has left the cluster" if stays else ""
        changes.append(Change("remove", "machine", name, f"Machine {name} will be removed, with its agent's credential and its log{when}."))
    return changes


def _runtime_changes(drawn: _Drawn, present: _Present) -> list[Change]:
    changes = []
    for machine, connector in sorted(drawn.runtimes.keys() - present.runtimes.keys()):
        how = ", in failover" if drawn.runtimes[machine, connector].failover else ""
        changes.append(Change("create", "runtime", f"{machine}.{connector}", f"Runtime {machine}.{connector} will be created{how}."))
    for key in sorted(drawn.runtimes.keys() & present.runtimes.keys()):
        wanted, name = drawn.runtimes[key].failover, ".".join(key)
        if wanted != present.runtimes[key].failover:
            how = "run in failover" if wanted else "no longer run in failover"
            changes.append(Change("change", "failover", name, f"Runtime {name} will {how}, from its next deployment on."))
    for machine, connector in sorted(present.runtimes.keys() - drawn.runtimes.keys()):
        changes.append(Change("remove", "runtime", f"{machine}.{connector}", f"Runtime {machine}.{connector} will be removed."))
    return changes


def digest_of(changes: list[Change]) -> str:
    """Names one difference (hex SHA-256), so that nobody confirms another one than he read."""
    return hashlib.sha256(json.dumps([asdict(change) for change in changes], sort_keys=True).encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------------------- apply


def apply_agreed(environment: Environment, seen: str, *, by: AbstractBaseUser) -> list[Change]:
    """`apply` of the difference that a person was shown, by its digest. Raises as `apply` does."""
    changes = diff(environment)
    if seen != digest_of(changes):
        raise Stale("The design changed since you looked: this is the difference now. Read it and apply again.")
    return apply(environment, seen=changes, by=by)


def apply(environment: Environment, *, seen: list[Change] | None, by: AbstractBaseUser) -> list[Change]:
    """Make the environment as designed: machines, runtimes, routers. Returns what was done.

    Addresses and ports of routers are read from the placeholders that portal.properties.failover_keys names; no value is invented here.

    `seen` is the difference the person confirmed (None: a script that takes what comes).

    Raises:
        Stale: the design changed since; shows the new difference.
        NotAllowed: a deployment runs, or a runtime that would go still runs (stop it first).
        Busy: somebody else applied in the same instant.
    """
    try:
        with transaction.atomic():
            return _apply(environment, seen)
    except IntegrityError:
        raise Busy(f"Somebody else just applied the design to {environment.name}: look again.") from None


def _apply(environment: Environment, seen: list[Change] | None) -> list[Change]:
    drawn, present = _drawn(environment), _present(environment)
    changes = _differences(drawn, present)
    if seen is not None and seen != changes:
        now = [change.sentence for change in changes] or ["Nothing would change any more."]
        raise Stale("The design or the environment changed since you looked. Look at the new difference and confirm it.", reasons=now)
    if not changes:
        return []
    for guard in guards:
        guard(environment)
    reasons = _still_runs(drawn, present)
    if reasons:
        raise NotAllowed(" ".join(reasons), reasons=reasons)
    _remove(environment, drawn, present)
    _create(environment, drawn, present)
    fleet.touch(*Machine.objects.filter(environment=environment))
    return changes


def _still_runs(drawn: _Drawn, present: _Present) -> list[str]:
    """A runtime goes only when it was stopped, and is not seen running; of a silent agent the wish to stop is all one can have."""
    now, reasons = timezone.now(), []
    for key in sorted(present.runtimes.keys() - drawn.runtimes.keys()):
        runtime = present.runtimes[key]
        wished = runtime.desired_running and not runtime.held and runtime.desired_bundle_id is not None
        seen = runtime.observed_state in RUNS and not runtime.machine.is_silent(now=now)
        if wished or seen:
            reasons.append(f"Runtime {runtime.key} still runs: stop it first (Deploy › Architecture, right-click, Stop).")
    return reasons


def _remove(environment: Environment, drawn: _Drawn, present: _Present) -> None:
    """Groups and their changes of leadership stay as history; memberships, routers, tokens and logs go with their runtime or machine.

    A router that votes in a cluster which goes on stays, with its machine, until `membership` has let it go; and so does every router
    that something needs which runs in failover: without it that would stand still, on all members, until it is deployed.
    """
    leaving = [router for name, router in present.routers.items() if name not in drawn.routers]
    kept = [router for router in leaving if present.stays_for_now(router, cluster_goes_on=bool(drawn.routers))]
    Router.objects.filter(pk__in=[router.pk for router in kept]).update(leaving=True)
    if drawn.routers or present.needing:
        Router.objects.filter(pk__in=[router.pk for router in leaving if router not in kept]).delete()
    else:
        fleet.end_cluster(environment)
    Runtime.objects.filter(pk__in=[runtime.pk for key, runtime in present.runtimes.items() if key not in drawn.runtimes]).delete()
    staying = {router.machine.name for router in kept} | (present.leaving if drawn.routers or present.needing else set())
    removed = [machine for name, machine in present.machines.items() if name not in drawn.machines and name not in staying]
    for machine in removed:
        authority.revoke(machine, because="its machine was removed", now=timezone.now())
    Machine.objects.filter(pk__in=[machine.pk for machine in removed]).delete()


def _create(environment: Environment, drawn: _Drawn, present: _Present) -> None:
    machines = {name: machine for name, machine in present.machines.items() if name in drawn.machines}
    for name, designed in drawn.machines.items():
        if name not in machines:
            machines[name] = Machine.objects.create(environment=environment, name=name, kind=designed.kind)
        elif machines[name].kind != designed.kind:
            Machine.objects.filter(pk=machines[name].pk).update(kind=designed.kind)
    for name in sorted(drawn.routers - present.routers.keys()):
        Router.objects.update_or_create(machine=machines[name], defaults={"leaving": False})
    for key, connector in drawn.runtimes.items():
        runtime = present.runtimes.get(key)
        if runtime is None:
            Runtime.objects.create(environment=environment, machine=machines[key[0]], connector=connector, failover=connector.failover)
        elif runtime.failover != connector.failover:
            preference = runtime.preference if connector.failover else Preference.NONE
            Runtime.objects.filter(pk=runtime.pk).update(failover=connector.failover, preference=preference)
