"""Operate › Items and its API, as people with each role see and use them."""

import base64
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from portal.errors import Invalid, NotAllowed
from portal.models import Environment
from runtimes import fleet, items, ordering, protocol
from runtimes.models import FailoverGroup, ItemInquiry, Machine, Runtime
from tests.runtimes.conftest import said, said_of

HTMX = {"HX-Request": "true"}
ITEM = protocol.FailedItem(
    key="k1", item="m1", name="<b>order</b>.xml", size=4, reason="the target refused it", tries=3, at="2026-11-22T10:00:00Z"
)


@pytest.fixture
def runtime(group: FailoverGroup) -> Runtime:
    """external01.erp, which has just reported one flow with a failed item."""
    row = Runtime.objects.select_related("machine", "connector", "environment__project").get(
        environment=group.environment, machine__name="external01"
    )
    flow = protocol.FlowReport(flow="f1", name="erp-orders", on=True, delivered=7, waiting=12, pending=2, kept=1, again=3)
    report = said_of(row, group, protocol.Status.LEADER, epoch=41, flows=[flow])
    assert fleet.record_report(row.machine, said(1, runtimes=[report]), now=timezone.now())
    return Runtime.objects.select_related("machine", "connector", "environment__project").get(pk=row.pk)


def answer(runtime: Runtime, sequence: int = 2, found: Sequence[protocol.FailedItem] = (ITEM,), **more: Any) -> list[protocol.Inquiry]:
    """What the agent would do: take the open inquiries from its orders and report the answers."""
    asked = ordering.orders_for(runtime.machine, now=timezone.now()).inquiries
    answers = [protocol.InquiryAnswer(id=inquiry.id, total=len(found), items=list(found), **more) for inquiry in asked]
    flow = protocol.FlowReport(flow="f1", name="erp-orders", on=True, kept=len(found))
    fleet.record_report(runtime.machine, said(sequence, runtimes=[said_of(runtime, flows=[flow])], answers=answers), now=timezone.now())
    return asked


def page(environment: str = "test") -> str:
    return f"/projects/webshop/{environment}/items/external01/erp/f1/"


# ------------------------------------------------------------------------------------------------------------------- the pages


def test_a_viewer_sees_what_waits_and_what_failed_and_a_stranger_nothing(
    client: Client, viewer: User, stranger: User, runtime: Runtime
) -> None:
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/items/").content.decode()
    assert "external01.erp" in text and ">12<" in text and ">2<" in text and page() in text and "3 to be tried again" in text
    assert "No flow has failed items" not in client.get("/projects/webshop/test/items/?show=failed").content.decode()
    client.force_login(stranger)
    for url in ("/projects/webshop/test/items/", page()):
        assert client.get(url).status_code == 404


def test_opening_asks_the_machine_and_the_part_stops_asking_once_it_answered(client: Client, viewer: User, runtime: Runtime) -> None:
    client.force_login(viewer)
    first = client.get(page()).content.decode()
    inquiry = ItemInquiry.objects.get()
    assert "Asking external01" in first and "hx-trigger" in first and str(inquiry.pk) in first
    (asked,) = answer(runtime)
    assert (asked.runtime, asked.flow, asked.act, asked.actor) == ("external01.erp", "f1", "list", "viewer")
    part = client.get(f"{page()}?inquiry={inquiry.pk}", headers=HTMX).content.decode()
    assert "<html" not in part and "hx-trigger" not in part
    assert "&lt;b&gt;order&lt;/b&gt;.xml" in part and "the target refused it" in part
    assert "need the role developer" in part and "Look" not in part.replace("Looking", "")
    assert ordering.orders_for(runtime.machine, now=timezone.now()).inquiries == [], "an answered question is asked no more"


@pytest.mark.parametrize(
    ("act", "says"),
    [
        pytest.param("retry", "1 item to be tried again: order.xml.", id="try again"),
        pytest.param("discard", "1 item discarded: order.xml.", id="discard"),
    ],
)
def test_who_may_deploy_tries_again_or_discards_ticked_items(
    client: Client, developer: User, runtime: Runtime, act: str, says: str
) -> None:
    client.force_login(developer)
    gone = client.post(f"{page()}act/", {"act": act, "keys": ["k1", "k2"], "confirmed": "yes"})
    done = [msgspec.structs.replace(ITEM, name="order.xml")]
    (asked,) = answer(runtime, found=[], acted=1, done=done, problem="1 of 2 was gone already.")
    assert (asked.act, asked.keys, asked.actor) == (act, ["k1", "k2"], "developer")
    text = client.get(gone["Location"]).content.decode()
    assert says in text and "1 of 2 was gone already." in text


def test_discarding_is_confirmed_with_how_many_and_which(client: Client, developer: User, runtime: Runtime) -> None:
    client.force_login(developer)
    client.get(page())
    other = msgspec.structs.replace(ITEM, key="k2", item="m2", name="two.xml")
    answer(runtime, found=[ITEM, other])
    listed = ItemInquiry.objects.get()
    text = client.post(f"{page()}act/", {"act": "discard", "keys": ["k2"], "inquiry": listed.pk}).content.decode()
    assert "<strong>1</strong> failed item of" in text and "two.xml" in text and "m2" in text and "&lt;b&gt;order" not in text
    text = client.post(f"{page()}act/", {"act": "discard", "keys": ["k2"], "every": "on", "inquiry": listed.pk}).content.decode()
    assert "<strong>2</strong> failed items" in text and "Discard 2 items" in text
    assert 'value="k1"' in text and 'value="k2"' in text, "those that were listed, not what fails meanwhile"
    ItemInquiry.objects.update(total=231)
    text = client.post(f"{page()}act/", {"act": "discard", "every": "on", "inquiry": listed.pk}).content.decode()
    assert "All <strong>231</strong> failed items" in text and "Discard all 231" in text and 'name="keys"' not in text
    assert ItemInquiry.objects.count() == 1, "nothing was asked of the machine yet"


def test_who_discarded_what_is_kept_when_questions_are_forgotten(client: Client, developer: User, viewer: User, runtime: Runtime) -> None:
    client.force_login(developer)
    client.post(f"{page()}act/", {"act": "discard", "every": "on", "confirmed": "yes"})
    answer(runtime, found=[], acted=1, done=[ITEM])
    items.forget(now=timezone.now() + timedelta(days=1))
    client.force_login(viewer)
    client.get(page())
    answer(runtime, 3, found=[])
    asked = ItemInquiry.objects.get(act="list")
    for address in (f"{page()}?inquiry={asked.pk}", "/projects/webshop/test/machines/external01/?tab=history"):
        text = client.get(address).content.decode()
        assert "<strong>developer</strong>" in text and "1 item discarded: &lt;b&gt;order&lt;/b&gt;.xml" in text and "m1" in text
    (told,) = client.get(f"/api/v1/runtimes/{runtime.pk}/item-acts/").json()
    assert (told["actor"], told["act"], told["acted"], told["done"][0]["item"]) == ("developer", "discard", 1, "m1")


def test_of_a_runtime_that_is_down_the_last_count_stands_with_its_age(client: Client, viewer: User, runtime: Runtime) -> None:
    client.force_login(viewer)

    def report(sequence: int, **more: Any) -> str:
        flow = protocol.FlowReport(flow="f1", name="erp-orders", on=False, reason="it is down", **more)
        assert fleet.record_report(runtime.machine, said(sequence, runtimes=[said_of(runtime, flows=[flow])]), now=timezone.now())
        return client.get("/projects/webshop/test/items/?show=failed").content.decode()

    for sequence in (2, 3):
        text = report(sequence)
        assert "<span>1</span>" in text and "counted" in text and "With failed items <b>1</b>" in text
    client.get(page())
    answer_down = [protocol.InquiryAnswer(id=str(ItemInquiry.objects.get().pk), total=2, items=[ITEM])]
    flow = protocol.FlowReport(flow="f1", name="erp-orders", on=False)
    fleet.record_report(runtime.machine, said(4, runtimes=[said_of(runtime, flows=[flow])], answers=answer_down), now=timezone.now())
    assert "<span>2</span>" in report(5), "who asked the machine counted them"
    assert "<span>2</span>" not in report(6, kept=0) and "With failed items <b>0</b>" in report(7, kept=0)


def test_what_nobody_counted_is_unknown_not_none(client: Client, viewer: User, runtime: Runtime) -> None:
    Runtime.objects.update(observed_flows=[])
    flow = protocol.FlowReport(flow="f1", name="erp-orders", on=False)
    fleet.record_report(runtime.machine, said(2, runtimes=[said_of(runtime, flows=[flow])]), now=timezone.now())
    client.force_login(viewer)
    text = client.get("/projects/webshop/test/items/?show=failed").content.decode()
    assert ">unknown</a>" in text and page() in text and "and 1 unknown" in text and "No flow has failed items" not in text


def test_contents_are_shown_as_text_escaped_to_who_may_and_not_to_a_viewer(
    client: Client, developer: User, viewer: User, runtime: Runtime
) -> None:
    client.force_login(developer)
    seen = client.post(f"{page()}act/", {"act": "view:k1", "keys": ["k1"]})["Location"]
    answer(runtime, content=base64.b64encode(b"<script>alert(1)</script>").decode(), size=25)
    text = client.get(seen).content.decode()
    assert "&lt;script&gt;alert(1)" in text
    assert '&lt;b&gt;order&lt;/b&gt;.xml <small class="text-secondary mono">m1</small></h2>' in text, "which item it is"
    assert 'aria-current="true"' in text and re.search(r'value="k1" checked', text), "its row is marked, the tick stays"
    client.force_login(viewer)
    assert "alert(1)" not in client.get(seen).content.decode()
    assert client.post(f"{page()}act/", {"act": "view:k1"}).status_code == 403
    assert client.post(f"{page()}act/", {"act": "retry", "every": "on"}).status_code == 403


def test_nothing_ticked_asks_nothing_and_every_means_every(client: Client, developer: User, runtime: Runtime) -> None:
    client.force_login(developer)
    client.post(f"{page()}act/", {"act": "discard"})
    assert not ItemInquiry.objects.exists()
    client.post(f"{page()}act/", {"act": "retry", "every": "on", "keys": ["k1"]})
    assert ItemInquiry.objects.get().keys == []
    assert client.post(f"{page()}act/", {"act": "burn", "every": "on"}).status_code == 404
    assert client.get(f"{page()}?inquiry=nonsense").status_code == 404


def test_a_silent_machine_is_not_asked_and_one_that_does_not_answer_is_not_waited_for(
    client: Client, viewer: User, runtime: Runtime
) -> None:
    client.force_login(viewer)
    client.get(page())
    inquiry = ItemInquiry.objects.get()
    ItemInquiry.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert "did not answer" in client.get(f"{page()}?inquiry={inquiry.pk}").content.decode()
    Machine.objects.update(last_report_at=timezone.now() - timedelta(hours=1))
    text = client.get(page()).content.decode()
    assert "external01 is silent" in text and "hx-trigger" not in text.split('id="failed-items"')[1]


def test_in_production_only_an_operator_acts(runtime: Runtime, developer: User, client: Client) -> None:
    Environment.objects.filter(pk=runtime.environment_id).update(kind="other")
    Environment.objects.filter(project=runtime.environment.project, kind="production").update(kind="test")
    Environment.objects.filter(pk=runtime.environment_id).update(kind="production")
    client.force_login(developer)
    assert client.get(page("production")).status_code == 200
    assert client.post(f"{page('production')}act/", {"act": "retry", "every": "on"}).status_code == 403


# ----------------------------------------------------------------------------------------------------------------------- the acts


def test_questions_are_bounded_and_forgotten_and_only_that_machine_answers(runtime: Runtime, group: FailoverGroup) -> None:
    now = timezone.now()
    with pytest.raises(Invalid, match="does not report a flow nope"):
        items.ask(runtime, "nope", protocol.ItemAct.LIST, actor="viewer", now=now)
    with pytest.raises(Invalid, match="the one item"):
        items.ask(runtime, "f1", protocol.ItemAct.VIEW, actor="viewer", now=now)
    for _ in range(items.OPEN_AT_ONCE):
        inquiry = items.ask(runtime, "f1", protocol.ItemAct.LIST, actor="viewer", now=now)
    with pytest.raises(NotAllowed, match="wait a moment"):
        items.ask(runtime, "f1", protocol.ItemAct.LIST, actor="viewer", now=now)
    other = Machine.objects.get(environment=group.environment, name="external02")
    forged = protocol.InquiryAnswer(id=str(inquiry.pk), total=1, items=[ITEM])
    fleet.record_report(other, said(1, answers=[forged, protocol.InquiryAnswer(id="x")]), now=now)
    inquiry.refresh_from_db()
    assert inquiry.answered_at is None
    assert items.forget(now=now) == 0 and items.forget(now=now + timedelta(hours=1)) == items.OPEN_AT_ONCE


@pytest.mark.parametrize(
    ("content", "size", "shown"),
    [
        pytest.param("prijs €".encode(), 9, "prijs €", id="text"),
        pytest.param("prijs €".encode()[:-1], 100, "prijs ", id="text that was cut inside a character"),
        pytest.param(b"\x00\xff", 2, "00000000  00 ff", id="bytes"),
        pytest.param(b"", 0, "", id="nothing"),
    ],
)
def test_contents_are_text_or_a_dump(content: bytes, size: int, shown: str) -> None:
    assert items.content_of(ItemInquiry(content=content, size=size)).startswith(shown)


# ------------------------------------------------------------------------------------------------------------------------ the API


def test_the_api_asks_and_answers(client: Client, developer: User, viewer: User, runtime: Runtime) -> None:
    url = f"/api/v1/runtimes/{runtime.pk}/failed-items/"
    client.force_login(viewer)
    asked = client.post(url, {"flow": "f1"}, content_type="application/json")
    assert asked.status_code == 202 and asked.json()["status"] == "pending"
    answer(runtime)
    told = client.get(f"{url}{asked.json()['inquiry']}/").json()
    assert told["status"] == "answered" and told["items"][0]["key"] == "k1" and told["total"] == 1
    assert client.post(url, {"flow": "f1", "act": "retry", "keys": ["k1"]}, content_type="application/json").status_code == 403
    client.force_login(developer)
    seen = client.post(url, {"flow": "f1", "act": "view", "keys": ["k1"]}, content_type="application/json").json()["inquiry"]
    answer(runtime, 3, content=base64.b64encode(b"<x/>").decode(), size=4)
    assert client.get(f"{url}{seen}/").json()["content"] == "<x/>"
    client.force_login(viewer)
    assert client.get(f"{url}{seen}/").json()["content"] == ""
    assert client.post(url, {"flow": "nope"}, content_type="application/json").status_code == 400
