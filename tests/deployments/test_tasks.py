"""Celery's way in: tasks take ids, may run twice and return a sentence; a broker that is away loses nothing."""

import contextlib
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from kombu.exceptions import OperationalError
from pytest_django import DjangoCaptureOnCommitCallbacks

from deployments import plans, releases, rollout, schedules, tasks
from deployments.models import Release, RunStatus, StepKind, StepRun
from portal.models import Environment
from tests.deployments.conftest import Engine


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What reached the broker: (task, step)."""
    made: list[tuple[str, int]] = []
    for task in (tasks.run_step, tasks.balance_failover):
        monkeypatch.setattr(task, "delay", lambda pk, name=task.__name__: made.append((name, pk)))
    return made


@pytest.fixture
def first(active: Release, filled: Environment, engine: Engine, developer: User) -> StepRun:
    return rollout.prepare(active, on=filled, by=developer, now=engine.now).steps.get(number=1)


def test_the_final_step_runs_as_the_task_balance_failover(
    first: StepRun, delivered: list[tuple[str, int]], django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    last = StepRun.objects.get(kind=StepKind.BALANCE_FAILOVER)
    with django_capture_on_commit_callbacks(execute=True):
        tasks.send_step(first.pk, first.kind)
        tasks.send_step(last.pk, last.kind)
        assert delivered == [], "nothing is sent before the commit"
    assert delivered == [("run_step", first.pk), ("balance_failover", last.pk)]


def test_a_broker_that_is_away_does_not_stop_the_act(
    first: StepRun, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    def away(pk: int) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(tasks.run_step, "delay", away)
    with django_capture_on_commit_callbacks(execute=True):
        tasks.send_step(first.pk, first.kind)


def test_a_task_looks_at_its_step_and_may_run_twice(first: StepRun) -> None:
    assert tasks.run_step(first.pk).startswith("1. Alerting off until the deployment ends: succeeded.")
    assert "nothing to do" in tasks.run_step(first.pk)
    assert "nothing to do" in tasks.balance_failover(987654)


def test_a_task_goes_on_with_the_next_step_without_the_broker(
    first: StepRun, delivered: list[tuple[str, int]], django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        said = tasks.run_step(first.pk)
    second = StepRun.objects.get(deployment=first.deployment, number=2)
    assert "1. Alerting off until the deployment ends: succeeded." in said and "2. Deploy routers: running." in said
    assert second.status == RunStatus.RUNNING and delivered == []


def test_a_step_whose_worker_was_killed_as_it_went_on_is_sent_by_the_next_report(
    first: StepRun, engine: Engine, filled: Environment
) -> None:
    """Not by the sweep alone, whose own tasks may be late."""
    onward: list[int] = []
    rollout.tick(first.pk, now=engine.now, onward=onward)
    engine.sent.clear()
    rollout.wake(filled.pk, "external01")
    assert engine.sent == onward


def test_a_task_does_not_go_on_for_ever(first: StepRun, monkeypatch: pytest.MonkeyPatch, delivered: list[tuple[str, int]]) -> None:
    monkeypatch.setattr(tasks, "GO_ON_FOR_SECONDS", 0.0)
    second = StepRun.objects.get(deployment=first.deployment, number=2)
    assert "2. " not in tasks.run_step(first.pk)
    second.refresh_from_db()
    assert delivered == [("run_step", second.pk)] and second.status == RunStatus.PENDING


def test_balance_failover_is_always_a_task_of_its_own(first: StepRun, engine: Engine) -> None:
    StepRun.objects.filter(deployment=first.deployment, number__gt=1).exclude(kind=StepKind.BALANCE_FAILOVER).delete()
    last = StepRun.objects.get(kind=StepKind.BALANCE_FAILOVER)
    engine.sent.clear()
    assert "Balance" not in tasks.run_step(first.pk)
    assert engine.sent == [last.pk]


def test_of_lanes_side_by_side_one_is_gone_on_with_and_the_others_are_sent(first: StepRun, engine: Engine) -> None:
    lanes = StepRun.objects.filter(deployment=first.deployment, kind=StepKind.DEPLOY_RUNTIME)
    StepRun.objects.filter(deployment=first.deployment).exclude(pk__in=[first.pk, *lanes.values_list("pk", flat=True)]).delete()
    for step in lanes:
        StepRun.objects.filter(pk=step.pk).update(stage_number=2, lane=step.machine)
    engine.sent.clear()
    onward: list[int] = []
    rollout.tick(first.pk, now=engine.now, onward=onward)
    assert len(onward) == 1 and sorted(onward + engine.sent) == sorted(step.pk for step in lanes)


def test_what_was_undone_is_not_gone_on_with(first: StepRun, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    monkeypatch.setattr(rollout, "settle", lambda deployment, now, onward: onward.append(1) or 1 / 0)
    onward: list[int] = []
    with pytest.raises(ZeroDivisionError):
        rollout.tick(first.pk, now=engine.now, onward=onward)
    assert onward == []


def test_the_sweep_sends_what_stands_still(
    first: StepRun, delivered: list[tuple[str, int]], django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    assert tasks.nudge_stalled_deployments() == "Nothing stands still."
    StepRun.objects.update(woken_at=timezone.now() - timedelta(seconds=3))
    with django_capture_on_commit_callbacks(execute=True):
        assert tasks.nudge_stalled_deployments() == "Sent again: 1."
    assert delivered == [("run_step", first.pk)]
    StepRun.objects.filter(pk=first.pk).update(status=RunStatus.WAITING)
    assert tasks.nudge_stalled_deployments() == "Nothing stands still."


def test_due_releases_are_activated_by_beat(release: Release, filled: Environment, developer: User) -> None:
    plans.plan_of(filled)
    assert tasks.activate_due_releases() == "No activation is due."
    past = timezone.now() - timedelta(hours=1)
    schedules.schedule(release, filled, due_at=past + timedelta(minutes=1), by=developer, now=past)
    assert tasks.activate_due_releases() == "Release 1 is active on Test."
    assert releases.active(filled) == release
    assert tasks.activate_due_releases() == "No activation is due."


def test_a_check_gives_up_on_a_server_that_only_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, the answer never: no worker is held."""
    monkeypatch.setattr(tasks, "PROBE_TIMEOUT_SECONDS", 0.5)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                while not over.wait(0.1):
                    with contextlib.suppress(OSError):
                        connection.send(b"H")

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        answer = tasks._ask(f"http://127.0.0.1:{server.getsockname()[1]}/")
        took = time.monotonic() - began
        over.set()
        thread.join()
    assert answer == (None, "no answer within 0 s") and took < 5
    assert tasks._ask("http://127.0.0.1:1/")[0] is None and tasks._ask("nonsense")[0] is None


def test_a_check_reads_the_status_and_nothing_more(live_server: Any) -> None:
    assert tasks._ask(f"{live_server.url}/healthz") == (200, "")
    assert tasks._ask(f"{live_server.url}/projects/") == (302, "")
