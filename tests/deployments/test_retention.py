"""Retention: what may go, as tables; what never goes; the dry run, the sweep, the page and the API."""

import re
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client
from django.utils import timezone

from deployments import approvals, promotion, releases, retention, rollback, rollout, schedules, tasks
from deployments.models import Activation, ActivationStatus, Deployment, Release, ReleaseRemoval, RunStatus
from deployments.retention import Facts
from portal.errors import Invalid, NotAllowed
from portal.models import Environment
from runtimes.models import Bundle, Machine, Runtime
from tests import factories
from tests.deployments.conftest import Engine
from tests.deployments.test_releases import together

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def facts(number: int, *, days: int = 100, needed: tuple[str, ...] = ()) -> Facts:
    return Facts(number, NOW - timedelta(days=days), needed)


@pytest.mark.parametrize(
    ("given", "keep_last", "keep_days", "gone"),
    [
        pytest.param([], 1, 0, [], id="nothing"),
        pytest.param([facts(1), facts(2), facts(3)], 1, 0, [2, 1], id="all but the newest"),
        pytest.param([facts(3), facts(1), facts(2)], 2, 0, [1], id="the newest by number, in whatever order"),
        pytest.param([facts(1), facts(2)], 0, 0, [1], id="the newest always stays: its number must not be given again"),
        pytest.param([facts(1, days=89), facts(2)], 1, 90, [], id="young enough"),
        pytest.param([facts(1, days=90), facts(2)], 1, 90, [1], id="just too old"),
        pytest.param([facts(1, needed=("active on Test",)), facts(2), facts(3)], 1, 0, [2], id="what is needed stays"),
        pytest.param([facts(1), facts(2, needed=("runs on Test",)), facts(3)], 1, 0, [1], id="a needed one takes no place of another"),
    ],
)
def test_which_releases_may_go(given: list[Facts], keep_last: int, keep_days: int, gone: list[int]) -> None:
    found = retention.decide(given, keep_last=keep_last, keep_days=keep_days, now=NOW)
    assert [verdict.number for verdict in found if verdict.goes] == gone
    assert all(verdict.reason.startswith("Goes: " if verdict.goes else "Kept: ") for verdict in found)


@pytest.fixture
def old(release: Release, developer: User) -> list[Release]:
    """Five releases, all long ago; the newest is not among those the tests use."""
    for name in ("b", "c", "d", "e"):
        releases.build(release.project, name=name, by=developer)
    Release.objects.update(created_at=timezone.now() - timedelta(days=400))
    return list(Release.objects.order_by("number"))


@pytest.fixture
def strict(release: Release, admin: User) -> None:
    retention.set_rule(release.project, enabled=True, keep_last=1, keep_days=0, by=admin)


def kept(release: Release) -> dict[int, str]:
    return {row.number: verdict.reason for row, verdict in retention.verdicts(release.project, now=timezone.now()) if not verdict.goes}


@pytest.mark.usefixtures("strict")
def test_what_is_needed_never_goes(
    release: Release, old: list[Release], filled: Environment, developer: User, operator: User, acceptance: Environment
) -> None:
    now = timezone.now()
    releases.activate(old[0], filled, by=developer, now=now)
    planned = schedules.schedule(old[1], filled, due_at=now + timedelta(hours=1), by=developer, now=now)
    promotion.set_rules(acceptance, approvals=1, by=operator, now=now)
    approvals.request(old[2], acceptance, by=developer, now=now)
    Deployment.objects.create(environment=acceptance, release=old[3], status=RunStatus.WAITING)
    assert kept(release) == {
        1: "Kept: active on Test.",
        2: "Kept: scheduled on Test.",
        3: "Kept: approval requested on Acceptance.",
        4: "Kept: being deployed on Acceptance.",
        5: "Kept: among the newest 1.",
    }
    schedules.hold(planned, reason="", by=developer)
    assert kept(release)[2] == "Kept: held on Test."
    assert retention.sweep(now=now) == "No release goes."
    schedules.cancel(planned, by=developer)
    assert retention.sweep(now=now) == "Webshop: removed release 2."
    assert not Activation.objects.filter(pk=planned.pk).exists()


@pytest.mark.usefixtures("strict")
def test_the_way_back_never_goes(release: Release, old: list[Release], filled: Environment) -> None:
    started = timezone.now()
    for number, status in ((0, RunStatus.SUCCEEDED), (1, RunStatus.SUCCEEDED), (2, RunStatus.SUCCEEDED), (3, RunStatus.FAILED)):
        factories.deployed(filled, old[number], status=status, started_at=started)
    assert kept(release) == {
        3: "Kept: deployed on Test, needed to roll back Test.",
        4: "Kept: its deployment on Test can be resumed.",
        5: "Kept: among the newest 1.",
    }
    factories.deployed(filled, old[3], started_at=started)
    assert kept(release)[3] == "Kept: needed to roll back Test." and kept(release)[4] == "Kept: deployed on Test."


@pytest.mark.usefixtures("strict")
def test_what_a_machine_runs_or_is_ordered_to_run_never_goes(
    active: Release, old: list[Release], engine: Engine, filled: Environment, developer: User
) -> None:
    engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    Deployment.objects.all().delete()
    Activation.objects.all().delete()
    Runtime.objects.filter(machine__name="external02").update(observed_release=2)
    assert kept(active) == {1: "Kept: runs on Test.", 2: "Kept: runs on Test.", 5: "Kept: among the newest 1."}
    Runtime.objects.update(observed_release=3, desired_release=3)  # told so of the very bundle that release 1 made
    assert kept(active) == {1: "Kept: its bundle runs on Test.", 3: "Kept: runs on Test.", 5: "Kept: among the newest 1."}
    Runtime.objects.update(observed_release=2, desired_release=1)
    assert kept(active)[1] == "Kept: ordered on Test."


@pytest.mark.usefixtures("strict")
def test_a_removed_release_takes_its_history_along_and_its_number_is_not_given_again(
    active: Release, old: list[Release], engine: Engine, filled: Environment, developer: User
) -> None:
    engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    Activation.objects.update(status=ActivationStatus.REPLACED)
    for number in (2, 3):
        factories.deployed(filled, old[number])
    Runtime.objects.update(observed_release=4, desired_bundle=None)
    assert tasks.forget_old_releases() == "Webshop: removed release 2, 1."
    assert list(Release.objects.order_by("number").values_list("number", flat=True)) == [3, 4, 5]
    row = ReleaseRemoval.objects.get(number=1)
    assert (row.name, row.digest, row.deployments) == ("First", active.digest, 1)
    assert not Bundle.objects.filter(release_number=1).exists()
    assert releases.build(active.project, name="Next", by=developer).number == 6


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("runs", "removed", "back_to"),
    [
        pytest.param([1, 2, 3, -2, -1], {2}, None, id="1 was gone back to by way of 2, which goes: 3 does not come back"),
        pytest.param([1, 2, 3, -2, 4, 5], {2}, 4, id="what 2 replaced when it was gone back to"),
    ],
)
def test_a_roll_back_that_is_removed_leaves_what_it_took_away_out_of_the_way_back(
    release: Release, old: list[Release], filled: Environment, runs: list[int], removed: set[int], back_to: int | None
) -> None:
    """Negative: a roll back to that release."""
    made: list[Deployment] = []
    for number in runs:
        undone = made[-1] if number < 0 else None
        made.append(factories.deployed(filled, old[abs(number) - 1], rollback_of=undone, is_rollback=number < 0))
    numbers = dict(Release.objects.values_list("number", "pk"))
    Activation.objects.create(environment=filled, release=old[2], status=ActivationStatus.HELD)  # so that 3 stays
    assert removed <= set(retention.apply(release.project, now=timezone.now()))
    found = rollback.choose(rollback.runs_of(filled))
    assert (found.release if found else None) == (numbers[back_to] if back_to else None)
    if back_to == 4:  # and further back from there: 3, which was rolled back, does not come
        factories.deployed(filled, old[3], is_rollback=True)
        found = rollback.choose(rollback.runs_of(filled))
        assert found is None or found.release == numbers.get(1)


@pytest.mark.usefixtures("strict")
def test_a_bundle_that_another_project_runs_too_keeps_no_release_from_going(
    release: Release, old: list[Release], filled: Environment
) -> None:
    bundle = Bundle.objects.create(digest="d" * 64, environment=filled, release_number=1, content=b"x")
    other = factories.project(release.project.team, slug="tills")
    Runtime.objects.create(
        environment=other.environments.get(kind="test"),
        machine=Machine.objects.create(environment=other.environments.get(kind="test"), name="external01", kind="external"),
        connector=factories.failover_design(other),
        desired_bundle=bundle,
    )
    assert 1 in retention.apply(release.project, now=timezone.now())
    assert Bundle.objects.filter(pk=bundle.pk).exists(), "the other project runs it"


def test_a_rule_that_is_off_removes_nothing(release: Release, old: list[Release], admin: User) -> None:
    retention.set_rule(release.project, keep_last=1, keep_days=0, by=admin)
    assert retention.sweep(now=timezone.now()) == "No release goes."
    assert sum(verdict.goes for _, verdict in retention.verdicts(release.project, now=timezone.now())) == 4
    with pytest.raises(Invalid, match="from 1 to 10000") as refusal:
        retention.set_rule(release.project, keep_last=0, by=admin)
    assert refusal.value.field == "keep_last"


def test_what_is_scheduled_while_the_sweep_runs_stays(
    release: Release, old: list[Release], filled: Environment, developer: User, admin: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    retention.set_rule(release.project, enabled=True, keep_last=1, keep_days=0, by=admin)
    found = retention.verdicts(release.project, now=timezone.now())
    schedules.schedule(old[0], filled, due_at=timezone.now() + timedelta(hours=1), by=developer, now=timezone.now())
    monkeypatch.setattr(retention, "verdicts", lambda project, now: found)
    assert retention.apply(release.project, now=timezone.now()) == [4, 3, 2]


PAGE = "/projects/webshop/test/releases/retention/"


def test_the_page_shows_what_would_go(client: Client, admin: User, viewer: User, release: Release, old: list[Release]) -> None:
    client.force_login(admin)
    assert client.post(PAGE, {"keep_last": "2", "keep_days": "30"}).status_code == 302
    html = client.get(PAGE).content.decode()
    assert html.count("<span>Goes</span>") == 3 and "What would go" in html
    assert "greater than or equal to 1" in client.post(PAGE, {"keep_last": "0", "keep_days": "30"}).content.decode()
    client.force_login(viewer)
    assert "needs the role administrator" in client.get(PAGE).content.decode()
    assert client.post(PAGE, {"keep_last": "1", "keep_days": "0"}).status_code == 403


def test_a_rule_that_somebody_else_changed_is_not_overwritten_unseen(client: Client, admin: User, release: Release) -> None:
    client.force_login(admin)
    opened = re.search(r'name="seen" value="([^"]+)"', client.get(PAGE).content.decode())
    assert opened is not None
    retention.set_rule(release.project, by=admin, enabled=True, keep_last=7, keep_days=8)
    wish = {"keep_last": "2", "keep_days": "30", "seen": opened[1]}
    html = client.post(PAGE, wish).content.decode()
    assert "admin changed the rule since you opened it: on, the newest 7, younger than 8 days." in html
    assert retention.rule_of(release.project).keep_last == 7
    told = re.search(r'name="seen" value="([^"]+)"', html)
    assert told is not None and client.post(PAGE, wish | {"seen": told[1]}).status_code == 302
    assert retention.rule_of(release.project).keep_last == 2


def test_the_api_shows_the_dry_run(
    client: Client, admin: User, developer: User, stranger: User, release: Release, old: list[Release]
) -> None:
    address = "/api/v1/projects/webshop/retention/"
    client.force_login(admin)
    body = {"enabled": True, "keep_last": 1, "keep_days": 0}
    found = client.patch(address, body, content_type="application/json").json()
    assert found["enabled"] is True and [row["number"] for row in found["releases"] if row["goes"]] == [4, 3, 2, 1]
    assert Release.objects.count() == 5
    client.force_login(developer)
    assert client.patch(address, {"keep_last": 9}, content_type="application/json").status_code == 403
    client.force_login(stranger)
    assert client.get(address).status_code == 404


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("strict")
def test_what_is_scheduled_in_the_same_instant_stays(release: Release, old: list[Release], filled: Environment, developer: User) -> None:
    """The sweep has decided that release 2 goes; before it removes it, somebody schedules it and has not committed yet."""
    now = timezone.now()
    decided, scheduled = threading.Event(), threading.Event()

    def schedule() -> None:
        decided.wait(10)
        with transaction.atomic():
            schedules.schedule(old[1], filled, due_at=now + timedelta(hours=1), by=developer, now=now)
            scheduled.set()
            time.sleep(0.5)  # long enough for a sweep that does not wait

    def sweep() -> list[int]:
        found = retention.verdicts(release.project, now=now)
        decided.set()
        scheduled.wait(10)
        return [row.number for row, verdict in found if verdict.goes and retention._remove(row, now=now, by=None)]

    _, removed = together(schedule, sweep)
    assert removed == [4, 3, 1]
    assert Activation.objects.get().release == old[1]


def test_who_comes_too_late_is_told_that_the_release_is_gone(
    release: Release, old: list[Release], filled: Environment, developer: User
) -> None:
    now = timezone.now()
    Release.objects.filter(pk=old[1].pk).delete()
    with pytest.raises(NotAllowed, match="Release 2 was removed a moment ago"):
        schedules.schedule(old[1], filled, due_at=now + timedelta(hours=1), by=developer, now=now)
    with pytest.raises(NotAllowed, match="Release 2 was removed a moment ago"):
        releases.activate(old[1], filled, by=developer, now=now)
