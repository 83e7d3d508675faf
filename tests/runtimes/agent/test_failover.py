"""Three machines with real agents, keepers, routers and runtime processes: what happens to leadership."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtimes.protocol import (
    PROFILES,
    Cause,
    Component,
    ComponentKind,
    FlowSpec,
    GroupReport,
    GroupRequest,
    GroupSpec,
    LeadershipEnd,
    LeadershipEvent,
    Preference,
    RequestKind,
    RequestOutcome,
    RequestStatus,
    RuntimeOrder,
    TimingProfile,
)
from tests.runtimes.agent.conftest import Host, LittlePortal, cluster, content, eventually, is_alive

pytestmark = pytest.mark.journey
NAMES = ("core01", "external01", "external02")
EXTERNAL = NAMES[1:]


class Landscape:
    """ERP in failover on external01 (preferred) and external02; the witness on core01."""

    def __init__(
        self, folder: Path, hosts: Callable[[str], Host], portal: LittlePortal, profile: TimingProfile = TimingProfile.LAN
    ) -> None:
        self.portal, self.timing = portal, PROFILES[profile]
        self.outbox, self.inbox = folder / "outbox", folder / "inbox"
        self.outbox.mkdir()
        self.inbox.mkdir()
        self.routers = cluster(*NAMES, timing=self.timing)
        self.machines = {name: hosts(name) for name in NAMES}
        self.bundles = {name: portal.keep(self._bundle(name)) for name in EXTERNAL}
        for name in NAMES:
            self.order(name)
            self.machines[name].start(standin=False)

    def _bundle(self, machine: str, failover: bool = True) -> object:
        flow = FlowSpec(
            id="f1",
            name="erp-orders",
            version="1.0.0",
            inbound=Component(kind=ComponentKind.FILE, settings={"folder": str(self.outbox)}),
            outbound=Component(kind=ComponentKind.FILE, settings={"folder": str(self.inbox)}),
            group="g1",
        )
        group = GroupSpec(id="g1", name="erp-orders", failover=failover, members=[f"{name}.erp" for name in EXTERNAL])
        return content(machine=machine, flows=[flow], groups=[group], timing=self.timing)

    def order(self, name: str, requests: list[GroupRequest] | None = None, **more: object) -> None:
        preference = {"external01": Preference.LEADER, "external02": Preference.BACKUP}
        mine = []
        if name in EXTERNAL:
            order = {"key": f"{name}.erp", "connector": "erp", "running": True, "digest": self.bundles[name], "release": 1}
            mine.append(RuntimeOrder(**order, preferences={"g1": preference[name]}))
        self.portal.order(
            name, **{"router": self.routers[name], "runtimes": mine, "requests": requests or [], "timing": self.timing, **more}
        )

    def ask(self, request: GroupRequest) -> None:
        for name in EXTERNAL:
            self.order(name, [request])

    def group(self, name: str) -> GroupReport | None:
        runtime = self.machines[name].runtime(f"{name}.erp")
        return runtime.groups[0] if runtime is not None and runtime.groups else None

    def leader(self) -> str | None:
        """The one machine that reports leader and On."""
        leads = [name for name in EXTERNAL if (group := self.group(name)) and (group.status, group.state) == ("leader", "on")]
        return leads[0] if len(leads) == 1 else None

    def follower(self) -> str | None:
        follows = [name for name in EXTERNAL if (group := self.group(name)) and group.status == "follower" and group.ready]
        return follows[0] if len(follows) == 1 else None

    def settled(self) -> tuple[str, str] | None:
        leader, follower = self.leader(), self.follower()
        return (leader, follower) if leader and follower else None

    def pid(self, name: str) -> int:
        return self.machines[name].runtime(f"{name}.erp").pid

    def told(self, name: str) -> list[LeadershipEvent]:
        return [event for report in self.portal.reports.get(name, []) for event in report.events]

    def ended(self, name: str) -> list[LeadershipEnd]:
        return [end for report in self.portal.reports.get(name, []) for end in report.ends]

    def outcomes(self, request: str) -> list[RequestOutcome]:
        return [
            outcome
            for name in EXTERNAL
            for report in self.portal.reports.get(name, [])
            for outcome in report.outcomes
            if outcome.id == request
        ]

    def arrives(self, name: str) -> None:
        """A file dropped now is delivered, byte for byte."""
        (self.outbox / f".{name}").write_bytes(name.encode() * 100)
        (self.outbox / f".{name}").rename(self.outbox / name)
        eventually(lambda: any(path.read_bytes() == name.encode() * 100 for path in self.inbox.glob(f"*{name}")), within=8)


@pytest.fixture
def landscape(tmp_path: Path, hosts: Callable[[str], Host], portal: LittlePortal) -> Iterator[Landscape]:
    landscape = Landscape(tmp_path, hosts, portal)
    eventually(landscape.settled, within=20)
    yield landscape


def test_a_killed_leader_is_followed_at_once_and_soon_comes_back_as_follower(landscape: Landscape) -> None:
    landscape.arrives("first")
    for turn in range(4):
        leader, follower = landscape.settled()
        epoch = landscape.group(leader).epoch
        killed_at = time.monotonic()
        os.kill(landscape.pid(leader), signal.SIGKILL)
        eventually(lambda follower=follower: landscape.leader() == follower, within=2)
        eventually(lambda pair=(follower, leader): landscape.settled() == pair, within=5 - (time.monotonic() - killed_at))
        assert landscape.group(follower).epoch > epoch
        landscape.arrives(f"after-{turn}")
    causes = [event.cause for reports in landscape.portal.reports.values() for report in reports for event in report.events]
    assert Cause.CRASH in causes, "the death was proven, not waited for"


def test_play_moves_leadership_and_the_outcome_is_told(landscape: Landscape) -> None:
    leader, follower = landscape.settled()
    wish = GroupRequest(
        id="r1",
        kind=RequestKind.SWITCH,
        group="g1",
        machine=follower,
        expected_epoch=landscape.group(leader).epoch,
        cause=Cause.SWITCH,
        actor="operator",
        valid_seconds=30,
    )
    landscape.ask(wish)
    eventually(lambda: landscape.settled() == (follower, leader))
    eventually(lambda: RequestStatus.SUCCEEDED in [outcome.status for outcome in landscape.outcomes("r1")])
    assert RequestStatus.FAILED not in [outcome.status for outcome in landscape.outcomes("r1")]


def test_disable_holds_until_enable(landscape: Landscape) -> None:
    leader, follower = landscape.settled()
    fields = {"group": "g1", "machine": follower, "expected_epoch": None, "actor": "operator", "valid_seconds": 30}
    landscape.ask(GroupRequest(id="d1", kind=RequestKind.DISABLE, cause=Cause.DISABLE, **fields))
    eventually(lambda: landscape.group(follower).status == "disabled")
    landscape.ask(GroupRequest(id="e1", kind=RequestKind.ENABLE, cause=Cause.DISABLE, **fields))
    eventually(lambda: landscape.settled() == (leader, follower))


def test_agents_killed_and_the_portal_gone_leave_leadership_where_it_is_and_failover_working(landscape: Landscape) -> None:
    leader, follower = landscape.settled()
    pids = {name: landscape.pid(name) for name in EXTERNAL}
    landscape.portal.leave()
    for machine in landscape.machines.values():
        machine.kill_agent()
    landscape.arrives("without agents")
    os.kill(pids[leader], signal.SIGKILL)
    landscape.arrives("without agents and leader")
    assert is_alive(pids[follower])
    landscape.portal.reports.clear()
    landscape.portal.arrive()
    for machine in landscape.machines.values():
        machine.start("--portal", landscape.portal.url, standin=False)
    eventually(lambda: landscape.settled() == (follower, leader))
    assert landscape.pid(follower) == pids[follower]
    eventually(lambda: landscape.told(follower)[-1:] and landscape.ended(leader)[-1:])
    change, end = landscape.told(follower)[-1], landscape.ended(leader)[-1]
    assert (change.runtime, change.cause, change.previous) == (f"{follower}.erp", Cause.CRASH, f"{leader}.erp")
    assert (end.runtime, end.cause, end.reason) == (f"{leader}.erp", Cause.CRASH, "killed by signal 9"), (
        "kept by the keeper, then by the agent"
    )
    assert end.epoch < change.epoch


def test_a_leader_that_hangs_is_killed_and_its_keeper_tells_why(landscape: Landscape) -> None:
    leader, follower = landscape.settled()
    os.kill(landscape.pid(leader), signal.SIGSTOP)
    eventually(lambda: landscape.settled() == (follower, leader))
    end = eventually(lambda: landscape.ended(leader)[-1:])[0]
    assert (end.cause, end.reason[:28]) == (Cause.HANG, "killed by its keeper: permit")


def test_a_group_without_a_majority_is_told_no_majority(landscape: Landscape) -> None:
    leader, follower = landscape.settled()
    for name in NAMES:
        if name != leader:
            landscape.machines[name].kill_agent()
            landscape.machines[name].end_lifeline()
    eventually(lambda: landscape.machines[leader].portal.last(leader).router.state == "no-majority", within=15)
    eventually(lambda: landscape.group(leader).status == "isolated")
    landscape.ask(
        GroupRequest(
            id="r2",
            kind=RequestKind.SWITCH,
            group="g1",
            machine=follower,
            expected_epoch=None,
            cause=Cause.SWITCH,
            actor="operator",
            valid_seconds=30,
        )
    )
    outcome = eventually(lambda: landscape.outcomes("r2"), within=15)[-1]
    assert (outcome.status, outcome.code) == (RequestStatus.FAILED, "no-majority")


def test_a_stopped_runtime_hands_over_and_everything_ends_in_time(landscape: Landscape) -> None:
    for machine in landscape.machines.values():
        machine.end_lifeline()
    began = time.monotonic()
    assert all(machine.all_gone(within=9) for machine in landscape.machines.values())
    assert time.monotonic() - began < 9


def test_a_follower_that_stands_still_is_no_ready_follower_and_signs_of_life_are_no_news(landscape: Landscape) -> None:
    leader, follower = landscape.settled()
    time.sleep(1)
    before = len(landscape.portal.reports[follower])
    time.sleep(5)
    assert len(landscape.portal.reports[follower]) - before <= 4, "a report every 2 s, and nothing for each sign of life"
    assert landscape.settled() == (leader, follower), "a process that has nothing to say does not hang"
    pid = landscape.pid(follower)
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: landscape.group(follower).status == "isolated", within=8)
        assert not landscape.group(follower).ready
        assert landscape.group(follower).reason == f"the process of {follower}.erp has not answered for 3 s (pid {pid})"
        assert landscape.leader() == leader
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: landscape.settled() == (leader, follower))
    assert landscape.pid(follower) == pid


def test_a_runtime_leads_seventy_groups(host: Host, portal: LittlePortal) -> None:
    """One renewal reads two keys of each group, in one transaction of the router."""
    members = [f"{name}.erp" for name in EXTERNAL]
    groups = [GroupSpec(id=f"g{number}", name=f"g{number}", failover=True, members=members) for number in range(70)]
    digest = portal.keep(content(groups=groups))
    runtime = RuntimeOrder(key="external01.erp", connector="erp", running=True, digest=digest, release=1)
    portal.order("external01", router=cluster("external01")["external01"], runtimes=[runtime])
    host.start(standin=False)
    eventually(lambda: host.ready() and all(group.status == "leader" for group in host.runtime().groups), within=20)
    asked = GroupRequest(
        id="r70",
        kind=RequestKind.DISABLE,
        group="g69",
        machine="external01",
        expected_epoch=None,
        cause=Cause.DISABLE,
        actor="operator",
        valid_seconds=30,
    )
    portal.order("external01", router=portal.orders["external01"].router, runtimes=[runtime], requests=[asked])
    eventually(lambda: next(group for group in host.runtime().groups if group.group == "g69").status == "disabled")


def test_without_routers_nobody_leads_and_a_bundle_without_failover_does_not_miss_them(landscape: Landscape) -> None:
    """Whatever takes the routers away: with the bundle of a failover group, a machine without one is no reason to run by itself."""
    on: list[str] = []

    def both_off() -> bool:
        found = {name: landscape.group(name) for name in EXTERNAL}
        on.extend(name for name, group in found.items() if group is not None and group.state != "off" and group.status != "leader")
        return all(group is not None and (group.status, group.state) == ("isolated", "off") for group in found.values())

    for name in NAMES:
        landscape.order(name, router=None, generation=2)
    eventually(both_off, within=20)
    eventually(lambda: all("no router" in landscape.group(name).reason for name in EXTERNAL))
    landscape.outbox.joinpath("waits").write_bytes(b"waits")
    time.sleep(2.0)
    assert both_off() and not on
    assert landscape.outbox.joinpath("waits").exists(), "the items wait in the source"

    landscape.bundles["external01"] = landscape.portal.keep(landscape._bundle("external01", failover=False))
    landscape.order("external01", router=None, generation=2)
    eventually(lambda: (group := landscape.group("external01")) and (group.status, group.state) == ("single-node", "on"))
    landscape.arrives("alone")
    pid = landscape.pid("external01")
    landscape.order("external02", runtimes=[], router=None, generation=2)  # its member must not run beside this
    eventually(lambda: (last := landscape.portal.last("external02")) is not None and not last.runtimes)
    for name in NAMES:
        landscape.order(name, generation=3, **({"runtimes": []} if name == "external02" else {}))
    eventually(lambda: (last := landscape.portal.last("external01")) and last.router is not None and last.router.state == "running", 20)
    assert landscape.pid("external01") == pid, "what does not fail over needs no router and no restart"
