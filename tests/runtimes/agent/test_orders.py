"""Orders: every part of them is carried out, or is told as not taken and tried again."""

import asyncio
import base64
import threading
from pathlib import Path

import msgspec
import pytest

from runtimes.agent import items, linux
from runtimes.agent.carrier import AT_ONCE, Carrier
from runtimes.agent.home import Home, Identity
from runtimes.agent.loop import Agent
from runtimes.agent.spool import LogBuffer, Spool
from runtimes.protocol import (
    Cause,
    CommandOrder,
    GroupRequest,
    Inquiry,
    InquiryAnswer,
    ItemAct,
    Orders,
    RequestKind,
    RequestOutcome,
    RequestStatus,
    Trust,
)
from tests import PATIENCE
from tests.certified import Authority
from tests.runtimes.agent.conftest import cluster, disk_full, erp

IDENTITY = Identity(
    credential="c", machine="external01", environment="test", project="webshop", portal="http://127.0.0.1:9", token_digest=""
)
WISH = GroupRequest(
    id="r1",
    kind=RequestKind.DISABLE,
    group="g1",
    machine="external01",
    expected_epoch=None,
    cause=Cause.DISABLE,
    actor="operator",
    valid_seconds=15,
)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(Home(tmp_path / "home"), IDENTITY, LogBuffer(), "1")


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Authority(tmp_path / "authority").trust("external01", "127.0.0.1")


def orders(trust: Trust, **changes: object) -> Orders:
    fields = {"version": 7, "namespace": "/baton/1/", "trust": trust, "router": cluster("external01")["external01"], "requests": [WISH]}
    return Orders(**(fields | {"runtimes": [erp("0" * 64)], "commands": [CommandOrder(id="c1", name="x", timeout_seconds=1)]} | changes))


def taken(agent: Agent) -> list[bool]:
    """Router, wish, command, runtime."""
    return [agent.router.order is not None, bool(agent.carrier.waiting), bool(agent.commands.commands), bool(agent.runtimes)]


def test_a_part_that_cannot_be_carried_out_keeps_nothing_from_the_others_and_is_no_order_taken(agent: Agent, trust: Trust) -> None:
    async def scenario() -> None:
        unreadable = orders(msgspec.structs.replace(trust, revoked=base64.b64encode(b"no list").decode()))
        agent.take_orders(unreadable, 0.0)
        assert taken(agent) == [True] * 4
        assert agent.report().orders_version == 0
        agent.take_orders(msgspec.structs.replace(unreadable, version=8, trust=trust), 1.0)
        assert agent.report().orders_version == 8
        await agent._close()

    asyncio.run(scenario())


def test_orders_that_met_a_full_disk_are_carried_out_once_there_is_room(
    agent: Agent, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        full = orders(trust)
        with monkeypatch.context() as disk:
            disk.setattr(linux, "write_atomically", disk_full)
            agent.take_orders(full, 0.0)
            agent.take_orders(full, 1.0)
            assert agent.report().orders_version == 0
            assert taken(agent) == [True] * 4
            assert agent.router.wake.is_set()
            assert not agent.home.revoked.exists()
        agent.take_orders(full, 2.0)
        assert agent.report().orders_version == 7
        assert taken(agent) == [True] * 4
        assert agent.home.revoked.exists()
        await agent._close()

    asyncio.run(scenario())


def test_what_was_to_be_done_once_is_not_done_after_a_reboot(agent: Agent, trust: Trust) -> None:
    async def scenario() -> None:
        inquiry = Inquiry(id="i1", runtime="external01.erp", flow="f1", act=ItemAct.DISCARD)
        agent.home.write("orders.json", orders(trust, inquiries=[inquiry]))
        agent._remember_orders()
        assert taken(agent) == [True, False, False, True]
        assert agent.orders is not None and agent.orders.inquiries == []
        await agent._close()

    asyncio.run(scenario())


async def eventually_empty(some: set[str]) -> None:
    for _ in range(2000):
        if not some:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(some)


def test_a_dead_mount_of_one_flow_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted, asked = threading.Event(), []

    def answered(inquiry: Inquiry, where: object) -> InquiryAnswer:
        asked.append(inquiry.id)
        if inquiry.runtime == "external01.erp":
            mounted.wait(30)
        return InquiryAnswer(id=inquiry.id)

    monkeypatch.setattr(items, "answered", answered)
    monkeypatch.setattr(items, "ACT_SECONDS", 0.3)

    async def scenario() -> None:
        changed = asyncio.Event()
        clerk = items.Clerk(lambda _: None, changed.set)

        async def until(count: int) -> dict[str, str]:
            async with asyncio.timeout(20):
                while len(clerk.answers) < count:
                    changed.clear()
                    await changed.wait()
            return {answer.id: answer.problem for answer in clerk.answers}

        hang = [Inquiry(id=f"h{number}", runtime="external01.erp", flow="f", act=ItemAct.LIST) for number in range(12)]
        clerk.take([*hang, Inquiry(id="i", runtime="external01.crm", flow="f", act=ItemAct.LIST)])
        problems = await until(13)
        assert problems["i"] == ""
        assert "nobody answered within 0.3 s" in problems["h0"]
        assert all("earlier question" in problems[f"h{number}"] for number in range(1, 12))
        assert sorted(asked) == ["h0", "i"]
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 5) == "free"
        mounted.set()
        again = Inquiry(id="again", runtime="external01.erp", flow="f", act=ItemAct.LIST)
        await eventually_empty(clerk._hanging)
        clerk.take([again])
        assert await until(1) == {"again": ""}

    try:
        asyncio.run(scenario())
    finally:
        mounted.set()


class Etcd:
    """What a carrier asks for, in the place of a router that takes a tenth of a second for each wish."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []
        self.now = self.most = 0
        self.status = RequestStatus.SUCCEEDED

    async def place(self, request: GroupRequest, asks: bool = False) -> RequestOutcome:
        self.asked.append((request.id, asks))
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.1)
        self.now -= 1
        return RequestOutcome(id=request.id, status=self.status)


def wish(key: str, group: str = "g1", **changes: object) -> GroupRequest:
    return msgspec.structs.replace(WISH, id=key, group=group, **changes)


def test_wishes_of_many_groups_are_carried_together_and_those_of_one_group_in_turn(tmp_path: Path) -> None:
    async def scenario() -> None:
        etcd, home = Etcd(), Home(tmp_path)
        changed = asyncio.Event()
        carrier = Carrier(home, Spool(home), etcd.place, changed.set)
        carrier.take([wish(f"r{number}", f"g{number}") for number in range(40)] + [wish("last", "g0")])
        running = asyncio.create_task(carrier.run())
        async with asyncio.timeout(3 * PATIENCE):
            while len(carrier.spool.outcomes) < 41:
                changed.clear()
                await changed.wait()
        running.cancel()
        assert etcd.most == AT_ONCE
        asked = [key for key, _ in etcd.asked]
        assert sorted(asked) == sorted([*(f"r{number}" for number in range(40)), "last"])
        assert asked.index("last") > asked.index("r0")

    asyncio.run(scenario())


def test_a_wish_that_waited_through_a_suspend_is_not_carried_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        etcd, home = Etcd(), Home(tmp_path)
        carrier = Carrier(home, Spool(home), etcd.place, lambda: None)
        monkeypatch.setattr(linux, "boot_seconds", lambda: 100.0)
        carrier.take([wish("r1")])
        monkeypatch.setattr(linux, "boot_seconds", lambda: 115.0)
        await carrier._each(carrier._carry, carrier.waiting.values())
        assert etcd.asked == []
        (outcome,) = carrier.spool.outcomes
        assert (outcome.status, outcome.code) == (RequestStatus.EXPIRED, "no-majority")

    asyncio.run(scenario())


def test_a_wish_that_stands_is_asked_after_and_never_written_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        etcd, home = Etcd(), Home(tmp_path)
        etcd.status = RequestStatus.RUNNING
        carrier = Carrier(home, Spool(home), etcd.place, lambda: None)
        carrier.take([wish("r1")])
        await carrier._each(carrier._carry, carrier.waiting.values())
        await carrier._each(carrier._follow, carrier.standing.values())
        assert etcd.asked == [("r1", False), ("r1", True)]

    asyncio.run(scenario())
