"""Operate › Groups and Timeline, as people with each role see and use them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from portal.models import Connector, Environment, Group
from runtimes import boards, clocks, fleet, protocol, timeline
from runtimes.models import (
    Alarm,
    AlarmKind,
    Bundle,
    FailoverGroup,
    GroupMember,
    GroupRequest,
    LeadershipChange,
    LeadershipEnd,
    Machine,
    Runtime,
)
from tests import factories
from tests.runtimes.conftest import said, said_of

Status, State = protocol.Status, protocol.State
HTMX = {"HX-Request": "true"}


def runtimes_of(group: FailoverGroup) -> dict[str, Runtime]:
    found = Runtime.objects.filter(environment=group.environment).select_related("machine", "connector")
    return {runtime.machine.name: runtime for runtime in found}


def heard(group: FailoverGroup, *, leader: str = "external01", state: State = State.ON, sequence: int = 1) -> None:
    """Both agents reported just now: one leads, the other is ready to."""
    for name, runtime in runtimes_of(group).items():
        bundle, _ = Bundle.objects.get_or_create(
            digest="d" * 64, defaults={"environment": group.environment, "release_number": 1, "content": b"x"}
        )
        Runtime.objects.filter(pk=runtime.pk).update(desired_bundle=bundle)
        status = Status.LEADER if name == leader else Status.FOLLOWER
        report = said_of(runtime, group, status, epoch=41, state=state if name == leader else None, digest="d" * 64)
        assert fleet.record_report(runtime.machine, said(sequence, runtimes=[report]), now=timezone.now())


def act_url(group: FailoverGroup, machine: str, act: str) -> str:
    return f"/projects/webshop/{group.environment.kind}/groups/{group.pk}/{machine}/{act}/"


@pytest.fixture
def groups_page(group: FailoverGroup) -> str:
    heard(group)
    return "/projects/webshop/test/groups/"


# ------------------------------------------------------------------------------------------------------------------- reading


def test_a_viewer_reads_who_leads_and_is_told_which_role_may_move_it(client: Client, viewer: User, groups_page: str) -> None:
    client.force_login(viewer)
    text = client.get(groups_page).content.decode()
    assert 'data-status="leader"' in text and 'data-status="follower"' in text and "Healthy" in text
    assert "need the role operator" in text and "/play/" not in text


def test_a_stranger_learns_nothing(client: Client, stranger: User, groups_page: str, group: FailoverGroup) -> None:
    client.force_login(stranger)
    assert client.get(groups_page).status_code == 404
    assert client.post(act_url(group, "external02", "play")).status_code == 404


def test_the_part_asks_for_itself_and_is_the_same_page_without_its_frame(client: Client, operator: User, groups_page: str) -> None:
    client.force_login(operator)
    part = client.get(groups_page, headers=HTMX).content.decode()
    assert "<html" not in part and 'hx-trigger="every 2s"' in part and 'id="groups"' in part
    assert "<html" in client.get(groups_page).content.decode()


def test_a_leader_that_is_off_is_an_alarm_not_a_green_line(client: Client, viewer: User, group: FailoverGroup) -> None:
    heard(group, state=State.OFF)
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/groups/?show=problems").content.decode()
    assert "Leader but Off" in text and "is-alarm" in text and "Not healthy" in text


def test_a_member_that_starts_anew_is_a_problem_that_is_told_once(client: Client, viewer: User, group: FailoverGroup) -> None:
    """It is not healthy and no standby either: one sentence says both."""
    heard(group)
    starting = "the process of external02.erp is starting"
    GroupMember.objects.filter(runtime__machine__name="external02").update(observed_status=Status.ISOLATED, observed_reason=starting)
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/groups/").content.decode()
    problems = re.search(r'<ul class="problems">(.*?)</ul>', text, re.DOTALL)
    assert problems is not None and problems[1].count("external02 is Isolated: The process of external02.erp is starting.") == 1


def test_a_partly_running_leader_is_an_alarm(client: Client, viewer: User, group: FailoverGroup) -> None:
    heard(group, state=State.PARTLY)
    client.force_login(viewer)
    assert "Partly: some inbounds" in client.get("/projects/webshop/test/groups/").content.decode()


def test_a_silent_member_is_unknown_and_its_state_is_what_it_was(client: Client, viewer: User, group: FailoverGroup) -> None:
    heard(group)
    GroupMember.objects.filter(runtime__machine__name="external01").update(observed_at=timezone.now() - timedelta(seconds=40))
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/groups/").content.decode()
    assert 'data-status="unknown"' in text and "was On" in text and re.search("has not been heard from for 4[0-9] s", text)


def test_what_happened_last_is_told_with_cause_and_gap(client: Client, viewer: User, group: FailoverGroup) -> None:
    heard(group, leader="external02")
    LeadershipChange.objects.create(
        group=group,
        epoch=41,
        runtime="external02.erp",
        previous="external01.erp",
        cause="crash",
        at=timezone.now(),
        heard_at=timezone.now(),
        gap_seconds=0.04,
    )
    client.force_login(viewer)
    text = " ".join(client.get("/projects/webshop/test/groups/").content.decode().split())
    assert "<strong>external02</strong> took over from <strong>external01</strong>" in text
    assert "crash: its process ended; nobody led for 40 ms" in text


def test_without_groups_the_next_step_is_named(client: Client, viewer: User, webshop: Any) -> None:
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/groups/").content.decode()
    assert "No groups run here yet" in text and "/projects/webshop/test/architecture/" in text


@pytest.mark.parametrize("path", ["groups/", "timeline/"])
def test_more_groups_need_no_more_queries(client: Client, operator: User, group: FailoverGroup, erp: Connector, path: str) -> None:
    heard(group)
    client.force_login(operator)
    address = f"/projects/webshop/test/{path}"
    client.get(address)
    with CaptureQueriesContext(
        connection,
    ) as few:
        client.get(address)
    for number in range(4):
        more = Group.objects.create(connector=erp, name=f"more-{number}")
        another = FailoverGroup.objects.create(environment=group.environment, group=more, name=more.name)
        for runtime in runtimes_of(group).values():
            GroupMember.objects.create(group=another, runtime=runtime)
        for epoch in (1, 2):
            LeadershipChange.objects.create(
                group=another, epoch=epoch, runtime="external01.erp", cause="first", at=timezone.now(), heard_at=timezone.now()
            )
        expires = timezone.now() + timedelta(minutes=1)
        GroupRequest.objects.create(group=another, kind="switch", cause="switch", actor="operator", expires_at=expires)
    with CaptureQueriesContext(connection) as many:
        client.get(address)
    assert len(many) <= len(few) + 2, "only the newest change and request are read besides, whatever the number of groups"


# -------------------------------------------------------------------------------------------------------------------- acting


def test_play_says_its_consequence_before_it_is_done(client: Client, operator: User, groups_page: str, group: FailoverGroup) -> None:
    client.force_login(operator)
    dialog = client.get(act_url(group, "external02", "play"), headers=HTMX).content.decode()
    assert "external01 stops first, then external02 takes over" in dialog and "<html" not in dialog
    assert GroupRequest.objects.count() == 0, "looking does nothing"


def test_play_asks_for_the_hand_over_and_the_page_shows_how_it_goes(
    client: Client, operator: User, groups_page: str, group: FailoverGroup
) -> None:
    client.force_login(operator)
    answer = client.post(act_url(group, "external02", "play"), {"expected_leader": "external01"}, follow=True)
    request = GroupRequest.objects.get()
    assert (request.kind, request.machine, request.actor, request.expected_epoch) == ("switch", "external02", "operator", 41)
    text = answer.content.decode()
    assert "Hand-over to external02" in text and 'data-status="pending"' in text and "to lead, asked by operator" in text


def test_a_return_at_the_end_of_a_switch_is_not_said_to_be_asked_for_now(
    client: Client, operator: User, groups_page: str, group: FailoverGroup
) -> None:
    client.force_login(operator)
    client.post(act_url(group, "external02", "play"), {"expected_leader": "external01"})
    GroupRequest.objects.update(cause="expiry")
    text = client.get(groups_page).content.decode()
    assert "as the switch for a time by operator is over" in text and "asked by operator" not in text


def test_stop_on_the_leader_lets_any_ready_follower_take_over(
    client: Client, operator: User, groups_page: str, group: FailoverGroup
) -> None:
    client.force_login(operator)
    client.post(act_url(group, "external01", "stop"))
    assert (GroupRequest.objects.get().kind, GroupRequest.objects.get().machine) == ("switch", "")


@pytest.mark.parametrize("act", ["disable", "enable"])
def test_disable_and_enable_are_asked_for(client: Client, operator: User, groups_page: str, group: FailoverGroup, act: str) -> None:
    client.force_login(operator)
    client.post(act_url(group, "external02", act))
    assert (GroupRequest.objects.get().kind, GroupRequest.objects.get().machine) == (act, "external02")


def test_a_leader_that_moved_meanwhile_is_refused_in_the_dialog(
    client: Client, operator: User, groups_page: str, group: FailoverGroup
) -> None:
    client.force_login(operator)
    answer = client.post(act_url(group, "external01", "play"), {"expected_leader": "external02"}, headers=HTMX)
    said = answer.content.decode()
    assert answer.status_code == 200 and "external02 does not lead" in said
    assert "external01 leads already." in said and 'type="submit"' not in said, "there is nothing left to ask for"
    assert GroupRequest.objects.count() == 0


def test_a_second_request_is_refused_while_one_is_under_way(client: Client, operator: User, groups_page: str, group: FailoverGroup) -> None:
    client.force_login(operator)
    client.post(act_url(group, "external02", "play"))
    answer = client.post(act_url(group, "external02", "disable"), headers=HTMX)
    assert answer.status_code == 200 and 'role="alert"' in answer.content.decode()
    assert GroupRequest.objects.count() == 1
    assert "is under way" in client.get(groups_page).content.decode()


def test_a_failed_request_shows_its_reason(client: Client, operator: User, groups_page: str, group: FailoverGroup) -> None:
    client.force_login(operator)
    client.post(act_url(group, "external02", "play"))
    reason = "external01 could not drain within 5 s and goes on leading."
    GroupRequest.objects.update(status="failed", code="drain-limit", reason=reason, ended_at=timezone.now())
    text = client.get(groups_page).content.decode()
    assert reason in text and 'data-status="failed"' in text


@pytest.mark.parametrize(
    ("ended_ago", "leader", "told"),
    [
        pytest.param(2, "external01", True, id="the machines have not reported yet"),
        pytest.param(60, "external02", True, id="it is so"),
        pytest.param(60, "external01", False, id="leadership moved on since"),
        pytest.param(601, "external02", False, id="it was a while ago"),
    ],
)
def test_how_a_wish_ended_is_told_as_long_as_it_is_so(
    client: Client, operator: User, groups_page: str, group: FailoverGroup, ended_ago: int, leader: str, told: bool
) -> None:
    client.force_login(operator)
    client.post(act_url(group, "external02", "play"))
    ended_at = timezone.now() - timedelta(seconds=ended_ago)
    GroupRequest.objects.update(status="succeeded", reason="external02.erp leads", ended_at=ended_at)
    heard(group, leader=leader, sequence=2)
    text = client.get(groups_page).content.decode()
    assert ("external02.erp leads" in text) is told
    assert ("it ended at <time" in text) is told


def test_a_disable_that_is_carried_out_is_told_by_what_is_so_since(
    client: Client, operator: User, groups_page: str, group: FailoverGroup
) -> None:
    client.force_login(operator)
    client.post(act_url(group, "external01", "disable"))
    reason = "external01.erp, which led, is disabled: it stops its inbounds, gives leadership up, and leads no more until it is enabled"
    GroupRequest.objects.update(status="succeeded", reason=reason, ended_at=timezone.now())
    assert "it stops its inbounds" in client.get(groups_page).content.decode()
    heard(group, leader="external02", sequence=2)
    off = GroupMember.objects.filter(runtime__machine__name="external01")
    off.update(observed_status=Status.DISABLED, observed_state=State.OFF, observed_disabled=True)
    text = client.get(groups_page).content.decode()
    assert "external01 is disabled and Off until it is enabled; external02 leads" in text and "it stops its inbounds" not in text
    off.update(observed_status=Status.FOLLOWER, observed_disabled=False)
    GroupRequest.objects.update(ended_at=timezone.now() - timedelta(seconds=60))
    assert "Disable external01</strong>" not in client.get(groups_page).content.decode(), "enabled again on the machine"


@pytest.mark.parametrize("act", ["play", "stop", "disable", "enable"])
@pytest.mark.parametrize("person", ["viewer", "developer"])
def test_below_operator_nothing_moves(
    client: Client, request: pytest.FixtureRequest, groups_page: str, group: FailoverGroup, person: str, act: str
) -> None:
    client.force_login(request.getfixturevalue(person))
    assert client.post(act_url(group, "external02", act)).status_code == 403
    assert GroupRequest.objects.count() == 0


def test_on_production_the_name_is_typed(client: Client, operator: User, erp: Connector) -> None:
    production = Environment.objects.get(project=erp.project, kind="production")
    group = factories.applied(production, erp)
    heard(group)
    client.force_login(operator)
    refused = client.post(act_url(group, "external02", "play"), {"confirm": "erp-order"}, headers=HTMX)
    assert "type erp-orders to go on" in refused.content.decode() and GroupRequest.objects.count() == 0
    done = client.post(act_url(group, "external02", "play"), {"confirm": "erp-orders"}, headers=HTMX)
    assert done.headers["HX-Redirect"] and GroupRequest.objects.count() == 1


def test_nobody_is_sent_to_another_site_afterwards(client: Client, operator: User, groups_page: str, group: FailoverGroup) -> None:
    client.force_login(operator)
    answer = client.post(act_url(group, "external02", "play") + "?next=https://evil.example/")
    assert answer.headers["Location"] == groups_page


def test_the_isolation_policy_is_chosen_with_its_risk_in_words(
    client: Client, operator: User, groups_page: str, group: FailoverGroup
) -> None:
    client.force_login(operator)
    assert "Without a majority: Stop" in client.get(groups_page).content.decode()
    url = f"{groups_page}{group.pk}/isolation/"
    dialog = client.get(url, headers=HTMX).content.decode()
    assert "runs on both sides when the link is cut: two may consume at once" in dialog
    assert GroupRequest.objects.count() == 0, "looking does nothing"
    page = client.post(url, {"policy": "run-alone"}, follow=True).content.decode()
    assert (GroupRequest.objects.get().kind, GroupRequest.objects.get().policy) == ("policy", "run-alone")
    assert "Isolation policy: run alone" in page
    assert "Run alone (not yet known to external01, external02)" in page, "the fact beside the wish"


def test_below_operator_no_policy_is_set(client: Client, developer: User, groups_page: str, group: FailoverGroup) -> None:
    client.force_login(developer)
    assert client.post(f"{groups_page}{group.pk}/isolation/", {"policy": "run-alone"}).status_code == 403
    assert f"{group.pk}/isolation/" not in client.get(groups_page).content.decode()


@pytest.mark.parametrize(("machine", "act"), [("external09", "play"), ("external02", "dance"), ("core01", "play")])
def test_what_does_not_exist_is_not_found(
    client: Client, operator: User, groups_page: str, group: FailoverGroup, machine: str, act: str
) -> None:
    client.force_login(operator)
    assert client.get(act_url(group, machine, act)).status_code == 404


# ------------------------------------------------------------------------------------------------------------------ timeline

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR = timeline.Window(NOON - timedelta(hours=1), NOON)


def change(epoch: int, machine: str, minutes: float, previous: str = "", gap: float | None = None) -> LeadershipChange:
    at = NOON - timedelta(minutes=minutes)
    old = f"{previous}.erp" if previous else ""
    return LeadershipChange(epoch=epoch, runtime=f"{machine}.erp", previous=old, cause="crash", at=at, gap_seconds=gap)


@pytest.mark.parametrize(("actor", "words"), [("operator", "switched by hand"), ("deployment 3", "switched by a step of the plan")])
def test_a_switch_says_whether_a_person_or_a_step_asked_for_it(actor: str, words: str) -> None:
    asked = LeadershipChange(epoch=1, runtime="external01.erp", cause="switch", actor=actor, at=NOON)
    assert boards.in_words(asked).words == words


def drawn(*changes: LeadershipChange, known_until: datetime = NOON) -> dict[str, list[tuple[str, float, float]]]:
    lanes = timeline.lanes(["a", "b"], changes, HOUR, known=timeline.Known(known_until))
    return {lane.machine: [(piece.kind, round(piece.left, 1), round(piece.width, 1)) for piece in lane.stretches] for lane in lanes}


@pytest.mark.parametrize(
    ("changes", "known_until", "expected"),
    [
        pytest.param([], NOON, {"a": [], "b": []}, id="nothing happened"),
        pytest.param([change(1, "a", 90)], NOON, {"a": [("lead", 0, 100)], "b": []}, id="it led since before the window"),
        pytest.param(
            [change(1, "a", 60), change(2, "b", 30, "a", gap=60)],
            NOON,
            {"a": [("lead", 0, 48.3)], "b": [("gap", 48.3, 1.7), ("lead", 50, 50)]},
            id="nobody led for the minute before the take-over",
        ),
        pytest.param(
            [change(1, "a", 60), change(2, "b", 30, "a", gap=-60)],
            NOON,
            {"a": [("lead", 0, 50)], "b": [("overlap", 50, 1.7), ("lead", 50, 50)]},
            id="a negative gap is two at once",
        ),
        pytest.param(
            [change(1, "a", 60)],
            NOON - timedelta(minutes=15),
            {"a": [("lead", 0, 75), ("unknown", 75, 25)], "b": []},
            id="after the last report nothing is claimed",
        ),
        pytest.param(
            [change(2, "b", 30, "a"), change(1, "a", 90)], NOON, {"a": [("lead", 0, 50)], "b": [("lead", 50, 50)]}, id="any order"
        ),
    ],
)
def test_lanes(changes: list[LeadershipChange], known_until: datetime, expected: dict[str, Any]) -> None:
    assert drawn(*changes, known_until=known_until) == expected


def test_a_lane_shows_who_ran_alone_over_who_led() -> None:
    """Both consumed for six minutes, though one of them still held the leadership."""
    spells = [
        Alarm(runtime=f"{name}.erp", kind=AlarmKind.ALONE, since=NOON - timedelta(minutes=30), cleared_at=NOON - timedelta(minutes=24))
        for name in "ab"
    ]
    lanes = timeline.lanes(["a", "b"], [change(1, "a", 90)], HOUR, known=timeline.Known(NOON), alone=spells)
    shown = {lane.machine: [(piece.kind, piece.left, piece.width) for piece in lane.stretches] for lane in lanes}
    assert shown == {"a": [("lead", 0.0, 100.0), ("alone", 50.0, 10.0)], "b": [("alone", 50.0, 10.0)]}


def test_the_timeline_shows_spells_that_ended_and_those_that_go_on(client: Client, viewer: User, two_changes: FailoverGroup) -> None:
    now = timezone.now()
    for machine, minutes, cleared in (("external01", 9, now - timedelta(minutes=8)), ("external02", 5, None)):
        since = now - timedelta(minutes=minutes)
        alarm = {"group": two_changes, "runtime": f"{machine}.erp", "kind": AlarmKind.ALONE, "sentence": "-", "remedy": "-"}
        Alarm.objects.create(**alarm, since=since, raised_at=since, cleared_at=cleared)
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/timeline/?window=15m").content.decode()
    assert text.count('class="stretch is-alone"') == 2
    assert "external02 ran alone, without a majority" in text


@pytest.fixture
def two_changes(group: FailoverGroup) -> FailoverGroup:
    heard(group, leader="external02")
    for epoch, machine, previous, cause, actor in ((40, "external01", "", "first", ""), (41, "external02", "external01", "switch", "olga")):
        LeadershipChange.objects.create(
            group=group,
            epoch=epoch,
            runtime=f"{machine}.erp",
            previous=f"{previous}.erp" if previous else "",
            cause=cause,
            actor=actor,
            at=timezone.now() - timedelta(minutes=50 - epoch),
            heard_at=timezone.now(),
            gap_seconds=0.009 if previous else None,
        )
    return group


@pytest.mark.parametrize(
    ("status", "told"),
    [
        pytest.param("isolated", False, id="the majority is lost"),
        pytest.param("disabled", True, id="the last member was disabled while it was cut off"),
        pytest.param("follower", True, id="it stopped cleanly, and nobody else is ready"),
    ],
)
def test_the_timeline_shows_that_nobody_leads_now(
    client: Client, viewer: User, two_changes: FailoverGroup, status: str, told: bool
) -> None:
    """Though the machine of who led last is well and reports."""
    factories.heard(two_changes, "external01", "isolated")
    since = timezone.now() - timedelta(minutes=3)
    at = timezone.now() - timedelta(minutes=1) if told else since
    factories.heard(two_changes, "external02", status, observed_since=at.isoformat())
    if told:
        end = {"runtime": "external02.erp", "cause": "release", "at": since}
        LeadershipEnd.objects.create(group=two_changes, epoch=41, **end)
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/timeline/?window=15m").content.decode()
    pieces = re.findall(r'class="stretch is-(\w+)" x="([\d.]+)%" y="0" width="([\d.]+)%"[^>]*><title>([^<]*)', text)
    kind, left, width, title = pieces[-1]
    assert (kind, title) == ("gap", "nobody leads")
    assert 78 < float(left) < 81 and 99 < float(left) + float(width) <= 100.1, "for the last three of fifteen minutes"


def test_the_timeline_knows_no_leadership_beyond_what_a_machine_said_before_it_fell_silent(
    client: Client, viewer: User, two_changes: FailoverGroup
) -> None:
    factories.heard(two_changes, "external02", "isolated", observed_since=(timezone.now() - timedelta(minutes=6)).isoformat())
    Machine.objects.update(last_report_at=timezone.now() - timedelta(minutes=1))
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/timeline/?window=15m").content.decode()
    pieces = re.findall(r'class="stretch is-(\w+)" x="([\d.]+)%"', text)
    kind, left = pieces[-1]
    assert kind == "unknown" and 58 < float(left) < 62


def test_the_timeline_claims_nothing_of_a_leader_that_has_not_told_since_when(
    client: Client, viewer: User, two_changes: FailoverGroup
) -> None:
    factories.heard(two_changes, "external02", "follower", observed_since=(timezone.now() - timedelta(minutes=3)).isoformat(), epoch=42)
    factories.heard(two_changes, "external01", "leader", state="off", epoch=42)
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/timeline/?window=15m").content.decode()
    assert "external01 leads, and has not told since when" in text


def test_the_timeline_says_where_nobody_saw_how_long_nobody_led(client: Client, viewer: User, two_changes: FailoverGroup) -> None:
    """Everything was powered off for a night."""
    client.force_login(viewer)
    address = "/projects/webshop/test/timeline/"
    assert "nobody saw" not in client.get(address).content.decode()
    told = {"runtime": "external02.erp", "previous": "external02.erp", "cause": "power-off", "heard_at": timezone.now()}
    LeadershipChange.objects.create(group=two_changes, epoch=42, at=timezone.now() - timedelta(minutes=2), **told)
    text = client.get(address).content.decode()
    assert "nobody led for 9 ms in all, and 1 time for as long as nobody saw" in text
    assert text.count("external02 led, epoch 0·41: switched by hand; nobody saw when it stopped") == 2


def test_the_timeline_lists_cause_actor_and_gap(client: Client, viewer: User, two_changes: FailoverGroup) -> None:
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/timeline/").content.decode()
    assert "Switched by hand" in text and "olga" in text and "9 ms" in text
    assert 'class="stretch is-lead"' in text and "external02 led, epoch 0·41" in text


def test_filters_live_in_the_url(client: Client, viewer: User, two_changes: FailoverGroup) -> None:
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/timeline/?cause=first&group=erp-orders&window=7d").content.decode()
    assert "olga" not in text and "Nobody led before" in text


def test_changes_are_filtered_by_group_and_machine(client: Client, viewer: User, two_changes: FailoverGroup) -> None:
    client.force_login(viewer)
    base = "/projects/webshop/test/timeline/?format=csv"
    assert len(client.get(f"{base}&group={two_changes.pk}").content.decode().splitlines()) == 3
    assert len(client.get(f"{base}&machine=external02").content.decode().splitlines()) == 2
    assert len(client.get(f"{base}&machine=core01").content.decode().splitlines()) == 1
    html = client.get(f"/projects/webshop/test/timeline/?machine=external02&group={two_changes.pk}").content.decode()
    assert (
        "<option selected>external02</option>" in html and f'href="?format=csv&amp;group={two_changes.pk}&amp;machine=external02"' in html
    )


@pytest.mark.parametrize("query", ["cause=nonsense", "window=forever", "page=999", "page=x", "group=none-such"])
def test_a_filter_that_makes_no_sense_breaks_nothing(client: Client, viewer: User, two_changes: FailoverGroup, query: str) -> None:
    client.force_login(viewer)
    assert client.get(f"/projects/webshop/test/timeline/?{query}").status_code == 200


def test_the_list_exports_csv(client: Client, viewer: User, two_changes: FailoverGroup) -> None:
    client.force_login(viewer)
    answer = client.get("/projects/webshop/test/timeline/?format=csv")
    lines = answer.content.decode().splitlines()
    assert answer.headers["Content-Type"].startswith("text/csv") and len(lines) == 3
    assert lines[1].split(",")[1:8] == ["erp-orders", "41", "external02.erp", "external01.erp", "switch", "", "olga"]


def test_an_epoch_reads_as_generation_and_revision() -> None:
    assert [protocol.epoch_words(epoch) for epoch in (0, 10**12 + 240, 2 * 10**12)] == ["–", "1·240", "2·0"]


def test_no_moment_is_read_from_nonsense() -> None:
    assert clocks.read("yesterday") is None and clocks.read("") is None
    assert clocks.read("2026-11-22T12:00:00Z") == NOON


def test_a_machine_silent_for_long_is_no_leader(group: FailoverGroup) -> None:
    heard(group)
    GroupMember.objects.update(observed_at=timezone.now() - timedelta(minutes=5))
    (board,) = boards.boards([group.environment], now=timezone.now())
    assert board.leader_machine == "" and all(line.since is None for line in board.lines)
    assert Machine.objects.count() == 3


def test_a_dialog_that_was_opened_while_another_member_led_disables_nobody(
    client: Client, operator: User, groups_page: str, group: FailoverGroup
) -> None:
    """It said that external02 takes no part; by now it leads, and is the last one that could."""
    client.force_login(operator)
    dialog = act_url(group, "external02", "disable")
    seen = client.get(dialog, headers=HTMX).content.decode()
    assert 'name="expected_leader" value="external01"' in seen
    heard(group, leader="external02", sequence=2)
    told = client.post(dialog, {"expected_leader": "external01", "next": groups_page}, headers=HTMX).content.decode()
    assert "external01 does not lead erp-orders: external02 does. Look again." in told
    assert 'name="expected_leader" value="external02"' in told, "the dialog says what it would do now"
    assert not GroupRequest.objects.exists()
    assert client.post(dialog, {"expected_leader": "external02", "next": groups_page}).status_code == 302
    assert GroupRequest.objects.get().machine == "external02"
