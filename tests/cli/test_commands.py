"""The `baton` command as a developer types it, against the portal over HTTP."""

import io
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from rest_framework.authtoken.models import Token

from cli import releases as cli_releases
from cli import settings as kept
from deployments import plans, promotion, releases, rollout
from deployments.models import Release, StepKind
from portal.models import Connector, Environment, Flow, FlowVersion, Membership, Project, Property, Role
from runtimes import failover
from runtimes.models import TimedSwitch
from runtimes.protocol import Preference
from tests import factories
from tests.cli.conftest import Baton
from tests.deployments.conftest import Engine


def test_a_developer_logs_in_and_only_the_owner_can_read_the_token(
    baton: Baton, live_server: Any, webshop: Project, developer: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.file().unlink()
    developer.set_password("correct horse")
    developer.save()
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    said = baton("login", live_server.url, "--user", "developer", "--password-stdin", "--project", "webshop")
    assert (said.status, "developer is logged in" in said.out) == (0, True)
    assert kept.file().stat().st_mode & 0o077 == 0
    assert "correct horse" not in kept.file().read_text()
    assert baton("releases", "list").status == 0


def test_a_wrong_password_is_refused_by_name(baton: Baton, live_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("guess\n"))
    said = baton("login", live_server.url, "--user", "developer", "--password-stdin")
    assert said.status == 3
    assert "developer was not let in" in said.err


def test_without_a_login_it_says_what_to_do(baton: Baton, live_server: Any) -> None:
    kept.file().unlink()
    assert "run `baton login URL`" in baton("releases", "list", "-p", "webshop").err
    kept.save(kept.Settings(live_server.url, "wrong", "webshop"))
    said = baton("releases", "list")
    assert (said.status, "baton login" in said.err) == (3, True)


def test_a_token_is_not_sent_to_another_portal(baton: Baton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_URL", "http://127.0.0.1:9")
    assert kept.read().token == ""
    monkeypatch.setenv("BATON_TOKEN", "its own")
    assert kept.read().token == "its own"


def test_a_portal_that_is_away_is_named(baton: Baton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_URL", "http://127.0.0.1:9")
    said = baton("releases", "list")
    assert (said.status, "http://127.0.0.1:9 cannot be reached" in said.err) == (4, True)


def test_a_developer_makes_and_lists_releases(baton: Baton, release: Release) -> None:
    assert "Release 2 Second of webshop is made" in baton("releases", "create", "Second", "--note", "because").out
    assert [row["number"] for row in baton("releases", "list", "--json").document] == [2, 1]
    assert "Second" in baton("releases", "list").out


def test_a_list_of_several_pages_is_read_whole(baton: Baton, release: Release, developer: User) -> None:
    for number in range(1, 60):
        releases.build(release.project, name=f"Release {number}", note="", by=developer)
    assert len(baton("releases", "list", "--json").document) == 60


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["deploy", "9"], "webshop has no release 9", id="a release that is not there"),
        pytest.param(["deploy", "first"], "first is no release", id="a release that is no number"),
        pytest.param(["switch", "no-such"], "There is no group no-such", id="a group that is not there"),
        pytest.param(["switch", "no-such", "--for", "long"], "--for long is no time: say it as 90m, 2h or 1d", id="no time"),
        pytest.param(["properties", "unset", "no.such"], "no.such has no value", id="a property that is not there"),
        pytest.param(
            ["schedules", "add", "1", "2030-01-01T02:00", "--expires-after", "5", "--however-late"], "not both", id="early and however late"
        ),
        pytest.param(["releases", "activate", "1", "--at", "soon"], "soon is no moment", id="no moment"),
    ],
)
def test_what_is_wrong_in_the_line_is_named(baton: Baton, release: Release, arguments: list[str], sentence: str) -> None:
    said = baton(*arguments)
    assert said.status == 2
    assert sentence in said.err


def test_the_portals_refusal_comes_with_its_reasons(baton: Baton, release: Release) -> None:
    said = baton("deploy", "1")
    assert said.status == 3
    assert said.err.count("Test has no machines") == 1


def test_another_teams_project_is_not_there(baton: Baton, release: Release, stranger: User) -> None:
    kept.save(kept.Settings(kept.read().url, Token.objects.create(user=stranger).key, "webshop", "test"))
    for words in (("releases", "list"), ("deployments", "list"), ("properties", "list"), ("groups", "list")):
        said = baton(*words)
        assert (said.status, said.err.strip()) == (3, "baton: project: There is no project webshop, or you are not in its team.")
    assert baton("releases", "create", "Mine").status == 3


def test_a_secret_is_written_from_standard_input_and_never_shown(baton: Baton, webshop: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hunter2\n"))
    assert baton("properties", "set", "erp.password", "-", "--secret").status == 0
    for said in (baton("properties", "list"), baton("properties", "list", "--json")):
        assert "erp.password" in said.out
        assert "hunter2" not in said.out + said.err
    assert baton("properties", "unset", "erp.password").status == 0
    assert not Property.objects.filter(key="erp.password").exists()


def test_a_piped_table_keeps_a_row_on_a_line(baton: Baton, webshop: Project) -> None:
    baton("properties", "set", "erp.address", "x" * 300)
    assert any("erp.address" in line and "x" * 300 in line for line in baton("properties", "list").out.splitlines())


def test_two_releases_are_compared_line_by_line_and_the_exit_status_can_tell(baton: Baton, release: Release, developer: User) -> None:
    flow = Flow.objects.get(connector__name="erp")
    FlowVersion.objects.create(
        flow=flow, major=1, minor=1, patch=0, definition=flow.definition() | {"group": None, "group_name": None, "auto_start": False}
    )
    releases.build(release.project, name="Second", note="", by=developer)
    said = baton("compare", "2", "1", "--exit-code")
    assert said.status == 1
    assert [line for line in said.out.splitlines() if "auto" in line and line.strip()[:1] in "+-"]
    lines = [{"sign": sign, "text": str(number)} for number, sign in enumerate([*" " * 9, "-", "+", *" " * 5, "+", *" " * 8])]
    told = [line["text"] for line in cli_releases._near(lines)]
    assert told == ["6 equal lines", *map(str, range(6, 20)), "5 equal lines"]
    same = baton("compare", "2", "2", "--exit-code")
    assert (same.status, "No difference." in same.out) == (0, True)


def test_a_failed_deployment_says_why_and_how_it_can_go_on(
    baton: Baton, active: Release, filled: Environment, engine: Engine, developer: User
) -> None:
    engine.machines.failing["external01.erp"] = "no memory"
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    followed = baton("deployments", "follow", str(run.pk))
    assert followed.status == 1
    assert "no memory" in followed.out
    assert f"baton deployments choices {run.pk}" in followed.out
    assert "retry" in baton("deployments", "choices", str(run.pk)).out
    assert "no memory" in baton("deployments", "log", str(run.pk), "--follow").out
    needs_a_reason = baton("deployments", "decide", str(run.pk), "skip")
    assert (needs_a_reason.status, "reason" in needs_a_reason.err) == (3, True)
    assert baton("deployments", "decide", str(run.pk), "abort").status == 0
    assert "Nothing is to be decided" in baton("deployments", "choices", str(run.pk)).out


def test_a_switch_for_a_time_is_asked_for_and_the_list_says_when_it_returns(
    baton: Baton, erp: Connector, test_environment: Environment, developer: User
) -> None:
    group = factories.applied(test_environment, erp)
    factories.heard(group, "external01", "leader")
    factories.heard(group, "external02", "follower")
    failover.prefer(group.members.get(runtime__machine__name="external01").runtime, Preference.LEADER)
    Membership.objects.filter(user=developer).update(role=Role.OPERATOR)
    assert baton("switch", "erp-orders", "--to", "external02", "--for", "2h", "--no-wait").status == 0
    row = TimedSwitch.objects.get()
    assert (row.machine, row.until - row.created_at) == ("external02", timedelta(hours=2))
    assert "asked for a switch that ends by itself. In 119 min" in baton("groups", "list").out


def test_the_list_of_groups_says_each_problem_once(baton: Baton, erp: Connector, test_environment: Environment, developer: User) -> None:
    group = factories.applied(test_environment, erp)
    factories.heard(group, "external01", "leader")
    factories.heard(group, "external02", "isolated", observed_reason="It reaches no majority.")
    said = baton("groups", "list")
    assert "majority" in said.out and "majority" not in said.err
    assert "erp-orders has no standby." in said.err


# -------------------------------------------------------------------------------------------------------------------- plans


def test_a_step_that_waits_for_a_person_says_who_confirms_it_and_how(
    baton: Baton, active: Release, filled: Environment, engine: Engine, developer: User
) -> None:
    plans.add_step(plans.plan_of(filled), StepKind.MANUAL, instruction="Call the warehouse.", confirm_role="operator", position=1)
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    said = f"Step 1 waits for a person (operator or above): Call the warehouse. When it is done: `baton deployments confirm {run.pk} 1`."
    followed = baton("deployments", "follow", str(run.pk), "--no-wait-for-people")
    assert (followed.status, said in followed.out) == (5, True), followed.out
    assert said in baton("deployments", "choices", str(run.pk)).out


@pytest.mark.django_db(transaction=True)
def test_the_plan_is_shown_edited_exported_and_applied(baton: Baton, active: Release, tmp_path: Path) -> None:
    shown = baton("plan", "show")
    assert shown.status == 0 and "Deploy routers" in shown.out and "Balance failover" in shown.out
    file = tmp_path / "plan.json"
    file.write_text(baton("plan", "export").out)
    added = baton("plan", "add", "manual", "instruction=Call.", "confirm_role=operator", "--position", "1", "--json").document
    shown = baton("plan", "show").out
    assert "Manual: wait for a person: Call. (confirmed by the role operator)" in shown and "1 day" in shown and "2 min" in shown
    wrong = baton("plan", "add", "manual", "instruction=Call.", "confirm_role=boss")
    assert wrong.status == 3 and '"boss" is none of: viewer, developer, operator, administrator' in wrong.err, wrong.err
    assert added["steps"][0]["title"] == "Manual: wait for a person"
    assert baton("plan", "change", "1", "retries=2", "timeout_seconds=60", "--json").document["steps"][0]["timeout_seconds"] == 60
    assert baton("plan", "move", "1", "2", "--json").document["steps"][1]["kind"] == "manual"
    refused = baton("plan", "apply", str(file))
    assert refused.status == 3 and "Somebody changed the plan" in refused.err
    assert len(baton("plan", "apply", str(file), "--force", "--json").document["steps"]) == 5
    assert len(baton("plan", "remove", "1", "--json").document["steps"]) == 4
    made = baton("plan", "default")
    assert "Routers exist" not in made.err
    assert "The plan of test was replaced: it has" in made.out
    wrong = baton("plan", "change", "99", "retries=2")
    assert wrong.status == 2 and "There is no step 99: the plan has 5." in wrong.err
    copied = baton("plan", "copy", "acceptance")
    assert copied.status == 3 and "operator" in copied.err, "a developer may not change Acceptance"


# ------------------------------------------------------------------------------------------- rules, schedules, approvals, project


def in_days(days: int) -> str:
    return f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT04:00:00Z}"


@pytest.fixture
def rank(developer: User) -> Callable[[Role], None]:
    def give(role: Role) -> None:
        Membership.objects.filter(user=developer).update(role=role)

    return give


def test_rules_are_shown_changed_and_refused_with_the_portals_reason(baton: Baton, release: Release, rank: Any) -> None:
    said = baton("rules", "set", "--approvals", "2")
    assert said.status == 3 and "baton:" in said.err and said.out == ""
    assert baton("rules", "move", "later").status == 3
    rank(Role.ADMINISTRATOR)
    said = baton("rules", "set", "--approvals", "1", "--window", "mon-fri@08:00-17:00", "--window", "sat@22:00-02:00")
    assert said.status == 0, said.err
    assert "1 approvals" in said.out and "Open Mon, Tue, Wed, Thu, Fri 08:00–17:00." in said.out
    assert [row["days"] for row in baton("rules", "show", "--json").document["windows"]] == ["01234", "5"]
    assert baton("rules", "set", "--window", "someday@8").status == 2
    assert "It is number 2 now." in baton("rules", "move", "later").out
    assert baton("rules", "move", "earlier", "--json").document["position"] == 0
    assert baton("rules", "move", "sideways").status == 3
    assert baton("rules", "set").status == 2
    assert baton("rules", "set", "--window", "none", "--approvals", "0", "--any-order").status == 0
    said = baton("rules", "freeze", in_days(30), in_days(31), "Year's end")
    assert (said.status, "Year's end" in said.out) == (0, True), said.err
    (made,) = baton("rules", "show", "--json").document["freezes"]
    assert baton("rules", "lift", str(made["id"])).status == 0
    assert baton("rules", "show", "--json").document["freezes"] == []


def test_an_activation_is_scheduled_moved_held_and_cancelled(baton: Baton, filled: Environment, release: Release, rank: Any) -> None:
    rank(Role.OPERATOR)
    made = baton("schedules", "add", "latest", in_days(30), "--deploy", "--json").document
    assert (made["status"], made["deploys"]) == ("scheduled", True)
    key = str(made["id"])
    assert baton("schedules", "move", key, in_days(33), "--json").document["due_at"] == in_days(33)
    assert "is held" in baton("schedules", "hold", key, "first the audit").out
    assert "scheduled" in baton("schedules", "resume", key).out
    assert [row["id"] for row in baton("schedules", "list", "--json").document] == [made["id"]]
    assert "cancelled" in baton("schedules", "cancel", key).out
    assert "Nothing is scheduled" in baton("schedules", "list").out
    assert baton("schedules", "add", "latest", "tomorrow").status == 2


def test_a_time_is_the_environments_and_has_to_be_one_moment(
    baton: Baton, filled: Environment, release: Release, admin: User, rank: Any
) -> None:
    rank(Role.OPERATOR)
    promotion.set_rules(filled, time_zone="Europe/Amsterdam", by=admin, now=timezone.now())
    year = timezone.now().year + 2
    said = baton("schedules", "add", "latest", f"{year}-07-01T02:00", "--however-late", "--json")
    assert (said.document["due_at"], said.document["expires_at"]) == (f"{year}-07-01T00:00:00Z", None)
    last = max(day for day in range(25, 32) if date(year, 3, day).isoweekday() == 7)
    said = baton("schedules", "add", "latest", f"{year}-03-{last}T02:30")
    assert (said.status, "does not exist" in said.err) == (3, True), said.err


def test_an_approval_is_asked_for_and_the_asker_cannot_give_it(baton: Baton, filled: Environment, release: Release, rank: Any) -> None:
    rank(Role.ADMINISTRATOR)
    assert baton("rules", "set", "--approvals", "1").status == 0
    made = baton("approvals", "request", "latest", "--note", "please", "--json").document
    said = baton("approvals", "approve", str(made["id"]))
    assert (said.status, said.out) == (3, "")
    assert "baton:" in said.err
    assert str(made["id"]) in baton("approvals", "list").out
    assert baton("approvals", "withdraw", str(made["id"])).status == 0


def test_a_project_goes_through_a_file(baton: Baton, filled: Environment, release: Release, tmp_path: Path) -> None:
    file = tmp_path / "webshop.yaml"
    assert baton("project", "export", str(file)).status == 0
    assert baton("project", "export").out == file.read_text()
    assert "No difference" in baton("project", "plan", str(file), "--exit-code").out
    file.write_text(file.read_text().replace("value: /srv/erp/outbox", "value: /srv/erp/elsewhere"))
    said = baton("project", "plan", str(file), "--exit-code")
    assert (said.status, "/srv/erp/outbox → /srv/erp/elsewhere" in said.out) == (1, True)
    before = baton("project", "plan", str(file), "--json").document["before"]
    assert baton("project", "apply", str(file), "--seen", before).status == 0
    assert Property.objects.get(key="erp.outbox").value == "/srv/erp/elsewhere"
    assert baton("project", "apply", str(file), "--seen", before).status == 3
    file.write_text("baton: 1\nsystems: 7\n")
    said = baton("project", "apply", str(file))
    assert (said.status, "Line 2:" in said.err) == (3, True)
    assert baton("project", "apply", str(tmp_path / "none.yaml")).status == 2


def test_a_project_in_git_comes_to_a_portal_that_knows_nothing_of_it(
    baton: Baton, filled: Environment, release: Release, admin: User, stranger: User, tmp_path: Path
) -> None:
    """Made, filled from its file and applied to Test without a page."""
    file = tmp_path / "webshop.yaml"
    assert baton("project", "export", str(file)).status == 0
    file.write_text(file.read_text().replace("slug: webshop", "slug: shop"))
    refused = baton("project", "create", "shop", "--team", "demo")
    assert (refused.status, "administrator" in refused.err) == (3, True), "for administrators of the team"
    kept.save(kept.Settings(kept.read().url, Token.objects.create(user=admin).key, "shop", "test"))
    made = baton("project", "create", "shop", "--team", "demo", "--name", "Shop")
    assert made.out == "shop was made, with test, acceptance, production.\n"
    assert "is taken by another project" in baton("project", "create", "webshop", "--team", "demo").err
    assert baton("project", "create", "Shop 1", "--team", "demo").status == 3
    assert baton("project", "create", "other", "--team", "others").status == 3, "another team's"
    assert [row["slug"] for row in baton("project", "list", "--json").document] == ["shop", "webshop"]

    said = baton("project", "apply", str(file))
    assert said.status == 0, said.err
    wished = baton("architecture", "diff", "--exit-code")
    assert (wished.status, "Runtime external01.erp will be created, in failover." in wished.out) == (1, True)
    digest = baton("architecture", "diff", "--json").document["digest"]
    assert baton("architecture", "apply", "--seen", "another").status == 3
    done = baton("architecture", "apply", "--seen", digest)
    assert (done.status, "create  runtime external01.erp" in done.out) == (0, True), done.err
    assert "The environment is as designed" in baton("architecture", "diff", "--exit-code").out
    assert Project.objects.get(slug="shop").environments.get(kind="test").machines.count() == 3


def test_preview_retention_rollback_and_reach_say_what_the_portal_says(
    baton: Baton, active: Any, filled: Environment, release: Release, admin: User, rank: Any
) -> None:
    said = baton("preview", "latest")
    assert said.status in (0, 1) and "Balance failover" in said.out
    assert baton("preview", "latest", "--json").document["steps"]
    told = baton("preview", "latest", "--leave-out", "nobody", "--leave-out", "noone").err
    assert "nobody is no machine here." in told and "noone is no machine here." in told
    promotion.set_rules(filled, approvals=1, by=admin, now=timezone.now())
    said = baton("preview", "latest")
    assert (said.status, f"forbids it: Release {release.number} lacks approval on Test" in said.err) == (1, True), said.err
    assert "Retention is off" in baton("releases", "retention").out
    assert baton("releases", "retention", "--enable").status == 3
    rank(Role.ADMINISTRATOR)
    assert baton("releases", "retention", "--enable", "--keep-last", "3", "--json").document["keep_last"] == 3
    assert baton("rollback", "--look").status == 3
    said = baton("machines", "reach", "external01", "--no-wait")
    assert (said.status, "external01 is tried on 10.0.0.11:2380" in said.out) == (0, True), said.err
    assert baton("machines", "reach", "nobody").status == 2


def test_the_help_tells_the_exit_statuses(baton: Baton) -> None:
    assert "4 the portal cannot be reached" in " ".join(baton("--help").out.split())
