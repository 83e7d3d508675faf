"""What deploying a release by the plan would do, in the same shape as the run: per step what restarts and why, who leads afterwards, which
groups are without a standby meanwhile, and how long it takes, from history.

`foresee` is pure: a function of the plan, what the release changes, and the state of the environment as last heard. It asks the same gates
as the engine. `preview` reads that state and calls it.
"""

import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from deployments import gates, handing_over, moves, plans, promotion, releases, rollout, steps
from deployments.models import DEPLOYS, Deployment, HandOvers, Release, RunStatus, StepFields, StepKind, StepRun
from deployments.stages import Stage, stages_of
from portal.errors import NotAllowed
from portal.models import Environment, Property
from portal.placeholders import placeholders
from portal.property_values import Missing, Values
from runtimes import commands, failover, fleet, protocol
from runtimes.models import FailoverGroup, Machine, Runtime
from runtimes.protocol import Preference, RuntimeState, Status

Outcome = Literal["runs", "skipped", "waits", "fails"]
LEAST_SECONDS = 1.0  # "more than" less than this tells nothing
HISTORY = 10  # newest deployments of an environment, whose steps that ended well are looked at
_ORDER = [Preference.LEADER, Preference.BACKUP, Preference.NONE]


# ------------------------------------------------------------------------------------------------------- what is known before


@dataclass(frozen=True)
class RuntimeSight:
    """A runtime as last heard, and what the release gives it."""

    key: str
    machine: str
    connector: str
    running: bool = True  # and not only wished
    stopped: bool = False  # wished so, by a person or an earlier step
    held: str = ""  # why it stays stopped until it is deployed, a sentence
    deployed: bool = True
    released: bool = True  # told of this release, as Balance asks: by the step that deploys it, changed or not
    same: bool = False  # is ordered already what the release gives it
    unchanged: bool = False  # and runs it
    why: str = ""  # why it changes, a sentence
    refusal: str = ""  # why it cannot be deployed: a missing value, say
    forced: bool = False  # its connector's members stop before any starts anew: nobody can take over
    silent: bool = False
    lacks: str = ""  # "Release 3 has no connector erp": it stops, and `unchanged` when it is stopped already


@dataclass(frozen=True)
class MemberSight:
    preference: str
    able: bool  # leads, or could take over now
    lacking: str = ""
    disabled: bool = False
    hopeless: bool = False


@dataclass(frozen=True)
class GroupSight:
    key: str  # what it is known by: a name is unique within a connector of one release only
    name: str  # as it is told, unlike every other
    leader: str | None
    members: Mapping[str, MemberSight]  # by runtime key
    plain: str  # its own name, by which a step of its connector names it
    leaves: bool = False  # the release does not have it: each member goes out of it with its own step
    unheard: str = ""  # the silent machine that led when it was last heard of, and may lead still


@dataclass(frozen=True)
class Snapshot:
    runtimes: Mapping[str, RuntimeSight]
    groups: Sequence[GroupSight]
    seconds: Mapping[tuple[str, str], float]  # (kind, target) and (kind, "") -> median of how long it took
    pointless: Mapping[int, str] = field(default_factory=dict)  # number of a step -> why the release has nothing for it
    lacking: Mapping[int, str] = field(default_factory=dict)  # number of a step on no runtime -> what it lacks: values, a command


# ----------------------------------------------------------------------------------------------------------- what is foreseen


@dataclass(frozen=True)
class HandOver:
    group: str
    before: str
    after: str
    cause: str

    @property
    def sentence(self) -> str:
        return f"{self.group} is handed over from {self.before} to {self.after}."


@dataclass
class Foreseen:
    """One step of the run to come."""

    number: int
    kind: str
    title: str
    stage: str
    lane: str
    outcome: Outcome = "runs"
    sentence: str = ""
    restarts: list[str] = field(default_factory=list)  # runtime keys whose process begins anew, or for the first time
    starts: list[str] = field(default_factory=list)  # those of them that do not run before
    hand_overs: list[HandOver] = field(default_factory=list)
    without_standby: list[str] = field(default_factory=list)  # groups, while the step runs
    interrupted: list[str] = field(default_factory=list)  # groups that nobody leads for a while
    leaders: dict[str, str | None] = field(default_factory=dict)  # after the step
    seconds: float | None = None

    @property
    def restarted(self) -> list[str]:
        """What runs before and begins anew."""
        return [key for key in self.restarts if key not in self.starts]


@dataclass(frozen=True)
class Preview:
    steps: Sequence[Foreseen]
    obstacles: Sequence[str]
    missing: Sequence[Missing]
    gaps: Sequence[str]
    leaders: Mapping[str, str | None]  # before the first step
    seconds: float | None  # of the steps whose time is known, lanes side by side; None: too few are
    rules: Sequence[str] = ()  # what the environment's rules forbid now

    @property
    def stages(self) -> list[Stage[Foreseen]]:
        return stages_of(self.steps)

    @property
    def untimed(self) -> int:
        """Steps that run and of which no time is known, for none ended well here: `seconds` does not count them."""
        return sum(step.outcome == "runs" and step.seconds is None for step in self.steps)

    @property
    def stops_at(self) -> "Foreseen | None":
        """The step at which the run would fail as things are now."""
        return next((step for step in self.steps if step.outcome == "fails"), None)

    @property
    def hand_overs(self) -> dict[str, int]:
        """How often each group changes its leader."""
        counts: dict[str, int] = {}
        for step in self.steps:
            for one in step.hand_overs:
                counts[one.group] = counts.get(one.group, 0) + 1
        return counts


# ------------------------------------------------------------------------------------------------------------------- foresee


def foresee(recipe: Sequence[StepFields], seen: Snapshot, *, leaving_out: Collection[str] = ()) -> list[Foreseen]:
    """The run to come, step by step, in the order of the plan; of lanes side by side nobody can say who is first. Pure."""
    world = _World(seen, leaving_out)
    for stage in stages_of(recipe):
        for lane in stage.lanes:
            others = [step for other in stage.lanes if other is not lane for step in other.steps]
            world.beside |= {id(step): others for step in lane.steps}
    found = []
    for number, step in enumerate(recipe, start=1):
        world.later[id(step)] = recipe[number:]
        one = Foreseen(number, step.kind, step.title, step.stage, step.lane)
        target = f"{step.machine}.{step.connector}" if step.connector else step.machine
        one.seconds = seen.seconds.get((step.kind, target), seen.seconds.get((step.kind, "")))
        world.take(step, one)
        if one.outcome == "skipped":
            one.seconds = 0.0
        one.leaders = {group.name: group.leader for group in world.groups.values()}
        found.append(one)
        if one.outcome == "fails":
            break  # nothing is known of what people decide then
    return found


class _World:
    """The environment as it becomes, step by step."""

    def __init__(self, seen: Snapshot, leaving_out: Collection[str]) -> None:
        self.runtimes = dict(seen.runtimes)
        self.groups = {group.key: group for group in seen.groups}
        self.out = set(leaving_out)
        self.changed: set[str] = set()
        self.moved: set[str] = set()  # keys of groups that this run handed over
        self.pointless, self.lacking = seen.pointless, seen.lacking
        self.beside: dict[int, list[StepFields]] = {}  # id of a step -> those of the lanes beside it
        self.later: dict[int, Sequence[StepFields]] = {}  # id of a step -> those that come after it

    # ---- one step

    def take(self, step: StepFields, told: Foreseen) -> None:
        kind = StepKind(step.kind)
        if step.machine in self.out:
            told.outcome, told.sentence = "skipped", f"{step.machine} is left out."
            return
        if told.number in self.pointless:
            told.outcome, told.sentence = "skipped", self.pointless[told.number]
            return
        if step.condition == "changed" and (unchanged := self._unchanged(kind, step)):
            told.outcome, told.sentence = "skipped", unchanged
            return
        if told.number in self.lacking:
            told.outcome, told.sentence = "fails", self.lacking[told.number]
            return
        if kind in DEPLOYS or kind in plans.RUNTIME_KINDS:
            self._on_runtimes(kind, step, told)
        elif kind == StepKind.WAIT_HEALTHY:
            self._wait(step, told)
        elif kind in plans.GROUP_KINDS:
            self._on_group(kind, step, told)
        elif kind == StepKind.BALANCE_FAILOVER:
            self._balance(step, told)
        elif kind == StepKind.MANUAL:
            told.outcome, told.sentence = "waits", step.instruction

    def _unchanged(self, kind: StepKind, step: StepFields) -> str:
        """As steps.Kind.unchanged."""
        group = self._group(step) if kind in plans.GROUP_KINDS else None
        leader = self.runtimes[group.leader] if group is not None and group.leader is not None else None
        if group is not None and leader is not None and leader.machine not in self.out:
            deploys = [later for later in self.later[id(step)] if later.kind in DEPLOYS and later.machine == leader.machine]
            if any(later.connector in ("", leader.connector) for later in deploys):
                if leader.running and leader.unchanged:
                    return f"{leader.key} leads {group.name}, and this deployment does not change it: no hand-over is needed."
                return ""
        return "" if self._changed(step) else "This deployment changes nothing there before."

    def _group(self, step: StepFields) -> GroupSight | None:
        """The group that a Group step names."""
        key = f"{step.machine}.{step.connector}"
        return next((one for one in self.groups.values() if one.plain == step.group and key in one.members), None)

    def _changed(self, step: StepFields) -> bool:
        if not step.machine:
            return bool(self.changed)
        own, prefix = f"{step.machine}.{step.connector}", f"{step.machine}."
        return any(key == own or (not step.connector and key.startswith(prefix)) for key in self.changed)

    def _targets(self, step: StepFields) -> list[RuntimeSight]:
        mine = [row for row in self.runtimes.values() if row.machine == step.machine]
        return sorted((row for row in mine if step.connector in ("", row.connector)), key=lambda row: row.connector)

    def _on_runtimes(self, kind: StepKind, step: StepFields, told: Foreseen) -> None:
        rows = self._targets(step)
        if kind in DEPLOYS and (refused := next((row for row in rows if row.refusal and not row.lacks), None)):
            told.outcome, told.sentence = "fails", refused.refusal  # before anything is ordered
            return
        sentences: list[str] = []
        failed: list[str] = []
        skipped = 0
        for row in rows:  # each comes to its end, whatever becomes of another
            outcome, sentence = self._on_runtime(kind, row, told)
            (failed if outcome == "fails" else sentences).append(sentence)
            skipped += outcome == "skipped"
        told.sentence = " ".join(filter(None, failed or sentences))
        if failed:
            told.outcome = "fails"
        elif not rows:
            told.outcome, told.sentence = "fails", f"{told.title}: there is no such runtime."
        elif skipped == len(rows):
            told.outcome = "skipped" if kind in DEPLOYS else "runs"

    def _on_runtime(self, kind: StepKind, row: RuntimeSight, told: Foreseen) -> tuple[Outcome, str]:
        if row.lacks and kind in DEPLOYS:
            return self._retire(row, told)
        if kind in DEPLOYS:
            self.runtimes[row.key] = row = replace(row, released=True, same=True)
        if kind in DEPLOYS and row.unchanged and row.running:
            return "skipped", f"{row.key} already runs this bundle: not restarted."
        if kind not in DEPLOYS and not row.deployed:
            return "fails", f"Nothing was deployed to {row.key} yet: deploy it first."
        if kind in (StepKind.START_RUNTIME, StepKind.RESTART_RUNTIME) and row.held:
            return "fails", row.held
        if kind == StepKind.RESTART_RUNTIME and row.stopped:
            return "fails", f"{row.key} is stopped: start it instead."
        if kind == StepKind.START_RUNTIME:
            if not row.running:
                self._begins(row, told)
            return "runs", ""
        if kind == StepKind.STOP_RUNTIME and not row.running:
            return "runs", f"{row.key} is stopped already."
        if row.silent:
            return "fails", f"{row.machine} is not heard from."
        if not row.forced and (refusal := self._give_up(kind, row.key, told)):
            return "fails", refusal
        self._goes_down(row, told)
        if kind == StepKind.STOP_RUNTIME:
            self.runtimes[row.key] = replace(self.runtimes[row.key], stopped=True)
            return "runs", ""
        self._begins(row, told)
        if kind in DEPLOYS:
            self.changed.add(row.key)
        return "runs", row.why if kind in DEPLOYS else ""

    def _wait(self, step: StepFields, told: Foreseen) -> None:
        """As steps.WaitHealthy, of what is certain before: what is stopped makes its group unhealthy, and what is held comes up by its own
        step only."""
        rows = [row for row in self.runtimes.values() if step.machine in ("", row.machine) and step.connector in ("", row.connector)]
        waited = {row.key: row for row in rows if row.deployed and not row.stopped and not row.lacks and row.machine not in self.out}
        found = [row.held for row in waited.values() if row.held and self._is_stopped(row, step)]
        for group in self.groups.values():
            if group.leaves or len(group.members) < 2 or not waited.keys() & group.members.keys():
                continue
            if group.leader is None and group.unheard in self.out:
                found.append(failover.unproven_without(group.name, group.unheard))
            found += [
                f"{key} is stopped, so {group.name} does not become healthy."
                for key in sorted(group.members)
                if self._is_stopped(member := self.runtimes[key], step) and member.deployed and member.machine not in self.out
            ]
        if found:
            told.outcome, told.sentence = "fails", " ".join(found)

    def _is_stopped(self, row: RuntimeSight, step: StepFields) -> bool:
        comes_up = any(
            other.kind in DEPLOYS and other.machine == row.machine and other.connector in ("", row.connector)
            for other in self.beside.get(id(step), ())
        )
        return row.stopped or bool(row.held and not comes_up)

    def _retire(self, row: RuntimeSight, told: Foreseen) -> tuple[Outcome, str]:
        """As steps.retire: no gate, no hand-over."""
        if row.unchanged or not row.deployed:
            return "skipped", f"{row.lacks}: {row.key} is stopped already."
        if row.silent:
            return "fails", f"{row.lacks}, and {row.machine} is not heard from: it cannot be proven that {row.key} stops."
        for group in list(self.groups.values()):
            if group.leader == row.key:
                told.interrupted.append(group.name)
            self._leave(group, row.key)
        self.runtimes[row.key] = replace(row, running=False, unchanged=True)
        self.changed.add(row.key)
        return "runs", f"{row.lacks}: {row.key} is stopped."

    def _leave(self, group: GroupSight, key: str) -> None:
        """Out of a group that the release does not have; whoever is left and ready takes over."""
        left = {other: member for other, member in group.members.items() if other != key}
        if not left:
            del self.groups[group.key]
            return
        leader = group.leader if group.leader != key else next(iter(self._ready(group, but=key)), None)
        self.groups[group.key] = replace(group, members=left, leader=leader)

    def _begins(self, row: RuntimeSight, told: Foreseen) -> None:
        told.restarts.append(row.key)
        if not row.running or not row.deployed:
            told.starts.append(row.key)
        self._comes_up(row)

    # ---- leadership

    def _sights(self, key: str, *, deploys: bool) -> list[gates.Sight]:
        found = []
        for group in self.groups.values():
            own = group.members.get(key)
            if own is None or own.disabled or len(group.members) < 2 or (group.leaves and deploys):
                continue
            others = {other: member for other, member in group.members.items() if other != key}
            ready = self._ready(group, but=key)
            found.append(
                gates.Sight(
                    group=group.name,
                    leader=group.leader,
                    ready=ready,
                    lacking={other: member.lacking or f"{other} leads." for other, member in others.items() if other not in ready},
                    hopeless=all(member.hopeless for other, member in others.items() if other not in ready),
                )
            )
        return found

    def _ready(self, group: GroupSight, *, but: str) -> list[str]:
        here = {key: member for key, member in group.members.items() if self.runtimes[key].machine not in self.out}
        able = [key for key, member in here.items() if key not in (but, group.leader) and member.able]
        return sorted(able, key=lambda key: (_ORDER.index(Preference(group.members[key].preference)), key))

    def _give_up(self, kind: StepKind, key: str, told: Foreseen) -> str:
        """Hand over what it leads; why it must not be touched, or empty."""
        gate = gates.touch(key, self._sights(key, deploys=kind in DEPLOYS), stops=kind == StepKind.STOP_RUNTIME, touched=())
        if not gate.open:
            return gate.sentence
        for group in list(self.groups.values()):
            if group.leader != key:
                continue
            if ready := self._ready(group, but=key):
                self._lead(group, ready[0], "deploy", told)
            elif not (group.leaves and kind in DEPLOYS):  # alone in what is left of it
                return f"{key} leads {group.name}, and no follower is ready to take over."
        return ""

    def _lead(self, group: GroupSight, key: str, cause: str, told: Foreseen) -> None:
        if group.leader is not None and group.leader != key:
            told.hand_overs.append(HandOver(group.name, group.leader, key, cause))
            self.moved.add(group.key)
        self.groups[group.key] = replace(group, leader=key)

    def _goes_down(self, row: RuntimeSight, told: Foreseen) -> None:
        for group in list(self.groups.values()):
            own = group.members.get(row.key)
            if own is None or (len(group.members) < 2 and not group.leaves):
                continue
            down = replace(own, able=False, lacking=f"{row.key} is stopped.", hopeless=True)
            left = replace(group, members={**group.members, row.key: down}, leader=None if group.leader == row.key else group.leader)
            self.groups[group.key] = left
            if group.leader == row.key:
                told.interrupted.append(group.name)
            elif left.leader is not None and own.able and not self._ready(left, but=left.leader):
                told.without_standby.append(group.name)
        self.runtimes[row.key] = replace(row, running=False)

    def _comes_up(self, row: RuntimeSight) -> None:
        for group in list(self.groups.values()):
            own = group.members.get(row.key)
            if own is not None and group.leaves:
                self._leave(group, row.key)
                continue
            if own is None or own.disabled:
                continue
            up = replace(own, able=True, lacking="", hopeless=False)
            leader = group.leader if group.leader is not None or group.unheard else row.key
            self.groups[group.key] = replace(group, members={**group.members, row.key: up}, leader=leader)
        self.runtimes[row.key] = replace(row, running=True, stopped=False, held="", deployed=True, unchanged=row.same)

    def _on_group(self, kind: StepKind, step: StepFields, told: Foreseen) -> None:
        key = f"{step.machine}.{step.connector}"
        group = self._group(step)
        if group is None:
            told.outcome, told.sentence = "fails", f"{key} has no group {step.group} in what is deployed then."
            return
        if kind == StepKind.GROUP_START:
            if group.leader == key:
                told.sentence = f"{key} leads {group.name} already."
            elif group.members[key].able:
                self._lead(group, key, "switch", told)
            else:
                told.outcome, told.sentence = "fails", group.members[key].lacking or f"{key} is not ready to take over {group.name}."
        elif group.leader == key:
            ready = self._ready(group, but=key)
            if ready:
                self._lead(group, ready[0], "switch", told)
            else:
                told.outcome, told.sentence = "fails", f"No follower is ready to take over {group.name}."

    def _balance(self, step: StepFields, told: Foreseen) -> None:
        sentences = []
        for group in sorted(self.groups.values(), key=lambda one: one.name):
            if group.leaves:
                continue
            here = {key: member for key, member in group.members.items() if self.runtimes[key].machine not in self.out}
            wished = next((key for key, member in here.items() if member.preference == Preference.LEADER), None)
            out = sorted(set(group.members) - set(here))
            if out:
                sentences.append(f"{group.name} is proven without {' and '.join(out)}, left out.")
            if lacking := self._unproven(group, here, step):
                told.outcome = "fails"
                sentences.append(lacking)
                continue
            if wished is None or len(group.members) < 2:
                continue
            if step.hand_overs == HandOvers.ONCE and group.key in self.moved and group.leader not in (None, wished):
                sentences.append(f"{group.name} was handed over once by then and stays on {group.leader}; {wished} is preferred.")
            elif not here[wished].able:
                told.outcome = "fails"
                sentences.append(f"{wished} is preferred for {group.name} but not ready: {here[wished].lacking}")
            else:
                self._lead(group, wished, "balance", told)
        told.sentence = " ".join(sentences)

    def _unproven(self, group: GroupSight, here: Mapping[str, MemberSight], step: StepFields) -> str:
        """What Balance would wait for in vain, as far as it is certain before."""
        if group.leader is None and group.unheard in self.out:
            return failover.unproven_without(group.name, group.unheard)
        for key in sorted(here):
            row = self.runtimes[key]
            if self._is_stopped(row, step):
                return f"{key} is stopped, so {group.name} cannot be proven."
            if not row.released:
                return f"{key} does not run this release, for no step before deploys it: {group.name} cannot be proven."
        return ""


# ------------------------------------------------------------------------------------------------------------------- preview


def preview(release: Release, environment: Environment, *, now: datetime, leaving_out: Collection[str] = ()) -> Preview:
    """What deploying this release by the environment's plan would do now."""
    recipe: list[StepFields] = list(plans.plan_of(environment).steps.all())
    missing = releases.missing(release, environment)
    seen = look(release, environment, recipe, missing, now=now)
    found = foresee(recipe, seen, leaving_out=leaving_out)
    return Preview(
        steps=found,
        obstacles=rollout.obstacles(release, environment, now=now, leaving_out=leaving_out),
        missing=missing,
        gaps=[gap.sentence for gap in moves.foreseen(release, environment, recipe)] + moves.retired(release, environment, recipe),
        leaders={group.name: group.leader for group in seen.groups},
        seconds=_whole(found),
        rules=[finding.sentence for finding in promotion.findings(release, environment, at=now)],
    )


def _whole(found: Sequence[Foreseen]) -> float | None:
    """Stages one after another, of each the longest lane; what waits for a person, or has no history, is not counted."""
    running = [step for step in found if step.outcome == "runs"]
    known = sum(max(sum(step.seconds or 0.0 for step in lane.steps) for lane in stage.lanes) for stage in stages_of(found))
    if any(step.seconds is None for step in running) and known < LEAST_SECONDS:
        return None
    return known


def look(
    release: Release, environment: Environment, recipe: Sequence[StepFields], missing: Sequence[Missing] = (), *, now: datetime
) -> Snapshot:
    """What is known before the run; `missing` are the values that it lacks."""
    rows = list(Runtime.objects.filter(environment=environment).select_related("machine", "connector", "environment", "desired_bundle"))
    stored = Property.objects.filter(environment=environment)
    values = Values(stored.only("key", "machine", "connector", "value", "secret", "sealed") if rows else ())
    forced = _forced(release, environment, rows)
    runtimes = {row.key: _runtime(release, row, values, row.key in forced, now) for row in rows}
    pointless = {number: reason for number, step in enumerate(recipe, start=1) if (reason := moves.pointless(release, step))}
    lacking = _lacking(missing, recipe) | _not_listed(environment, recipe, now)
    return Snapshot(runtimes, _groups(release, environment, rows, now), _history(environment), pointless, lacking)


def _not_listed(environment: Environment, recipe: Sequence[StepFields], now: datetime) -> dict[int, str]:
    """Steps whose command the machine's own list does not have, as far as the machine tells now."""
    asked = {number: step for number, step in enumerate(recipe, start=1) if step.kind == StepKind.RUN_COMMAND}
    rows = Machine.objects.filter(environment=environment, name__in={step.machine for step in asked.values()}) if asked else ()
    machines = {row.name: row for row in rows if not row.is_silent(now=now)}
    told = {number: commands.refused(machines[step.machine], step.command) for number, step in asked.items() if step.machine in machines}
    return {number: refusal for number, refusal in told.items() if refusal}


def _lacking(missing: Iterable[Missing], recipe: Sequence[StepFields]) -> dict[int, str]:
    """Steps that need values of routers or of their own address. The values are named in the list of what is missing, once."""
    places: dict[str, list[str]] = {}
    for item in missing:
        places.setdefault(item.runtime, []).append(item.key)
    routers = {place: keys for place, keys in places.items() if place.startswith(("router on ", "witness on "))}
    found = {}
    for number, step in enumerate(recipe, start=1):
        if step.kind == StepKind.DEPLOY_ROUTERS and routers:
            found[number] = _count(sum(map(len, routers.values())), " and ".join(f"the {place}" for place in routers))
        elif step.kind == StepKind.HTTP_CHECK and (keys := placeholders(step.url) & set(places.get("the plan", ()))):
            found[number] = _count(len(keys), "its address")
    return found


def _count(number: int, place: str) -> str:
    return f"{number} values are missing for {place}." if number > 1 else f"A value is missing for {place}."


def _forced(release: Release, environment: Environment, rows: Iterable[Runtime]) -> set[str]:
    """Runtimes whose present groups must not run beside what comes: all of the connector's stop before any starts."""
    routers = fleet.has_routers(environment.pk)
    by_connector: dict[str, list[Runtime]] = {}
    for row in rows:
        by_connector.setdefault(row.connector.name, []).append(row)
    found = set()
    for connector, members in by_connector.items():
        comes = moves.promised(release, connector, len(members), routers=routers)
        if comes is not None:
            found |= {row.key for row, _ in moves.clashes(members, comes)}
    return found


def _runtime(release: Release, row: Runtime, values: Values, forced: bool, now: datetime) -> RuntimeSight:
    same, unchanged, why, refusal = False, False, "", ""
    lacks = moves.lacks(release, row.connector.name)
    try:
        content = releases.bundle_for(release, row, values)
    except NotAllowed as no:
        refusal, unchanged = no.sentence, bool(lacks) and steps.at_rest(row)
        if no.reasons:  # one for each missing value: the list of these names them
            refusal = _count(len(no.reasons), row.key)
    else:
        same, unchanged, why = _difference(row, content, now)
    return RuntimeSight(
        key=row.key,
        machine=row.machine.name,
        connector=row.connector.name,
        running=row.desired_running and not row.held and row.observed_state == RuntimeState.READY,
        stopped=not row.desired_running,
        held=f"{row.key} stays stopped until it is deployed: {row.held.rstrip('.')}." if row.held else "",
        deployed=row.desired_bundle_id is not None,
        released=row.desired_release == release.number,
        same=same,
        unchanged=unchanged,
        why=why,
        refusal=refusal,
        forced=forced,
        silent=row.machine.is_silent(now=now),
        lacks=lacks,
    )


def _difference(row: Runtime, content: protocol.BundleContent, now: datetime) -> tuple[bool, bool, str]:
    """(is ordered to run it, runs it, else why it changes): what steps.DeployRuntime decides from."""
    if row.desired_bundle is None:
        return False, False, f"{row.key} gets its first bundle."
    if row.desired_bundle.is_lost:
        return False, False, f"{row.key}: what it runs cannot be read, the property key of its bundle is missing."
    former = row.desired_bundle.read()
    if moves.same_but_release(former, content):
        if steps.runs_as_ordered(row, now):
            return True, True, ""
        return True, False, f"{row.key} does not run what it is ordered to run: it is {RuntimeState(row.observed_state).value}."
    old, new = {flow.id: flow for flow in former.flows}, {flow.id: flow for flow in content.flows}
    clauses = [f"flow {new[key].name} {new[key].version} is new" for key in new if key not in old]
    clauses += [f"flow {old[key].name} is gone" for key in old if key not in new]
    for key in new.keys() & old.keys():
        if new[key].version != old[key].version:
            clauses.append(f"flow {new[key].name} {old[key].version} → {new[key].version}")
        elif new[key] != old[key]:
            clauses.append(f"flow {new[key].name} gets other values")
    if former.groups != content.groups:
        clauses.append("its groups change")
    return False, False, f"{row.key}: {', '.join(sorted(clauses)) or 'its settings change'}."


def _groups(release: Release, environment: Environment, rows: Sequence[Runtime], now: datetime) -> list[GroupSight]:
    """The failover groups that the release has, as they are now, and those that go with it; those that come have no leader yet."""
    routers = fleet.has_routers(environment.pk)
    designed = {item["name"]: item for item in release.content["connectors"]}
    present = FailoverGroup.objects.filter(environment=environment, failover=True).select_related("group__connector")
    known = {group.group.key: group for group in present.prefetch_related(failover.with_members())}
    kept = {item["id"] for item in release.content["groups"]}
    going = {key: group for key, group in known.items() if key not in kept and group.members.all()}
    comes = [(item["id"], item["name"], item["connector"]) for item in release.content["groups"]]
    told = _told(comes, [(key, group.name, group.group.connector.name) for key, group in going.items()])
    found = []
    for item in release.content["groups"]:
        members = [row for row in rows if row.connector.name == item["connector"]]
        if item["connector"] not in designed or not moves.fails_over(designed[item["connector"]], len(members), routers=routers):
            continue
        group = known.get(item["id"])
        view = failover.verdict(group, now=now) if group is not None else None
        seen = {said.member.runtime.key: said for said in view.members} if view is not None else {}
        leader = view.leader.member.runtime.key if view is not None and view.leader is not None else None
        sights = {row.key: _member(row, view, seen.get(row.key)) for row in members}
        unheard = failover.unheard_leader(view) if view is not None else None
        machine = unheard.machine if unheard is not None else ""
        found.append(GroupSight(item["id"], told[item["id"]], leader, sights, plain=item["name"], unheard=machine))
    return found + [_leaving(key, told[key], group, now) for key, group in going.items()]


def _told(comes: Sequence[tuple[str, str, str]], going: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """What groups (key, name, connector) are called, by key: with the connector where two bear one name, and "former" where a connector
    gets another group of the name that one bears which goes."""
    names = Counter(name for _, name, _ in (*comes, *going))
    taken = {(name, connector) for _, name, connector in comes}
    told = {key: name if names[name] == 1 else f"{name} of {connector}" for key, name, connector in (*comes, *going)}
    for key, name, connector in going:
        if (name, connector) in taken:
            told[key] = f"former {name} of {connector}"
    return told


def _leaving(key: str, told: str, group: FailoverGroup, now: datetime) -> GroupSight:
    view = failover.verdict(group, now=now)
    leader = view.leader.member.runtime.key if view.leader else None
    sights = {said.member.runtime.key: _member(said.member.runtime, view, said) for said in view.members}
    return GroupSight(key, told, leader, sights, leaves=True, plain=group.name)


def _member(row: Runtime, view: failover.Verdict | None, said: failover.MemberVerdict | None) -> MemberSight:
    if view is None or said is None:
        return MemberSight(row.preference, able=False, lacking=f"{row.key} does not run this group yet.", hopeless=True)
    leads = said is view.leader
    obstacle = "" if leads else failover.obstacle(view, said)
    able = leads or (said.status == Status.FOLLOWER and not obstacle)
    return MemberSight(
        row.preference,
        able=able,
        lacking="" if able else handing_over.why_not(view, said),
        disabled=said.status == Status.DISABLED,
        hopeless=not able and handing_over.brings_nobody(said),
    )


def _history(environment: Environment) -> dict[tuple[str, str], float]:
    """Medians of how long steps took here that ended well."""
    newest = Deployment.objects.filter(environment=environment).order_by("-pk").values("pk")[:HISTORY]
    done = StepRun.objects.filter(deployment__in=newest, status=RunStatus.SUCCEEDED)
    taken: dict[tuple[str, str], list[float]] = {}
    rows = done.exclude(kind=StepKind.MANUAL).order_by()
    for kind, machine, connector, begun, ended in rows.values_list("kind", "machine", "connector", "started_at", "ended_at"):
        target = f"{machine}.{connector}" if connector else machine
        if begun and ended:
            for key in {(kind, target), (kind, "")}:
                taken.setdefault(key, []).append((ended - begun).total_seconds())
    return {key: statistics.median(times) for key, times in taken.items()}
