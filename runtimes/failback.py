"""Back to the preferred leader: by the group's failback policy, or because a switch by hand was for a time only.

`decide` is pure; `carry_out` does it through the same door as a person's Play, once under any number of beats and workers. The machines
carry the hand-over out; nothing here is needed for leadership to be kept or taken.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db import IntegrityError, transaction
from django.db.models import Count, Exists, F, OuterRef, Prefetch, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce

from portal.ages import in_words
from portal.errors import Busy, Invalid, NotAllowed
from runtimes import failover
from runtimes.models import LIVE_REQUESTS, FailbackPolicy, FailoverGroup, GroupRequest, LeadershipChange, SwitchEnding, TimedSwitch
from runtimes.protocol import Cause, Preference, RequestStatus, Status

# A return that did not succeed, then after twice as long each time: every try may stop the leader for as long as it drains.
ASK_AGAIN_AFTER, ASK_AGAIN_LIMIT = timedelta(seconds=30), timedelta(minutes=16)
GIVE_UP_AFTER = timedelta(hours=1)  # for which a timed switch that is over was tried to be returned
BY_HAND = (Cause.SWITCH, Cause.DISABLE)
FLAP_LIMIT, FLAP_SPAN = 3, timedelta(hours=1)  # so many returns by policy within this time did not help: something is wrong there
RETURNS = (Cause.FAILBACK, Cause.EXPIRY)
SHORTEST, LONGEST = timedelta(minutes=1), timedelta(days=7)  # of a timed switch
STABLE_LONGEST = 24 * 3600
POLICY_ACTOR = "failback policy"

WORDS = {FailbackPolicy.MANUAL: "Manual", FailbackPolicy.AUTOMATIC: "Automatic", FailbackPolicy.WINDOW: "In a window"}
CONSEQUENCES = {
    FailbackPolicy.MANUAL: "Leadership stays where it is until somebody moves it, or a deployment's Balance failover does.",
    FailbackPolicy.AUTOMATIC: "It returns by itself once the preferred member has been ready for the stability time: one more hand-over, "
    "at any time of the day.",
    FailbackPolicy.WINDOW: "As Automatic, but only between two times of the day.",
}

# Given ids of environments: what forbids every return there now, as a sentence by id. deployments adds that one is running.
blockers: list[Callable[[Collection[int]], dict[int, str]]] = []


@dataclass(frozen=True)
class Return:
    """What becomes of a leadership that is not where it is preferred: shown to people, and carried out when `due`."""

    sentence: str
    to: str = ""  # machine of the preferred member
    cause: Cause | None = None  # FAILBACK or EXPIRY; None: nothing returns by itself
    actor: str = ""
    at: datetime | None = None  # when time alone makes it due
    due: bool = False
    held: bool = False
    ending: SwitchEnding | None = None  # the timed switch ends with this


# ------------------------------------------------------------------------------------------------------------------- reading


def with_facts(groups: "QuerySet[FailoverGroup]", *, now: datetime) -> "QuerySet[FailoverGroup]":
    """The groups with what `decide` reads beside their members: newest move, returns of late and those that failed, the standing timed
    switch and how the last one ended."""
    newest = LeadershipChange.objects.filter(group=OuterRef("pk")).order_by("-epoch")
    moved = newest.exclude(runtime=F("previous"))  # a member that crashed and leads again moved nothing: who switched it there, still did
    by_hand = newest.filter(cause__in=BY_HAND)
    own = LeadershipChange.objects.filter(
        group=OuterRef("group"), epoch__gt=OuterRef("request__expected_epoch"), cause=Cause.SWITCH, actor=OuterRef("request__actor")
    ).order_by("epoch")
    standing = TimedSwitch.objects.filter(ended_at=None).select_related("request").annotate(own_epoch=Subquery(own.values("epoch")[:1]))
    failed = GroupRequest.objects.filter(
        group=OuterRef("pk"), cause__in=RETURNS, status__in=(RequestStatus.FAILED, RequestStatus.EXPIRED), created_at__gte=now - FLAP_SPAN
    )
    timed_switches = TimedSwitch.objects.filter(group=OuterRef("pk")).order_by("-created_at")
    of_late = newest.filter(cause=Cause.FAILBACK, heard_at__gte=now - FLAP_SPAN).order_by().values("group").annotate(n=Count("pk"))
    return groups.annotate(
        newest_cause=Subquery(moved.values("cause")[:1]),
        newest_actor=Subquery(moved.values("actor")[:1]),
        newest_heard_at=Subquery(newest.values("heard_at")[:1]),
        by_hand_epoch=Subquery(by_hand.values("epoch")[:1]),
        by_hand_actor=Subquery(by_hand.values("actor")[:1]),
        returns_of_late=Coalesce(Subquery(of_late.values("n")), 0),
        failed_returns=Coalesce(Subquery(failed.order_by().values("group").annotate(n=Count("pk")).values("n")), 0),
        failed_because=Subquery(failed.order_by("-created_at").values("reason")[:1]),
        last_ending=Subquery(timed_switches.values("ending")[:1]),
        last_ended_at=Subquery(timed_switches.values("ended_at")[:1]),
        last_ended_because=Subquery(timed_switches.values("reason")[:1]),
        is_busy=Exists(GroupRequest.objects.filter(group=OuterRef("pk"), status__in=LIVE_REQUESTS)),
    ).prefetch_related(Prefetch("timed_switches", standing, to_attr="standing"))


def timed(group: Any) -> TimedSwitch | None:
    """The switch by hand that is for a time only, if one stands. Needs `with_facts`."""
    return group.standing[0] if group.standing else None


def blocked(environments: Collection[int]) -> dict[int, str]:
    """Why nothing may return in these environments (ids) now; those where it may are missing."""
    return {pk: sentence for blocker in blockers for pk, sentence in blocker(environments).items()}


# ------------------------------------------------------------------------------------------------------------------ deciding


def decide(found: failover.Verdict, *, blocked: str, now: datetime) -> Return | None:
    """What is to return, why not yet, and when. None: leadership is where it is preferred, or nobody wished it anywhere.

    Pure over a group read by `with_facts` and `failover.with_members`.
    """
    group: Any = found.group
    standing = timed(group)
    if not failover.meant_to_fail_over(group):
        over = f"{group.name} does not fail over any more: nothing is left to return."
        return Return(over, ending=SwitchEnding.OVERTAKEN) if standing is not None else None
    preferred = next((said for said in found.members if said.member.runtime.preference == Preference.LEADER), None)
    if standing is not None:
        return _after_switch(found, standing, preferred, blocked, now)
    if found.leader is None or preferred is None or found.leader is preferred:
        return None
    manual = group.failback == FailbackPolicy.MANUAL
    if (given_up := _given_up(group)) and (manual or (group.newest_cause == Cause.SWITCH and not group.failback_held_by)):
        return Return(f"{given_up} Play on {preferred.machine} moves it back.", preferred.machine)
    return None if manual else _by_policy(found, found.leader, preferred, blocked, now)


def _given_up(group: Any) -> str:
    """Why the last switch for a time did not return, until leadership has changed since; empty where it did."""
    if group.last_ending != SwitchEnding.GIVEN_UP:
        return ""
    changed_since = group.newest_heard_at is not None and group.newest_heard_at > group.last_ended_at
    return "" if changed_since else str(group.last_ended_because)


def _after_switch(
    found: failover.Verdict, standing: TimedSwitch, preferred: failover.MemberVerdict | None, blocked: str, now: datetime
) -> Return:
    """Somebody moved the group for a time: it returns at its end, says why not yet, or gives up after GIVE_UP_AFTER."""
    request, by = standing.request, standing.actor
    to = preferred.machine if preferred else ""

    def over(ending: SwitchEnding, sentence: str) -> Return:
        return Return(sentence, to, ending=ending)

    if request.status in (RequestStatus.FAILED, RequestStatus.EXPIRED):
        return over(SwitchEnding.FAILED, f"The switch that {by} asked for did not happen: {request.reason}")
    if request.status in LIVE_REQUESTS:
        return Return(f"{by} asked for a switch that ends by itself.", to, Cause.EXPIRY, at=standing.until)
    group: Any = found.group
    if later := _later_by_hand(found, standing):
        return over(SwitchEnding.OVERTAKEN, f"{later} moved {group.name} again.")
    since_switch = request.ended_at is None or now - request.ended_at > timedelta(seconds=5)  # reports may still tell of before it
    if found.leader is not None and found.leader is preferred and since_switch:
        if group.newest_cause == Cause.EXPIRY:
            return over(SwitchEnding.RETURNED, f"{to} leads again: the switch by {by} was for a time only.")
        return over(SwitchEnding.OVERTAKEN, f"{to} leads already: nothing is left to return.")
    if now < standing.until:
        sentence = f"{by} moved {found.group.name} to {standing.machine or 'another member'} for a time; it returns to {to or 'nobody'}."
        return Return(sentence, to, Cause.EXPIRY, by, at=standing.until)
    why = blocked or _obstacle(found, preferred)
    tried_since = standing.tried_since
    failed = why or _last_try(group)
    if failed and not group.is_busy and tried_since is not None and now >= tried_since + GIVE_UP_AFTER:
        hours = f"{GIVE_UP_AFTER.total_seconds() / 3600:g} h"
        return over(
            SwitchEnding.GIVEN_UP, f"{found.group.name} stays where it is: for {hours} it could not return to {to or 'anybody'}. {failed}"
        )
    if why:
        gives_up = f"It is tried again until {(tried_since or now) + GIVE_UP_AFTER:%H:%M} UTC."
        return Return(f"The switch by {by} has expired, but {found.group.name} cannot return yet: {why} {gives_up}", to, Cause.EXPIRY, by)
    return _asked_for(found, Return(f"The switch by {by} has expired: {found.group.name} returns to {to}.", to, Cause.EXPIRY, by), now)


def _later_by_hand(found: failover.Verdict, standing: Any) -> str:
    """Who moved the group on the machines (`baton-agent`) after this switch came true; empty when nobody did."""
    group: Any = found.group
    since = standing.own_epoch or standing.request.expected_epoch or 0
    return (group.by_hand_actor or "Somebody") if group.by_hand_epoch is not None and group.by_hand_epoch > since else ""


def _by_policy(
    found: failover.Verdict, leader: failover.MemberVerdict, preferred: failover.MemberVerdict, blocked: str, now: datetime
) -> Return:
    group: Any = found.group
    to, name = preferred.machine, group.name

    def stays(why: str) -> Return:
        return Return(f"{name} stays on {leader.machine}: {why}", to)

    if group.failback_held_by:
        return Return(f"{name} stays on {leader.machine}: {group.failback_held_by} holds it there.", to, held=True)
    if group.newest_cause == Cause.SWITCH:
        return stays(f"{group.newest_actor or 'somebody'} switched it by hand. Play on {to} moves it back.")
    if group.returns_of_late >= FLAP_LIMIT:
        return stays(
            f"it returned to {to} {group.returns_of_late} times within {in_words(FLAP_SPAN.total_seconds())} and did not stay there. "
            f"Look why, then press Play on {to}."
        )
    if blocked:
        return stays(blocked)
    disabled = sorted(said.machine for said in found.members if said.status == Status.DISABLED or said.member.observed_disabled)
    if disabled:
        return stays(f"{' and '.join(disabled)} {'is' if len(disabled) == 1 else 'are'} disabled. It returns some time after Enable.")
    why = _obstacle(found, preferred)
    if why or preferred.member.ready_since is None:
        return stays(why or f"{to} is not ready.")
    stable_at = max(preferred.member.ready_since, group.newest_heard_at or preferred.member.ready_since) + timedelta(
        seconds=group.failback_stable_seconds
    )
    due_at = next_in_window(group, stable_at) if group.failback == FailbackPolicy.WINDOW else stable_at
    word = WORDS[FailbackPolicy(group.failback)].lower()
    coming = Return(f"{name} returns to {to}, its preferred leader (failback {word}).", to, Cause.FAILBACK, POLICY_ACTOR, at=due_at)
    if now < due_at:
        return coming
    if group.failback == FailbackPolicy.WINDOW and not in_window(group, now):  # it was due, and the window has closed since
        at = next_in_window(group, now)
        return Return(coming.sentence, to, Cause.FAILBACK, POLICY_ACTOR, at=at)
    return _asked_for(found, coming, now)


def _obstacle(found: failover.Verdict, preferred: failover.MemberVerdict | None) -> str:
    if preferred is None:
        return f"{found.group.name} has no preferred leader any more."
    if found.leader is None:
        return f"Nobody is known to lead {found.group.name}."
    return failover.obstacle(found, preferred)


def _asked_for(found: failover.Verdict, coming: Return, now: datetime) -> Return:
    """Due, unless it was asked for a moment ago, or something else is under way."""
    group: Any = found.group
    asked, wait = group.return_asked_at, _ask_again_after(group)
    recently = asked is not None and now - asked < wait
    if recently and group.is_busy:
        return Return(f"{coming.sentence} It was asked for and is under way.", coming.to, coming.cause, coming.actor)
    sentence = " ".join(filter(None, (coming.sentence, _last_try(group))))
    if asked is not None and recently:
        return Return(sentence, coming.to, coming.cause, coming.actor, at=asked + wait)
    if group.is_busy:
        return Return(f"{coming.sentence} Another request is under way.", coming.to, coming.cause, coming.actor)
    return Return(sentence, coming.to, coming.cause, coming.actor, at=now, due=True)


def _ask_again_after(group: Any) -> timedelta:
    """How long after a return was asked for it may be asked for again: longer after each of late that failed."""
    doublings = min(max(int(group.failed_returns) - 1, 0), 10)
    wait: timedelta = ASK_AGAIN_AFTER * 2**doublings
    return min(wait, ASK_AGAIN_LIMIT)


def _last_try(group: Any) -> str:
    """How the last return of late that failed did; empty where none has."""
    if not group.failed_returns:
        return ""
    return f"The last try failed: {(group.failed_because or 'nobody said why').rstrip('.')}."


# ------------------------------------------------------------------------------------------------------------------- windows


def in_window(group: FailoverGroup, moment: datetime) -> bool:
    """Is it between the two times of the day there; a window may cross midnight, and from a time to itself it is the whole day."""
    start, end = group.failback_window_start, group.failback_window_end
    if start is None or end is None or start == end:
        return True
    at = moment.astimezone(ZoneInfo(group.failback_zone)).time()
    return start <= at < end if start < end else at >= start or at < end


def next_in_window(group: FailoverGroup, moment: datetime) -> datetime:
    """The first moment in the window, this one or later, in UTC. A start that the clocks skip is taken by the offset before them, where
    that is in the window; one that they show twice is taken both times."""
    if in_window(group, moment):
        return moment
    assert group.failback_window_start is not None
    zone = ZoneInfo(group.failback_zone)
    today = moment.astimezone(zone).date()
    starts = sorted(_at(today + timedelta(days=days), group.failback_window_start, zone, fold) for days in range(3) for fold in (0, 1))
    return next(start for start in starts if start > moment and in_window(group, start))


def _at(day: date, at: time, zone: ZoneInfo, fold: int) -> datetime:
    return datetime.combine(day, at.replace(fold=fold), tzinfo=zone).astimezone(UTC)


# ---------------------------------------------------------------------------------------------------------------------- acts


def switch(
    group: FailoverGroup,
    *,
    candidate: str | None,
    expected_leader: str | None,
    actor: str,
    now: datetime,
    returns_after: timedelta | None = None,
) -> GroupRequest:
    """A person's Play or Stop, as `failover.switch`, for a time only where `returns_after` says so. It ends a timed switch before it once
    it has moved the group; one that is for a time itself takes its place, until that failed.

    Raises what `failover.switch` raises, and Invalid (field returns_after_seconds): too short or long, or there is nowhere to return to.
    """
    preferred = group.members.filter(runtime__preference=Preference.LEADER).values_list("runtime__machine__name", flat=True).first()
    if returns_after is not None:
        _refuse_senseless(group, candidate, preferred, returns_after)
    with transaction.atomic():
        request = failover.switch(group, candidate=candidate, expected_leader=expected_leader, actor=actor, now=now)
        if returns_after is not None:
            end(group, SwitchEnding.OVERTAKEN, f"{actor} asked to move {group.name} again.", now=now)
            TimedSwitch.objects.create(
                group=group, request=request, machine=candidate or "", actor=actor, until=now + returns_after, created_at=now
            )
    return request


def _refuse_senseless(group: FailoverGroup, candidate: str | None, preferred: str | None, returns_after: timedelta) -> None:
    field = "returns_after_seconds"
    if not SHORTEST <= returns_after <= LONGEST:
        raise Invalid("A switch for a time is for one minute to seven days.", field=field)
    if preferred is None:
        raise Invalid(
            f"{group.name} has no preferred leader to return to: choose one in the machine's details, tab Failover, first.", field=field
        )
    if candidate == preferred:
        raise Invalid(f"{preferred} is the preferred leader of {group.name}: from there leadership returns to nobody.", field=field)


def end(group: FailoverGroup, ending: SwitchEnding, reason: str, *, now: datetime) -> bool:
    """End the standing timed switch, once; what leads goes on leading."""
    return bool(TimedSwitch.objects.filter(group=group, ended_at=None).update(ended_at=now, ending=ending, reason=reason))


def _failed(standing: TimedSwitch, reason: str, *, now: datetime) -> bool:
    """The switch did not happen. What it took the place of stands again."""
    with transaction.atomic():
        if not end(standing.group, SwitchEnding.FAILED, reason, now=now):
            return False
        replaced = TimedSwitch.objects.filter(group=standing.group, ending=SwitchEnding.OVERTAKEN, ended_at=standing.created_at)
        replaced.update(ended_at=None, ending="", reason="")
    return True


def _refuse_while_it_returns(group: FailoverGroup) -> None:
    if GroupRequest.objects.filter(group=group, status__in=LIVE_REQUESTS, cause=Cause.EXPIRY).exists():
        raise Busy(f"{group.name} is on its way back already, as the time of its switch is over: look again in a moment.")


def cancel(group: FailoverGroup, *, actor: str, now: datetime) -> None:
    """Let the switch stand for good. Raises NotAllowed when none is for a time, Busy while it returns."""
    _refuse_while_it_returns(group)
    if not end(group, SwitchEnding.CANCELLED, f"{actor} let it stand.", now=now):
        raise NotAllowed(f"No switch of {group.name} is for a time: nothing to cancel.")


def extend(group: FailoverGroup, by: timedelta, *, now: datetime) -> TimedSwitch:
    """Let the switch stand longer. Raises NotAllowed when none is for a time, Busy while it returns, Invalid beyond LONGEST from now or
    into the past."""
    _refuse_while_it_returns(group)
    row = TimedSwitch.objects.filter(group=group, ended_at=None).first()
    if row is None:
        raise NotAllowed(f"No switch of {group.name} is for a time: nothing to extend.")
    until = max(row.until, now) + by
    if not now < until <= now + LONGEST:
        raise Invalid("A switch ends within seven days from now, and not in the past.", field="seconds")
    if not TimedSwitch.objects.filter(pk=row.pk, ended_at=None, until=row.until).update(until=until, tried_since=None):
        raise Busy(f"Somebody else just changed how long the switch of {group.name} stands: look again.")
    row.until = until
    return row


def hold(group: FailoverGroup, *, held: bool, actor: str) -> None:
    """Keep the policy from returning the group until it is let go, or the preferred member leads again. NotAllowed under manual."""
    groups = FailoverGroup.objects.filter(pk=group.pk)
    if held:
        groups = groups.exclude(failback=FailbackPolicy.MANUAL)
    if not groups.update(failback_held_by=actor if held else ""):
        raise NotAllowed(f"The failback of {group.name} is manual: nothing returns by itself, so there is nothing to hold.")


def set_policy(
    group: FailoverGroup,
    policy: FailbackPolicy,
    *,
    stable_seconds: int,
    window: tuple[time, time] | None = None,
    zone: str = "UTC",
) -> None:
    """Choose how leadership returns to the preferred leader. Who holds it goes on doing so, unless nothing returns any more.

    Raises:
        Invalid: the group does not run in failover; a stability time beyond a day; a window policy without a window.
    """
    if not group.failover:
        raise Invalid(f"{group.name} does not run in failover, so nothing returns.", field="policy")
    if not 0 <= stable_seconds <= STABLE_LONGEST:
        raise Invalid("The stability time is between 0 and 24 hours.", field="stable_seconds")
    if policy == FailbackPolicy.WINDOW and (window is None or window[0] == window[1]):
        raise Invalid("Say from when to when leadership may return.", field="window_start")
    start, until = window or (None, None)
    nobody_holds = {"failback_held_by": ""} if policy == FailbackPolicy.MANUAL else {}
    FailoverGroup.objects.filter(pk=group.pk).update(
        failback=policy,
        failback_stable_seconds=stable_seconds,
        failback_window_start=start,
        failback_window_end=until,
        failback_zone=zone,
        **nobody_holds,
    )


# --------------------------------------------------------------------------------------------------------------- carrying out


def concerned() -> list[Any]:
    """Ids of the groups where something may return by itself."""
    standing = Q(timed_switches__ended_at=None, timed_switches__isnull=False)
    return list(FailoverGroup.objects.filter(~Q(failback=FailbackPolicy.MANUAL) | standing).distinct().values_list("pk", flat=True))


def carry_out(group_id: Any, *, now: datetime) -> str:
    """One look at a group: return it when that is due, end a timed switch that is over. Returns a sentence, empty when there is nothing.

    Of any number of workers one asks: the claim is one UPDATE, in one transaction with the request.
    """
    groups = with_facts(FailoverGroup.objects.select_related("environment", "group"), now=now).prefetch_related(failover.with_members())
    group = groups.filter(pk=group_id).first()
    if group is None:
        return ""
    failover.expire_overdue(now=now, group=group)
    found = failover.verdict(group, now=now)
    standing = timed(group)
    if standing is not None and found.leader is not None and now >= standing.until and standing.tried_since is None:
        standing.tried_since = now  # before that nobody tried: the portal was away, say
        TimedSwitch.objects.filter(pk=standing.pk, tried_since=None).update(tried_since=now)
    coming = decide(found, blocked=blocked([group.environment_id]).get(group.environment_id, ""), now=now)
    if found.leader is not None and found.leader.member.runtime.preference == Preference.LEADER and group.failback_held_by:
        FailoverGroup.objects.filter(pk=group.pk, failback_held_by=group.failback_held_by).update(failback_held_by="")
    if coming is None:
        return ""
    if coming.ending == SwitchEnding.FAILED and standing is not None:
        return coming.sentence if _failed(standing, coming.sentence, now=now) else ""
    if coming.ending is not None:
        return coming.sentence if end(group, coming.ending, coming.sentence, now=now) else ""
    if not coming.due or coming.cause is None or found.leader is None:
        return ""
    try:
        with transaction.atomic():
            unasked = Q(return_asked_at=None) | Q(return_asked_at__lte=now - _ask_again_after(group))
            if not FailoverGroup.objects.filter(unasked, pk=group.pk, epoch=group.epoch).update(return_asked_at=now):
                return ""
            failover.switch(
                group, candidate=coming.to, expected_leader=found.leader.machine, actor=coming.actor, cause=coming.cause, now=now
            )
    except (NotAllowed, IntegrityError) as refusal:
        return f"{group.name} does not return yet: {refusal}"
    return coming.sentence
