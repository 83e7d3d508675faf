"""Alarms of their own: leads but Off, in part, or leads and hears nothing of its source."""

from datetime import timedelta
from threading import Barrier, Thread
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from runtimes import alarms, failover, fleet, solitude, tasks
from runtimes.models import Alarm, AlarmKind, FailoverGroup, GroupMember, Machine, Runtime
from runtimes.protocol import ALONE_BECAUSE, FlowReport, RanAlone, State, Status
from tests import factories
from tests.runtimes.conftest import NOW, said, said_of

L, F, D, S, X = Status.LEADER, Status.FOLLOWER, Status.DISABLED, Status.SINGLE_NODE, Status.ISOLATED
on, off, partly = State.ON, State.OFF, State.PARTLY


def flow(group: FailoverGroup, name: str = "erp-orders", *, on: bool = True, reason: str = "", silent_since: str = "") -> dict[str, Any]:
    return {"flow": name, "name": name, "on": on, "group": group.group.key, "reason": reason, "silent_since": silent_since}


def runs(machine: str, *flows: dict[str, Any]) -> None:
    Runtime.objects.filter(machine__name=machine).update(observed_flows=list(flows))


def found(group: FailoverGroup) -> list[alarms.Found]:
    rows = FailoverGroup.objects.prefetch_related(failover.with_members()).select_related("group")
    return alarms.of(failover.verdict(rows.get(pk=group.pk), now=timezone.now()))


@pytest.fixture
def silent_since() -> str:
    return (timezone.now() - timedelta(seconds=45)).isoformat()


@pytest.mark.parametrize(
    ("status", "state", "kind"),
    [
        pytest.param(L, on, None, id="a leader that is On is no alarm"),
        pytest.param(L, off, AlarmKind.OFF, id="a leader that is Off"),
        pytest.param(S, off, AlarmKind.OFF, id="a single node that is Off"),
        pytest.param(S, on, AlarmKind.ALONE, id="a member that runs alone"),
        pytest.param(L, partly, AlarmKind.PARTLY, id="a leader in part"),
        pytest.param(F, partly, AlarmKind.PARTLY, id="a follower in part"),
        pytest.param(F, off, None, id="a follower that is Off"),
        pytest.param(F, on, AlarmKind.STRAY, id="a follower that is On"),
        pytest.param(D, on, AlarmKind.STRAY, id="a disabled member that is On"),
        pytest.param(X, off, None, id="an isolated member is a problem, and no alarm of this kind"),
    ],
)
def test_what_is_an_alarm(group: FailoverGroup, status: Status, state: State, kind: AlarmKind | None) -> None:
    factories.heard(group, "external02", F)
    factories.heard(group, "external01", status, state=state)
    runs("external01", flow(group, on=state != off), flow(group, "erp-stock", on=False, reason="folder /data/in is missing"))
    said = found(group)
    assert [alarm.kind for alarm in said] == ([kind] if kind else [])
    if kind in (AlarmKind.OFF, AlarmKind.PARTLY):
        assert "erp-stock is off: folder /data/in is missing." in said[0].sentence
    assert all(alarm.remedy for alarm in said)


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        (L, partly, "draining before external02.erp takes over"),
        (L, partly, "draining: the runtime is asked to stop"),
        (D, on, "draining: disabled until enabled again, by olga"),
    ],
)
def test_a_member_that_drains_is_no_alarm(group: FailoverGroup, status: Status, state: State, reason: str) -> None:
    """A command may take seconds to stop, when the other inbounds of its group are Off already."""
    factories.heard(group, "external02", F)
    factories.heard(group, "external01", status, state=state, observed_reason=reason)
    runs("external01", flow(group), flow(group, "erp-stock", on=False))
    assert not found(group)


def test_a_leader_whose_target_takes_nothing(group: FailoverGroup, silent_since: str) -> None:
    factories.heard(group, "external01", L)
    factories.heard(group, "external02", F)
    away = flow(group, reason="the server erp.example cannot be reached; items wait in the source")
    runs("external01", {**away, "undelivered_since": silent_since}, flow(group, "erp-stock"))
    (alarm,) = found(group)
    shown = failover.clock(silent_since, now=timezone.now())
    assert (alarm.kind, alarm.subject) == (AlarmKind.SILENT, "erp-orders")
    assert alarm.sentence == (
        f"external01 leads erp-orders and is On, but the target of erp-orders has taken nothing since {shown}: "
        "the server erp.example cannot be reached; items wait in the source."
    )
    assert alarm.remedy.startswith("Look at the target and at the runtime's log") and "Play on external02" in alarm.remedy


def test_a_leader_that_hears_nothing_of_its_source(group: FailoverGroup, silent_since: str) -> None:
    factories.heard(group, "external01", L)
    factories.heard(group, "external02", F)
    other = {**flow(group, "free", silent_since=silent_since), "group": None}
    runs("external01", flow(group, silent_since=silent_since, reason="queue orders cannot be reached"), flow(group, "erp-stock"), other)
    (alarm,) = found(group)
    assert (alarm.kind, alarm.subject) == (AlarmKind.SILENT, "erp-orders")
    shown = failover.clock(silent_since, now=timezone.now())
    assert alarm.sentence == (
        f"external01 leads erp-orders and is On, but its inbound erp-orders has had no answer of its source since {shown}: "
        "queue orders cannot be reached."
    )
    assert "Play on external02 moves the leadership there" in alarm.remedy


def test_one_that_runs_in_part_is_not_said_to_be_on(group: FailoverGroup, silent_since: str) -> None:
    factories.heard(group, "external01", L, state=partly)
    factories.heard(group, "external02", F)
    runs("external01", flow(group, silent_since=silent_since), flow(group, "erp-stock", on=False, reason="folder /data/in is missing"))
    _, silent = found(group)
    assert silent.sentence.startswith("external01 runs erp-orders only in part, and its inbound erp-orders has had no answer")


@pytest.mark.parametrize("status", [F, X, D])
def test_only_who_leads_is_silent(group: FailoverGroup, status: Status, silent_since: str) -> None:
    factories.heard(group, "external01", status)
    runs("external01", flow(group, on=False, silent_since=silent_since))
    assert not found(group)


def test_of_a_silent_machine_nothing_is_said(group: FailoverGroup) -> None:
    factories.heard(group, "external01", L, state=off, at=timezone.now() - timedelta(seconds=40))
    assert not found(group)


# ------------------------------------------------------------------------------------------------------------------- history


def look(after: float = 0.0) -> None:
    """One look of beat, so many seconds later."""
    rows = FailoverGroup.objects.select_related("group").prefetch_related(failover.with_members())
    GroupMember.objects.update(observed_at=timezone.now() + timedelta(seconds=after))
    alarms.watch(rows, now=timezone.now() + timedelta(seconds=after))


def test_an_alarm_is_raised_once_it_stands_and_cleared_by_itself(group: FailoverGroup) -> None:
    factories.heard(group, "external02", F)
    factories.heard(group, "external01", L, state=off)
    look()
    assert not alarms.shown().exists(), "a take-over passes through Off"
    look(after=3.5)
    raised = alarms.shown().get()
    assert (raised.kind, raised.runtime, raised.cleared_at) == ("leader-but-off", "external01.erp", None)
    look(after=5)
    assert alarms.shown().count() == 1
    factories.heard(group, "external01", L)
    look(after=7)
    cleared = alarms.shown().get()
    assert cleared.cleared_at is not None and cleared.cleared_because == "external01 is Leader, On."
    factories.heard(group, "external01", L, state=off)
    look(after=9)
    look(after=13)
    (again,) = alarms.shown()
    assert (again.pk, again.cleared_at, again.cleared_because) == (raised.pk, None, ""), "back within a minute: the same one goes on"
    factories.heard(group, "external01", L)
    look(after=15)
    factories.heard(group, "external01", L, state=off)
    look(after=80)
    look(after=84)
    assert alarms.shown().count() == 2, "the next one is another"


def test_where_alerting_is_off_nothing_is_raised_until_it_is_on_again(group: FailoverGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet: set[int] = {group.environment_id}
    monkeypatch.setattr(alarms, "silencers", [lambda environments: quiet])
    factories.heard(group, "external02", F)
    factories.heard(group, "external01", L, state=off)
    rows, now = FailoverGroup.objects.select_related("group").prefetch_related(failover.with_members()), timezone.now()
    for seconds in (0, 2, 4):
        assert alarms.watch(rows.all(), now=now + timedelta(seconds=seconds)) == (0, 0)
    assert not alarms.shown().exists()
    quiet.clear()
    assert alarms.watch(rows.all(), now=now + timedelta(seconds=5)) == (1, 0)
    assert alarms.shown().get().since == now, "it tells since when"


def test_what_only_passed_leaves_nothing(group: FailoverGroup) -> None:
    factories.heard(group, "external01", L, state=off)
    look()
    factories.heard(group, "external01", L)
    look(after=2)
    assert not Alarm.objects.exists()


def test_what_is_not_known_any_more_is_cleared_saying_so(group: FailoverGroup) -> None:
    factories.heard(group, "external01", L, state=off)
    look()
    look(after=4)
    GroupMember.objects.update(observed_at=timezone.now() - timedelta(seconds=40))
    tasks.watch_alarms()
    assert "Not known any more: external01 has not been heard from" in Alarm.objects.get().cleared_because


@pytest.mark.django_db(transaction=True)
def test_many_watchers_raise_and_clear_once(group: FailoverGroup, file_database: None) -> None:
    factories.heard(group, "external01", L, state=off)

    def race() -> None:
        barrier = Barrier(5)

        def work() -> None:
            barrier.wait()
            tasks.watch_alarms()
            connection.close()

        threads = [Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    race()
    Alarm.objects.update(since=timezone.now() - timedelta(seconds=5))
    race()
    assert alarms.shown().count() == 1
    factories.heard(group, "external01", L)
    race()
    assert Alarm.objects.count() == 1 and Alarm.objects.get().cleared_at is not None


def test_looking_costs_the_same_queries_however_many_groups(group: FailoverGroup) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            tasks.watch_alarms()
        return len(queries)

    one = cost()
    members = [member.runtime for member in group.members.select_related("runtime")]
    for number in range(9):
        more = group.group.connector.groups.create(name=f"more-{number}")
        another = FailoverGroup.objects.create(environment=group.environment, group=more, name=more.name)
        GroupMember.objects.bulk_create([GroupMember(group=another, runtime=runtime) for runtime in members])
    assert cost() == one <= 8


def test_a_report_brings_it(external01: Machine, erp01: Runtime, group: FailoverGroup, silent_since: str) -> None:
    """A clock a day ahead does not make the source answer tomorrow."""
    theirs = "2026-11-23T11:59:00+00:00"
    flows = [FlowReport(flow="f", name="erp-orders", on=True, group=group.group.key, silent_since=theirs, last_poll=theirs)]
    report = said(1, at="2026-11-23T12:00:00Z", runtimes=[said_of(erp01, group, L, epoch=41, flows=flows)])
    fleet.record_report(external01, report, now=NOW)
    erp01.refresh_from_db()
    assert erp01.observed_flows[0]["silent_since"] == "2026-11-22T11:59:00.000Z"


# --------------------------------------------------------------------------------------------------------------- pages and API


@pytest.fixture
def alarmed(group: FailoverGroup, silent_since: str) -> FailoverGroup:
    factories.heard(group, "external01", L)
    factories.heard(group, "external02", F)
    runs("external01", flow(group, silent_since=silent_since))
    look()
    Alarm.objects.update(since=timezone.now() - timedelta(seconds=10), raised_at=timezone.now())
    GroupMember.objects.update(observed_at=timezone.now())
    Machine.objects.update(last_report_at=timezone.now())
    return group


@pytest.mark.parametrize(
    "path",
    [
        "/projects/webshop/test/groups/",
        "/projects/webshop/test/machines/external01/?tab=start-stop&view=groups",
        "/",
        "/projects/webshop/test/groups/{pk}/history/",
    ],
)
def test_every_page_that_shows_the_group_shows_the_alarm(client: Client, viewer: User, alarmed: FailoverGroup, path: str) -> None:
    client.force_login(viewer)
    text = client.get(path.format(pk=alarmed.pk)).content.decode()
    assert "its inbound erp-orders has had no answer of its source since" in text
    assert "Healthy" not in text


def test_the_api_lists_alarms(client: Client, viewer: User, stranger: User, alarmed: FailoverGroup) -> None:
    client.force_login(viewer)
    for query, count in (
        ("", 1),
        ("?open=true", 1),
        ("?open=false", 0),
        ("?kind=partly", 0),
        ("?machine=external02", 0),
        (f"?group={alarmed.pk}", 1),
    ):
        answer = client.get(f"/api/v1/alarms/{query}").json()
        assert answer["count"] == count, query
    row = client.get("/api/v1/alarms/").json()["results"][0]
    assert (row["kind"], row["flow"], row["runtime"], row["cleared_at"]) == ("leader-but-silent", "erp-orders", "external01.erp", None)
    told = client.get(f"/api/v1/groups/{alarmed.pk}/").json()
    assert told["healthy"] is False and [alarm["kind"] for alarm in told["alarms"]] == ["leader-but-silent"]
    assert client.get("/api/v1/alarms/?kind=loud").status_code == 400
    client.force_login(stranger)
    assert client.get("/api/v1/alarms/").json()["count"] == 0


def ran_alone(group: FailoverGroup, until: str = "") -> RanAlone:
    return RanAlone(
        group=group.group.key, runtime="external01.erp", reason=f"{ALONE_BECAUSE}external02 cannot be reached",
        since="2026-11-22T11:50:00Z", until=until,
    )  # fmt: skip


@pytest.mark.parametrize(
    "reason", [f"{ALONE_BECAUSE}external02 cannot be reached", f"{ALONE_BECAUSE.capitalize()}external02 cannot be reached."]
)
def test_why_it_runs_alone_is_said_once(reason: str) -> None:
    said_so = solitude.sentence("external01", "erp-orders", reason)
    assert said_so == "external01 runs erp-orders alone: external02 cannot be reached. Other members may consume too, and items come twice."


def test_a_member_that_ran_alone_unheard_is_told_afterwards(group: FailoverGroup, external01: Machine, erp01: Runtime) -> None:
    """After the cut: from when to when items may have come twice."""
    told = [ran_alone(group), ran_alone(group, "2026-11-22T11:55:00Z")]
    for sequence in (1, 2):  # the answer to the first report got lost
        fleet.record_report(external01, said(sequence, runtimes=[said_of(erp01, group, F, epoch=41)], alone=told), now=NOW)
    row = Alarm.objects.get()
    assert (row.kind, row.runtime, row.since.minute, row.cleared_at.minute) == ("runs-alone", "external01.erp", 50, 55)
    assert row.raised_at == row.since and "external02 cannot be reached" in row.sentence and "alone for 5 min." in row.cleared_because


def test_a_member_that_runs_alone_before_the_portals_eyes_is_one_alarm(group: FailoverGroup, external01: Machine, erp01: Runtime) -> None:
    alone = said_of(erp01, group, S, state=on)
    fleet.record_report(external01, said(1, runtimes=[alone], alone=[ran_alone(group)]), now=timezone.now())
    tasks.watch_alarms()
    assert Alarm.objects.get().cleared_at is None
    over = said(2, runtimes=[said_of(erp01, group, F, epoch=41)], alone=[ran_alone(group, "2026-11-22T11:55:00Z")])
    fleet.record_report(external01, over, now=timezone.now())
    tasks.watch_alarms()
    assert Alarm.objects.get().cleared_at is not None


def test_a_machine_tells_nothing_of_another_ones_members(group: FailoverGroup, external02: Machine, erp02: Runtime) -> None:
    fleet.record_report(external02, said(1, runtimes=[said_of(erp02, group, F)], alone=[ran_alone(group)]), now=NOW)
    assert not Alarm.objects.exists()


def test_a_follower_is_not_ready_for_what_it_says_now_and_not_for_what_it_failed_at_while_it_led(group: FailoverGroup) -> None:
    factories.heard(group, "external01", L)
    gone = "follows external01.erp, which holds epoch 1·7; it is not ready to take over: flow erp-orders: the folder /data/in is gone"
    factories.heard(group, "external02", F, observed_ready=False, observed_reason=gone)
    runs("external02", flow(group, on=False, reason="http://shop.example/in answered 503; items wait in the source"))
    rows = FailoverGroup.objects.prefetch_related(failover.with_members()).select_related("group")
    verdict = failover.verdict(rows.get(pk=group.pk), now=timezone.now())
    (follower,) = [said for said in verdict.members if said.machine == "external02"]
    assert failover.obstacle(verdict, follower) == "external02 is not ready: flow erp-orders: the folder /data/in is gone."
