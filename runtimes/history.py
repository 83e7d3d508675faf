"""Every change of leadership, once, in order of epochs, with its cause: the new leader tells the change when its inbounds are On, and the
former leader's machine tells, at once or days later, how its leadership ended. Written by reports only.
"""

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db.models import OuterRef, QuerySet, Subquery

from runtimes import protocol
from runtimes.clocks import TOLERATED_SECONDS, Clock, read
from runtimes.models import (
    FailoverGroup,
    GroupMember,
    LeadershipChange,
    LeadershipEnd,
    LeadershipInterruption,
    Machine,
    Runtime,
)
from runtimes.protocol import GENERATION_STEP, Cause, epoch_words

logger = logging.getLogger(__name__)

# What a new leader can see of another's end; which of the causes below it was, only that one's machine knows.
SEEN_FROM_OUTSIDE = (Cause.CRASH, Cause.SILENCE)
TOLD_AFTERWARDS = (Cause.CRASH, Cause.HANG, Cause.LOST_MAJORITY)
SEEN_ON_WITHIN = 5.0  # seconds before its end in which a leader was last seen On: a renewal, and what two machines' instants may differ by
LONGEST_SPAN = 10 * 366 * 86400.0  # seconds for which nobody can have led
ENDS = (*TOLD_AFTERWARDS, Cause.RELEASE, Cause.DISABLE)  # the last two by who left the group to nobody: since when nobody led

CAUSES: dict[Cause, str] = {
    Cause.FIRST: "nobody led before",
    Cause.CRASH: "crash: its process ended",
    Cause.HANG: "hang: its process stood still",
    Cause.SILENCE: "lost session: its machine is off or cut off",
    Cause.LOST_MAJORITY: "lost majority: it was cut off from the routers",
    Cause.POWER_OFF: "power-off: its machine was restarted",
    Cause.RELEASE: "it stopped cleanly",
    Cause.NOT_READY: "it was not ready any more",
    Cause.SWITCH: "switched by hand",
    Cause.BALANCE: "Balance failover",
    Cause.DEPLOY: "handed over beforehand",
    Cause.DISABLE: "disabled",
    Cause.FAILBACK: "failback: returned by the group's policy",
    Cause.EXPIRY: "returned: the switch by hand has expired",
    Cause.OTHER: "another cause, which this version of the portal does not know",
}
NAMES: dict[Cause, str] = {
    Cause.FIRST: "First",
    Cause.CRASH: "Crash",
    Cause.HANG: "Hang",
    Cause.SILENCE: "Lost session",
    Cause.LOST_MAJORITY: "Lost majority",
    Cause.POWER_OFF: "Power-off",
    Cause.RELEASE: "Clean stop",
    Cause.NOT_READY: "Not ready",
    Cause.SWITCH: "Switch by hand",
    Cause.BALANCE: "Balance",
    Cause.DEPLOY: "Deployment",
    Cause.DISABLE: "Disable",
    Cause.FAILBACK: "Failback",
    Cause.EXPIRY: "Expiry",
    Cause.OTHER: "Another",
}


def store(machine: Machine, runtimes: Mapping[str, Runtime], report: protocol.Report, clock: Clock) -> None:
    """Changes and ends of a report, inside the caller's transaction. What is known already is not told twice."""
    if not report.events and not report.ends:
        return
    told = {event.group for event in report.events} | {end.group for end in report.ends}
    found = FailoverGroup.objects.filter(environment_id=machine.environment_id, group__key__in=told).select_related("group")
    groups = {group.group.key: group for group in found}
    ends = [
        LeadershipEnd(
            group=groups[end.group],
            epoch=end.epoch,
            runtime=end.runtime,
            cause=end.cause,
            reason=end.reason,
            at=clock.instant(end.at, end.at_boot, end.boot_id),
        )
        for end in report.ends
        if end.cause in ENDS and may_be(end.epoch, machine) and _concerns(machine, end.group, end.runtime, groups, runtimes)
    ]
    # Of one leadership the last word counts: it may have lost the majority for a moment before it crashed.
    ends = _new_ends({(end.group_id, end.epoch, end.runtime): end for end in ends})
    LeadershipEnd.objects.bulk_create(
        ends, update_conflicts=True, unique_fields=["group", "epoch", "runtime"], update_fields=["cause", "reason", "at"]
    )
    changes = [
        LeadershipChange(
            group=groups[event.group],
            epoch=event.epoch,
            runtime=event.runtime,
            previous=(event.previous or "")[:82],
            cause=event.cause,
            actor=event.actor[:150],
            at=clock.instant(event.at, event.at_boot, event.boot_id),
            heard_at=clock.now,
            detection_seconds=_reckonable(event.detection_seconds),
            gap_seconds=_reckonable(event.gap_seconds),
        )
        for event in report.events
        if may_be(event.epoch, machine) and _concerns(machine, event.group, event.runtime, groups, runtimes)
    ]
    changes = _new_changes({(change.group_id, change.epoch): change for change in changes})
    LeadershipChange.objects.bulk_create(changes, ignore_conflicts=True)
    for change in changes:
        raise_epoch(change.group, change.epoch)
        _complete(change.group, change.epoch)
        _by_power_off(change.group, change.epoch)
    for end in ends:
        following = LeadershipChange.objects.filter(group=end.group, epoch__gt=end.epoch).order_by("epoch").first()
        if following is not None:
            _complete(end.group, following.epoch)
    measured = LeadershipChange.objects.filter(group=OuterRef("pk"), gap_seconds__isnull=False).order_by("-epoch")
    FailoverGroup.objects.filter(pk__in={change.group_id for change in changes} | {end.group_id for end in ends}).update(
        last_gap_seconds=Subquery(measured.values("gap_seconds")[:1]), last_gap_at=Subquery(measured.values("at")[:1])
    )


def _new_changes(told: dict[tuple[Any, int], LeadershipChange]) -> list[LeadershipChange]:
    """Those that no report told before: an agent repeats all until it hears that they are stored, which may take long."""
    stored = LeadershipChange.objects.filter(group__in={group for group, _ in told}, epoch__gte=min((at for _, at in told), default=0))
    for key in stored.values_list("group_id", "epoch"):
        told.pop(key, None)
    return list(told.values())


def _new_ends(told: dict[tuple[Any, int, str], LeadershipEnd]) -> list[LeadershipEnd]:
    """Those that no report told before, in these words and of this moment."""
    stored = LeadershipEnd.objects.filter(group__in={key[0] for key in told}, epoch__gte=min((key[1] for key in told), default=0))
    for row in stored:
        known = told.get((row.group_id, row.epoch, row.runtime))
        same = known is not None and (known.cause, known.reason) == (row.cause, row.reason)
        if known is not None and same and abs((known.at - row.at).total_seconds()) <= TOLERATED_SECONDS:
            del told[row.group_id, row.epoch, row.runtime]
    return list(told.values())


def _reckonable(seconds: float | None) -> float | None:
    """A span that a page can add to a moment and to others; None: not known, or nonsense."""
    return seconds if seconds is not None and abs(seconds) <= LONGEST_SPAN else None


def note_leading(members: Iterable[GroupMember]) -> None:
    """These members were just stored. A leadership whose end was told, and that goes on since, under the same epoch, was interrupted: it
    did not end. Inside the caller's transaction; what is told again is kept once."""
    leading = {(member.group_id, member.runtime.key): member for member in members if _leads(member)}
    told = LeadershipEnd.objects.filter(
        group__in={group for group, _ in leading},
        epoch__in={member.observed_epoch for member in leading.values()},
        cause__in=(Cause.LOST_MAJORITY, Cause.HANG),
    )
    for end in told if leading else ():
        member = leading.get((end.group_id, end.runtime))
        since = read(member.observed_since) if member is not None and member.observed_epoch == end.epoch else None
        if since is None or since <= end.at:
            continue
        near = timedelta(seconds=TOLERATED_SECONDS)  # the same moment, told by two reports, differs by what they were under way
        known = LeadershipInterruption.objects.filter(group_id=end.group_id, epoch=end.epoch, since__range=(end.at - near, end.at + near))
        if not known.exists():
            LeadershipInterruption.objects.create(
                group_id=end.group_id,
                epoch=end.epoch,
                runtime=end.runtime,
                cause=end.cause,
                reason=end.reason,
                since=end.at,
                until=since,
                seconds=(since - end.at).total_seconds(),
            )
        LeadershipEnd.objects.filter(pk=end.pk).delete()


def _leads(member: GroupMember) -> bool:
    return member.observed_status == protocol.Status.LEADER and member.observed_state == protocol.State.ON


def _concerns(machine: Machine, group: str, runtime: str, groups: Mapping[str, FailoverGroup], runtimes: Mapping[str, Runtime]) -> bool:
    """Is it one of this machine's runtimes, and does it run the group's connector."""
    if group in groups and runtime in runtimes and groups[group].group.connector_id == runtimes[runtime].connector_id:
        return True
    logger.info("%s tells a leadership of %s in group %s, which it cannot have: ignored.", machine, runtime, group)
    return False


def may_be(epoch: int, machine: Machine) -> bool:
    """Is it of this generation of the environment's cluster or a former one. A machine that tells of a later one is wrong, or not the
    environment's: believed, it would make every true leader look like one of the past for ever."""
    if epoch < (machine.environment.generation + 1) * GENERATION_STEP:
        return True
    logger.warning("%s tells of epoch %s, which cannot be yet: ignored.", machine, epoch_words(epoch))
    return False


def raise_epoch(group: FailoverGroup, epoch: int) -> None:
    """An epoch only grows."""
    if epoch > group.epoch:
        FailoverGroup.objects.filter(pk=group.pk, epoch__lt=epoch).update(epoch=epoch)


def _complete(group: FailoverGroup, epoch: int) -> None:
    """Give a change what the former leader's machine told, if that leadership is the one right before it: the cause where nobody else
    could know it, and the gap where the new leader could not measure it (the same member came back, say)."""
    change = LeadershipChange.objects.filter(group=group, epoch=epoch).first()
    if change is None or not change.previous:
        return
    former = LeadershipChange.objects.filter(group=group, epoch__lt=epoch).order_by("-epoch").first()
    ends = LeadershipEnd.objects.filter(group=group, runtime=change.previous, epoch__lt=epoch)
    end = ends.filter(epoch__gte=former.epoch).first() if former is not None else ends.first()
    if end is None or _led_on_after(end, change):
        return
    if change.cause in SEEN_FROM_OUTSIDE and end.cause in TOLD_AFTERWARDS:
        LeadershipChange.objects.filter(pk=change.pk).update(cause=end.cause, detail=end.reason)
    if change.gap_seconds is None and end.at <= change.at:
        LeadershipChange.objects.filter(pk=change.pk).update(gap_seconds=(change.at - end.at).total_seconds())


def _led_on_after(end: LeadershipEnd, change: LeadershipChange) -> bool:
    """Was it seen On after it had told this end: its permit had run out for a moment, nobody took over, it led on under the same epoch,
    and what ended that in the end is another matter."""
    if change.gap_seconds is None:
        return False
    seen_on_at = change.at - timedelta(seconds=change.gap_seconds)
    return end.at < seen_on_at - timedelta(seconds=SEEN_ON_WITHIN)


def _by_power_off(group: FailoverGroup, epoch: int) -> None:
    """A change that is told after the former leader's machine is back (both were off, say): what its machine did not tell the end of, it
    lost by starting anew. What is told before, `note_reboot` puts right."""
    change = LeadershipChange.objects.filter(group=group, epoch=epoch, cause__in=SEEN_FROM_OUTSIDE, detail="").exclude(previous="").first()
    former = LeadershipChange.objects.filter(group=group, epoch__lt=epoch).order_by("-epoch").first()
    if change is None or former is None or former.runtime != change.previous:
        return
    machine = Machine.objects.filter(environment_id=group.environment_id, name=change.previous.partition(".")[0]).first()
    if machine is None or machine.booted_at is None or machine.booted_at <= former.at:
        return
    itself = change.previous == change.runtime and machine.booted_at < change.at  # it finds its own session from before, and calls it dead
    if itself or change.cause == Cause.SILENCE:
        _started_anew(LeadershipChange.objects.filter(pk=change.pk), machine)


def _started_anew(changes: "QuerySet[LeadershipChange]", machine: Machine) -> None:
    changes.update(cause=Cause.POWER_OFF, detail=f"{machine.name} has started anew since")


def why_no_gap(change: LeadershipChange) -> str:
    """Why nothing says for how long nobody led before this change; empty where something does."""
    if change.gap_seconds is not None:
        return ""
    if not change.previous:
        return "nobody led before"
    return f"nobody saw when {change.previous} stopped: everything started anew, or its machine has not told yet"


def note_reboot(machine: Machine, *, since: datetime) -> None:
    """A machine reports from another boot of its kernel: what it silently lost after its last report, it lost by that."""
    lost = LeadershipChange.objects.filter(
        group__environment_id=machine.environment_id, previous__startswith=f"{machine.name}.", cause=Cause.SILENCE, heard_at__gte=since
    )
    _started_anew(lost, machine)
