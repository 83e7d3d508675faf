"""The public API as its callers see it: who may, what is answered, how it says no."""

import io
from importlib import import_module

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import RequestDataTooBig
from django.core.management import call_command
from django.utils import timezone
from rest_framework import serializers
from rest_framework.parsers import BaseParser
from rest_framework.test import APIClient

from deployments.api.projects import YAMLParser
from portal.api import parsers
from portal.api.fields import ExactInput
from portal.models import Connector, Environment, Property
from runtimes.models import FailoverGroup, GroupMember, Runtime
from runtimes.protocol import State, Status
from tests import factories


def client_of(person: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(person)
    return client


@pytest.fixture
def group(test_environment: Environment, erp: Connector) -> FailoverGroup:
    """erp-orders on Test: external01 leads under epoch 7, external02 follows, both heard of just now."""
    made = factories.applied(test_environment, erp)
    now = timezone.now()
    for machine, status, state in (("external01", Status.LEADER, State.ON), ("external02", Status.FOLLOWER, State.OFF)):
        GroupMember.objects.filter(group=made, runtime__machine__name=machine).update(
            observed_status=status, observed_state=state, observed_epoch=7, observed_ready=True, observed_at=now
        )
    Runtime.objects.update(observed_release=1)
    Runtime.objects.filter(machine__name="external01").update(observed_pid=4711, observed_state="ready", observed_at=now)
    Runtime.objects.filter(machine__name="external02").update(observed_state="ready", observed_at=now)
    FailoverGroup.objects.filter(pk=made.pk).update(epoch=7, last_gap_seconds=0.04)
    made.refresh_from_db()
    return made


@pytest.mark.parametrize("path", ["groups", "machines", "runtimes", "properties", "releases", "deployments", "schema", "nothing-here"])
@pytest.mark.django_db
def test_nobody_reads_anything_without_credentials(path: str) -> None:
    answer = APIClient().get(f"/api/v1/{path}/")
    assert answer.status_code == 401
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "not-authenticated"
    assert answer["WWW-Authenticate"].startswith("Basic")


def test_a_wrong_password_is_refused_and_a_right_one_is_remembered(viewer: User, webshop: object) -> None:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION="Basic dmlld2VyOndyb25n")  # viewer:wrong
    assert client.get("/api/v1/releases/").status_code == 401
    client.credentials(HTTP_AUTHORIZATION="Basic dmlld2VyOmJhdG9u")  # viewer:baton
    assert client.get("/api/v1/releases/").status_code == 200
    assert client.get("/api/v1/releases/").status_code == 200
    viewer.set_password("another")
    viewer.save()
    assert client.get("/api/v1/releases/").status_code == 401


def test_a_token_works_as_well_as_a_password(viewer: User) -> None:
    token = APIClient().post("/api/v1/token/", {"username": "viewer", "password": "baton"}).json()["token"]
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Token {token}")
    assert client.get("/api/v1/groups/").json() == {"count": 0, "next": None, "previous": None, "results": []}


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        pytest.param("{" + '"username": "' + "x" * 20_000 + '"}', "application/json", 413, id="long JSON"),
        pytest.param("username=" + "x" * 20_000, "application/x-www-form-urlencoded", 413, id="a long form"),
        pytest.param("[" * 5_000, "application/json", 400, id="nested too deeply"),
        pytest.param("username=viewer&password=wrong", "application/x-www-form-urlencoded", 400, id="a wrong password"),
        pytest.param("--x\r\n" + "x" * 20_000, "multipart/form-data; boundary=x", 413, id="long parts"),
    ],
)
def test_a_stranger_who_asks_for_a_token_is_answered_in_bounds(viewer: User, body: str, kind: str, status: int) -> None:
    assert APIClient().generic("POST", "/api/v1/token/", body, content_type=kind).status_code == status


def test_tokens_are_not_asked_for_without_end(viewer: User) -> None:
    asked = [APIClient().post("/api/v1/token/", {}, REMOTE_ADDR="10.9.8.7") for _ in range(31)]
    assert [answer.status_code for answer in asked] == [400] * 30 + [429]
    assert int(asked[-1]["Retry-After"]) <= 60
    assert APIClient().post("/api/v1/token/", {}, REMOTE_ADDR="10.9.8.6").status_code == 400


class Endless(io.RawIOBase):
    """A body that says nothing of its length and never ends."""

    def __init__(self) -> None:
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "it would be read for ever"
        self.given += size
        return b" " * size


@pytest.mark.parametrize("parser", [parsers.JSONParser, parsers.FormParser, YAMLParser])
def test_of_a_body_without_end_little_is_read(parser: type[BaseParser]) -> None:
    body = Endless()
    with pytest.raises(RequestDataTooBig):
        parser().parse(body, parser.media_type, {})
    assert body.given == parsers.MOST_BYTES + 1


def test_a_viewer_sees_who_leads(viewer: User, group: FailoverGroup) -> None:
    answer = client_of(viewer).get("/api/v1/groups/?environment=test&project=webshop").json()
    assert answer["count"] == 1
    shown = answer["results"][0]
    assert shown["id"] == str(group.pk)
    assert (shown["name"], shown["environment"], shown["epoch"], shown["last_gap_seconds"]) == ("erp-orders", "test", 7, 0.04)
    assert shown["leader"] == {"machine": "external01", "runtime": "external01.erp"}
    first, second = sorted(shown["members"], key=lambda member: member["machine"])
    assert (first["status"], first["state"], first["pid"], first["preference"]) == ("leader", "on", 4711, "none")
    assert (second["status"], second["state"], second["pid"]) == ("follower", "off", None)
    assert client_of(viewer).get("/api/v1/groups/?environment=production").json()["count"] == 0


def test_a_leader_of_a_lower_epoch_is_shown_as_unknown(viewer: User, group: FailoverGroup) -> None:
    GroupMember.objects.filter(group=group, runtime__machine__name="external02").update(
        observed_status=Status.LEADER, observed_state=State.ON, observed_epoch=9
    )
    FailoverGroup.objects.update(epoch=9)
    shown = client_of(viewer).get(f"/api/v1/groups/{group.pk}/").json()
    assert {member["machine"]: member["status"] for member in shown["members"]} == {"external01": "unknown", "external02": "leader"}
    assert shown["leader"]["machine"] == "external02"


def test_a_stranger_finds_no_group_of_another_team(stranger: User, group: FailoverGroup) -> None:
    client = client_of(stranger)
    assert client.get("/api/v1/groups/").json()["count"] == 0
    assert client.get(f"/api/v1/groups/{group.pk}/").status_code == 404
    assert client.post(f"/api/v1/groups/{group.pk}/switch/", {}).status_code == 404


@pytest.mark.parametrize("act", ["switch", "disable", "enable"])
def test_a_developer_may_look_but_not_switch(developer: User, group: FailoverGroup, act: str) -> None:
    answer = client_of(developer).post(f"/api/v1/groups/{group.pk}/{act}/", {"machine": "external02", "candidate": "external02"})
    assert answer.status_code == 403
    assert answer["Content-Type"] == "application/problem+json"
    assert "operator" in answer.json()["detail"]


def test_an_operator_hands_leadership_over(operator: User, group: FailoverGroup) -> None:
    client = client_of(operator)
    answer = client.post(f"/api/v1/groups/{group.pk}/switch/", {"candidate": "external02", "expected_leader": "external01"}, format="json")
    assert answer.status_code == 202
    assert answer.json()["status"] == "pending"
    asked = client.get(f"/api/v1/groups/{group.pk}/requests/{answer.json()['request']}/").json()
    assert (asked["kind"], asked["machine"], asked["status"]) == ("switch", "external02", "pending")
    again = client.post(f"/api/v1/groups/{group.pk}/switch/", {"candidate": "external02"}, format="json")
    assert (again.status_code, again.json()["code"]) == (409, "busy")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({"candidate": "external09"}, 404, "unknown-candidate", id="a machine that has no member"),
        pytest.param({"candidate": 3.5}, 404, "unknown-candidate", id="not even a name"),
        pytest.param({"candidate": "external02", "expected_leader": "external02"}, 412, "stale", id="another one leads"),
    ],
)
def test_a_switch_that_cannot_be_right_is_refused(
    operator: User, group: FailoverGroup, body: dict[str, str], status: int, code: str
) -> None:
    answer = client_of(operator).post(f"/api/v1/groups/{group.pk}/switch/", body, format="json")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        pytest.param(b"[" * 100_000, 400, "nested too deeply", id="nested without end"),
        pytest.param(b'{"candidate": "' + b"x" * 3_000_000 + b'"}', 413, "larger", id="huge"),
        pytest.param(b"\xff\xfe", 400, "JSON parse error", id="no UTF-8"),
        pytest.param(b'{"candidat": "external02"}', 400, "candidat: There is no such field", id="a misspelt field is no Stop"),
        pytest.param(b"[]", 400, "dictionary", id="a list"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_and_changes_nothing(
    operator: User, group: FailoverGroup, body: bytes, status: int, said: str
) -> None:
    answer = client_of(operator).post(f"/api/v1/groups/{group.pk}/switch/", body, content_type="application/json")
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/problem+json"
    assert said in answer.json()["detail"]
    assert not group.requests.exists()


def test_an_operator_sets_the_isolation_policy(operator: User, developer: User, group: FailoverGroup) -> None:
    url = f"/api/v1/groups/{group.pk}/isolation-policy/"
    assert client_of(developer).put(url, {"policy": "run-alone"}, format="json").status_code == 403
    client = client_of(operator)
    assert client.put(url, {"policy": "hope"}, format="json").status_code == 400
    answer = client.put(url, {"policy": "run-alone"}, format="json")
    assert (answer.status_code, answer.json()["kind"], answer.json()["status"]) == (202, "policy", "pending")
    found = client.get(f"/api/v1/groups/{group.pk}/").json()
    assert found["isolation_policy"] == "run-alone"
    assert {member["isolation_policy"] for member in found["members"]} == {"stop"}, "the members have not heard of it yet"


def test_a_candidate_that_is_not_ready_is_refused(operator: User, group: FailoverGroup) -> None:
    GroupMember.objects.filter(runtime__machine__name="external02").update(observed_ready=False, observed_reason="It starts.")
    answer = client_of(operator).post(f"/api/v1/groups/{group.pk}/switch/", {"candidate": "external02"}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")


def test_a_developer_prefers_a_leader_and_the_sibling_becomes_backup(developer: User, group: FailoverGroup) -> None:
    client = client_of(developer)
    for machine in ("external01", "external02"):
        answer = client.put(f"/api/v1/groups/{group.pk}/preference/", {"machine": machine, "preference": "leader"}, format="json")
        assert answer.status_code == 200
    shown = {member["machine"]: member["preference"] for member in answer.json()["members"]}
    assert shown == {"external01": "backup", "external02": "leader"}
    bad = client.put(f"/api/v1/groups/{group.pk}/preference/", {"machine": "external01", "preference": "boss"}, format="json")
    assert (bad.status_code, list(bad.json()["errors"])) == (400, ["preference"])


def test_a_property_is_filled_in_and_a_secret_is_never_given_back(developer: User, test_environment: Environment) -> None:
    client = client_of(developer)
    body = {"project": "webshop", "environment": "test", "key": "queues.url", "value": "redis://:geheim@127.0.0.1/", "secret": True}
    assert client.post("/api/v1/properties/", body, format="json").status_code == 201
    answer = client.get("/api/v1/properties/?project=webshop&environment=test&search=queues")
    assert answer.json()["results"][0]["value"] is None
    assert b"geheim" not in answer.content
    assert Property.objects.get().reveal() == "redis://:geheim@127.0.0.1/"


def test_a_developer_changes_properties_in_test_only(developer: User, operator: User, acceptance: Environment) -> None:
    body = {"project": "webshop", "environment": "acceptance", "key": "erp.outbox", "value": "/srv/out"}
    assert client_of(developer).post("/api/v1/properties/", body, format="json").status_code == 403
    assert client_of(operator).post("/api/v1/properties/", body, format="json").status_code == 201


@pytest.mark.parametrize(
    "path", ["groups", "machines", "runtimes", "properties", "property-changes", "releases", "deployments", "activations"]
)
def test_a_misspelt_filter_and_a_project_that_is_not_there_are_refused_by_name(viewer: User, group: FailoverGroup, path: str) -> None:
    client = client_of(viewer)
    answer = client.get(f"/api/v1/{path}/", {"enviroment": "production"})
    assert (answer.status_code, "project" in answer.data["errors"]["enviroment"][0]) == (400, True), "it names those that are"
    answer = client.get(f"/api/v1/{path}/", {"project": "webshp"})
    assert (answer.status_code, answer.data["errors"]["project"]) == (400, ["There is no project webshp, or you are not in its team."])
    assert client.get(f"/api/v1/{path}/", {"project": "webshop", "limit": "1", "offset": "0"}).status_code == 200


def test_a_misspelt_filter_of_a_groups_changes_is_refused(viewer: User, group: FailoverGroup) -> None:
    answer = client_of(viewer).get(f"/api/v1/groups/{group.pk}/changes/", {"couse": "crash"})
    assert (answer.status_code, "cause" in answer.data["errors"]["couse"][0]) == (400, True)


def test_every_body_of_the_api_refuses_unknown_fields() -> None:
    """Structural: a body that derives from anything else would take a misspelt field for one that was left out."""
    import_module(settings.ROOT_URLCONF)  # and with it the module of every endpoint
    found = _all_of(serializers.Serializer)
    bodies = [kind for kind in found if kind.__module__.split(".")[0] in ("portal", "runtimes", "deployments") and _takes_a_body(kind)]
    assert len(bodies) >= 20
    assert [kind.__qualname__ for kind in bodies if not issubclass(kind, ExactInput)] == []


def _all_of(kind: type) -> set[type]:
    return {found for below in kind.__subclasses__() for found in {below, *_all_of(below)}}


def _takes_a_body(kind: type) -> bool:
    return kind.__name__.endswith("Input") or kind.__name__ in ("NewValue", "Place", "EnvironmentChoice", "FailbackSerializer")


def test_a_runtime_is_listed_with_wish_and_fact(viewer: User, group: FailoverGroup) -> None:
    listed = client_of(viewer).get("/api/v1/runtimes/?environment=test&machine=external01").json()["results"]
    assert [(row["runtime"], row["pid"], row["state"], row["desired_running"]) for row in listed] == [
        ("external01.erp", 4711, "ready", True)
    ]


def test_only_an_administrator_gets_a_machine_token(operator: User, admin: User, group: FailoverGroup) -> None:
    machine = client_of(admin).get("/api/v1/machines/?name=external01").json()["results"][0]["id"]
    assert client_of(operator).post(f"/api/v1/machines/{machine}/token/").status_code == 403
    answer = client_of(admin).post(f"/api/v1/machines/{machine}/token/")
    assert answer.status_code == 201
    assert len(answer.json()["token"]) >= 32


def test_the_schema_is_openapi_3_1_and_complete(viewer: User) -> None:
    answer = client_of(viewer).get("/api/v1/schema/", headers={"Accept": "application/vnd.oai.openapi+json"})
    assert answer.status_code == 200
    schema = answer.json()
    assert schema["openapi"].startswith("3.1")
    for path in ("groups/{id}/switch", "releases/{id}/activate", "releases/{id}/deployments", "deployments/{id}/resume"):
        assert f"/api/v1/{path}/" in schema["paths"]


@pytest.mark.parametrize(
    ("scope", "field"),
    [
        pytest.param({"machine": "moon"}, "machine", id="a machine nobody drew"),
        pytest.param({"connector": "crm"}, "connector", id="a connector nobody designed"),
    ],
)
def test_a_value_for_nobody_is_refused(
    developer: User, test_environment: Environment, erp: Connector, scope: dict[str, str], field: str
) -> None:
    body = {"project": "webshop", "environment": "test", "key": "erp.outbox", "value": "/srv"} | scope
    answer = client_of(developer).post("/api/v1/properties/", body, format="json")
    assert (answer.status_code, list(answer.json()["errors"])) == (400, [field])


@pytest.mark.parametrize("act", ["disable", "enable"])
def test_a_machine_without_a_member_is_named_as_such(operator: User, group: FailoverGroup, act: str) -> None:
    answer = client_of(operator).post(f"/api/v1/groups/{group.pk}/{act}/", {"machine": "moon"}, format="json")
    assert (answer.status_code, list(answer.json()["errors"])) == (404, ["machine"])


def test_the_schema_names_every_shape_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Two shapes under one name document one of them wrongly."""
    call_command("spectacular", "--validate", "--fail-on-warn")
    assert "openapi: 3.1" in capsys.readouterr().out
