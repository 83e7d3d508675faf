"""Changes of leadership: told once, in order, each with its cause, at the right time however wrong a machine's clock is."""

from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import msgspec
import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from portal.models import Connector
from runtimes import clocks, fleet, history, protocol
from runtimes.agent.peers import seen_so
from runtimes.models import Alarm, AlarmKind, FailoverGroup, GroupMember, LeadershipChange, LeadershipEnd, Machine, Runtime
from runtimes.protocol import Cause
from tests.runtimes.conftest import NOW, said, said_of

ONE, TWO = "external01.erp", "external02.erp"


def told(group: FailoverGroup, epoch: int, runtime: str, previous: str | None, cause: Cause, **more: Any) -> protocol.LeadershipEvent:
    return protocol.LeadershipEvent(group=group.group.key, epoch=epoch, runtime=runtime, previous=previous, cause=cause, **more)


def ended(group: FailoverGroup, epoch: int, runtime: str, cause: Cause, reason: str = "because") -> protocol.LeadershipEnd:
    return protocol.LeadershipEnd(group=group.group.key, epoch=epoch, runtime=runtime, cause=cause, reason=reason)


def causes(group: FailoverGroup) -> list[str]:
    return list(LeadershipChange.objects.filter(group=group).order_by("epoch").values_list("cause", flat=True))


def test_every_cause_has_its_words() -> None:
    assert set(history.CAUSES) == set(history.NAMES) == set(Cause)


@pytest.mark.parametrize(
    ("seen", "end", "known"),
    [
        pytest.param(Cause.SILENCE, Cause.HANG, Cause.HANG, id="it stood still"),
        pytest.param(Cause.SILENCE, Cause.LOST_MAJORITY, Cause.LOST_MAJORITY, id="it was cut off"),
        pytest.param(Cause.SILENCE, Cause.CRASH, Cause.CRASH, id="it died and could not say so"),
        pytest.param(Cause.CRASH, Cause.HANG, Cause.HANG, id="its keeper killed it for hanging"),
        pytest.param(Cause.CRASH, Cause.CRASH, Cause.CRASH, id="it died"),
        pytest.param(Cause.SWITCH, Cause.LOST_MAJORITY, Cause.SWITCH, id="a hand-over is what it is"),
        pytest.param(Cause.SILENCE, Cause.SWITCH, Cause.SILENCE, id="nobody ends by anything else"),
    ],
)
@pytest.mark.parametrize("former_first", [True, False])
def test_the_former_leaders_machine_tells_why(
    external01: Machine, external02: Machine, group: FailoverGroup, seen: Cause, end: Cause, known: Cause, former_first: bool
) -> None:
    """In either order: the one that was cut off may tell days later."""
    fleet.record_report(external01, said(1, events=[told(group, 41, ONE, None, Cause.FIRST)]), now=NOW)
    news = [
        (external01, said(2, ends=[ended(group, 41, ONE, end, "killed by signal 9")])),
        (external02, said(1, events=[told(group, 42, TWO, ONE, seen)])),
    ]
    for machine, report in news if former_first else reversed(news):
        fleet.record_report(machine, report, now=NOW)
    assert causes(group) == ["first", known]
    assert LeadershipChange.objects.get(epoch=42).detail == ("killed by signal 9" if seen != Cause.SWITCH and end != Cause.SWITCH else "")


def test_what_is_told_again_costs_next_to_nothing(external01: Machine, group: FailoverGroup, django_assert_max_num_queries: Any) -> None:
    """After days without a portal an agent repeats all that it has to tell until it hears that it is stored."""
    events = [told(group, 41 + n, ONE, None if n == 0 else ONE, Cause.CRASH, gap_seconds=0.2) for n in range(50)]
    ends = [ended(group, 41 + n, ONE, Cause.CRASH) for n in range(49)]
    fleet.record_report(external01, said(1, events=events, ends=ends), now=NOW)
    with django_assert_max_num_queries(20):
        assert fleet.record_report(external01, said(2, events=events, ends=ends), now=NOW + timedelta(seconds=1))
    assert len(causes(group)) == 50


def test_a_later_end_in_the_same_words_counts(external01: Machine, group: FailoverGroup) -> None:
    for sequence, at in enumerate(("2026-11-22T11:00:00Z", "2026-11-22T11:30:00Z"), start=1):
        end = msgspec.structs.replace(ended(group, 41, ONE, Cause.LOST_MAJORITY), at=at)
        fleet.record_report(external01, said(sequence, ends=[end]), now=NOW)
    assert LeadershipEnd.objects.get().at == datetime(2026, 11, 22, 11, 30, tzinfo=UTC)


def test_a_runtime_of_another_connector_tells_nothing_of_a_group(external01: Machine, group: FailoverGroup) -> None:
    connector = Connector.objects.create(project=group.environment.project, system=group.group.connector.system, name="web")
    other = Runtime.objects.create(environment=group.environment, machine=external01, connector=connector)
    report = said(1, events=[told(group, 77, other.key, None, Cause.FIRST)], ends=[ended(group, 77, other.key, Cause.CRASH)])
    assert fleet.record_report(external01, report, now=NOW)
    group.refresh_from_db()
    assert (group.epoch, causes(group), LeadershipEnd.objects.exists()) == (0, [], False)


def test_an_end_explains_only_the_change_right_after_it(external01: Machine, external02: Machine, group: FailoverGroup) -> None:
    """It lost the majority for a moment in epoch 41, led on, and was switched; what silenced it in epoch 43 nobody has told."""
    fleet.record_report(
        external01,
        said(
            1,
            events=[told(group, 41, ONE, None, Cause.FIRST), told(group, 43, ONE, TWO, Cause.SWITCH)],
            ends=[ended(group, 41, ONE, Cause.LOST_MAJORITY)],
        ),
        now=NOW,
    )
    events = [told(group, 42, TWO, ONE, Cause.SWITCH), told(group, 44, TWO, ONE, Cause.SILENCE)]
    fleet.record_report(external02, said(1, events=events), now=NOW)
    assert causes(group) == ["first", "switch", "switch", "silence"]


@pytest.mark.parametrize(("after", "known"), [(1.5, Cause.LOST_MAJORITY), (3 * 3600.0, Cause.SILENCE)], ids=["at once", "hours later"])
def test_an_end_after_which_it_led_on_explains_nothing(
    external01: Machine, external02: Machine, group: FailoverGroup, after: float, known: Cause
) -> None:
    """Its router started anew: its permit ran out for a moment, and it led on in the same epoch, as nobody had taken over."""
    end = protocol.LeadershipEnd(
        group=group.group.key, epoch=41, runtime=ONE, cause=Cause.LOST_MAJORITY, reason="no answer from a majority", at=text(NOW)
    )
    fleet.record_report(external01, said(1, events=[told(group, 41, ONE, None, Cause.FIRST)], ends=[end], at=text(NOW)), now=NOW)
    taken = NOW + timedelta(seconds=after)
    event = told(group, 42, TWO, ONE, Cause.SILENCE, at=text(taken), gap_seconds=1.1, detection_seconds=1.0)
    fleet.record_report(external02, said(1, events=[event], at=text(taken)), now=taken)
    assert causes(group) == ["first", known]


@pytest.mark.parametrize("end_first", [True, False], ids=["the end is told first", "the end is told later"])
def test_a_leader_that_was_off_and_led_on_was_interrupted(
    client: Client, viewer: User, external01: Machine, erp01: Runtime, group: FailoverGroup, end_first: bool
) -> None:
    """Two routers were away for 44 s: nobody led, and the same one led on under the same epoch. Told twice, it is kept once."""
    client.force_login(viewer)
    now = timezone.now()
    lost, on, heard = now - timedelta(seconds=60), now - timedelta(seconds=16), now - timedelta(seconds=15)
    first = told(group, 41, ONE, None, Cause.FIRST, at=text(now - timedelta(seconds=100)))
    ends = {"ends": [protocol.LeadershipEnd(group.group.key, 41, ONE, Cause.LOST_MAJORITY, "no answer", at=text(lost))]}
    leads = {"runtimes": [leading(erp01, group, 41, since=on)]}
    before = {"runtimes": [leading(erp01, group, 41, since=now - timedelta(seconds=99))]}
    fleet.record_report(external01, said(1, events=[first], **before), now=now - timedelta(seconds=90))
    for sequence, news in enumerate((ends, leads, ends) if end_first else (leads, ends, leads), 2):
        fleet.record_report(external01, said(sequence, **news), now=heard)
    assert not LeadershipEnd.objects.exists(), "it did not end"
    answer = client.get(f"/api/v1/groups/{group.pk}/interruptions/").json()
    assert [(row["epoch"], row["runtime"], row["cause"], row["seconds"]) for row in answer["results"]] == [
        (41, ONE, "lost-majority", pytest.approx(44, abs=0.01))
    ]
    page = client.get(f"/projects/webshop/test/groups/{group.pk}/history/").content.decode()
    assert "Interruptions" in page and "lost majority" in page.lower() and page.count("44.0 s") == 3, "the longest, in all, and the line"
    lanes = client.get("/projects/webshop/test/timeline/").content.decode()
    assert "nobody led for 44.0 s in all" in lanes and "nobody led for 44 s, then external01.erp led on" in lanes


def test_an_interruption_that_is_told_again_is_kept_once_however_long_its_reports_were_under_way(
    external01: Machine, erp01: Runtime, group: FailoverGroup
) -> None:
    """The boot-time clock tells the moment of an end by when its report came: to some milliseconds."""
    end = protocol.LeadershipEnd(group.group.key, 41, ONE, Cause.LOST_MAJORITY, "no answer", text(NOW), at_boot=100.0, boot_id="boot-1")
    for sequence in range(1, 6):
        heard = NOW + timedelta(seconds=10 + sequence, milliseconds=70 * sequence)
        leads = leading(erp01, group, 41, since=NOW + timedelta(seconds=5))
        fleet.record_report(external01, said(sequence, ends=[end], runtimes=[leads], at_boot=110.0 + sequence), now=heard)
    assert group.interruptions.count() == 1


def test_history_and_timeline_say_who_ran_alone_while_nobody_led(client: Client, viewer: User, group: FailoverGroup) -> None:
    """Where the policy is to run alone, items did not wait meanwhile: they may have come twice."""
    for epoch, at in ((41, NOW - timedelta(hours=2)), (42, NOW), (43, NOW + timedelta(hours=1))):
        LeadershipChange.objects.create(
            group=group, epoch=epoch, runtime=ONE, previous=TWO, cause="crash", at=at, heard_at=at, gap_seconds=28.0
        )
    spell = {"group": group, "kind": AlarmKind.ALONE, "since": NOW - timedelta(seconds=25), "raised_at": NOW}
    for runtime in (TWO, ONE):
        Alarm.objects.create(runtime=runtime, sentence="runs alone", cleared_at=NOW - timedelta(seconds=1), **spell)
    since, until = NOW - timedelta(seconds=20), NOW - timedelta(seconds=10)
    group.interruptions.create(epoch=41, runtime=TWO, cause="lost-majority", since=since, until=until, seconds=10.0)
    client.force_login(viewer)
    groups = f"/projects/{group.environment.project.slug}/{group.environment.kind}/"
    words = "external01 and external02 ran alone meanwhile"
    assert client.get(f"{groups}groups/{group.pk}/history/").content.decode().count(words) == 2, "of the change and of the interruption"
    assert client.get(f"{groups}timeline/").content.decode().count(words) == 1


def test_an_end_that_came_after_it_led_is_no_interruption(external01: Machine, erp01: Runtime, group: FailoverGroup) -> None:
    """It says that it leads, by a report from just before."""
    leads = leading(erp01, group, 41, since=NOW - timedelta(seconds=60))
    end = protocol.LeadershipEnd(group.group.key, 41, ONE, Cause.LOST_MAJORITY, "no answer", at=text(NOW - timedelta(seconds=1)))
    fleet.record_report(external01, said(1, runtimes=[leads], ends=[end]), now=NOW)
    assert LeadershipEnd.objects.exists() and not group.interruptions.exists()


def leading(runtime: Runtime, group: FailoverGroup, epoch: int, *, since: datetime) -> protocol.RuntimeReport:
    """It leads, in this status since."""
    report = said_of(runtime, group, protocol.Status.LEADER, epoch=epoch)
    return msgspec.structs.replace(report, groups=[msgspec.structs.replace(report.groups[0], since=text(since))])


def test_of_one_leadership_the_last_end_counts(external01: Machine, group: FailoverGroup) -> None:
    for sequence, cause in enumerate((Cause.LOST_MAJORITY, Cause.CRASH), 1):
        fleet.record_report(external01, said(sequence, ends=[ended(group, 41, ONE, cause)]), now=NOW)
    assert LeadershipEnd.objects.get().cause == "crash"
    both = [ended(group, 42, ONE, cause) for cause in (Cause.CRASH, Cause.LOST_MAJORITY, Cause.HANG)]
    fleet.record_report(external01, said(3, ends=both), now=NOW)
    assert LeadershipEnd.objects.get(epoch=42).cause == "hang", "in one report too"


def test_another_boot_of_the_machine_explains_its_silence(external01: Machine, external02: Machine, group: FailoverGroup) -> None:
    fleet.record_report(external01, said(1, events=[told(group, 41, ONE, None, Cause.FIRST)]), now=NOW)
    external01.refresh_from_db()
    fleet.record_report(external02, said(1, events=[told(group, 42, TWO, ONE, Cause.SILENCE)]), now=NOW + timedelta(seconds=2))
    fleet.record_report(external01, said(1, started_at="2026-11-22T12:05:00Z", boot_id="boot-2"), now=NOW + timedelta(minutes=5))
    assert causes(group) == ["first", "power-off"]
    assert "started anew" in LeadershipChange.objects.get(epoch=42).detail


@pytest.mark.parametrize(
    ("leads", "seen", "booted", "end", "known"),
    [
        pytest.param(ONE, Cause.CRASH, 60, None, Cause.POWER_OFF, id="the same member leads again"),
        pytest.param(TWO, Cause.SILENCE, 60, None, Cause.POWER_OFF, id="the other one does"),
        pytest.param(ONE, Cause.CRASH, -60, None, Cause.CRASH, id="it has run all the time"),
        pytest.param(TWO, Cause.SILENCE, -60, None, Cause.SILENCE, id="it has run all the time, the other leads"),
        pytest.param(ONE, Cause.CRASH, 60, Cause.CRASH, Cause.CRASH, id="it had crashed before"),
        pytest.param(TWO, Cause.CRASH, 60, None, Cause.CRASH, id="its death was proven to the other"),
    ],
)
def test_both_machines_were_off_and_one_leads_again(
    external01: Machine,
    external02: Machine,
    group: FailoverGroup,
    leads: str,
    seen: Cause,
    booted: int,
    end: Cause | None,
    known: Cause,
) -> None:
    """Nobody leads before the former leader's machine has reported again."""
    fleet.record_report(external01, said(1, events=[told(group, 41, ONE, None, Cause.FIRST, at=text(NOW))]), now=NOW)

    def again(machine: Machine, sequence: int, after: int, **news: Any) -> None:
        now, boot = NOW + timedelta(seconds=after), {"started_at": "2026-11-22T12:05:00Z", "boot_id": "boot-2"}
        fleet.record_report(machine, said(sequence, at=text(now), at_boot=float(after - booted), **boot, **news), now=now)

    again(external01, 1, 90, ends=[ended(group, 41, ONE, end, "killed by signal 9")] if end else [])
    again(
        external01 if leads == ONE else external02,
        2,
        95,
        events=[told(group, 42, leads, ONE, seen, at=text(NOW + timedelta(seconds=94)))],
    )
    assert causes(group) == ["first", known]
    assert ("started anew" in group.changes.get(epoch=42).detail) == (known == Cause.POWER_OFF)


def test_what_waited_on_the_machines_is_delivered_in_order_and_exactly_once(
    external01: Machine, external02: Machine, group: FailoverGroup
) -> None:
    """The portal was away for ten changes; each machine tells its own, twice, in any order of the reports."""
    events = [
        told(group, epoch, (ONE, TWO)[epoch % 2], (TWO, ONE)[epoch % 2], Cause.CRASH, gap_seconds=epoch / 100) for epoch in range(50, 60)
    ]
    mine = {external01: [e for e in events if e.runtime == ONE], external02: [e for e in events if e.runtime == TWO]}
    orders = list(permutations([external01, external02, external01, external02], 4))[5]
    for sequence, machine in enumerate(orders, 1):
        fleet.record_report(machine, said(sequence, events=mine[machine]), now=NOW)
    assert list(group.changes.order_by("epoch").values_list("epoch", flat=True)) == list(range(50, 60))
    group.refresh_from_db()
    assert group.last_gap_seconds == 0.59


def at(second: float, boot: str = "boot-1") -> dict[str, Any]:
    """That instant of external01, whose wall clock is wrong: its boot clock showed 1000 at NOW."""
    return {"at": "2026-11-21T00:00:00Z", "at_boot": 1000.0 + second, "boot_id": boot}


@pytest.mark.parametrize("cause", [Cause.CRASH, Cause.HANG, Cause.RELEASE, Cause.DISABLE])
@pytest.mark.parametrize("at_once", [True, False])
def test_the_gap_before_the_same_members_return_is_told_by_its_machine(
    external01: Machine, group: FailoverGroup, cause: Cause, at_once: bool
) -> None:
    """A process that starts anew has not seen its forerunner On; the journal has both instants."""
    clock = {"boot_id": "boot-1", "at_boot": 1010.0, "at": "2026-11-21T00:00:10Z"}
    now = NOW + timedelta(seconds=10)
    first = told(group, 41, ONE, None, Cause.FIRST, **at(0))
    end = protocol.LeadershipEnd(group=group.group.key, epoch=41, runtime=ONE, cause=cause, reason="killed by signal 9", **at(4))
    back = told(group, 42, ONE, ONE, Cause.CRASH if cause in history.TOLD_AFTERWARDS else cause, **at(5.25))
    if at_once:
        fleet.record_report(external01, said(1, events=[first, back], ends=[end], **clock), now=now)
    else:
        for sequence, news in enumerate(({"events": [first]}, {"events": [back]}, {"ends": [end]}), 1):
            fleet.record_report(external01, said(sequence, **news, **clock), now=now)
    change = group.changes.get(epoch=42)
    assert (change.cause, change.gap_seconds) == (cause, pytest.approx(1.25))
    group.refresh_from_db()
    assert group.last_gap_seconds == pytest.approx(1.25) and group.last_gap_at == change.at
    assert history.why_no_gap(change) == ""


def test_what_the_new_leader_measured_stays(external01: Machine, external02: Machine, group: FailoverGroup) -> None:
    fleet.record_report(
        external01, said(1, events=[told(group, 41, ONE, None, Cause.FIRST)], ends=[ended(group, 41, ONE, Cause.CRASH)]), now=NOW
    )
    later = NOW + timedelta(seconds=7)
    fleet.record_report(external02, said(1, events=[told(group, 42, TWO, ONE, Cause.CRASH, gap_seconds=0.04)]), now=later)
    assert group.changes.get(epoch=42).gap_seconds == 0.04


@pytest.mark.parametrize(
    ("previous", "ends", "why"),
    [
        pytest.param(None, [], "nobody led before", id="the first leader"),
        pytest.param(TWO, [], f"nobody saw when {TWO} stopped", id="everything started anew"),
        pytest.param(TWO, [(TWO, 40)], f"nobody saw when {TWO} stopped", id="what is told is of an earlier leadership"),
        pytest.param(TWO, [(ONE, 41)], f"nobody saw when {TWO} stopped", id="another's end"),
    ],
)
def test_else_the_history_says_why_there_is_no_gap(
    client: Client, viewer: User, external01: Machine, external02: Machine, group: FailoverGroup, previous: str | None, ends: Any, why: str
) -> None:
    fleet.record_report(external02, said(1, events=[told(group, 41, TWO, None, Cause.FIRST)]), now=NOW)
    for runtime, epoch in ends:
        machine = external01 if runtime == ONE else external02
        fleet.record_report(machine, said(2, ends=[ended(group, epoch, runtime, Cause.CRASH)]), now=NOW)
    fleet.record_report(external01, said(3, events=[told(group, 42, ONE, previous, Cause.CRASH)]), now=NOW + timedelta(seconds=3))
    change = group.changes.get(epoch=42)
    assert change.gap_seconds is None and history.why_no_gap(change).startswith(why)
    client.force_login(viewer)
    assert why in client.get(f"/projects/webshop/test/groups/{group.pk}/history/").content.decode()
    rows = client.get(f"/api/v1/groups/{group.pk}/changes/").json()["results"]
    assert rows[0]["no_gap"].startswith(why)
    board = client.get("/projects/webshop/test/groups/").content.decode()
    assert ("data-gap" in board) is (previous is not None), "a figure of a change before is not shown as the last one's"


def test_the_last_gap_is_the_last_that_was_measured(external01: Machine, group: FailoverGroup) -> None:
    """After a restart of everything nobody knows when the former leader was last On."""
    for sequence, (epoch, gap) in enumerate(((41, 0.02), (42, None)), 1):
        fleet.record_report(external01, said(sequence, events=[told(group, epoch, ONE, TWO, Cause.CRASH, gap_seconds=gap)]), now=NOW)
    group.refresh_from_db()
    assert group.last_gap_seconds == 0.02
    assert group.last_gap_at == group.changes.get(epoch=41).at, "and it says of which change it is"
    assert group.changes.get(epoch=42).gap_seconds is None


def test_the_last_activity_survives_the_process_that_had_it(external01: Machine, erp01: Runtime, group: FailoverGroup) -> None:
    for sequence, activity in enumerate(("2026-11-22T11:59:00Z", ""), 1):
        part = protocol.GroupReport(
            group=group.group.key, status=protocol.Status.LEADER, state=protocol.State.ON, reason="", last_activity=activity
        )
        fleet.record_report(external01, said(sequence, runtimes=[said_of(erp01, groups=[part])]), now=NOW)
    assert GroupMember.objects.get(runtime=erp01).observed_last_activity == "2026-11-22T11:59:00Z"


# -------------------------------------------------------------------------------------------------------------------- clocks

DAY = timedelta(days=1)


def text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize("off", [DAY, -DAY, timedelta(0), timedelta(seconds=1)])
def test_clocks_a_day_apart_do_not_shift_what_is_shown(external01: Machine, erp01: Runtime, group: FailoverGroup, off: timedelta) -> None:
    happened = NOW - timedelta(minutes=3)
    theirs = text(happened + off)
    part = protocol.GroupReport(
        group=group.group.key, status=protocol.Status.LEADER, state=protocol.State.ON, reason="", since=theirs, last_activity=theirs
    )
    report = said(
        1,
        at=text(NOW + off),
        at_boot=1000.0,
        runtimes=[said_of(erp01, groups=[part])],
        events=[told(group, 41, ONE, None, Cause.FIRST, at=theirs, at_boot=820.0, boot_id="boot-1")],
    )
    fleet.record_report(external01, report, now=NOW)
    member = GroupMember.objects.get(runtime=erp01)
    slack = timedelta(seconds=clocks.TOLERATED_SECONDS)
    for shown in (member.observed_since, member.observed_last_activity):
        assert abs(datetime.fromisoformat(shown) - happened) <= slack
    assert LeadershipChange.objects.get().at == happened, "the boot-time clock knows it exactly"
    external01.refresh_from_db()
    assert external01.clock_ahead_seconds == off.total_seconds()


@pytest.mark.parametrize("off", [DAY, -timedelta(hours=1), timedelta(0)])
def test_a_reason_names_a_moment_by_the_portals_clock(external01: Machine, erp01: Runtime, group: FailoverGroup, off: timedelta) -> None:
    since, before = NOW - timedelta(minutes=3), NOW - timedelta(days=2)
    theirs = [(name, text(moment + off)) for name, moment in (("external02", since), ("core01", before))]
    peers = [
        protocol.PeerReport(machine=name, address="10.0.0.12:2380", reachable=False, since=at, error="no answer") for name, at in theirs
    ]
    part = protocol.GroupReport(
        group=group.group.key,
        status=protocol.Status.ISOLATED,
        state=protocol.State.OFF,
        reason=f"isolated: {', '.join(seen_so(peer, text(NOW + off)) for peer in peers)}",
    )
    report = said(1, at=text(NOW + off), at_boot=1000.0, peers=peers, runtimes=[said_of(erp01, groups=[part])])
    fleet.record_report(external01, report, now=NOW)
    said_now = GroupMember.objects.get(runtime=erp01).observed_reason
    assert f"external02 cannot be reached on 10.0.0.12:2380 since {since:%H:%M:%S} UTC (no answer)" in said_now
    assert f"core01 cannot be reached on 10.0.0.12:2380 since {before:%Y-%m-%d %H:%M:%S} UTC (no answer)" in said_now


@pytest.mark.parametrize(
    ("at_boot", "boot_id", "expected"),
    [
        pytest.param(820.0, "boot-1", NOW - timedelta(minutes=3), id="the same boot: its boot-time clock"),
        pytest.param(820.0, "boot-0", NOW - timedelta(minutes=7), id="before a reboot: its wall clock, put right"),
        pytest.param(None, "", NOW - timedelta(minutes=7), id="an older agent"),
        pytest.param(2000.0, "boot-1", NOW - timedelta(minutes=7), id="after the report: nonsense"),
    ],
)
def test_an_instant_in_the_portals_time(at_boot: float | None, boot_id: str, expected: datetime) -> None:
    clock = clocks.Clock(NOW, DAY.total_seconds(), "boot-1", 1000.0)
    assert clock.instant(text(NOW + DAY - timedelta(minutes=7)), at_boot, boot_id) == expected


def test_what_a_report_tells_that_was_long_under_way_is_told_at_its_true_time(
    external01: Machine, erp01: Runtime, group: FailoverGroup
) -> None:
    """The portal hung for two minutes and a half with a report in its hands: neither the machine's clock nor its events are off by them."""
    late, happened = timedelta(seconds=150), NOW + timedelta(seconds=7)
    fleet.record_report(external01, said(1, at=text(NOW), at_boot=1000.0), now=NOW)
    event = told(group, 41, ONE, None, Cause.FIRST, at=text(happened), at_boot=1007.0, boot_id="boot-1")
    for number, (later, under_way) in enumerate([(timedelta(seconds=10), late), (timedelta(seconds=20), late - timedelta(seconds=9))], 2):
        external01.refresh_from_db()
        part = protocol.GroupReport(
            group=group.group.key, status=protocol.Status.LEADER, state=protocol.State.ON, reason="leads", since=text(happened)
        )
        events = [event] if number == 2 else [told(group, 42, ONE, ONE, Cause.FIRST, at=text(NOW), at_boot=1018.0, boot_id="boot-1")]
        report = said(
            number, at=text(NOW + later), at_boot=1000.0 + later.total_seconds(), runtimes=[said_of(erp01, groups=[part])], events=events
        )
        fleet.record_report(external01, report, now=NOW + later + under_way)
    external01.refresh_from_db()
    assert abs(external01.clock_ahead_seconds or 0.0) < clocks.TOLERATED_SECONDS
    at = dict(LeadershipChange.objects.values_list("epoch", "at"))
    slack = timedelta(seconds=clocks.TOLERATED_SECONDS)
    assert abs(at[41] - happened) < slack and abs(at[42] - NOW - timedelta(seconds=18)) < slack
    assert datetime.fromisoformat(GroupMember.objects.get(runtime=erp01).observed_since) == happened


@pytest.mark.parametrize("off", [timedelta(seconds=30), timedelta(hours=1)], ids=["half a minute", "an hour"])
def test_a_portals_clock_that_was_set_forward_is_believed_with_the_second_report(
    external01: Machine, group: FailoverGroup, off: timedelta
) -> None:
    """The first looks as if it had been under way for as long. So does the report of a virtual machine that was paused."""
    fleet.record_report(external01, said(1, at=text(NOW), at_boot=1000.0), now=NOW)
    for number in (2, 3):
        external01.refresh_from_db()
        later = timedelta(seconds=3 * number)
        boot = 1000.0 + later.total_seconds()
        event = told(group, 40 + number, ONE, None, Cause.FIRST, at=text(NOW + later), at_boot=boot, boot_id="boot-1")
        fleet.record_report(external01, said(number, at=text(NOW + later), at_boot=boot, events=[event]), now=NOW + off + later)
    external01.refresh_from_db()
    assert external01.booted_at == NOW + off - timedelta(seconds=1000)
    assert external01.clock_ahead_seconds == -off.total_seconds(), "the portal's clock is what counts"
    assert LeadershipChange.objects.get(epoch=43).at == NOW + off + timedelta(seconds=9)


@pytest.mark.parametrize("nonsense", ["", "yesterday", "2026-11-22T12:00:00"])
def test_an_unreadable_moment_is_when_it_was_heard(nonsense: str) -> None:
    assert clocks.Clock(NOW, None).moment(nonsense) == NOW


# --------------------------------------------------------------------------------------------------------------- page and API


@pytest.fixture
def eventful(group: FailoverGroup) -> FailoverGroup:
    """120 changes: every tenth by a person, every fifteenth by a deployment, the others crashes."""
    for epoch in range(1, 121):
        cause, actor = ("switch", "olga") if epoch % 10 == 0 else ("balance", "deployment 7") if epoch % 15 == 0 else ("crash", "")
        LeadershipChange.objects.create(
            group=group,
            epoch=10**12 + epoch,
            runtime=ONE,
            previous=TWO,
            cause=cause,
            actor=actor,
            at=NOW - timedelta(minutes=200 - epoch),
            detection_seconds=0.02,
            gap_seconds=epoch / 1000,
        )
    return group


def test_the_page_of_a_group_has_pages_and_a_filter(
    client: Client, viewer: User, eventful: FailoverGroup, django_assert_max_num_queries: Any
) -> None:
    client.force_login(viewer)
    url = f"/projects/webshop/test/groups/{eventful.pk}/history/"
    with django_assert_max_num_queries(20):
        text = client.get(url).content.decode()
    assert "Page 1 of 3" in text and "1·120" in text and "1·70" not in text
    assert 'href="/projects/webshop/test/deployments/7/"' in text, "the deployment that balanced"
    assert 'href="/teams/demo/">olga</a>' in text, "the person who switched"
    only = client.get(f"{url}?cause=switch").content.decode()
    assert "olga" in only and "deployment 7" not in only
    assert client.get(f"{url}?cause=nonsense").status_code == 200
    assert len(client.get(f"{url}?cause=balance&format=csv").content.decode().splitlines()) == 1 + 4


def test_a_stranger_learns_nothing_of_it(client: Client, stranger: User, eventful: FailoverGroup) -> None:
    client.force_login(stranger)
    assert client.get(f"/projects/webshop/test/groups/{eventful.pk}/history/").status_code == 404


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 120),
        ("cause=switch", 12),
        ("cause=switch&cause=balance", 16),
        ("actor=deployment%207", 4),
        ("gap_min=0.1", 21),
        ("runtime=external02.erp", 0),
        ("at_after=2026-11-22T10:38:30Z", 2),
        ("at_before=2026-11-22T08:41:30Z", 1),
    ],
)
def test_the_api_lists_and_filters_changes(client: Client, viewer: User, eventful: FailoverGroup, query: str, count: int) -> None:
    client.force_login(viewer)
    answer = client.get(f"/api/v1/groups/{eventful.pk}/changes/?{query}").json()
    assert set(answer) == {"count", "next", "previous", "results"} and answer["count"] == count
    if not query:
        assert answer["results"][0]["epoch"] == 10**12 + 120 and answer["next"]
        assert next(row["deployment"] for row in answer["results"] if row["cause"] == "balance") == 7


@pytest.mark.parametrize("query", ["cause=boredom", "gap_min=much", "at_after=later"])
def test_the_api_refuses_a_filter_that_makes_no_sense(client: Client, viewer: User, eventful: FailoverGroup, query: str) -> None:
    client.force_login(viewer)
    answer = client.get(f"/api/v1/groups/{eventful.pk}/changes/?{query}")
    assert answer.status_code == 400 and query.split("=")[0] in answer.content.decode()


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00"])
def test_the_api_refuses_a_moment_that_no_calendar_reckons_with(client: Client, viewer: User, eventful: FailoverGroup, moment: str) -> None:
    client.force_login(viewer)
    answer = client.get(f"/api/v1/groups/{eventful.pk}/changes/?at_after={moment}")
    assert answer.status_code == 400 and "out of range" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (None, ""),
        (1.2, "as the portal's"),
        (-30, "30 s behind the portal's"),
        (600, "10 min ahead of the portal's"),
        (-7200, "2.0 h behind the portal's"),
        (2 * 86400, "2.0 days ahead of the portal's"),
    ],
)
def test_how_far_a_clock_is_off(ahead: float | None, words: str) -> None:
    assert clocks.in_words(ahead) == words


def test_the_page_of_a_machine_says_that_its_clock_is_off(client: Client, viewer: User, external01: Machine) -> None:
    Machine.objects.filter(pk=external01.pk).update(clock_ahead_seconds=DAY.total_seconds())
    client.force_login(viewer)
    assert "24.0 h ahead of the portal" in client.get("/projects/webshop/test/machines/external01/").content.decode()
