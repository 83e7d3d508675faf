"""The rules of an environment: order, approvals, windows; decided as tables, enforced in every act, overridden with a reason."""

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import User
from django.test import Client

from deployments import approvals, plans, promotion, releases, rollout
from deployments.approvals import State
from deployments.models import (
    ApprovalRequest,
    ApprovalStatus,
    Deployment,
    Release,
    RuleChange,
    RuleOverride,
    RunStatus,
    StepKind,
)
from deployments.windows import Calendar, Freeze
from portal import properties
from portal.errors import Busy, Invalid, NotAllowed, Stale
from portal.models import Connector, Environment, Membership, Role
from tests import factories
from tests.deployments.conftest import VALUES, Engine

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
OPEN = Calendar(ZoneInfo("UTC"))
FROZEN = Calendar(ZoneInfo("UTC"), [], [Freeze(NOW - timedelta(days=1), NOW + timedelta(days=1), "Stocktaking")])
NOT_ASKED = State()
ASKED = State(requested=True, requester="dora")


# ---------------------------------------------------------------------------------------------------------------- decisions


@dataclass(frozen=True)
class Case:
    in_order: bool = True
    before: str | None = "Test"
    passed: bool = True
    needed: int = 0
    approval: State = NOT_ASKED
    calendar: Calendar = OPEN


@pytest.mark.parametrize(
    ("case", "rules"),
    [
        pytest.param(Case(), [], id="passed before, nothing asked"),
        pytest.param(Case(passed=False), ["order"], id="not yet in Test"),
        pytest.param(Case(passed=False, in_order=False), [], id="not in order, and that is the rule"),
        pytest.param(Case(passed=False, before=None), [], id="the first environment has none before it"),
        pytest.param(Case(needed=1), ["approvals"], id="nobody asked for approval"),
        pytest.param(Case(needed=1, approval=ASKED), ["approvals"], id="nobody approved"),
        pytest.param(Case(needed=2, approval=State(True, "dora", ["otto"])), ["approvals"], id="one of two"),
        pytest.param(Case(needed=2, approval=State(True, "dora", ["otto", "anna"])), [], id="two of two"),
        pytest.param(Case(calendar=FROZEN), ["window"], id="frozen"),
        pytest.param(Case(passed=False, needed=1, calendar=FROZEN), ["order", "approvals", "window"], id="everything"),
    ],
)
def test_what_forbids_a_release(case: Case, rules: list[str]) -> None:
    found = promotion.forbids(
        7, "Acceptance", in_order=case.in_order, before=case.before, passed_before=case.passed, needed=case.needed,
        approval=case.approval, calendar=case.calendar, at=NOW,
    )  # fmt: skip
    assert [finding.rule for finding in found] == rules
    assert [finding.rule for finding in found if not finding.overridable] == [rule for rule in rules if rule == "approvals"]


@pytest.mark.parametrize(
    ("state", "needed", "says"),
    [
        pytest.param(State(), 1, "Request approval; 1 person other than the requester must approve it.", id="not asked"),
        pytest.param(State(ended="Rejected by otto: no."), 2, "Rejected by otto: no. Request approval; 2 people other", id="rejected"),
        pytest.param(State(True, "dora", ["otto"]), 2, "1 of 2 people approved (otto); dora does not count.", id="one so far"),
        pytest.param(State(True, "dora", ["otto", "anna"]), 1, "", id="more than enough"),
    ],
)
def test_what_approval_lacks(state: State, needed: int, says: str) -> None:
    assert state.lacking(needed).startswith(says) and bool(state.lacking(needed)) == bool(says)


@pytest.mark.parametrize(
    ("standing", "names"),
    [
        pytest.param([], [], id="none"),
        pytest.param([(1, "dora")], [], id="the requester"),
        pytest.param([(2, "otto"), (2, "otto")], ["otto"], id="one person twice"),
        pytest.param([(2, "otto"), (9, "gone")], ["otto"], id="somebody who lost the role"),
    ],
)
def test_whose_approval_counts(standing: list[tuple[int, str]], names: list[str]) -> None:
    assert approvals.counted(standing, requester=1, members={1, 2, 3}) == names


# -------------------------------------------------------------------------------------------------------------------- order


@pytest.fixture
def production(webshop: object) -> Environment:
    return Environment.objects.get(project=webshop, kind="production")


@pytest.fixture
def accepted(acceptance: Environment, erp: Connector, developer: User) -> Environment:
    """Acceptance with every value, nothing applied yet."""
    for key, value in VALUES.items():
        properties.set_value(acceptance, key, value, by=developer)
    return acceptance


def passed(release: Release, environment: Environment) -> None:
    factories.deployed(environment, release)


def test_a_release_reaches_acceptance_after_test(
    release: Release, accepted: Environment, test_environment: Environment, operator: User
) -> None:
    with pytest.raises(NotAllowed, match="Release 1 was not yet deployed with success on Test: deploy it there first") as refusal:
        releases.activate(release, accepted, by=operator, now=NOW)
    assert "An operator or administrator can override this with a reason." in refusal.value.sentence
    Deployment.objects.create(environment=test_environment, release=release, status=RunStatus.FAILED)
    with pytest.raises(NotAllowed, match="not yet deployed with success"):
        releases.activate(release, accepted, by=operator, now=NOW)
    passed(release, test_environment)
    releases.activate(release, accepted, by=operator, now=NOW)
    assert releases.active(accepted) == release


def test_an_operator_sets_the_order_aside_with_a_reason_that_is_kept(release: Release, accepted: Environment, operator: User) -> None:
    releases.activate(release, accepted, by=operator, now=NOW, override="The shop is down.")
    kept = RuleOverride.objects.get()
    assert (kept.by, kept.act, kept.reason, kept.release) == (operator, "activate", "The shop is down.", release)
    assert "not yet deployed with success on Test" in kept.rules[0]


def test_a_developer_may_not_override(release: Release, filled: Environment, developer: User, admin: User) -> None:
    promotion.freeze(filled, starts_at=NOW - timedelta(hours=1), ends_at=NOW + timedelta(hours=1), reason="Demo", by=admin, now=NOW)
    with pytest.raises(NotAllowed, match="Overriding the rules of Test needs the role operator"):
        releases.activate(release, filled, by=developer, now=NOW, override="I want to.")
    assert not RuleOverride.objects.exists()


def test_an_override_of_an_act_that_fails_otherwise_is_not_kept(release: Release, acceptance: Environment, operator: User) -> None:
    with pytest.raises(NotAllowed, match="9 keys lack a value for release 1 on Acceptance"):
        releases.activate(release, acceptance, by=operator, now=NOW, override="Now.")
    assert not RuleOverride.objects.exists()


def test_deploying_asks_again(active: Release, engine: Engine, filled: Environment, developer: User, operator: User, admin: User) -> None:
    promotion.freeze(filled, starts_at=engine.now, ends_at=engine.now + timedelta(days=1), reason="Demo.", by=admin, now=engine.now)
    with pytest.raises(NotAllowed, match=r"Test may not be changed on .*\. It is frozen until .*: Demo\. Next allowed: "):
        rollout.prepare(active, on=filled, by=developer, now=engine.now)
    rollout.prepare(active, on=filled, by=operator, now=engine.now, override="Agreed with the trainer.")
    assert RuleOverride.objects.get().act == "deploy"


# ---------------------------------------------------------------------------------------------------------------- approvals


@pytest.fixture
def anna(team: object) -> User:
    return factories.person("anna", team, Role.OPERATOR)  # type: ignore[arg-type]


@pytest.fixture
def guarded(accepted: Environment, release: Release, test_environment: Environment, admin: User) -> Environment:
    """Acceptance, which asks two people; the release passed Test."""
    passed(release, test_environment)
    promotion.set_rules(accepted, approvals=2, by=admin, now=NOW)
    return accepted


def test_where_no_approval_is_asked_for_none_can_be_requested(release: Release, test_environment: Environment, operator: User) -> None:
    with pytest.raises(NotAllowed, match="Test asks for no approval: release 1 can be activated there without one"):
        approvals.request(release, test_environment, by=operator, now=NOW)


def test_two_people_who_are_not_the_requester(release: Release, guarded: Environment, operator: User, anna: User, admin: User) -> None:
    asked = approvals.request(release, guarded, note="Friday", by=operator, now=NOW)
    with pytest.raises(NotAllowed, match="operator requested this approval: somebody else must approve it"):
        approvals.approve(asked, by=operator, now=NOW)
    approvals.approve(asked, by=anna, now=NOW)
    assert approvals.approve(asked, by=anna, now=NOW).pk == asked.approvals.get().pk
    with pytest.raises(NotAllowed, match=r"1 of 2 people approved \(anna\)"):
        releases.activate(release, guarded, by=operator, now=NOW)
    approvals.approve(asked, by=admin, now=NOW)
    releases.activate(release, guarded, by=operator, now=NOW)
    assert releases.active(guarded) == release


def test_approval_cannot_be_overridden_even_by_an_administrator(release: Release, guarded: Environment, admin: User) -> None:
    with pytest.raises(NotAllowed, match="lacks approval on Acceptance: Request approval") as refusal:
        releases.activate(release, guarded, by=admin, now=NOW, override="I know best.")
    assert "override" not in refusal.value.sentence


def test_the_approval_of_a_person_whose_account_was_closed_does_not_count(
    release: Release, guarded: Environment, operator: User, anna: User, admin: User
) -> None:
    asked = approvals.request(release, guarded, by=operator, now=NOW)
    for person in (anna, admin):
        approvals.approve(asked, by=person, now=NOW)
    assert approvals.state(release, guarded, now=NOW).approvers == ["anna", "admin"]
    User.objects.filter(pk=anna.pk).update(is_active=False)
    assert approvals.state(release, guarded, now=NOW).approvers == ["admin"]


def test_an_approval_does_not_hold_while_values_differ_and_holds_again_when_they_are_set_back(
    client: Client, release: Release, guarded: Environment, operator: User, anna: User, admin: User
) -> None:
    asked = approvals.request(release, guarded, by=operator, now=NOW)
    approvals.approve(asked, by=anna, now=NOW)
    approvals.approve(asked, by=admin, now=NOW)
    properties.set_value(guarded, "erp.outbox", "/elsewhere", by=operator)
    said = r"Property values changed since approval was requested \(erp\.outbox\): it does not hold while they differ\."
    with pytest.raises(NotAllowed, match=f"{said} Set back what changed, or request approval again; 2 people"):
        releases.activate(release, guarded, by=operator, now=NOW)
    third = factories.person("third", guarded.project.team, Role.OPERATOR)
    with pytest.raises(Stale, match=said):
        approvals.approve(asked, by=third, now=NOW)
    client.force_login(operator)
    html = client.get(f"{release.get_absolute_url()}?tab=promotion").content.decode()
    assert "anna approved" in html and "it does not hold while they differ" in html and "Request approval again" in html
    (told,) = client.get("/api/v1/approvals/").json()["results"]
    assert told["status"] == "open" and "it does not hold while they differ" in told["lacking"] and told["release_number"] == release.number
    properties.set_value(guarded, "erp.outbox", VALUES["erp.outbox"], by=operator)
    assert not promotion.findings(release, guarded, at=NOW), "what they approved is what would run"
    properties.set_value(guarded, "erp.outbox", "/elsewhere", by=operator)
    again = approvals.request(release, guarded, by=operator, now=NOW)
    asked.refresh_from_db()
    assert asked.status == ApprovalStatus.ENDED and again.approvals.count() == 0
    assert asked.reason.endswith("It ended when approval was requested again.")
    properties.set_value(guarded, "erp.outbox", VALUES["erp.outbox"], by=operator)
    assert promotion.findings(release, guarded, at=NOW), "the former one does not come back"


def test_an_approval_does_not_hold_while_the_plan_differs(
    release: Release, guarded: Environment, operator: User, anna: User, admin: User
) -> None:
    plan = plans.plan_of(guarded)
    plans.add_step(plan, StepKind.MANUAL, instruction="Call the ERP team.")
    asked = approvals.request(release, guarded, by=operator, now=NOW)
    approvals.approve(asked, by=anna, now=NOW)
    approvals.approve(asked, by=admin, now=NOW)
    assert not promotion.findings(release, guarded, at=NOW)
    step = plans.add_step(plan, StepKind.HTTP_CHECK, url="http://erp.example.com/drop")
    with pytest.raises(NotAllowed, match="The plan changed since approval was requested: it does not hold while it differs"):
        releases.activate(release, guarded, by=operator, now=NOW)
    plans.remove_step(step)
    assert not promotion.findings(release, guarded, at=NOW)  # what they approved is what would run


def test_a_value_this_release_does_not_use_ends_nothing(
    release: Release, guarded: Environment, operator: User, anna: User, admin: User
) -> None:
    asked = approvals.request(release, guarded, by=operator, now=NOW)
    approvals.approve(asked, by=anna, now=NOW)
    approvals.approve(asked, by=admin, now=NOW)
    properties.set_value(guarded, "something.else", "x", by=operator)
    assert not promotion.findings(release, guarded, at=NOW)


def test_a_request_ends_after_its_days(release: Release, guarded: Environment, operator: User, anna: User, admin: User) -> None:
    asked = approvals.request(release, guarded, by=operator, now=NOW)
    approvals.approve(asked, by=anna, now=NOW)
    approvals.approve(asked, by=admin, now=NOW)
    assert not promotion.findings(release, guarded, at=NOW + timedelta(days=13, hours=23))
    (finding,) = promotion.findings(release, guarded, at=NOW + timedelta(days=14))
    assert "open for its full time" in finding.sentence


def test_who_lost_the_role_no_longer_counts(release: Release, guarded: Environment, operator: User, anna: User, admin: User) -> None:
    asked = approvals.request(release, guarded, by=operator, now=NOW)
    approvals.approve(asked, by=anna, now=NOW)
    approvals.approve(asked, by=admin, now=NOW)
    Membership.objects.filter(user=anna).update(role=Role.VIEWER)
    (finding,) = promotion.findings(release, guarded, at=NOW)
    assert "1 of 2 people approved (admin)" in finding.sentence


def test_withdrawing(release: Release, guarded: Environment, operator: User, anna: User, admin: User) -> None:
    asked = approvals.request(release, guarded, by=operator, now=NOW)
    with pytest.raises(NotAllowed, match="admin has not approved this"):
        approvals.withdraw(asked, by=admin, now=NOW)
    approvals.approve(asked, by=anna, now=NOW)
    assert approvals.withdraw(asked, by=anna, now=NOW) == "Your approval is withdrawn."
    assert approvals.withdraw(asked, by=anna, now=NOW) == "Your approval is withdrawn."
    assert approvals.state(release, guarded, now=NOW).approvers == []
    approvals.approve(asked, by=anna, now=NOW)
    assert approvals.withdraw(asked, by=operator, now=NOW) == "The request is withdrawn."
    with pytest.raises(NotAllowed, match="This approval request is withdrawn"):
        approvals.approve(asked, by=admin, now=NOW)


def test_rejecting_needs_a_comment_and_closes_the_request(release: Release, guarded: Environment, operator: User, anna: User) -> None:
    asked = approvals.request(release, guarded, by=operator, now=NOW)
    with pytest.raises(Busy, match="requested already"):
        approvals.request(release, guarded, by=anna, now=NOW)
    with pytest.raises(Invalid, match="Say why") as refusal:
        approvals.reject(asked, comment=" ", by=anna, now=NOW)
    assert refusal.value.field == "comment"
    approvals.reject(asked, comment="Not on a Friday.", by=anna, now=NOW)
    (finding,) = promotion.findings(release, guarded, at=NOW)
    assert "Rejected by anna: Not on a Friday." in finding.sentence
    with pytest.raises(NotAllowed, match="rejected"):
        approvals.approve(asked, by=anna, now=NOW)


def test_a_resumed_deployment_may_not_smuggle_in_values_nobody_approved(
    active: Release, engine: Engine, filled: Environment, developer: User, operator: User, admin: User
) -> None:
    promotion.set_rules(filled, approvals=1, by=admin, now=engine.now)
    approvals.approve(approvals.request(active, filled, by=developer, now=engine.now), by=operator, now=engine.now)
    engine.machines.failing["external01.erp"] = "no such folder"
    deployment = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    assert engine.run(deployment).status == RunStatus.FAILED
    properties.set_value(filled, "erp.outbox", "/other", by=developer)
    with pytest.raises(NotAllowed, match=r"Property values changed since approval was requested \(erp.outbox\)"):
        rollout.resume(deployment, by=developer, now=engine.now)
    approvals.approve(approvals.request(active, filled, by=developer, now=engine.now), by=operator, now=engine.now)
    rollout.resume(deployment, by=developer, now=engine.now)


def test_a_plan_that_names_other_values_meanwhile_holds_up_no_deployment_that_goes_on(
    active: Release, engine: Engine, filled: Environment, developer: User, operator: User, admin: User
) -> None:
    properties.set_value(filled, "shop.host", "shop.example.com", by=developer)
    promotion.set_rules(filled, approvals=1, by=admin, now=engine.now)
    approvals.approve(approvals.request(active, filled, by=developer, now=engine.now), by=operator, now=engine.now)
    engine.machines.failing["external01.erp"] = "no such folder"
    deployment = rollout.prepare(active, on=filled, by=developer, now=engine.now)
    assert engine.run(deployment).status == RunStatus.FAILED
    plans.add_step(plans.plan_of(filled), StepKind.HTTP_CHECK, url="http://${shop.host}/health")
    with pytest.raises(NotAllowed, match="approval"):  # the plan of now was not approved
        promotion.admit(active, filled, act="deploy", by=developer, at=engine.now)
    rollout.resume(deployment, by=developer, now=engine.now)
    assert not deployment.log.filter(text__contains="shop.host").exists()


# ----------------------------------------------------------------------------------------------------------------- settings


def test_what_changed_in_the_rules_is_kept(filled: Environment, admin: User) -> None:
    window = promotion.WindowInput("01234", time(9), time(17))
    promotion.set_rules(filled, approvals=2, time_zone="Europe/Amsterdam", windows_=[window], by=admin, now=NOW)
    promotion.set_rules(filled, approvals=2, windows_=[window], by=admin, now=NOW)
    assert [(row.by, row.sentence) for row in RuleChange.objects.all()] == [
        (admin, "Approvals needed: 0 → 2. Time zone: UTC → Europe/Amsterdam. Deployment windows: Mon–Fri 09:00–17:00.")
    ]


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"approvals": 21}, "approvals"), ({"time_zone": "Mars"}, "time_zone"), ({"expires_after_minutes": 0}, "expires_after_minutes"),
     ({"windows_": [promotion.WindowInput("", time(9), time(10))]}, "windows")],
)  # fmt: skip
def test_rules_that_make_no_sense_are_refused(filled: Environment, admin: User, changes: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        promotion.set_rules(filled, by=admin, now=NOW, **changes)
    assert refusal.value.field == field
    assert not RuleChange.objects.exists()


def test_freezing_and_lifting(filled: Environment, admin: User, release: Release) -> None:
    with pytest.raises(Invalid, match="ends after it starts"):
        promotion.freeze(filled, starts_at=NOW, ends_at=NOW, reason="x", by=admin, now=NOW)
    with pytest.raises(Invalid, match="over already"):
        promotion.freeze(filled, starts_at=NOW - timedelta(days=2), ends_at=NOW, reason="x", by=admin, now=NOW)
    made = promotion.freeze(filled, starts_at=NOW, ends_at=NOW + timedelta(days=1), reason="Audit", by=admin, now=NOW)
    assert promotion.findings(release, filled, at=NOW)
    promotion.lift(made, by=admin, now=NOW)
    promotion.lift(made, by=admin, now=NOW)
    assert not promotion.findings(release, filled, at=NOW)
    assert next(row.sentence for row in RuleChange.objects.all()) == "Freeze lifted: Audit"
    assert RuleChange.objects.count() == 2


def test_the_order_of_promotion_can_be_changed(filled: Environment, acceptance: Environment, production: Environment, admin: User) -> None:
    assert promotion.environment_before(production) == acceptance
    promotion.move(acceptance, earlier=True, by=admin, now=NOW)
    promotion.move(acceptance, earlier=True, by=admin, now=NOW)
    assert promotion.environment_before(acceptance) is None
    filled.refresh_from_db()
    assert promotion.environment_before(production) == filled
    assert promotion.environment_after(acceptance) == filled


def test_two_who_move_at_once_leave_each_environment_a_place_of_its_own(
    filled: Environment, acceptance: Environment, production: Environment, admin: User
) -> None:
    promotion.move(production, earlier=True, by=admin, now=NOW)
    promotion.move(acceptance, earlier=True, by=admin, now=NOW)  # as it was read before the other moved
    order = list(Environment.objects.filter(project=filled.project).order_by("position").values_list("kind", "position"))
    assert order == [("test", 0), ("acceptance", 1), ("production", 2)]


def test_an_approval_of_another_projects_release_is_refused(release: Release, operator: User) -> None:
    other = factories.project(release.project.team, "depot").environments.get(kind="acceptance")
    with pytest.raises(Invalid, match="another project"):
        approvals.request(release, other, by=operator, now=NOW)
    assert not ApprovalRequest.objects.exists() and not plans.plan_of(other).steps.exists()
