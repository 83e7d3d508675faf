"""One look at a step: what it sees of a runtime, what it remembers, what it tells the log, and what it comes to.

A look runs inside the transaction of `rollout.tick` and never waits. `step.memory` is what it keeps for the next one.
"""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from django.utils.functional import cached_property

from deployments import frozen
from deployments.models import DEPLOYS, Deployment, Exclusion, FrozenValues, StepAttempt, StepLog, StepRun
from portal.errors import NotAllowed
from portal.prepared import Prepared
from runtimes import failover, secrecy
from runtimes.models import Bundle, FailoverGroup, Machine, Runtime
from runtimes.protocol import RouterState, RuntimeState

Memory = MutableMapping[str, Any]
LINES_AT_ONCE = 1000  # in one statement: a command may say 20,000


@dataclass(frozen=True)
class Outcome:
    """One look at a step: done, skipped (there was nothing to do), failed, waiting (for a person) or running, and why, in a sentence."""

    state: Literal["done", "skipped", "failed", "waiting", "running"]
    sentence: str


def done(sentence: str) -> Outcome:
    return Outcome("done", sentence)


def skipped(sentence: str) -> Outcome:
    return Outcome("skipped", sentence)


def failed(sentence: str) -> Outcome:
    return Outcome("failed", sentence)


def waiting(sentence: str) -> Outcome:
    return Outcome("waiting", sentence)


def running(sentence: str) -> Outcome:
    return Outcome("running", sentence)


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of several: running while one runs, so that each comes to its end; then failed if one failed; skipped if all are."""
    state: Literal["done", "skipped", "failed", "waiting", "running"]
    for state in ("running", "failed"):
        sentences = [outcome.sentence for outcome in outcomes if outcome.state == state]
        if sentences:
            return Outcome(state, " ".join(sentences))
    state = "skipped" if outcomes and all(outcome.state == "skipped" for outcome in outcomes) else "done"
    return Outcome(state, " ".join(outcome.sentence for outcome in outcomes))


# ------------------------------------------------------------------------------------------------------------ what it sees


_named = Prepared(
    lambda environment, machine, connector: Runtime.objects.filter(
        environment=environment, machine__name=machine, connector__name=connector
    ).select_related("machine", "connector")
)


def find_runtime(step: StepRun) -> Runtime:
    environment = step.deployment.environment
    try:
        runtime = _named.get(environment.pk, step.machine, step.connector)
    except Runtime.DoesNotExist:
        name = f"{step.machine}.{step.connector}"
        raise NotAllowed(f"{name} is no runtime on {environment.name} any more: the architecture was changed.") from None
    runtime.environment = environment
    return runtime


def memory_of(step: StepRun, runtime: Runtime) -> Memory:
    """What the step remembers of one runtime."""
    memory: Memory = step.memory.setdefault("runtimes", {}).setdefault(runtime.key, {})
    return memory


_groups_of = Prepared(
    lambda runtime: (
        FailoverGroup.objects.filter(failover=True, members__runtime=runtime)
        .select_related("group")
        .prefetch_related(failover.with_members())
        .order_by("name")
    )
)


@dataclass
class Look:
    """One look at one runtime of a step: what it is about, and what of it is read only once."""

    step: StepRun
    runtime: Runtime
    now: datetime
    bundle: Bundle | None = None  # what a deploy step would order

    @cached_property
    def memory(self) -> Memory:
        return memory_of(self.step, self.runtime)

    @cached_property
    def frozen(self) -> FrozenValues | None:
        """The values of the deployment. While it is looked at, nobody freezes others."""
        return frozen.of(self.step.deployment)

    @cached_property
    def views(self) -> list[failover.Verdict]:
        """Its failover groups as they are now."""
        return [failover.verdict(group, now=self.now) for group in _groups_of.all(self.runtime.pk)]

    def tell(self, text: str, *, level: str = "info") -> None:
        tell(self.step, text, self.now, machine=self.runtime.machine.name, level=level)


_orders_version = Prepared(lambda machine: Machine.objects.filter(pk=machine).values_list("orders_version", flat=True))


def remember_orders(memory: Memory, runtime: Runtime) -> None:
    """Reports that were made before the machine took these orders prove nothing."""
    memory["orders"] = _orders_version.get(runtime.machine_id)


def changed_before(step: StepRun) -> bool:
    """Did an earlier step of this deployment give the step's target something else to run, in whichever attempt: its runtime, one of its
    machine, or any at all."""
    earlier = StepRun.objects.filter(deployment_id=step.deployment_id, number__lt=step.number, kind__in=DEPLOYS)
    memories = [
        *earlier.values_list("memory", flat=True),
        *StepAttempt.objects.filter(step__in=earlier).values_list("memory", flat=True),
    ]
    changed = {
        key for memory in memories for key, told in memory.get("runtimes", {}).items() if "orders" in told and not told.get("unchanged")
    }
    if not step.machine:
        return bool(changed)
    own, prefix = f"{step.machine}.{step.connector}", f"{step.machine}."
    return any(key == own or (not step.connector and key.startswith(prefix)) for key in changed)


def left_out(step: StepRun) -> set[str]:
    """Names of the machines that this deployment left out; where it brings a machine what it missed, also of those still to come."""
    rows = Exclusion.objects.filter(deployment_id=step.deployment_id)
    if step.deployment.completes_id is not None:
        rows |= Exclusion.objects.filter(deployment_id=step.deployment.completes_id, ended_at=None)
    return set(rows.values_list("machine", flat=True))


def actor(step: StepRun) -> str:
    return f"deployment {step.deployment_id}"


# ----------------------------------------------------------------------------------------------------------- what it tells


def tell(step: StepRun, text: str, at: datetime, *, machine: str = "", level: str = "info") -> None:
    """A line for the deployment's log; the engine writes it down with what the look found (write_down)."""
    line = StepLog(deployment_id=step.deployment_id, step=step, attempt=step.attempt, at=at, text=text, machine=machine, level=level)
    step.told.append(line)


def write_down(step: StepRun) -> None:
    """What was told comes into the log, inside the caller's transaction: until that ends, nobody else writes one, so numbers have no gap.
    Three queries for any number of lines, where the caller has read the deployment in this transaction."""
    lines, deployment = list(step.told), step.deployment
    if not lines:
        return
    step.told.clear()
    while not _took_numbers(deployment, len(lines)):
        deployment.refresh_from_db(fields=["log_lines"])
    secrets = secrecy.pattern(deployment.environment_id)
    for number, line in enumerate(lines, start=deployment.log_lines + 1):
        line.number, line.text = number, secrecy.masked(line.text, secrets)
    deployment.log_lines += len(lines)
    StepLog.objects.bulk_create(lines, batch_size=LINES_AT_ONCE)


def _took_numbers(deployment: Deployment, count: int) -> bool:
    """False: somebody else wrote since the deployment was read."""
    known = Deployment.objects.filter(pk=deployment.pk, log_lines=deployment.log_lines)
    return bool(known.update(log_lines=deployment.log_lines + count))


def note(step: StepRun, text: str, now: datetime, *, machine: str = "", level: str = "info") -> None:
    """A line of the deployment's log, written down at once."""
    tell(step, text, now, machine=machine, level=level)
    write_down(step)


def silence(machine: Machine, now: datetime) -> str:
    """ "external02 has not been heard from for 40 s." """
    if machine.last_report_at is None:
        return f"{machine.name} has never been heard from: is its agent registered and running?"
    return f"{machine.name} has not been heard from for {(now - machine.last_report_at).total_seconds():.0f} s."


def because(reason: str) -> str:
    """A reason somebody else gave, to end a sentence with; none where it only says the state again ("is starting: starting")."""
    said = reason.rstrip(".")
    return f": {said}." if said and said not in (*RuntimeState, *RouterState) else "."
