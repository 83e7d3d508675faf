"""What pages show of groups: the verdict, the wish beside the fact, what happened last, and what each button would do.

Reads only, in a fixed number of queries however many groups there are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import OuterRef, QuerySet, Subquery

from portal.models import Environment
from runtimes import failover, protocol
from runtimes.models import LIVE_REQUESTS, FailoverGroup, GroupMember, GroupRequest, LeadershipChange, Machine

OUTCOME_SHOWN_FOR = timedelta(minutes=10)  # how long an ended request stays on the page, unless a newer one replaces it

CAUSES: dict[str, str] = {
    protocol.Cause.FIRST: "nobody led before",
    protocol.Cause.CRASH: "crash: its process ended",
    protocol.Cause.SILENCE: "silence: it was not heard from",
    protocol.Cause.RELEASE: "it stopped cleanly",
    protocol.Cause.SWITCH: "switched by hand",
    protocol.Cause.BALANCE: "Balance failover",
    protocol.Cause.DEPLOY: "handed over before its deployment",
    protocol.Cause.DISABLE: "disabled",
}

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

    @property
    def epoch(self) -> str:
        return epoch_in_words(self.row.epoch)


@dataclass(frozen=True)
class MemberLine:
    """One row of the table: a member as it may be shown now."""

    said: failover.MemberVerdict
    machine: Machine
    preferred: bool
    since: datetime | None
    last_activity: datetime | None
    alarm: str  # "Leader but Off: …"; empty when there is none
    wish: str  # "preferred Leader", "to be disabled by operator"
    buttons: list[Button] = field(default_factory=list)


@dataclass(frozen=True)
class Board:
    """One group as a page shows it."""

    group: FailoverGroup
    verdict: failover.Verdict
    lines: list[MemberLine]
    last_change: Change | None
    request: GroupRequest | None  # live, or ended a short while ago

    @property
    def epoch(self) -> str:
        return epoch_in_words(self.group.epoch)

    @property
    def request_is_live(self) -> bool:
        return self.request is not None and self.request.status in LIVE_REQUESTS

    @property
    def asked(self) -> str:
        """ "Hand-over to external02" """
        return wish_of(self.request) if self.request else ""

    @property
    def isolation(self) -> str:
        """The wish in words, "Stop" or "Run alone", and where a member's fact differs, that."""
        wish = protocol.IsolationPolicy(self.group.isolation_policy)
        behind = [said.machine for said in self.verdict.members if said.fresh and said.member.observed_isolation != wish]
        return failover.POLICY_WORDS[wish] + (f" (not yet known to {', '.join(sorted(behind))})" if behind else "")

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


def moment(text: str) -> datetime | None:
    """A moment off the wire (RFC 3339); None when it is empty or unreadable."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def epoch_in_words(epoch: int) -> str:
    """ "1·240": generation and revision, of which an epoch is made (docs/failover.md); "–" where there is none."""
    generation, revision = divmod(epoch, 10**12)
    return f"{generation}·{revision}" if epoch else "–"


def in_words(change: LeadershipChange) -> Change:
    return Change(
        row=change,
        machine=change.runtime.split(".")[0],
        previous=change.previous.split(".")[0],
        words=CAUSES.get(change.cause, change.cause),
    )


def with_members(groups: "QuerySet[FailoverGroup]") -> "QuerySet[FailoverGroup]":
    """The groups with everything `failover.verdict` needs."""
    return groups.select_related("environment__project", "group__connector__system").prefetch_related(failover.with_members())


def boards(environments: Iterable[Environment], *, now: datetime, machine: str = "") -> list[Board]:
    """Every group of these environments, unhealthy ones first; with `machine`, those with a member there."""
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
    made = [
        board_of(group, changes.get(newest[group.pk][0]), requests.get(newest[group.pk][1]), now=now)
        for group in with_members(FailoverGroup.objects.filter(pk__in=newest))
        if group.members.all()
    ]
    return sorted(made, key=lambda board: (board.verdict.healthy, board.group.name, board.system))


def board_of(group: FailoverGroup, change: LeadershipChange | None, request: GroupRequest | None, *, now: datetime) -> Board:
    """One group's board from rows already read."""
    verdict = failover.verdict(group, now=now)
    recent = request if request and (request.status in LIVE_REQUESTS or is_recent(request, now)) else None
    return Board(
        group=group,
        verdict=verdict,
        lines=[line_of(group, said, verdict, recent, now=now) for said in sorted(verdict.members, key=machine_of)],
        last_change=in_words(change) if change else None,
        request=recent,
    )


def is_recent(request: GroupRequest, now: datetime) -> bool:
    return now - (request.ended_at or request.created_at) < OUTCOME_SHOWN_FOR


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
        since=moment(said.member.observed_since) if said.status != protocol.Status.UNKNOWN else None,
        last_activity=moment(said.member.observed_last_activity),
        alarm=alarm_of(said),
        wish=member_wish(said, request),
        buttons=buttons_of(group, said, verdict, request, now=now),
    )


def alarm_of(said: failover.MemberVerdict) -> str:
    """The two states that must never look like a green line; empty when there is nothing to say."""
    leads = said.status in (protocol.Status.LEADER, protocol.Status.SINGLE_NODE)
    if said.state == protocol.State.PARTLY:
        return "Partly: some inbounds of the group run and some do not."
    if leads and said.state == protocol.State.OFF:
        return "Leader but Off: it holds the leadership and consumes nothing."
    if said.status in (protocol.Status.FOLLOWER, protocol.Status.DISABLED) and said.state == protocol.State.ON:
        return "Not the leader but On: its inbounds should not run."
    return ""


def member_wish(said: failover.MemberVerdict, request: GroupRequest | None) -> str:
    """What is wished of this member: an open request first, else the preference."""
    runtime = said.member.runtime
    if request and request.status in LIVE_REQUESTS and request.machine == runtime.machine.name:
        verb = {protocol.RequestKind.SWITCH: "lead", protocol.RequestKind.DISABLE: "be disabled", protocol.RequestKind.ENABLE: "be enabled"}
        return f"to {verb[protocol.RequestKind(request.kind)]}, asked by {request.actor}"
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
        if not leads:
            return f"{name} does not lead: nothing to stop here."
        others = [other for other in verdict.members if other is not said]
        if all(failover.obstacle(verdict, other) for other in others):
            return "No follower is ready to take over. Disable stops it all the same."
    return ""


def troubled(found: Sequence[Board]) -> list[Board]:
    return [board for board in found if not board.verdict.healthy]
