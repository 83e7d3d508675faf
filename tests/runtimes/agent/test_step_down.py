"""Before a machine's router restarts while it is well: who takes over, and why it waits."""

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from runtimes.agent.carrier import NotPlaced
from runtimes.agent.etcd_member import Member
from runtimes.agent.home import Identity
from runtimes.agent.loop import Agent
from runtimes.protocol import (
    BundleContent,
    Cause,
    ClusterMember,
    GroupReport,
    GroupRequest,
    GroupSpec,
    Orders,
    PeerReport,
    RequestOutcome,
    RequestStatus,
    RouterOrder,
    RuntimeReport,
    RuntimeState,
    State,
    Status,
)

NAMES = ("external01", "external02", "external03", "core01", "external04")


class Machine:
    """external01 leads g1; what its agent sees of the others, and what becomes of its wishes, is said by the test."""

    def __init__(
        self,
        *,
        members: int = 3,
        away: tuple[str, ...] = (),
        ends: tuple[str, ...] = (),
        learner: str = "",
        revoked: tuple[str, ...] = (),
        seen: tuple[PeerReport, ...] = (),
        cleared: str = "list 1",
        outcome: Any = None,
    ) -> None:
        """`away`: routers that do not answer; `ends`: those that do not any more, once what is led here was handed over; `revoked`: whose
        certificates were taken back, by a list of which no connection stands here any more if `cleared` is its digest; `seen`: siblings."""
        self.away, self.ends = away, ends
        self.asked: list[GroupRequest] = []
        self.leads = True
        self.outcome = outcome
        names = ("external01", "external02", "core01") if members == 3 else NAMES[:members]
        self.agent = Agent.__new__(Agent)
        urls = {name: f"https://10.0.0.{number}:7400" for number, name in enumerate(names, 1)}
        order = RouterOrder(name="external01", peer_host="10.0.0.1", peer_port=7400, cluster_token="t", members=urls)
        listed = [ClusterMember(id=name, name=name, url=url, learner=name == learner) for name, url in urls.items()]
        external = [name for name in names if name.startswith("external")]
        spec = GroupSpec(id="g1", name="orders", failover=True, members=[f"{name}.erp" for name in external])
        content = BundleContent(environment="test", machine="external01", connector="erp", release=1, flows=[], groups=[spec])
        self.agent.__dict__.update(
            router=SimpleNamespace(
                order=order,
                listed=listed,
                cleared=cleared,
                member=Member(name="external01", cluster_token="t", members=urls, client_port=20000, cluster_id="c1"),
            ),
            orders=Orders(version=1, namespace="/baton/1/"),
            peers=SimpleNamespace(ask=self.ask, report=lambda: list(seen)),
            certificates=SimpleNamespace(just_revoked=frozenset(revoked), revoked_list="list 1"),
            identity=Identity(
                credential="c", machine="external01", environment="test", project="webshop", portal="http://x", token_digest=""
            ),
            runtimes={"external01.erp": SimpleNamespace(report=self.report, content=lambda: content)},
            _place=self.place,
        )

    def report(self) -> RuntimeReport:
        status, state = (Status.LEADER, State.ON) if self.leads else (Status.FOLLOWER, State.OFF)
        group = GroupReport(group="g1", status=status, state=state, reason="", epoch=41)
        return RuntimeReport(key="external01.erp", state=RuntimeState.READY, groups=[group])

    async def ask(self, cluster: str) -> dict[str, str]:
        assert cluster == "c1", "a router of another cluster is no vote"
        away = self.away if self.leads else (*self.away, *self.ends)
        others = [name for name in self.agent.router.order.members if name != "external01"]  # type: ignore[union-attr]
        return {name: "no answer within 1 s" if name in away else "" for name in others}

    async def place(self, request: GroupRequest) -> RequestOutcome:
        self.asked.append(request)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is not None:
            return RequestOutcome(id=request.id, status=RequestStatus.FAILED, code="not-ready", reason=self.outcome)
        self.leads = len(self.asked) < 3
        return RequestOutcome(id=request.id, status=RequestStatus.RUNNING)

    def says(self) -> str:
        return asyncio.run(self.agent._step_down())


def test_a_ready_follower_takes_over_first() -> None:
    machine = Machine()
    assert machine.says() == ""
    assert not machine.leads
    (wish,) = {(each.id, each.machine, each.expected_epoch, each.cause, each.actor) for each in machine.asked}
    assert wish[1:] == (None, 41, Cause.DEPLOY, "restart of the router on external01"), "one wish, asked for until it is done"


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        pytest.param(
            {"away": ("core01",)},
            "core01 cannot be reached (no answer within 1 s), so the majority would be lost",
            id="below a majority",
        ),
        pytest.param({"members": 4, "learner": "external03", "away": ("core01",)}, "the majority would be lost", id="a learner is no vote"),
        pytest.param({"outcome": "external02.erp says that it is not ready"}, "cannot be handed over: external02.erp says", id="not ready"),
        pytest.param({"outcome": NotPlaced("no majority")}, "no majority", id="the wish cannot be written"),
        pytest.param({"revoked": ("external02",)}, "whose certificates were taken back", id="only a revoked machine follows"),
    ],
)
def test_else_it_waits_and_says_why(machine: dict[str, Any], says: str) -> None:
    made = Machine(**machine)
    assert says in made.says()
    assert made.leads


def test_of_five_routers_one_may_be_away() -> None:
    assert Machine(members=5, away=("core01",)).says() == ""
    assert "majority would be lost" in Machine(members=5, away=("core01", "external03")).says()


ANOTHER = PeerReport(machine="external02", address="10.0.0.2:7400", reachable=True, since="2026-11-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("machine", "goes"),
    [
        pytest.param({"seen": (ANOTHER,)}, True, id="it was registered anew long ago"),
        pytest.param({"seen": (ANOTHER,), "cleared": "list 0"}, False, id="connections of the former certificate may stand here"),
        pytest.param(
            {"seen": (msgspec.structs.replace(ANOTHER, reachable=False, revoked=True),)}, False, id="somebody still shows the former one"
        ),
        pytest.param({"seen": ()}, False, id="it was not seen"),
    ],
)
def test_a_machine_that_was_registered_anew_takes_over_again_with_its_new_certificate(machine: dict[str, Any], goes: bool) -> None:
    made = Machine(revoked=("external02",), **machine)
    assert made.says() == ("" if goes else "nobody could take over but machines whose certificates were taken back")
    assert made.leads is not goes


def test_leadership_never_goes_to_a_machine_whose_certificate_was_just_taken_back() -> None:
    machine = Machine(members=5, revoked=("external02",))
    assert machine.says() == ""
    assert {each.machine for each in machine.asked} == {"external03"}


def test_who_fell_silent_while_it_was_handed_over_is_noticed() -> None:
    machine = Machine(ends=("core01",))
    assert "core01 cannot be reached" in machine.says()
    assert not machine.leads


def test_where_nothing_is_led_nobody_is_asked() -> None:
    machine = Machine()
    machine.leads = False
    assert (machine.says(), machine.asked) == ("", [])
