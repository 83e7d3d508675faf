"""The plan of an environment: default plan, edits, and what is wrong with it."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils import timezone

from deployments.models import DEPLOYS, STEP_FIELDS, Condition, HandOvers, Plan, Step, StepFields, StepKind
from deployments.stages import stages_of
from portal.errors import Invalid, NotAllowed, Stale
from portal.models import Environment, Flow, Group, MachineKind, Role
from portal.placeholders import placeholders
from portal.property_uses import Use
from runtimes import commands, failover
from runtimes.models import FailoverGroup, Machine, Router, Runtime
from runtimes.protocol import Preference

COMMAND_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")

RUNTIME_KINDS = (StepKind.DEPLOY_RUNTIME, StepKind.START_RUNTIME, StepKind.STOP_RUNTIME, StepKind.RESTART_RUNTIME)
GROUP_KINDS = (StepKind.GROUP_START, StepKind.GROUP_STOP)
FLOW_KINDS = (StepKind.FLOW_START, StepKind.FLOW_STOP)
ON_RUNTIME = RUNTIME_KINDS + GROUP_KINDS + FLOW_KINDS  # need a machine and a connector
ON_MACHINE = (StepKind.DEPLOY_MACHINE, StepKind.RUN_COMMAND)
MOST_RETRIES = 10
BALANCE_RULE = "Balance failover comes last, after the deployment of all runtimes"
LONGEST_SECONDS = 24 * 3600
PERSON_SECONDS, LONGEST_PERSON_SECONDS = 24 * 3600, 14 * 24 * 3600  # time limit of a manual step: usual, longest
_ASIDE = 1_000_000  # positions are unique, so steps step aside before they take their new places


def plan_of(environment: Environment) -> Plan:
    """The environment's plan, made empty when there is none."""
    return Plan.objects.get_or_create(environment=environment)[0]


def written(step: StepFields) -> dict[str, Any]:
    """A step as a release keeps it: {title, and every field that a plan's step and its execution share}."""
    return {"title": step.title} | {field.attname: getattr(step, field.attname) for field in StepFields._meta.local_fields}


def digest_of(steps: Iterable[StepFields]) -> str:
    """Equal steps in equal order give an equal digest, of a plan and of its execution."""
    lines = [[getattr(step, name) for name in STEP_FIELDS] for step in steps]
    return hashlib.sha256(json.dumps(lines, separators=(",", ":")).encode()).hexdigest()


def digest(environment: Environment) -> str:
    """Of the environment's plan as it is now; one query."""
    return digest_of(Step.objects.filter(plan__environment=environment).order_by("position"))


def line_of(step: Mapping[str, Any]) -> str:
    """A written step in one line, with what a person set: "Deploy runtime external01.erp (time limit 120 s, only when changed)"."""
    rest = [words.format(step[name]) for name, words in _SET.items() if step.get(name)]
    if step.get("kind") == StepKind.HTTP_CHECK:
        rest.append(f"expects status {step.get('expected_status', 200)}")
    if step.get("condition") == Condition.CHANGED:
        rest.append("only when changed")
    instruction = f": {' '.join(str(step['instruction']).split())}" if step.get("instruction") else ""
    return str(step["title"]) + (f" ({', '.join(rest)})" if rest else "") + instruction


# Fields of a step that its title does not tell, in words; nothing is said of one that is empty.
_SET = {
    "stage": "stage {}",
    "lane": "lane {}",
    "confirm_role": "confirmed by the role {}",
    "hand_overs": "hand-overs {}",
    "retries": "retries {}",
    "timeout_seconds": "time limit {} s",
}


def default_plan(environment: Environment) -> Plan:
    """Replace the steps by a good plan for the applied architecture: alerting off, routers, one step per runtime (core first, then
    machine by machine, so that followers and leaders alternate safely), Balance failover last when a failover group exists.

    Raises:
        NotAllowed: the environment has no runtimes yet.
    """
    runtimes = _runtimes(environment)
    steps = _opening(environment)
    for runtime in runtimes:
        steps.append(Step(kind=StepKind.DEPLOY_RUNTIME, machine=runtime.machine.name, connector=runtime.connector.name))
    if any(runtime.failover for runtime in runtimes):
        steps.append(Step(kind=StepKind.BALANCE_FAILOVER))
    return _replace(plan_of(environment), steps)


def _runtimes(environment: Environment) -> list[Runtime]:
    """Core first, then machine by machine. Raises NotAllowed when there are none."""
    runtimes = list(Runtime.objects.filter(environment=environment).select_related("machine", "connector"))
    if not runtimes:
        raise NotAllowed(
            f"{environment.name} has no runtimes: apply the architecture first (Deploy › Architecture › Apply to environment)."
        )
    return sorted(runtimes, key=lambda runtime: (runtime.machine.kind != MachineKind.CORE, runtime.machine.name, runtime.connector.name))


def _opening(environment: Environment) -> list[Step]:
    steps = [Step(kind=StepKind.ALERTING_OFF)]
    if Router.objects.filter(machine__environment=environment).exists():
        steps.append(Step(kind=StepKind.DEPLOY_ROUTERS))
    return steps


def followers_first_plan(environment: Environment, *, now: datetime) -> Plan:
    """Replace the steps by a plan made from who leads now. Per connector in failover: upgrade the followers, prove them ready, hand the
    groups over, upgrade the former leaders, prove them; Balance failover last, which moves no group a second time (decision 73). A group
    whose leader the release does not change stays where it is. Connectors go side by side; others come before.

    Raises:
        NotAllowed: no runtimes, nothing runs in failover, or of a group nobody is known to lead.
    """
    runtimes = _runtimes(environment)
    led = _led(environment, now)
    steps = _opening(environment)
    steps += [_deploy(runtime, stage="Single runtimes", lane=runtime.machine.name) for runtime in runtimes if not runtime.failover]
    connectors = sorted({runtime.connector.name for runtime in runtimes if runtime.failover})
    if not connectors:
        raise NotAllowed(f"Nothing runs in failover on {environment.name}: make the default plan instead.")
    for stage, part in (("Followers", _followers_part), ("Hand over", _hand_over_part), ("Former leaders", _leaders_part)):
        for connector in connectors:
            members = [runtime for runtime in runtimes if runtime.connector.name == connector and runtime.failover]
            for step in part(members, led[connector]):
                step.stage, step.lane = stage, connector
                steps.append(step)
    steps.append(Step(kind=StepKind.BALANCE_FAILOVER, hand_overs=HandOvers.ONCE))
    return _replace(plan_of(environment), steps)


@dataclass(frozen=True)
class _Led:
    """A failover group, as the Create phase calls it by now, and who leads it."""

    name: str
    leader: Runtime


def _led(environment: Environment, now: datetime) -> dict[str, list[_Led]]:
    """Connector -> its groups. A name is unique within a connector only, so nothing is looked up by it."""
    found: dict[str, list[_Led]] = defaultdict(list)
    groups = FailoverGroup.objects.filter(environment=environment, failover=True).select_related("group__connector")
    for group in groups.prefetch_related(failover.with_members()):
        if not failover.meant_to_fail_over(group):
            continue
        view = failover.verdict(group, now=now)
        if view.leader is None:
            reasons = " ".join(view.problems)
            called = f"{group.name} of connector {group.group.connector.name}"
            raise NotAllowed(f"Nobody is known to lead {called}, so there is no follower to begin with: {reasons}")
        found[group.group.connector.name].append(_Led(group.group.name, view.leader.member.runtime))
    return found


def _deploy(runtime: Runtime, *, stage: str = "", lane: str = "") -> Step:
    return Step(kind=StepKind.DEPLOY_RUNTIME, machine=runtime.machine.name, connector=runtime.connector.name, stage=stage, lane=lane)


def _heir(members: Sequence[Runtime], led: Sequence[_Led]) -> Runtime:
    """Who is upgraded first and takes over: it leads the fewest groups, and is preferred before others."""
    order = [Preference.LEADER, Preference.BACKUP, Preference.NONE]
    counts = {member.pk: sum(group.leader.pk == member.pk for group in led) for member in members}
    return min(members, key=lambda member: (counts[member.pk], order.index(Preference(member.preference)), member.machine.name))


def _split(members: Sequence[Runtime], led: Sequence[_Led]) -> tuple[list[Runtime], list[Runtime]]:
    """(upgraded first: those that lead nothing, or at least the heir; upgraded after the hand-over)."""
    leading = {group.leader.pk for group in led}
    first = [member for member in members if member.pk not in leading] or [_heir(members, led)]
    return first, [member for member in members if member not in first]


def _followers_part(members: Sequence[Runtime], led: Sequence[_Led]) -> list[Step]:
    return [step for member in _split(members, led)[0] for step in (_deploy(member), _wait(member))]


def _hand_over_part(members: Sequence[Runtime], led: Sequence[_Led]) -> list[Step]:
    first, later = _split(members, led)
    heir = _heir(first, led)
    names = {group.name for group in led if group.leader in later}
    target = {"machine": heir.machine.name, "connector": heir.connector.name, "condition": Condition.CHANGED}
    return [Step(kind=StepKind.GROUP_START, group=name, **target) for name in sorted(names)]


def _leaders_part(members: Sequence[Runtime], led: Sequence[_Led]) -> list[Step]:
    return [step for member in _split(members, led)[1] for step in (_deploy(member), _wait(member))]


def _wait(runtime: Runtime) -> Step:
    return Step(kind=StepKind.WAIT_HEALTHY, machine=runtime.machine.name, connector=runtime.connector.name)


# ------------------------------------------------------------------------------------------------------------------- edits


def add_step(plan: Plan, kind: StepKind, *, position: int | None = None, **fields: str | int) -> Step:
    """Insert a step (at the end, but before Balance failover, when no position is given).

    Fields: those of StepFields but the kind; what the kind does not use is left empty.

    Raises:
        Invalid: unknown target for the environment; a second Balance; Balance anywhere but last, or any step after it:
            "Balance failover comes last, after the deployment of all runtimes: …".
    """
    if kind not in StepKind.values:
        raise Invalid(f'"{kind}" is no kind of step.', field="kind")
    step = Step(plan=plan, kind=StepKind(kind))
    _fill(_Targets(plan.environment), step, fields)
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


def move_step(step: Step, position: int, *, stage: str | None = None, lane: str | None = None) -> None:
    """Give a step another place; the others keep their order. Raises Invalid as add_step does.

    In the middle of another stage it joins that stage, in the lane of the step before it; `stage` and `lane` say otherwise."""
    with transaction.atomic():
        steps = _locked(step.plan)
        mine = _find(steps, step)
        _check_position(position, len(steps))
        steps.remove(mine)
        steps.insert(position - 1, mine)
        _join(steps, position - 1, stage, lane)
        _check_order(steps)
        Step.objects.filter(pk=mine.pk).update(stage=mine.stage, lane=mine.lane)
        _arrange(step.plan, steps)
    step.refresh_from_db()


def _join(steps: Sequence[Step], index: int, stage: str | None, lane: str | None) -> None:
    """A stage is never torn apart by a step that comes into its middle."""
    mine = steps[index]
    before, after = (steps[index - 1] if index else None), (steps[index + 1] if index + 1 < len(steps) else None)
    if stage is not None or lane is not None:
        mine.stage = mine.stage if stage is None else stage.strip()[:40]
        mine.lane = mine.lane if lane is None else lane.strip()[:40]
    elif before is not None and after is not None and before.stage == after.stage != mine.stage:
        mine.stage, mine.lane = before.stage, before.lane


def change_step(step: Step, *, seen: str = "", **fields: str | int) -> None:
    """Change fields of a step (not its kind); what is not named stays. `seen` is the digest of the step as the person saw it; empty:
    whatever it is now. Raises Stale when somebody changed it since."""
    with transaction.atomic():
        mine = _find(_locked(step.plan), step)
        if seen and seen != digest_of([mine]):
            raise Stale("Somebody changed this step since you opened it. Save again to replace that, or leave it.")
        kept = {name: getattr(mine, name) for name in STEP_FIELDS if name != "kind"}
        _fill(_Targets(step.plan.environment), mine, {**kept, **fields})
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
    return _replace(plan_of(environment), [Step(**{name: getattr(step, name) for name in STEP_FIELDS}) for step in plan.steps.all()])


def compose(environment: Environment, items: Sequence[Mapping[str, Any]]) -> list[Step]:
    """New steps of these fields (`kind` among them), not saved. Raises Invalid naming the step and its field ("steps.2.machine")."""
    targets, made = _Targets(environment), []
    for number, item in enumerate(items):
        step = Step(kind=StepKind(item["kind"]))
        try:
            _fill(targets, step, {name: value for name, value in item.items() if name != "kind"})
        except Invalid as refusal:
            raise Invalid(f"Step {number + 1}, {step.title}: {refusal.sentence}", field=f"steps.{number}.{refusal.field}") from None
        made.append(step)
    return made


def refuse_changed(plan: Plan, seen: str) -> None:
    """Inside the transaction of an edit: nobody else edits the plan until it ends. Raises Stale when it is not as it was seen."""
    if digest_of(_locked(plan)) != seen:
        raise Stale(f"Somebody changed the plan of {plan.environment.name} since you looked: look at it again.")


def replace(environment: Environment, steps: list[Step]) -> Plan:
    """Replace the environment's plan by these new steps. Raises Invalid when Balance failover is not its last."""
    _check_order(steps)
    return _replace(plan_of(environment), steps)


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


def _fill(targets: "_Targets", step: Step, fields: Mapping[str, Any]) -> None:
    """Set the fields that the step's kind uses. Raises Invalid naming the field."""
    known = {name for name in STEP_FIELDS if name != "kind"}
    if unknown := sorted(set(fields) - known):
        raise Invalid(f"A step has no field {', '.join(unknown)}.", field=unknown[0])
    kind = StepKind(step.kind)

    def text(name: str, *, used: bool) -> str:
        return str(fields.get(name, "")).strip() if used else ""

    anywhere = kind == StepKind.WAIT_HEALTHY  # its target may be left empty
    step.machine = text("machine", used=kind in ON_RUNTIME + ON_MACHINE or anywhere)
    step.connector = text("connector", used=kind in ON_RUNTIME or (anywhere and bool(step.machine)))
    step.group = text("group", used=kind in GROUP_KINDS)
    step.flow = text("flow", used=kind in FLOW_KINDS)
    step.command = text("command", used=kind == StepKind.RUN_COMMAND)
    step.url = text("url", used=kind == StepKind.HTTP_CHECK)
    step.instruction = text("instruction", used=kind == StepKind.MANUAL)
    step.confirm_role = text("confirm_role", used=kind == StepKind.MANUAL)
    balance = kind == StepKind.BALANCE_FAILOVER  # alone, last, and always
    step.hand_overs = text("hand_overs", used=balance)
    step.stage, step.lane = text("stage", used=not balance)[:40], text("lane", used=not balance)[:40]
    step.condition = Condition.ALWAYS if balance else str(fields.get("condition") or Condition.ALWAYS)
    step.expected_status = _number(fields, "expected_status", 200, 100, 599) if kind == StepKind.HTTP_CHECK else 200
    step.retries = _number(fields, "retries", 0, 0, MOST_RETRIES)
    usual, longest = usual_seconds(kind)
    step.timeout_seconds = _number(fields, "timeout_seconds", usual, 1, longest)
    _check_fields(kind, step)
    if found := targets.finding(step):
        raise Invalid(found[1], field=found[0])


def usual_seconds(kind: StepKind) -> tuple[int, int]:
    """(time limit of a step of this kind when none is given, the longest)."""
    return (PERSON_SECONDS, LONGEST_PERSON_SECONDS) if kind == StepKind.MANUAL else (120, LONGEST_SECONDS)


_NUMBERS = {"expected_status": "status", "retries": "number of retries", "timeout_seconds": "time-out"}


def _number(fields: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    given = str(fields.get(name, default))
    if not (given.isascii() and given.isdigit() and least <= int(given) <= most):
        unit = "number of seconds" if name == "timeout_seconds" else "number"
        raise Invalid(f"The {_NUMBERS[name]} is a {unit} from {least} to {most}.", field=name)
    return int(given)


def url_uses(environment: Environment) -> list[Use]:
    """The keys that the addresses of the plan's HTTP checks name; one query."""
    checks = Step.objects.filter(plan__environment=environment, kind=StepKind.HTTP_CHECK, url__contains="${").order_by("position")
    return [Use(key, f"HTTP check {url}") for url in checks.values_list("url", flat=True) for key in sorted(placeholders(url))]


def check(step: Step) -> None:
    """Whether a step that was not entered field by field has fields as one that was; its target may come later. Raises Invalid."""
    kind, fields = StepKind(step.kind), {name: getattr(step, name) for name in STEP_FIELDS}
    if kind == StepKind.HTTP_CHECK:
        _number(fields, "expected_status", 200, 100, 599)
    _number(fields, "retries", 0, 0, MOST_RETRIES)
    usual, longest = usual_seconds(kind)
    _number(fields, "timeout_seconds", usual, 1, longest)
    _check_fields(kind, step)


def _check_fields(kind: StepKind, step: Step) -> None:
    if kind == StepKind.MANUAL and not step.instruction:
        raise Invalid("Say what the person should do before the plan goes on.", field="instruction")
    if step.confirm_role and step.confirm_role not in Role.values:
        raise Invalid(f"{step.confirm_role} is no role: choose {', '.join(Role.values)}.", field="confirm_role")
    if step.hand_overs and step.hand_overs not in HandOvers.values:
        raise Invalid(f"{step.hand_overs} is no choice: say once, or nothing.", field="hand_overs")
    if step.condition not in Condition.values:
        raise Invalid(f"{step.condition} is no condition: choose {' or '.join(Condition.values)}.", field="condition")
    if kind == StepKind.RUN_COMMAND and not COMMAND_NAME.fullmatch(step.command):
        raise Invalid("Say the name of the command as the machine's own list has it: letters, digits, - and _.", field="command")
    if kind == StepKind.HTTP_CHECK and not step.url.startswith(("http://", "https://", "${")):
        raise Invalid("Say an address that begins with http:// or https://; it may hold ${placeholders}.", field="url")
    if kind == StepKind.HTTP_CHECK and len(step.url) > 500:
        raise Invalid("The address is too long: use at most 500 characters.", field="url")


# -------------------------------------------------------------------------------------------------------- what is wrong with it


class _Targets:
    """What the steps of an environment's plan may name; read once."""

    def __init__(self, environment: Environment) -> None:
        self.place = environment.name
        self.rows = {row.name: row for row in Machine.objects.filter(environment=environment)}
        self.machines = set(self.rows)
        runtimes = Runtime.objects.filter(environment=environment).order_by("machine__kind", "machine__name", "connector__name")
        rows = list(runtimes.values_list("machine__name", "connector__name", "connector_id", "failover"))
        self.runtimes = [(machine, connector) for machine, connector, _, _ in rows]
        self.failing_over = {connector for _, connector, _, failover in rows if failover}
        self.groups: dict[str, set[str]] = {}
        self.failover_groups: list[str] = []
        for group in Group.objects.filter(connector__in={row[2] for row in rows}).select_related("connector"):
            self.groups.setdefault(group.connector.name, set()).add(group.name)
            if group.connector.name in self.failing_over:
                self.failover_groups.append(group.name)
        self.flows: dict[str, set[str]] = {}
        self.grouped: set[tuple[str, str]] = set()
        for flow in Flow.objects.filter(connector__in={row[2] for row in rows}).select_related("connector"):
            self.flows.setdefault(flow.connector.name, set()).add(flow.name)
            if flow.group_id is not None:
                self.grouped.add((flow.connector.name, flow.name))

    def finding(self, step: StepFields) -> tuple[str, str] | None:
        """(field, sentence) when the step names what is not there."""
        kind = StepKind(step.kind)
        waits = kind == StepKind.WAIT_HEALTHY
        on_runtime = kind in ON_RUNTIME or (waits and bool(step.connector))
        if (on_runtime or kind in ON_MACHINE or (waits and step.machine)) and step.machine not in self.machines:
            return "machine", f"{self._named(step.machine, 'machine')} {self._choose(self.machines)}"
        if on_runtime and (step.machine, step.connector) not in self.runtimes:
            here = {connector for machine, connector in self.runtimes if machine == step.machine}
            name = f"{step.machine}.{step.connector}" if step.connector else ""
            return "connector", f"{self._named(name, 'runtime')} {self._choose(here)}"
        if kind in GROUP_KINDS and step.group not in self.groups.get(step.connector, set()):
            here = self.groups.get(step.connector, set())
            return "group", f"{self._named(step.group, f'group of {step.connector}')} {self._choose(here)}"
        if kind in FLOW_KINDS and step.flow not in self.flows.get(step.connector, set()):
            return "flow", f"{self._named(step.flow, f'flow of {step.connector}')} {self._choose(self.flows.get(step.connector, set()))}"
        if kind in FLOW_KINDS and (step.connector, step.flow) in self.grouped:
            return "flow", f"{step.flow} is in a group, which runs where it leads: use Start group or Stop group."
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
    found += _lane_findings(steps, targets)
    found += _order_findings(steps)
    found += _never_findings(steps)
    found += [
        f"Step {step.position}, {step.title}: {refusal}"
        for step in steps
        if step.kind == StepKind.RUN_COMMAND
        and (row := targets.rows.get(step.machine))
        and (refusal := commands.refused(row, step.command))
    ]
    alerting = [step.position for step in steps if step.kind == StepKind.ALERTING_OFF]
    first_deploy = min((step.position for step in steps if step.kind in DEPLOYS), default=0)
    if alerting and first_deploy and alerting[0] > first_deploy:
        found.append("Alerting off comes after the first deployment of a runtime: alerts are sent until then.")
    return found


def _never_findings(steps: Sequence[Step]) -> list[str]:
    """Steps for what this deployment changed, where nothing can have been changed."""
    found = []
    for step in steps:
        if step.condition != Condition.CHANGED:
            continue
        if step.kind in GROUP_KINDS and any(other.kind in DEPLOYS and other.connector in ("", step.connector) for other in steps):
            continue  # it goes by the runtime that leads then, whose own step may come later
        before = (other for other in steps if other.position < step.position and other.kind in DEPLOYS)
        own = (
            other for other in before if other.machine == step.machine and (not step.connector or other.connector in ("", step.connector))
        )
        if not any(own if step.machine else before):
            target = f"{step.machine}.{step.connector}" if step.connector else step.machine or "anything"
            found.append(f"Step {step.position}, {step.title}, runs only when changed, and no step before deploys {target}: it never runs.")
    return found


def _lane_findings(steps: Sequence[Step], targets: "_Targets") -> list[str]:
    """Members of one connector in failover in several lanes of one stage."""
    found = []
    for stage in stages_of(steps):
        lanes: dict[str, set[str]] = {}
        for lane in stage.lanes:
            for step in lane.steps:
                if step.kind not in (*DEPLOYS, StepKind.RESTART_RUNTIME):
                    continue
                own = {step.connector} if step.connector else {name for machine, name in targets.runtimes if machine == step.machine}
                for connector in own & targets.failing_over:
                    lanes.setdefault(connector, set()).add(lane.name or "(no name)")
        found += [
            f"Stage {stage.name or stage.number} changes runtimes of {connector} in the lanes {' and '.join(sorted(names))}: "
            "they wait for each other, one member of a group at a time. Put them in one lane."
            for connector, names in sorted(lanes.items())
            if len(names) > 1
        ]
    return found


def _order_findings(steps: Sequence[Step]) -> list[str]:
    """A stage name that comes back later is two stages; a runtime that is stopped and never started again."""
    found, seen = [], set()
    for stage in stages_of(steps):
        if stage.name and stage.name in seen:
            found.append(f"Stage {stage.name} is torn apart by other steps: what comes after them is a stage of its own.")
        seen.add(stage.name)
    starts = (StepKind.START_RUNTIME, *DEPLOYS)
    for step in steps:
        if step.kind != StepKind.STOP_RUNTIME:
            continue
        again = [other for other in steps if other.position > step.position and other.kind in starts and other.machine == step.machine]
        if not any(other.connector in ("", step.connector) for other in again):
            found.append(f"{step.machine}.{step.connector} is stopped in step {step.position} and no later step starts it.")
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
    if any(kind in DEPLOYS for kind in kinds[: kinds.index(StepKind.DEPLOY_ROUTERS)]):
        return ["Deploy routers comes after the deployment of a runtime: put it first, runtimes in failover need their router."]
    return []
