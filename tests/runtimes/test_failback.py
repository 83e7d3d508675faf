"""Back to the preferred leader: by policy, and because a switch by hand was for a time only."""

import re
from datetime import UTC, datetime, time, timedelta
from threading import Barrier, Thread
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone

from deployments import rollout
from deployments.models import Deployment, Release, RunStatus
from portal.errors import Busy, Invalid, NotAllowed
from runtimes import failback, failover, fleet, protocol, tasks
from runtimes.models import FailbackPolicy, FailoverGroup, GroupMember, GroupRequest, LeadershipChange, Machine, Runtime, TimedSwitch
from runtimes.protocol import Cause, Preference, RequestStatus, Status
from tests import factories
from tests.runtimes.conftest import NOW, said, said_of

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def fallen(group: FailoverGroup) -> FailoverGroup:
    """external01 is preferred; it crashed ten minutes ago, external02 leads; external01 has been ready for nine. Failback after five."""
    now = timezone.now()
    factories.heard(group, "external01", Status.FOLLOWER, ready_since=now - 9 * MINUTE)
    factories.heard(group, "external02", Status.LEADER, ready_since=now - 9 * MINUTE)
    failover.prefer(group.members.get(runtime__machine__name="external01").runtime, Preference.LEADER)
    changed(group, 41, "external02", Cause.CRASH, now - 10 * MINUTE)
    failback.set_policy(group, FailbackPolicy.AUTOMATIC, stable_seconds=300)
    return FailoverGroup.objects.get(pk=group.pk)


def changed(group: FailoverGroup, epoch: int, machine: str, cause: Cause, at: datetime, actor: str = "") -> None:
    LeadershipChange.objects.create(group=group, epoch=epoch, runtime=f"{machine}.erp", cause=cause, actor=actor, at=at, heard_at=at)


def coming(group: FailoverGroup, now: datetime | None = None, blocked: str = "") -> failback.Return | None:
    now = now or timezone.now()
    rows = failback.with_facts(FailoverGroup.objects.filter(pk=group.pk), now=now).prefetch_related(failover.with_members())
    return failback.decide(failover.verdict(rows.get(), now=now), blocked=blocked, now=now)


def asked(group: FailoverGroup) -> list[tuple[str, str, str]]:
    return list(GroupRequest.objects.filter(group=group).order_by("created_at").values_list("machine", "cause", "actor"))


def member(machine: str, **facts: Any) -> None:
    GroupMember.objects.filter(runtime__machine__name=machine).update(**facts)


# -------------------------------------------------------------------------------------------------------------------- policy


def test_it_returns_once_the_preferred_member_was_ready_long_enough(fallen: FailoverGroup) -> None:
    found = coming(fallen)
    assert found is not None and (found.due, found.to, found.cause) == (True, "external01", Cause.FAILBACK)
    member("external01", ready_since=timezone.now() - 2 * MINUTE)
    found = coming(fallen)
    assert found is not None and not found.due and found.at is not None
    assert 2.9 * 60 < (found.at - timezone.now()).total_seconds() < 3.1 * 60
    assert "returns to external01, its preferred leader" in found.sentence


def _manual(group: FailoverGroup) -> None:
    failback.set_policy(group, FailbackPolicy.MANUAL, stable_seconds=300)


def _no_preference(group: FailoverGroup) -> None:
    failover.prefer(Runtime.objects.select_related("connector", "machine").get(machine__name="external01"), Preference.NONE)


def _preferred_leads(group: FailoverGroup) -> None:
    factories.heard(group, "external01", Status.LEADER, epoch=42)
    factories.heard(group, "external02", Status.FOLLOWER, epoch=42)


def _not_ready(group: FailoverGroup) -> None:
    member("external01", observed_ready=False, ready_since=None, observed_reason="flow erp-orders: folder missing")


def _silent(group: FailoverGroup) -> None:
    member("external01", observed_at=timezone.now() - 40 * timedelta(seconds=1))


def _disabled(group: FailoverGroup) -> None:
    factories.heard(group, "external01", Status.DISABLED, ready_since=None)


def _switched(group: FailoverGroup) -> None:
    changed(group, 42, "external02", Cause.SWITCH, timezone.now() - 8 * MINUTE, "olga")


def _switched_and_crashed(group: FailoverGroup) -> None:
    """The member that olga chose led again by itself, for nobody else was ready."""
    _switched(group)
    changed(group, 43, "external02", Cause.CRASH, timezone.now() - 7 * MINUTE)
    LeadershipChange.objects.filter(group=group, epoch=43).update(previous="external02.erp")


def _flapped(group: FailoverGroup) -> None:
    for number in range(3):
        changed(group, 50 + 2 * number, "external01", Cause.FAILBACK, timezone.now() - (40 - 10 * number) * MINUTE)
        changed(group, 51 + 2 * number, "external02", Cause.CRASH, timezone.now() - (39 - 10 * number) * MINUTE)


def _held(group: FailoverGroup) -> None:
    failback.hold(group, held=True, actor="olga")


def _nobody(group: FailoverGroup) -> None:
    factories.heard(group, "external02", Status.ISOLATED, ready_since=None)


def _busy(group: FailoverGroup) -> None:
    GroupRequest.objects.create(
        group=group, kind="disable", machine="external01", cause="disable", actor="olga", expires_at=timezone.now() + MINUTE
    )


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        pytest.param(_manual, None, id="manual: nobody wished it"),
        pytest.param(_no_preference, None, id="nowhere to return to"),
        pytest.param(_preferred_leads, None, id="it leads already"),
        pytest.param(_nobody, None, id="nobody leads: nothing to hand over"),
        pytest.param(_not_ready, "external01 is not ready: flow erp-orders: folder missing", id="not ready"),
        pytest.param(_silent, "external01 has not been heard from for 40 s", id="silent"),
        pytest.param(_disabled, "external01 is disabled. It returns some time after Enable.", id="disabled for patching"),
        pytest.param(_switched, "olga switched it by hand. Play on external01 moves it back.", id="a person's switch stands"),
        pytest.param(_switched_and_crashed, "olga switched it by hand.", id="it stands over a crash of that member alone"),
        pytest.param(_flapped, "it returned to external01 3 times within 1 h and did not stay", id="flapping"),
        pytest.param(_held, "olga holds it there", id="held"),
        pytest.param(_busy, "Another request is under way", id="a person's request goes first"),
    ],
)
def test_why_it_does_not_return(fallen: FailoverGroup, arrange: Any, says: str | None) -> None:
    arrange(fallen)
    found = coming(fallen)
    if says is None:
        assert found is None
    else:
        assert found is not None and not found.due and says in found.sentence
    tasks.return_leaderships()
    assert "failback" not in [cause for _, cause, _ in asked(fallen)]


def test_nothing_returns_while_a_deployment_runs(fallen: FailoverGroup) -> None:
    release = Release.objects.create(project=fallen.environment.project, number=1, name="one", content={}, digest="d")
    deployment = Deployment.objects.create(environment=fallen.environment, release=release)
    assert rollout.running_on in failback.blockers
    tasks.return_leaderships()
    assert not asked(fallen)
    found = coming(fallen, blocked=failback.blocked([fallen.environment_id])[fallen.environment_id])
    assert found is not None and f"Deployment {deployment.pk} is under way." in found.sentence
    Deployment.objects.update(status=RunStatus.SUCCEEDED)
    tasks.return_leaderships()
    assert asked(fallen) == [("external01", "failback", "failback policy")]


def test_a_disabled_third_member_holds_it_too(fallen: FailoverGroup) -> None:
    machine = Machine.objects.create(environment=fallen.environment, name="external03", kind="external", joined_at=timezone.now())
    connector = fallen.group.connector
    runtime = Runtime.objects.create(environment=fallen.environment, machine=machine, connector=connector, failover=True)
    GroupMember.objects.create(group=fallen, runtime=runtime)
    factories.heard(fallen, "external03", Status.DISABLED)
    found = coming(fallen)
    assert found is not None and not found.due and "external03 is disabled" in found.sentence


def test_a_hold_ends_when_the_preferred_member_leads_again(fallen: FailoverGroup) -> None:
    failback.hold(fallen, held=True, actor="olga")
    _preferred_leads(fallen)
    tasks.return_leaderships()
    assert FailoverGroup.objects.get().failback_held_by == ""


def test_nothing_is_held_once_the_policy_became_manual(fallen: FailoverGroup) -> None:
    """Of two people at once: the hold would come true when the policy is automatic again, perhaps months later."""
    seen = FailoverGroup.objects.get(pk=fallen.pk)
    failback.set_policy(fallen, FailbackPolicy.MANUAL, stable_seconds=60)
    with pytest.raises(NotAllowed, match="nothing to hold"):
        failback.hold(seen, held=True, actor="operator")
    seen.refresh_from_db()
    assert seen.failback_held_by == ""


def test_a_hold_stands_over_another_choice_of_when_it_returns(fallen: FailoverGroup) -> None:
    failback.hold(fallen, held=True, actor="olga")
    failback.set_policy(fallen, FailbackPolicy.WINDOW, stable_seconds=0, window=(time(0, 0), time(23, 59)))
    assert FailoverGroup.objects.get().failback_held_by == "olga"
    failback.set_policy(fallen, FailbackPolicy.MANUAL, stable_seconds=0)
    assert FailoverGroup.objects.get().failback_held_by == "", "nothing is left to hold"


def test_the_time_counts_anew_after_every_break(external01: Machine, erp01: Runtime, group: FailoverGroup) -> None:
    def report(sequence: int, seconds: float, **more: Any) -> Any:
        status = more.pop("status", Status.FOLLOWER)
        runtime = said_of(erp01, group, status, epoch=41, **{"started_at": "2026-11-22T11:00:00Z", **more})
        fleet.record_report(external01, said(sequence, runtimes=[runtime]), now=NOW + timedelta(seconds=seconds))
        since = GroupMember.objects.get(runtime=erp01).ready_since
        return (since - NOW).total_seconds() if since else None

    assert report(1, 0) == 0, "first heard of"
    assert report(2, 5) == 0, "unbroken"
    assert report(3, 10, status=Status.DISABLED) is None
    assert report(4, 15) == 15, "enabled"
    assert report(5, 40) == 40, "silent for longer than a machine may be"
    assert report(6, 45, started_at="2026-11-22T11:00:43Z") == 45, "another process"
    assert report(7, 50, started_at="2026-11-22T11:00:43Z") == 45
    gone = protocol.RuntimeReport(key="external01.erp", state=protocol.RuntimeState.STOPPED)
    fleet.record_report(external01, said(8, runtimes=[gone]), now=NOW + timedelta(seconds=55))
    assert GroupMember.objects.get(runtime=erp01).ready_since is None


# ------------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("start", "end", "zone", "moment", "at"),
    [
        pytest.param("22:00", "23:00", "UTC", "2026-11-22T12:00", "2026-11-22T22:00", id="later today"),
        pytest.param("22:00", "23:00", "UTC", "2026-11-22T22:30", "2026-11-22T22:30", id="now"),
        pytest.param("22:00", "23:00", "UTC", "2026-11-22T23:00", "2026-11-23T22:00", id="over: tomorrow"),
        pytest.param("22:00", "04:00", "UTC", "2026-11-22T02:00", "2026-11-22T02:00", id="over midnight, after it"),
        pytest.param("22:00", "04:00", "UTC", "2026-11-22T23:00", "2026-11-22T23:00", id="over midnight, before it"),
        pytest.param("22:00", "04:00", "UTC", "2026-11-22T04:00", "2026-11-22T22:00", id="over midnight, over"),
        pytest.param("02:00", "04:00", "Europe/Amsterdam", "2026-11-22T00:30", "2026-11-22T01:00", id="another zone"),
        pytest.param("02:00", "04:00", "Europe/Amsterdam", "2026-07-22T00:30", "2026-07-22T00:30", id="in summer"),
        pytest.param("02:30", "04:00", "Europe/Amsterdam", "2027-03-27T23:00", "2027-03-28T01:30", id="a time that the clocks skip"),
        pytest.param("02:00", "03:00", "Europe/Amsterdam", "2027-03-27T23:00", "2027-03-29T00:00", id="a window that the clocks skip"),
        pytest.param("02:30", "04:00", "Europe/Amsterdam", "2026-10-25T01:10", "2026-10-25T01:30", id="a time that comes twice"),
        pytest.param("23:00", "23:30", "Pacific/Auckland", "2026-11-22T12:00", "2026-11-23T10:00", id="the other side of the date line"),
    ],
)
def test_windows(group: FailoverGroup, start: str, end: str, zone: str, moment: str, at: str) -> None:
    window = (time.fromisoformat(start), time.fromisoformat(end))
    failback.set_policy(group, FailbackPolicy.WINDOW, stable_seconds=0, window=window, zone=zone)
    group.refresh_from_db()
    given, expected = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (moment, at))
    assert failback.next_in_window(group, given) == expected
    assert failback.in_window(group, expected)


def test_in_a_window_it_waits_for_the_window(fallen: FailoverGroup) -> None:
    now = timezone.now()
    closed = ((now + 2 * HOUR).time().replace(microsecond=0), (now + 3 * HOUR).time().replace(microsecond=0))
    failback.set_policy(fallen, FailbackPolicy.WINDOW, stable_seconds=300, window=closed)
    found = coming(fallen)
    assert found is not None and not found.due and found.at is not None
    assert timedelta(hours=1, minutes=59) < found.at - now <= 2 * HOUR
    opened = ((now - HOUR).time().replace(microsecond=0), (now + HOUR).time().replace(microsecond=0))
    failback.set_policy(fallen, FailbackPolicy.WINDOW, stable_seconds=300, window=opened)
    found = coming(fallen)
    assert found is not None and found.due


# -------------------------------------------------------------------------------------------------------------- exactly once


@pytest.mark.django_db(transaction=True)
def test_two_beats_and_three_workers_ask_once(fallen: FailoverGroup, file_database: None) -> None:
    barrier, sentences = Barrier(6), []

    def work() -> None:
        barrier.wait()
        sentences.append(tasks.return_leaderships())
        connection.close()

    threads = [Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked(fallen) == [("external01", "failback", "failback policy")]
    GroupRequest.objects.update(status=RequestStatus.FAILED, code="not-ready", reason="external01 says that it is not ready")
    tasks.return_leaderships()
    assert len(asked(fallen)) == 1, "not again at once"
    found = coming(fallen)
    assert found is not None and not found.due and found.at is not None, "and the page says when"
    FailoverGroup.objects.update(return_asked_at=timezone.now() - failback.ASK_AGAIN_AFTER)
    tasks.return_leaderships()
    assert len(asked(fallen)) == 2


def test_a_return_that_fails_again_and_again_is_asked_for_more_and_more_seldom(fallen: FailoverGroup) -> None:
    """Each try stops the leader for as long as it drains: at most the drain limit."""
    waits = []
    for _ in range(8):
        FailoverGroup.objects.update(return_asked_at=timezone.now() - failback.ASK_AGAIN_LIMIT)
        tasks.return_leaderships()
        GroupRequest.objects.update(status=RequestStatus.FAILED, code="drain-limit", reason="what was in flight did not end within 5 s")
        found = coming(fallen)
        assert found is not None and found.at is not None
        waits.append(round((found.at - timezone.now()).total_seconds() / 30))
        tasks.return_leaderships()  # not yet
    assert waits == [1, 2, 4, 8, 16, 32, 32, 32] and len(asked(fallen)) == 8
    assert found.sentence.endswith("The last try failed: what was in flight did not end within 5 s.")
    GroupRequest.objects.update(created_at=timezone.now() - failback.FLAP_SPAN)
    FailoverGroup.objects.update(return_asked_at=timezone.now() - failback.ASK_AGAIN_AFTER)
    found = coming(fallen)
    assert found is not None and found.due and "last try" not in found.sentence


# ------------------------------------------------------------------------------------------------------------- timed switches


@pytest.fixture
def at_home(group: FailoverGroup) -> FailoverGroup:
    """external01 is preferred and leads."""
    factories.heard(group, "external01", Status.LEADER)
    factories.heard(group, "external02", Status.FOLLOWER, ready_since=timezone.now() - HOUR)
    failover.prefer(group.members.get(runtime__machine__name="external01").runtime, Preference.LEADER)
    return FailoverGroup.objects.get(pk=group.pk)


def play(group: FailoverGroup, machine: str = "external02", hours: float | None = 2, actor: str = "olga") -> GroupRequest:
    after = None if hours is None else timedelta(hours=hours)
    return failback.switch(group, candidate=machine, expected_leader=None, actor=actor, now=timezone.now(), returns_after=after)


def moved(group: FailoverGroup, machine: str, epoch: int, cause: Cause = Cause.SWITCH, actor: str = "") -> None:
    """The machines have carried it out."""
    GroupRequest.objects.filter(status__in=("pending", "running")).update(
        status=RequestStatus.SUCCEEDED, ended_at=timezone.now() - timedelta(seconds=6)
    )
    other = {"external01": "external02", "external02": "external01"}[machine]
    factories.heard(group, other, Status.FOLLOWER, epoch=epoch)
    factories.heard(group, machine, Status.LEADER, epoch=epoch)
    changed(group, epoch, machine, cause, timezone.now())
    actor = actor or next(iter(GroupRequest.objects.filter(group=group).order_by("-created_at").values_list("actor", flat=True)), "")
    LeadershipChange.objects.filter(group=group, epoch=epoch).update(actor=actor)


def expired() -> None:
    TimedSwitch.objects.filter(ended_at=None).update(until=timezone.now() - timedelta(seconds=1))


def endings() -> list[str]:
    return list(TimedSwitch.objects.order_by("created_at").values_list("ending", flat=True))


def test_a_switch_for_two_hours_returns_at_its_end(at_home: FailoverGroup) -> None:
    play(at_home)
    tasks.return_leaderships()
    moved(at_home, "external02", 42)
    found = coming(at_home)
    assert found is not None and found.at is not None and not found.due
    assert found.sentence == "olga moved erp-orders to external02 for a time; it returns to external01."
    assert 7190 < (found.at - timezone.now()).total_seconds() <= 7200
    tasks.return_leaderships()
    assert len(asked(at_home)) == 1
    expired()
    tasks.return_leaderships()
    tasks.return_leaderships()
    assert asked(at_home)[1:] == [("external01", "expiry", "olga")]
    found = coming(at_home)
    assert found is not None and not found.due
    assert (found.at, "is under way" in found.sentence) == (None, True), "no countdown to the next try while this one goes on"
    moved(at_home, "external01", 43, Cause.EXPIRY)
    tasks.return_leaderships()
    assert endings() == ["returned"]
    assert coming(at_home) is None


def test_it_returns_though_its_policy_is_manual_and_waits_for_a_deployment(at_home: FailoverGroup) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    expired()
    found = coming(at_home, blocked="Deployment 7 is under way.")
    assert found is not None and not found.due
    assert "has expired, but erp-orders cannot return yet: Deployment 7 is under way. It is tried again until" in found.sentence


def test_it_says_why_it_cannot_return_and_gives_up(at_home: FailoverGroup) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    factories.heard(at_home, "external01", Status.ISOLATED, ready_since=None)
    expired()
    tasks.return_leaderships()
    assert len(asked(at_home)) == 1 and endings() == [""]
    found = coming(at_home)
    assert found is not None and "cannot return yet: external01 is Isolated" in found.sentence
    TimedSwitch.objects.update(tried_since=timezone.now() - failback.GIVE_UP_AFTER)
    tasks.return_leaderships()
    row = TimedSwitch.objects.get()
    assert row.ending == "given-up" and "for 1 h it could not return to external01. external01 is Isolated" in row.reason
    for policy in (FailbackPolicy.MANUAL, FailbackPolicy.AUTOMATIC):
        failback.set_policy(at_home, policy, stable_seconds=0)
        found = coming(at_home)
        assert found is not None and (found.cause, found.due) == (None, False)
        assert found.sentence == f"{row.reason} Play on external01 moves it back.", "people are told for as long as it is so"
    moved(at_home, "external02", 43, Cause.CRASH)
    failback.set_policy(at_home, FailbackPolicy.MANUAL, stable_seconds=0)
    assert coming(at_home) is None


def test_one_that_gave_up_keeps_no_policy_from_returning_it(at_home: FailoverGroup) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    changed(at_home, 43, "external03", Cause.CRASH, timezone.now())
    changed(at_home, 44, "external02", Cause.CRASH, timezone.now())
    factories.heard(at_home, "external01", Status.FOLLOWER, epoch=44, ready_since=timezone.now() - HOUR)
    TimedSwitch.objects.update(ended_at=timezone.now(), ending="given-up", reason="It stays.")
    failback.set_policy(at_home, FailbackPolicy.AUTOMATIC, stable_seconds=3600)
    found = coming(at_home)
    assert found is not None and found.cause == Cause.FAILBACK


def test_it_gives_up_too_when_every_hand_over_fails(at_home: FailoverGroup) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    expired()
    tasks.return_leaderships()
    assert len(asked(at_home)) == 2
    TimedSwitch.objects.update(tried_since=timezone.now() - failback.GIVE_UP_AFTER)
    tasks.return_leaderships()
    assert endings() == [""], "not while it is asked for"
    GroupRequest.objects.filter(cause=Cause.EXPIRY).update(status=RequestStatus.FAILED, reason="what was in flight did not end within 5 s")
    tasks.return_leaderships()
    row = TimedSwitch.objects.get()
    assert row.ending == "given-up" and row.reason.endswith("The last try failed: what was in flight did not end within 5 s.")
    assert len(asked(at_home)) == 2


def test_a_portal_that_was_away_at_its_end_tries_before_it_gives_up(at_home: FailoverGroup) -> None:
    """It expired hours ago; at the first beat all reports are old, and a second later everything is there."""
    play(at_home)
    moved(at_home, "external02", 42)
    TimedSwitch.objects.update(until=timezone.now() - 3 * HOUR)
    long_ago = timezone.now() - 3 * HOUR
    Machine.objects.update(last_report_at=long_ago)
    GroupMember.objects.update(observed_at=long_ago)
    tasks.return_leaderships()
    assert endings() == [""] and TimedSwitch.objects.get().tried_since is None, "nobody is known to lead: nothing was tried"
    factories.heard(at_home, "external01", Status.FOLLOWER, epoch=42)
    factories.heard(at_home, "external02", Status.LEADER, epoch=42)
    tasks.return_leaderships()
    assert asked(at_home)[1:] == [("external01", "expiry", "olga")]
    assert TimedSwitch.objects.get().tried_since is not None


@pytest.mark.parametrize("cause", [Cause.SWITCH, Cause.DISABLE])
def test_a_later_switch_on_a_machine_overtakes_it(at_home: FailoverGroup, cause: Cause) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    tasks.return_leaderships()
    assert endings() == [""], "its own change is no later one"
    moved(at_home, "external01", 43, Cause.CRASH)
    moved(at_home, "external02", 44, cause, actor="root on external02")
    expired()
    tasks.return_leaderships()
    assert endings() == ["overtaken"] and "root on external02 moved erp-orders again" in TimedSwitch.objects.get().reason
    assert len(asked(at_home)) == 1


def test_a_switch_that_did_not_happen_returns_nothing(at_home: FailoverGroup) -> None:
    play(at_home)
    GroupRequest.objects.update(status=RequestStatus.FAILED, reason="what was in flight did not end", ended_at=timezone.now())
    tasks.return_leaderships()
    assert endings() == ["failed"] and "did not end" in TimedSwitch.objects.get().reason


def test_one_whose_success_is_told_late_ends_when_it_was_to_end(at_home: FailoverGroup, external01: Machine) -> None:
    """The way to the portal was cut just then: its wish expired, and then the machines tell that they have carried it out."""
    wish = play(at_home)
    GroupRequest.objects.update(status=RequestStatus.EXPIRED, reason="No agent carried it in time.", ended_at=timezone.now())
    tasks.return_leaderships()
    assert endings() == ["failed"]
    told = protocol.RequestOutcome(id=str(wish.pk), status=RequestStatus.SUCCEEDED, reason="external02.erp leads")
    fleet.record_report(external01, said(outcomes=[told]), now=timezone.now())
    moved(at_home, "external02", 42)
    tasks.return_leaderships()
    assert endings() == [""]
    expired()
    tasks.return_leaderships()
    assert asked(at_home)[1:] == [("external01", "expiry", "olga")]


def test_a_success_told_late_takes_the_place_of_what_stood_before(at_home: FailoverGroup, external01: Machine) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    moved(at_home, "external01", 43, Cause.CRASH)
    wish = play(at_home, hours=8, actor="ann")
    GroupRequest.objects.filter(pk=wish.pk).update(status=RequestStatus.EXPIRED, ended_at=timezone.now())
    TimedSwitch.objects.filter(actor="olga").update(until=timezone.now() + 2 * HOUR)
    moved(at_home, "external02", 44, Cause.CRASH)
    tasks.return_leaderships()
    assert endings() == ["", "failed"], "what it took the place of stands again"
    told = protocol.RequestOutcome(id=str(wish.pk), status=RequestStatus.SUCCEEDED, reason="external02.erp leads")
    fleet.record_report(external01, said(outcomes=[told]), now=timezone.now())
    assert endings() == ["overtaken", ""]


def test_a_later_switch_overtakes_it(at_home: FailoverGroup) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    play(at_home, "external01", hours=None, actor="ann")
    tasks.return_leaderships()
    assert endings() == [""], "it was asked for: nothing moved yet"
    moved(at_home, "external01", 43)
    tasks.return_leaderships()
    assert endings() == ["overtaken"] and "ann moved erp-orders again" in TimedSwitch.objects.get().reason


@pytest.mark.parametrize("hours", [None, 8])
def test_a_later_switch_that_does_not_happen_overtakes_nothing(at_home: FailoverGroup, hours: float | None) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    play(at_home, "external01" if hours is None else "external02", hours=hours, actor="ann")
    GroupRequest.objects.filter(actor="ann").update(status=RequestStatus.FAILED, reason="not ready", ended_at=timezone.now())
    tasks.return_leaderships()
    assert endings()[0] == "" and TimedSwitch.objects.get(ended_at=None).actor == "olga"
    expired()
    tasks.return_leaderships()
    assert asked(at_home)[-1] == ("external01", "expiry", "olga")


def test_it_ends_with_the_failover_of_its_group(at_home: FailoverGroup) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    FailoverGroup.objects.update(failover=False)
    tasks.return_leaderships()
    assert endings() == ["overtaken"] and "does not fail over any more" in TimedSwitch.objects.get().reason


def test_while_it_returns_nobody_lets_it_stand(at_home: FailoverGroup) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    expired()
    tasks.return_leaderships()
    for late in (
        lambda: failback.cancel(at_home, actor="olga", now=timezone.now()),
        lambda: failback.extend(at_home, HOUR, now=timezone.now()),
    ):
        with pytest.raises(Busy, match="on its way back already"):
            late()
    assert endings() == [""]


def test_leadership_that_returned_otherwise_ends_it(at_home: FailoverGroup) -> None:
    play(at_home)
    moved(at_home, "external02", 42)
    moved(at_home, "external01", 43, Cause.CRASH)
    tasks.return_leaderships()
    assert endings() == ["overtaken"] and len(asked(at_home)) == 1


def test_it_is_extended_and_cancelled(at_home: FailoverGroup) -> None:
    play(at_home, hours=1)
    moved(at_home, "external02", 42)
    row = failback.extend(at_home, HOUR, now=timezone.now())
    assert timedelta(minutes=119) < row.until - timezone.now() <= 2 * HOUR
    with pytest.raises(Invalid, match="within seven days"):
        failback.extend(at_home, timedelta(days=7), now=timezone.now())
    failback.cancel(at_home, actor="olga", now=timezone.now())
    expired()
    tasks.return_leaderships()
    assert endings() == ["cancelled"] and len(asked(at_home)) == 1
    for again in (
        lambda: failback.cancel(at_home, actor="olga", now=timezone.now()),
        lambda: failback.extend(at_home, HOUR, now=timezone.now()),
    ):
        with pytest.raises(NotAllowed, match="is for a time"):
            again()


@pytest.mark.parametrize(
    ("machine", "hours", "says"),
    [
        ("external02", 0.001, "one minute to seven days"),
        ("external02", 200, "one minute to seven days"),
        ("external01", 2, "external01 is the preferred leader of erp-orders"),
    ],
)
def test_a_senseless_time_is_refused_and_nothing_moves(at_home: FailoverGroup, machine: str, hours: float, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        play(at_home, machine, hours)
    assert not asked(at_home)


def test_without_a_preferred_leader_there_is_nowhere_to_return_to(at_home: FailoverGroup) -> None:
    Runtime.objects.update(preference=Preference.NONE)
    with pytest.raises(Invalid, match="no preferred leader to return to: choose one"):
        play(at_home)


# --------------------------------------------------------------------------------------------------------------- pages and API


@pytest.fixture
def groups_page() -> str:
    return "/projects/webshop/test/groups/"


def test_the_page_counts_down_and_holds(client: Client, operator: User, fallen: FailoverGroup, groups_page: str) -> None:
    member("external01", ready_since=timezone.now() - timedelta(seconds=100))
    client.force_login(operator)
    text = client.get(groups_page).content.decode()
    assert "erp-orders returns to external01, its preferred leader" in text and re.search("In 3 min [12][0-9] s", text)
    assert "Failback: Automatic after 5 min" in text
    held = client.post(f"{groups_page}{fallen.pk}/return/hold/", follow=True).content.decode()
    assert "operator holds it there" in held and "Let it return" in held
    free = client.post(f"{groups_page}{fallen.pk}/return/release/", follow=True).content.decode()
    assert "In 3 min" in free


def test_play_for_two_hours_from_the_dialog(client: Client, operator: User, at_home: FailoverGroup, groups_page: str) -> None:
    client.force_login(operator)
    dialog = client.get(f"{groups_page}{at_home.pk}/external02/play/").content.decode()
    assert "for 2 hours, then it returns to external01" in dialog
    assert "then it returns" not in client.get(f"{groups_page}{at_home.pk}/external02/disable/").content.decode()
    client.post(f"{groups_page}{at_home.pk}/external02/play/", {"returns_after": "7200"})
    moved(at_home, "external02", 42)
    text = client.get(groups_page).content.decode()
    assert "operator moved erp-orders to external02 for a time" in text and re.search("In (2 h 0|1 h 59) min", text)
    client.post(f"{groups_page}{at_home.pk}/return/extend/")
    assert re.search("In (3 h 0|2 h 59) min", client.get(groups_page).content.decode())
    client.post(f"{groups_page}{at_home.pk}/return/cancel/")
    assert endings() == ["cancelled"]
    assert client.post(f"{groups_page}{at_home.pk}/return/dance/").status_code == 404


def test_the_policy_is_chosen_with_its_consequence(client: Client, operator: User, at_home: FailoverGroup, groups_page: str) -> None:
    client.force_login(operator)
    url = f"{groups_page}{at_home.pk}/failback/"
    assert "Leadership stays where it is until somebody moves it" in client.get(url).content.decode()
    refused = client.post(url, {"policy": "window", "stable_minutes": "5", "zone": "Europe/Amsterdam"}).content.decode()
    assert "Say from when to when" in refused
    nowhere = client.post(url, {"policy": "automatic", "stable_minutes": "5", "zone": "Middle/Earth"}).content.decode()
    assert "There is no time zone Middle/Earth" in nowhere
    said = {"policy": "window", "stable_minutes": "2.5", "window_start": "22:00", "window_end": "04:00", "zone": "Europe/Amsterdam"}
    text = client.post(url, said, follow=True).content.decode()
    assert "Failback: In a window after 150 s, 22:00–04:00 Europe/Amsterdam" in text
    row = FailoverGroup.objects.get()
    assert (row.failback, row.failback_stable_seconds, row.failback_zone) == ("window", 150, "Europe/Amsterdam")


@pytest.mark.parametrize("path", ["failback/", "return/hold/"])
def test_below_operator_nothing_is_chosen(client: Client, developer: User, at_home: FailoverGroup, groups_page: str, path: str) -> None:
    client.force_login(developer)
    assert client.post(f"{groups_page}{at_home.pk}/{path}", {"policy": "automatic"}).status_code == 403


def test_the_api_switches_for_a_time_and_sets_the_policy(
    client: Client, operator: User, at_home: FailoverGroup, django_assert_max_num_queries: Any
) -> None:
    client.force_login(operator)
    api = f"/api/v1/groups/{at_home.pk}/"

    def send(method: str, path: str, body: dict[str, Any]) -> Any:
        return getattr(client, method)(api + path, body, content_type="application/json")

    refused = send("post", "switch/", {"candidate": "external02", "returns_after_seconds": 5})
    assert refused.status_code == 400 and "one minute to seven days" in refused.content.decode()
    assert send("post", "switch/", {"candidate": "external02", "returns_after_seconds": 10**15}).status_code == 400
    assert send("post", "switch/", {"candidate": "external02", "returns_after_seconds": 7200}).status_code == 202
    moved(at_home, "external02", 42)
    told = client.get(api).json()
    assert told["timed_switch"]["machine"] == "external02" and told["timed_switch"]["actor"] == "operator"
    assert told["returns"]["to"] == "external01" and 7100 < told["returns"]["in_seconds"] <= 7200
    assert send("patch", "timed-switch/", {"seconds": 600}).status_code == 200
    for seconds in (10**12, -(10**12), 10**15):
        assert send("patch", "timed-switch/", {"seconds": seconds}).status_code == 400
    for nothing in (f"{api}requests/{'-' * 36}/", f"{api}requests/{UUID(int=0)}/", "/api/v1/groups/nothing/changes/"):
        assert client.get(nothing).status_code == 404, nothing
    assert client.delete(api + "timed-switch/").status_code == 204
    assert client.delete(api + "timed-switch/").status_code == 409
    assert client.get(api).json()["timed_switch"] is None
    policy = {"policy": "window", "stable_seconds": 60, "window_start": "22:00", "window_end": "04:00", "time_zone": "Europe/Amsterdam"}
    told = send("put", "failback/", policy).json()["failback"]
    assert told == {**policy, "window_start": "22:00:00", "window_end": "04:00:00", "held_by": ""}
    assert send("put", "failback/hold/", {"held": True}).json()["failback"]["held_by"] == "operator"
    for bad in ({"policy": "window", "window_start": None}, {"policy": "never"}, {"policy": "automatic", "time_zone": "Middle/Earth"}):
        failback.set_policy(at_home, FailbackPolicy.MANUAL, stable_seconds=60)
        assert send("put", "failback/", bad).status_code == 400, bad
    for hour in ("22:00Z", "22:00:00+05:00", "22:00-01:00"):  # the zone stands beside it: nobody guesses which of the two was meant
        refused = send("put", "failback/", {**policy, "window_start": hour})
        assert refused.status_code == 400 and "without an offset" in refused.json()["errors"]["window_start"][0], hour
    with django_assert_max_num_queries(20):
        assert client.get("/api/v1/groups/").json()["count"] == 1
