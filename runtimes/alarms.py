"""Leadership that does not do what it says: leads but is Off, runs in part, or leads and hears nothing of its source.

`of` is pure and says what is wrong now, by fresh reports alone. `watch` (by beat) raises what has stood for a moment, clears it by itself
when it is over, and keeps it.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import QuerySet

from runtimes import failover, solitude
from runtimes.models import Alarm, AlarmKind, FailoverGroup
from runtimes.protocol import DRAINING, State, Status

# Each names those of the environments (ids) in which no alarm is raised now; DeploymentsConfig.ready() adds deployments with alerting off.
silencers: list[Callable[[Collection[int]], set[int]]] = []
STANDS_AFTER = timedelta(seconds=3)  # a take-over passes through Off and Partly within milliseconds, a drain within seconds
RETURNS_WITHIN = timedelta(seconds=60)  # what comes back so soon is the same alarm again, not another: on a busy machine they come and go
LEADS = (Status.LEADER, Status.SINGLE_NODE)
SHORT = {
    AlarmKind.OFF: "Leader but Off: it holds the leadership and consumes nothing.",
    AlarmKind.PARTLY: "Partly: some inbounds of the group run and some do not.",
    AlarmKind.SILENT: "Leader but silent: for longer than it should, an inbound hears nothing of its source or its target takes nothing.",
    AlarmKind.ALONE: "Runs alone: it lost the majority and consumes by its group's isolation policy; another member may do so too.",
    AlarmKind.STRAY: "Not the leader but On: its inbounds should not run.",
}


@dataclass(frozen=True)
class Found:
    """What is wrong with one member of a group now: one sentence with the cause, and what to do."""

    kind: AlarmKind
    runtime: str  # key
    machine: str
    subject: str  # the flow, of a silent inbound
    sentence: str
    remedy: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.runtime, self.kind, self.subject

    @property
    def short(self) -> str:
        return SHORT[self.kind]


def of(found: failover.Verdict) -> list[Found]:
    """Every alarm of a group. Pure over a verdict on a group read with `failover.with_members`."""
    return [alarm for said in found.members for alarm in _of_member(found, said)]


def _of_member(found: failover.Verdict, said: failover.MemberVerdict) -> list[Found]:
    if not said.fresh or said.status == Status.UNKNOWN or said.member.observed_reason.startswith(DRAINING):
        return []  # one that drains stops one inbound after the other, as it should
    group, machine, leads = found.group.name, said.machine, said.status in LEADS
    elsewhere = next((other.machine for other in found.members if other is not said and not failover.obstacle(found, other)), "")
    move = f"Play on {elsewhere} moves the leadership there" if elsewhere else "no other member could take over now"

    def alarm(kind: AlarmKind, sentence: str, remedy: str, subject: str = "") -> Found:
        return Found(kind, said.member.runtime.key, machine, subject, sentence, remedy)

    why = failover.cause(found.group, said.member)
    if said.state == State.PARTLY:
        return [
            alarm(AlarmKind.PARTLY, f"{machine} runs {group} only in part: {why}", f"Mend what the reason names; {move}."),
            *_silent(found, said, alarm_move=move),
        ]
    if leads and said.state == State.OFF:
        return [alarm(AlarmKind.OFF, f"{machine} leads {group}, but its inbounds are Off: {why}", f"Mend what the reason names; {move}.")]
    if said.status in (Status.FOLLOWER, Status.DISABLED) and said.state == State.ON:
        word = failover.WORDS[said.status]
        remedy = f"Restart the runtime {said.member.runtime.key}; its log tells what happened."
        return [alarm(AlarmKind.STRAY, f"{machine} is {word} in {group}, but its inbounds are On.", remedy)]
    if said.status == Status.SINGLE_NODE and said.state == State.ON and failover.meant_to_fail_over(found.group):
        return [
            alarm(AlarmKind.ALONE, solitude.sentence(machine, group, said.reason), solitude.REMEDY),
            *_silent(found, said, alarm_move=move),
        ]
    return _silent(found, said, alarm_move=move) if leads else []


def _flows(found: failover.Verdict, said: failover.MemberVerdict) -> list[dict[str, object]]:
    """The group's inbounds in this runtime, as it last reported them."""
    return [flow for flow in said.member.runtime.observed_flows if flow.get("group") == found.group.group.key]


def _silent(found: failover.Verdict, said: failover.MemberVerdict, *, alarm_move: str) -> list[Found]:
    made = []
    runs = f"leads {found.group.name} and is On, but" if said.state == State.ON else f"runs {found.group.name} only in part, and"
    for flow in _flows(found, said):
        unanswered, undelivered = str(flow.get("silent_since") or ""), str(flow.get("undelivered_since") or "")
        if not flow["on"] or not (unanswered or undelivered):
            continue
        side, what, since = (
            ("target", f"the target of {flow['name']} has taken nothing", undelivered)
            if undelivered
            else ("source", f"its inbound {flow['name']} has had no answer of its source", unanswered)
        )
        reason = str(flow.get("reason") or "").rstrip(".")
        made.append(
            Found(
                AlarmKind.SILENT,
                said.member.runtime.key,
                said.machine,
                str(flow["name"])[:80],
                f"{said.machine} {runs} {what} since {failover.clock(since, now=found.at)}{': ' + reason if reason else ''}.",
                f"Look at the {side} and at the runtime's log; if only {said.machine} cannot reach it, {alarm_move}.",
            )
        )
    return made


# ------------------------------------------------------------------------------------------------------------------ watching


def watch(groups: "Iterable[FailoverGroup]", *, now: datetime) -> tuple[int, int]:
    """Raise what has stood for STANDS_AFTER, clear what is over. Returns how many of each. May run twice, and at the same time.

    What begins where alerting is off is kept in mind, and raised when it still stands afterwards.
    """
    groups = list(groups)
    environments = {group.environment_id for group in groups}
    quiet = {pk for silencer in silencers for pk in silencer(environments)}
    standing: dict[object, dict[tuple[str, str, str], Alarm]] = {group.pk: {} for group in groups}
    for row in Alarm.objects.filter(group__in=groups, cleared_at=None):
        standing[row.group_id][row.runtime, row.kind, row.subject] = row
    new, raised, cleared = [], 0, 0
    for group in groups:
        found = failover.verdict(group, now=now)
        seen = {alarm.key: alarm for alarm in of(found)}
        known = standing[group.pk]
        new += [_row(group, alarm, now) for key, alarm in seen.items() if key not in known]
        for key, row in known.items():
            if key in seen:
                raised += _stands(row, seen[key], now, quiet=group.environment_id in quiet)
            else:
                cleared += _over(row, found, now)
    Alarm.objects.bulk_create(new, ignore_conflicts=True)
    return raised, cleared


def _row(group: FailoverGroup, alarm: Found, now: datetime) -> Alarm:
    return Alarm(
        group=group,
        runtime=alarm.runtime,
        kind=alarm.kind,
        subject=alarm.subject,
        sentence=alarm.sentence,
        remedy=alarm.remedy,
        since=now,
    )


def _stands(row: Alarm, alarm: Found, now: datetime, *, quiet: bool) -> int:
    open_row = Alarm.objects.filter(pk=row.pk, cleared_at=None)
    if (row.sentence, row.remedy) != (alarm.sentence, alarm.remedy):
        open_row.update(sentence=alarm.sentence, remedy=alarm.remedy)
    if quiet or row.raised_at is not None or now - row.since < STANDS_AFTER:
        return 0
    if _returns(row, alarm):
        return 1
    return open_row.filter(raised_at=None).update(raised_at=now)


def _returns(row: Alarm, alarm: Found) -> bool:
    """Is it one that was cleared a moment ago: then that one goes on, as if it had not been cleared, and this row goes."""
    same = Alarm.objects.filter(group=row.group_id, runtime=row.runtime, kind=row.kind, subject=row.subject, raised_at__isnull=False)
    last = same.filter(cleared_at__gte=row.since - RETURNS_WITHIN).order_by("-cleared_at").first()
    if last is None:
        return False
    with transaction.atomic():
        if not Alarm.objects.filter(pk=row.pk, raised_at=None, cleared_at=None).delete()[0]:
            return True  # another look did it
        told = {"sentence": alarm.sentence, "remedy": alarm.remedy}
        Alarm.objects.filter(pk=last.pk).update(cleared_at=None, cleared_because="", **told)
    return True


def _over(row: Alarm, found: failover.Verdict, now: datetime) -> int:
    """A state that only passed leaves nothing behind."""
    if row.raised_at is None:
        Alarm.objects.filter(pk=row.pk, raised_at=None).delete()
        return 0
    said = next((said for said in found.members if said.member.runtime.key == row.runtime), None)
    if said is None:
        because = "It is no member any more."
    elif said.fresh:
        because = f"{said.machine} is {failover.WORDS[said.status]}, {said.state.capitalize()}."
    else:
        because = f"Not known any more: {said.reason}"
    return Alarm.objects.filter(pk=row.pk, cleared_at=None).update(cleared_at=now, cleared_because=because)


def shown() -> "QuerySet[Alarm]":
    """Those that were raised; open ones have no `cleared_at`."""
    return Alarm.objects.filter(raised_at__isnull=False)
