"""Routers of a running cluster come, go, move and lose their data, under the real portal with real agents and etcd: one leads on."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from portal.errors import Invalid, NotAllowed
from portal.models import DesignedMachine, Placement
from runtimes import architecture, failover, fleet, joining, membership
from runtimes.agent.router import pick_port
from runtimes.models import FailoverGroup, GroupMember, LeadershipChange, Machine, MembershipChange, Router, Runtime
from runtimes.protocol import BundleContent, Component, ComponentKind, FlowSpec, GroupSpec, RequestStatus
from tests.runtimes.agent.conftest import Host, LittlePortal, eventually
from tests.runtimes.agent.test_with_portal import served  # noqa: F401 - a fixture

pytestmark = pytest.mark.journey
NAMES = ("core01", "external01", "external02")


class Landscape:
    """Machines of one environment with their agents; the erp runtimes on the external ones move files."""

    def __init__(self, group: FailoverGroup, admin: User, url: str, folder: Path, hosts: Callable[[str], Host]) -> None:
        self.group, self.environment, self.admin, self.url = group, group.environment, admin, url
        self.folder, self.make = folder, hosts
        self.hosts: dict[str, Host] = {}
        self.addresses: dict[str, tuple[str, int]] = {}
        (folder / "outbox").mkdir()
        (folder / "inbox").mkdir()

    def machine(self, name: str) -> Machine:
        return Machine.objects.get(environment=self.environment, name=name)

    def join(self, name: str) -> None:
        """A machine with nothing on it registers; whatever was there before is gone."""
        if name in self.hosts:
            self.hosts[name].kill_agent()
            self.end_all(name)
            shutil.rmtree(self.hosts[name].home)
        else:
            self.hosts[name] = self.make(name)
        self.addresses.setdefault(name, ("127.0.0.1", pick_port("127.0.0.1")))
        token = joining.register(self.machine(name), by=self.admin)
        self.hosts[name].start("--portal", self.url, "--token", token, standin=False)

    def end_all(self, name: str) -> None:
        """Power off: everything of the machine but its disk (its agent was killed before)."""
        host = self.hosts[name]
        host.end_lifeline()
        assert host.all_gone(10)
        host.reopen()

    def begin(self) -> None:
        for name in NAMES:
            self.join(name)
        fleet.assign_routers(self.environment, self.addresses)
        for runtime in Runtime.objects.filter(environment=self.environment):
            fleet.assign(runtime, fleet.store_bundle(self.environment, self.bundle(runtime.machine.name)))
            fleet.start(runtime)
        eventually(self.leader, within=30)
        eventually(self.all_run, within=15)

    def bundle(self, machine: str) -> BundleContent:
        flow = FlowSpec(
            id="f1",
            name="erp-orders",
            version="1.0.0",
            inbound=Component(kind=ComponentKind.FILE, settings={"folder": str(self.folder / "outbox")}),
            outbound=Component(kind=ComponentKind.FILE, settings={"folder": str(self.folder / "inbox")}),
            group=self.group.group.key,
        )
        members = [runtime.key for runtime in Runtime.objects.filter(environment=self.environment)]
        spec = GroupSpec(id=self.group.group.key, name=self.group.name, failover=True, members=members)
        return BundleContent(environment="test", machine=machine, connector="erp", release=1, flows=[flow], groups=[spec])

    def leader(self) -> str | None:
        """Who leads, when all others are well."""
        found = failover.verdict(FailoverGroup.objects.get(pk=self.group.pk), now=timezone.now())
        others = {said.status for said in found.members if said is not found.leader}
        return found.leader.machine if found.leader and others == {"follower"} else None

    def pids(self) -> list[str]:
        """Launches of the etcd members of the two machines that nobody touches."""
        return [json.loads((self.hosts[name].home / "router" / "launch.json").read_text())["launch"] for name in ("core01", "external01")]

    def leads(self) -> str | None:
        found = failover.verdict(FailoverGroup.objects.get(pk=self.group.pk), now=timezone.now())
        return found.leader.machine if found.leader else None

    def routers(self) -> dict[str, Router]:
        return {router.machine.name: router for router in fleet.routers_of(self.environment)}

    def listed(self) -> set[str]:
        """The members that external01's router lists."""
        return {member["name"] for member in self.routers()["external01"].observed_members}

    def all_run(self) -> bool:
        return {router.observed_state for router in self.routers().values()} == {"running"}

    def member(self, machine: str) -> GroupMember:
        return GroupMember.objects.get(group=self.group, runtime__machine__name=machine)

    def changes(self) -> int:
        return LeadershipChange.objects.filter(group=self.group).count()

    def delivers(self) -> bool:
        """A file put down now comes out."""
        number = len(list((self.folder / "inbox").iterdir()))
        (self.folder / "outbox" / f"order-{number}.txt").write_text(f"order {number}")
        return bool(eventually(lambda: len(list((self.folder / "inbox").iterdir())) > number))

    def switch(self, to: str) -> None:
        if self.leads() == to:
            return
        wish = failover.switch(self.group, candidate=to, expected_leader=None, actor="operator", now=timezone.now())
        eventually(lambda: wish.refresh_from_db() or wish.status == RequestStatus.SUCCEEDED)
        eventually(lambda: self.leader() == to)

    def change(self, within: float = 40, **wished: tuple[str, int] | None) -> MembershipChange:
        """Wish these addresses (None: the machine's router leaves), and wait for the end; the portal asks for the hand-overs."""
        self.addresses = {name: address for name, address in {**self.addresses, **wished}.items() if address is not None}
        change = membership.assign(self.environment, self.addresses, actor="deployment 2", now=timezone.now())
        assert change is not None
        return self.ended(change, within)

    def ended(self, change: MembershipChange, within: float = 40) -> MembershipChange:
        def look() -> bool:
            change.refresh_from_db()
            return change.status != "running"

        try:
            eventually(look, within=within)
        finally:
            print("\n".join(f"{line['at']} {line['text']}" for line in change.log))
        return change


@pytest.fixture
def landscape(
    group: FailoverGroup,
    admin: User,
    served: str,  # noqa: F811
    tmp_path: Path,
    hosts: Callable[[str], Host],
    portal: LittlePortal,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Landscape]:
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    monkeypatch.setattr(fleet, "on_report", [])
    made = Landscape(group, admin, served, tmp_path, hosts)
    made.begin()
    yield made


def test_a_follower_machine_is_replaced_and_the_leader_leads_on(landscape: Landscape) -> None:
    """New hardware under the same name: its data are gone, so it is removed and added again."""
    landscape.switch("external01")
    before = landscape.changes(), landscape.routers()["external02"].observed_member_id
    pids = landscape.pids()
    landscape.join("external02")
    eventually(lambda: landscape.routers()["external02"].observed_outside)
    change = landscape.change()
    assert change.status == "succeeded", change.sentence
    router = landscape.routers()["external02"]
    assert router.observed_member_id not in ("", before[1])
    assert router.observed_state == "running"
    eventually(lambda: landscape.leader() == "external01")
    assert landscape.changes() == before[0], "nobody else led in between"
    assert landscape.pids() == pids, "no other router was restarted"
    assert landscape.delivers()


@pytest.mark.long
def test_an_address_moves_and_leadership_moves_only_from_that_machine(landscape: Landscape) -> None:
    landscape.switch("external01")
    before = landscape.changes()
    change = landscape.change(external02=("127.0.0.1", pick_port("127.0.0.1")))
    assert change.status == "succeeded", change.sentence
    assert landscape.changes() == before
    assert landscape.leads() == "external01"
    change = landscape.change(external01=("127.0.0.1", pick_port("127.0.0.1")))
    assert change.status == "succeeded", change.sentence
    assert landscape.changes() == before + 1, "handed over before its own router moved"
    assert landscape.leads() == "external02"
    urls = {f"https://127.0.0.1:{port}" for _, port in landscape.addresses.values()}
    eventually(lambda: all({m["url"] for m in r.observed_members} == urls for r in landscape.routers().values()))
    assert landscape.delivers()


@pytest.mark.long
def test_killed_agents_at_any_moment_do_not_stop_a_change(landscape: Landscape) -> None:
    landscape.switch("external01")
    landscape.join("external02")
    eventually(lambda: landscape.routers()["external02"].observed_outside)
    change = membership.assign(landscape.environment, landscape.addresses, actor="deployment 2", now=timezone.now())
    assert change is not None
    seen: set[str] = set()

    def kill_at_each_sentence() -> bool:
        change.refresh_from_db()
        if change.sentence not in seen and change.status == "running":
            seen.add(change.sentence)
            for name in NAMES:
                landscape.hosts[name].kill_agent(signal.SIGKILL)
                landscape.hosts[name].start("--portal", landscape.url, standin=False)
        return bool(change.status != "running")

    eventually(kill_at_each_sentence, within=60)
    assert change.status == "succeeded", change.sentence
    assert len(seen) >= 3
    eventually(lambda: landscape.leader() == "external01")


def power_off(landscape: Landscape, *names: str) -> None:
    for name in names:
        landscape.hosts[name].kill_agent()
    for name in names:
        landscape.end_all(name)


@pytest.mark.long
def test_a_majority_lost_for_good_is_rebuilt_from_the_survivor(landscape: Landscape) -> None:
    """Epochs grow, a disabled member stays disabled, and an old member that comes back is told, with the portal there or not."""
    landscape.switch("external01")
    wish = failover.disable(landscape.group, "external02", actor="operator", now=timezone.now())
    eventually(lambda: wish.refresh_from_db() or wish.status == RequestStatus.SUCCEEDED)
    eventually(lambda: landscape.member("external02").observed_disabled)
    before = FailoverGroup.objects.get(pk=landscape.group.pk).epoch
    survivor = landscape.machine("external01")
    with pytest.raises(NotAllowed, match="still know a majority: nothing is lost"):
        membership.rebuild(survivor, confirm="Test", actor="admin", now=timezone.now())

    power_off(landscape, "external02", "core01")
    eventually(lambda: landscape.routers()["external01"].observed_state == "no-majority")
    eventually(lambda: landscape.member("external01").observed_status == "isolated")
    eventually(lambda: not membership.why_not_rebuild(landscape.machine("external01"), now=timezone.now()), within=60)
    with pytest.raises(Invalid, match="Type Test"):
        membership.rebuild(survivor, confirm="test", actor="admin", now=timezone.now())
    membership.rebuild(landscape.machine("external01"), confirm="Test", actor="admin", now=timezone.now())
    change = landscape.ended(MembershipChange.objects.latest("created_at"))
    assert change.status == "succeeded", change.sentence
    eventually(lambda: landscape.leads() == "external01")
    epoch = eventually(lambda: (now := FailoverGroup.objects.get(pk=landscape.group.pk).epoch) > 2 * 10**12 and now)
    assert epoch > before
    assert landscape.delivers()
    assert [member["name"] for member in landscape.routers()["external01"].observed_members] == ["external01"]

    # With the portal out of its reach an old member starts on its old data; the survivor tells it that it is no member any more.
    old = landscape.hosts["external02"]
    old.start("--portal", "http://127.0.0.1:9", standin=False)
    member = old.home / "router" / "member.json"
    eventually(lambda: '"removed":true' in member.read_text(), within=20)
    old.kill_agent()
    old.start("--portal", landscape.url, standin=False)
    landscape.hosts["core01"].start("--portal", landscape.url, standin=False)
    for name in ("external02", "core01"):
        eventually(lambda name=name: "which was built anew without it" in landscape.routers()[name].observed_reason)
    eventually(lambda: landscape.member("external02").observed_status in ("isolated", "disabled"))
    assert landscape.leads() == "external01"

    leads = landscape.changes()
    change = membership.assign(landscape.environment, landscape.addresses, actor="deployment 3", now=timezone.now())
    assert change is not None
    landscape.ended(change, within=60)
    assert change.status == "succeeded", change.sentence
    eventually(landscape.all_run)
    assert landscape.changes() == leads
    eventually(lambda: landscape.member("external02").observed_status == "disabled")
    assert landscape.member("external02").observed_disabled


@pytest.mark.long
def test_a_machine_is_added_and_another_one_leaves(landscape: Landscape, developer: User) -> None:
    """A third external machine makes the witness needless; then external02 is taken out of the design."""
    landscape.switch("external01")
    before = landscape.changes()
    project = landscape.environment.project
    designed = DesignedMachine.objects.create(project=project, name="external03", kind="external", router=True)
    Placement.objects.create(machine=designed, connector=landscape.group.group.connector)
    architecture.apply(landscape.environment, seen=None, by=developer)
    landscape.join("external03")
    change = landscape.change(external03=landscape.addresses["external03"])
    assert change.status == "succeeded", change.sentence
    eventually(lambda: landscape.listed() == {"external01", "external02", "external03"})
    assert landscape.routers()["core01"].desired_running is False

    for runtime in Runtime.objects.filter(machine__name="external02"):
        fleet.stop(runtime)
    eventually(lambda: Runtime.objects.get(machine__name="external02").observed_state == "stopped")
    DesignedMachine.objects.filter(project=project, name="external02").delete()
    architecture.apply(landscape.environment, seen=None, by=developer)
    change = landscape.change(external02=None)
    assert change.status == "succeeded", change.sentence
    assert not Machine.objects.filter(environment=landscape.environment, name="external02").exists()
    eventually(lambda: landscape.listed() == {"external01", "external03", "core01"})
    assert landscape.leads() == "external01"
    assert landscape.changes() == before
    assert landscape.delivers()
