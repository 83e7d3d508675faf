"""The admin site: Properties first, guarded as on the pages; secrets are never shown; history is read only."""

import pytest
from django.contrib import admin as admin_module
from django.contrib.auth.models import User
from django.test import Client

from portal import properties
from portal.models import Environment, Property
from runtimes.models import LeadershipChange

LIST = "/admin/portal/property/"


@pytest.fixture
def desk(admin: User, client: Client) -> Client:
    client.force_login(admin)
    return client


def edited(desk: Client, row: Property, value: str):
    data = {
        "form-TOTAL_FORMS": "1",
        "form-INITIAL_FORMS": "1",
        "form-0-id": str(row.pk),
        "form-0-value": value,
        "_save": "Save",
    }
    return desk.post(f"{LIST}?scope=global", data)


def test_properties_come_first(desk: Client) -> None:
    apps = desk.get("/admin/").context["app_list"]
    assert apps[0]["models"][0]["object_name"] == "Property"


def test_every_model_of_baton_can_be_looked_at(desk: Client, test_environment: Environment) -> None:
    for model in admin_module.site._registry:
        answer = desk.get(f"/admin/{model._meta.app_label}/{model._meta.model_name}/")
        assert answer.status_code == 200, model


def test_a_value_is_edited_in_the_list(desk: Client, test_environment: Environment) -> None:
    row = Property.objects.create(environment=test_environment, key="erp.outbox", value="/old")
    assert edited(desk, row, "/new").status_code == 302
    row.refresh_from_db()
    assert row.value == "/new"
    assert row.updated_by is not None


def test_a_wrong_port_is_refused_in_the_list_and_in_the_form(desk: Client, test_environment: Environment) -> None:
    row = Property.objects.create(environment=test_environment, key="external01.failover.port", value="7001")
    assert "is no port" in edited(desk, row, "seventy").content.decode()
    data = {"environment": test_environment.pk, "key": "external02.failover.port", "machine": "", "connector": "", "value": "0"}
    assert "is no port" in desk.post(f"{LIST}add/", data).content.decode()
    row.refresh_from_db()
    assert row.value == "7001"
    assert Property.objects.count() == 1


def test_a_secret_is_never_shown_and_an_empty_field_keeps_it(desk: Client, test_environment: Environment) -> None:
    row = properties.set_value(test_environment, "erp.password", "hunter2", secret=True, by=None)
    for page in (LIST, f"{LIST}{row.pk}/change/", f"{LIST}{row.pk}/history/"):
        assert "hunter2" not in desk.get(page).content.decode(), page
    assert "•••" in desk.get(LIST).content.decode()
    edited(desk, row, "")
    row.refresh_from_db()
    assert row.reveal() == "hunter2"
    edited(desk, row, "hunter3")
    row.refresh_from_db()
    assert row.reveal() == "hunter3"


def test_a_kept_secret_is_not_made_readable(desk: Client, test_environment: Environment) -> None:
    row = properties.set_value(test_environment, "erp.password", "hunter2", secret=True, by=None)
    data = {"environment": test_environment.pk, "key": row.key, "machine": "", "connector": "", "value": ""}
    answer = desk.post(f"{LIST}{row.pk}/change/", data).content.decode()
    assert "cannot be made readable" in answer
    assert "hunter2" not in answer
    row.refresh_from_db()
    assert row.secret


@pytest.mark.parametrize(("scope", "keys"), [("global", ["a"]), ("machine", ["b"]), ("connector", ["c"]), ("runtime", ["d"])])
def test_the_list_filters_by_scope_and_environment(
    desk: Client, test_environment: Environment, acceptance: Environment, scope: str, keys: list[str]
) -> None:
    for key, machine, connector in (("a", "", ""), ("b", "external01", ""), ("c", "", "erp"), ("d", "external01", "erp")):
        Property.objects.create(environment=test_environment, key=key, machine=machine, connector=connector)
        Property.objects.create(environment=acceptance, key=key, machine=machine, connector=connector)
    answer = desk.get(LIST, {"scope": scope, "environment": test_environment.pk})
    assert [row.key for row in answer.context["cl"].result_list] == keys


def test_history_cannot_be_changed(desk: Client) -> None:
    assert desk.get("/admin/runtimes/leadershipchange/add/").status_code == 403
    assert not admin_module.site._registry[LeadershipChange].has_delete_permission(desk.get("/admin/").wsgi_request)


def test_a_member_who_is_no_staff_stays_out(operator: User, client: Client) -> None:
    client.force_login(operator)
    assert client.get(LIST).status_code == 302
