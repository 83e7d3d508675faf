"""Orders: every part of them is carried out, or is told as not taken and tried again."""

import asyncio
import base64
from pathlib import Path

import msgspec
import pytest

from runtimes.agent import linux
from runtimes.agent.home import Home, Identity
from runtimes.agent.loop import Agent
from runtimes.agent.spool import LogBuffer
from runtimes.protocol import Cause, CommandOrder, GroupRequest, Orders, RequestKind, Trust
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
