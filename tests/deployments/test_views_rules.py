"""Deploy › Rules, approvals and the tab Promotion, as people use them; and the same in the API."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deployments import approvals, promotion, releases
from deployments.models import ApprovalRequest, DeploymentFreeze, DeploymentWindow, Release, RuleOverride
from portal.errors import Invalid
from portal.models import Environment, Role, Team
from tests import factories

RULES = "/projects/webshop/test/rules/"
PAGE = "/projects/webshop/releases/1/?environment=test&tab=promotion"
API = "/api/v1/projects/webshop/environments/test/"
FORM = {
    "in_order": "on", "approvals": "1", "approval_days": "7", "expires_after_minutes": "30", "time_zone": "Europe/Amsterdam",
    "windows-TOTAL_FORMS": "1", "windows-INITIAL_FORMS": "0",
}  # fmt: skip
WINDOW = {"windows-0-days": ["0", "1"], "windows-0-opens": "09:00", "windows-0-closes": "17:00"}


def test_an_administrator_sets_the_rules(client: Client, admin: User, release: Release) -> None:
    client.force_login(admin)
    assert client.post(RULES, FORM | WINDOW).status_code == 302
    html = client.get(RULES).content.decode()
    assert "Approvals needed: 0 → 1." in html and "Mon, Tue 09:00–17:00" in html and 'value="09:00"' in html
    row = DeploymentWindow.objects.get()
    gone = FORM | WINDOW | {"windows-TOTAL_FORMS": "2", "windows-INITIAL_FORMS": "1", "windows-0-remove": "on"}
    assert client.post(RULES, gone).status_code == 302
    assert not DeploymentWindow.objects.filter(pk=row.pk).exists()
    assert "none, always open" in client.get(RULES).content.decode()


def test_two_administrators_do_not_overwrite_each_others_rules_unseen(
    client: Client, admin: User, operator: User, filled: Environment
) -> None:
    client.force_login(admin)
    seen = re.search(r'name="seen" value="(\w+)"', client.get(RULES).content.decode())
    assert seen
    promotion.set_rules(filled, approvals=2, by=operator, now=timezone.now())
    mine = FORM | {"approvals": "0", "expires_after_minutes": "45", "seen": seen[1]}
    html = client.post(RULES, mine).content.decode()
    assert "operator changed the rules since you opened them: Approvals needed: 0 → 2." in html and "Save again to replace" in html
    assert promotion.rules_of(filled).approvals == 2
    seen = re.search(r'name="seen" value="(\w+)"', html)
    assert seen and 'value="45"' in html
    assert client.post(RULES, mine | {"approvals": "2", "seen": seen[1]}).status_code == 302
    rules = promotion.rules_of(filled)
    assert (rules.approvals, rules.expires_after_minutes) == (2, 45)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"time_zone": "Mars/Base"}, "There is no time zone Mars/Base", id="zone"),
        pytest.param({"approvals": "-1"}, "greater than or equal to 0", id="approvals"),
        pytest.param(WINDOW | {"windows-0-days": []}, "Choose at least one day", id="a window without a day"),
        pytest.param(WINDOW | {"windows-0-closes": ""}, "Say when it closes", id="a window that never closes"),
    ],
)
def test_refused_rules_say_why(client: Client, admin: User, release: Release, changes: dict[str, str], sentence: str) -> None:
    client.force_login(admin)
    answer = client.post(RULES, FORM | changes)
    assert answer.status_code == 200 and sentence in answer.content.decode()


@pytest.mark.usefixtures("far_future")
def test_who_may_change_what(client: Client, viewer: User, operator: User, stranger: User, filled: Environment) -> None:
    client.force_login(operator)
    assert client.post(RULES, FORM).status_code == 403
    assert client.post(f"{RULES}freezes/new/", {"starts": "2098-01-01T00:00", "ends": "2098-01-02T00:00", "reason": "x"}).status_code == 302
    client.force_login(viewer)
    html = client.get(RULES).content.decode()
    assert "needs the role administrator" in html and "Lift" not in html
    assert client.post(f"{RULES}freezes/{DeploymentFreeze.objects.get().pk}/lift/").status_code == 403
    assert client.post(f"{RULES}move/", {"direction": "later"}).status_code == 403
    client.force_login(stranger)
    assert client.get(RULES).status_code == 404


@pytest.mark.usefixtures("far_future")
def test_a_freeze_is_entered_in_the_environments_zone(client: Client, admin: User, filled: Environment) -> None:
    promotion.set_rules(filled, time_zone="Europe/Amsterdam", by=admin, now=timezone.now())
    client.force_login(admin)
    body = {"starts": "2098-03-30T02:30", "ends": "2098-03-30T02:00", "reason": "Audit"}
    assert "does not exist" in client.post(f"{RULES}freezes/new/", body).content.decode()
    body = {"starts": "2098-12-24T00:00", "ends": "2098-12-20T00:00", "reason": "Audit"}
    assert "A freeze ends after it starts." in client.post(f"{RULES}freezes/new/", body).content.decode()
    long = body | {"ends": "2098-12-27T00:00", "reason": "very " * 50}
    assert client.post(f"{RULES}freezes/new/", long).status_code == 200
    with pytest.raises(Invalid, match="at most 200 characters"):  # an import has no form before it
        noon = datetime(2098, 12, 24, 12, tzinfo=UTC)
        promotion.freeze(filled, starts_at=noon, ends_at=noon + timedelta(1), reason="very " * 50, by=admin, now=timezone.now())
    assert client.post(f"{RULES}freezes/new/", body | {"ends": "2098-12-27T00:00"}).status_code == 302
    made = DeploymentFreeze.objects.get()
    assert f"{made.starts_at:%H:%M}" == "23:00"
    assert "Wed 24 Dec 2098 00:00 Europe/Amsterdam" in client.get(RULES).content.decode()
    client.post(f"{RULES}freezes/{made.pk}/lift/")
    assert not DeploymentFreeze.objects.exists()


@pytest.mark.parametrize("back", ["a/b", "", "nowhere", "production"])
def test_after_a_move_one_is_where_one_was(client: Client, admin: User, filled: Environment, back: str) -> None:
    client.force_login(admin)
    answer = client.post("/projects/webshop/test/rules/move/", {"direction": "later", "back": back})
    assert answer.headers["Location"] == f"/projects/webshop/{'production' if back == 'production' else 'test'}/rules/"


@pytest.mark.parametrize("address", ["activations", "approvals"])
@pytest.mark.parametrize(("release", "status"), [("7", 200), ("1e30", 400), ("9" * 30, 400), ("-1", 400), ("x", 400)])
def test_an_id_that_no_database_holds_is_a_bad_request(client: Client, admin: User, address: str, release: str, status: int) -> None:
    client.force_login(admin)
    assert client.get(f"/api/v1/{address}/?release={release}").status_code == status


def test_the_order_is_changed_on_the_page(client: Client, admin: User, filled: Environment) -> None:
    client.force_login(admin)
    client.post(f"{RULES}move/", {"direction": "later", "back": "test"})
    filled.refresh_from_db()
    assert filled.position == 1
    assert "Test comes after Acceptance" in client.get(RULES).content.decode()


def test_a_release_is_approved_by_somebody_else(
    client: Client, developer: User, operator: User, admin: User, release: Release, filled: Environment
) -> None:
    promotion.set_rules(filled, approvals=1, by=admin, now=timezone.now())
    client.force_login(developer)
    assert "Request approval" in client.get(PAGE).content.decode()
    client.post("/projects/webshop/test/releases/1/approval/", {"note": "For Friday."})
    html = client.get(PAGE).content.decode()
    assert "0 of 1 approvals" in html and "For Friday." in html and "Withdraw" in html and ">Approve<" not in html
    asked = ApprovalRequest.objects.get()
    act = f"/projects/webshop/test/approvals/{asked.pk}/"
    assert "somebody else must approve it" in client.post(f"{act}approve/", {}).content.decode()
    client.force_login(operator)
    assert "Say why: the requester reads it." in client.post(f"{act}reject/", {}).content.decode()
    assert client.post(f"{act}approve/", {"comment": "Fine."}).status_code == 302
    assert "operator approved" in client.get(PAGE).content.decode()
    client.force_login(developer)
    assert client.post("/projects/webshop/test/releases/1/activate/", {"when": "now"}).status_code == 302
    assert releases.active(filled) == release


def test_the_rules_stand_in_the_dialog_with_a_field_to_override(
    client: Client, developer: User, operator: User, admin: User, release: Release, filled: Environment
) -> None:
    now = timezone.now()
    promotion.freeze(filled, starts_at=now, ends_at=now + timedelta(days=1), reason="Audit", by=admin, now=now)
    page = "/projects/webshop/test/releases/1/activate/"
    client.force_login(developer)
    html = client.get(page).content.decode()
    assert "The rules of Test forbid it now" in html and "Audit" in html and 'name="override"' not in html
    client.force_login(operator)
    assert 'name="override"' in client.get(page).content.decode()
    assert "Audit" in client.post(page, {"when": "now"}).content.decode()
    assert client.post(page, {"when": "now", "override": "Agreed."}).status_code == 302
    assert RuleOverride.objects.get().reason == "Agreed."
    assert "“Agreed.”" in client.get(RULES).content.decode()


def test_the_tab_promotion_needs_a_fixed_number_of_queries(
    client: Client,
    developer: User,
    operator: User,
    admin: User,
    release: Release,
    filled: Environment,
    team: Team,
) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert client.get(PAGE).status_code == 200
        return len(queries)

    now = timezone.now()
    promotion.set_rules(filled, approvals=9, by=admin, now=now)
    asked = approvals.request(release, filled, by=developer, now=now)
    approvals.approve(asked, by=operator, now=now)
    client.force_login(developer)
    one = cost()
    for person in (admin, *(factories.person(f"operator{number}", team, Role.OPERATOR) for number in range(5))):
        approvals.approve(asked, by=person, now=now)
    assert cost() == one


@pytest.mark.usefixtures("far_future")
def test_the_api_sets_rules_freezes_and_approves(
    client: Client, developer: User, operator: User, admin: User, release: Release, filled: Environment
) -> None:
    client.force_login(operator)
    assert client.patch(f"{API}rules/", {"approvals": 1}, content_type="application/json").status_code == 403
    frozen = {"starts_at": "2098-01-01T00:00:00Z", "ends_at": "2098-01-02T00:00:00", "reason": "Audit"}
    made = client.post(f"{API}freezes/", frozen, content_type="application/json").json()
    assert made["ends_at"] == "2098-01-02T00:00:00Z"
    assert client.delete(f"{API}freezes/{made['id']}/").status_code == 204
    client.force_login(admin)
    body = {"approvals": 1, "windows": [{"days": "0123456", "opens": "00:00", "closes": "00:00"}]}
    rules = client.patch(f"{API}rules/", body, content_type="application/json").json()
    assert (rules["approvals"], rules["open_now"], rules["windows"][0]["days"]) == (1, True, "0123456")
    assert client.patch(f"{API}rules/", {"aprovals": 1}, content_type="application/json").status_code == 400
    client.force_login(developer)
    refused = client.post(f"/api/v1/releases/{release.pk}/activate/", {"environment": "test"}, content_type="application/json")
    assert refused.status_code == 409 and "lacks approval on Test" in refused.json()["detail"]
    asked = client.post("/api/v1/approvals/", {"release": release.pk, "environment": "test"}, content_type="application/json").json()
    assert asked["lacking"].startswith("0 of 1 people approved")
    assert client.post(f"/api/v1/approvals/{asked['id']}/approve/").status_code == 409
    client.force_login(operator)
    assert client.post(f"/api/v1/approvals/{asked['id']}/approve/").json()["lacking"] == ""
    done = client.post(f"/api/v1/releases/{release.pk}/activate/", {"environment": "test"}, content_type="application/json")
    assert done.status_code == 200 and done.json()["status"] == "active"
    client.force_login(developer)
    assert client.post(f"/api/v1/approvals/{asked['id']}/withdraw/").json()["status"] == "withdrawn"
