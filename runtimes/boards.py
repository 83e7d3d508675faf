"""What pages show of groups: the verdict, the wish beside the fact, what happened last, and what each button would do.

Reads only, in a fixed number of queries however many groups there are.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import OuterRef, QuerySet, Subquery

from portal.models import Environment
from runtimes import alarms, clocks, failback, failover, history, protocol, solitude
from runtimes.alarms import Found
from runtimes.models import (
    LIVE_REQUESTS,
    Alarm,
    AlarmKind,
    FailbackPolicy,
    FailoverGroup,
    GroupMember,
    GroupRequest,
    LeadershipChange,
    Machine,
    TimedSwitch,
)
from runtimes.protocol import epoch_words

OUTCOME_SHOWN_FOR = timedelta(minutes=10)  # how long an ended request stays on the page, unless a newer one replaces it
SETTLED_AFTER = timedelta(seconds=5)  # by then the machines have reported what a request that ended made of them

DEPLOYMENT = re.compile(r"deployment (\d{1,18})")

WORST_FIRST = {failover.Health.TROUBLED: 0, failover.Health.NO_STANDBY: 1, failover.Health.HEALTHY: 2}

ACTS: dict[str, str] = {"play": "Play", "stop": "Stop", "disable": "Disable", "enable": "Enable"}


@dataclass(frozen=True)
class Button:
    """One act on one member: what it would do, or why it cannot be done."""

    act: str  # play, stop, disable, enable
    label: str
    consequence: str
    refusal: str = ""  # empty: it may be pressed


@dataclass(frozen=True)
class Change:
    """A LeadershipChange in people's words."""

    row: LeadershipChange
    machine: str
    previous: str  # machine; empty when nobody led
    words: str
    alone: str = ""  # who ran alone while nobody led before it

    @property
    def epoch(self) -> str:
        return epoch_words(self.row.epoch)

    @property
    def no_gap(self) -> str:
        """Why there is no figure for how long nobody led; empty where there is one."""
        return history.why_no_gap(self.row)

    @property
    def connector(self) -> str:
        return self.row.runtime.partition(".")[2]

    @property
    def deployment(self) -> int | None:
        """Number of the deployment that asked for it."""
        found = DEPLOYMENT.fullmatch(self.row.actor)
        return int(found[1]) if found else None

    @property
    def person(self) -> str:
        """Who asked for it on a page or by the API; empty for a deployment, a policy, or an administrator on a machine."""
        by_hand = self.row.cause in (protocol.Cause.SWITCH, protocol.Cause.DISABLE)
        return self.row.actor if by_hand and not self.deployment and " on " not in self.row.actor else ""


@dataclass(frozen=True)
class MemberLine:
    """One row of the table: a member as it may be shown now."""

    said: failover.MemberVerdict
    machine: Machine
    preferred: bool
    since: datetime | None
    last_activity: datetime | None
    alarms: list[Found]  # "Leader but Off": each with its cause and what to do
    wish: str  # "preferred Leader", "to be disabled by operator"
    buttons: list[Button] = field(default_factory=list)

    @property
    def alarm(self) -> str:
        """The first alarm in short; empty when there is none."""
        return self.alarms[0].short if self.alarms else ""


@dataclass(frozen=True)
class Board:
    """One group as a page shows it."""

    group: FailoverGroup
    verdict: failover.Verdict
    lines: list[MemberLine]
    last_change: Change | None
    request: GroupRequest | None  # live, or ended a short while ago
    returns: failback.Return | None = None  # what is to return to the preferred leader, and when
    seconds_left: float | None = None  # until then, when time alone decides

    @property
    def epoch(self) -> str:
        return epoch_words(self.group.epoch)

    @property
    def told(self) -> str:
        """What the list of problems says."""
        return " ".join(self.problems)

    @property
    def alarms(self) -> list[Found]:
        return [alarm for line in self.lines for alarm in line.alarms]

    @property
    def health(self) -> failover.Health:
        return failover.Health.TROUBLED if self.alarms else self.verdict.health

    @property
    def healthy(self) -> bool:
        return self.health == failover.Health.HEALTHY

    @property
    def problems(self) -> list[str]:
        """One sentence each: what the verdict finds, what leads without hearing of its source, and why nobody could take over."""
        silent = [alarm.sentence for alarm in self.alarms if alarm.kind == AlarmKind.SILENT]
        found = list(dict.fromkeys(self.verdict.problems + silent + self.verdict.without_standby))
        return [one for one in found if not any(one != other and one.rstrip(".") in other for other in found)]  # said once is enough

    @property
    def request_is_live(self) -> bool:
        return self.request is not None and self.request.status in LIVE_REQUESTS

    @property
    def asked(self) -> str:
        """ "Hand-over to external02" """
        return wish_of(self.request) if self.request else ""

    @property
    def whose(self) -> str:
        return on_whose_behalf(self.request) if self.request else ""

    @property
    def outcome(self) -> str:
        """How the request ended in the machines' words; of a Disable that is carried out, what is so since."""
        if self.request is None:
            return ""
        said = member_on(self.request.machine, self.verdict)
        if self.request.status != protocol.RequestStatus.SUCCEEDED or self.request.kind != protocol.RequestKind.DISABLE or said is None:
            return self.request.reason
        if not said.fresh or said.status != protocol.Status.DISABLED or said.state != protocol.State.OFF:
            return self.request.reason
        led = f"{self.leader_machine} leads" if self.leader_machine else "nobody leads"
        return f"{self.request.machine} is disabled and Off until it is enabled; {led}"

    @property
    def isolation(self) -> str:
        """The wish in words, "Stop" or "Run alone", and where a member's fact differs, that."""
        wish = protocol.IsolationPolicy(self.group.isolation_policy)
        behind = [said.machine for said in self.verdict.members if said.fresh and said.member.observed_isolation != wish]
        return failover.POLICY_WORDS[wish] + (f" (not yet known to {', '.join(sorted(behind))})" if behind else "")

    @property
    def timed(self) -> TimedSwitch | None:
        return failback.timed(self.group)

    @property
    def failback(self) -> str:
        """ "Automatic after 5 min", "In a window, 22:00–04:00 Europe/Amsterdam" """
        group, policy = self.group, FailbackPolicy(self.group.failback)
        words = failback.WORDS[policy]
        if policy == FailbackPolicy.MANUAL:
            return words
        window = policy == FailbackPolicy.WINDOW and group.failback_window_start and group.failback_window_end
        hours = f", {group.failback_window_start:%H:%M}–{group.failback_window_end:%H:%M} {group.failback_zone}" if window else ""
        stable = group.failback_stable_seconds
        return f"{words} after {f'{stable // 60} min' if stable % 60 == 0 else f'{stable} s'}{hours}"

    @property
    def fails_over(self) -> bool:
        return failover.meant_to_fail_over(self.group)

    @property
    def leader_machine(self) -> str:
        return self.verdict.leader.member.runtime.machine.name if self.verdict.leader else ""

    @property
    def system(self) -> str:
        return self.group.group.connector.system.name


def wish_of(request: GroupRequest) -> str:
    """What was asked, in words."""
    if request.kind == protocol.RequestKind.SWITCH:
        return f"Hand-over to {request.machine}" if request.machine else "Hand-over to any ready follower"
    if request.kind == protocol.RequestKind.POLICY:
        return f"Isolation policy: {failover.POLICY_WORDS[protocol.IsolationPolicy(request.policy)].lower()}"
    return f"{'Disable' if request.kind == protocol.RequestKind.DISABLE else 'Enable'} {request.machine}"


def on_whose_behalf(request: GroupRequest) -> str:
    """Who asked for it: a person, a policy, or nobody now: somebody's switch for a time ends."""
    ends = request.cause == protocol.Cause.EXPIRY
    return f"as the switch for a time by {request.actor} is over" if ends else f"asked by {request.actor}"


def in_words(change: LeadershipChange, spells: Iterable[Alarm] = ()) -> Change:
    """`spells`: when members ran alone, of any group."""
    cause = protocol.Cause(change.cause)
    began = change.at - timedelta(seconds=max(change.gap_seconds or 0.0, 0.0))
    by_step = cause == protocol.Cause.SWITCH and DEPLOYMENT.fullmatch(change.actor)
    return Change(
        row=change,
        machine=change.runtime.split(".")[0],
        previous=change.previous.split(".")[0],
        words="switched by a step of the plan" if by_step else history.CAUSES[cause],
        alone=solitude.meanwhile((spell for spell in spells if spell.group_id == change.group_id), began, change.at),
    )


def with_members(groups: "QuerySet[FailoverGroup]") -> "QuerySet[FailoverGroup]":
    """The groups with everything `failover.verdict` needs."""
    return groups.select_related("environment__project", "group__connector__system").prefetch_related(failover.with_members())


def boards(environments: Iterable[Environment], *, now: datetime, machine: str = "") -> list[Board]:
    """Every group of these environments, unhealthy ones first; with `machine`, those with a member there."""
    environments = list(environments)
    groups = FailoverGroup.objects.filter(environment__in=environments)
    if machine:
        groups = groups.filter(pk__in=GroupMember.objects.filter(runtime__machine__name=machine).values("group"))
    latest = groups.annotate(
        change=Subquery(LeadershipChange.objects.filter(group=OuterRef("pk")).order_by("-epoch").values("pk")[:1]),
        request=Subquery(GroupRequest.objects.filter(group=OuterRef("pk")).order_by("-created_at").values("pk")[:1]),
    ).values_list("pk", "change", "request")
    newest = {pk: (change, request) for pk, change, request in latest}
    changes = LeadershipChange.objects.in_bulk([change for change, _ in newest.values() if change])
    requests = GroupRequest.objects.in_bulk([request for _, request in newest.values() if request])
    blocked = failback.blocked([environment.pk for environment in environments])
    made = [
        board_of(group, changes.get(newest[group.pk][0]), requests.get(newest[group.pk][1]), blocked.get(group.environment_id, ""), now=now)
        for group in failback.with_facts(with_members(FailoverGroup.objects.filter(pk__in=newest)), now=now)
        if group.members.all()
    ]
    return sorted(made, key=lambda board: (WORST_FIRST[board.health], board.group.name, board.system))


def board_of(group: FailoverGroup, change: LeadershipChange | None, request: GroupRequest | None, blocked: str, *, now: datetime) -> Board:
    """One group's board from rows already read."""
    verdict = failover.verdict(group, now=now)
    recent = request if request and (request.status in LIVE_REQUESTS or still_so(request, verdict, change, now)) else None
    returns = failback.decide(verdict, blocked=blocked, now=now)
    return Board(
        group=group,
        verdict=verdict,
        lines=[line_of(group, said, verdict, recent, now=now) for said in sorted(verdict.members, key=machine_of)],
        last_change=in_words(change) if change else None,
        request=recent,
        returns=returns,
        seconds_left=max(0.0, (returns.at - now).total_seconds()) if returns and returns.at else None,
    )


def still_so(request: GroupRequest, verdict: failover.Verdict, change: LeadershipChange | None, now: datetime) -> bool:
    """Whether an ended request may still be told: it ended a short while ago, and what it came to was not overtaken since."""
    ended_at = request.ended_at or request.created_at
    if now - ended_at >= OUTCOME_SHOWN_FOR:
        return False
    if now - ended_at < SETTLED_AFTER:
        return True
    succeeded, said = request.status == protocol.RequestStatus.SUCCEEDED, member_on(request.machine, verdict)
    if request.kind == protocol.RequestKind.SWITCH:
        if change is not None and change.at > ended_at + SETTLED_AFTER:
            return False
        leads = machine_of(verdict.leader) if verdict.leader else ""
        return not succeeded or leads == (request.machine or request.reason.partition(".")[0])
    if succeeded and said is not None and said.fresh and request.kind in (protocol.RequestKind.DISABLE, protocol.RequestKind.ENABLE):
        return said.member.observed_disabled == (request.kind == protocol.RequestKind.DISABLE)
    return True


def member_on(machine: str, verdict: failover.Verdict) -> failover.MemberVerdict | None:
    return next((said for said in verdict.members if machine_of(said) == machine), None)


def machine_of(said: failover.MemberVerdict) -> str:
    return said.member.runtime.machine.name


def line_of(
    group: FailoverGroup, said: failover.MemberVerdict, verdict: failover.Verdict, request: GroupRequest | None, *, now: datetime
) -> MemberLine:
    runtime = said.member.runtime
    return MemberLine(
        said=said,
        machine=runtime.machine,
        preferred=runtime.preference == protocol.Preference.LEADER,
        since=clocks.read(said.member.observed_since) if said.status != protocol.Status.UNKNOWN else None,
        last_activity=clocks.read(said.member.observed_last_activity),
        alarms=[alarm for alarm in alarms.of(verdict) if alarm.runtime == runtime.key],
        wish=member_wish(said, request),
        buttons=buttons_of(group, said, verdict, request, now=now),
    )


def member_wish(said: failover.MemberVerdict, request: GroupRequest | None) -> str:
    """What is wished of this member: an open request first, else the preference."""
    runtime = said.member.runtime
    if request and request.status in LIVE_REQUESTS and request.machine == runtime.machine.name:
        verb = {protocol.RequestKind.SWITCH: "lead", protocol.RequestKind.DISABLE: "be disabled", protocol.RequestKind.ENABLE: "be enabled"}
        return f"to {verb[protocol.RequestKind(request.kind)]}, {on_whose_behalf(request)}"
    if not runtime.desired_running:
        return "runtime stopped"
    if runtime.held:
        return "runtime stopped until it is deployed"
    return {"leader": "preferred leader", "backup": "backup"}.get(runtime.preference, "no preference")


def buttons_of(
    group: FailoverGroup, said: failover.MemberVerdict, verdict: failover.Verdict, request: GroupRequest | None, *, now: datetime
) -> list[Button]:
    """Play, Stop and Disable (or Enable), each with its consequence or the reason why not."""
    disabled = said.status == protocol.Status.DISABLED or said.member.observed_disabled
    acts = ["play", "stop", "enable" if disabled else "disable"]
    busy = f"{wish_of(request)} is under way." if request and request.status in LIVE_REQUESTS else ""
    return [
        Button(act, ACTS[act], failover.consequence(group, said.member, act, now=now), refusal=busy or refusal_of(act, said, verdict))
        for act in acts
    ]


def refusal_of(act: str, said: failover.MemberVerdict, verdict: failover.Verdict) -> str:
    """Why a button is no use for this member now; the act looks again and may still refuse."""
    name, leads = machine_of(said), verdict.leader is not None and verdict.leader.member.pk == said.member.pk
    if act == "play":
        return f"{name} leads already." if leads else failover.obstacle(verdict, said)
    if act == "stop":
        if said.status == protocol.Status.SINGLE_NODE:
            return failover.stopping_alone(verdict, said)
        if not leads:
            return f"{name} {'does not lead: nothing to stop here' if said.fresh else 'is not heard from: it cannot be stopped from here'}."
        others = [other for other in verdict.members if other is not said]
        if all(failover.obstacle(verdict, other) for other in others):
            return "No follower is ready to take over. Disable stops it all the same."
    return failover.no_disable(verdict, said) if act == "disable" else ""


def troubled(found: Sequence[Board]) -> list[Board]:
    return [board for board in found if not board.healthy]
