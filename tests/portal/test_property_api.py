"""Values over the API: many at once, history, undo, types and the mark of one host."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from portal import properties
from portal.models import Environment, Property

JSON = {"content_type": "application/json"}


def put(client: Client, path: str, **body: Any) -> Any:
    return client.put(f"/api/v1/{path}/", body, **JSON)


def post(client: Client, path: str, **body: Any) -> Any:
    return client.post(f"/api/v1/{path}/", body, **JSON)


def test_many_values_are_planned_then_set_all_or_none(client: Client, developer: User, test_environment: Environment) -> None:
    client.force_login(developer)
    edits = [{"environment": "test", "key": "a", "value": "1"}, {"environment": "test", "key": "external01.failover.port", "value": "x"}]
    planned = post(client, "property-edits", project="webshop", edits=edits).json()
    assert [(item["key"], item["verb"]) for item in planned] == [("a", "add"), ("external01.failover.port", "refused")]
    assert "is no port" in planned[1]["reason"]
    assert post(client, "property-edits", project="webshop", edits=edits, apply=True).status_code == 400
    assert not Property.objects.exists()
    edits[1]["value"] = "2380"
    assert post(client, "property-edits", project="webshop", edits=edits, apply=True).status_code == 200
    assert Property.objects.count() == 2
    foreign = [{"environment": "production", "key": "a", "value": "1"}]
    assert post(client, "property-edits", project="webshop", edits=foreign, apply=True).status_code == 403


def test_history_and_undo(client: Client, developer: User, test_environment: Environment) -> None:
    client.force_login(developer)
    properties.set_value(test_environment, "p", "hunter2", secret=True, by=developer)
    properties.set_value(test_environment, "a", "1", by=developer)
    told = client.get("/api/v1/property-changes/?project=webshop&environment=test")
    assert [(item["key"], item["by"], item["after"]) for item in told.json()["results"]] == [
        ("a", "developer", "1"),
        ("p", "developer", ""),
    ]
    assert b"hunter2" not in told.content
    assert post(client, "property-undo", project="webshop", environment="test").json()[0]["verb"] == "delete"
    assert not Property.objects.filter(key="a").exists()


def test_an_undo_takes_back_what_was_seen_as_the_last(
    client: Client, developer: User, operator: User, test_environment: Environment
) -> None:
    client.force_login(developer)
    properties.set_value(test_environment, "a", "1", by=developer)
    seen = client.get("/api/v1/property-changes/?project=webshop&environment=test").json()["results"][0]["act"]
    properties.set_value(test_environment, "b", "1", by=operator)
    refused = post(client, "property-undo", project="webshop", environment="test", act=seen)
    assert (refused.status_code, "look at the history again" in refused.json()["detail"]) == (409, True)
    assert set(Property.objects.values_list("key", flat=True)) == {"a", "b"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("properties", {"environment": "test", "key": "a", "value": "1", "machin": "external01"}, id="not the global value"),
        pytest.param(
            "property-edits", {"apply": True, "edits": [{"environment": "test", "key": "a", "value": "1", "machin": "x"}]}, id="edits"
        ),
    ],
)
@pytest.mark.usefixtures("test_environment")
def test_a_misspelt_scope_writes_no_value(client: Client, developer: User, path: str, body: dict[str, Any]) -> None:
    client.force_login(developer)
    refused = post(client, path, project="webshop", **body)
    assert (refused.status_code, "There is no such field" in refused.content.decode()) == (400, True)
    assert not Property.objects.exists()


def test_trying_values_tells_nothing_about_a_secret(client: Client, developer: User, test_environment: Environment) -> None:
    properties.set_value(test_environment, "erp.password", "hunter2", secret=True, by=developer)
    properties.set_value(test_environment, "erp.folder", "/srv", by=developer)
    client.force_login(developer)

    def verb(key: str, value: str) -> str:
        edit = {"environment": "test", "key": key, "value": value}
        answer = client.post("/api/v1/property-edits/", {"project": "webshop", "apply": False, "edits": [edit]}, **JSON)
        return str(answer.json()[0]["verb"])

    assert verb("erp.password", "hunter2") == verb("erp.password", "hunter3") == "change"
    assert (verb("erp.folder", "/srv"), verb("erp.folder", "/other")) == ("none", "change")


def test_types_are_declared(client: Client, developer: User, viewer: User, test_environment: Environment) -> None:
    properties.set_value(test_environment, "retries", "often", by=developer)
    client.force_login(developer)
    refused = put(client, "property-types", project="webshop", key="retries", type="number")
    assert (refused.status_code, refused.json()["reasons"]) == (400, ['Test, global: "often" is no whole number.'])
    assert put(client, "property-types", project="webshop", key="retries", type="text").json()["declared"]
    assert client.get("/api/v1/property-types/?project=webshop").json()[0]["type"] == "text"
    client.force_login(viewer)
    assert put(client, "property-types", project="webshop", key="retries", type="number").status_code == 403


def test_one_host_is_marked(client: Client, developer: User, test_environment: Environment) -> None:
    client.force_login(developer)
    body = {"project": "webshop", "environment": "test", "key": "external01.failover.internal-ip", "value": "127.0.0.1"}
    assert post(client, "properties", **body).status_code == 400
    assert put(client, "one-host", project="webshop", environment="test", one_host=True).status_code == 200
    assert post(client, "properties", **body).status_code == 201
    assert put(client, "one-host", project="webshop", environment="test", one_host=False).status_code == 409


def test_two_editors_of_one_value_do_not_overwrite_each_other_unseen(
    client: Client, developer: User, operator: User, test_environment: Environment
) -> None:
    row = properties.set_value(test_environment, "erp.outbox", "/one", by=developer)
    address = f"/api/v1/properties/{row.pk}/"
    client.force_login(developer)
    seen = client.get(address)["ETag"]
    changed = client.patch(address, {"value": "/two"}, content_type="application/json", headers={"If-Match": seen})
    assert (changed.status_code, changed["ETag"] != seen) == (200, True)
    for refused in (
        client.patch(address, {"value": "/three"}, content_type="application/json", headers={"If-Match": seen}),
        client.delete(address, headers={"If-Match": seen}),
    ):
        assert refused.status_code == 412
        assert "erp.outbox (global) was changed by developer since it was read" in refused.json()["detail"]
    assert Property.objects.get(pk=row.pk).value == "/two"
    assert client.delete(address, headers={"If-Match": changed["ETag"]}).status_code == 204
