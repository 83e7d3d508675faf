"""Failed items, and the history and types of properties, from a terminal."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from cli import items as commands
from portal.models import Environment, Property
from runtimes import fleet, ordering, protocol
from runtimes.models import FailoverGroup, Runtime
from tests.cli.conftest import Baton
from tests.runtimes.conftest import said, said_of

ITEM = protocol.FailedItem(
    key="k1", item="m1", name="order.xml", size=4, reason="the target refused it", tries=3, at="2026-11-22T10:00:00Z"
)


class Agent:
    """external01's agent as far as it tells of failed items: it answers while the command waits."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.sequence, self.kept = runtime, 0, [ITEM]
        self.asked: list[protocol.Inquiry] = []
        self.done: list[protocol.FailedItem] = []
        self.problem = ""
        self.report()

    def report(self) -> None:
        self.sequence += 1
        asked = ordering.orders_for(self.runtime.machine, now=timezone.now()).inquiries
        self.asked += asked
        for inquiry in asked:
            if inquiry.act in (protocol.ItemAct.RETRY, protocol.ItemAct.DISCARD):
                self.done = [item for item in self.kept if not inquiry.keys or item.key in inquiry.keys]
                self.kept = [item for item in self.kept if item not in self.done]
        answers = [
            protocol.InquiryAnswer(
                id=inquiry.id,
                total=len(self.kept),
                items=self.kept,
                problem=self.problem,
                content="PGE+" if inquiry.act == "view" else "",
                acted=len(self.done) if inquiry.act in ("retry", "discard") else None,
                done=self.done if inquiry.act in ("retry", "discard") else [],
            )
            for inquiry in asked
        ]
        flow = protocol.FlowReport(flow="f1", name="erp-orders", on=True, delivered=7, waiting=12, pending=2, kept=len(self.kept))
        report = said(self.sequence, runtimes=[said_of(self.runtime, flows=[flow])], answers=answers)
        assert fleet.record_report(self.runtime.machine, report, now=timezone.now())


@pytest.fixture
def agent(baton: Baton, group: FailoverGroup, monkeypatch: pytest.MonkeyPatch) -> Agent:
    runtimes = Runtime.objects.select_related("machine", "connector", "environment__project")
    found = Agent(runtimes.get(environment=group.environment, machine__name="external01"))
    monkeypatch.setattr(commands.time, "sleep", lambda _: found.report())
    return found


def test_a_developer_sees_what_waits_looks_at_a_failed_item_and_has_it_tried_again(baton: Baton, agent: Agent) -> None:
    listed = baton("items", "list")
    assert listed.status == 0 and "erp-orders" in listed.out and "external01.erp" in listed.out and "12" in listed.out
    failed = baton("items", "failed", "external01.erp", "erp-orders")
    assert "k1" in failed.out and "order.xml" in failed.out and "the target refused it" in failed.out
    assert baton("items", "view", "external01.erp", "erp-orders", "k1").out == "<a>\n"
    retried = baton("items", "retry", "external01.erp", "erp-orders", "k1")
    assert retried.out == "1 item of erp-orders on external01.erp (order.xml): to be tried again. 0 left.\n"
    acts = baton("items", "history", "external01.erp").out
    assert all(word in acts for word in ("developer", "erp-orders", "tried again", "order.xml"))
    assert [(asked.act, list(asked.keys)) for asked in agent.asked[2:]] == [("retry", ["k1"])]
    assert baton("items", "list", "--failed").out == "No flow has failed items.\n"
    assert baton("items", "failed", "external01.erp", "f1", "--json").document["items"] == []


def test_all_failed_items_are_discarded_only_when_that_is_said(baton: Baton, agent: Agent) -> None:
    said = baton("items", "discard", "external01.erp", "erp-orders")
    assert said.status == 2 and "say --all" in said.err and agent.asked == []
    assert baton("items", "discard", "external01.erp", "erp-orders", "k1", "--all").status == 2
    assert baton("items", "discard", "external01.erp", "erp-orders", "--all").out.startswith(
        "1 item of erp-orders on external01.erp (order.xml): discarded."
    )
    assert agent.kept == []


def test_a_flow_that_is_off_or_whose_source_is_silent_says_why(baton: Baton, agent: Agent) -> None:
    def told(**more: Any) -> str:
        flow = {"flow": "f1", "name": "erp-orders", "on": True, "reason": "", "waiting": None, "pending": None, "kept": 0, "again": 0}
        Runtime.objects.filter(pk=agent.runtime.pk).update(observed_flows=[flow | more])
        return " ".join(baton("items", "list").out.split())

    silent = told(reason="answered no JSON but text/html", silent_since="2026-11-23T05:40:00+00:00")
    assert "On, silent" in silent and "answered no JSON" in silent and "has not answered since" in silent
    assert " Off " in told(on=False, reason="the process is down", kept=2, kept_at=timezone.now().isoformat())
    assert "2 (counted 0 s ago)" in told(on=False, kept=2, kept_at=timezone.now().isoformat())
    assert " unknown " in told(on=False, kept=None)
    assert "No flow has failed items" not in baton("items", "list", "--failed").out, "nobody knows"


def test_what_is_not_there_is_named_with_what_is(baton: Baton, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    said = baton("items", "failed", "external09.erp", "erp-orders")
    assert said.status == 2 and "has no runtime external09.erp" in said.err
    said = baton("items", "failed", "external01.erp", "tills")
    assert said.status == 2 and "It runs: erp-orders." in said.err
    agent.problem = "the folder cannot be read"
    said = baton("items", "failed", "external01.erp", "erp-orders")
    assert said.status == 3 and "external01: the folder cannot be read" in said.err
    monkeypatch.setattr(commands, "ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(commands.time, "sleep", lambda _: None)
    said = baton("items", "failed", "external01.erp", "erp-orders")
    assert said.status == 3 and "external01 did not answer" in said.err


def test_a_viewer_may_list_failed_items_and_nothing_else(baton: Baton, agent: Agent, developer: User) -> None:
    developer.memberships.update(role="viewer")  # type: ignore[attr-defined]
    assert "k1" in baton("items", "failed", "external01.erp", "erp-orders").out
    assert baton("items", "discard", "external01.erp", "erp-orders", "--all").status == 3
    assert agent.kept == [ITEM]


def test_the_history_of_a_value_and_its_undo(baton: Baton, filled: Environment) -> None:
    baton("properties", "set", "erp.folder", "/srv/a")
    baton("properties", "set", "erp.folder", "/srv/b")
    baton("properties", "set", "erp.password", "hidden-word", "--secret")
    told = baton("properties", "history")
    assert "/srv/a" in told.out and "developer" in told.out and "hidden-word" not in told.out and "••••" in told.out
    assert "erp.password" not in baton("properties", "history", "erp.folder").out
    assert "is undone: erp.password." in baton("properties", "undo").out
    assert not Property.objects.filter(environment=filled, key="erp.password").exists()
    assert "is undone: erp.password." in baton("properties", "undo").out, "once more does it again"
    assert Property.objects.filter(environment=filled, key="erp.password").exists()


def test_the_type_of_a_key_is_told_and_declared(baton: Baton, filled: Environment) -> None:
    assert "shop.port: port" in baton("properties", "type", "shop.port", "port").out
    assert "shop.port" in baton("properties", "types").out
    said = baton("properties", "set", "shop.port", "many")
    assert said.status == 3 and "shop.port" in said.err
    assert baton("properties", "type", "shop.port", "nonsense").status == 3
