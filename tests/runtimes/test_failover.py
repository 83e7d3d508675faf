"""What the portal says of groups, and what it asks of them."""

from datetime import datetime, timedelta
from threading import Barrier, Thread
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from portal.errors import Busy, Invalid, NotReady, Stale
from portal.models import Connector, Environment
from runtimes import balancing, boards, failover, fleet, ordering, protocol, tasks
from runtimes.models import FailoverGroup, GroupMember, GroupRequest, LeadershipChange, Machine, Router, Runtime, RuntimeLog
from tests import factories

Status, State, Preference, Cause = protocol.Status, protocol.State, protocol.Preference, protocol.Cause
Health = failover.Health
IsolationPolicy = protocol.IsolationPolicy
L, F, D, S, U = Status.LEADER, Status.FOLLOWER, Status.DISABLED, Status.SINGLE_NODE, Status.UNKNOWN
X = Status.ISOLATED

Said = tuple[Status, int, float | None, State]  # status, epoch, age in seconds (None: never heard), state


def hear(group: FailoverGroup, machine: str, said: Said, now: datetime) -> None:
    status, epoch, age, state = said
    at = None if age is None else now - timedelta(seconds=age)
    factories.heard(group, machine, status, at=at, epoch=epoch, state=state)
    if at is None:
        GroupMember.objects.filter(group=group, runtime__machine__name=machine).update(observed_at=None)


def judge(group: FailoverGroup, now: datetime) -> failover.Verdict:
    return failover.verdict(FailoverGroup.objects.prefetch_related(failover.with_members()).get(pk=group.pk), now=now)


def prefer(group: FailoverGroup, machine: str, preference: Preference = Preference.LEADER) -> None:
    failover.prefer(group.members.get(runtime__machine__name=machine).runtime, preference)


@pytest.fixture
def settled(group: FailoverGroup) -> FailoverGroup:
    """external01 leads since epoch 41, external02 follows; both have just reported."""
    factories.heard(group, "external01", L)
    factories.heard(group, "external02", F)
    group.refresh_from_db()
    return group


# ------------------------------------------------------------------------------------------------------------------ verdict

on, off, partly = State.ON, State.OFF, State.PARTLY


@pytest.mark.parametrize(
    ("first", "second", "shown", "leader", "problem"),
    [
        pytest.param((L, 41, 0, on), (F, 41, 0, off), (L, F), "external01", "", id="one leads, one follows"),
        pytest.param((F, 41, 0, off), (L, 41, 9.9, on), (F, L), "external02", "", id="a report of 9.9 s ago is fresh"),
        pytest.param((L, 41, 0, on), (D, 41, 0, off), (L, D), "external01", "", id="a disabled member is healthy"),
        pytest.param(
            (L, 41, 40, on), (F, 41, 0, off), (U, F), None, "external01 has not been heard from for 40 s; it then was Leader, On.",
            id="a silent leader is unknown",
        ),
        pytest.param(
            (L, 41, 0, on), (F, 41, 239, off), (L, U), "external01", "external02 has not been heard from for 3 min", id="a silent follower"
        ),
        pytest.param((L, 41, 0, on), (F, 41, None, off), (L, U), "external01", "external02 has not reported", id="never heard of"),
        pytest.param((L, 41, 0, on), (L, 42, 0, on), (U, L), "external02", "epoch 0·42 began since", id="the higher epoch leads"),
        pytest.param((L, 43, 5, on), (L, 42, 0, on), (L, U), "external01", "epoch 0·43 began since", id="also when it reported earlier"),
        pytest.param((L, 43, 40, on), (L, 42, 0, on), (U, U), None, "epoch 0·43 began since", id="a silent higher epoch still counts"),
        pytest.param((L, 42, 0, on), (L, 42, 0, on), (U, U), None, "another member says the same", id="two of one epoch: neither"),
        pytest.param((F, 41, 0, off), (F, 41, 0, off), (F, F), None, "Nobody is known to lead erp-orders.", id="nobody"),
        pytest.param((D, 41, 0, off), (D, 41, 0, off), (D, D), None, "every member is disabled", id="all disabled"),
        pytest.param((L, 41, 0, off), (F, 41, 0, off), (L, F), "external01", "leads, but its inbounds are Off", id="leader but off"),
        pytest.param((L, 41, 0, partly), (F, 41, 0, off), (L, F), "external01", "leads, but its inbounds are Partly", id="leader partly"),
        pytest.param((L, 41, 0, on), (F, 41, 0, on), (L, F), "external01", "Follower, but its inbounds are On", id="follower but on"),
        pytest.param((L, 41, 0, on), (X, 41, 0, off), (L, X), "external01", "external02 is Isolated", id="an isolated member"),
        pytest.param((S, 0, 0, on), (F, 41, 0, off), (S, F), "external01", "runs as a single node", id="run alone is a problem"),
        pytest.param((S, 0, 0, on), (L, 41, 0, on), (S, L), "external02", "external01 runs as a single node",
            id="a holder of the key leads"),
        pytest.param((S, 0, 0, on), (S, 0, 0, on), (S, S), None, "external02 runs as a single node", id="both alone: nobody is the leader"),
        pytest.param((S, 0, 0, on), (S, 0, 0, on), (S, S), None, "external01 and external02 each run alone", id="which is said plainly"),
    ],
)  # fmt: skip
def test_what_may_be_said_of_a_group(
    group: FailoverGroup, first: Said, second: Said, shown: tuple[Status, Status], leader: str | None, problem: str
) -> None:
    now = timezone.now()
    hear(group, "external01", first, now)
    hear(group, "external02", second, now)
    found = judge(group, now)
    assert tuple(said.status for said in sorted(found.members, key=lambda said: said.machine)) == shown
    assert (found.leader.machine if found.leader else None) == leader
    assert found.healthy is (problem == ""), found.problems
    assert problem in " ".join(found.problems)


@pytest.mark.parametrize(
    ("follower", "reason"),
    [
        pytest.param({"status": F, "epoch": 41}, "", id="it could take over"),
        pytest.param({"status": F, "epoch": 41, "observed_ready": False}, "external02 is not ready", id="it follows and is not ready"),
        pytest.param({"status": D}, "external02 is disabled in", id="somebody disabled it"),
    ],
)
def test_a_leader_without_a_ready_follower_is_no_healthy_group(group: FailoverGroup, follower: dict[str, Any], reason: str) -> None:
    factories.heard(group, "external01", L, epoch=41)
    factories.heard(group, "external02", follower.pop("status"), **follower)
    found = judge(group, timezone.now())
    assert found.healthy, found.problems
    assert found.health == (Health.NO_STANDBY if reason else Health.HEALTHY)
    assert [said.split(":")[0][: len(reason)] for said in found.without_standby] == ([reason] if reason else [])


def test_whoever_runs_alone_by_design_needs_no_standby(group: FailoverGroup) -> None:
    FailoverGroup.objects.filter(pk=group.pk).update(failover=False)
    group.members.get(runtime__machine__name="external02").delete()
    factories.heard(group, "external01", S)
    assert judge(group, timezone.now()).health == Health.HEALTHY


def test_a_leader_below_the_epoch_that_was_ever_heard_is_not_believed(settled: FailoverGroup) -> None:
    FailoverGroup.objects.filter(pk=settled.pk).update(epoch=99)
    found = judge(settled, timezone.now())
    assert found.leader is None
    assert "says it leads since epoch 0·41, but epoch 0·99 began since" in found.members[0].reason


def test_a_group_without_failover_is_healthy_on_its_own(group: FailoverGroup) -> None:
    FailoverGroup.objects.filter(pk=group.pk).update(failover=False)
    group.members.get(runtime__machine__name="external02").delete()
    factories.heard(group, "external01", S)
    found = judge(group, timezone.now())
    assert found.healthy, found.problems
    assert found.leader is not None
    assert found.leader.machine == "external01"


def test_a_verdict_reads_nothing_more(settled: FailoverGroup, django_assert_num_queries: Any) -> None:
    group = FailoverGroup.objects.prefetch_related(failover.with_members()).get(pk=settled.pk)
    with django_assert_num_queries(0):
        found = failover.verdict(group, now=timezone.now())
        for said in found.members:
            failover.obstacle(found, said)
            for action in ("play", "stop", "disable", "enable"):
                failover.consequence(group, said.member, action, now=timezone.now())


# --------------------------------------------------------------------------------------------------------------- preference


def test_choosing_a_leader_makes_the_former_one_backup(group: FailoverGroup, external01: Machine, external02: Machine) -> None:
    prefer(group, "external01")
    versions = [Machine.objects.get(pk=machine.pk).orders_version for machine in (external01, external02)]
    prefer(group, "external02")
    assert dict(Runtime.objects.values_list("machine__name", "preference")) == {"external01": "backup", "external02": "leader"}
    assert [Machine.objects.get(pk=machine.pk).orders_version for machine in (external01, external02)] == [v + 1 for v in versions]


def test_the_same_preference_again_orders_nothing(group: FailoverGroup, external01: Machine) -> None:
    prefer(group, "external01")
    before = Machine.objects.get(pk=external01.pk).orders_version
    prefer(group, "external01")
    assert Machine.objects.get(pk=external01.pk).orders_version == before


def test_a_runtime_outside_failover_has_no_preference(erp01: Runtime) -> None:
    Runtime.objects.filter(pk=erp01.pk).update(failover=False)
    with pytest.raises(Invalid, match="does not run in failover"):
        failover.prefer(erp01, protocol.Preference.LEADER)
    failover.prefer(erp01, protocol.Preference.NONE)


# ------------------------------------------------------------------------------------------------------------------- switch


def switch(group: FailoverGroup, candidate: str | None, expected_leader: str | None = None, **more: Any) -> GroupRequest:
    return failover.switch(
        group, **{"candidate": candidate, "expected_leader": expected_leader, "actor": "operator", "now": timezone.now(), **more}
    )


def test_play_asks_for_a_hand_over_at_the_epoch_that_was_seen(settled: FailoverGroup, external01: Machine) -> None:
    before = Machine.objects.get(pk=external01.pk).orders_version
    request = switch(settled, "external02", "external01")
    assert (request.kind, request.machine, request.expected_epoch, request.status, request.cause) == (
        "switch",
        "external02",
        41,
        "pending",
        "switch",
    )
    assert 14 < (request.expires_at - timezone.now()).total_seconds() <= 15
    assert Machine.objects.get(pk=external01.pk).orders_version == before + 1


def test_a_candidate_that_leads_already_is_an_answered_request(settled: FailoverGroup) -> None:
    request = switch(settled, "external01")
    assert (request.status, request.reason) == ("succeeded", "external01 already leads erp-orders.")
    assert request.ended_at == request.created_at


def test_stop_asks_for_any_ready_follower(settled: FailoverGroup) -> None:
    assert switch(settled, None, "external01").machine == ""


def test_an_unknown_candidate_is_not_found(settled: FailoverGroup) -> None:
    with pytest.raises(
        failover.UnknownCandidate, match="core01 has no member in erp-orders: its members are external01, external02"
    ) as refusal:
        switch(settled, "core01")
    assert (refusal.value.status, refusal.value.code) == (404, "unknown-candidate")


@pytest.mark.parametrize("expected", ["external02", "core01"])
def test_a_leader_that_was_not_expected_is_stale(settled: FailoverGroup, expected: str) -> None:
    with pytest.raises(Stale, match=f"{expected} does not lead erp-orders: external01 does"):
        switch(settled, "external02", expected)


def test_a_second_wish_is_busy_until_the_first_ends(settled: FailoverGroup) -> None:
    first = switch(settled, "external02")
    with pytest.raises(Busy, match="a hand-over to external02 that operator asked for is under way"):
        failover.disable(settled, "external01", actor="developer", now=timezone.now())
    GroupRequest.objects.filter(pk=first.pk).update(status="failed")
    assert switch(settled, "external02").status == "pending"


def test_an_overdue_wish_is_in_nobodys_way(settled: FailoverGroup) -> None:
    first = switch(settled, "external02")
    GroupRequest.objects.filter(pk=first.pk).update(expires_at=timezone.now())
    switch(settled, "external02")
    first.refresh_from_db()
    assert (first.status, first.code) == ("expired", "expired")


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        pytest.param({"status": D}, "external02 is disabled in erp-orders: it takes over only once it is enabled", id="disabled"),
        pytest.param({"observed_disabled": True}, "external02 is disabled in erp-orders", id="disabled, not yet obeyed"),
        pytest.param({"age": 40}, "external02 has not been heard from for 40 s.", id="silent"),
        pytest.param({"age": None}, "external02 has never been heard from in erp-orders.", id="never heard from"),
        pytest.param({"status": X}, "external02 is Isolated: external02 says so.", id="isolated"),
        pytest.param({"observed_ready": False}, "external02 is not ready: external02 says so.", id="not ready"),
        pytest.param({"release": 7}, "external02 is not on the release 1: it runs 7.", id="another release"),
        pytest.param({"release": None}, "external02 is not on the release 1: it runs none.", id="no release"),
    ],
)
def test_a_candidate_that_cannot_lead_is_refused_with_the_reason(settled: FailoverGroup, facts: dict[str, Any], sentence: str) -> None:
    facts = dict(facts)
    age = facts.pop("age", 0)
    at = timezone.now() - timedelta(seconds=age or 0)
    factories.heard(settled, "external02", facts.pop("status", F), at=at, **facts)
    if age is None:
        settled.members.filter(runtime__machine__name="external02").update(observed_at=None)
    with pytest.raises(NotReady) as refusal:
        switch(settled, "external02", now=at + timedelta(seconds=age or 0))
    assert refusal.value.sentence.startswith(sentence)
    assert refusal.value.status == 503
    with pytest.raises(NotReady, match="To stop it all the same, use Disable") as stop:
        switch(settled, None, now=at + timedelta(seconds=age or 0))
    assert stop.value.reasons == [refusal.value.sentence]
    assert not GroupRequest.objects.exists()


def test_a_machine_without_agent_is_no_candidate(settled: FailoverGroup, external02: Machine) -> None:
    Machine.objects.filter(pk=external02.pk).update(joined_at=None)
    with pytest.raises(NotReady, match="external02 has no agent yet: register it"):
        switch(settled, "external02")


def test_where_nobody_leads_there_is_nothing_to_stop(settled: FailoverGroup) -> None:
    factories.heard(settled, "external01", F)
    with pytest.raises(NotReady, match="nothing to stop"):
        switch(settled, None)
    assert switch(settled, "external02").status == "pending"


def test_disable_and_enable_are_carried_for_a_silent_member_by_the_other(settled: FailoverGroup) -> None:
    factories.heard(settled, "external02", F, at=timezone.now() - timedelta(minutes=5))
    request = failover.disable(settled, "external02", actor="operator", now=timezone.now())
    assert (request.kind, request.machine, request.cause) == ("disable", "external02", "disable")
    GroupRequest.objects.update(status="succeeded")
    assert failover.enable(settled, "external02", actor="operator", now=timezone.now()).kind == "enable"


def test_a_group_that_does_not_fail_over_is_neither_stopped_nor_disabled(settled: FailoverGroup, erp02: Runtime) -> None:
    """Its single node never asks who is disabled: the wish would be told as carried out, and the group would come up disabled later."""
    FailoverGroup.objects.update(failover=False)
    GroupMember.objects.filter(runtime=erp02).delete()
    member = factories.heard(settled, "external01", Status.SINGLE_NODE)
    way_out = "as a single node, and hears no Stop and no Disable. To stop it, stop its runtime external01.erp"
    with pytest.raises(NotReady, match=way_out):
        failover.disable(settled, "external01", actor="operator", now=timezone.now())
    with pytest.raises(NotReady, match=way_out):
        switch(settled, None)
    assert not GroupRequest.objects.exists()
    settled = failover.read_now(settled)
    found = failover.verdict(settled, now=timezone.now())
    for act in ("stop", "disable"):
        assert way_out in failover.consequence(settled, member, act, now=timezone.now())
        assert way_out in boards.refusal_of(act, found.members[0], found)
    assert failover.enable(settled, "external01", actor="operator", now=timezone.now()).kind == "enable"  # of what was disabled before


def test_nobody_carries_a_wish_when_all_are_silent(settled: FailoverGroup) -> None:
    with pytest.raises(NotReady, match="No agent of erp-orders can carry this"):
        failover.disable(settled, "external02", actor="operator", now=timezone.now() + timedelta(minutes=5))


def test_an_isolation_policy_is_wished_and_carried_to_the_machines(settled: FailoverGroup, external01: Machine) -> None:
    request = failover.set_isolation_policy(settled, IsolationPolicy.RUN_ALONE, actor="operator", now=timezone.now())
    settled.refresh_from_db()
    assert (request.kind, request.policy, settled.isolation_policy) == ("policy", "run-alone", "run-alone")
    (order,) = ordering.orders_for(external01, now=timezone.now()).requests
    assert (order.kind, order.policy, order.machine) == ("policy", "run-alone", None)
    with pytest.raises(Busy, match="a change of its isolation policy"):
        switch(settled, "external02")


def test_without_an_agent_or_failover_there_is_no_isolation_policy(settled: FailoverGroup) -> None:
    with pytest.raises(NotReady, match="No agent of erp-orders can carry this"):
        failover.set_isolation_policy(settled, IsolationPolicy.RUN_ALONE, actor="operator", now=timezone.now() + timedelta(minutes=5))
    FailoverGroup.objects.update(failover=False)
    with pytest.raises(Invalid, match="does not run in failover"):
        failover.set_isolation_policy(settled, IsolationPolicy.RUN_ALONE, actor="operator", now=timezone.now())
    settled.refresh_from_db()
    assert settled.isolation_policy == "stop"


@pytest.mark.django_db(transaction=True)
def test_of_many_who_press_play_at_once_one_is_heard(settled: FailoverGroup, file_database: None) -> None:
    start, made, refused = Barrier(5), [], []

    def press() -> None:
        start.wait()
        try:
            made.append(switch(settled, "external02", "external01"))
        except Busy as refusal:
            refused.append(refusal.sentence)
        finally:
            connection.close()

    threads = [Thread(target=press) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 4), refused
    assert GroupRequest.objects.count() == 1


def test_beat_ends_wishes_that_nobody_carried(settled: FailoverGroup) -> None:
    pending = switch(settled, "external02")
    assert tasks.expire_requests() == "No wish is overdue."
    GroupRequest.objects.update(expires_at=timezone.now())
    assert tasks.expire_requests() == "1 wishes for groups were not carried in time."
    pending.refresh_from_db()
    assert (pending.status, pending.reason) == ("expired", "No agent of the group's machines carried it in time.")


def test_beat_keeps_logs_short(external01: Machine, external02: Machine, settings: Any) -> None:
    settings.LOG_LINES_KEPT_PER_RUNTIME = 5
    for machine, count in ((external01, 9), (external02, 5)):
        RuntimeLog.objects.bulk_create(
            RuntimeLog(machine=machine, source="agent", at=timezone.now(), level="info", text=str(number)) for number in range(count)
        )
    assert tasks.forget_old_logs() == "4 old log lines were deleted."
    assert list(external01.log_lines.values_list("text", flat=True)) == ["4", "5", "6", "7", "8"]
    assert external02.log_lines.count() == 5
    assert tasks.forget_old_logs() == "No log is too long."


# -------------------------------------------------------------------------------------------------------------- consequence


@pytest.mark.parametrize(
    ("machine", "action", "sentence"),
    [
        ("external02", "play", "external01 stops first, then external02 takes over. The last change of leader took 0.03 s."),
        ("external01", "play", "external01 leads already."),
        ("external01", "stop", "Stops here, external02 takes over. The last change of leader took 0.03 s."),
        ("external02", "stop", "external02 does not lead, so there is nothing to stop."),
        ("external01", "disable", "Stops here, external02 takes over; external01 takes no part in erp-orders until it is enabled again."),
        ("external02", "disable", "external02 takes no part in erp-orders until it is enabled again."),
        ("external02", "enable", "external02 is enabled already."),
    ],
)
def test_a_button_says_what_it_would_do(settled: FailoverGroup, machine: str, action: str, sentence: str) -> None:
    FailoverGroup.objects.filter(pk=settled.pk).update(last_gap_seconds=0.031)
    group = FailoverGroup.objects.prefetch_related(failover.with_members()).get(pk=settled.pk)
    member = next(member for member in group.members.all() if member.runtime.machine.name == machine)
    assert failover.consequence(group, member, action, now=timezone.now()) == sentence


@pytest.mark.parametrize(
    ("machine", "action", "sentence"),
    [
        ("external02", "play", "If external01 still leads, it stops first, then external02 takes over."),
        (
            "external01",
            "disable",
            "If it still leads, it stops, external02 takes over; external01 takes no part in erp-orders until it is enabled again.",
        ),
        ("external02", "disable", "external02 takes no part in erp-orders until it is enabled again."),
    ],
)
def test_a_button_says_so_too_when_the_leader_is_silent(settled: FailoverGroup, machine: str, action: str, sentence: str) -> None:
    """Its agent is away: it may well lead on."""
    GroupMember.objects.filter(runtime__machine__name="external01").update(observed_at=timezone.now() - timedelta(seconds=40))
    group = FailoverGroup.objects.prefetch_related(failover.with_members()).get(pk=settled.pk)
    member = next(member for member in group.members.all() if member.runtime.machine.name == machine)
    assert failover.consequence(group, member, action, now=timezone.now()) == sentence


def test_stop_of_one_that_runs_alone_says_what_stops_it(settled: FailoverGroup) -> None:
    """It consumes, though it leads nothing: neither Stop nor Disable reaches it through routers without a majority."""
    for machine in ("external01", "external02"):
        factories.heard(settled, machine, S)
    group = FailoverGroup.objects.prefetch_related(failover.with_members()).get(pk=settled.pk)
    found = failover.verdict(group, now=timezone.now())
    for said_of_it in found.members:
        refused = boards.refusal_of("stop", said_of_it, found)
        assert refused.startswith(f"{said_of_it.machine} runs alone") and "nothing to stop" not in refused
        assert f"stop its runtime {said_of_it.machine}.erp on the page of {said_of_it.machine}" in refused
        assert failover.consequence(group, said_of_it.member, "stop", now=timezone.now()) == f"Not now: {refused}"
    with pytest.raises(NotReady, match=r"stop its runtime external01\.erp"):
        failover.switch(group, candidate=None, expected_leader=None, actor="olga", now=timezone.now())


@pytest.mark.parametrize(
    ("machine", "action", "sentence"),
    [
        ("external02", "play", "Not now: external02 is disabled in erp-orders: it takes over only once it is enabled."),
        ("external01", "stop", "Not now: no follower is ready to take over. Disable stops it all the same."),
        (
            "external01",
            "disable",
            "Stops here, nobody takes over: the data waits in the source; "
            "external01 takes no part in erp-orders until it is enabled again.",
        ),
        ("external02", "disable", "external02 is disabled already."),
        ("external02", "enable", "external02 takes part in erp-orders again: it follows, ready to take over."),
    ],
)
def test_a_button_says_so_too_when_the_other_is_disabled(settled: FailoverGroup, machine: str, action: str, sentence: str) -> None:
    factories.heard(settled, "external02", D)
    group = FailoverGroup.objects.prefetch_related(failover.with_members()).get(pk=settled.pk)
    member = next(member for member in group.members.all() if member.runtime.machine.name == machine)
    assert failover.consequence(group, member, action, now=timezone.now()) == sentence


# ------------------------------------------------------------------------------------------------------------------ balance


def balance(group: FailoverGroup, *, began: datetime | None = None, now: datetime | None = None, release: int = 1) -> balancing.Balanced:
    moment = now or timezone.now()
    began = began or moment - timedelta(seconds=5)
    return balancing.balance(group, release=release, actor="deployment 12", step_began_at=began, now=moment)


@pytest.mark.parametrize(
    ("preferred", "first", "second", "verdict", "reason"),
    [
        pytest.param("external01", {"status": L}, {}, "done", "external01 leads erp-orders, as preferred.", id="already there"),
        pytest.param("external01", {"status": L}, {"status": D}, "done", "as preferred", id="the other is disabled"),
        pytest.param(None, {"status": L}, {}, "done", "has no preferred leader: it stays where it is, on external01.", id="no preference"),
        pytest.param("external02", {"status": L}, {}, "asks", "is handed over from external01 to external02", id="hand-over due"),
        pytest.param("external01", {"status": L, "state": off}, {}, "waits", "its inbounds are Off", id="leads but off"),
        pytest.param("external01", {"status": L, "release": 7}, {}, "waits", "external01 runs release 7, not 1.", id="leader's release"),
        pytest.param("external01", {"status": L}, {"release": 7}, "waits", "external02 runs release 7, not 1.", id="follower's release"),
        pytest.param("external01", {"status": L}, {"release": None}, "waits", "external02 runs no release, not 1.", id="no release"),
        pytest.param("external01", {"status": L}, {"status": X}, "waits", "external02 is Isolated", id="the other is isolated"),
        pytest.param("external01", {"status": L}, {"state": on}, "waits", "Follower, but its inbounds are On", id="the other is on"),
        pytest.param("external01", {"status": L}, {"age": 40}, "waits", "external02 has not been heard from", id="the other is silent"),
        pytest.param("external01", {}, {}, "waits", "Nobody is known to lead", id="nobody leads yet"),
        pytest.param(None, {}, {}, "waits", "Nobody is known to lead", id="no preference, nobody leads yet"),
        pytest.param("external02", {"status": L}, {"status": D}, "fails", "preferred but disabled, and Balance never enables",
            id="disabled"),
        pytest.param("external02", {"status": L}, {"age": 12}, "waits", "external02 has not been heard from for 12 s", id="briefly silent"),
        pytest.param("external02", {"status": L}, {"age": 40}, "fails", "not been heard from for 40 s. erp-orders stays on external01.",
            id="silent"),
        pytest.param("external02", {"status": L}, {"observed_ready": False}, "waits", "external02 is not ready", id="not ready yet"),
        pytest.param("external02", {"status": L}, {"release": 7}, "waits", "external02 runs release 7, not 1.",
            id="not on the release yet"),
        pytest.param("external01", {"status": D}, {"status": D}, "fails", "Every member of erp-orders is disabled", id="all disabled"),
    ],
)  # fmt: skip
def test_one_look_of_balance(
    group: FailoverGroup, preferred: str | None, first: dict[str, Any], second: dict[str, Any], verdict: str, reason: str
) -> None:
    now = timezone.now()
    for machine, facts in (("external01", dict(first)), ("external02", dict(second))):
        at = now - timedelta(seconds=facts.pop("age", 0))
        factories.heard(group, machine, facts.pop("status", F), at=at, **facts)
    if preferred:
        prefer(group, preferred)
    look = balance(group, now=now)
    assert (look.done, look.failed) == (verdict == "done", verdict == "fails"), look.reason
    assert reason in look.reason
    asked = GroupRequest.objects.filter(cause="balance", machine=preferred or "", actor="deployment 12")
    assert asked.count() == GroupRequest.objects.count() == (1 if verdict == "asks" else 0)


def test_balance_asks_once_and_then_looks(settled: FailoverGroup) -> None:
    prefer(settled, "external02")
    assert "is handed over" in balance(settled).reason
    assert balance(settled).reason == "The hand-over of erp-orders to external02 is under way."
    assert GroupRequest.objects.count() == 1
    GroupRequest.objects.update(status="succeeded")
    factories.heard(settled, "external01", F, epoch=42)
    factories.heard(settled, "external02", L, epoch=42)
    look = balance(settled)
    assert (look.done, look.reason) == (True, "external02 leads erp-orders, as preferred.")


def test_balance_asks_again_after_a_failed_hand_over_but_not_at_once(settled: FailoverGroup) -> None:
    prefer(settled, "external02")
    began = timezone.now() - timedelta(seconds=5)
    balance(settled, began=began)
    GroupRequest.objects.update(status="failed", reason="Still draining.", ended_at=timezone.now())
    look = balance(settled, began=began)
    assert "The last hand-over failed: Still draining." in look.reason
    assert GroupRequest.objects.count() == 1
    GroupRequest.objects.update(ended_at=timezone.now() - timedelta(seconds=3))
    assert "is handed over" in balance(settled, began=began).reason
    assert GroupRequest.objects.count() == 2


def test_balance_lets_a_leader_work_that_did_not_drain(settled: FailoverGroup) -> None:
    """For each try it takes nothing for five seconds."""
    prefer(settled, "external02")
    began = timezone.now() - timedelta(seconds=60)
    balance(settled, began=began)
    GroupRequest.objects.update(
        status="failed", code="drain-limit", reason="Still draining.", ended_at=timezone.now() - timedelta(seconds=15)
    )
    assert "stays on external01 for now. The last hand-over failed: Still draining." in balance(settled, began=began).reason
    GroupRequest.objects.update(ended_at=timezone.now() - timedelta(seconds=21))
    assert "is handed over" in balance(settled, began=began).reason


@pytest.mark.parametrize("status", ["pending", "running", "succeeded"])
@pytest.mark.parametrize("machine", ["external01", ""])
def test_balance_does_not_override_a_person(settled: FailoverGroup, status: str, machine: str) -> None:
    prefer(settled, "external02")
    GroupRequest.objects.create(
        group=settled,
        kind="switch",
        machine=machine,
        cause="switch",
        actor="olga",
        status=status,
        expires_at=timezone.now() + timedelta(seconds=9),
    )
    look = balance(settled)
    assert look.failed
    assert look.reason.startswith("olga moved erp-orders")
    assert GroupRequest.objects.count() == 1


def test_balance_undoes_what_was_switched_before_its_step(settled: FailoverGroup) -> None:
    prefer(settled, "external02")
    GroupRequest.objects.create(
        group=settled, kind="switch", machine="external01", cause="switch", actor="olga", status="succeeded", expires_at=timezone.now()
    )
    assert "is handed over" in balance(settled, began=timezone.now()).reason


def test_a_switch_made_on_a_machine_is_not_overridden_either(settled: FailoverGroup) -> None:
    prefer(settled, "external02")
    LeadershipChange.objects.create(
        group=settled,
        epoch=41,
        runtime="external01.erp",
        cause="switch",
        actor="olga on external01",
        at=timezone.now(),
        heard_at=timezone.now(),
    )
    look = balance(settled)
    assert look.failed
    assert look.reason.startswith("olga on external01 moved erp-orders to external01.erp after this step began")
    assert not balance(settled, began=timezone.now()).failed
    LeadershipChange.objects.filter(epoch=41).update(at=timezone.now() - timedelta(hours=1))
    assert not balance(settled).failed, "it was made before, and only heard of meanwhile"


def test_balance_waits_while_routers_do_not_reach_each_other(settled: FailoverGroup) -> None:
    prefer(settled, "external02")
    peer = {"machine": "external02", "address": "10.0.0.2:7400", "reachable": False, "since": "", "error": "timed out"}
    Router.objects.filter(machine__name="external01").update(observed_peers=[peer])
    look = balance(settled)
    assert (look.done, look.failed) == (False, False)
    assert "external01 does not reach external02 at 10.0.0.2:7400: timed out." in look.reason
    assert not GroupRequest.objects.exists()


def test_a_group_without_a_peer_is_balanced_when_it_runs(group: FailoverGroup) -> None:
    group.members.get(runtime__machine__name="external02").delete()
    assert not balance(group).done
    factories.heard(group, "external01", S)
    assert (balance(group).done, balance(group).reason) == (True, "erp-orders has no peer; it runs on external01.")
    assert "external01 runs release 1, not 2." in balance(group, release=2).reason


def test_choosing_a_leader_makes_every_sibling_backup(test_environment: Environment, erp: Connector) -> None:
    factories.applied(test_environment, erp)
    first, second = Runtime.objects.filter(connector=erp).order_by("machine__name").select_related("machine", "connector")
    failover.prefer(first, protocol.Preference.LEADER)
    second.refresh_from_db()
    assert second.preference == protocol.Preference.BACKUP
    failover.prefer(second, protocol.Preference.LEADER)
    first.refresh_from_db()
    assert first.preference == protocol.Preference.BACKUP
    failover.prefer(second, protocol.Preference.NONE)
    first.refresh_from_db()
    assert first.preference == protocol.Preference.BACKUP


# ---------------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("status", "reason", "shown"),
    [
        pytest.param(L, "leads with epoch 1·41", "Leads with epoch 1·41.", id="a fragment becomes a sentence"),
        pytest.param(
            F, "external01.erp is asked to stop", "external01.erp is asked to stop.", id="the name of a runtime stays as it is written"
        ),
        pytest.param(
            X, "isolated: external02 cannot be reached on 10.0.0.12:2380 since 12:03:41 UTC (no answer within 1 s)",
            "external02 cannot be reached on 10.0.0.12:2380 since 12:03:41 UTC (no answer within 1 s).", id="Isolated is not said twice",
        ),
        pytest.param(
            D, "isolated: no answer", "Disabled until enabled again; besides, it is isolated: no answer.", id="disabled and cut off"
        ),
        pytest.param(D, "disabled until enabled again, by olga", "Disabled until enabled again, by olga.", id="disabled by whom"),
        pytest.param(S, "this machine has no router: deploy the routers", "This machine has no router: deploy the routers.", id="alone"),
    ],
)  # fmt: skip
def test_every_status_has_its_reason_in_one_sentence(group: FailoverGroup, status: Status, reason: str, shown: str) -> None:
    factories.heard(group, "external01", status, observed_reason=reason)
    said = next(said for said in judge(group, timezone.now()).members if said.machine == "external01")
    assert (said.status, said.reason) == (status, shown)


@pytest.mark.parametrize(
    ("reachable", "says"),
    [
        (False, "external01 cannot be reached from external02 on 10.0.0.11:2380 since 12:03:41 UTC."),
        (True, "external02 still reaches its router, so its agent or its way to the portal is at fault."),
    ],
)
def test_of_a_silent_machine_its_siblings_tell(settled: FailoverGroup, external02: Machine, reachable: bool, says: str) -> None:
    now = timezone.now().replace(hour=13)
    peer = {"machine": "external01", "address": "10.0.0.11:2380", "reachable": reachable, "since": f"{now:%Y-%m-%d}T12:03:41Z", "error": ""}
    Router.objects.filter(machine=external02).update(observed_peers=[peer])
    hear(settled, "external01", (L, 41, 40, on), now)
    hear(settled, "external02", (F, 41, 0, off), now)
    said = next(said for said in judge(settled, now).members if said.machine == "external01")
    assert said.reason == f"external01 has not been heard from for 40 s; it then was Leader, On; {says}"


def test_of_a_machine_that_reports_its_siblings_tell_nothing(settled: FailoverGroup, external02: Machine) -> None:
    """A release brings the group to its runtime in a moment: neither its agent nor its way to the portal is at fault."""
    now = timezone.now()
    peer = {"machine": "external01", "address": "10.0.0.11:2380", "reachable": True, "since": "", "error": ""}
    Router.objects.filter(machine=external02).update(observed_peers=[peer])
    reason = "external01.erp runs release 1, which does not have this group: a deployment brings it"
    factories.heard(settled, "external01", Status.UNKNOWN, observed_reason=reason)
    said = next(said for said in judge(settled, now).members if said.machine == "external01")
    assert said.reason == f"{reason}."


def test_one_that_runs_alone_beside_a_leader_is_said_to_be_consumed_twice(settled: FailoverGroup) -> None:
    hear(settled, "external02", (S, 0, 0, on), timezone.now())
    found = judge(settled, timezone.now())
    assert found.leader is not None and found.leader.machine == "external01"
    assert "external01 leads and external02 runs alone: erp-orders is consumed 2 times at once." in found.problems


def test_the_same_address_in_two_environments_is_warned_of(
    group: FailoverGroup, routers_addressed: None, acceptance: Environment, erp: Connector
) -> None:
    """It may be right, in two networks; on one host only one can run, and neither ever joins the other."""
    factories.applied(acceptance, erp)
    addresses: dict[str, tuple[str | None, str | None]] = {
        "external01": ("10.0.0.1", "7400"), "external02": ("10.0.0.2", "7401"), "core01": (None, None),
    }  # fmt: skip
    (warning,) = fleet.shared_addresses(acceptance, addresses)
    assert warning == (
        "external01 has the address 10.0.0.1:7400 that external01 of Webshop Test has too: on one host only one of them can run. "
        "If it is one, give external01 another Failover port (external01.failover.port)."
    )
    assert not fleet.shared_addresses(group.environment, addresses), "its own addresses are its own"
    fleet.assign_routers(
        acceptance, {name: (f"10.0.0.{number}", 7400) for number, name in enumerate(("external01", "external02", "core01"), 1)}
    )
    ours, theirs = (
        ordering.orders_for(Machine.objects.get(environment=environment, name="external01"), now=timezone.now())
        for environment in (group.environment, acceptance)
    )
    assert ours.router is not None and theirs.router is not None
    assert ours.router.members == theirs.router.members and ours.router.cluster_token != theirs.router.cluster_token
    assert ours.namespace != theirs.namespace
