"""What a step does: one small class per kind, in one registry. Each begins (writes wishes) and checks (reads facts), and never waits.

Both run inside the transaction of `rollout.tick`: what they wrote is undone when the worker dies, and then done again. `step.memory` is
what a kind keeps from one look to the next. A refusal (`NotAllowed`) of anything they call fails the step with its sentence.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.db.models import QuerySet

from deployments import frozen, looks, moves, releases
from deployments.handing_over import ends, gated, hand_over
from deployments.looks import (
    Look,
    Memory,
    Outcome,
    actor,
    because,
    done,
    failed,
    find_runtime,
    left_out,
    note,
    remember_orders,
    running,
    silence,
    skipped,
    tell,
    together,
    waiting,
)
from deployments.models import DONE, Deployment, HandOvers, StepKind, StepRun
from portal import property_uses, property_values, router_addresses
from portal.errors import Busy, NotAllowed, NotReady, Stale
from portal.prepared import Prepared
from runtimes import balancing, commands, failover, fleet, membership, profiles, protocol
from runtimes.models import (
    LIVE_COMMANDS,
    LIVE_REQUESTS,
    Bundle,
    CommandRun,
    FailoverGroup,
    GroupMember,
    GroupRequest,
    Machine,
    MembershipChange,
    MembershipStatus,
    Router,
    Runtime,
)
from runtimes.protocol import CommandStatus, RequestStatus, RouterState, RuntimeState, Status

SETTLED = (Status.LEADER, Status.FOLLOWER, Status.DISABLED, Status.SINGLE_NODE)
# A report that was under way when the order was taken may still tell of the failure before it.
FAILURE_STANDS_AFTER = timedelta(seconds=2)
# A router that was just restarted is away for a moment, and its report comes every 2 s, or later where the machine is busy.
REFUSAL_STANDS_AFTER = timedelta(seconds=20)
ALL_DISABLED = "nobody leads, for every member is disabled. Enable one (Operate › Groups)."


class Kind:
    """A kind of step. `begin` runs once per attempt, before the first `check`."""

    by_group: ClassVar[bool] = False  # its sentence tells of several groups, each by its name

    def begin(self, step: StepRun, now: datetime) -> None:
        """Write what is wished."""

    def unchanged(self, step: StepRun, now: datetime) -> str:
        """Why a step that runs only when changed is skipped; empty when it runs."""
        if looks.changed_before(step):
            return ""
        target = f"{step.machine}.{step.connector}" if step.connector else step.machine or "anything"
        return f"This deployment did not change {target}: nothing to do."

    def check(self, step: StepRun, now: datetime) -> Outcome:
        """How far it is."""
        raise NotImplementedError

    def abandon(self, step: StepRun, now: datetime) -> None:
        """Nobody looks at the step any more, for its time is over or the deployment was cancelled: take back what would still run."""

    def overdue(self, step: StepRun) -> str:
        """What did not happen in time; the engine adds "within 120 s: " and the reason of the last look."""
        return f"{step.title} did not end"


# ------------------------------------------------------------------------------------------------------- alerting and persons


class AlertingOff(Kind):
    def begin(self, step: StepRun, now: datetime) -> None:
        Deployment.objects.filter(pk=step.deployment_id).update(alerting_off=True)

    def check(self, step: StepRun, now: datetime) -> Outcome:
        return done(f"No alerts for {step.deployment.environment.name} until this deployment ends.")


class Manual(Kind):
    """Waits for a person: rollout.confirm ends it, or after its time limit rollout.end_waits."""

    def check(self, step: StepRun, now: datetime) -> Outcome:
        return waiting(step.instruction)

    def overdue(self, step: StepRun) -> str:
        return "Nobody confirmed it"


# ------------------------------------------------------------------------------------------------------------------- routers


class DeployRouters(Kind):
    """Start all routers and the witness together; a majority is enough, for the others may be away for long. The members of a running
    cluster are changed one at a time, until all are as wished."""

    def begin(self, step: StepRun, now: datetime) -> None:
        environment = step.deployment.environment
        machines = list(Machine.objects.filter(environment=environment, router__leaving=False))
        values = frozen.values_of(step.deployment)
        found = {machine.name: router_addresses.failover_address(machine.name, values) for machine in machines}
        reasons = [
            f"{property_uses.router_name(machine.name, machine.kind)} needs a value for {use.key} ({use.used_by})."
            for machine in machines
            for use, value in zip(property_uses.router_uses(machine.name), found[machine.name], strict=True)
            if value is None
        ] or router_addresses.address_conflicts(found, one_host=environment.one_host)
        if reasons:
            raise NotAllowed(" ".join(reasons), reasons=reasons)
        for sentence in fleet.shared_addresses(environment, found):
            tell(step, sentence, now, level="warning")
        if machines:
            addresses = {name: (address, int(port)) for name, (address, port) in found.items() if address and port}
            self._tell_kept(step, now)
            change = membership.assign(environment, addresses, actor=actor(step), now=now, driven=True)
            step.memory.update(change=change.pk if change is not None else None, said=0)
        profiles.retime_founders(environment)
        versions = Machine.objects.filter(environment=environment, router__isnull=False).values_list("name", "orders_version")
        step.memory["orders"] = dict(versions)

    def _tell_kept(self, step: StepRun, now: datetime) -> None:
        environment = step.deployment.environment
        routers = fleet.routers_of(environment)
        if membership.kept_back(environment, routers):
            note(step, membership.going(environment, routers), now)

    def check(self, step: StepRun, now: datetime) -> Outcome:
        changing = self._change(step, now)
        if changing is not None:
            return changing
        retiming = profiles.retime_next(step.deployment.environment, now=now)
        if retiming:
            return running(retiming)
        routers = [router for router in self._routers(step) if router.desired_running]
        if not routers:
            return done("There are no routers here: nothing runs in failover.")
        if all(router.leaving for router in routers):
            return done("The routers go once nothing here runs in failover any more.")
        voters = [router for router in routers if router.machine.name in router.desired_members]
        lacking = {router.machine.name: reason for router in routers if (reason := self._lacking(step, router, now))}
        votes = sum(router.machine.name not in lacking for router in voters)
        addresses = ", ".join(f"{router.machine.name} on {router.desired_host}:{router.desired_port}" for router in routers)
        if not lacking:
            return done(f"All {len(routers)} routers run: {addresses}.")
        tail = " ".join(lacking.values())
        if votes > len(voters) // 2:
            return done(f"{votes} of {len(voters)} routers run, a majority. Not yet: {tail}")
        return running(f"{votes} of {len(voters)} routers run, no majority yet. {tail}")

    def _change(self, step: StepRun, now: datetime) -> Outcome | None:
        """How far the change of a running cluster's members is. None: there is none (any more)."""
        if not step.memory.get("change"):
            return None
        change = membership.drive(MembershipChange.objects.get(pk=step.memory["change"]), now=now)
        if change.hand_over:
            wait = self._hand_over(step, change.hand_over, now)
            if wait is not None:
                return wait
            membership.handed_over(change, change.hand_over, now=now)
            change.refresh_from_db()
        for line in change.log[step.memory["said"] :]:
            tell(step, line["text"], datetime.fromisoformat(line["at"]))
        step.memory["said"] = len(change.log)
        if change.status == MembershipStatus.SUCCEEDED:
            return None
        if change.status == MembershipStatus.REPLACED:
            return failed("Somebody else began another change of the routers: deploy again to see what is left to do.")
        if not change.refused:
            step.memory.pop("refused_since", None)
            return running(change.sentence)
        since = datetime.fromisoformat(step.memory.setdefault("refused_since", now.isoformat()))
        if now - since < REFUSAL_STANDS_AFTER:
            return running(change.sentence)
        membership.refuse(change, now=now)
        return failed(change.sentence)

    def _hand_over(self, step: StepRun, machine: str, now: datetime) -> Outcome | None:
        """Give up what the machine leads before its router is restarted or removed. None: it leads nothing (any more)."""
        runtimes = Runtime.objects.filter(environment=step.deployment.environment, machine__name=machine, failover=True)
        outcomes = [hand_over(Look(step, runtime, now)) for runtime in runtimes.select_related("machine", "connector", "environment")]
        waits = [outcome for outcome in outcomes if outcome is not None]
        return together(waits) if waits else None

    def abandon(self, step: StepRun, now: datetime) -> None:
        change = MembershipChange.objects.filter(pk=step.memory.get("change"), status=MembershipStatus.RUNNING).first()
        if change is not None:
            membership.halt(change, f"{change.actor} was cancelled or did not come to its end in time", now=now)

    def overdue(self, step: StepRun) -> str:
        return "The routers did not come to run as wished" if step.memory.get("change") else "No majority of the routers ran"

    def _routers(self, step: StepRun) -> list[Router]:
        routers = Router.objects.filter(machine__environment=step.deployment.environment)
        return list(routers.select_related("machine").order_by("machine__kind", "machine__name"))

    def _lacking(self, step: StepRun, router: Router, now: datetime) -> str:
        """Why this router does not run as ordered; empty when it does."""
        machine, name = router.machine, property_uses.router_name(router.machine.name, router.machine.kind)
        if machine.is_silent(now=now):
            return silence(machine, now)
        if machine.orders_taken < step.memory["orders"].get(machine.name, 0):
            return f"{machine.name} has not taken its orders yet."
        if router.observed_state == RouterState.RUNNING:
            return ""
        said = f"The {name} is {RouterState(router.observed_state).value}{because(router.observed_reason)}"
        others = fleet.others_at(router) if router.observed_state == RouterState.FAILED else []
        return " ".join([said, *(_same_address(router, other) for other in others)])


def _same_address(router: Router, other: Router) -> str:
    return (
        f"{other.machine} of {other.machine.environment} is ordered to run at {router.desired_host}:{router.desired_port} too: "
        f"if that is the same machine, give one of them another Failover port ({router.machine.name}.failover.port)."
    )


# -------------------------------------------------------------------------------------------------- runtimes: what they share


_members_of = Prepared(lambda runtime: GroupMember.objects.filter(runtime=runtime).select_related("group__group").order_by("group__name"))


def proof(runtime: Runtime, digest: str, memory: Memory, now: datetime, *, gone: Collection[str] = ()) -> Outcome | None:
    """Does the runtime run the bundle, ready and settled in its groups but those that are `gone` (ids), by a fresh report? None: yes."""
    machine, key = runtime.machine, runtime.key
    state, tail = RuntimeState(runtime.observed_state), because(runtime.observed_reason)
    if machine.is_silent(now=now):
        return running(silence(machine, now))
    if machine.orders_taken < memory.get("orders", 0):
        return running(f"{machine.name} has not taken its orders yet.")
    if state == RuntimeState.FAILED:
        since = datetime.fromisoformat(memory.setdefault("failed_since", now.isoformat()))
        sentence = f"{key} failed{tail}"
        return failed(sentence) if now - since >= FAILURE_STANDS_AFTER else running(sentence)
    memory.pop("failed_since", None)
    if state != RuntimeState.READY or runtime.observed_digest != digest or runtime.observed_restarts < runtime.desired_restarts:
        still = " and still runs what it ran before" if state == RuntimeState.READY else ""
        return running(f"{key} is {state.value}{still}{tail}")
    for member in _members_of.all(runtime.pk):
        if member.group.group.key in gone:
            continue
        if member.observed_status not in SETTLED:
            return running(f"{key} is {Status(member.observed_status).value} in group {member.group}{because(member.observed_reason)}")
        if member.observed_status == Status.FOLLOWER and not member.observed_ready:
            why = because(failover.cause(member.group, member))
            return running(f"{key} follows in group {member.group} but is not ready to take over{why}")
    return None


class OnRuntime(Kind):
    """Kinds that act on one runtime (Deploy machine: on all of a machine): `order` once what it leads is handed over, then `proven`."""

    gives_up_leadership: ClassVar[bool] = True
    stops: ClassVar[bool] = False  # for good

    def targets(self, step: StepRun) -> list[Runtime]:
        return [find_runtime(step)]

    def check(self, step: StepRun, now: datetime) -> Outcome:
        return together([self.look(Look(step, runtime, now)) for runtime in self.targets(step)])

    def overdue(self, step: StepRun) -> str:
        target = f"{step.machine}.{step.connector}" if step.connector else f"All of {step.machine}"
        if any(told.get("gate") for told in step.memory.get("runtimes", {}).values()):
            return f"{target} could not be touched"
        return f"{target} did not report ready"

    def look(self, look: Look) -> Outcome:
        memory = look.memory
        if "orders" not in memory:
            if self.needs_order(look):
                wait = self.clear_the_way(look)
                if wait is None and self.gives_up_leadership and "stopping" not in memory and not memory.get("forced"):
                    asked = bool(memory.get("requests"))  # while a hand-over is under way the gate would see its follower busy
                    wait = None if asked else gated(look, stops=self.stops)
                    wait = wait or hand_over(look)
                    if wait is None and asked:  # it ended, but who took over may be gone again
                        wait = gated(look, stops=self.stops)
                if wait is not None:
                    return wait
                self.order(look)
                memory["touched"] = True
            remember_orders(memory, look.runtime)
        outcome = self.proven(look)
        memory["proven"] = outcome.state in ("done", "skipped")
        return outcome

    def needs_order(self, look: Look) -> bool:
        """False: it is as wished already, and nothing is disturbed."""
        return True

    def clear_the_way(self, look: Look) -> Outcome | None:
        """What must have stopped before this runtime may be ordered. None: nothing (any more)."""
        return None

    def order(self, look: Look) -> None:
        raise NotImplementedError

    def proven(self, look: Look) -> Outcome:
        raise NotImplementedError


# ----------------------------------------------------------------------------------------------------------- runtimes: deploy


def stop_siblings(look: Look, clashing: Sequence[tuple[Runtime, list[str]]]) -> Outcome | None:
    """Hold every sibling that runs, or is ordered to run, what must not run beside what comes, and wait until each is proven stopped.

    None: nothing runs that disagrees. Siblings that agree already go on. Held ones are started by their own deploy step.

    Raises:
        NotAllowed: no later step deploys such a sibling; nothing was touched.
    """
    if not clashing:
        return None
    step, runtime, memory = look.step, look.runtime, look.memory
    later = list(StepRun.objects.filter(deployment_id=step.deployment_id, number__gt=step.number).exclude(status__in=DONE))
    left = [(sibling, clauses) for sibling, clauses in clashing if not any(moves.deploys(other, sibling) for other in later)]
    if left:
        reasons = [moves.not_deployed_later(sibling, clauses) for sibling, clauses in left]
        raise NotAllowed(" ".join(reasons), reasons=reasons)
    first = [sibling for sibling, _ in clashing if not sibling.held]
    for sibling, clauses in clashing:
        fleet.hold(sibling, f"deployment {step.deployment_id} changes who takes: {' and '.join(clauses)}.")
    causes = list(dict.fromkeys(clause for _, clauses in clashing for clause in clauses))
    sentence = moves.gap(runtime.connector.name, [runtime, *(sibling for sibling, _ in clashing)], causes)
    versions = memory.setdefault("stopping", {})
    for sibling, _ in clashing:
        if sibling.key not in versions:  # as of now: the hold is in these orders
            versions[sibling.key] = Machine.objects.values_list("orders_version", flat=True).get(pk=sibling.machine_id)
    if first:
        look.tell(f"There is a gap: {sentence}.", level="warning")
    waits = [wait for sibling, _ in clashing if (wait := _not_proven_stopped(sibling, versions[sibling.key], look.now))]
    if waits:
        return running(f"{sentence}. {' '.join(waits)}")
    if not memory.get("all_stopped"):
        memory["all_stopped"] = True
        stopped = " and ".join(sibling.key for sibling, _ in clashing)
        look.tell(f"{stopped}: proven stopped. {runtime.key} may start.")
    return None


def _not_proven_stopped(runtime: Runtime, orders: int, now: datetime) -> str:
    """Why; empty when its machine took these orders and then saw no process. What was proven once stays so: only new orders start it."""
    machine, state = runtime.machine, RuntimeState(runtime.observed_state)
    if machine.orders_taken >= orders and state == RuntimeState.STOPPED:
        return ""
    if machine.is_silent(now=now):
        return f"It cannot be proven that {runtime.key} stopped: {silence(machine, now)}"
    if machine.orders_taken < orders:
        return f"{machine.name} has not taken its orders yet."
    return f"{runtime.key} is {state.value}{because(runtime.observed_reason)}"


def runs_as_ordered(runtime: Runtime, now: datetime) -> bool:
    """Does it run what it is ordered to run, ready, by a fresh report."""
    return (
        runtime.desired_running
        and not runtime.held
        and runtime.desired_bundle_id == runtime.observed_digest
        and runtime.observed_state == RuntimeState.READY
        and runtime.observed_restarts >= runtime.desired_restarts
        and not runtime.machine.is_silent(now=now)
    )


def retire(look: Look, reason: str) -> Outcome:
    """Stop a runtime for which the release has nothing. No gate and no hand-over: its groups are not part of the release that a person
    chose, every member of them goes, and what is still to go takes over until its own step."""
    memory, runtime = look.memory, look.runtime
    if runtime.desired_bundle_id is None:
        return skipped(f"{reason}, and nothing of it was ever deployed to {runtime.machine.name}.")
    if "orders" not in memory:
        memory["unchanged"] = at_rest(runtime)
        fleet.retire(runtime, f"{reason}.")
        remember_orders(memory, runtime)
        if not memory["unchanged"]:
            look.tell(f"{reason}: {runtime.key} is ordered to stop.", level="warning")
    if memory["unchanged"]:
        return skipped(f"{reason}: {runtime.key} is stopped already.")
    lacking = _not_proven_stopped(runtime, memory["orders"], look.now)
    return running(f"{reason}: {runtime.key} stops. {lacking}") if lacking else done(f"{reason}: {runtime.key} is stopped.")


def at_rest(runtime: Runtime) -> bool:
    """Is it held, and seen stopped."""
    return bool(runtime.held) and runtime.observed_state == RuntimeState.STOPPED


def ordered_already(runtime: Runtime, content: protocol.BundleContent) -> Bundle | None:
    """The bundle that it is ordered to run, if that is this content, made by whichever release."""
    ordered = runtime.desired_bundle
    return ordered if ordered is not None and not ordered.is_lost and moves.same_but_release(ordered.read(), content) else None


def will_change(deployment: Deployment, runtime: Runtime, now: datetime) -> bool:
    """Would a deploy step of this deployment give the runtime something else to run, or start it anew, as things are now."""
    if moves.lacks(deployment.release, runtime.connector.name):
        return not at_rest(runtime)
    try:
        content = releases.bundle_for(deployment.release, runtime, property_values.Values(frozen.values_of(deployment)))
    except NotAllowed:  # its own step says so
        return True
    return ordered_already(runtime, content) is None or not runs_as_ordered(runtime, now)


class DeployRuntime(OnRuntime):
    def look(self, look: Look) -> Outcome:
        if reason := moves.lacks(look.step.deployment.release, look.runtime.connector.name):
            return retire(look, reason)
        return super().look(look)

    def needs_order(self, look: Look) -> bool:
        deployment, runtime, memory = look.step.deployment, look.runtime, look.memory
        content = releases.bundle_for(deployment.release, runtime, property_values.Values(frozen.values_in(look.frozen, deployment)))
        look.bundle = ordered_already(runtime, content) or fleet.store_bundle(runtime.environment, content)
        memory["digest"] = look.bundle.digest
        memory["unchanged"] = runtime.desired_bundle_id == look.bundle.digest and runs_as_ordered(runtime, look.now)
        if memory["unchanged"]:  # disturbs nothing; its memberships may still be those that a sibling's newer bundle gave it
            fleet.assign(runtime, look.bundle, release=deployment.release.number)
            frozen.given(runtime, look.frozen)
        return not memory["unchanged"]

    def clear_the_way(self, look: Look) -> Outcome | None:
        assert look.bundle is not None  # needs_order found it
        clashing = moves.clashing(look.runtime, look.bundle)
        # What it runs now must not run beside what comes, so there is nobody to hand over to: the gap was announced.
        look.memory["forced"] = any(runtime == look.runtime for runtime, _ in clashing)
        return stop_siblings(look, [(runtime, clauses) for runtime, clauses in clashing if runtime != look.runtime])

    def order(self, look: Look) -> None:
        assert look.bundle is not None  # needs_order found it
        runtime, release = look.runtime, look.step.deployment.release.number
        again = runtime.desired_bundle_id == look.bundle.digest and runtime.desired_running and not runtime.held
        fleet.assign(runtime, look.bundle, release=release)
        frozen.given(runtime, look.frozen)
        look.tell(f"{runtime.key} is ordered to run release {release}, bundle {look.bundle}.")
        if not runtime.desired_running:
            fleet.start(runtime)
            look.tell(f"{runtime.key} was stopped by a person; deploying starts it.")
        elif again and runtime.observed_state in (RuntimeState.FAILED, RuntimeState.BACKOFF, RuntimeState.HANGING):
            fleet.restart(runtime)
            look.tell(f"{runtime.key} has these orders already but is {runtime.observed_state}: it starts anew.")

    def proven(self, look: Look) -> Outcome:
        lacking = proof(look.runtime, look.memory["digest"], look.memory, look.now)
        if lacking is not None:
            return lacking
        if look.memory["unchanged"]:
            return skipped(f"{look.runtime.key} already runs this bundle: not restarted.")
        return done(f"{look.runtime.key} runs release {look.step.deployment.release.number}.")


class DeployMachine(DeployRuntime):
    def targets(self, step: StepRun) -> list[Runtime]:
        runtimes = Runtime.objects.filter(environment=step.deployment.environment, machine__name=step.machine)
        found = list(runtimes.select_related("machine", "connector", "environment").order_by("connector__name"))
        if not found:
            raise NotAllowed(f"{step.machine} has no runtimes on {step.deployment.environment.name}: apply the architecture first.")
        return found


# ------------------------------------------------------------------------------------------------- runtimes: start, stop, restart


def _ordered_digest(runtime: Runtime) -> str:
    if runtime.desired_bundle_id is None:
        raise NotAllowed(f"Nothing was deployed to {runtime.key} yet: deploy it first.")
    return runtime.desired_bundle_id


class StartRuntime(OnRuntime):
    gives_up_leadership = False

    def needs_order(self, look: Look) -> bool:
        _ordered_digest(look.runtime)
        fleet.refuse_held(look.runtime)
        return not look.runtime.desired_running

    def order(self, look: Look) -> None:
        fleet.start(look.runtime)

    def proven(self, look: Look) -> Outcome:
        return proof(look.runtime, _ordered_digest(look.runtime), look.memory, look.now) or done(f"{look.runtime.key} runs.")


class RestartRuntime(OnRuntime):
    def order(self, look: Look) -> None:
        _ordered_digest(look.runtime)
        fleet.restart(look.runtime)

    def proven(self, look: Look) -> Outcome:
        return proof(look.runtime, _ordered_digest(look.runtime), look.memory, look.now) or done(f"{look.runtime.key} was restarted.")


class StopRuntime(OnRuntime):
    stops = True

    def needs_order(self, look: Look) -> bool:
        return look.runtime.desired_running

    def order(self, look: Look) -> None:
        fleet.stop(look.runtime)

    def proven(self, look: Look) -> Outcome:
        runtime = look.runtime
        if runtime.machine.is_silent(now=look.now):
            return running(silence(runtime.machine, look.now))
        if runtime.machine.orders_taken < look.memory["orders"]:
            return running(f"{runtime.machine} has not taken its orders yet.")
        if runtime.observed_state != RuntimeState.STOPPED:
            return running(f"{runtime.key} is {RuntimeState(runtime.observed_state).value}{because(runtime.observed_reason)}")
        return done(f"{runtime.key} is stopped.")

    def overdue(self, step: StepRun) -> str:
        return f"{step.machine}.{step.connector} did not stop"


# -------------------------------------------------------------------------------------------------------------------- groups


class OnGroup(Kind):
    """Kinds that move the leadership of one group through a hand-over."""

    def unchanged(self, step: StepRun, now: datetime) -> str:
        """Where a later step deploys the runtime that leads, the hand-over is for that one's sake: only if it changes."""
        try:
            view = failover.verdict(self._group(step, find_runtime(step)), now=now)
        except NotAllowed:  # it is not there (yet)
            return super().unchanged(step, now)
        leader = view.leader.member.runtime if view.leader else None
        later = StepRun.objects.filter(deployment_id=step.deployment_id, number__gt=step.number).exclude(status__in=DONE)
        if leader is None or not any(moves.deploys(other, leader) for other in later):
            return super().unchanged(step, now)
        if will_change(step.deployment, leader, now):
            return ""
        return f"{leader.key} leads {step.group}, and this deployment does not change it: no hand-over is needed."

    def wished(self, leader: Runtime | None, runtime: Runtime) -> bool:
        raise NotImplementedError

    def request(self, step: StepRun, group: FailoverGroup, now: datetime) -> GroupRequest:
        raise NotImplementedError

    def check(self, step: StepRun, now: datetime) -> Outcome:
        runtime = find_runtime(step)
        group = self._group(step, runtime)
        view = failover.verdict(group, now=now)
        leader = view.leader.member.runtime if view.leader else None
        asked = GroupRequest.objects.filter(pk=step.memory["request"]).first() if "request" in step.memory else None
        if asked is not None and asked.status in LIVE_REQUESTS:
            return running(f"{group} is being handed over{because(asked.reason)}")
        if self.wished(leader, runtime):
            return done(f"{leader.key if leader else 'Nobody'} leads {group}.")
        if asked is not None and asked.status != RequestStatus.SUCCEEDED:
            return failed(f"{group} was not handed over{because(asked.reason or asked.status)}")
        if asked is not None:
            return running(f"{group} was handed over; the machines have yet to report it.")
        try:
            step.memory["request"] = str(self.request(step, group, now).pk)
        except (Busy, NotReady, Stale) as refusal:  # may become possible before the deadline
            return running(refusal.sentence)
        return running(f"{group} is being handed over.")

    def overdue(self, step: StepRun) -> str:
        return f"{step.group} was not handed over"

    def _group(self, step: StepRun, runtime: Runtime) -> FailoverGroup:
        groups = FailoverGroup.objects.filter(members__runtime=runtime, group__connector=runtime.connector_id)
        for group in groups.prefetch_related("members__runtime__machine", "members__runtime__connector"):
            if group.name == step.group:
                return group
        raise NotAllowed(f"{runtime.key} has no group {step.group} in what is deployed on {runtime.environment.name}: deploy it first.")


class GroupStart(OnGroup):
    def wished(self, leader: Runtime | None, runtime: Runtime) -> bool:
        return leader is not None and leader.pk == runtime.pk

    def request(self, step: StepRun, group: FailoverGroup, now: datetime) -> GroupRequest:
        return failover.switch(group, candidate=step.machine, expected_leader=None, actor=actor(step), now=now)


class GroupStop(OnGroup):
    def wished(self, leader: Runtime | None, runtime: Runtime) -> bool:
        return leader is not None and leader.pk != runtime.pk

    def request(self, step: StepRun, group: FailoverGroup, now: datetime) -> GroupRequest:
        return failover.switch(group, candidate=None, expected_leader=step.machine, actor=actor(step), now=now)


# --------------------------------------------------------------------------------------------------------------------- flows


class OnFlow(OnRuntime):
    """Starts or stops one ungrouped flow; a grouped one runs where its group leads, which Group steps and Balance decide."""

    gives_up_leadership = False
    on: ClassVar[bool]

    def flow(self, look: Look) -> protocol.FlowSpec:
        step, runtime = look.step, look.runtime
        if runtime.desired_bundle is None:
            raise NotAllowed(f"Nothing was deployed to {runtime.key} yet: deploy it first.")
        content = runtime.desired_bundle.read()
        found = next((flow for flow in content.flows if flow.name == step.flow), None)
        if found is None:
            raise NotAllowed(f"Release {runtime.desired_release} on {runtime.key} has no flow {step.flow}: deploy a release that has it.")
        return found

    def order(self, look: Look) -> None:
        (fleet.start_flow if self.on else fleet.stop_flow)(look.runtime, self.flow(look).id)

    def proven(self, look: Look) -> Outcome:
        flow, runtime, machine = self.flow(look), look.runtime, look.runtime.machine
        if machine.is_silent(now=look.now):
            return running(silence(machine, look.now))
        if machine.orders_taken < look.memory["orders"]:
            return running(f"{machine} has not taken its orders yet.")
        told = next((told for told in runtime.observed_flows if told["flow"] == flow.id), None)
        if told is None and not self.on and runtime.observed_state == RuntimeState.STOPPED:
            return done(f"{flow.name} is off, for {runtime.key} is stopped.")
        if told is None:
            return running(f"{runtime.key} has not told of flow {flow.name} yet.")
        if bool(told["on"]) is not self.on:
            return running(f"{flow.name} on {runtime.key} is {'on' if told['on'] else 'off'}{because(told.get('reason', ''))}")
        return done(f"{flow.name} on {runtime.key} is {'on' if self.on else 'off'}.")

    def overdue(self, step: StepRun) -> str:
        return f"{step.flow} on {step.machine}.{step.connector} was not {'started' if self.on else 'stopped'}"


class FlowStart(OnFlow):
    on = True


class FlowStop(OnFlow):
    on = False


# ------------------------------------------------------------------------------------------------------------- waits and checks


class WaitHealthy(Kind):
    """Waits until the runtime, all of the machine's, or all of the environment run what is ordered, settled in healthy groups."""

    by_group = True

    def check(self, step: StepRun, now: datetime) -> Outcome:
        without, release = left_out(step), step.deployment.release
        rows = self._runtimes(step).exclude(machine__name__in=without).select_related("machine", "connector")
        ordered = [row for row in rows if row.desired_bundle_id and row.desired_running]
        # What the release lacks ends with it: nobody waits for a runtime that it stopped, or for a group that a member still to be
        # deployed, or left out, is in.
        retired = [row for row in ordered if row.held and moves.lacks(release, row.connector.name)]
        runtimes = [row for row in ordered if row not in retired]
        groups = FailoverGroup.objects.filter(environment=step.deployment.environment, members__runtime__in=runtimes).distinct()
        ended = {group.group.key: group for group in groups.select_related("group") if ends(release, group.group.key)}
        lacking, said = [], set()
        for row in runtimes:
            if row.held:
                sentence = f"{row.key} stays stopped until it is deployed: {row.held.rstrip('.')}."
                return running(sentence) if self._deployed_beside(step, row) else failed(f"{sentence} Deploy it before this step.")
            if wait := proof(row, str(row.desired_bundle_id), {}, now, gone=ended):
                lacking.append(wait.sentence)
                said.add((row.machine.name, row.connector_id))
        looked_at = groups.filter(failover=True).exclude(group__key__in=ended).select_related("group")
        for group in looked_at.prefetch_related(failover.with_members()):
            told = {name for name, connector in said if connector == group.group.connector_id}
            if problems := failover.without(failover.verdict(group, now=now), without | told).problems:
                told_so = problems[0].endswith(f" {group.name}.")
                whole = " ".join([problems[0].replace(failover.ALL_DISABLED, ALL_DISABLED), *problems[1:]])
                lacking.append(whole if told_so else f"{group.name}: {whole}")
        if lacking:
            return running(" ".join(dict.fromkeys(lacking)))
        names = " and ".join(row.key for row in runtimes) if len(runtimes) <= 3 else f"All {len(runtimes)} runtimes"
        found = [f"{names} {'is' if len(runtimes) == 1 else 'are'} healthy." if runtimes else "Nothing is to run here."]
        found += [f"{row.key} is not waited for: {row.held}" for row in retired]
        found += [f"Group {group} is not waited for: release {release.number} does not have it." for group in ended.values()]
        return done(" ".join(found))

    def _deployed_beside(self, step: StepRun, runtime: Runtime) -> bool:
        """Is there a step in another lane that deploys it meanwhile."""
        stage = StepRun.objects.filter(deployment=step.deployment_id, stage_number=step.stage_number)
        return any(moves.deploys(other, runtime) for other in stage.exclude(lane=step.lane).exclude(status__in=DONE))

    def overdue(self, step: StepRun) -> str:
        return "Not everything was healthy"

    def _runtimes(self, step: StepRun) -> QuerySet[Runtime]:
        rows = Runtime.objects.filter(environment=step.deployment.environment).order_by("machine__name", "connector__name")
        if step.machine:
            rows = rows.filter(machine__name=step.machine)
        return rows.filter(connector__name=step.connector) if step.connector else rows


class RunCommand(Kind):
    """A command of the machine's own list, run once by its agent; its output comes into the log line by line."""

    def begin(self, step: StepRun, now: datetime) -> None:
        machine = Machine.objects.filter(environment=step.deployment.environment, name=step.machine).first()
        if machine is None:
            raise NotAllowed(f"{step.machine} is no machine on {step.deployment.environment.name} any more: the architecture was changed.")
        run = commands.ask(machine, step.command, timeout_seconds=step.timeout_seconds, actor=actor(step), now=now)
        step.memory["command"] = str(run.pk)

    def check(self, step: StepRun, now: datetime) -> Outcome:
        run = CommandRun.objects.select_related("machine").filter(pk=step.memory["command"]).first()
        if run is None:
            return failed(f"{step.machine} was removed while {step.command} was to be run.")
        for line in run.output[step.memory.get("lines", 0) :]:
            tell(step, line, now, machine=step.machine)
        step.memory["lines"] = len(run.output)
        if run.status == CommandStatus.SUCCEEDED:
            return done(f"{step.command} on {step.machine} ended with exit status 0.")
        if run.status not in LIVE_COMMANDS:
            return failed(f"{step.command} on {step.machine}{because(run.reason)}")
        if run.machine.is_silent(now=now):
            return running(silence(run.machine, now))
        return running(f"{step.command} {'runs' if run.status == CommandStatus.RUNNING else 'has yet to be taken'} on {step.machine}.")

    def abandon(self, step: StepRun, now: datetime) -> None:
        if "command" in step.memory:
            commands.take_back(step.memory["command"], now=now)

    def overdue(self, step: StepRun) -> str:
        return f"{step.command} on {step.machine} did not end"


def _not_probed(step_id: int, attempt: int) -> None:
    """Without a broker (tests of pure parts) nobody asks."""


# Set by DeploymentsConfig.ready() to tasks.send_probe: has a worker ask once, outside of any transaction, and wake the step.
probe: Callable[[int, int], object] = _not_probed
PROBE_EVERY = timedelta(seconds=2)


class HttpCheck(Kind):
    """Asks an address until it answers with the expected status. The asking is a task of its own: a look at a step never waits."""

    def check(self, step: StepRun, now: datetime) -> Outcome:
        answer = step.memory.get("answer")
        if answer is not None and answer["status"] == step.expected_status:
            return done(f"{step.url} answered {answer['status']}.")
        asked_at = step.memory.get("asked_at")
        if asked_at is None or now - datetime.fromisoformat(asked_at) >= PROBE_EVERY:
            step.memory["asked_at"] = now.isoformat()
            probe(step.pk, step.attempt)
        if answer is None:
            return running(f"{step.url} is asked.")
        said = f"answered {answer['status']}" if answer["status"] else f"did not answer{because(answer['reason']).rstrip('.')}"
        return running(f"{step.url} {said}; {step.expected_status} is expected.")

    def overdue(self, step: StepRun) -> str:
        return f"{step.url} did not answer {step.expected_status}"


# ------------------------------------------------------------------------------------------------------------------- balance


class BalanceFailover(Kind):
    """Put each group's leadership on its preferred machine, proven; the evidence stays in the step's memory."""

    by_group = True

    def check(self, step: StepRun, now: datetime) -> Outcome:
        deployment = step.deployment
        keys = [group["id"] for group in deployment.release.content["groups"]]
        groups = FailoverGroup.objects.filter(environment=deployment.environment, failover=True, group__key__in=keys)
        without = left_out(step)
        seen = [(group, self._look(step, group, without, now)) for group in groups.prefetch_related(failover.with_members())]
        if not seen:
            return done("There is no failover group here: nothing to balance.")
        step.memory["groups"] = [evidence(group, outcome, without, now) for group, outcome in seen]
        return together([Outcome(outcome.state, _named(group.name, outcome.sentence)) for group, outcome in seen])

    def _look(self, step: StepRun, group: FailoverGroup, without: set[str], now: datetime) -> Outcome:
        assert step.started_at is not None
        try:
            look = balancing.balance(
                group,
                release=step.deployment.release.number,
                actor=actor(step),
                step_began_at=step.started_at,
                left_out=without,
                once=step.hand_overs == HandOvers.ONCE,
                now=now,
            )
        except (Busy, NotReady, Stale) as refusal:
            return running(refusal.sentence)
        except NotAllowed as refusal:
            return failed(refusal.sentence)
        out = sorted(member.runtime.machine.name for member in group.members.all() if member.runtime.machine.name in without)
        tail = f" Proven without {' and '.join(out)}, left out of this deployment." if out and look.done else ""
        return Outcome("done" if look.done else "failed" if look.failed else "running", look.reason + tail)

    def overdue(self, step: StepRun) -> str:
        return "The failover groups were not balanced"


def evidence(group: FailoverGroup, outcome: Outcome, without: set[str], now: datetime) -> dict[str, Any]:
    """What was seen of a group at one look of Balance: who led, since which epoch, and each member as its machine told it."""
    seen = failover.verdict(group, now=now)
    return {
        "group": group.name,
        "state": outcome.state,
        "reason": outcome.sentence,
        "at": now.isoformat(),
        "leader": seen.leader.member.runtime.key if seen.leader else None,
        "epoch": seen.leader.member.observed_epoch if seen.leader else None,
        "members": [
            {
                "runtime": said.member.runtime.key,
                "status": str(said.status),
                "state": str(said.state),
                "epoch": said.member.observed_epoch,
                "release": said.member.runtime.observed_release,
                "heard_at": said.member.observed_at.isoformat() if said.member.observed_at else None,
                "left_out": said.machine in without,
            }
            for said in seen.members
        ],
    }


def _named(group: str, sentence: str) -> str:
    return sentence if group in sentence else f"{group}: {sentence}"


KINDS: Mapping[StepKind, Kind] = {
    StepKind.ALERTING_OFF: AlertingOff(),
    StepKind.DEPLOY_ROUTERS: DeployRouters(),
    StepKind.DEPLOY_MACHINE: DeployMachine(),
    StepKind.DEPLOY_RUNTIME: DeployRuntime(),
    StepKind.START_RUNTIME: StartRuntime(),
    StepKind.STOP_RUNTIME: StopRuntime(),
    StepKind.RESTART_RUNTIME: RestartRuntime(),
    StepKind.GROUP_START: GroupStart(),
    StepKind.GROUP_STOP: GroupStop(),
    StepKind.FLOW_START: FlowStart(),
    StepKind.FLOW_STOP: FlowStop(),
    StepKind.MANUAL: Manual(),
    StepKind.WAIT_HEALTHY: WaitHealthy(),
    StepKind.RUN_COMMAND: RunCommand(),
    StepKind.HTTP_CHECK: HttpCheck(),
    StepKind.BALANCE_FAILOVER: BalanceFailover(),
}
