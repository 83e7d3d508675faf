"""What a step does: one small class per kind, in one registry. Each begins (writes wishes) and checks (reads facts), and never waits.

Both run inside the transaction of `rollout.tick`: what they wrote is undone when the worker dies, and then done again. `step.memory` is
what a kind keeps from one look to the next. A refusal (`NotAllowed`) of anything they call fails the step with its sentence.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal

from deployments import frozen, moves, releases
from deployments.models import DONE, Deployment, StepKind, StepLog, StepRun
from portal import properties
from portal.errors import Busy, NotAllowed, NotReady, Stale
from runtimes import failover, fleet, membership, protocol
from runtimes.models import (
    LIVE_REQUESTS,
    Bundle,
    FailoverGroup,
    GroupMember,
    GroupRequest,
    Machine,
    MembershipChange,
    MembershipStatus,
    Router,
    Runtime,
)
from runtimes.protocol import RequestStatus, RouterState, RuntimeState, Status

SETTLED = (Status.LEADER, Status.FOLLOWER, Status.DISABLED, Status.SINGLE_NODE)
# A report that was under way when the order was taken may still tell of the failure before it.
FAILURE_STANDS_AFTER = timedelta(seconds=2)
# A router that was just restarted is away for a moment, and its report comes every 2 s.
REFUSAL_STANDS_AFTER = timedelta(seconds=10)
_BY_PREFERENCE = (protocol.Preference.LEADER, protocol.Preference.BACKUP, protocol.Preference.NONE)

Memory = MutableMapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One look at a step: done, failed, waiting (for a person) or running, and why, in a sentence."""

    state: Literal["done", "failed", "waiting", "running"]
    sentence: str


def done(sentence: str) -> Outcome:
    return Outcome("done", sentence)


def failed(sentence: str) -> Outcome:
    return Outcome("failed", sentence)


def waiting(sentence: str) -> Outcome:
    return Outcome("waiting", sentence)


def running(sentence: str) -> Outcome:
    return Outcome("running", sentence)


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of several: running while one runs, so that each comes to its end; then failed if one failed, else done."""
    for state in ("running", "failed"):
        sentences = [outcome.sentence for outcome in outcomes if outcome.state == state]
        if sentences:
            return Outcome(state, " ".join(sentences))
    return done(" ".join(outcome.sentence for outcome in outcomes))


class Kind:
    """A kind of step. `begin` runs once per attempt, before the first `check`."""

    def begin(self, step: StepRun, now: datetime) -> None:
        """Write what is wished."""

    def check(self, step: StepRun, now: datetime) -> Outcome:
        """How far it is."""
        raise NotImplementedError

    def overdue(self, step: StepRun) -> str:
        """What did not happen in time; the engine adds "within 120 s: " and the reason of the last look."""
        return f"{step.title} did not end"


def note(step: StepRun, text: str, now: datetime, *, machine: str = "", level: str = "info") -> None:
    """A line of the step's log."""
    StepLog.objects.create(step=step, at=now, text=text, machine=machine, level=level)


def actor(step: StepRun) -> str:
    return f"deployment {step.deployment_id}"


def silence(machine: Machine, now: datetime) -> str:
    """ "external02 has not been heard from for 40 s." """
    if machine.last_report_at is None:
        return f"{machine.name} has never been heard from: is its agent registered and running?"
    return f"{machine.name} has not been heard from for {(now - machine.last_report_at).total_seconds():.0f} s."


def _because(reason: str) -> str:
    """A reason somebody else gave, to end a sentence with."""
    return f": {reason.rstrip('.')}." if reason else "."


# ------------------------------------------------------------------------------------------------------- alerting and persons


class AlertingOff(Kind):
    def begin(self, step: StepRun, now: datetime) -> None:
        Deployment.objects.filter(pk=step.deployment_id).update(alerting_off=True)

    def check(self, step: StepRun, now: datetime) -> Outcome:
        return done(f"No alerts for {step.deployment.environment.name} until this deployment ends.")


class Manual(Kind):
    def check(self, step: StepRun, now: datetime) -> Outcome:
        return waiting(step.instruction)


# ------------------------------------------------------------------------------------------------------------------- routers


class DeployRouters(Kind):
    """Start all routers and the witness together; a majority is enough, for the others may be away for long. The members of a running
    cluster are changed one at a time, until all are as wished."""

    def begin(self, step: StepRun, now: datetime) -> None:
        environment = step.deployment.environment
        machines = list(Machine.objects.filter(environment=environment, router__leaving=False))
        values = frozen.values_of(step.deployment)
        found = {machine.name: properties.failover_address(machine.name, values) for machine in machines}
        reasons = [
            f"{properties.router_name(machine.name, machine.kind)} needs a value for {use.key} ({use.used_by})."
            for machine in machines
            for use, value in zip(properties.router_uses(machine.name), found[machine.name], strict=True)
            if value is None
        ] or properties.address_conflicts(found)
        if reasons:
            raise NotAllowed(" ".join(reasons), reasons=reasons)
        if machines:
            addresses = {name: (address, int(port)) for name, (address, port) in found.items() if address and port}
            change = membership.assign(environment, addresses, actor=actor(step), now=now)
            step.memory.update(change=change.pk if change is not None else None, said=0)
        versions = Machine.objects.filter(environment=environment, router__isnull=False).values_list("name", "orders_version")
        step.memory["orders"] = dict(versions)

    def check(self, step: StepRun, now: datetime) -> Outcome:
        changing = self._change(step, now)
        if changing is not None:
            return changing
        routers = [router for router in self._routers(step) if router.desired_running]
        if not routers:
            return done("There are no routers here: nothing runs in failover.")
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
        membership.advance(step.deployment.environment_id, now=now)
        change = MembershipChange.objects.get(pk=step.memory["change"])
        if change.hand_over:
            wait = self._hand_over(step, change.hand_over, now)
            if wait is not None:
                return wait
            membership.handed_over(change, change.hand_over, now=now)
            change.refresh_from_db()
        for line in change.log[step.memory["said"] :]:
            note(step, line["text"], datetime.fromisoformat(line["at"]))
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
        outcomes = [
            hand_over(step, runtime, memory_of(step, runtime), now)
            for runtime in runtimes.select_related("machine", "connector", "environment")
        ]
        waits = [outcome for outcome in outcomes if outcome is not None]
        return together(waits) if waits else None

    def overdue(self, step: StepRun) -> str:
        return "The routers did not come to run as wished" if step.memory.get("change") else "No majority of the routers ran"

    def _routers(self, step: StepRun) -> list[Router]:
        routers = Router.objects.filter(machine__environment=step.deployment.environment)
        return list(routers.select_related("machine").order_by("machine__kind", "machine__name"))

    def _lacking(self, step: StepRun, router: Router, now: datetime) -> str:
        """Why this router does not run as ordered; empty when it does."""
        machine, name = router.machine, properties.router_name(router.machine.name, router.machine.kind)
        if machine.is_silent(now=now):
            return silence(machine, now)
        if machine.orders_taken < step.memory["orders"].get(machine.name, 0):
            return f"{machine.name} has not taken its orders yet."
        if router.observed_state != RouterState.RUNNING:
            return f"The {name} is {RouterState(router.observed_state).value}{_because(router.observed_reason)}"
        return ""


# -------------------------------------------------------------------------------------------------- runtimes: what they share


def find_runtime(step: StepRun) -> Runtime:
    runtimes = Runtime.objects.filter(
        environment=step.deployment.environment, machine__name=step.machine, connector__name=step.connector
    ).select_related("machine", "connector", "environment")
    runtime = runtimes.first()
    if runtime is None:
        name = step.deployment.environment.name
        raise NotAllowed(f"{step.machine}.{step.connector} is no runtime on {name} any more: the architecture was changed.")
    return runtime


def memory_of(step: StepRun, runtime: Runtime) -> Memory:
    """What the step remembers of one runtime."""
    memory: Memory = step.memory.setdefault("runtimes", {}).setdefault(runtime.key, {})
    return memory


def remember_orders(memory: Memory, runtime: Runtime) -> None:
    """Reports that were made before the machine took these orders prove nothing."""
    memory["orders"] = Machine.objects.values_list("orders_version", flat=True).get(pk=runtime.machine_id)


def hand_over(step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> Outcome | None:
    """Give up what the runtime leads before it is stopped: ask each group's best ready follower to take over, and wait for it.

    None: it leads nothing (any more), or nobody is ready to take over, which the log then says.
    """
    groups = FailoverGroup.objects.filter(failover=True, members__runtime=runtime).prefetch_related(
        "members__runtime__machine", "members__runtime__connector"
    )
    waits = []
    for group in groups:
        view = failover.verdict(group, now=now)
        leads = view.leader is not None and view.leader.member.runtime_id == runtime.pk
        asked = memory.setdefault("requests", {}).get(str(group.pk))
        if asked:
            wait = _asked(GroupRequest.objects.filter(pk=asked).first(), leads, group, runtime)
        else:
            wait = _ask(step, view, runtime, memory, now) if leads else None
        if wait is not None and wait.state == "failed":
            return wait
        if wait is not None:
            waits.append(wait.sentence)
    return running(" ".join(waits)) if waits else None


def _asked(request: GroupRequest | None, leads: bool, group: FailoverGroup, runtime: Runtime) -> Outcome | None:
    if request is not None and request.status in LIVE_REQUESTS:
        return running(f"{request.machine} is taking over {group} from {runtime.key}{_because(request.reason)}")
    if not leads:
        return None
    if request is None or request.status == RequestStatus.SUCCEEDED:
        return running(f"{group} was handed over; {runtime.machine} has yet to report it.")
    return failed(f"{runtime.key} leads {group}, and its leadership was not handed over{_because(request.reason or request.status)}")


def _ask(step: StepRun, view: failover.Verdict, runtime: Runtime, memory: Memory, now: datetime) -> Outcome | None:
    group = view.group
    ready = [
        seen.member.runtime
        for seen in view.members
        if seen.member.runtime_id != runtime.pk and seen.status == Status.FOLLOWER and seen.member.observed_ready
    ]
    if not ready:
        _goes_alone(step, group, runtime, memory, now, "No follower is ready.")
        return None
    candidate = min(ready, key=lambda other: (_BY_PREFERENCE.index(protocol.Preference(other.preference)), other.key))
    try:
        request = failover.switch(
            group,
            candidate=candidate.machine.name,
            expected_leader=runtime.machine.name,
            actor=actor(step),
            cause=protocol.Cause.DEPLOY,
            now=now,
        )
    except (Busy, Stale) as refusal:  # leadership is moving already: look again
        return running(refusal.sentence)
    except NotReady as refusal:
        _goes_alone(step, group, runtime, memory, now, refusal.sentence)
        return None
    memory["requests"][str(group.pk)] = str(request.pk)
    sentence = f"{candidate.key} is asked to take over {group} from {runtime.key} first."
    note(step, sentence, now, machine=candidate.machine.name)
    return running(sentence)


def _goes_alone(step: StepRun, group: FailoverGroup, runtime: Runtime, memory: Memory, now: datetime, why: str) -> None:
    if str(group.pk) not in memory.setdefault("alone", []):
        memory["alone"].append(str(group.pk))
        note(
            step, f"{runtime.key} leads {group} and goes on without a hand-over. {why}", now, machine=runtime.machine.name, level="warning"
        )


def proof(runtime: Runtime, digest: str, memory: Memory, now: datetime) -> Outcome | None:
    """Does the runtime run the bundle, ready and settled in all its groups, by a fresh report? None: yes."""
    machine, key = runtime.machine, runtime.key
    state, because = RuntimeState(runtime.observed_state), _because(runtime.observed_reason)
    if machine.is_silent(now=now):
        return running(silence(machine, now))
    if machine.orders_taken < memory.get("orders", 0):
        return running(f"{machine.name} has not taken its orders yet.")
    if state == RuntimeState.FAILED:
        since = datetime.fromisoformat(memory.setdefault("failed_since", now.isoformat()))
        sentence = f"{key} failed{because}"
        return failed(sentence) if now - since >= FAILURE_STANDS_AFTER else running(sentence)
    memory.pop("failed_since", None)
    if state != RuntimeState.READY or runtime.observed_digest != digest or runtime.observed_restarts < runtime.desired_restarts:
        still = " and still runs what it ran before" if state == RuntimeState.READY else ""
        return running(f"{key} is {state.value}{still}{because}")
    for member in GroupMember.objects.filter(runtime=runtime).select_related("group"):
        if member.observed_status not in SETTLED:
            return running(f"{key} is {Status(member.observed_status).value} in group {member.group}{_because(member.observed_reason)}")
        if member.observed_status == Status.FOLLOWER and not member.observed_ready:
            return running(f"{key} follows in group {member.group} but is not ready to take over{_because(member.observed_reason)}")
    return None


class OnRuntime(Kind):
    """Kinds that act on one runtime (Deploy machine: on all of a machine): `order` once what it leads is handed over, then `proven`."""

    gives_up_leadership: ClassVar[bool] = True

    def targets(self, step: StepRun) -> list[Runtime]:
        return [find_runtime(step)]

    def begin(self, step: StepRun, now: datetime) -> None:
        self.targets(step)

    def check(self, step: StepRun, now: datetime) -> Outcome:
        return together([self._look(step, runtime, now) for runtime in self.targets(step)])

    def overdue(self, step: StepRun) -> str:
        target = f"{step.machine}.{step.connector}" if step.connector else f"All of {step.machine}"
        return f"{target} did not report ready"

    def _look(self, step: StepRun, runtime: Runtime, now: datetime) -> Outcome:
        memory = memory_of(step, runtime)
        if "orders" not in memory:
            if self.needs_order(step, runtime, memory, now):
                wait = self.clear_the_way(step, runtime, memory, now)
                if wait is None and self.gives_up_leadership and "stopping" not in memory:
                    wait = hand_over(step, runtime, memory, now)
                if wait is not None:
                    return wait
                self.order(step, runtime, memory, now)
            remember_orders(memory, runtime)
        return self.proven(step, runtime, memory, now)

    def needs_order(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> bool:
        """False: it is as wished already, and nothing is disturbed."""
        return True

    def clear_the_way(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> Outcome | None:
        """What must have stopped before this runtime may be ordered. None: nothing (any more)."""
        return None

    def order(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> None:
        raise NotImplementedError

    def proven(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> Outcome:
        raise NotImplementedError


# ----------------------------------------------------------------------------------------------------------- runtimes: deploy


def stop_siblings(step: StepRun, runtime: Runtime, content: protocol.BundleContent, memory: Memory, now: datetime) -> Outcome | None:
    """Hold every sibling that runs, or is ordered to run, what must not run beside `content`, and wait until each is proven stopped.

    None: nothing runs that disagrees. Siblings that agree already go on. Held ones are started by their own deploy step.

    Raises:
        NotAllowed: no later step deploys such a sibling; nothing was touched.
    """
    siblings = Runtime.objects.filter(environment_id=runtime.environment_id, connector_id=runtime.connector_id).exclude(pk=runtime.pk)
    clashing = moves.clashes(siblings.select_related("machine", "connector"), moves.layout_of(content))
    if not clashing:
        return None
    later = list(StepRun.objects.filter(deployment_id=step.deployment_id, number__gt=step.number).exclude(status__in=DONE))
    left = [(sibling, clauses) for sibling, clauses in clashing if not any(moves.deploys(other, sibling) for other in later)]
    if left:
        reasons = [moves.not_deployed_later(sibling, clauses) for sibling, clauses in left]
        raise NotAllowed(" ".join(reasons), reasons=reasons)
    first = [sibling for sibling, _ in clashing if not sibling.held]
    for sibling, clauses in clashing:
        fleet.hold(sibling, f"deployment {step.deployment_id} changes who takes: {' and '.join(clauses)}.")
    because = list(dict.fromkeys(clause for _, clauses in clashing for clause in clauses))
    sentence = moves.gap(runtime.connector.name, [runtime, *(sibling for sibling, _ in clashing)], because)
    versions = memory.setdefault("stopping", {})
    for sibling, _ in clashing:
        if sibling.key not in versions:  # as of now: the hold is in these orders
            versions[sibling.key] = Machine.objects.values_list("orders_version", flat=True).get(pk=sibling.machine_id)
    if first:
        note(step, f"There is a gap: {sentence}.", now, machine=runtime.machine.name, level="warning")
    waits = [wait for sibling, _ in clashing if (wait := _not_proven_stopped(sibling, versions[sibling.key], now))]
    if waits:
        return running(f"{sentence}. {' '.join(waits)}")
    if not memory.get("all_stopped"):
        memory["all_stopped"] = True
        stopped = " and ".join(sibling.key for sibling, _ in clashing)
        note(step, f"{stopped}: proven stopped. {runtime.key} may start.", now, machine=runtime.machine.name)
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
    return f"{runtime.key} is {state.value}{_because(runtime.observed_reason)}"


class DeployRuntime(OnRuntime):
    def needs_order(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> bool:
        bundle = fleet.store_bundle(
            runtime.environment, releases.bundle_for(step.deployment.release, runtime, frozen.values_of(step.deployment))
        )
        memory["digest"] = bundle.digest
        memory["unchanged"] = (
            runtime.desired_running
            and not runtime.held
            and runtime.desired_bundle_id == bundle.digest == runtime.observed_digest
            and runtime.observed_state == RuntimeState.READY
            and runtime.observed_restarts >= runtime.desired_restarts
            and not runtime.machine.is_silent(now=now)
        )
        return not memory["unchanged"]

    def clear_the_way(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> Outcome | None:
        content = protocol.decode(protocol.BundleContent, bytes(Bundle.objects.get(pk=memory["digest"]).content))
        return stop_siblings(step, runtime, content, memory, now)

    def order(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> None:
        machine = runtime.machine.name
        release = step.deployment.release.number
        again = runtime.desired_bundle_id == memory["digest"] and runtime.desired_running and not runtime.held
        bundle = Bundle.objects.get(pk=memory["digest"])
        fleet.assign(runtime, bundle)
        note(step, f"{runtime.key} is ordered to run release {release}, bundle {bundle}.", now, machine=machine)
        if not runtime.desired_running:
            fleet.start(runtime)
            note(step, f"{runtime.key} was stopped by a person; deploying starts it.", now, machine=machine)
        elif again and runtime.observed_state in (RuntimeState.FAILED, RuntimeState.BACKOFF, RuntimeState.HANGING):
            fleet.restart(runtime)
            note(step, f"{runtime.key} has these orders already but is {runtime.observed_state}: it starts anew.", now, machine=machine)

    def proven(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> Outcome:
        lacking = proof(runtime, memory["digest"], memory, now)
        if lacking is not None:
            return lacking
        if memory["unchanged"]:
            return done(f"{runtime.key} already runs this bundle: not restarted.")
        return done(f"{runtime.key} runs release {step.deployment.release.number}.")


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

    def needs_order(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> bool:
        _ordered_digest(runtime)
        fleet.refuse_held(runtime)
        return not runtime.desired_running

    def order(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> None:
        fleet.start(runtime)

    def proven(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> Outcome:
        return proof(runtime, _ordered_digest(runtime), memory, now) or done(f"{runtime.key} runs.")


class RestartRuntime(OnRuntime):
    def order(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> None:
        _ordered_digest(runtime)
        fleet.restart(runtime)

    def proven(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> Outcome:
        return proof(runtime, _ordered_digest(runtime), memory, now) or done(f"{runtime.key} was restarted.")


class StopRuntime(OnRuntime):
    def needs_order(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> bool:
        return runtime.desired_running

    def order(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> None:
        fleet.stop(runtime)

    def proven(self, step: StepRun, runtime: Runtime, memory: Memory, now: datetime) -> Outcome:
        if runtime.machine.is_silent(now=now):
            return running(silence(runtime.machine, now))
        if runtime.machine.orders_taken < memory["orders"]:
            return running(f"{runtime.machine} has not taken its orders yet.")
        if runtime.observed_state != RuntimeState.STOPPED:
            return running(f"{runtime.key} is {RuntimeState(runtime.observed_state).value}{_because(runtime.observed_reason)}")
        return done(f"{runtime.key} is stopped.")

    def overdue(self, step: StepRun) -> str:
        return f"{step.machine}.{step.connector} did not stop"


# -------------------------------------------------------------------------------------------------------------------- groups


class OnGroup(Kind):
    """Kinds that move the leadership of one group through a hand-over."""

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
            return running(f"{group} is being handed over{_because(asked.reason)}")
        if self.wished(leader, runtime):
            return done(f"{leader.key if leader else 'Nobody'} leads {group}.")
        if asked is not None and asked.status != RequestStatus.SUCCEEDED:
            return failed(f"{group} was not handed over{_because(asked.reason or asked.status)}")
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


class BalanceFailover(Kind):
    """Put each group's leadership on its preferred machine, proven; the evidence stays in the step's memory."""

    def check(self, step: StepRun, now: datetime) -> Outcome:
        deployment = step.deployment
        keys = [group["id"] for group in deployment.release.content["groups"]]
        groups = FailoverGroup.objects.filter(environment=deployment.environment, failover=True, group__key__in=keys)
        looks = [
            self._look(step, group, now) for group in groups.prefetch_related("members__runtime__machine", "members__runtime__connector")
        ]
        if not looks:
            return done("There is no failover group here: nothing to balance.")
        step.memory["groups"] = [
            {"group": name, "state": outcome.state, "reason": outcome.sentence, "at": now.isoformat()} for name, outcome in looks
        ]
        return together([Outcome(outcome.state, _named(name, outcome.sentence)) for name, outcome in looks])

    def _look(self, step: StepRun, group: FailoverGroup, now: datetime) -> tuple[str, Outcome]:
        assert step.started_at is not None
        try:
            look = failover.balance(
                group, release=step.deployment.release.number, actor=actor(step), step_began_at=step.started_at, now=now
            )
        except (Busy, NotReady, Stale) as refusal:
            return group.name, running(refusal.sentence)
        except NotAllowed as refusal:
            return group.name, failed(refusal.sentence)
        return group.name, Outcome("done" if look.done else "failed" if look.failed else "running", look.reason)

    def overdue(self, step: StepRun) -> str:
        return "The failover groups were not balanced"


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
    StepKind.MANUAL: Manual(),
    StepKind.BALANCE_FAILOVER: BalanceFailover(),
}
