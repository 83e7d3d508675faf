"""A machine that is no part of its environment's cluster any more: what its agent tells its runtimes, so that they never run alone."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from runtimes.agent.client import NotKnown, PortalAway
from runtimes.agent.home import Home, Identity
from runtimes.agent.loop import Agent
from runtimes.agent.spool import LogBuffer
from runtimes.protocol import Orders, PeerReport, RouterOrder, RuntimeOrder

AWAY = PeerReport(machine="external02", address="10.0.0.2:7400", reachable=False, since="", error="no answer within 1 s")
REFUSED = msgspec.structs.replace(AWAY, error="it does not accept this machine's certificate: it hung up")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_orders_of_a_former_generation_of_the_cluster_leave_router_and_generation_as_they_are(home: Home) -> None:
    def scenario() -> None:
        machine = Machine(home)
        running = RouterOrder(
            name="external01", peer_host="10.0.0.1", peer_port=7400, cluster_token="baton-c-2", members={}, member_id="b1"
        )
        machine.router.ahead_of = lambda order: running
        former = msgspec.structs.replace(running, cluster_token="baton-c-1", member_id="")
        taken = machine.agent._never_back(Orders(version=3, namespace="/baton/1/", generation=1, router=former))
        assert (taken.router, taken.generation, taken.version) == (running, 2, 3)
        machine.router.ahead_of = lambda order: None
        newest = Orders(version=4, namespace="/baton/1/", generation=3, router=running)
        assert machine.agent._never_back(newest) is newest

    in_a_loop(scenario)


class Machine:
    """external01 with one runtime; what its router, its siblings and the portal say is said by the test."""

    def __init__(self, home: Home) -> None:
        identity = Identity(credential="c", machine="external01", environment="test", project="webshop", portal="http://x", token_digest="")
        self.agent = Agent(home, identity, LogBuffer(), "0.1.0")
        self.heard: list[str] = []
        self.peers: list[PeerReport] = []
        router: Any = SimpleNamespace(outside=False, refused="", is_member=False, endpoint="https://127.0.0.1:20000")
        self.router = self.agent.router = router
        self.agent.peers = SimpleNamespace(report=lambda: self.peers)  # type: ignore[assignment]
        order = RouterOrder(name="external01", peer_host="10.0.0.1", peer_port=7400, cluster_token="t", members={})
        wished = RuntimeOrder(key="external01.erp", connector="erp", running=True, digest="d", release=1)
        self.agent.orders = Orders(version=1, namespace="/baton/1/", router=order, runtimes=[wished])
        self.agent.runtimes = {"external01.erp": SimpleNamespace(take=self.take)}  # type: ignore[dict-item]

    def take(self, order: object, around: Any) -> None:
        self.heard.append(around.outside)

    def looks(self) -> str:
        """What its runtimes are told after the agent has looked around."""
        self.agent._router_changed()
        return self.heard[-1]


def in_a_loop(scenario: Any) -> None:
    async def run() -> None:
        scenario()

    asyncio.run(run())


def test_a_router_that_is_refused_as_a_member_puts_its_machine_outside_until_it_runs_as_one(home: Home) -> None:
    def scenario() -> None:
        machine = Machine(home)
        assert machine.looks() == ""
        machine.router.outside, machine.router.refused = True, "the cluster was built anew without it"
        assert machine.looks() == "the cluster was built anew without it"
        machine.router.outside = False  # another order came, and nothing is known yet
        assert machine.looks() == "the cluster was built anew without it"
        assert Machine(home).looks() == "the cluster was built anew without it", "an agent that starts anew knows it"
        machine.router.is_member = True
        assert machine.looks() == ""
        assert Machine(home).looks() == ""

    in_a_loop(scenario)


def test_a_machine_that_was_registered_anew_elsewhere_is_outside(home: Home) -> None:
    def scenario() -> None:
        machine = Machine(home)
        machine.agent._complain(PortalAway("no route"))
        assert machine.looks() == "", "a portal that is away says nothing"
        machine.agent._complain(NotKnown("unknown credential"))
        assert machine.heard[-1] == "the portal does not accept this machine's credential any more", "told at once"
        assert "credential" in Machine(home).looks()
        machine.agent._note_outside(credential="")  # a report was accepted
        assert machine.heard[-1] == ""

    in_a_loop(scenario)


def test_a_sibling_that_refuses_the_certificate_puts_the_machine_outside_and_one_that_is_away_does_not(home: Home) -> None:
    def scenario() -> None:
        machine = Machine(home)
        machine.peers = [AWAY]
        assert machine.looks() == ""
        machine.peers = [REFUSED]
        assert machine.looks() == "external02 does not accept this machine's certificate"

    in_a_loop(scenario)


def test_a_disk_that_is_full_keeps_neither_router_nor_siblings_from_being_looked_after(home: Home) -> None:
    """The folder of a new runtime cannot be made: its order is tried again, and the others are told."""

    def scenario() -> None:
        machine = Machine(home)

        def full(order: object, around: Any) -> None:
            machine.take(order, around)
            raise OSError(28, "No space left on device")

        machine.agent.runtimes = {"external01.erp": SimpleNamespace(take=full)}  # type: ignore[dict-item]
        machine.peers = [REFUSED]
        assert machine.looks() == "external02 does not accept this machine's certificate"
        assert machine.agent.changed.is_set()

    in_a_loop(scenario)
