"""Deploy › Deployments and one deployment as it runs, as people see and steer it."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from deployments import plans, releases, rollout
from deployments.models import Deployment, Release, RunStatus, StepKind, StepLog, StepRun
from portal import properties
from portal.models import Environment
from runtimes.models import FailoverGroup, GroupMember, Machine, Runtime, RuntimeLog

LIST = "/projects/webshop/test/deployments/"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def deployment(release: Release, filled: Environment, group: FailoverGroup, developer: User) -> Deployment:
    """Release 1 being deployed on Test, its first step pending."""
    now = timezone.now()
    releases.activate(release, filled, by=developer, now=now)
    plans.default_plan(filled)
    return rollout.prepare(release, on=filled, by=developer, now=now)


def stop_at(deployment: Deployment, number: int, status: RunStatus, reason: str) -> None:
    """As the engine leaves it when a step breaks."""
    now = timezone.now()
    deployment.steps.filter(number__lt=number).update(status=RunStatus.SUCCEEDED, started_at=now, ended_at=now)
    deployment.steps.filter(number=number).update(status=status, reason=reason, started_at=now, ended_at=now)
    Deployment.objects.filter(pk=deployment.pk).update(status=status, started_at=now, ended_at=now)


def page(deployment: Deployment) -> str:
    return f"{LIST}{deployment.pk}/"


def test_a_running_deployment_asks_again_each_second(client: Client, viewer: User, deployment: Deployment) -> None:
    client.force_login(viewer)
    html = client.get(page(deployment)).content.decode()
    assert html.count('hx-trigger="every 1s"') == 2  # the picture and the log
    assert '<noscript><meta http-equiv="refresh"' in html
    part = client.get(page(deployment), headers=HTMX).content.decode()
    assert part.strip().startswith('<div id="deployment"') and 'hx-trigger="every 1s"' in part


def test_a_finished_one_stops_asking_and_shows_how_it_ended(client: Client, viewer: User, deployment: Deployment) -> None:
    long_ago = timezone.now() - timedelta(minutes=1)
    deployment.steps.update(status=RunStatus.SUCCEEDED, started_at=long_ago, ended_at=long_ago + timedelta(seconds=2))
    Deployment.objects.update(status=RunStatus.SUCCEEDED, started_at=long_ago, ended_at=long_ago + timedelta(seconds=12))
    client.force_login(viewer)
    html = client.get(page(deployment)).content.decode()
    assert "every 1s" not in html and "http-equiv" not in html
    assert "5 of 5 steps" in html and "12.0 s" in html


def test_who_leads_is_said_beside_what_runs(client: Client, viewer: User, deployment: Deployment, group: FailoverGroup) -> None:
    now = timezone.now()
    for machine, status, state in (("external01", "leader", "on"), ("external02", "follower", "off")):
        found = GroupMember.objects.filter(group=group, runtime__machine__name=machine)
        found.update(observed_status=status, observed_state=state, observed_epoch=7, observed_ready=True, observed_at=now)
    FailoverGroup.objects.update(epoch=7)
    Machine.objects.update(last_report_at=now)
    Runtime.objects.filter(machine__name="external02").update(observed_release=9)
    client.force_login(viewer)
    html = client.get(page(deployment)).content.decode().split("Failover groups")[1]
    first, second = html.split("external02")[0], html.split("external02")[1]
    assert 'data-status="leader"' in first and 'data-status="on"' in first
    assert 'data-status="follower"' in second and 'data-status="off"' in second
    assert 'class="release-mark is-other"' in html


def decide(client: Client, deployment: Deployment, choice: str, **more: str) -> Any:
    return client.post(f"{page(deployment)}decide/", {"choice": choice} | more)


def test_a_broken_one_offers_to_resume_and_says_the_effect(client: Client, developer: User, deployment: Deployment) -> None:
    stop_at(deployment, 3, RunStatus.TIMED_OUT, "external01.erp did not become ready within 120 s.")
    client.force_login(developer)
    html = client.get(page(deployment)).content.decode()
    assert "timed out" in html and "external01.erp did not become ready within 120 s." in html
    assert "Resume from step 3" in html and "attempt 2" in html and "then the 2 that are left" in html
    answer = decide(client, deployment, "retry")
    assert answer.url == page(deployment)
    deployment.refresh_from_db()
    assert deployment.status in (RunStatus.PENDING, RunStatus.RUNNING)


def test_one_that_stopped_in_two_lanes_names_both_steps_everywhere(client: Client, developer: User, deployment: Deployment) -> None:
    stop_at(deployment, 3, RunStatus.TIMED_OUT, "The shop answered 503.")
    deployment.steps.filter(number=3).update(kind=StepKind.HTTP_CHECK, lane="shop", url="http://shop/", machine="", connector="")
    lanes = {"kind": StepKind.WAIT_HEALTHY, "stage_number": deployment.steps.get(number=3).stage_number, "lane": "erp"}
    deployment.steps.filter(number=4).update(status=RunStatus.TIMED_OUT, reason="erp-orders: nobody leads.", attempt=2, **lanes)
    client.force_login(developer)
    html = client.get(page(deployment)).content.decode()
    bar = html[html.index('class="decision"') : html.index("deployment-steps")]
    assert "The shop answered 503." in bar and "erp-orders: nobody leads." in bar
    assert "Resume from steps 3 and 4" in bar and "Runs steps 3 and 4 again (attempts 2 and 3), then the one that is left" in bar
    assert "Skip step 3" in bar and "Step 4 still waits for a decision." in bar and 'name="step" value="3"' in bar
    assert "Wait until healthy external02.erp is not skipped: what comes next relies on its proof." in bar
    refused = decide(client, deployment, "skip", reason="The shop is shut.", step="5")
    assert refused.status_code != 200 or "failed. Look again" in refused.content.decode()
    decide(client, deployment, "skip", reason="The shop is shut.", step="3")
    assert [step.status for step in deployment.steps.filter(number__in=(3, 4))] == [RunStatus.SKIPPED, RunStatus.TIMED_OUT]
    html = client.get(page(deployment)).content.decode()
    assert "Resume from step 4" in html and "The shop is shut." in html


def test_on_production_a_roll_back_from_the_bar_is_confirmed_by_name(
    client: Client, developer: User, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(deployment, 3, RunStatus.FAILED, "No.")
    monkeypatch.setattr(Environment, "is_production", property(lambda _: True))
    former = releases.build(deployment.release.project, name="Former", by=developer)
    earlier = Deployment.objects.create(environment=deployment.environment, release=former, status=RunStatus.SUCCEEDED)
    earlier.steps.create(number=1, kind=StepKind.DEPLOY_RUNTIME, machine="external01", connector="erp", status=RunStatus.SUCCEEDED)
    Deployment.objects.filter(pk=earlier.pk).update(started_at=timezone.now())
    client.force_login(developer)
    back = {"follow": True, "headers": {"Referer": f"http://testserver{page(deployment)}"}}
    for confirm, said in (("", "Type webshop, the name of the project"), ("webshop", "ran since")):
        html = client.post(f"{page(deployment)}decide/", {"choice": "roll-back", "confirm": confirm}, **back).content.decode()
        assert said in html
    assert decide(client, deployment, "abort").url == page(deployment), "what changes nothing is not asked for twice"


def test_one_that_was_overtaken_says_so_instead(client: Client, developer: User, deployment: Deployment) -> None:
    stop_at(deployment, 3, RunStatus.FAILED, "No.")
    newer = Deployment.objects.create(environment=deployment.environment, release=deployment.release, status=RunStatus.SUCCEEDED)
    client.force_login(developer)
    html = client.get(page(deployment)).content.decode()
    assert f"Deployment {newer.pk} ran since" in html and ">Resume<" not in html
    refused = client.post(
        f"{page(deployment)}decide/", {"choice": "retry"}, follow=True, headers={"Referer": f"http://testserver{page(deployment)}"}
    )
    assert "ran since: deploy again" in refused.content.decode()


def test_cancel_ends_it_and_a_second_cancel_does_no_harm(client: Client, developer: User, deployment: Deployment) -> None:
    client.force_login(developer)
    for _ in range(2):
        assert client.post(f"{page(deployment)}cancel/").url == page(deployment)
    deployment.refresh_from_db()
    assert deployment.status == RunStatus.CANCELLED
    assert "Cancelled by developer." in client.get(page(deployment)).content.decode()


def test_a_manual_step_shows_its_instruction_and_waits_for_the_button(client: Client, developer: User, deployment: Deployment) -> None:
    step = deployment.steps.get(number=1)
    StepRun.objects.filter(pk=step.pk).update(kind=StepKind.MANUAL, instruction="Call the ERP team.")
    rollout.tick(step.pk, now=timezone.now())
    client.force_login(developer)
    html = client.get(page(deployment)).content.decode()
    assert "Step 1 waits for a person." in html and "Call the ERP team." in html
    client.post(f"{page(deployment)}steps/1/confirm/")
    rollout.tick(step.pk, now=timezone.now())
    step.refresh_from_db()
    assert step.status == RunStatus.SUCCEEDED


def test_a_step_that_waits_for_nobody_is_not_confirmed(client: Client, developer: User, deployment: Deployment) -> None:
    client.force_login(developer)
    html = client.post(f"{page(deployment)}steps/1/confirm/", headers=HTMX).content.decode()
    assert "it waits for nobody" in html


def test_the_log_holds_steps_and_runtimes_and_goes_on_from_where_it_was(client: Client, viewer: User, deployment: Deployment) -> None:
    now = timezone.now()
    Deployment.objects.update(started_at=now - timedelta(seconds=5), status=RunStatus.RUNNING)
    StepLog.objects.all().delete()
    machine = Machine.objects.get(name="external01")
    third = deployment.steps.get(number=3)
    StepLog.objects.create(deployment=deployment, number=1, step=third, at=now, machine="external01", text="The bundle is ordered.")
    RuntimeLog.objects.create(machine=machine, source="external01.erp", at=now - timedelta(hours=1), level="info", text="Long before.")
    RuntimeLog.objects.create(machine=machine, source="router", at=now, level="debug", text="A detail.")
    heard = RuntimeLog.objects.create(machine=machine, source="external01.erp", at=now, level="error", text="The folder is missing.")
    client.force_login(viewer)
    html = client.get(page(deployment)).content.decode()
    assert "The bundle is ordered." in html and "The folder is missing." in html
    assert "Long before." not in html and "A detail." not in html
    assert "router on external01" in client.get(f"{page(deployment)}?level=debug").content.decode()
    assert "The bundle is ordered." not in client.get(f"{page(deployment)}?level=error").content.decode()
    more = client.get(f"{page(deployment)}log/?step=1&machines={machine.pk}:{heard.pk}", headers=HTMX).content.decode()
    assert "log-line" not in more and f"step=1&amp;machines={machine.pk}%3A{heard.pk}" in more
    file = client.get(f"{page(deployment)}log/file/?level=debug")
    text = b"".join(file.streaming_content).decode()  # type: ignore[attr-defined]
    assert file["Content-Disposition"] == f'attachment; filename="webshop-test-deployment-{deployment.pk}.log"'
    assert text.index("A detail.") and "step 3, external01  The bundle is ordered." in text and "Long before." not in text
    assert "The bundle is ordered." not in client.get(f"{page(deployment)}?q=folder").content.decode().split('id="log"')[1]
    assert "The folder is missing." not in client.get(f"{page(deployment)}?of=3").content.decode().split('id="log"')[1]
    assert "The bundle is ordered." in client.get(f"{page(deployment)}?of=3&machine=external01").content.decode().split('id="log"')[1]


def test_what_became_a_secret_is_shown_in_no_log_and_found_by_no_search(
    client: Client, viewer: User, developer: User, admin: User, deployment: Deployment
) -> None:
    now = timezone.now()
    Deployment.objects.update(started_at=now - timedelta(seconds=5), status=RunStatus.RUNNING)
    machine, third = Machine.objects.get(name="external01"), deployment.steps.get(number=3)
    heard = RuntimeLog.objects.create(machine=machine, source="agent", at=now, level="info", text="Heard tr0ub4dor here.")
    StepLog.objects.create(deployment=deployment, number=99, step=third, at=now, machine="external01", text="Told tr0ub4dor there.")
    properties.set_value(deployment.environment, "late.password", "tr0ub4dor", secret=True, by=developer)
    client.force_login(viewer)
    addresses = [page(deployment), "/projects/webshop/test/machines/external01/?tab=log", f"{page(deployment)}?q=here"]
    for address in addresses:
        html = client.get(address).content.decode()
        assert "tr0ub4dor" not in html and "Heard ••• here." in html, address
    for tried in ("tr0", "TR0UB", "tr0ub4dor"):
        html = client.get(f"{page(deployment)}?q={tried}").content.decode()
        assert "Heard" not in html and "Told" not in html
    client.force_login(admin)
    for address in ("/admin/runtimes/runtimelog/", f"/admin/runtimes/runtimelog/{heard.pk}/change/", "/admin/runtimes/runtimelog/?q=tr0u"):
        answer = client.get(address)
        assert answer.status_code == 200 and "tr0ub4dor" not in answer.content.decode(), address
    assert "Heard" not in client.get("/admin/runtimes/runtimelog/?q=tr0u").content.decode()


def test_etcds_own_warnings_are_in_the_log_only_when_the_routers_failed(client: Client, viewer: User, deployment: Deployment) -> None:
    now = timezone.now()
    Deployment.objects.update(started_at=now - timedelta(seconds=5), status=RunStatus.RUNNING)
    machine = Machine.objects.get(name="external01")
    RuntimeLog.objects.create(machine=machine, source="router", at=now, level="warning", text="prober detected unhealthy status")
    RuntimeLog.objects.create(machine=machine, source="router", at=now, level="error", text="The disk is full.")
    client.force_login(viewer)
    html = client.get(page(deployment)).content.decode()
    assert "prober detected" not in html and "The disk is full." in html
    assert "prober detected" in client.get("/projects/webshop/test/machines/external01/?tab=log").content.decode()
    deployment.steps.filter(kind=StepKind.DEPLOY_ROUTERS).update(status=RunStatus.TIMED_OUT)
    assert "prober detected" in client.get(page(deployment)).content.decode()


@pytest.mark.parametrize(("person", "status"), [("viewer", 403), ("stranger", 404)])
@pytest.mark.parametrize("act", ["cancel", "decide", "steps/1/confirm"])
def test_who_may_not_steer(
    client: Client, request: pytest.FixtureRequest, deployment: Deployment, person: str, status: int, act: str
) -> None:
    client.force_login(request.getfixturevalue(person))
    assert client.post(f"{page(deployment)}{act}/").status_code == status
    shown = client.get(page(deployment))
    assert shown.status_code == (404 if person == "stranger" else 200)
    assert b"/cancel/" not in shown.content
    assert client.get(f"/projects/webshop/acceptance/deployments/{deployment.pk}/").status_code == 404


def test_the_list_shows_the_newest_first_and_filters(client: Client, viewer: User, deployment: Deployment) -> None:
    client.force_login(viewer)
    assert "0 of 5" in client.get(LIST).content.decode()
    assert f'href="{page(deployment)}"' not in client.get(f"{LIST}?status=failed").content.decode()


def test_an_empty_list_names_the_next_step(client: Client, viewer: User, test_environment: Environment) -> None:
    client.force_login(viewer)
    assert 'href="/projects/webshop/test/releases/"' in client.get(LIST).content.decode().split("Nothing was deployed")[1]


def test_pages_need_a_fixed_number_of_queries(
    client: Client, viewer: User, deployment: Deployment, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(100, 200):
        StepRun.objects.create(deployment=deployment, number=number, kind=StepKind.MANUAL, instruction="Wait.")
    for number in range(20):
        machine = Machine.objects.create(environment=deployment.environment, name=f"more{number}", kind="external")
        Runtime.objects.create(environment=deployment.environment, machine=machine, connector=deployment.release.project.connectors.get())
    client.force_login(viewer)
    with django_assert_max_num_queries(30):
        assert client.get(page(deployment)).status_code == 200
    with django_assert_max_num_queries(15):
        assert client.get(LIST).status_code == 200
