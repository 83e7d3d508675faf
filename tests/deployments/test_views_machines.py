"""Dashboard, Deploy › Architecture and a machine's page, as people with each role see and use them."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cli import show
from deployments.models import Activation, Approval, ApprovalRequest, Deployment, EnvironmentRules, Release, StepRun
from deployments.views import machines as machines_views
from portal import ages, design, properties, router_addresses
from portal.models import Connector, DesignedMachine, Environment, MachineKind, Placement, Project, Property
from runtimes import fleet, joining, protocol
from runtimes.agent.console import DEFAULT_HOME
from runtimes.models import Bundle, FailoverGroup, GroupMember, JoinToken, LeadershipChange, Machine, Router, Runtime, RuntimeLog
from tests import factories
from tests.runtimes.conftest import said, said_of

Status, State = protocol.Status, protocol.State
HTMX = {"HX-Request": "true"}
TEST = "/projects/webshop/test/"
TABS = ["overview", "runtimes", "failover", "start-stop", "start-stop&view=groups", "properties", "log", "history"]


@pytest.fixture
def group(test_environment: Environment, erp: Connector) -> FailoverGroup:
    """Test as applied, external01 leading; both agents reported just now, with flows, peers and a router."""
    made = factories.applied(test_environment, erp)
    bundle = Bundle.objects.create(digest="d" * 64, environment=test_environment, release_number=3, content=b"x")
    Runtime.objects.update(desired_bundle=bundle)
    for runtime in Runtime.objects.filter(environment=test_environment).select_related("machine", "connector"):
        report_of(runtime, made, leads=runtime.machine.name == "external01")
    return made


def report_of(runtime: Runtime, group: FailoverGroup, *, leads: bool, release: int = 3, sequence: int = 1) -> None:
    status = Status.LEADER if leads else Status.FOLLOWER
    flows = [
        protocol.FlowReport(flow="f-orders", name="erp-orders", on=leads, group=group.group.key, taken=12, delivered=11, failed=1),
        protocol.FlowReport(flow="f-free", name="erp-heartbeat", on=True, reason="a folder came back"),
    ]
    other = "external02" if runtime.machine.name == "external01" else "external01"
    peer = protocol.PeerReport(
        machine=other, address="10.0.0.9:2380", reachable=False, since="2026-11-22T11:00:00Z", error="timed out after 1 s"
    )
    report = said(
        sequence,
        router=protocol.RouterReport(state=protocol.RouterState.RUNNING, warning="etcd 3.5.1: for a one-machine demonstration only"),
        peers=[peer],
        runtimes=[said_of(runtime, group, status, epoch=41, release=release, digest="d" * 64, flows=flows)],
    )
    assert fleet.record_report(runtime.machine, report, now=timezone.now())


@pytest.fixture
def third_release(webshop: Project, test_environment: Environment) -> Release:
    made = Release.objects.create(project=webshop, number=3, name="Stock", content={}, digest="x" * 64)
    Activation.objects.create(environment=test_environment, release=made, status="active", activated_at=timezone.now())
    return made


def text_of(client: Client, address: str, **more: object) -> str:
    answer = client.get(address, **more)  # type: ignore[arg-type]
    assert answer.status_code == 200
    return " ".join(answer.content.decode().split())


# ----------------------------------------------------------------------------------------------------------------- dashboard


def test_the_dashboard_shows_which_release_is_where_and_what_is_not_well(
    client: Client, viewer: User, group: FailoverGroup, third_release: Release
) -> None:
    deployment = Deployment.objects.create(environment=group.environment, release=third_release, status="running")
    StepRun.objects.create(deployment=deployment, number=1, kind="deploy-routers", status="succeeded")
    StepRun.objects.create(deployment=deployment, number=2, kind="balance-failover")
    Machine.objects.filter(name="core01").update(last_report_at=timezone.now() - timedelta(minutes=3))
    client.force_login(viewer)
    text = text_of(client, "/")
    assert "<strong>3</strong> Stock" in text and "Runs on 2 of 2" in text and 'data-status="active"' in text
    assert "1 of 2 steps done" in text and "1 healthy" in text
    assert f'href="{TEST}machines/core01/"' in text and "is silent" in text and "1 thing to look at" in text


def test_the_dashboard_tells_of_a_runtime_that_should_run_and_does_not(
    client: Client, viewer: User, group: FailoverGroup, third_release: Release
) -> None:
    failing = Runtime.objects.filter(machine__name="external02")
    failing.update(observed_state="backoff", observed_reason="exited with status 2: 9 exits in a row", desired_running=True)
    client.force_login(viewer)
    text = text_of(client, "/")
    assert "external02.erp</a> does not run: exited with status 2: 9 exits in a row" in text
    assert "All well" not in text and "Runs on 1 of 2" in text
    failing.update(desired_running=False)
    assert "does not run" not in text_of(client, "/"), "a person stopped it"


def test_one_silence_has_one_age_and_a_time_says_what_is_due_then(
    client: Client, viewer: User, group: FailoverGroup, third_release: Release
) -> None:
    since = timezone.now() - timedelta(seconds=175)
    Machine.objects.filter(name="external02").update(last_report_at=since)
    GroupMember.objects.filter(runtime__machine__name="external02").update(observed_at=since)
    Activation.objects.create(
        environment=group.environment, release=third_release, status="scheduled", due_at=timezone.now() + timedelta(hours=1)
    )
    client.force_login(viewer)
    text = text_of(client, "/")
    assert "external02 has not been heard from for 2 min" in text and ">2 min ago</time>" in text and "3 min" not in text
    assert "Scheduled for <time" in text


@pytest.mark.parametrize(("seconds", "words"), [(59.9, "59 s ago"), (175, "2 min ago"), (7199, "1 h ago"), (200_000, "2 days ago")])
def test_the_command_tells_ages_as_pages_do(seconds: float, words: str) -> None:
    moment = timezone.now() - timedelta(seconds=seconds)
    assert show.age(moment.isoformat()) == words == f"{ages.in_words(seconds)} ago"


def test_the_dashboard_tells_what_waits_for_a_person(
    client: Client, viewer: User, operator: User, group: FailoverGroup, third_release: Release
) -> None:
    now, environment = timezone.now(), group.environment
    Activation.objects.create(environment=environment, release=third_release, status="held", due_at=now + timedelta(hours=1))
    EnvironmentRules.objects.create(environment=environment, approvals=1)
    asked = ApprovalRequest.objects.create(
        environment=environment, release=third_release, values_digest="", values=[], created_at=now, created_by=viewer,
        expires_at=now + timedelta(days=1),
    )  # fmt: skip
    client.force_login(viewer)
    text = text_of(client, "/")
    assert "2 things to look at" in text and "All well" not in text
    assert "scheduled activation</a> of release 3 is held: resume or cancel it" in text
    assert "release 3</a> waits for approval, asked by viewer" in text
    Approval.objects.create(request=asked, person=viewer, at=now)
    assert "waits for approval" in text_of(client, "/"), "who asked does not count"
    Approval.objects.create(request=asked, person=operator, at=now)
    assert "waits for approval" not in text_of(client, "/")


def test_the_dashboard_shows_only_my_projects(client: Client, stranger: User, group: FailoverGroup) -> None:
    client.force_login(stranger)
    text = text_of(client, "/")
    assert "Webshop" not in text and "You are in no project yet" in text


def test_mixed_releases_are_told_apart(client: Client, viewer: User, group: FailoverGroup, third_release: Release) -> None:
    Release.objects.create(project=third_release.project, number=2, name="Old", content={}, digest="y" * 64)
    Runtime.objects.filter(machine__name="external02").update(observed_release=2)
    client.force_login(viewer)
    text = text_of(client, "/")
    assert text.count("Runs on 1 of 2") == 2


def test_the_dashboard_asks_signed_out_people_to_sign_in(client: Client, db: None) -> None:
    assert client.get("/").headers["Location"].startswith("/login/")


def test_more_projects_need_no_more_queries_on_the_dashboard(
    client: Client, viewer: User, group: FailoverGroup, third_release: Release
) -> None:
    client.force_login(viewer)
    client.get("/")
    with CaptureQueriesContext(connection) as few:
        client.get("/")
    for number in range(4):
        project = factories.project(group.environment.project.team, f"more-{number}")
        release = Release.objects.create(project=project, number=1, name="One", content={}, digest="x" * 64)
        environment = project.environments.get(kind="test")
        Machine.objects.create(environment=environment, name="external01", kind="external")
        Activation.objects.create(environment=environment, release=release, status="active")
        Deployment.objects.create(environment=environment, release=release, status="succeeded")
    with CaptureQueriesContext(connection) as many:
        client.get("/")
    assert len(many) == len(few)


# -------------------------------------------------------------------------------------------------------------- architecture


def test_the_architecture_shows_machines_runtimes_routers_and_what_differs(
    client: Client, viewer: User, group: FailoverGroup, third_release: Release
) -> None:
    Runtime.objects.filter(machine__name="external02").update(observed_release=2)
    client.force_login(viewer)
    text = text_of(client, f"{TEST}architecture/")
    assert 'data-machine="external01"' in text and 'data-runtime="external02.erp"' in text and "Witness" in text
    assert "Runs release 2; release 3 is active." in text and "1 runtime does not run it yet" in text
    assert 'data-context-menu="#menu-external01"' in text and 'aria-label="Menu of external01.erp"' in text


@pytest.mark.parametrize(
    ("status", "said"), [("timed-out", " waits for a decision"), ("waiting", " waits for a person"), ("running", ""), ("cancelled", None)]
)
def test_the_architecture_leads_to_a_deployment_that_is_under_way_or_waits(
    client: Client, viewer: User, group: FailoverGroup, third_release: Release, status: str, said: str | None
) -> None:
    run = Deployment.objects.create(environment=group.environment, release=third_release, status=status)
    client.force_login(viewer)
    _, link, after = text_of(client, f"{TEST}architecture/").partition(f'href="{run.get_absolute_url()}">Deployment {run.pk}</a>')
    assert bool(link) == (said is not None) and after.startswith(said or "")
    assert ("waits for" in after) == bool(said)


def test_a_design_that_is_ahead_is_applied_from_where_it_is_told(
    client: Client, developer: User, viewer: User, group: FailoverGroup, third_release: Release
) -> None:
    client.force_login(developer)
    assert "apply-pending" not in text_of(client, f"{TEST}architecture/")
    design.add_machine(group.environment.project, name="external09", kind=MachineKind.EXTERNAL)
    Runtime.objects.filter(machine__name="external02").update(observed_release=2)
    text = text_of(client, f"{TEST}architecture/")
    assert f'id="apply-pending" href="{TEST}architecture/apply/"' in text and "of the design" in text
    assert f'id="deploy-active" href="{TEST}releases/3/deploy/"' in text
    client.force_login(viewer)
    text = text_of(client, f"{TEST}architecture/")
    assert "of the design" in text and "apply-pending" not in text and "Applying needs the role developer" in text


def test_a_viewer_gets_no_buttons_that_would_be_refused(client: Client, viewer: User, group: FailoverGroup) -> None:
    client.force_login(viewer)
    text = text_of(client, f"{TEST}architecture/?edit=1")
    assert "/apply/" not in text and "/stop/" not in text and "/register/" not in text
    assert "needs the role developer" in text


def test_nothing_applied_names_the_next_step(client: Client, developer: User, erp: Connector) -> None:
    client.force_login(developer)
    text = text_of(client, f"{TEST}architecture/")
    assert "Nothing is applied to this environment yet" in text and f"{TEST}architecture/apply/" in text


def test_apply_lists_the_routers_first_and_every_other_change(client: Client, developer: User, erp: Connector) -> None:
    client.force_login(developer)
    text = text_of(client, f"{TEST}architecture/apply/", headers=HTMX)
    routers, others = text.split("Every other change")
    for name in ("external01", "external02"):
        assert f"Router on {name} will be created." in routers and f"Machine {name}" in others
    assert "Witness on core01 will be created." in routers and Machine.objects.count() == 0


def seen(text: str) -> str:
    found = re.search(r'name="seen" value="([0-9a-f]{64})"', text)
    assert found
    return found[1]


def test_what_was_confirmed_is_applied(client: Client, developer: User, erp: Connector) -> None:
    client.force_login(developer)
    digest = seen(text_of(client, f"{TEST}architecture/apply/", headers=HTMX))
    answer = client.post(f"{TEST}architecture/apply/", {"seen": digest}, follow=True)
    assert "is as designed now" in answer.content.decode()
    assert Machine.objects.count() == 3 and Router.objects.count() == 3 and Runtime.objects.count() == 2


def test_a_difference_that_grew_meanwhile_is_refused_and_shown(client: Client, developer: User, erp: Connector) -> None:
    client.force_login(developer)
    digest = seen(text_of(client, f"{TEST}architecture/apply/", headers=HTMX))
    late = DesignedMachine.objects.create(project=erp.project, name="external09", kind=MachineKind.EXTERNAL)
    answer = client.post(f"{TEST}architecture/apply/", {"seen": digest}, headers=HTMX)
    text = answer.content.decode()
    assert answer.status_code == 200 and "The design changed since you looked" in text and f"Machine {late.name}" in text
    assert Machine.objects.count() == 0 and seen(text) != digest


@pytest.mark.parametrize(
    ("person", "kind", "status"),
    [
        ("viewer", "test", 403),
        ("developer", "test", 200),
        ("developer", "production", 403),
        ("operator", "production", 200),
        ("stranger", "test", 404),
    ],
)
def test_who_may_apply(client: Client, request: pytest.FixtureRequest, erp: Connector, person: str, kind: str, status: int) -> None:
    client.force_login(request.getfixturevalue(person))
    assert client.get(f"/projects/webshop/{kind}/architecture/apply/").status_code == status


def test_a_runtime_that_was_never_heard_of_is_not_called_stopped(client: Client, viewer: User, group: FailoverGroup) -> None:
    Runtime.objects.filter(machine__name="external02").update(observed_at=None, observed_state="stopped")
    client.force_login(viewer)
    text = text_of(client, f"{TEST}architecture/")
    assert 'data-status="absent"' in text and 'data-status="stopped"' not in text


def test_editing_shows_what_is_pending(client: Client, developer: User, group: FailoverGroup, erp: Connector) -> None:
    late = DesignedMachine.objects.create(project=erp.project, name="external09", kind=MachineKind.EXTERNAL)
    Placement.objects.create(connector=erp, machine=late)
    client.force_login(developer)
    assert "external09" in text_of(client, f"{TEST}architecture/?edit=1")
    assert "external09" not in text_of(client, f"{TEST}architecture/")


def test_more_machines_need_no_more_queries(client: Client, operator: User, group: FailoverGroup, erp: Connector) -> None:
    client.force_login(operator)
    address = f"{TEST}architecture/"
    client.get(address, headers=HTMX)
    with CaptureQueriesContext(connection) as few:
        client.get(address, headers=HTMX)
    for number in range(4):
        machine = Machine.objects.create(environment=group.environment, name=f"more{number}", kind="external", joined_at=timezone.now())
        runtime = Runtime.objects.create(environment=group.environment, machine=machine, connector=erp, failover=True)
        GroupMember.objects.create(group=group, runtime=runtime)
        Router.objects.create(machine=machine)
    with CaptureQueriesContext(connection) as many:
        client.get(address, headers=HTMX)
    assert len(many) == len(few)


# ------------------------------------------------------------------------------------------------------------------- machine


@pytest.mark.parametrize("tab", TABS)
def test_every_tab_opens_for_a_viewer_and_not_for_a_stranger(
    client: Client, viewer: User, stranger: User, group: FailoverGroup, tab: str
) -> None:
    client.force_login(viewer)
    text_of(client, f"{TEST}machines/external01/?tab={tab}")
    assert "<html" not in client.get(f"{TEST}machines/external01/?tab={tab}", headers=HTMX).content.decode()
    client.force_login(stranger)
    assert client.get(f"{TEST}machines/external01/?tab={tab}").status_code == 404


def test_overview_tells_agent_router_warning_and_who_reaches_whom(client: Client, viewer: User, group: FailoverGroup) -> None:
    client.force_login(viewer)
    text = text_of(client, f"{TEST}machines/external01/")
    assert "for a one-machine demonstration only" in text and "Not reachable" in text and "timed out after 1 s" in text


def test_failover_shows_placeholder_value_and_what_the_peers_measured(client: Client, developer: User, group: FailoverGroup) -> None:
    properties.set_value(group.environment, "external01.failover.internal-ip", "10.0.0.11", by=developer)
    client.force_login(developer)
    text = text_of(client, f"{TEST}machines/external01/?tab=failover")
    assert "${external01.failover.internal-ip}" in text and "<code>10.0.0.11</code>" in text
    assert "${external01.failover.port}" in text and "No value" in text
    assert "from <strong>external02</strong>" in text and "Not reachable" in text


def test_choosing_leader_makes_the_former_one_backup_and_says_so(client: Client, developer: User, group: FailoverGroup) -> None:
    Runtime.objects.filter(machine__name="external02").update(preference="leader")
    client.force_login(developer)
    address = f"{TEST}machines/external01/runtimes/erp/preference/"
    text = client.post(address, {"preference": "leader"}, follow=True).content.decode()
    assert dict(Runtime.objects.values_list("machine__name", "preference")) == {"external01": "leader", "external02": "backup"}
    assert "external01.erp is preferred Leader now; its sibling on external02 became Backup" in text


def test_a_preference_that_does_not_exist_is_refused_in_words(client: Client, developer: User, group: FailoverGroup) -> None:
    client.force_login(developer)
    answer = client.post(f"{TEST}machines/external01/runtimes/erp/preference/", {"preference": "boss"})
    assert answer.status_code == 400 and "leader, backup or none" in answer.content.decode()


def test_flows_show_group_status_counters_and_only_the_ungrouped_stop_here(client: Client, operator: User, group: FailoverGroup) -> None:
    client.force_login(operator)
    text = text_of(client, f"{TEST}machines/external01/?tab=start-stop")
    assert "erp-heartbeat" in text and "a folder came back" in text and 'data-status="leader"' in text
    assert "/flows/f-free/stop/" in text and "/flows/f-orders/stop/" not in text


def test_an_ungrouped_flow_is_stopped_and_started(client: Client, operator: User, group: FailoverGroup) -> None:
    content = protocol.BundleContent(
        environment="test",
        machine="external01",
        connector="erp",
        release=3,
        groups=[],
        flows=[
            protocol.FlowSpec(
                id="f-free",
                name="erp-heartbeat",
                version="1.0.0",
                inbound=protocol.Component(kind=protocol.ComponentKind.FILE),
                outbound=protocol.Component(kind=protocol.ComponentKind.LOG),
            )
        ],
    )
    Runtime.objects.update(desired_bundle=fleet.store_bundle(group.environment, content))
    client.force_login(operator)
    base = f"{TEST}machines/external01/runtimes/erp/flows/f-free/"
    client.post(base + "stop/")
    runtime = Runtime.objects.get(machine__name="external01")
    assert runtime.desired_stopped_flows == ["f-free"]
    address = f"{TEST}machines/external01/?tab=start-stop"
    text = text_of(client, address)
    assert 'data-status="stopping"' in text and "A person stopped it: it finishes what it took" in text, "it still runs"
    Runtime.objects.filter(pk=runtime.pk).update(observed_flows=[flow | {"on": False} for flow in runtime.observed_flows])
    text = text_of(client, address)
    assert "Stopped by a person." in text and 'data-status="stopping"' not in text
    client.post(base + "start/")
    runtime.refresh_from_db()
    assert runtime.desired_stopped_flows == []
    assert client.post(base + "dance/").status_code == 404 and client.get(base + "stop/").status_code == 405


def test_groups_tab_shows_status_state_and_consequences(client: Client, operator: User, group: FailoverGroup) -> None:
    client.force_login(operator)
    text = text_of(client, f"{TEST}machines/external02/?tab=start-stop&view=groups")
    assert 'data-status="follower"' in text and 'data-status="off"' in text
    assert "<strong>Play:</strong> external01 stops first, then external02 takes over." in text


def test_stopping_a_runtime_says_who_takes_over_first(client: Client, operator: User, group: FailoverGroup) -> None:
    client.force_login(operator)
    address = f"{TEST}machines/external01/runtimes/erp/stop/"
    assert "It leads erp-orders: external02 takes over." in text_of(client, address, headers=HTMX)
    assert Runtime.objects.filter(desired_running=True).count() == 2, "looking does nothing"
    client.post(address)
    assert Runtime.objects.get(machine__name="external01").desired_running is False
    assert "Stopped by a person" in text_of(client, f"{TEST}architecture/")
    client.post(f"{TEST}machines/external01/runtimes/erp/start/")
    assert Runtime.objects.get(machine__name="external01").desired_running is True


def test_restarting_a_machine_restarts_what_should_run(client: Client, operator: User, group: FailoverGroup) -> None:
    client.force_login(operator)
    client.post(f"{TEST}machines/external01/restart/")
    assert dict(Runtime.objects.values_list("machine__name", "desired_restarts")) == {"external01": 1, "external02": 0}


def test_of_several_runtimes_all_are_restarted_or_none(
    client: Client, operator: User, group: FailoverGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody stops one of them while the dialog is open."""
    first = Runtime.objects.get(machine__name="external01")
    connector = Connector.objects.create(project=group.environment.project, system=first.connector.system, name="web")
    second = Runtime.objects.create(environment=first.environment, machine=first.machine, connector=connector)
    stopped = False

    def restart(runtime: Runtime) -> None:
        nonlocal stopped
        if not stopped:
            stopped = bool(Runtime.objects.filter(pk=second.pk if runtime.pk == first.pk else first.pk).update(desired_running=False))
        fleet.restart(runtime)

    monkeypatch.setitem(machines_views.RUNTIME_ACTS, "restart", restart)
    client.force_login(operator)
    assert "is stopped: start it instead" in client.post(f"{TEST}machines/external01/restart/").content.decode()
    assert not Runtime.objects.exclude(desired_restarts=0).exists()


@pytest.mark.parametrize("person", ["viewer", "developer"])
@pytest.mark.parametrize("path", ["runtimes/erp/stop/", "restart/", "runtimes/erp/flows/f-free/stop/"])
def test_below_operator_nothing_is_stopped(
    client: Client, request: pytest.FixtureRequest, group: FailoverGroup, person: str, path: str
) -> None:
    client.force_login(request.getfixturevalue(person))
    assert client.post(f"{TEST}machines/external01/{path}").status_code == 403
    assert Runtime.objects.filter(desired_running=True, desired_restarts=0).count() == 2


def test_a_silent_machine_shows_what_it_last_said_and_when(client: Client, viewer: User, group: FailoverGroup) -> None:
    long_ago = timezone.now() - timedelta(minutes=4)
    Machine.objects.filter(name="external01").update(last_report_at=long_ago)
    GroupMember.objects.filter(runtime__machine__name="external01").update(observed_at=long_ago)
    client.force_login(viewer)
    text = text_of(client, f"{TEST}machines/external01/?tab=runtimes")
    assert "external01 is silent" in text and 'data-status="unknown"' in text and 'data-status="ready"' not in text


def test_the_log_is_filtered_by_level_and_source(client: Client, viewer: User, group: FailoverGroup) -> None:
    machine = Machine.objects.get(name="external01")
    for source, level, text in (("router", "info", "calm sea"), ("router", "error", "high waves"), ("agent", "error", "lost oar")):
        RuntimeLog.objects.create(machine=machine, source=source, level=level, text=text, at=timezone.now())
    client.force_login(viewer)
    assert "calm sea" in text_of(client, f"{TEST}machines/external01/?tab=log")
    text = text_of(client, f"{TEST}machines/external01/?tab=log&level=warning&source=router")
    assert "high waves" in text and "calm sea" not in text and "lost oar" not in text


def test_history_tells_what_the_machine_won_and_lost(client: Client, viewer: User, group: FailoverGroup) -> None:
    LeadershipChange.objects.create(
        group=group,
        epoch=41,
        runtime="external02.erp",
        previous="external01.erp",
        cause="balance",
        actor="deployment 7",
        at=timezone.now(),
        heard_at=timezone.now(),
    )
    client.force_login(viewer)
    assert "deployment 7" in text_of(client, f"{TEST}machines/external01/?tab=history")
    assert "deployment 7" not in text_of(client, f"{TEST}machines/core01/?tab=history")


def test_secret_values_are_never_shown(client: Client, viewer: User, developer: User, group: FailoverGroup) -> None:
    properties.set_value(group.environment, "erp.password", "open-sesame", connector="erp", secret=True, by=developer)
    client.force_login(viewer)
    text = text_of(client, f"{TEST}machines/external01/?tab=properties")
    assert "erp.password" in text and "open-sesame" not in text


# ------------------------------------------------------------------------------------------------------------- registration


def test_only_administrators_make_tokens(client: Client, operator: User, group: FailoverGroup) -> None:
    client.force_login(operator)
    assert client.post(f"{TEST}machines/external01/register/").status_code == 403
    assert JoinToken.objects.count() == 0


def test_the_command_holds_a_token_that_works_and_is_shown_once(client: Client, admin: User, group: FailoverGroup) -> None:
    client.force_login(admin)
    address = f"{TEST}machines/external01/register/"
    before = text_of(client, address)
    assert "--token" not in before and JoinToken.objects.count() == 0
    assert "credential and certificates of the present one end. Its router then restarts once" in before
    answer = client.post(address)
    text = answer.content.decode()
    token = re.search(r"--token (\S+?)</pre>", text)
    assert token and "--portal http://testserver" in text and "no-store" in answer.headers["Cache-Control"]
    assert f"--home {DEFAULT_HOME} --portal" in text, "where baton-agent status and doctor look"
    assert "stop that one first, and give its own <code>--home</code>" in text
    assert "--token" not in text_of(client, address)
    joined = joining.join(protocol.JoinRequest(token=token[1], agent_version="0.1.0"), now=timezone.now())
    assert joined.machine == "external01"


def test_the_page_waits_for_the_first_contact_and_then_stops_asking(client: Client, admin: User, group: FailoverGroup) -> None:
    Machine.objects.filter(name="external01").update(joined_at=None, last_report_at=None)
    client.force_login(admin)
    text = client.post(f"{TEST}machines/external01/register/").content.decode()
    contact = re.search(r'hx-get="([^"]*contact[^"]*)"', text)
    assert contact and "Waiting for the first contact" in text
    assert "Waiting for the first contact" in text_of(client, contact[1])
    later = timezone.now() + timedelta(seconds=1)
    Machine.objects.filter(name="external01").update(joined_at=later)
    assert "Waiting for its first report" in text_of(client, contact[1])
    Machine.objects.filter(name="external01").update(last_report_at=later)
    done = text_of(client, contact[1])
    assert "external01 is connected" in done and "hx-trigger" not in done


def test_an_old_agent_does_not_count_as_contact_of_a_new_one(client: Client, admin: User, group: FailoverGroup) -> None:
    client.force_login(admin)
    text = client.post(f"{TEST}machines/external01/register/").content.decode()
    assert "Waiting for the first contact" in text, "the agent that reports now joined before the token was made"


def test_what_the_agent_measured_is_taken_with_one_click(
    client: Client, developer: User, test_environment: Environment, group: FailoverGroup
) -> None:
    Machine.objects.filter(name="external01").update(suggested_address="10.0.0.11", suggested_port=2380)
    client.force_login(developer)
    page = "/projects/webshop/test/machines/external01/"
    assert "Take what the agent suggests (10.0.0.11, 2380)" in client.get(f"{page}?tab=failover").content.decode()
    assert client.post(f"{page}suggestion/").status_code == 302
    assert router_addresses.failover_address("external01", Property.objects.all()) == ("10.0.0.11", "2380")
    assert "Take what the agent suggests" not in client.get(f"{page}?tab=failover").content.decode()
    Router.objects.filter(machine__name="external01").update(observed_free_port=24100)
    assert "Take what the agent suggests (24100)" in client.get(f"{page}?tab=failover").content.decode(), "2380 is taken there"
    assert client.post(f"{page}suggestion/").status_code == 302
    assert router_addresses.failover_address("external01", Property.objects.all()) == ("10.0.0.11", "24100")


def test_one_host_is_marked_on_purpose(
    client: Client, viewer: User, developer: User, test_environment: Environment, group: FailoverGroup
) -> None:
    client.force_login(viewer)
    assert client.post("/projects/webshop/test/one-host/", {"one_host": "yes", "machine": "external01"}).status_code == 403
    client.force_login(developer)
    client.post("/projects/webshop/test/one-host/", {"one_host": "yes", "machine": "external01"})
    test_environment.refresh_from_db()
    assert test_environment.one_host
    assert "stand on one host on purpose" in client.get("/projects/webshop/test/machines/external01/?tab=failover").content.decode()
