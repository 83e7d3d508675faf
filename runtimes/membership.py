"""The routers of a running cluster come, go and move: one safe step at a time, without losing leadership (docs/failover.md).

The portal plans and orders; agents change members through etcd's member API, through a router that runs well. What is next follows from
what the routers report (`votes.next_change`), so that portal, worker and agents may be killed at any point: each looks again and goes on.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from portal.errors import Busy, Invalid, NotAllowed
from portal.models import DesignedMachine, Environment
from portal.prepared import Prepared
from runtimes import authority, certificates, clocks, failover, fleet, protocol, reports, votes
from runtimes.models import (
    FailoverGroup,
    GroupRequest,
    Machine,
    MachineCertificate,
    MembershipChange,
    MembershipStatus,
    Router,
    Runtime,
)
from runtimes.votes import Act, Condition, Next, Voter

# Called before a person resumes or rolls back a change; raises NotAllowed when it must not be now. deployments adds "a deployment runs".
guards: list[Callable[[Environment], None]] = []

DRIVEN_WITHIN = timedelta(seconds=30)  # a deployment that has not looked at its change for so long drives it no more
UNFINISHED = (MembershipStatus.RUNNING, MembershipStatus.HALTED, MembershipStatus.REFUSED)
ASK_AGAIN_AFTER = timedelta(seconds=15)  # for a hand-over that did not come about
REVOKED_FOR = timedelta(seconds=30)  # a machine that is registered anew shows its new certificate long before
CARRY_SECONDS = 15.0  # within which a router is to carry a change; another one is asked after that
ACTS = {
    Act.ADD: protocol.MemberAct.ADD,
    Act.PROMOTE: protocol.MemberAct.PROMOTE,
    Act.REMOVE: protocol.MemberAct.REMOVE,
    Act.UPDATE: protocol.MemberAct.UPDATE,
}
NO_MAJORITY = (
    "No router reports that it knows a majority, and members are changed through one. Is the majority lost for good? "
    "Then have the cluster built anew from a machine that is left (its page, Router, Rebuild cluster)."
)
Addresses = Mapping[str, tuple[str, int]]


@dataclass(frozen=True)
class View:
    """What the environment's routers say of their cluster. `listed` None: none of them knows a majority."""

    routers: dict[str, Router]
    members: list[protocol.ClusterMember] | None
    listed: list[Voter]
    conditions: dict[str, Condition]
    revoked: frozenset[str] = frozenset()  # machines at whose address somebody answers whose certificate was taken back


# --------------------------------------------------------------------------------------------------------------------- wishes


@transaction.atomic
def assign(environment: Environment, addresses: Addresses, *, actor: str, now: datetime, driven: bool = False) -> MembershipChange | None:
    """Order the environment's routers to run at these addresses: machine name -> (Internal IP, Failover port).

    None: they found a cluster now, or are as wished already. Else a change is begun, which replaces one under way. `driven`: the caller
    goes on calling `drive`, and hands over what a machine leads when the change asks for it.

    Raises:
        Invalid: see fleet.electorate_of.
        NotAllowed: the cluster's traffic is not encrypted.
    """
    routers = fleet.routers_of(environment)
    if not any(router.cluster_known for router in routers):
        fleet.assign_routers(environment, dict(addresses))
        return None
    fleet.refuse_unencrypted(environment, routers)
    addresses = {**addresses, **kept_back(environment, routers)}
    result = fleet.electorate_of(environment, dict(addresses))
    wished = {name: (addresses[name][0].strip(), addresses[name][1]) for name in result.members}
    passing_on = {name: (addresses[name][0].strip(), addresses[name][1]) for name in result.gateways}
    view = look(environment, wished, now=now)
    if view.members is None:
        nothing = all(router.desired_members == result.members for router in routers if router.desired_running)
    else:
        nothing = votes.next_change(view.listed, result.members, view.conditions).act is Act.NOTHING
    if nothing and not any(router.leaving and router.machine.name not in addresses for router in routers):
        if view.members is not None:
            _sync(view, wished, passing_on)
            _replace(environment, now)
        return None
    return begin(environment, wished, passing_on, actor=actor, now=now, driven=driven)


def kept_back(environment: Environment, routers: Sequence[Router]) -> dict[str, tuple[str, int]]:
    """Addresses of routers that are leaving, and stay all together while something on one of their machines runs in failover."""
    leaving = [router for router in routers if router.leaving and router.desired_running and router.desired_port]
    if not _served(environment, leaving):
        return {}
    return {router.machine.name: (router.desired_host, router.desired_port or 0) for router in leaving}


def _served(environment: Environment, leaving: Sequence[Router]) -> list[str]:
    """Keys of the runtimes on their machines that run in failover."""
    machines = {router.machine_id for router in leaving}
    return sorted(runtime.key for runtime in fleet.needing_routers(environment.pk) if runtime.machine_id in machines) if leaving else []


def going(environment: Environment, routers: Sequence[Router]) -> str:
    """When those of the environment's routers go that the design has no more, in a sentence; empty where all stay."""
    leaving = [router for router in routers if router.leaving]
    if not leaving:
        return ""
    served = _served(environment, leaving)
    run = f"{' and '.join(served)} {'runs' if len(served) == 1 else 'run'}"
    if len(leaving) == len(routers):
        return "The routers go by themselves once nothing here runs in failover any more" + (f" ({run})." if served else ".")
    one = len(leaving) == 1
    names = f"The router{'' if one else 's'} of {' and '.join(sorted(router.machine.name for router in leaving))}"
    if not served:
        return f"{names} {'leaves' if one else 'leave'} the cluster with the next deployment (step Deploy routers)."
    return (
        f"{names} {'stays' if one else 'stay'} while {run} in failover there: one deployment ends that, and the one after it lets "
        f"{'it' if one else 'them'} leave the cluster (step Deploy routers)."
    )


@transaction.atomic
def begin(
    environment: Environment, wished: Addresses, passing_on: Addresses, *, actor: str, now: datetime, driven: bool = False
) -> MembershipChange:
    """Wish that these routers vote, and those pass traffic on to them, and take the first step."""
    former = unfinished(environment)
    if former is not None and former.before:  # what is half done is no state to go back to
        before, before_passing_on = former.before, former.before_passing_on
    else:
        before, before_passing_on = map(_listed, present(environment))
    _replace(environment, now)
    change = MembershipChange.objects.create(
        environment=environment,
        wished=_listed(wished),
        passing_on=_listed(passing_on),
        before=before,
        before_passing_on=before_passing_on,
        driven_at=now if driven else None,
        actor=actor,
        created_at=now,
    )
    _advance(change, now)
    return change


def _listed(addresses: Addresses) -> dict[str, list[str | int]]:
    return {name: list(address) for name, address in addresses.items()}


def _addresses(listed: Mapping[str, Sequence[Any]]) -> dict[str, tuple[str, int]]:
    return {name: (str(host), int(port)) for name, (host, port) in listed.items()}


def under_way(environment: Environment) -> MembershipChange | None:
    """The change of the environment's routers that goes on now."""
    return MembershipChange.objects.filter(environment=environment, status=MembershipStatus.RUNNING).first()


def unfinished(environment: Environment) -> MembershipChange | None:
    """The newest change, when it has not come to its end: it goes on, was stopped halfway, or was refused."""
    newest = MembershipChange.objects.filter(environment=environment).order_by("-pk").first()
    return newest if newest is not None and newest.status in UNFINISHED else None


def _replace(environment: Environment, now: datetime) -> None:
    live = MembershipChange.objects.filter(environment=environment, status__in=UNFINISHED)
    live.update(status=MembershipStatus.REPLACED, ended_at=now, hand_over="")


def present(environment: Environment) -> tuple[dict[str, tuple[str, int]], dict[str, tuple[str, int]]]:
    """Who is ordered to vote, and who to pass traffic on, those that are leaving included: the wish to change nothing but what is broken.
    Members that were refused when the cluster was built anew are neither."""
    vote: dict[str, tuple[str, int]] = {}
    pass_on: dict[str, tuple[str, int]] = {}
    for router in fleet.routers_of(environment):
        if router.desired_running and router.desired_port:
            if router.machine.name in router.desired_members:
                vote[router.machine.name] = (router.desired_host, router.desired_port)
            elif not router.cluster_known:
                pass_on[router.machine.name] = (router.desired_host, router.desired_port)
    return vote, pass_on


@transaction.atomic
def drive(change: MembershipChange, *, now: datetime) -> MembershipChange:
    """A deployment looks at its change: it goes on, also when it was stopped halfway for nobody looked."""
    MembershipChange.objects.filter(pk=change.pk, status=MembershipStatus.HALTED).update(status=MembershipStatus.RUNNING, ended_at=None)
    MembershipChange.objects.filter(pk=change.pk, status=MembershipStatus.RUNNING).update(driven_at=now)
    advance(change.environment_id, now=now)
    change.refresh_from_db()
    return change


@transaction.atomic
def halt(change: MembershipChange, because: str, *, now: datetime) -> None:
    """Stop a change where it stands: what was done stays done, nothing more is ordered until a person resumes it or rolls it back, or a
    deployment wishes something else."""
    running = MembershipChange.objects.filter(pk=change.pk, status=MembershipStatus.RUNNING)
    if not running.update(status=MembershipStatus.HALTED, ended_at=now, hand_over="", driven_at=None):
        return
    change.refresh_from_db()
    _withdraw(look(change.environment, _addresses(change.wished), now=now))
    rest = change.sentence[:1].lower() + change.sentence[1:] if change.sentence else "nothing was done yet"
    _say(change, f"Stopped halfway, because {because}; what it was at: {rest}", now)


@transaction.atomic
def resume(change: MembershipChange, *, actor: str, now: datetime) -> MembershipChange:
    """Go on with a change that was stopped halfway or refused, without a deployment: what a machine leads is handed over first, and the
    change waits, saying why, while nobody can take over.

    Raises:
        NotAllowed: a deployment drives it, or is under way there; or it has ended.
    """
    _refuse_ended(change)
    return begin(change.environment, _addresses(change.wished), _addresses(change.passing_on), actor=actor, now=now)


@transaction.atomic
def roll_back(change: MembershipChange, *, actor: str, now: datetime) -> MembershipChange:
    """Bring back, by the same safe steps, the routers as they were before a change that was stopped halfway or refused. Properties stay
    as they are: the next deployment wishes the change again. Raises as `resume` does."""
    _refuse_ended(change)
    if not change.before:
        raise NotAllowed("It is not known how the routers were before: have a deployment bring them to what is wished now.")
    return begin(change.environment, _addresses(change.before), _addresses(change.before_passing_on), actor=actor, now=now)


def _refuse_ended(change: MembershipChange) -> None:
    newest = unfinished(change.environment)
    if newest is None or newest.pk != change.pk:
        raise NotAllowed("This change of the routers has ended: there is nothing to resume or to roll back.")
    if newest.is_driven:
        raise NotAllowed(f"The routers are being changed ({newest.actor}): cancel that deployment first, or let it go on.")
    for guard in guards:
        guard(change.environment)


def refuse(change: MembershipChange, *, now: datetime) -> None:
    """Give the wish up: a person has to put something right first."""
    _end(change, MembershipStatus.REFUSED, now)


@transaction.atomic
def rebuild_router(machine: Machine, *, actor: str, now: datetime) -> MembershipChange:
    """Remove the member of a router whose data are gone, and add the machine again; nothing else changes.

    Raises:
        NotAllowed: its data are not known to be gone, another change goes on, or no majority runs.
    """
    environment = machine.environment
    router = next((router for router in fleet.routers_of(environment) if router.machine_id == machine.pk), None)
    if router is None or not router.desired_running:
        raise NotAllowed(f"No router was deployed to {machine.name}: deploy the environment.")
    if machine.name not in router.desired_members:
        raise NotAllowed(f"The router on {machine.name} is no member of this cluster: a deployment (step Deploy routers) takes it in.")
    live = under_way(environment)
    if live is not None:
        raise NotAllowed(f"The routers of {environment.name} are being changed already ({live.actor}): {live.sentence}")
    if machine.is_silent(now=now):
        raise NotAllowed(f"{machine.name} is silent: start its agent first, or register the machine again.")
    if not router.observed_outside:
        raise NotAllowed(f"The router on {machine.name} has not lost its data: it is {router.observed_state}.")
    wished, passing_on = present(environment)
    wished[machine.name] = (router.desired_host, router.desired_port or 0)
    view = look(environment, wished, now=now)
    if view.members is None:
        raise NotAllowed(NO_MAJORITY)
    return begin(environment, wished, passing_on, actor=actor, now=now)


# ------------------------------------------------------------------------------------------------------ the majority lost for good


def why_not_rebuild(survivor: Machine, *, now: datetime) -> str:
    """Why the cluster must not be built anew from this machine's data; empty when it may."""
    environment = survivor.environment
    routers = {router.machine_id: router for router in fleet.routers_of(environment)}
    router, token = routers.get(survivor.pk), reports.cluster_token(environment)
    if router is None or not router.cluster_known:
        return f"The router on {survivor.name} never ran in this cluster: it has no data to build from."
    if survivor.is_silent(now=now):
        return f"{survivor.name} is silent: what it has cannot be known. Start its agent first."
    if router.observed_outside:
        remedy = "Where no machine has any, take failover off in the design and on again: that founds an empty cluster."
        return f"The router on {survivor.name} has no data of this cluster any more: {router.observed_reason.rstrip('.')}. {remedy}"
    building = next((other.machine for other in routers.values() if other.survivor), None)
    if building is not None and (building == survivor or not building.is_silent(now=now)):
        return f"The cluster is being built anew from {building.name} already."
    running = [
        other.machine.name
        for other in routers.values()
        if other.observed_state == protocol.RouterState.RUNNING and other.observed_token == token and not other.machine.is_silent(now=now)
    ]
    if running:
        know = f"{', '.join(running)} still know{'s' if len(running) == 1 else ''} a majority"
        return f"{know}: nothing is lost. A router is replaced by a deployment (step Deploy routers)."
    if router.observed_state != protocol.RouterState.NO_MAJORITY:
        return f"The router on {survivor.name} is {router.observed_state}, and so it cannot be known whether the majority is lost."
    return ""


def lost_with(survivor: Machine) -> list[str]:
    """What building anew from this machine means, one sentence each."""
    environment = survivor.environment
    others = sorted(router.machine.name for router in fleet.routers_of(environment) if router.machine_id != survivor.pk)
    names = " and ".join(others) or "no other"
    alone = FailoverGroup.objects.filter(environment=environment, members__observed_isolation=protocol.IsolationPolicy.RUN_ALONE)
    groups = " and ".join(sorted(set(alone.values_list("name", flat=True))))
    return [
        f"{survivor.name} becomes the only router of a new cluster (generation {environment.generation + 1}), with the data it has.",
        f"The routers on {names} are refused from then on, whenever they come back; their runtimes stay isolated until you deploy.",
        "If they still run somewhere, out of the portal's sight, a runtime there may lead at the same time. Make sure that they are off.",
        *(
            [f"{groups} may run alone without a majority: a machine that hears neither portal nor survivor goes on consuming by itself."]
            if groups
            else []
        ),
        "What the lost majority decided last and this machine has not heard of is gone; members known as disabled stay disabled.",
    ]


@transaction.atomic
def rebuild(survivor: Machine, *, confirm: str, actor: str, now: datetime) -> None:
    """Build the cluster anew from one machine's data, because its majority is lost for good (docs/decisions/0060-rebuild-from-survivor.md).

    A new generation: epochs grow, what was seen of the former cluster counts no more, its other members are refused until a deployment.

    Args:
        confirm: the environment's name, as the person typed it.

    Raises:
        Invalid: another name was typed.
        NotAllowed: a majority runs, or this machine cannot be built from.
    """
    environment = survivor.environment
    if confirm.strip() != environment.name:
        raise Invalid(f"Type {environment.name} to build its cluster anew.", field="confirm")
    reason = why_not_rebuild(survivor, now=now)
    if reason:
        raise NotAllowed(reason)
    live = MembershipChange.objects.filter(environment=environment, status=MembershipStatus.RUNNING)
    live.update(status=MembershipStatus.REPLACED, ended_at=now)
    if not Environment.objects.filter(pk=environment.pk, generation=environment.generation).update(generation=F("generation") + 1):
        raise Busy(f"Somebody else just built the cluster of {environment.name} anew.")
    routers = fleet.routers_of(environment)
    kept = next(router for router in routers if router.machine_id == survivor.pk)
    url = votes.peer_url(kept.desired_host, kept.desired_port or 0)
    # Nobody but the survivor may start empty, or under an id of the former cluster.
    known = {"cluster_known": True, "desired_member_id": "", "desired_change": None, "desired_members": {survivor.name: url}}
    Router.objects.filter(machine__environment=environment).update(**known, survivor=False)
    Router.objects.filter(pk=kept.pk).update(survivor=True)
    text = f"{actor} had the cluster built anew from {survivor.name}."
    MembershipChange.objects.create(
        environment=environment,
        wished={survivor.name: [kept.desired_host, kept.desired_port]},
        actor=actor,
        touched=[survivor.name],
        log=[{"at": now.isoformat(), "text": text}],
        sentence=text,
        created_at=now,
    )
    fleet.touch(*Machine.objects.filter(environment=environment))


# ----------------------------------------------------------------------------------------------------------------------- steps


_under_way = Prepared(
    lambda environment: MembershipChange.objects.filter(environment=environment, status=MembershipStatus.RUNNING).order_by("pk")[:1]
)
_leaving = Prepared(lambda environment: Router.objects.filter(machine__environment=environment).values_list("leaving", flat=True))
_peers_of = Prepared(
    lambda environment, machine: Router.objects.filter(machine__environment=environment, machine__name=machine).values_list(
        "observed_peers", flat=True
    )
)


def wake(environment_id: int, machine: str) -> None:
    """A report of one of its machines came: take the next step of a change under way; stop one whose deployment looks at it no more."""
    now = timezone.now()
    change = _under_way.first(environment_id)
    if change is not None and change.driven_at is not None and now - change.driven_at > DRIVEN_WITHIN:
        halt(change, f"{change.actor} ended before it was done", now=now)
    elif change is not None:
        advance(environment_id, now=now)
    else:
        shut_out(environment_id, machine, now=now)
    _end_cluster(environment_id, now)


def _end_cluster(environment_id: int, now: datetime) -> None:
    """Where all routers are leaving, they go together as soon as nothing runs in failover any more (`architecture.apply`)."""
    leaving = set(_leaving.all(environment_id))
    if leaving == {True}:  # asked at every report, so without a transaction: SQLite's would lock all others out
        _end_together(environment_id, now)


@transaction.atomic
def _end_together(environment_id: int, now: datetime) -> None:
    environment = Environment.objects.get(pk=environment_id)
    if fleet.needing_routers(environment.pk):
        return
    _replace(environment, now)
    designed = DesignedMachine.objects.filter(project_id=environment.project_id).values_list("name", flat=True)
    removed = list(Machine.objects.filter(environment=environment, router__isnull=False).exclude(name__in=designed))
    fleet.end_cluster(environment)
    for machine in removed:
        authority.revoke(machine, because="its machine was removed", now=now)
        machine.delete()


def shut_out(environment_id: int, reporter: str, *, now: datetime) -> None:
    """What one of its machines reports of the others' routers: is somebody among them whose certificate was taken back.

    etcd looks at the list of revoked certificates where it is called, and not where it calls: a member whose certificate was taken back
    goes on reading and voting through the others' calls. So it is removed, and added again once another answers there."""
    said = _peers_of.all(environment_id, reporter)
    if any(peer.get("revoked") for peers in said for peer in peers):  # asked at every report, so without a transaction
        _shut_out(environment_id, now)


@transaction.atomic
def _shut_out(environment_id: int, now: datetime) -> None:
    environment = Environment.objects.get(pk=environment_id)
    wished, passing_on = present(environment)
    view = look(environment, wished, now=now)
    names = sorted(name for name, condition in view.conditions.items() if condition == Condition.REVOKED)
    if names:
        begin(environment, wished, passing_on, actor=f"revocation of {' and '.join(names)}", now=now)


@transaction.atomic
def advance(environment_id: int, *, now: datetime) -> MembershipChange | None:
    """The next step of the environment's change, if it has one and if it may be taken. May be called at any time, any number of times."""
    live = MembershipChange.objects.select_for_update(of=("self",)).select_related("environment")
    change = live.filter(environment_id=environment_id, status=MembershipStatus.RUNNING).first()
    if change is not None:
        _advance(change, now)
    return change


def handed_over(change: MembershipChange, machine: str, *, now: datetime) -> None:
    """What the machine's runtimes led has been handed over, or nobody could take it: its router may be touched."""
    change.handed_over, change.hand_over = [*change.handed_over, machine], ""
    MembershipChange.objects.filter(pk=change.pk).update(handed_over=change.handed_over, hand_over="")
    advance(change.environment_id, now=now)


def _advance(change: MembershipChange, now: datetime) -> None:
    wished = _addresses(change.wished)
    view = look(change.environment, wished, now=now)
    if view.members is None:
        if any(router.survivor for router in view.routers.values()):
            _say(change, "The cluster is being built anew from the survivor's data.", now)
        else:
            _say(change, NO_MAJORITY, now, refused=True)
        return
    _sync(view, wished, _addresses(change.passing_on))
    urls = {name: votes.peer_url(*address) for name, address in wished.items()}
    step = votes.next_change(view.listed, urls, view.conditions)
    if step.act is Act.NOTHING:
        _finish(change, view, now)
    elif step.act in (Act.WAIT, Act.REFUSE):
        _withdraw(view)
        _say(change, f"{step.sentence}{_said_by(view, step.machine)}", now, refused=step.act is Act.REFUSE)
    elif step.disturbs and step.machine not in change.handed_over and _may_lead(view.routers[step.machine].machine):
        if change.hand_over != step.machine:
            change.hand_over = step.machine
            MembershipChange.objects.filter(pk=change.pk).update(hand_over=step.machine)
        waits, refused = (
            _ask_to_hand_over(change, step.machine, now) if change.driven_at is None else ("First it hands over what it leads.", False)
        )
        if waits:
            _say(change, f"{step.sentence} {waits}", now, refused=refused)
        else:
            handed_over(change, step.machine, now=now)
    elif step.act is Act.ADD and step.machine in view.revoked:
        why = "somebody answers at its address whose certificate was taken back: take the address from him"
        _say(change, f"{step.machine} is out and not added again, for {why}.", now, refused=True)
    elif step.act is Act.ADD and not _forgotten(view.routers[step.machine], now):
        _say(change, f"{step.machine} is added as soon as its agent reports that it has given up its former member.", now)
    else:
        _order(change, view, step, now)


def _ask_to_hand_over(change: MembershipChange, machine: str, now: datetime) -> tuple[str, bool]:
    """Where no deployment does it: have ready followers take over what this machine leads.

    Returns: what is waited for, and is that for a person; an empty sentence once the machine leads nothing.
    """
    groups = FailoverGroup.objects.filter(environment_id=change.environment_id, members__runtime__machine__name=machine).distinct()
    led = []
    for group in groups:
        found = failover.verdict(failover.read_now(group), now=now)
        if found.leader is None or found.leader.status != protocol.Status.LEADER or found.leader.machine != machine:
            continue
        led.append(group.name)
        asked = GroupRequest.objects.filter(group=group, actor=change.actor, cause=protocol.Cause.DEPLOY)
        if asked.filter(created_at__gt=now - ASK_AGAIN_AFTER).exists():
            continue  # one that failed is not repeated with every report
        try:
            failover.switch(group, candidate=None, expected_leader=machine, actor=change.actor, cause=protocol.Cause.DEPLOY, now=now)
        except Busy:
            continue  # it is under way
        except NotAllowed as refusal:
            return refusal.sentence, True
    return (f"First {machine} hands over {' and '.join(led)}.", False) if led else ("", False)


def _forgotten(router: Router, now: datetime) -> bool:
    """Does the machine go by no member id. An etcd that is started to join takes the id that the cluster lists at its address: while a late
    start under a former id is possible, no new one may stand there, or it would start empty twice."""
    return not router.machine.is_silent(now=now) and router.desired_member_id == router.observed_ordered_as == ""


def _said_by(view: View, name: str) -> str:
    """What the machine itself says, where that tells why something takes its time."""
    router = view.routers.get(name)
    reason = router.observed_reason.rstrip(".") if router is not None else ""
    return f" ({reason})" if reason else ""


def _may_lead(machine: Machine) -> bool:
    return Runtime.objects.filter(machine=machine, failover=True).exists()


def _finish(change: MembershipChange, view: View, now: datetime) -> None:
    _withdraw(view)
    waited = [name for name in change.touched if name in change.wished and view.conditions.get(name) != Condition.WELL]
    if waited:
        names = " and ".join(f"{name}{_said_by(view, name)}" for name in waited)
        _say(change, f"The members are as wished; {names} has yet to run as one.", now)
        return
    for router in view.routers.values():
        if router.leaving and router.machine.name not in change.wished:
            _remove(change.environment, router, now)
    _say(change, "The members are as wished.", now)
    _end(change, MembershipStatus.SUCCEEDED, now)


def _remove(environment: Environment, router: Router, now: datetime) -> None:
    """Its member has left: the row goes, and the machine with it when the design has it no more."""
    machine = router.machine
    router.delete()
    if DesignedMachine.objects.filter(project_id=environment.project_id, name=machine.name).exists():
        fleet.touch(machine)
        return
    authority.revoke(machine, because="its machine was removed", now=now)
    machine.delete()
    fleet.touch(*Machine.objects.filter(environment=environment))


def _end(change: MembershipChange, status: MembershipStatus, now: datetime) -> None:
    change.status, change.ended_at = status, now
    MembershipChange.objects.filter(pk=change.pk, status=MembershipStatus.RUNNING).update(status=status, ended_at=now, hand_over="")


def _say(change: MembershipChange, sentence: str, now: datetime, *, refused: bool = False) -> None:
    """What goes on, for people; each new sentence stays in the log."""
    if (sentence, refused) == (change.sentence, change.refused):
        return
    change.log = [*change.log, {"at": now.isoformat(), "text": sentence}][-200:]
    change.sentence, change.refused = sentence, refused
    MembershipChange.objects.filter(pk=change.pk).update(sentence=sentence, refused=refused, log=change.log)


# ---------------------------------------------------------------------------------------------------------------- ordering a step


def _order(change: MembershipChange, view: View, step: Next, now: datetime) -> None:
    """Let one router carry the step; the order stands until the list has changed, it failed for good, or its time is over."""
    assert view.members is not None
    wanted = {"act": ACTS[step.act], "member": step.id, "url": step.url, "listed": msgspec.to_builtins(view.members)}
    carrier = next((router for router in view.routers.values() if router.desired_change), None)
    if carrier is not None and carrier.desired_change is not None:
        same = {key: carrier.desired_change[key] for key in wanted} == wanted
        late = now - datetime.fromisoformat(carrier.desired_change["ordered_at"]) > timedelta(seconds=CARRY_SECONDS)
        tried = carrier.observed_change == carrier.desired_change["id"]
        because = f" (etcd: {carrier.observed_change_error})" if tried and carrier.observed_change_error else ""
        if same and not late:
            _say(change, f"{step.sentence}{because}", now)
            return
    well = [name for name, condition in view.conditions.items() if condition == Condition.WELL]
    others = [name for name in well if name != step.machine] or well
    fresh = [name for name in others if carrier is None or name != carrier.machine.name] or others
    _withdraw(view)
    chosen = view.routers[sorted(fresh)[0]]
    order = {**wanted, "id": uuid.uuid4().hex, "valid_seconds": CARRY_SECONDS - 5.0, "ordered_at": now.isoformat()}
    fleet.order_router(chosen, desired_change=order)
    if step.machine in change.wished and step.machine not in change.touched:
        change.touched = [*change.touched, step.machine]
        MembershipChange.objects.filter(pk=change.pk).update(touched=change.touched)
    _say(change, step.sentence, now)


def _withdraw(view: View) -> None:
    for router in view.routers.values():
        fleet.order_router(router, desired_change=None)


def _sync(view: View, wished: Addresses, passing_on: Addresses) -> None:
    """Every router is ordered what the cluster lists of it: its id, its address once the cluster knows it, and who the others are. One that
    is not listed and not to come passes traffic on, or stops."""
    urls = {voter.machine or voter.id: voter.url for voter in view.listed}
    by_machine = {voter.machine: voter for voter in view.listed}
    for name, router in view.routers.items():
        voter = by_machine.get(name)
        if voter is not None:
            _sync_member(router, voter, urls, wished.get(name))
            fleet.order_router(router, desired_gateways=bool(passing_on))
        elif name in wished and router.desired_member_id:  # it was removed: its agent forgets that id before it gets another one
            fleet.order_router(router, desired_member_id="", cluster_known=True)
        elif name in passing_on:
            host, port = passing_on[name]
            voting = {voter.machine or voter.id: voter.url for voter in view.listed if not voter.learner}
            wish = {"desired_running": True, "desired_host": host, "desired_port": port, "desired_members": voting}
            fleet.order_router(router, **wish, desired_member_id="", cluster_known=False, desired_gateways=False)
        elif name not in wished and (name in router.desired_members or (router.desired_running and not router.cluster_known)):
            gone = {"desired_running": False, "desired_host": "", "desired_port": None, "desired_members": {}}
            fleet.order_router(router, **gone, desired_member_id="", cluster_known=False, desired_gateways=False)


def _sync_member(router: Router, voter: Voter, urls: dict[str, str], address: tuple[str, int] | None) -> None:
    wish: dict[str, Any] = {"desired_running": True}
    if voter.learner and router.desired_member_id != voter.id:  # just added: it starts empty under this id
        wish |= {"desired_member_id": voter.id, "cluster_known": False}
    elif router.desired_member_id not in ("", voter.id):  # a portal that was restored from before it was added
        wish |= {"desired_member_id": voter.id, "cluster_known": True}
    if router.cluster_known or voter.learner:  # a founder that has never run starts with the list that it was to found
        wish["desired_members"] = urls
    if address is not None and votes.peer_url(*address) == voter.url:
        wish |= {"desired_host": address[0], "desired_port": address[1]}
    fleet.order_router(router, **wish)


# -------------------------------------------------------------------------------------------------------------------- looking


def look(environment: Environment, wished: Addresses, *, now: datetime) -> View:
    """What the routers last said, as far as it may be believed."""
    routers = {router.machine.name: router for router in fleet.routers_of(environment)}
    token = reports.cluster_token(environment)
    heard = [
        router
        for router in routers.values()
        if router.observed_state == protocol.RouterState.RUNNING
        and router.observed_token == token
        and router.observed_members
        and not router.machine.is_silent(now=now)
    ]
    if not heard:
        return View(routers, None, [], {})
    newest = max(heard, key=lambda router: router.observed_members_at)
    members = msgspec.convert(newest.observed_members, list[protocol.ClusterMember])
    listed = [Voter(member.id, _machine_of(member, routers, wished), member.url, member.learner) for member in members]
    revoked = _revoked(routers, now)
    conditions = {
        voter.machine: Condition.REVOKED if voter.machine in revoked else _condition(voter, routers.get(voter.machine), wished, token, now)
        for voter in listed
    }
    return View(routers, members, listed, conditions, revoked)


def _revoked(routers: Mapping[str, Router], now: datetime) -> frozenset[str]:
    """Machines of which a sibling that is heard of has seen for REVOKED_FOR that a revoked certificate answers for them. Only the portal
    takes certificates back: a machine that had none taken back is never shut out on another one's word."""
    peers = [peer for router in routers.values() if not router.machine.is_silent(now=now) for peer in router.observed_peers]
    seen = ((peer["machine"], clocks.read(peer["since"])) for peer in peers if peer.get("revoked"))
    named = frozenset(name for name, since in seen if since is not None and now - since >= REVOKED_FOR)
    if not named:
        return named
    taken_back = MachineCertificate.objects.filter(name__in=named, revoked_at__isnull=False, expires_at__gt=now - certificates.EARLIER)
    own = taken_back.filter(authority__environment__in={router.machine.environment_id for router in routers.values()})
    return frozenset(own.values_list("name", flat=True))


def _machine_of(member: protocol.ClusterMember, routers: Mapping[str, Router], wished: Addresses) -> str:
    """By the id it was added under, else by the name that etcd knows, else (added a moment ago) by its address."""
    for name, router in routers.items():
        if router.desired_member_id == member.id:
            return name
    if member.name in routers:
        return member.name
    return next((name for name, address in wished.items() if votes.peer_url(*address) == member.url), "")


def _condition(voter: Voter, router: Router | None, wished: Addresses, token: str, now: datetime) -> Condition:
    if router is None or router.machine.is_silent(now=now):
        return Condition.AWAY
    same = router.observed_member_id == voter.id and router.observed_token == token
    if same and voter.learner and router.observed_learner:
        return Condition.LEARNS
    if same and router.observed_state == protocol.RouterState.RUNNING and router.observed_address == voter.url:
        return Condition.WELL
    outside = router.observed_outside and router.observed_ordered_as == router.desired_member_id
    if outside and router.desired_member_id in ("", voter.id) and not (voter.learner and router.desired_member_id == ""):
        return Condition.LOST
    never = not router.cluster_known and not router.desired_member_id and not voter.learner
    moves = voter.machine in wished and votes.peer_url(*wished[voter.machine]) != voter.url
    return Condition.LOST if never and moves else Condition.AWAY
