"""What holds of every page: help that is there, an export of each list, an answer to whoever opens an act's address, and nobody is offered
what his role refuses."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from deployments import rollout, schedules
from deployments.models import Release
from portal import creation, exports
from portal.context import CHAPTERS, PARENT, longest_prefix
from portal.models import Connector, Environment, Group, Project, System
from portal.views.help import chapters
from tests import factories
from tests.deployments.conftest import Engine

TEST = "/projects/webshop/test/"


class Links(HTMLParser):
    """Where a page leads, and what it would post."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.posts: list[str] = []  # of forms with a button that can be pressed
        self.form = ""
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [address for name in ("href", "hx-get") if tag != "form" and (address := given.get(name))]
        self.ids += [name] if (name := given.get("id")) else []
        if tag == "form":
            self.form = (given.get("action") or "") if given.get("method") == "post" else ""
        elif tag == "button" and self.form and "disabled" not in given and given.get("type") != "button":
            self.posts.append(self.form)

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.form = ""


def anchors(chapter: str) -> set[str]:
    text = chapters()[chapter].read_text(encoding="utf-8")
    return {re.sub(r"[^\w\s-]", "", line.lstrip("# ").lower()).strip().replace(" ", "-") for line in text.splitlines() if line[:1] == "#"}


TEMPLATES = [path.read_text(encoding="utf-8") for path in (Path(settings.BASE_DIR) / "templates").rglob("*.html")]
LINKED = {found for text in TEMPLATES for found in re.findall(r'{% help "([^"]+)"', text)}


@pytest.mark.parametrize("chapter", sorted(set(CHAPTERS.values()) | LINKED - {"index"}))
def test_the_help_of_a_page_leads_to_a_chapter_that_is_there(chapter: str) -> None:
    name, _, anchor = chapter.partition("#")
    assert name in chapters()
    assert not anchor or anchor in anchors(name)


def test_no_page_sends_a_person_to_the_chapter_on_apps_and_layers() -> None:
    assert not [chapter for chapter in set(CHAPTERS.values()) | LINKED if chapter.startswith("architecture")]


def test_every_page_of_the_sidebar_has_a_chapter() -> None:
    assert [name for name in PARENT.values() if longest_prefix(name, CHAPTERS) is None] == []


def walked(client: Client, start: str) -> Iterator[tuple[str, str]]:
    """Every page that links lead to, each kind of address once, with its HTML."""
    seen: set[str] = set()
    todo = [(start, "")]
    while todo:
        address, origin = todo.pop()
        parts = urlsplit(address)
        kind = re.sub(r"[0-9a-f-]{36}|\d+|external0\d|core01", "*", parts.path)
        if kind in seen or parts.netloc or not parts.path.startswith(("/projects", "/teams")):
            continue
        seen.add(kind)
        answer = client.get(address)
        assert answer.status_code == 200, f"{origin} leads to {address}: {answer.status_code}"
        if "html" in answer["Content-Type"]:
            html = answer.content.decode()
            yield address, html
            todo += [(urljoin(address, link), address) for link in Links(html).found]


def skipped_levels(html: str) -> list[str]:
    """Headings that stand more than one level below the one before: whoever listens to the page takes them for parts of something else."""
    levels = [int(level) for level in re.findall(r"<h([1-6])", html.partition("<main")[2])]
    return [f"h{before} → h{level}" for before, level in pairwise(levels) if level > before + 1]


def test_a_viewer_is_led_to_no_page_that_is_refused_and_offered_no_act(
    client: Client,
    viewer: User,
    developer: User,
    active: Release,
    engine: Engine,
    filled: Environment,
) -> None:
    engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    client.force_login(viewer)
    pages = dict(walked(client, "/projects/webshop/"))
    assert len(pages) > 25
    for address, html in pages.items():
        links = Links(html)
        assert html.count("<h1") == 1 or "/log/" in address, address
        assert len(links.ids) == len(set(links.ids)), address
        assert [act for act in links.posts if act != "/logout/"] == [], address
    client.force_login(developer)
    dialogs = dict(walked(client, f"{TEST}releases/"))
    assert any(address.endswith("/deploy/") for address in dialogs)
    assert {address: told for address, html in (pages | dialogs).items() if (told := skipped_levels(html))} == {}


def test_an_acts_address_that_is_opened_says_what_to_do(client: Client, operator: User, webshop: Project) -> None:
    client.force_login(operator)
    for act, way in (("deployments/7/cancel/", "To Deployments"), ("plan/default/", "To Plan"), ("rules/freezes/1/lift/", "To Rules")):
        answer = client.get(TEST + act)
        html = answer.content.decode()
        assert (answer.status_code, answer["Allow"]) == (405, "POST")
        assert "Nothing was done" in html and way in html
    assert "Nothing was done" not in client.get("/api/v1/releases/1/deploy/").content.decode()


@pytest.mark.parametrize(
    ("page", "columns", "row"),
    [
        pytest.param("deployments/", "number,release,name,status", "1,First,succeeded", id="deployments"),
        pytest.param("releases/", "number,name,note,digest", "1,First", id="releases"),
        pytest.param("groups/", "group,connector,system,machine", "erp-orders,erp,ERP,external01", id="groups"),
        pytest.param("items/", "flow,runtime,on,waiting", "", id="items"),
        pytest.param("timeline/", "at,group,epoch,leader", "", id="timeline"),
        pytest.param("schedule/", "release,name,due_at,expires_at", "1,First,2098-01-01T00:00:00+00:00", id="schedule"),
        pytest.param(
            "/projects/webshop/create/flows/", "connector,flow,inbound,outbound,group,version", "erp,erp-orders,file,queue", id="flows"
        ),
        pytest.param("/teams/demo/", "person,name,role", "viewer,,viewer", id="members"),
    ],
)
@pytest.mark.usefixtures("far_future")
def test_a_list_is_exported(
    client: Client,
    viewer: User,
    developer: User,
    active: Release,
    engine: Engine,
    filled: Environment,
    page: str,
    columns: str,
    row: str,
) -> None:
    if page == "schedule/":
        due = datetime(2098, 1, 1, tzinfo=UTC)
        schedules.schedule(active, filled, due_at=due, by=developer, now=engine.now)
    engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    client.force_login(viewer)
    assert "format=csv" in client.get(urljoin(TEST, page)).content.decode() or page == "items/"
    answer = client.get(f"{urljoin(TEST, page)}?format=csv")
    text = answer.content.decode()
    assert answer["Content-Type"].startswith("text/csv") and text.startswith(columns)
    assert row in text


def test_an_exported_text_is_no_formula() -> None:
    text = exports.as_csv("x", ["a"], [("=1+1",), (-1,), ("plain",)]).content.decode()
    assert text.split() == ["a", "'=1+1", "-1", "plain"]


def test_a_group_that_bears_another_connectors_name_is_told_apart(client: Client, developer: User, erp: Connector) -> None:
    crm = System.objects.create(project=erp.project, name="CRM", slug="crm")
    other = Connector.objects.create(project=erp.project, system=crm, name="crm")
    Group.objects.create(connector=other, name="orders")
    flow = erp.flows.get()
    client.force_login(developer)
    address = f"/projects/webshop/create/flows/erp/{flow.name}/group/"
    told = client.post(address, {"group": "new", "new_name": "orders"}, follow=True).content.decode()
    assert "crm has a group orders, too. They share nothing but the name" in told
    assert creation.namesakes(Group.objects.get(connector=erp, name="orders")) == ["crm"]


def test_a_lane_says_whose_group_it_is(client: Client, viewer: User, test_environment: Environment, erp: Connector) -> None:
    factories.applied(test_environment, erp)
    client.force_login(viewer)
    html = client.get(f"{TEST}timeline/").content.decode()
    assert re.search(r'erp-orders <small class="text-secondary">erp</small>', html)


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        pytest.param("erp", {"Systems", "Flows", "Groups", "Runtimes", "Properties"}, id="a word that many bear"),
        pytest.param("external01.erp", {"Runtimes"}, id="a runtime"),
        pytest.param("external01", {"Machines", "Properties"}, id="a machine, and its keys"),
        pytest.param("${erp.outbox}", {"Properties"}, id="a placeholder"),
        pytest.param("1", {"Machines", "Properties", "Releases", "Deployments"}, id="a number"),
        pytest.param("/srv/erp", set(), id="values are not searched"),
    ],
)
def test_what_has_a_name_is_found(
    client: Client, viewer: User, developer: User, active: Release, engine: Engine, filled: Environment, text: str, titles: set[str]
) -> None:
    engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    client.force_login(viewer)
    html = client.get("/projects/webshop/search/", {"q": text}).content.decode()
    assert set(re.findall(r"</svg> (\w+)</h2>", html)) == titles
    for link in [link for link in Links(html.partition("search-hits")[2]).found if link.startswith("/projects")]:
        assert client.get(link).status_code == 200, link


def test_a_stranger_finds_nothing_and_a_search_needs_few_queries(
    client: Client, viewer: User, stranger: User, active: Release, django_assert_max_num_queries: Any
) -> None:
    client.force_login(stranger)
    assert client.get("/projects/webshop/search/", {"q": "erp"}).status_code == 404
    client.force_login(viewer)
    with django_assert_max_num_queries(20):
        assert client.get("/projects/webshop/search/", {"q": "erp"}).status_code == 200
