"""The plan of an environment: default plan, edits, and what is wrong with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction
from django.utils import timezone

from deployments.models import Plan, Step, StepFields, StepKind
from portal.errors import Invalid, NotAllowed
from portal.models import Environment, Group, MachineKind
from runtimes.models import Machine, Router, Runtime

RUNTIME_KINDS = (StepKind.DEPLOY_RUNTIME, StepKind.START_RUNTIME, StepKind.STOP_RUNTIME, StepKind.RESTART_RUNTIME)
GROUP_KINDS = (StepKind.GROUP_START, StepKind.GROUP_STOP)
DEPLOY_KINDS = (StepKind.DEPLOY_MACHINE, StepKind.DEPLOY_RUNTIME)
BALANCE_RULE = "Balance failover comes last, after the deployment of all runtimes"
LONGEST_SECONDS = 24 * 3600
_ASIDE = 1_000_000  # positions are unique, so steps step aside before they take their new places


def plan_of(environment: Environment) -> Plan:
    """The environment's plan, made empty when there is none."""
    return Plan.objects.get_or_create(environment=environment)[0]


def written(step: StepFields) -> dict[str, Any]:
    """A step as a release keeps it: {title, and every field that a plan's step and its execution share}."""
    return {"title": step.title} | {field.attname: getattr(step, field.attname) for field in StepFields._meta.local_fields}


def line_of(step: Mapping[str, Any]) -> str:
    """A written step in one line: "Deploy runtime external01.erp (timeout seconds 120)"."""
    told = ("title", "kind", "machine", "connector", "group")
    rest = [f"{name.replace('_', ' ')} {value}" for name, value in step.items() if name not in told and value not in ("", None, [], {})]
    return str(step["title"]) + (f" ({', '.join(rest)})" if rest else "")


def default_plan(environment: Environment) -> Plan:
    """Replace the steps by a good plan for the applied architecture: alerting off, routers, one step per runtime (core first, then
    machine by machine, so that followers and leaders alternate safely), Balance failover last when a failover group exists.

    Raises:
        NotAllowed: the environment has no runtimes yet.
    """
    runtimes = list(Runtime.objects.filter(environment=environment).select_related("machine", "connector"))
    if not runtimes:
        raise NotAllowed(
            f"{environment.name} has no runtimes: apply the architecture first (Deploy › Architecture › Apply to environment)."
        )
    runtimes.sort(key=lambda runtime: (runtime.machine.kind != MachineKind.CORE, runtime.machine.name, runtime.connector.name))
    steps = [Step(kind=StepKind.ALERTING_OFF)]
    if Router.objects.filter(machine__environment=environment).exists():
        steps.append(Step(kind=StepKind.DEPLOY_ROUTERS))
    for runtime in runtimes:
        steps.append(Step(kind=StepKind.DEPLOY_RUNTIME, machine=runtime.machine.name, connector=runtime.connector.name))
    if any(runtime.failover for runtime in runtimes):
        steps.append(Step(kind=StepKind.BALANCE_FAILOVER))
    return _replace(plan_of(environment), steps)


# ------------------------------------------------------------------------------------------------------------------- edits


def add_step(plan: Plan, kind: StepKind, *, position: int | None = None, **fields: str | int) -> Step:
    """Insert a step (at the end, but before Balance failover, when no position is given).

    Fields: machine, connector, group, instruction, timeout_seconds; what the kind does not use is left empty.

    Raises:
        Invalid: unknown target for the environment; a second Balance; Balance anywhere but last, or any step after it:
            "Balance failover comes last, after the deployment of all runtimes: …".
    """
    if kind not in StepKind.values:
        raise Invalid(f'"{kind}" is no kind of step.', field="kind")
    step = Step(plan=plan, kind=StepKind(kind))
    _fill(plan.environment, step, fields)
    with transaction.atomic():
        steps = _locked(plan)
        if position is None:
            ends_with_balance = bool(steps) and steps[-1].kind == StepKind.BALANCE_FAILOVER
            position = len(steps) + (0 if ends_with_balance and kind != StepKind.BALANCE_FAILOVER else 1)
        _check_position(position, len(steps) + 1)
        steps.insert(position - 1, step)
        _check_order(steps)
        _arrange(plan, steps)
    return step


def move_step(step: Step, position: int) -> None:
    """Give a step another place; the others keep their order. Raises Invalid as add_step does."""
    with transaction.atomic():
        steps = _locked(step.plan)
        mine = _find(steps, step)
        _check_position(position, len(steps))
        steps.remove(mine)
        steps.insert(position - 1, mine)
        _check_order(steps)
        _arrange(step.plan, steps)
    step.position = position


def change_step(step: Step, **fields: str | int) -> None:
    """Change a step's machine, connector, group, instruction or timeout_seconds; what is not named stays."""
    with transaction.atomic():
        mine = _find(_locked(step.plan), step)
        kept = {name: getattr(mine, name) for name in ("machine", "connector", "group", "instruction", "timeout_seconds")}
        _fill(step.plan.environment, mine, {**kept, **fields})
        mine.save()
    step.refresh_from_db()


def remove_step(step: Step) -> None:
    """Take a step out; one that is gone already is no error."""
    with transaction.atomic():
        steps = _locked(step.plan)
        if any(other.pk == step.pk for other in steps):
            Step.objects.filter(pk=step.pk).delete()
            _arrange(step.plan, [other for other in steps if other.pk != step.pk])


def copy_to(plan: Plan, environment: Environment) -> Plan:
    """Replace another environment's plan by this one's steps. Targets are names: lint() says which of them do not exist there."""
    if environment.project_id != plan.environment.project_id:
        raise Invalid("A plan can only be copied within its project.", field="environment")
    if environment.pk == plan.environment_id:
        raise Invalid(f"This is the plan of {environment.name} already: choose another environment.", field="environment")
    names = ("kind", "machine", "connector", "group", "instruction", "timeout_seconds")
    return _replace(plan_of(environment), [Step(**{name: getattr(step, name) for name in names}) for step in plan.steps.all()])


def _locked(plan: Plan) -> list[Step]:
    """The steps in order; until the transaction ends nobody else edits this plan (an UPDATE locks, also on SQLite)."""
    if not Plan.objects.filter(pk=plan.pk).update(updated_at=timezone.now()):
        raise NotAllowed("This plan is gone.")
    return list(Step.objects.filter(plan=plan).order_by("position"))


def _replace(plan: Plan, steps: list[Step]) -> Plan:
    with transaction.atomic():
        _locked(plan)
        Step.objects.filter(plan=plan).delete()
        _arrange(plan, steps)
    return plan


def _arrange(plan: Plan, steps: list[Step]) -> None:
    """Write positions 1..n."""
    for number, step in enumerate(steps, start=1):
        if step.pk and step.position != number:
            Step.objects.filter(pk=step.pk).update(position=_ASIDE + number)
    for number, step in enumerate(steps, start=1):
        if step.pk and step.position != number:
            Step.objects.filter(pk=step.pk).update(position=number)
        elif not step.pk:
            step.plan = plan
            step.position = number
            step.save()
        step.position = number


def _find(steps: list[Step], step: Step) -> Step:
    for other in steps:
        if other.pk == step.pk:
            return other
    raise NotAllowed("This step is gone: somebody changed the plan. Look at it again.")


def _check_position(position: int, last: int) -> None:
    if not 1 <= position <= last:
        raise Invalid(f"Position {position} does not exist: choose 1 to {last}.", field="position")


def _check_order(steps: Sequence[StepFields]) -> None:
    places = [index for index, step in enumerate(steps) if step.kind == StepKind.BALANCE_FAILOVER]
    if len(places) > 1:
        raise Invalid(f"{BALANCE_RULE}: this plan already has it.", field="kind")
    if places and places[0] != len(steps) - 1:
        later = ", ".join(step.title for step in steps[places[0] + 1 :])
        raise Invalid(f"{BALANCE_RULE}: {later} would come after it.", field="position")


def _fill(environment: Environment, step: Step, fields: dict[str, Any]) -> None:
    """Set the fields that the step's kind uses. Raises Invalid naming the field."""
    unknown = set(fields) - {"machine", "connector", "group", "instruction", "timeout_seconds"}
    if unknown:
        raise Invalid(f"A step has no field {', '.join(sorted(unknown))}.", field=sorted(unknown)[0])
    kind = StepKind(step.kind)
    on_runtime = kind in RUNTIME_KINDS + GROUP_KINDS
    step.machine = str(fields.get("machine", "")).strip() if on_runtime or kind == StepKind.DEPLOY_MACHINE else ""
    step.connector = str(fields.get("connector", "")).strip() if on_runtime else ""
    step.group = str(fields.get("group", "")).strip() if kind in GROUP_KINDS else ""
    step.instruction = str(fields.get("instruction", "")).strip() if kind == StepKind.MANUAL else ""
    if kind == StepKind.MANUAL and not step.instruction:
        raise Invalid("Say what the person should do before the plan goes on.", field="instruction")
    timeout = str(fields.get("timeout_seconds", 120))
    if not (timeout.isascii() and timeout.isdigit() and 1 <= int(timeout) <= LONGEST_SECONDS):
        raise Invalid(f"The time-out is a number of seconds from 1 to {LONGEST_SECONDS}.", field="timeout_seconds")
    step.timeout_seconds = int(timeout)
    if found := _Targets(environment).finding(step):
        raise Invalid(found[1], field=found[0])


# -------------------------------------------------------------------------------------------------------- what is wrong with it


class _Targets:
    """What the steps of an environment's plan may name; read once."""

    def __init__(self, environment: Environment) -> None:
        self.place = environment.name
        self.machines = set(Machine.objects.filter(environment=environment).values_list("name", flat=True))
        runtimes = Runtime.objects.filter(environment=environment).order_by("machine__kind", "machine__name", "connector__name")
        rows = list(runtimes.values_list("machine__name", "connector__name", "connector_id", "failover"))
        self.runtimes = [(machine, connector) for machine, connector, _, _ in rows]
        failing_over = {connector for _, connector, _, failover in rows if failover}
        self.groups: dict[str, set[str]] = {}
        self.failover_groups: list[str] = []
        for group in Group.objects.filter(connector__in={row[2] for row in rows}).select_related("connector"):
            self.groups.setdefault(group.connector.name, set()).add(group.name)
            if group.connector.name in failing_over:
                self.failover_groups.append(group.name)

    def finding(self, step: StepFields) -> tuple[str, str] | None:
        """(field, sentence) when the step names what is not there."""
        kind = StepKind(step.kind)
        on_runtime = kind in RUNTIME_KINDS + GROUP_KINDS
        if (on_runtime or kind == StepKind.DEPLOY_MACHINE) and step.machine not in self.machines:
            return "machine", f"{self._named(step.machine, 'machine')} {self._choose(self.machines)}"
        if on_runtime and (step.machine, step.connector) not in self.runtimes:
            here = {connector for machine, connector in self.runtimes if machine == step.machine}
            name = f"{step.machine}.{step.connector}" if step.connector else ""
            return "connector", f"{self._named(name, 'runtime')} {self._choose(here)}"
        if kind in GROUP_KINDS and step.group not in self.groups.get(step.connector, set()):
            here = self.groups.get(step.connector, set())
            return "group", f"{self._named(step.group, f'group of {step.connector}')} {self._choose(here)}"
        return None

    def _named(self, name: str, what: str) -> str:
        return f"{name} is no {what} on {self.place}." if name else f"Choose a {what}."

    def _choose(self, names: set[str]) -> str:
        return f"There is {', '.join(sorted(names))}." if names else "There is none: apply the architecture first."


def problems(plan: Plan) -> list[str]:
    """Why the plan cannot be deployed, one sentence each: no step, a target that does not exist, a wrong order."""
    targets = _Targets(plan.environment)
    steps = list(plan.steps.all())
    if not steps:
        return [f"The plan of {plan.environment.name} has no steps: make the default plan or add steps."]
    found = [f"Step {step.position}, {step.title}: {finding[1]}" for step in steps if (finding := targets.finding(step))]
    try:
        _check_order(steps)
    except Invalid as refusal:
        found.append(refusal.sentence)
    return found


def lint(plan: Plan) -> Sequence[str]:
    """One sentence per weakness; "A failover group exists (erp-orders), but no Balance failover step does: …"."""
    targets = _Targets(plan.environment)
    steps = list(plan.steps.all())
    found = problems(plan)
    if not steps:
        return found
    found += balance_findings(steps, targets.failover_groups)
    found += _deployment_findings(steps, targets)
    found += _router_findings(plan.environment, steps)
    alerting = [step.position for step in steps if step.kind == StepKind.ALERTING_OFF]
    first_deploy = min((step.position for step in steps if step.kind in DEPLOY_KINDS), default=0)
    if alerting and first_deploy and alerting[0] > first_deploy:
        found.append("Alerting off comes after the first deployment of a runtime: alerts are sent until then.")
    return found


def balance_findings(steps: Sequence[StepFields], groups: Sequence[str]) -> list[str]:
    """The warning that plan and activation share."""
    if not groups or any(step.kind == StepKind.BALANCE_FAILOVER for step in steps):
        return []
    what = "A failover group exists" if len(groups) == 1 else "Failover groups exist"
    return [
        f"{what} ({', '.join(sorted(groups))}), but no Balance failover step does: add it as the last step, "
        "or leadership stays where the deployment happens to leave it."
    ]


def _deployment_findings(steps: Sequence[StepFields], targets: _Targets) -> list[str]:
    whole = {step.machine for step in steps if step.kind == StepKind.DEPLOY_MACHINE}
    single = {(step.machine, step.connector) for step in steps if step.kind == StepKind.DEPLOY_RUNTIME}
    left = [
        f"{machine}.{connector}" for machine, connector in targets.runtimes if machine not in whole and (machine, connector) not in single
    ]
    if not left:
        return []
    balanced = any(step.kind == StepKind.BALANCE_FAILOVER for step in steps)
    tail = " Balance failover needs every runtime on the release that is deployed." if balanced else ""
    return [f"No step deploys {', '.join(left)}.{tail}"]


def _router_findings(environment: Environment, steps: Sequence[StepFields]) -> list[str]:
    if not Router.objects.filter(machine__environment=environment).exists():
        return []
    kinds = [step.kind for step in steps]
    if StepKind.DEPLOY_ROUTERS not in kinds:
        return ["Routers exist, but no Deploy routers step does: add it before the runtimes are deployed."]
    if any(kind in DEPLOY_KINDS for kind in kinds[: kinds.index(StepKind.DEPLOY_ROUTERS)]):
        return ["Deploy routers comes after the deployment of a runtime: put it first, runtimes in failover need their router."]
    return []
