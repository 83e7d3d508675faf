"""The frame that every page of a project stands in."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.template import Context, Template
from django.test import Client, RequestFactory
from django.utils import timezone

from portal.errors import NotAllowed
from portal.htmx import refused
from portal.models import Project


def rendered(source: str, **context: object) -> str:
    return Template("{% load baton %}" + source).render(Context(context))


def test_a_visitor_is_sent_to_the_sign_in_page(webshop: Project, client: Client) -> None:
    answer = client.get("/projects/webshop/")
    assert answer.status_code == 302
    assert answer["Location"] == "/login/?next=/projects/webshop/"
    assert "Sign in" in client.get(answer["Location"]).content.decode()


def test_a_member_sees_project_role_and_environments(webshop: Project, viewer: User, client: Client) -> None:
    client.force_login(viewer)
    page = client.get("/projects/webshop/").content.decode()
    for words in ("Webshop", "Production", "Viewer in Demo", "Skip to the content"):
        assert words in page


def test_a_stranger_learns_nothing_of_the_project(webshop: Project, stranger: User, client: Client) -> None:
    client.force_login(stranger)
    answer = client.get("/projects/webshop/")
    assert answer.status_code == 404
    assert "Webshop" not in answer.content.decode()


@pytest.mark.parametrize(
    ("status", "kind", "word", "tone"),
    [
        pytest.param("leader", "", "Leader", "green", id="leader"),
        pytest.param("single-node", "", "Leader (single node)", "yellow", id="single node"),
        pytest.param("running", "", "Running", "blue", id="a step that runs is under way"),
        pytest.param("running", "router", "Running", "green", id="a router that runs is well"),
        pytest.param("leader", "preference", "Prefers to lead", "yellow", id="a preference is no status"),
        pytest.param("never-heard", "", "Never heard", "gray", id="a word of tomorrow still reads"),
    ],
)
def test_a_status_is_word_icon_and_colour(status: str, kind: str, word: str, tone: str) -> None:
    badge = rendered("{% status_badge status kind=kind %}", status=status, kind=kind)
    assert word in badge
    assert f"tone-{tone}" in badge
    assert "icons.svg#" in badge


def test_every_icon_named_by_a_badge_exists() -> None:
    from pathlib import Path

    from django.contrib.staticfiles import finders

    from portal.templatetags.baton import BY_KIND, STATUSES

    sprite = Path(str(finders.find("portal/icons.svg"))).read_text()
    for look in [*STATUSES.values(), *BY_KIND.values()]:
        assert f'<symbol id="{look.icon}"' in sprite, look


@pytest.mark.parametrize(
    ("seconds", "words", "stale"),
    [
        pytest.param(3, "3 s ago", False, id="fresh"),
        pytest.param(11, "11 s ago", True, id="older than an agent may be silent"),
        pytest.param(7300, "2 h ago", True, id="hours"),
    ],
)
def test_a_fact_has_an_age(seconds: int, words: str, stale: bool) -> None:
    for moment in (timezone.now() - timedelta(seconds=seconds), (timezone.now() - timedelta(seconds=seconds)).isoformat()):
        shown = rendered("{% age moment %}", moment=moment)
        assert words in shown
        assert ("is-stale" in shown) is stale


def test_a_fact_never_heard_of_says_so() -> None:
    assert "never heard of" in rendered("{% age moment %}", moment=None)
    assert "never heard of" in rendered("{% age moment %}", moment="")


def test_a_refusal_comes_back_as_words_on_the_page_the_person_came_from(rf: RequestFactory, viewer: User, client: Client) -> None:
    from django.contrib.messages.storage.fallback import FallbackStorage

    request = rf.post("/x/", headers={"referer": "http://testserver/projects/webshop/?tab=groups"})
    request.user, request.session, request.htmx = viewer, client.session, False  # type: ignore[attr-defined]
    request._messages = FallbackStorage(request)  # type: ignore[attr-defined]
    answer = refused(request, NotAllowed("No follower is ready; use Disable instead."))
    assert answer["Location"] == "/projects/webshop/?tab=groups"
    assert [str(message) for message in request._messages] == ["No follower is ready; use Disable instead."]  # type: ignore[attr-defined]
    request.htmx = True  # type: ignore[attr-defined]
    answer = refused(request, NotAllowed("No follower is ready; use Disable instead.", reasons=["external02 is silent"]))
    assert answer.status_code == 200
    assert answer["HX-Reswap"] == "none"
    assert "external02 is silent" in answer.content.decode()


def test_the_address_of_an_act_that_is_opened_answers_in_words(webshop: Project, admin: User, client: Client) -> None:
    client.force_login(admin)
    answer = client.get("/projects/webshop/test/plan/default/")
    assert (answer.status_code, answer["Allow"]) == (405, "POST")
    assert "This address carries out an act" in answer.content.decode() and "Webshop" in client.get("/projects/").content.decode()
    told = client.get("/api/v1/releases/1/activate/")
    assert told.status_code == 405 and told.json()["code"] == "method-not-allowed"
