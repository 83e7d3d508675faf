"""Scheduled activations and rolling back: what a look at a due row decides, as a table; carried out once; held, expired, rescheduled."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from deployments import approvals, plans, promotion, releases, rollback, rollout, schedules
from deployments.models import Activation, ActivationStatus, Deployment, Release, RuleOverride, RunStatus, StepKind, StepLog
from deployments.promotion import Finding
from deployments.rollback import Run
from portal import properties
from portal.errors import Busy, Invalid, NotAllowed, Stale
from portal.models import Environment, Flow, Membership, Role
from runtimes.models import Machine
from tests import factories
from tests.deployments.conftest import VALUES, Engine, save_version
from tests.deployments.test_releases import together

DUE = datetime(2026, 11, 23, 2, tzinfo=UTC)
WINDOW = Finding("window", "Test is frozen.")
ORDER = Finding("order", "Not yet in Test.")
APPROVALS = Finding("approvals", "Nobody approved.")


# ---------------------------------------------------------------------------------------------------------------- decisions


@dataclass(frozen=True)
class Look:
    late: timedelta = timedelta(seconds=5)
    expires: timedelta | None = timedelta(hours=1)
    entitled: bool = True
    lacking: str = ""
    findings: tuple[Finding, ...] = ()
    override: bool = False
    ahead: str = ""
    busy: str = ""


@pytest.mark.parametrize(
    ("look", "do", "says"),
    [
        pytest.param(Look(), "activate", "", id="due"),
        pytest.param(Look(late=timedelta(seconds=-1)), "wait", "not due", id="a second early"),
        pytest.param(Look(late=timedelta(hours=1) - timedelta(seconds=1)), "activate", "", id="late, not too late"),
        pytest.param(Look(late=timedelta(hours=1)), "expire", "60 minutes after its time and expires after 60 minutes", id="too late"),
        pytest.param(Look(late=timedelta(hours=7)), "expire", "7 h after its time", id="the portal was off from 02:00 to 09:00"),
        pytest.param(Look(late=timedelta(hours=7), expires=None), "activate", "", id="told to, however late"),
        pytest.param(Look(late=timedelta(hours=7), lacking="A value is missing."), "expire", "", id="too late counts first"),
        pytest.param(Look(entitled=False), "fail", "may no longer deploy here", id="whoever scheduled it left"),
        pytest.param(Look(lacking="A value is missing."), "fail", "A value is missing.", id="a value is missing"),
        pytest.param(Look(findings=(WINDOW,)), "hold", "Resume or reschedule it", id="frozen since"),
        pytest.param(Look(findings=(WINDOW,), override=True), "activate", "", id="frozen, and set aside"),
        pytest.param(Look(findings=(ORDER, WINDOW)), "fail", "Not yet in Test.", id="order does not heal by waiting"),
        pytest.param(Look(findings=(ORDER,), override=True), "activate", "", id="order, set aside"),
        pytest.param(Look(findings=(APPROVALS,), override=True), "fail", "Nobody approved.", id="approvals are never set aside"),
        pytest.param(Look(ahead="Release 6 goes first."), "wait", "Release 6", id="another was due before it"),
        pytest.param(Look(ahead="Release 6 goes first.", findings=(ORDER,)), "wait", "", id="the one before may be what it lacks"),
        pytest.param(Look(ahead="Release 6 goes first.", late=timedelta(hours=2)), "expire", "", id="the one before took too long"),
        pytest.param(Look(busy="Deployment 7 is under way."), "wait", "Deployment 7", id="another deployment runs"),
        pytest.param(Look(busy="Deployment 7 is under way.", late=timedelta(hours=2)), "expire", "", id="it ran too long"),
    ],
)
def test_a_look_at_a_scheduled_activation(look: Look, do: str, says: str) -> None:
    found = schedules.decide(
        due_at=DUE, expires_at=None if look.expires is None else DUE + look.expires, now=DUE + look.late, entitled=look.entitled,
        lacking=look.lacking, findings=look.findings, override=look.override, ahead=look.ahead, busy=look.busy,
    )  # fmt: skip
    assert found.do == do and says in found.sentence


@pytest.mark.parametrize(
    ("runs", "back_to"),
    [
        pytest.param([], None, id="nothing ran"),
        pytest.param([(1, True)], None, id="the first release"),
        pytest.param([(1, True), (1, True)], None, id="the same again"),
        pytest.param([(1, True), (2, True)], 1, id="the one before"),
        pytest.param([(1, True), (2, False)], 1, id="the second failed"),
        pytest.param([(1, False), (2, True)], None, id="the first never succeeded"),
        pytest.param([(1, True), (2, True), (2, False)], 1, id="a second attempt of the second failed"),
        pytest.param([(1, True), (2, True), (3, True)], 2, id="three"),
        pytest.param([(1, True), (2, True), (3, False), (2, True, "back")], 1, id="back once, then further back"),
        pytest.param([(1, True), (2, True), (3, True), (2, True, "back")], 1, id="never forward again to what was rolled back"),
        pytest.param([(1, True), (2, True), (1, True, "back")], None, id="back to the first: nothing before it"),
        pytest.param([(1, True), (2, True), (1, True, "back"), (3, True)], 1, id="and on from there"),
        pytest.param([(1, True), (2, True), (1, False, "back")], 2, id="a roll back that failed: what stood still stands"),
    ],
)
def test_where_a_roll_back_leads(runs: list[tuple[int, bool]], back_to: int | None) -> None:
    given = [Run(pk, run[0], run[1], rollback=len(run) > 2) for pk, run in enumerate(runs, start=1)]
    chosen = rollback.choose(given)
    assert (chosen.release if chosen else None) == back_to


# ----------------------------------------------------------------------------------------------------------------- schedules


def test_a_schedule_lies_in_the_future(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    with pytest.raises(Invalid, match="Choose a time in the future") as refusal:
        schedules.schedule(release, filled, due_at=now, by=developer, now=now)
    assert refusal.value.field == "due_at"


@pytest.mark.parametrize("year", [2033, 9999])
def test_nothing_is_scheduled_or_frozen_further_ahead_than_five_years(
    client: Client, release: Release, filled: Environment, developer: User, admin: User, year: int
) -> None:
    now, far = timezone.now(), datetime(year, 12, 31, 23, 30, tzinfo=UTC)
    with pytest.raises(Invalid, match="within 5 years"):
        schedules.schedule(release, filled, due_at=far, by=developer, now=now)
    planned = schedules.schedule(release, filled, due_at=now + timedelta(hours=1), by=developer, now=now)
    with pytest.raises(Invalid, match="within 5 years"):
        schedules.reschedule(planned, due_at=far, by=developer, now=now)
    promotion.set_rules(filled, time_zone="Asia/Tokyo", by=admin, now=now)
    with pytest.raises(Invalid, match="within 5 years"):
        promotion.freeze(filled, starts_at=now, ends_at=far, reason="For ever", by=admin, now=now)
    promotion.set_rules(filled, time_zone="America/New_York", by=admin, now=now)
    with pytest.raises(Invalid, match="within 5 years"):
        promotion.freeze(filled, starts_at=datetime(1, 1, 1, tzinfo=UTC), ends_at=now + timedelta(days=1), reason="x", by=admin, now=now)
    client.force_login(admin)
    body = {"environment": "test", "due_at": f"{year}-12-31T23:30:00", "expires_after_minutes": 60}
    answer = client.post(f"/api/v1/releases/{release.pk}/activate/", body, content_type="application/json")
    assert (answer.status_code, "within 5 years" in answer.json()["detail"]) == (400, True)
    assert client.get("/projects/webshop/test/schedule/").status_code == client.get("/api/v1/activations/").status_code == 200


def test_a_due_activation_is_carried_out_once(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(minutes=5), by=developer, now=now)
    assert list(schedules.due(now)) == []
    assert schedules.activate_due(planned.pk, now=now) == f"Activation {planned.pk} was handled already, or is not due."
    assert releases.active(filled) is None
    later = now + timedelta(minutes=5)
    assert list(schedules.due(later)) == [planned.pk]
    assert schedules.activate_due(planned.pk, now=later) == "Release 1 is active on Test."
    assert schedules.activate_due(planned.pk, now=later) == f"Activation {planned.pk} was handled already, or is not due."
    assert releases.active(filled) == release
    assert list(schedules.due(later)) == []


def test_a_due_activation_that_is_not_allowed_fails_with_its_reason(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(minutes=5), by=developer, now=now)
    properties.remove_value(filled, "erp.outbox")
    assert "was not activated on Test: A key lacks a value" in schedules.activate_due(planned.pk, now=now + timedelta(hours=1))
    planned.refresh_from_db()
    assert planned.status == ActivationStatus.FAILED
    assert "external01.erp needs a value for erp.outbox" in planned.reason


def test_a_cancelled_schedule_is_never_carried_out(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(minutes=5), by=developer, now=now)
    schedules.cancel(planned, by=developer)
    schedules.cancel(planned, by=developer)
    assert planned.reason == "Cancelled by developer."
    schedules.activate_due(planned.pk, now=now + timedelta(hours=1))
    assert releases.active(filled) is None


def test_a_schedule_that_was_carried_out_can_not_be_cancelled(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(minutes=5), by=developer, now=now)
    schedules.activate_due(planned.pk, now=now + timedelta(hours=1))
    with pytest.raises(NotAllowed, match="active already"):
        schedules.cancel(planned, by=developer)


@pytest.mark.django_db(transaction=True)
def test_two_workers_carry_out_a_due_activation_once(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(minutes=5), by=developer, now=now)
    later = now + timedelta(hours=1)
    results = together(*[lambda: schedules.activate_due(planned.pk, now=later)] * 4)
    assert sorted(map(str, results)) == [f"Activation {planned.pk} was handled already, or is not due."] * 3 + [
        "Release 1 is active on Test."
    ]


@pytest.mark.django_db(transaction=True)
def test_deploying_after_activation_happens_once_too(active: Release, engine: Engine, filled: Environment, developer: User) -> None:
    planned = schedules.schedule(active, filled, due_at=engine.now + timedelta(minutes=1), by=developer, now=engine.now, deploys=True)
    later = engine.now + timedelta(minutes=2)
    engine.machines.report(later)
    together(*[lambda: schedules.activate_due(planned.pk, now=later)] * 4)
    planned.refresh_from_db()
    assert planned.status == ActivationStatus.ACTIVE
    begun = Deployment.objects.get()
    assert planned.deployment == begun


def test_a_deployment_says_that_a_schedule_began_it_and_who_asked(
    client: Client, active: Release, engine: Engine, filled: Environment, developer: User
) -> None:
    planned = schedules.schedule(active, filled, due_at=engine.now + timedelta(minutes=1), by=developer, now=engine.now, deploys=True)
    engine.pass_time(120)
    schedules.activate_due(planned.pk, now=engine.now)
    begun = Deployment.objects.get()
    assert StepLog.objects.filter(deployment=begun, text__regex=r"Begun by schedule, due .*, asked by developer\.").count() == 1
    client.force_login(developer)
    html = client.get(begun.get_absolute_url()).content.decode()
    assert "Begun by" in html and "asked by developer" in html
    assert "by schedule" in client.get("/projects/webshop/test/deployments/").content.decode()
    assert client.get(f"/api/v1/deployments/{begun.pk}/").json()["scheduled_for"] is not None
    by_hand = client.get("/projects/webshop/test/deployments/?format=csv").getvalue().decode()
    assert "scheduled_for" in by_hand.splitlines()[0]


# --------------------------------------------------------------------------------------------------- late, held, rescheduled


def test_what_came_too_late_is_not_carried_out_and_says_so(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(minutes=1), by=developer, now=now)
    assert planned.expires_after_minutes == 60
    said = schedules.activate_due(planned.pk, now=now + timedelta(hours=7))
    assert "7 h" not in said and "6 h 59 min after its time and expires after 60 minutes. Schedule it again." in said
    planned.refresh_from_db()
    assert planned.status == ActivationStatus.EXPIRED and releases.active(filled) is None


def test_what_never_expires_is_carried_out_however_late(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    due_at = now + timedelta(minutes=1)
    planned = schedules.schedule(release, filled, due_at=due_at, by=developer, now=now, expires_after_minutes=None)
    assert schedules.activate_due(planned.pk, now=now + timedelta(days=3)) == "Release 1 is active on Test."


def test_a_time_inside_a_freeze_is_refused_with_the_next_allowed_one(
    release: Release, filled: Environment, developer: User, operator: User, admin: User
) -> None:
    now = timezone.now()
    freeze = {"starts_at": now + timedelta(hours=1), "ends_at": now + timedelta(hours=3)}
    promotion.freeze(filled, **freeze, reason="Stocktaking", by=admin, now=now)
    due_at = now + timedelta(hours=2)
    with pytest.raises(NotAllowed, match=r"It is frozen until .*: Stocktaking\. Next allowed: ") as refusal:
        schedules.schedule(release, filled, due_at=due_at, by=developer, now=now)
    assert f"{freeze['ends_at']:%H:%M}" in refusal.value.sentence
    with pytest.raises(NotAllowed, match="needs the role operator"):
        schedules.schedule(release, filled, due_at=due_at, by=developer, now=now, override="Please.")
    planned = schedules.schedule(release, filled, due_at=due_at, by=operator, now=now, override="Agreed.")
    assert schedules.activate_due(planned.pk, now=due_at) == "Release 1 is active on Test."
    assert [row.act.split(" at ")[0] for row in RuleOverride.objects.order_by("pk")] == ["schedule", "activate"]


def test_a_freeze_that_came_in_between_holds_it_for_a_person(release: Release, filled: Environment, developer: User, admin: User) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(hours=2), by=developer, now=now)
    promotion.freeze(filled, starts_at=now, ends_at=now + timedelta(hours=3), reason="Incident", by=admin, now=now)
    assert "Incident" in schedules.activate_due(planned.pk, now=now + timedelta(hours=2))
    planned.refresh_from_db()
    assert planned.status == ActivationStatus.HELD and "Resume or reschedule it then." in planned.reason
    assert schedules.due(now + timedelta(hours=9)) == []
    with pytest.raises(NotAllowed, match="has passed: reschedule it"):
        schedules.resume(planned, by=developer, now=now + timedelta(hours=3))
    schedules.reschedule(planned, due_at=now + timedelta(hours=4), by=developer, now=now + timedelta(hours=3))
    assert planned.status == ActivationStatus.SCHEDULED and planned.reason == ""
    assert schedules.activate_due(planned.pk, now=now + timedelta(hours=4)) == "Release 1 is active on Test."


def test_holding_and_resuming(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(minutes=5), by=developer, now=now)
    schedules.hold(planned, reason="Waiting for the shop.", by=developer)
    schedules.hold(planned, reason="", by=developer)
    assert planned.reason == "Held by developer: Waiting for the shop."
    assert schedules.activate_due(planned.pk, now=now + timedelta(minutes=6)).endswith("handled already, or is not due.")
    schedules.resume(planned, by=developer, now=now + timedelta(minutes=7))
    schedules.resume(planned, by=developer, now=now + timedelta(minutes=7))
    assert schedules.activate_due(planned.pk, now=now + timedelta(minutes=7)) == "Release 1 is active on Test."
    for act in (lambda: schedules.hold(planned, reason="", by=developer), lambda: schedules.resume(planned, by=developer, now=now)):
        with pytest.raises(NotAllowed, match="active already"):
            act()


def test_a_rescheduled_one_is_not_carried_out_at_its_former_time(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(minutes=5), by=developer, now=now)
    schedules.reschedule(planned, due_at=now + timedelta(hours=5), by=developer, now=now)
    assert schedules.due(now + timedelta(minutes=6)) == []
    with pytest.raises(Invalid, match="in the future"):
        schedules.reschedule(planned, due_at=now, by=developer, now=now)


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(lambda person: Membership.objects.filter(user=person).update(role=Role.VIEWER), id="another role"),
        pytest.param(lambda person: Membership.objects.filter(user=person).delete(), id="no member any more"),
        pytest.param(lambda person: User.objects.filter(pk=person.pk).update(is_active=False), id="the account is closed"),
    ],
)
def test_whoever_lost_the_role_no_longer_deploys_by_the_clock(
    release: Release, filled: Environment, developer: User, left: Callable[[User], object]
) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(minutes=5), by=developer, now=now)
    left(developer)
    assert "may no longer deploy here" in schedules.activate_due(planned.pk, now=now + timedelta(minutes=5))


@pytest.mark.parametrize("act", ["reschedule", "resume"])
def test_an_override_is_of_the_person_who_gave_it_and_ends_when_another_takes_the_activation_over(
    release: Release, filled: Environment, operator: User, developer: User, admin: User, act: str
) -> None:
    now = timezone.now()
    promotion.freeze(filled, starts_at=now, ends_at=now + timedelta(hours=2), reason="Stocktaking", by=operator, now=now)
    due = now + timedelta(hours=1)
    planned = schedules.schedule(release, filled, due_at=due, by=operator, now=now, override="Agreed with the customer.")
    schedules.hold(planned, reason="", by=operator)
    schedules.resume(planned, by=operator, now=now)
    assert (planned.override, planned.reason) == ("Agreed with the customer.", ""), "the same person goes on"
    if act == "reschedule":
        due = now + timedelta(hours=3)
        schedules.reschedule(planned, due_at=due, by=developer, now=now)
    else:
        schedules.hold(planned, reason="", by=operator)
        schedules.resume(planned, by=developer, now=now)
    assert (planned.override, planned.created_by) == ("", developer)
    assert planned.reason.startswith("The reason of operator to set rules aside ended when developer took it over")
    said = schedules.activate_due(planned.pk, now=due)
    assert (said == "Release 1 is active on Test.") if act == "reschedule" else ("Stocktaking" in said)
    assert not RuleOverride.objects.filter(by=developer).exists()


def test_approvals_bind_the_clock_too(release: Release, filled: Environment, developer: User, operator: User, admin: User) -> None:
    now = timezone.now()
    promotion.set_rules(filled, approvals=1, by=admin, now=now)
    planned = schedules.schedule(release, filled, due_at=now + timedelta(minutes=5), by=operator, now=now, override="I insist.")
    assert "lacks approval on Test" in schedules.activate_due(planned.pk, now=now + timedelta(minutes=5))
    again = schedules.schedule(release, filled, due_at=now + timedelta(minutes=15), by=operator, now=now)
    approvals.approve(approvals.request(release, filled, by=developer, now=now), by=operator, now=now)
    assert schedules.activate_due(again.pk, now=now + timedelta(minutes=15)) == "Release 1 is active on Test."


def test_it_waits_for_a_deployment_under_way_and_then_deploys(
    active: Release, engine: Engine, filled: Environment, developer: User
) -> None:
    running = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    planned = schedules.schedule(active, filled, due_at=engine.now + timedelta(seconds=1), by=developer, now=engine.now, deploys=True)
    engine.pass_time(2)
    assert "waits: Deployment" in schedules.activate_due(planned.pk, now=engine.now)
    planned.refresh_from_db()
    assert planned.status == ActivationStatus.SCHEDULED and "is under way" in planned.reason
    engine.run(running)
    assert "and deployment" in schedules.activate_due(planned.pk, now=engine.now)
    planned.refresh_from_db()
    assert planned.deployment is not None and planned.deployment != running
    assert engine.run(planned.deployment).status == RunStatus.SUCCEEDED


def test_what_was_due_first_goes_first_though_both_waited_for_a_deployment(
    active: Release, engine: Engine, filled: Environment, developer: User, flow: Flow
) -> None:
    """A worker that had looked at the older one just before the deployment ended must not take the newer one next: the older release would
    replace it afterwards."""
    running = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    save_version(flow, 1)
    second = releases.build(active.project, name="Second", by=developer)
    older = schedules.schedule(active, filled, due_at=engine.now + timedelta(seconds=1), by=developer, now=engine.now, deploys=True)
    newer = schedules.schedule(second, filled, due_at=engine.now + timedelta(seconds=2), by=developer, now=engine.now, deploys=True)
    engine.pass_time(3)
    assert "waits: Deployment" in schedules.activate_due(older.pk, now=engine.now)
    engine.run(running)
    assert "waits: Release 1, which was due at" in schedules.activate_due(newer.pk, now=engine.now)
    newer.refresh_from_db()
    assert newer.status == ActivationStatus.SCHEDULED and newer.reason.endswith("goes first (or hold or cancel that).")
    for planned in (older, newer):
        schedules.activate_due(planned.pk, now=engine.now)
        planned.refresh_from_db()
        assert planned.deployment is not None
        engine.run(planned.deployment)
    assert releases.active(filled) == second


def test_a_held_activation_holds_up_no_other(release: Release, filled: Environment, developer: User) -> None:
    now = timezone.now()
    first = schedules.schedule(release, filled, due_at=now + timedelta(minutes=1), by=developer, now=now)
    second = schedules.schedule(release, filled, due_at=now + timedelta(minutes=2), by=developer, now=now)
    assert "goes first" in schedules.activate_due(second.pk, now=now + timedelta(minutes=3))
    schedules.hold(first, reason="", by=developer)
    assert schedules.activate_due(second.pk, now=now + timedelta(minutes=3)) == "Release 1 is active on Test."


def test_what_cannot_be_deployed_is_not_activated_either(
    active: Release, engine: Engine, filled: Environment, developer: User, flow: Flow
) -> None:
    save_version(flow, 1)
    second = releases.build(active.project, name="Second", by=developer)
    planned = schedules.schedule(second, filled, due_at=engine.now + timedelta(seconds=1), by=developer, now=engine.now, deploys=True)
    engine.machines.silent = {"external01", "external02", "core01"}
    said = schedules.activate_due(planned.pk, now=engine.now + timedelta(minutes=1))
    assert "has not been heard from" in said
    assert releases.active(filled) == active and not Deployment.objects.exists()


# ------------------------------------------------------------------------------------------------ scheduled without a machine


@pytest.fixture
def nightly(active: Release, engine: Engine, filled: Environment, developer: User, flow: Flow) -> Activation:
    """Release 2 is to be deployed in an hour, without external02 where that is offline; its follower is no longer needed by then."""
    engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    save_version(flow, 1)
    second = releases.build(active.project, name="Second", by=developer)
    due_at = engine.now + timedelta(hours=1)
    return schedules.schedule(second, filled, due_at=due_at, by=developer, now=engine.now, deploys=True, leaving_out=["external02"])


def wait_until_due(engine: Engine, planned: Activation, *away: str) -> str:
    engine.machines.silent = set(away)
    engine.now = planned.due_at or engine.now
    engine.pass_time(1)
    said = schedules.activate_due(planned.pk, now=engine.now)
    planned.refresh_from_db()
    return said


def test_a_scheduled_deployment_goes_without_a_machine_that_is_offline_then(nightly: Activation, engine: Engine) -> None:
    for group in engine.machines.leaders:
        engine.machines.lead(group, "external02.erp")  # external01 leads nothing, so that its step needs nobody
    said = wait_until_due(engine, nightly, "external02")
    assert "deployment" in said and nightly.reason == "external02: left out, offline when it was due."
    run = nightly.deployment
    assert run is not None and [one.machine for one in run.exclusions.all()] == ["external02"]
    assert run.steps.get(machine="external02").status == RunStatus.SKIPPED


def test_a_machine_that_is_back_when_it_is_due_is_deployed_with_the_others(nightly: Activation, engine: Engine) -> None:
    wait_until_due(engine, nightly)
    run = nightly.deployment
    assert run is not None and not run.exclusions.exists()
    assert nightly.reason == "external02: not left out, for it reported when it was due."
    assert engine.run(run).status == RunStatus.SUCCEEDED


def test_what_would_stop_without_the_machine_is_refused_when_due_and_nothing_changes(nightly: Activation, engine: Engine) -> None:
    """external01 leads and external02 was the only standby: by hand a person overrides that, at night nobody is there."""
    wait_until_due(engine, nightly, "external02")
    assert nightly.status == ActivationStatus.FAILED
    assert nightly.reason.startswith(
        "Without external02, which is offline, step 3 (Deploy runtime external01.erp) would stop: external01.erp leads erp-orders, and no "
        "follower is ready to take over: "
    )
    assert nightly.reason.endswith("Nothing was changed; deploy by hand, where a person can decide.")
    active = releases.active(nightly.environment)
    assert active is not None and active.number == 1 and Deployment.objects.count() == 1


def test_a_machine_that_was_removed_meanwhile_is_named(nightly: Activation, engine: Engine) -> None:
    plans.remove_step(plans.plan_of(nightly.environment).steps.get(machine="external02"))
    Machine.objects.filter(name="external02").delete()
    wait_until_due(engine, nightly)
    assert nightly.status == ActivationStatus.FAILED
    assert nightly.reason == "external02, to be left out, is no machine of Test any more: schedule it again without naming it."


def test_while_another_deployment_runs_it_waits_instead_of_judging_by_what_is_half_done(
    nightly: Activation, engine: Engine, active: Release, developer: User
) -> None:
    rollout.prepare(active, on=nightly.environment, by=developer, now=engine.now)
    assert "is under way" in wait_until_due(engine, nightly, "external02") and nightly.status == ActivationStatus.SCHEDULED


@pytest.mark.parametrize(
    ("deploys", "out", "says"),
    [
        pytest.param(False, ["external02"], "say that it deploys after activation", id="nothing is deployed"),
        pytest.param(True, ["external07"], "external07 is no machine of Test", id="unknown"),
        pytest.param(True, ["external01", "external02"], "nothing would be deployed", id="all of them"),
    ],
)
def test_whom_a_schedule_cannot_leave_out(
    active: Release, engine: Engine, filled: Environment, developer: User, deploys: bool, out: list[str], says: str
) -> None:
    later = engine.now + timedelta(hours=1)
    with pytest.raises(Invalid, match=says) as refusal:
        schedules.schedule(active, filled, due_at=later, by=developer, now=engine.now, deploys=deploys, leaving_out=out)
    assert refusal.value.field == "leaving_out"


@pytest.mark.parametrize(
    ("field", "value"), [("deploys", True), ("leaving_out", ["external02"]), ("expires_after_minutes", 5), ("expires_after_minutes", None)]
)
def test_what_holds_for_a_schedule_alone_is_refused_without_a_time(
    client: Client, active: Release, filled: Environment, developer: User, field: str, value: Any
) -> None:
    client.force_login(developer)
    body = {"environment": "test", field: value}
    answer = client.post(f"/api/v1/releases/{active.pk}/activate/", body, content_type="application/json")
    assert (answer.status_code, "due_at" in answer.json()["detail"]) == (400, True), answer.json()


def test_page_and_api_schedule_without_a_machine_and_show_it(
    client: Client, active: Release, engine: Engine, filled: Environment, developer: User
) -> None:
    client.force_login(developer)
    Machine.objects.update(last_report_at=timezone.now() + timedelta(seconds=60))
    dialog = f"/projects/webshop/test/releases/{active.number}/activate/"
    html = client.get(dialog).content.decode()
    assert html.count('name="leaving_out"') == 2 and "It reports now." in html
    body = {"when": "at", "at": f"{timezone.now() + timedelta(days=2):%Y-%m-%dT%H:%M}", "deploys": "on", "leaving_out": ["external02"]}
    both = body | {"leaving_out": ["external01", "external02"]}
    assert "nothing would be deployed" in client.post(dialog, both).content.decode()
    assert client.post(dialog, body).status_code == 302
    planned = Activation.objects.get(status=ActivationStatus.SCHEDULED)
    assert planned.leaving_out == ["external02"]
    assert "Without external02 where offline then" in client.get(SCHEDULE).content.decode()
    assert "without external02" in client.get(f"/projects/webshop/test/activations/{planned.pk}/reschedule/").content.decode()
    api, when = f"/api/v1/releases/{active.pk}/activate/", f"{timezone.now() + timedelta(days=3):%Y-%m-%dT%H:%M}"
    wish = {"environment": "test", "due_at": when, "deploys": True, "leaving_out": ["external02"]}
    assert client.post(api, wish, content_type="application/json").json()["leaving_out"] == ["external02"]
    now = {"environment": "test", "leaving_out": ["external02"]}
    answer = client.post(api, now, content_type="application/json")
    assert answer.status_code == 400 and "Say a time" in answer.json()["detail"]


# ----------------------------------------------------------------------------------------------------------------- roll back


@pytest.fixture
def second(active: Release, engine: Engine, filled: Environment, developer: User, flow: Flow) -> Release:
    """Release 2, deployed with success after release 1."""
    engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    save_version(flow, 1)
    made = releases.build(active.project, name="Second", by=developer)
    releases.activate(made, filled, by=developer, now=engine.now)
    engine.run(rollout.prepare(made, on=filled, by=developer, now=engine.now))
    return made


def test_rolling_back_deploys_the_earlier_release_and_holds_the_clock(
    client: Client, active: Release, second: Release, engine: Engine, filled: Environment, developer: User
) -> None:
    planned = schedules.schedule(second, filled, due_at=engine.now + timedelta(hours=1), by=developer, now=engine.now, deploys=True)
    target = rollback.target(filled)
    assert target is not None and target.back_to.release == active and target.undone.release == second
    begun = rollback.start(filled, expected=target.back_to.pk, by=developer, now=engine.now)
    assert begun.rollback_of == target.undone and releases.active(filled) == active
    client.force_login(developer)
    address = f"/projects/webshop/test/deployments/{begun.pk}/"
    undone = client.get(target.undone.get_absolute_url()).content.decode()
    assert f'Rolled back by <a href="{address}">deployment {begun.pk}</a> to release 1.' in undone
    listed = client.get("/projects/webshop/test/deployments/").content.decode()
    assert f'{target.undone.get_absolute_url()}">rollback of {target.undone.pk}' in listed and f"rolled back by {begun.pk}" in listed
    assert client.get(f"/api/v1/deployments/{target.undone.pk}/").json()["rolled_back_by"] == begun.pk
    planned.refresh_from_db()
    assert planned.status == ActivationStatus.HELD
    assert planned.reason.startswith(f"Held because deployment {begun.pk} rolls back to release 1, by developer")
    with pytest.raises(Busy, match="is under way"):
        rollback.start(filled, by=developer, now=engine.now)
    assert engine.run(begun).status == RunStatus.SUCCEEDED
    assert rollback.target(filled) is None
    schedules.resume(planned, by=developer, now=engine.now)
    assert planned.status == ActivationStatus.SCHEDULED


def test_a_roll_back_that_is_refused_changes_nothing(
    active: Release, second: Release, engine: Engine, filled: Environment, developer: User, admin: User, operator: User
) -> None:
    planned = schedules.schedule(second, filled, due_at=engine.now + timedelta(hours=1), by=developer, now=engine.now)
    with pytest.raises(Stale, match="Another deployment ran on Test since you looked"):
        rollback.start(filled, expected=999, by=developer, now=engine.now)
    promotion.freeze(filled, starts_at=engine.now, ends_at=engine.now + timedelta(days=1), reason="Audit", by=admin, now=engine.now)
    with pytest.raises(NotAllowed, match="Audit"):
        rollback.start(filled, by=developer, now=engine.now)
    planned.refresh_from_db()
    assert releases.active(filled) == second and planned.status == ActivationStatus.SCHEDULED
    rollback.start(filled, by=operator, now=engine.now, override="Orders are lost.")
    assert {row.act for row in RuleOverride.objects.all()} == {"activate", "deploy"}


def test_what_ran_here_with_success_needs_no_new_approval_to_come_back(
    active: Release, second: Release, engine: Engine, filled: Environment, developer: User, admin: User
) -> None:
    promotion.set_rules(filled, approvals=2, by=admin, now=engine.now)
    with pytest.raises(NotAllowed, match="lacks approval"):
        releases.activate(active, filled, by=developer, now=engine.now)
    assert rollback.start(filled, by=developer, now=engine.now).release == active


def test_rolling_back_brings_no_value_and_no_step_that_nobody_approved(
    active: Release, second: Release, engine: Engine, filled: Environment, developer: User, admin: User, operator: User
) -> None:
    promotion.set_rules(filled, approvals=1, by=admin, now=engine.now)
    properties.set_value(filled, "erp.outbox", "/elsewhere", by=developer)
    runs = Deployment.objects.count()
    with pytest.raises(NotAllowed, match=r"Release 1 ran here with other values \(erp\.outbox\).* Request approval"):
        rollback.start(filled, by=developer, now=engine.now)
    properties.set_value(filled, "erp.outbox", VALUES["erp.outbox"], by=developer)
    step = plans.add_step(plans.plan_of(filled), StepKind.HTTP_CHECK, url="http://127.0.0.1:9/")
    with pytest.raises(NotAllowed, match="No deployment ran here by the plan as it is now"):
        rollback.start(filled, by=developer, now=engine.now)
    assert (Deployment.objects.count(), releases.active(filled)) == (runs, second)
    approvals.approve(approvals.request(active, filled, by=developer, now=engine.now), by=operator, now=engine.now)
    plans.remove_step(step)
    planned = schedules.schedule(second, filled, due_at=engine.now + timedelta(hours=1), by=developer, now=engine.now)
    assert rollback.start(filled, by=developer, now=engine.now).release == active
    planned.refresh_from_db()
    assert planned.status == ActivationStatus.HELD, "by whichever approval it goes back, the clock is held"


def test_a_release_that_retention_took_a_moment_ago_cannot_be_asked_approval_for(
    release: Release, filled: Environment, developer: User, admin: User
) -> None:
    now = timezone.now()
    promotion.set_rules(filled, approvals=1, by=admin, now=now)
    Release.objects.filter(pk=release.pk).delete()
    with pytest.raises(NotAllowed, match="Release 1 was removed a moment ago by the project's rule of retention"):
        approvals.request(release, filled, by=developer, now=now)


def test_a_roll_back_that_failed_goes_on_by_its_own_steps_but_not_with_other_values(
    active: Release, second: Release, engine: Engine, filled: Environment, developer: User, admin: User, operator: User
) -> None:
    promotion.set_rules(filled, approvals=1, by=admin, now=engine.now)
    begun = rollback.start(filled, by=developer, now=engine.now)
    Deployment.objects.filter(pk=begun.pk).update(status=RunStatus.FAILED)
    begun.steps.filter(number=1).update(status=RunStatus.FAILED)
    plans.add_step(plans.plan_of(filled), StepKind.MANUAL, instruction="For the next one.")
    properties.set_value(filled, "erp.outbox", "/elsewhere", by=developer)
    begun.refresh_from_db()
    with pytest.raises(NotAllowed, match=r"ran here with other values \(erp\.outbox\)"):
        rollout.resume(begun, by=developer, now=engine.now)
    properties.set_value(filled, "erp.outbox", VALUES["erp.outbox"], by=developer)
    rollout.resume(begun, by=developer, now=engine.now)
    assert begun.status == RunStatus.RUNNING


def test_nothing_to_roll_back_to(active: Release, engine: Engine, filled: Environment, developer: User) -> None:
    with pytest.raises(NotAllowed, match="There is nothing to roll back to on Test"):
        rollback.start(filled, by=developer, now=engine.now)


# --------------------------------------------------------------------------------------------------------- pages and the API

SCHEDULE = "/projects/webshop/test/schedule/"


@pytest.mark.usefixtures("far_future")
def test_the_schedule_page_holds_resumes_reschedules_and_cancels(
    client: Client, developer: User, release: Release, filled: Environment, admin: User
) -> None:
    promotion.set_rules(filled, time_zone="Europe/Amsterdam", by=admin, now=timezone.now())
    now = timezone.now()
    due_at = datetime(2098, 7, 1, 10, tzinfo=UTC)
    planned = schedules.schedule(release, filled, due_at=due_at, by=developer, now=now, deploys=True)
    client.force_login(developer)
    html = client.get(SCHEDULE).content.decode()
    assert "Tue 1 Jul 2098 12:00 Europe/Amsterdam" in html and "then deploy" in html
    act = f"/projects/webshop/test/activations/{planned.pk}/"
    client.post(f"{act}hold/")
    assert "Held by developer" in client.get(SCHEDULE).content.decode()
    client.post(f"{act}resume/")
    assert client.post(f"{act}reschedule/", {"at": "2098-07-02T12:00"}).status_code == 302
    planned.refresh_from_db()
    assert planned.due_at == due_at + timedelta(days=1)
    client.post(f"{act}cancel/")
    html = client.get(SCHEDULE).content.decode()
    assert "Nothing is scheduled" in html and "Cancelled by developer." in html


def test_the_page_rolls_back_after_a_look_at_what_it_changes(
    client: Client, operator: User, active: Release, second: Release, filled: Environment, settings: Any
) -> None:
    settings.AGENT_SILENT_AFTER_SECONDS = 600.0  # by the clock of the wall, on a slow machine
    client.force_login(operator)
    page = "/projects/webshop/test/releases/rollback/"
    html = client.get(page).content.decode()
    assert "Roll back Test to release 1" in html and "version: 1.1.0" in html and "This forbids it now" not in html
    target = rollback.target(filled)
    assert target is not None
    answer = client.post(page, {"back_to": target.back_to.pk})
    assert answer.status_code == 302 and Deployment.objects.latest("pk").rollback_of == target.undone
    html = client.get(answer.url).content.decode()
    assert "Rollback of" in html and f"deployment {target.undone.pk}</a>" in html
    assert f"rollback of {target.undone.pk}" in client.get("/projects/webshop/test/deployments/").content.decode()


def test_a_viewer_sees_the_schedule_and_changes_nothing(
    client: Client, viewer: User, developer: User, release: Release, filled: Environment
) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(hours=1), by=developer, now=now)
    client.force_login(viewer)
    assert "Reschedule" not in client.get(SCHEDULE).content.decode()
    assert client.post(f"/projects/webshop/test/activations/{planned.pk}/cancel/").status_code == 403
    assert client.post("/projects/webshop/test/releases/rollback/").status_code == 403


@pytest.mark.usefixtures("far_future")
def test_the_api_schedules_holds_and_rolls_back(
    client: Client, operator: User, active: Release, second: Release, engine: Engine, filled: Environment, settings: Any
) -> None:
    settings.AGENT_SILENT_AFTER_SECONDS = 600.0  # by the clock of the wall, on a slow machine
    client.force_login(operator)
    body = {"environment": "test", "due_at": "2098-01-01T02:00:00", "deploys": True, "expires_after_minutes": None}
    made = client.post(f"/api/v1/releases/{second.pk}/activate/", body, content_type="application/json").json()
    assert (made["status"], made["due_at"], made["expires_at"], made["deploys"]) == ("scheduled", "2098-01-01T02:00:00Z", None, True)
    one = f"/api/v1/activations/{made['id']}/"
    assert client.post(f"{one}hold/", {"reason": "later"}, content_type="application/json").json()["status"] == "held"
    assert client.post(f"{one}resume/").json()["status"] == "scheduled"
    moved = client.post(f"{one}reschedule/", {"due_at": "2098-01-02T02:00:00+01:00"}, content_type="application/json").json()
    assert moved["due_at"] == "2098-01-02T01:00:00Z"
    assert [row["id"] for row in client.get("/api/v1/activations/", {"status": "scheduled"}).json()["results"]] == [made["id"]]
    where = client.get("/api/v1/deployments/rollback/", {"project": "webshop", "environment": "test"}).json()
    assert where["release_number"] == 1
    body = {"project": "webshop", "environment": "test", "back_to": where["back_to"]}
    begun = client.post("/api/v1/deployments/rollback/", body, content_type="application/json")
    assert begun.status_code == 202 and begun.json()["rollback_of"] == where["undone"]
    assert client.get(one).json()["status"] == "held"
    assert client.post(f"{one}cancel/").json()["status"] == "cancelled"


@pytest.mark.usefixtures("far_future")
def test_the_api_refuses_a_local_time_that_is_no_moment(
    client: Client, operator: User, release: Release, filled: Environment, admin: User
) -> None:
    promotion.set_rules(filled, time_zone="Europe/Amsterdam", by=admin, now=timezone.now())
    client.force_login(operator)
    body = {"environment": "test", "due_at": "2098-03-30T02:30:00"}
    answer = client.post(f"/api/v1/releases/{release.pk}/activate/", body, content_type="application/json")
    assert answer.status_code == 400 and "does not exist" in answer.json()["detail"]


def test_a_stranger_finds_no_activation(client: Client, stranger: User, developer: User, release: Release, filled: Environment) -> None:
    now = timezone.now()
    planned = schedules.schedule(release, filled, due_at=now + timedelta(hours=1), by=developer, now=now)
    client.force_login(stranger)
    assert client.get(f"/api/v1/activations/{planned.pk}/").status_code == 404
    assert client.post(f"/api/v1/activations/{planned.pk}/cancel/").status_code == 404
    assert Activation.objects.get().status == ActivationStatus.SCHEDULED


def test_a_release_of_another_project_is_not_scheduled(release: Release, developer: User) -> None:
    other = factories.project(release.project.team, "depot").environments.get(kind="test")
    with pytest.raises(Invalid, match="another project"):
        schedules.schedule(release, other, due_at=timezone.now() + timedelta(hours=1), by=developer, now=timezone.now())
