"""Deploy › Properties as a grid, as people use it."""

import csv
import io
import re

import pytest
from django.contrib.auth.models import User
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from deployments.models import Release
from deployments.views import property_grid
from portal import properties, vault
from portal.models import Connector, Environment, Property, PropertyChange, PropertyType
from runtimes.models import FailoverGroup
from tests import factories

BASE = "/projects/webshop/test/properties"
GRID = f"{BASE}/grid/"


def cells(html: str, key: str) -> list[str]:
    """The texts of a key's cells, tags taken out."""
    part = html.split(f'<tr data-key="{key}">')[1].split("</tr>")[0]
    found = [cell.split(">", 1)[1] for cell in part.split("<td")[1:]]
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in found]


@pytest.fixture
def some(test_environment: Environment, acceptance: Environment, erp: Connector, developer: User) -> Environment:
    properties.set_value(test_environment, "erp.outbox", "/out", by=developer)
    properties.set_value(test_environment, "erp.outbox", "/two", machine="external02", by=developer)
    properties.set_value(acceptance, "erp.outbox", "/acc", by=developer)
    properties.set_value(test_environment, "queues.url", "redis://:hunter2@h:1/0", secret=True, by=developer)
    return test_environment


def test_environments_stand_side_by_side(client: Client, viewer: User, some: Environment) -> None:
    client.force_login(viewer)
    html = client.get(GRID).content.decode()
    assert cells(html, "erp.outbox") == ["/out +1 narrower", "/acc", "missing"]
    assert cells(html, "queues.url") == ["••• set", "missing", "missing"]
    assert "hunter2" not in html


def test_machines_and_runtimes_show_where_a_value_comes_from(client: Client, viewer: User, some: Environment) -> None:
    client.force_login(viewer)
    html = client.get(f"{GRID}?by=machines").content.decode()
    assert cells(html, "erp.outbox") == ["/out global", "/out global", "/two"]  # core01, external01, external02
    html = client.get(f"{GRID}?by=runtimes").content.decode()
    assert cells(html, "erp.outbox") == ["/out global", "/two external02"]


def test_what_is_newer_than_the_deployment_is_marked_and_it_is_named(
    client: Client, developer: User, some: Environment, release: Release, group: FailoverGroup
) -> None:
    run = factories.given(factories.deployed(some, release))
    properties.set_value(some, "erp.outbox", "/newer", by=developer)
    client.force_login(developer)
    html = client.get(GRID).content.decode()
    assert "is-changed" in html.split('<tr data-key="erp.outbox">')[1].split("</tr>")[0]
    assert "is-changed" not in html.split('<tr data-key="queues.url">')[1].split("</tr>")[0]
    assert f"deployment #{run.pk}" in html
    assert f"<span>newer than deployment #{run.pk}</span>" in client.get(f"{BASE}/").content.decode()
    runtimes = client.get(f"{GRID}?by=runtimes").content.decode().split('<tr data-key="erp.outbox">')[1].split("</tr>")[0]
    assert [cell.count("is-changed") for cell in runtimes.split("<td")[1:]] == [1, 0], "external02 has a value of its own"


def opened(client: Client, **given: str) -> str:
    """What the form of a cell keeps of the value that it shows."""
    place = {name: given[name] for name in ("key", "machine", "connector", "by")}
    found = re.search(r'name="seen" value="(\w+)"', client.get(f"{BASE}/cell/", place).content.decode())
    return found[1] if found else ""


def cell(client: Client, **given: str) -> tuple[int, str]:
    data = {"key": "erp.outbox", "machine": "", "connector": "", "by": "environments", "act": "set", "value": "/new"} | given
    data = {"seen": opened(client, **data)} | data
    answer = client.post(f"{BASE}/cell/", data, headers={"HX-Request": "true"})
    return answer.status_code, answer.content.decode()


def test_a_cell_is_edited_in_place_and_the_row_comes_back(client: Client, developer: User, some: Environment) -> None:
    client.force_login(developer)
    form = client.get(f"{BASE}/cell/?key=erp.outbox&machine=&connector=&by=environments").content.decode()
    assert 'value="/out"' in form
    status, html = cell(client)
    assert (status, cells(html, "erp.outbox")[0]) == (200, "/new +1 narrower")
    status, html = cell(client, machine="external01", by="machines", value="/one")
    assert cells(html, "erp.outbox") == ["/new global", "/one", "/two"]
    status, html = cell(client, machine="external02", by="machines", act="delete")
    assert cells(html, "erp.outbox")[2] == "/new global"


def test_a_refused_value_stays_in_its_cell_with_the_reason(client: Client, developer: User, some: Environment) -> None:
    client.force_login(developer)
    _, html = cell(client, value="relative")
    assert "is no absolute path" in html
    assert 'value="relative"' in html
    assert "<tr" not in html
    _, html = cell(client, key="queues.url", value="hunter3 ")
    assert "is not of type URL" in html
    assert "hunter3" not in html


def test_a_secret_is_replaced_in_its_cell_and_an_empty_field_keeps_it(client: Client, developer: User, some: Environment) -> None:
    client.force_login(developer)
    assert "hunter2" not in client.get(f"{BASE}/cell/?key=queues.url&machine=&connector=&by=environments").content.decode()
    cell(client, key="queues.url", value="")
    assert Property.objects.get(key="queues.url").reveal() == "redis://:hunter2@h:1/0"
    cell(client, key="queues.url", value="redis://:hunter3@h:1/0")
    assert Property.objects.get(key="queues.url").reveal() == "redis://:hunter3@h:1/0"


OUTBOX = {"key": "erp.outbox", "machine": "", "connector": "", "by": "environments"}


def test_two_people_in_one_cell_do_not_overwrite_each_other_unseen(
    client: Client, developer: User, operator: User, some: Environment
) -> None:
    client.force_login(developer)
    seen = opened(client, **OUTBOX)
    properties.set_value(some, "erp.outbox", "/theirs", by=operator)
    status, html = cell(client, value="/mine", seen=seen)
    assert "operator set it to “/theirs” since you opened it; yours is “/mine”. Save again to replace it, or leave it." in html
    assert (status, Property.objects.get(environment=some, key="erp.outbox", machine="").value) == (200, "/theirs")
    assert 'value="/mine"' in html, "what was typed is kept"
    told = re.search(r'name="seen" value="(\w+)"', html)
    assert told and cells(cell(client, value="/mine", seen=told[1])[1], "erp.outbox")[0] == "/mine +1 narrower"


def test_the_same_value_from_two_people_is_no_conflict(client: Client, developer: User, operator: User, some: Environment) -> None:
    client.force_login(developer)
    seen = opened(client, **OUTBOX)
    properties.set_value(some, "erp.outbox", "/mine", by=operator)
    assert cells(cell(client, value="/mine", seen=seen)[1], "erp.outbox")[0] == "/mine +1 narrower"


def test_a_cell_that_somebody_emptied_or_filled_meanwhile_says_so(
    client: Client, developer: User, operator: User, some: Environment
) -> None:
    client.force_login(developer)
    seen, empty = opened(client, **OUTBOX), opened(client, **OUTBOX | {"key": "new.key"})
    properties.remove_value(some, "erp.outbox", by=operator)
    properties.set_value(some, "new.key", "theirs", by=operator)
    assert "operator deleted it since you opened it; yours is “/mine”." in cell(client, value="/mine", seen=seen)[1]
    assert "operator set it to “theirs” since you opened it; yours is “mine”." in cell(client, key="new.key", value="mine", seen=empty)[1]
    assert "operator set it to “theirs” since you opened it. Delete again" in cell(client, key="new.key", act="delete", seen=empty)[1]


def test_of_two_secrets_neither_is_shown(client: Client, developer: User, operator: User, some: Environment) -> None:
    client.force_login(developer)
    seen = opened(client, **OUTBOX | {"key": "queues.url"})
    properties.set_value(some, "queues.url", "redis://:hunter8@h:1/0", by=operator)
    _, html = cell(client, key="queues.url", value="redis://:hunter9@h:1/0", seen=seen)
    assert "operator set a new secret since you opened it. Save again to replace it" in html and "hunter" not in html
    assert Property.objects.get(key="queues.url").reveal() == "redis://:hunter8@h:1/0"


def test_the_list_of_properties_and_pasted_lines_do_not_overwrite_unseen_either(
    client: Client, developer: User, operator: User, some: Environment
) -> None:
    client.force_login(developer)
    form = client.get(f"{BASE}/edit/?key=erp.outbox&machine=&connector=").content.decode()
    seen = re.search(r'name="seen" value="(\w+)"', form)
    pasted = client.post(f"{BASE}/paste/", {"text": "erp.outbox\t/mine", "act": "preview"}).content.decode()
    hidden = {name: re.search(rf'name="{name}" value="([^"]+)"', pasted)[1] for name in ("sealed", "seen")}  # type: ignore[index]
    listed = re.findall(r'properties/(\d+)/delete/.*?name="seen" value="(\w+)"', client.get(f"{BASE}/").content.decode(), re.DOTALL)
    row = properties.set_value(some, "erp.outbox", "/theirs", by=operator)
    assert seen
    body = {"key": "erp.outbox", "scope": "|", "value": "/mine", "seen": seen[1], "add": "False"}
    said = "operator set it to “/theirs” since you opened it"
    assert f"{said}; yours is “/mine”" in client.post(f"{BASE}/edit/", body).content.decode()
    assert "look at what would change now" in client.post(f"{BASE}/paste/", hidden | {"act": "apply"}).content.decode()
    deleted = client.post(f"{BASE}/{row.pk}/delete/", {"seen": dict(listed)[str(row.pk)]}, headers={"HX-Request": "true"})
    assert (
        f"{said}. Delete again" in deleted.content.decode() and "next deployment" not in deleted.content.decode().split('role="alert"')[1]
    )
    assert Property.objects.get(pk=row.pk).value == "/theirs"


def test_who_may_not_change_an_environment_is_refused(client: Client, viewer: User, developer: User, some: Environment) -> None:
    client.force_login(viewer)
    assert cell(client)[0] == 403
    assert client.get(f"{BASE}/paste/").status_code == 403
    client.force_login(developer)
    data = {"key": "erp.outbox", "machine": "", "connector": "", "by": "environments", "act": "set", "value": "/x"}
    assert client.post("/projects/webshop/production/properties/cell/", data).status_code == 403
    preview = client.post(f"{BASE}/paste/", {"text": "key,environment,value\nerp.outbox,production,/x", "act": "apply"}).content.decode()
    assert "you may not change Production" in preview
    assert not Property.objects.filter(environment__kind="production").exists()


def test_several_keys_are_set_together(client: Client, operator: User, some: Environment) -> None:
    client.force_login(operator)
    opened = client.get(f"{BASE}/bulk/?by=environments&keys=erp.outbox&keys=other").content.decode()
    assert "Set 2 keys together" in opened
    data = {"by": "environments", "keys": ["erp.outbox", "other"], "columns": ["test||", "production||"], "act": "set", "value": "/same"}
    assert client.post(f"{BASE}/bulk/", data).status_code == 302
    assert Property.objects.filter(value="/same").count() == 4
    refused = client.post(f"{BASE}/bulk/", data | {"value": "relative"}).content.decode()
    assert "Nothing is changed: 2 of 4 values are refused." in refused
    client.post(f"{BASE}/bulk/", data | {"act": "delete"})
    assert not Property.objects.filter(value="/same").exists()


def test_what_somebody_else_changed_is_not_set_together_unseen(client: Client, developer: User, operator: User, some: Environment) -> None:
    client.force_login(operator)
    opened = client.get(f"{BASE}/bulk/?by=environments&keys=erp.outbox&keys=other").content.decode()
    seen = re.search(r'name="seen" value="(\d+)"', opened)
    assert seen
    properties.set_value(some, "erp.outbox", "/theirs", by=developer)
    properties.set_value(some, "another", "/theirs", by=developer)
    data = {"by": "environments", "keys": ["erp.outbox", "other"], "act": "set", "value": "/same", "seen": seen[1]}
    html = client.post(f"{BASE}/bulk/", data | {"columns": ["test||", "production||"]}).content.decode()
    assert "developer changed erp.outbox (Test, global) since you opened this." in html and "another" not in html
    assert Property.objects.get(key="erp.outbox", environment=some, machine="", connector="").value == "/theirs"
    assert client.post(f"{BASE}/bulk/", data | {"columns": ["production||"]}).status_code == 302, "what nobody else touched"
    seen = re.search(r'name="seen" value="(\d+)"', html)
    assert seen and client.post(f"{BASE}/bulk/", data | {"columns": ["test||"], "seen": seen[1]}).status_code == 302
    assert Property.objects.get(key="erp.outbox", environment=some, machine="", connector="").value == "/same"


def test_pasted_lines_are_previewed_and_taken_all_or_none(client: Client, developer: User, some: Environment) -> None:
    client.force_login(developer)
    bad = client.post(f"{BASE}/paste/", {"text": "erp.outbox\tbad\nnew.key\tx", "act": "preview"}).content.decode()
    assert "is no absolute path" in bad
    assert "Correct 1 line first" in bad
    answer = client.post(f"{BASE}/paste/", {"text": "erp.outbox\t/fine\nnew.key\tx\nqueues.url\tredis://:hunter9@h:1/0", "act": "preview"})
    html = answer.content.decode()
    assert "hunter9" not in html
    assert not Property.objects.filter(key="new.key").exists()
    sealed = answer.context["sealed"]
    assert client.post(f"{BASE}/paste/", {"sealed": sealed, "act": "apply"}).status_code == 302
    assert Property.objects.get(key="queues.url").reveal() == "redis://:hunter9@h:1/0"
    assert set(PropertyChange.objects.filter(cause="imported").values_list("key", flat=True)) == {"erp.outbox", "new.key", "queues.url"}


def test_what_is_exported_can_be_imported_and_changes_nothing(client: Client, developer: User, some: Environment) -> None:
    client.force_login(developer)
    text = client.get(f"{BASE}.csv").content.decode()
    assert "hunter2" not in text
    assert {line["secret"] for line in csv.DictReader(io.StringIO(text)) if line["key"] == "queues.url"} == {"yes"}
    before = PropertyChange.objects.count()
    client.post(f"{BASE}/paste/", {"text": text, "act": "apply"})
    assert PropertyChange.objects.count() == before


def test_the_paste_form_opens_only_what_it_sealed_for_this_person_and_place(
    client: Client, developer: User, operator: User, some: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties.set_value(some, "erp.password", "hunter2", secret=True, by=developer)
    stolen = Property.objects.get(key="erp.password").sealed
    client.force_login(developer)

    def sent(sealed: str, base: str = BASE) -> str:
        return client.post(f"{base}/paste/", {"sealed": sealed, "act": "plan"}, headers={"hx-request": "true"}).content.decode()

    page = client.post(f"{BASE}/paste/", {"text": "erp.outbox\t/mine", "act": "plan"})
    mine = page.context["sealed"]
    for sealed in (stolen, vault.seal('["other", "erp.outbox\\t/x"]'), "nonsense"):
        answer = sent(sealed)
        assert "no longer kept: enter it again" in answer and "hunter2" not in answer
    assert "/mine" in sent(mine)
    client.force_login(operator)
    assert "no longer kept" in sent(mine)
    assert "no longer kept" in sent(mine, BASE.replace("/test/", "/production/"))
    client.force_login(developer)
    monkeypatch.setattr(property_grid, "PREVIEW_KEPT_SECONDS", -1)
    assert "no longer kept" in sent(mine)


@pytest.mark.parametrize("release", ["abc", "²", "1" * 30, "-1", ""])
def test_a_fill_for_no_release_is_not_found(client: Client, developer: User, some: Environment, release: str) -> None:
    client.force_login(developer)
    assert client.post(f"{BASE}/fill/", {"release": release, "fill": "erp.outbox"}).status_code == 404


def test_the_page_of_a_key_tells_type_use_values_and_history(client: Client, developer: User, some: Environment) -> None:
    client.force_login(developer)
    html = client.get(f"{BASE}/key/?key=erp.outbox").content.decode()
    for text in ("flow erp-orders, Folder of the inbound", "/acc", "/two", "File or folder"):
        assert text in html
    refused = client.post(f"{BASE}/type/", {"key": "erp.outbox", "kind": "port"}).content.decode()
    assert "Test, external02: &quot;/two&quot; is no port." in refused
    assert client.post(f"{BASE}/type/", {"key": "erp.outbox", "kind": "file"}).status_code == 302
    assert PropertyType.objects.get().kind == "file"


def test_the_last_change_is_undone_from_the_history(client: Client, developer: User, operator: User, some: Environment) -> None:
    properties.set_value(some, "erp.outbox", "/wrong", by=developer)
    client.force_login(developer)
    page = client.get(f"{BASE}/history/")
    assert "/wrong" in page.content.decode()
    client.post(f"{BASE}/undo/", {"act": page.context["last"].act})
    assert Property.objects.get(key="erp.outbox", machine="", environment=some).value == "/out"
    production = Environment.objects.get(project=some.project, kind="production")
    properties.set_values([properties.Edit(some, "k", "1"), properties.Edit(production, "k", "1")], by=operator)
    last = properties.last_act(some)
    assert last and last.count == 2
    act = last.act
    assert client.post(f"{BASE}/undo/", {"act": act}).status_code == 403


@pytest.mark.parametrize("by", ["environments", "machines", "runtimes"])
def test_a_long_grid_needs_no_more_queries_than_a_short_one(
    client: Client, viewer: User, some: Environment, by: str, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    Property.objects.bulk_create([Property(environment=some, key=f"key.{number:05}", value="x") for number in range(10_000)])
    client.force_login(viewer)
    with django_assert_max_num_queries(50):
        html = client.get(f"{GRID}?by={by}").content.decode()
    assert html.count("<tr data-key") == 50
    assert len(html) < 120_000


def test_a_missing_value_is_filled_in_where_it_is_missed(
    client: Client, developer: User, viewer: User, release: Release, filled: Environment
) -> None:
    properties.remove_value(filled, "erp.outbox", by=developer)
    client.force_login(developer)
    page = client.get(f"/projects/webshop/releases/{release.number}/?environment=test&tab=preflight").content.decode()
    assert 'name="value:erp.outbox"' in page
    data = {"release": release.number, "fill": "erp.outbox", "value:erp.outbox": ["", "relative"]}
    assert "is no absolute path" in client.post(f"{BASE}/fill/", data).content.decode()
    data["value:erp.outbox"] = ["", "/srv/out"]
    assert "No value is missing any more" in client.post(f"{BASE}/fill/", data).content.decode()
    assert Property.objects.get(key="erp.outbox").value == "/srv/out"
    client.force_login(viewer)
    assert client.post(f"{BASE}/fill/", data).status_code == 403
