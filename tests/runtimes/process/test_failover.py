"""Two real runtime processes, three real routers, a real queue."""

import signal
import time

import pytest

from runtimes.protocol import (
    PROFILES,
    Cause,
    GroupRequest,
    Preference,
    ProcessCommand,
    RequestKind,
    RequestOutcome,
    RequestStatus,
    State,
    Status,
    Timing,
    TimingProfile,
)
from tests.runtimes.process.lab import Landscape, place, until

pytestmark = pytest.mark.journey


def ask(
    landscape: Landscape,
    kind: RequestKind,
    machine: str | None,
    *,
    number: int = 0,
    expected: int | None = None,
    request_id: str = "r1",
    activated: int | None = None,
) -> RequestOutcome:
    request = GroupRequest(
        id=request_id,
        kind=kind,
        group="g",
        machine=machine,
        expected_epoch=expected,
        cause=Cause.SWITCH if kind == RequestKind.SWITCH else Cause.DISABLE,
        actor="operator",
        valid_seconds=30,
    )
    return place(landscape.cluster, number, request, "external02.erp", activated=activated)


def drop(landscape: Landscape, name: str, content: bytes = b"<order/>") -> None:
    (landscape.outbox / f".{name}").write_bytes(content)
    (landscape.outbox / f".{name}").rename(landscape.outbox / name)


def test_a_killed_leader_with_a_keeper_is_followed_at_once_and_nothing_is_lost(landscape: Landscape) -> None:
    first, second = landscape.pair()
    drop(landscape, "one.xml")
    until(lambda: len(landscape.queued()) == 1, what="the first file is queued")
    epoch = second.groups["g"].epoch
    started = time.monotonic()
    first.kill(keeper=True)
    until(second.leads, 3, "the follower leads")
    took = time.monotonic() - started
    event = until(lambda: second.events and second.events[-1], what="the event is told")
    assert (event.cause, event.previous, event.runtime) == (Cause.CRASH, "external01.erp", "external02.erp")
    assert event.epoch > epoch
    assert event.gap_seconds is not None and 0 < event.gap_seconds < 1.0
    drop(landscape, "two.xml")
    until(lambda: len(landscape.queued()) == 2, what="the second file is queued")
    assert [fields[b"machine"] for fields in landscape.queued()] == [b"external01", b"external02"]
    assert took < 1.0
    again = landscape.start(1)
    until(again.follows, 5, "the killed one follows again")


def test_of_many_groups_handed_over_at_once_none_is_off_until_the_last_one_is_done(landscape: Landscape) -> None:
    first = landscape.start(1, Preference.LEADER, more=24)
    until(lambda: all(first.leads(group) for group in first.groups) and len(first.groups) == 25, 20, "the first leads all")
    second = landscape.start(2, Preference.BACKUP, more=24)
    until(lambda: all(second.follows(group) for group in second.groups) and len(second.groups) == 25, 20, "the second follows")
    first.process.send_signal(signal.SIGTERM)
    until(lambda: len(second.events) == 25, 20, "the second leads all")
    ons = [event.at_boot for event in second.events]
    gaps = sorted(event.gap_seconds for event in second.events if event.gap_seconds is not None)
    assert {event.cause for event in second.events} == {Cause.RELEASE}
    assert len(gaps) == 25
    assert gaps[12] < 0.4 * (max(ons) - min(ons)), (gaps, max(ons) - min(ons))


def test_a_killed_leader_without_a_keeper_is_followed_after_a_full_ttl(landscape: Landscape) -> None:
    first, second = landscape.pair()
    started = time.monotonic()
    first.kill(keeper=False)
    until(second.leads, 4, "the follower leads")
    assert 0.75 < time.monotonic() - started < 2.5
    event = until(lambda: second.events and second.events[-1])
    assert event.cause == Cause.SILENCE
    assert event.detection_seconds is not None and event.detection_seconds >= 1.0


def test_a_leader_that_stood_still_or_was_cut_off_tells_so_afterwards(landscape: Landscape) -> None:
    first, second = landscape.pair()
    epoch = first.groups["g"].epoch
    first.process.send_signal(signal.SIGSTOP)
    until(second.leads, 4, "the follower leads")
    first.process.send_signal(signal.SIGCONT)
    end = until(lambda: first.ends and first.ends[-1], what="the end is told")
    assert (end.epoch, end.runtime, end.cause) == (epoch, "external01.erp", Cause.HANG)
    assert "stood still for" in end.reason
    until(first.follows, 5, "it follows")
    assert len(first.ends) == 1 and not second.ends, "told once, and nothing by a leader that lives"
    epoch = second.groups["g"].epoch
    landscape.cluster.stop(1)  # external02's own router
    try:
        until(first.leads, 5, "the other leads")
        end = until(lambda: second.ends and second.ends[-1], what="the end is told")
        assert (end.epoch, end.cause) == (epoch, Cause.LOST_MAJORITY)
        assert "router" in end.reason
    finally:
        landscape.cluster.restart(1)


def test_a_switch_moves_leadership_and_tells_who_asked(landscape: Landscape) -> None:
    first, second = landscape.pair()
    outcome = ask(landscape, RequestKind.SWITCH, "external02", expected=first.groups["g"].epoch)
    assert outcome.status == RequestStatus.RUNNING, outcome
    until(second.leads, 3, "the chosen one leads")
    until(first.follows, 3, "the old leader follows")
    event = until(lambda: second.events and second.events[-1])
    assert (event.cause, event.actor, event.previous) == (Cause.SWITCH, "operator", "external01.erp")
    assert event.gap_seconds is not None and event.gap_seconds < 0.5
    assert [(each.id, each.status) for each in first.outcomes] == [("r1", RequestStatus.SUCCEEDED)]
    assert not first.ends, "what is handed over has not ended by itself"
    assert ask(landscape, RequestKind.SWITCH, "external02", number=1).status == RequestStatus.SUCCEEDED, "asked twice, done once"
    stale = ask(landscape, RequestKind.SWITCH, "external01", expected=first.groups["g"].epoch - 1, request_id="r2")
    assert (stale.status, stale.code) == (RequestStatus.FAILED, "stale")


def test_a_switch_to_a_member_that_does_not_live_or_runs_another_release_is_refused(landscape: Landscape) -> None:
    first, second = landscape.pair()
    other = ask(landscape, RequestKind.SWITCH, "external02", activated=2)
    assert other.status == RequestStatus.RUNNING, "the leader's release will do"
    until(second.leads, 3)
    first.kill(keeper=False)
    dead = ask(landscape, RequestKind.SWITCH, "external01", request_id="r2")
    assert (dead.status, dead.code) == (RequestStatus.FAILED, "not-ready")
    assert "stands still" in dead.reason
    nobody = ask(landscape, RequestKind.SWITCH, None, request_id="r3")
    assert (nobody.status, nobody.code) == (RequestStatus.FAILED, "not-ready")
    newer = landscape.start(1, release=3, version="2.0.0")
    until(lambda: newer.follows(), 5)
    refused = ask(landscape, RequestKind.SWITCH, "external01", request_id="r4", activated=2)
    assert (refused.code, "release 3" in refused.reason) == ("not-ready", True)


def test_a_disabled_leader_hands_over_and_leads_again_only_after_enable(landscape: Landscape) -> None:
    first, second = landscape.pair()
    assert ask(landscape, RequestKind.DISABLE, "external01").status == RequestStatus.SUCCEEDED
    until(second.leads, 3, "the other leads")
    until(lambda: first.status() == Status.DISABLED and first.groups["g"].state == State.OFF, 3, "the first is disabled and Off")
    until(lambda: second.groups["g"].disabled == ["external01.erp"], 3, "the new leader names who is disabled")
    until(lambda: second.events and second.events[-1].cause == Cause.DISABLE, 3, "the new leader says why it leads")
    refused = ask(landscape, RequestKind.SWITCH, "external01", request_id="r2")
    assert refused.code == "disabled"
    assert ask(landscape, RequestKind.DISABLE, "external02", request_id="r3").status == RequestStatus.SUCCEEDED
    until(lambda: second.status() == Status.DISABLED and second.groups["g"].state == State.OFF, 3, "nobody leads")
    assert landscape.cluster.read("leaders/g")["runtime"] is None
    assert ask(landscape, RequestKind.ENABLE, "external01", request_id="r4").status == RequestStatus.SUCCEEDED
    until(first.leads, 3, "the enabled one leads")


def test_one_that_leads_again_tells_for_how_long_nobody_did(landscape: Landscape) -> None:
    """The very same process: it was On before, and nobody else in between."""
    first, second = landscape.pair()
    assert ask(landscape, RequestKind.DISABLE, "external02").status == RequestStatus.SUCCEEDED
    until(lambda: len(first.events) == 1, what="its first leadership is told")
    for number in range(1, 4):
        assert ask(landscape, RequestKind.DISABLE, "external01", request_id=f"off-{number}").status == RequestStatus.SUCCEEDED
        until(lambda: first.groups["g"].state == State.OFF, 5, "nobody leads")
        off_at = time.monotonic()
        time.sleep(0.5)
        off = time.monotonic() - off_at
        assert ask(landscape, RequestKind.ENABLE, "external01", request_id=f"on-{number}").status == RequestStatus.SUCCEEDED
        until(lambda: len(first.events) == 1 + number, 8, "it leads again, and tells so")  # noqa: B023
        again = first.events[-1]
        assert (again.previous, again.runtime) == ("external01.erp", "external01.erp")
        assert again.gap_seconds is not None and again.gap_seconds >= off
    assert not second.events


def test_a_leader_paused_for_three_seconds_emits_nothing_with_its_old_epoch(landscape: Landscape) -> None:
    first, second = landscape.pair()
    old = first.groups["g"].epoch
    first.process.send_signal(signal.SIGSTOP)
    until(second.leads, 4, "the other leads")
    raised = second.groups["g"].epoch
    for number in range(5):
        drop(landscape, f"while-paused-{number}")
    time.sleep(1.5)
    first.process.send_signal(signal.SIGCONT)
    drop(landscape, "after")
    until(lambda: len(landscape.queued()) == 6, what="every file is queued")
    until(first.follows, 3, "the paused one follows")
    time.sleep(0.5)
    epochs = {int(fields[b"epoch"]) for fields in landscape.queued()}
    assert epochs == {raised} and raised > old
    assert len(landscape.queued()) == 6


def test_a_leader_asked_to_stop_hands_over_and_ends_its_session(landscape: Landscape) -> None:
    first, second = landscape.pair()
    first.command(ProcessCommand(stop=True))
    until(second.leads, 3, "the other leads")
    assert first.process.wait(5) == 0
    until(lambda: second.events and second.events[-1].cause == Cause.RELEASE, 3, "the new leader says why it leads")
    assert landscape.cluster.read("sessions/external01.erp") is None
    second.process.terminate()
    assert second.process.wait(5) == 0
    assert landscape.cluster.read("leaders/g")["runtime"] is None
    assert Cause.RELEASE not in {end.cause for end in first.ends}, "that was handed over, so the new leader measures the gap"
    until(lambda: second.ends, 3, "who leaves it to nobody says since when")
    assert [(end.epoch, end.cause) for end in second.ends] == [(second.events[-1].epoch, Cause.RELEASE)]


def test_a_process_whose_keeper_went_ends(landscape: Landscape) -> None:
    first, second = landscape.pair()
    first._socket.shutdown(2)
    assert first.process.wait(5) == 1
    until(second.leads, 4, "the other leads")


def test_without_a_majority_the_leader_stops_and_returns_by_itself(landscape: Landscape) -> None:
    first, second = landscape.pair()
    others = landscape.cluster.members[1:]
    try:
        for member in others:
            member.send_signal(signal.SIGSTOP)
        until(lambda: first.status() == Status.ISOLATED and first.groups["g"].state == State.OFF, 3, "the leader is isolated")
        until(lambda: second.status() == Status.ISOLATED, 3, "the follower is isolated")
    finally:
        for member in others:
            member.send_signal(signal.SIGCONT)
    until(lambda: [each for each in (first, second) if each.leads()], 5, "one leads again")
    time.sleep(1)
    assert len([each for each in (first, second) if each.leads()]) == 1


def test_items_wait_in_the_source_while_the_queue_is_away(landscape: Landscape) -> None:
    first, _ = landscape.pair()
    landscape.broker.process.send_signal(signal.SIGSTOP)
    try:
        for number in range(3):
            drop(landscape, f"order {number}")
        time.sleep(2)
        assert first.leads(), "leadership does not move"
        assert len(list(landscape.outbox.iterdir())) == 3
    finally:
        landscape.broker.process.send_signal(signal.SIGCONT)
    until(lambda: len(landscape.queued()) == 3, 8, "the files are queued")
    time.sleep(0.5)
    assert sorted(fields[b"name"] for fields in landscape.queued()) == [b"order 0", b"order 1", b"order 2"], "once each"


def test_a_drain_that_takes_too_long_leaves_leadership_where_it_is_and_says_so(landscape: Landscape) -> None:
    first = landscape.start(1, timing=Timing(drain=0.5))
    until(first.leads, 10)
    until(landscape.start(2).follows, 10)
    landscape.broker.process.send_signal(signal.SIGSTOP)
    try:
        drop(landscape, "order")
        until(lambda: first.flows["f"].taken == 1, 4, "it is in flight")
        assert ask(landscape, RequestKind.SWITCH, "external02").status == RequestStatus.RUNNING
        outcome = until(lambda: first.outcomes and first.outcomes[-1], 3, "the leader says no")
        assert (outcome.status, outcome.code) == (RequestStatus.FAILED, "drain-limit")
    finally:
        landscape.broker.process.send_signal(signal.SIGCONT)
    until(first.leads, 3, "it leads on")
    until(lambda: len(landscape.queued()) == 1, 8, "the file is queued")


def test_two_hundred_files_pass_well_within_ten_seconds(landscape: Landscape) -> None:
    landscape.pair()
    started = time.monotonic()
    for number in range(200):
        drop(landscape, f"order-{number}", b"%d" % number)
    until(lambda: len(landscape.queued()) == 200, 10, "all are queued")
    assert time.monotonic() - started < 6
    assert len({fields[b"sha256"] for fields in landscape.queued()}) == 200
    until(lambda: not list(landscape.outbox.iterdir()), 2, "the outbox is empty")


def test_a_leader_under_a_slower_profile_is_given_the_time_that_it_declares(landscape: Landscape) -> None:
    slow = landscape.start(1, Preference.LEADER, timing=PROFILES[TimingProfile.WAN])
    until(slow.leads, 10, "the slow one leads")
    quick = landscape.start(2, timing=PROFILES[TimingProfile.LAN])
    until(quick.follows, 10, "the quick one follows")
    slow.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    until(quick.leads, 8, "the quick one leads")
    wan = PROFILES[TimingProfile.WAN]
    assert time.monotonic() - stopped > wan.ttl - wan.renewal - 0.2, "not before the slow one's permit has ended"
    assert (slow.groups["g"].ttl, quick.groups["g"].ttl) == (4.0, 1.0)


def test_leadership_follows_the_killed_again_and_again(landscape: Landscape) -> None:
    leader, follower = landscape.pair()
    for _ in range(3):
        number = 1 if leader.config.machine == "external01" else 2
        leader.kill(keeper=True)
        until(follower.leads, 2, "the follower leads")
        leader, follower = follower, landscape.start(number)
        until(follower.follows, 5, "the killed one follows")


@pytest.mark.long
def test_a_leader_whose_folder_is_gone_hands_over_to_who_has_its_own_and_nothing_moves_between_two_without(landscape: Landscape) -> None:
    first = landscape.start(1, Preference.LEADER)
    until(first.leads, 10, "the first leads")
    second = landscape.start(2, Preference.BACKUP, outbox="elsewhere")
    until(second.follows, 10, "the second follows")
    landscape.outbox.rename(landscape.home / "away")
    until(second.leads, 50, "the second, whose folder is there, leads")
    event = until(lambda: second.events and second.events[-1], 5)
    assert (event.cause, event.previous) == (Cause.NOT_READY, "external01.erp")
    assert "is not ready to take over" in first.groups["g"].reason and "is gone" in first.groups["g"].reason
    (landscape.home / "elsewhere").rename(landscape.home / "away2")
    until(lambda: "nor is another member" in second.groups["g"].reason, 50, "it leads on and says so")
    assert [each.runtime for each in first.events] == ["external01.erp"], "it did not lead a second time"
    until(second.leads, 5)
    (landscape.home / "away").rename(landscape.outbox)
    until(first.leads, 10, "who can work again is given the group")
