"""Three machines with real agents under the real portal, served by uvicorn from a database in a file."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from portal import vault
from portal.errors import NotAllowed, Stale
from runtimes import balancing, failback, failover, fleet, items, joining
from runtimes.agent.router import pick_port
from runtimes.models import (
    FailbackPolicy,
    FailoverGroup,
    GroupRequest,
    ItemInquiry,
    LeadershipChange,
    Machine,
    Router,
    Runtime,
    TimedSwitch,
)
from runtimes.protocol import BundleContent, Component, ComponentKind, FlowSpec, GroupSpec, ItemAct, Preference, RequestStatus
from tests.runtimes.agent.conftest import ROOT, Host, LittlePortal, eventually

pytestmark = pytest.mark.journey
NAMES = ("core01", "external01", "external02")
EXTERNAL = NAMES[1:]


@pytest.fixture
def served(file_database: None, tmp_path: Path) -> Iterator[str]:
    """The portal's URL."""
    port = pick_port("127.0.0.1")
    own = {"BATON_HOME": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:9/0", "BATON_PROPERTY_KEYS": ",".join(vault.keys())}
    with (tmp_path / "portal.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "portal.asgi:application", "--port", str(port), "--lifespan", "off"],
            cwd=ROOT,
            env=os.environ | own,
            stdout=log,
            stderr=log,
        )

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        eventually(answers, within=30)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def bundle(machine: str, group: FailoverGroup, folder: Path) -> BundleContent:
    flow = FlowSpec(
        id="f1",
        name="erp-orders",
        version="1.0.0",
        inbound=Component(kind=ComponentKind.FILE, settings={"folder": str(folder)}),
        outbound=Component(kind=ComponentKind.LOG),
        group=group.group.key,
    )
    spec = GroupSpec(id=group.group.key, name=group.name, failover=True, members=[f"{name}.erp" for name in EXTERNAL])
    return BundleContent(environment="test", machine=machine, connector="erp", release=1, flows=[flow], groups=[spec])


def the_portal_shows_and_retries_what_failed(runtime: Runtime, home: Path) -> None:
    errors = home / "runtimes" / runtime.key / "data" / "errors" / "f1"
    eventually(errors.exists)
    reason = {"id": "m1", "flow": "erp-orders", "name": "bad.xml", "reason": "it is bad", "tries": 3, "at": "2026-11-22T10:00:00Z"}
    (errors / "bad.xml").write_bytes(b"<x/>")
    (errors / "bad.xml.reason.json").write_text(json.dumps(reason))

    def asked(act: ItemAct, *keys: str) -> ItemInquiry:
        inquiry = items.ask(Runtime.objects.get(pk=runtime.pk), "f1", act, keys=keys, actor="operator", now=timezone.now())
        eventually(lambda: inquiry.refresh_from_db() or inquiry.answered_at)
        return inquiry

    listed = asked(ItemAct.LIST)
    assert [(item["name"], item["reason"], item["tries"]) for item in listed.items] == [("bad.xml", "it is bad", 3)]
    assert bytes(asked(ItemAct.VIEW, listed.items[0]["key"]).content) == b"<x/>"
    assert asked(ItemAct.RETRY, listed.items[0]["key"]).items == []
    eventually(lambda: not list((errors / "again").iterdir()), within=5)


class Fleet:
    """Three machines with real agents under the real portal; ERP in failover on two of them."""

    def __init__(self, group: FailoverGroup, served: str, folder: Path, hosts: Callable[[str], Host], admin: User) -> None:
        self.group = group
        environment = group.environment
        machines = {machine.name: machine for machine in Machine.objects.filter(environment=environment)}
        outbox = folder / "outbox"
        outbox.mkdir()
        self.hosts: dict[str, Host] = {}
        for name in NAMES:
            self.hosts[name] = hosts(name)
            self.hosts[name].start("--portal", served, "--token", joining.register(machines[name], by=admin), standin=False)
        fleet.assign_routers(environment, {name: ("127.0.0.1", pick_port("127.0.0.1")) for name in NAMES})
        for runtime in Runtime.objects.filter(environment=environment):
            fleet.assign(runtime, fleet.store_bundle(environment, bundle(runtime.machine.name, group, outbox)))
            fleet.start(runtime)

    def verdict(self) -> failover.Verdict:
        return failover.verdict(FailoverGroup.objects.prefetch_related(failover.with_members()).get(pk=self.group.pk), now=timezone.now())

    def leads(self) -> str | None:
        """The leader, once the other one follows, ready."""
        found = self.verdict()
        others = [said.status for said in found.members if said is not found.leader and said.member.observed_ready]
        return found.leader.machine if found.leader and found.healthy and others == ["follower"] else None

    def settled(self) -> tuple[str, str]:
        first = eventually(self.leads, within=30)
        return first, next(name for name in EXTERNAL if name != first)

    def pid(self, name: str) -> int:
        found = Runtime.objects.get(environment=self.group.environment, machine__name=name).observed_pid
        assert found is not None
        return found


@pytest.fixture
def landscape(
    group: FailoverGroup,
    admin: User,
    served: str,
    tmp_path: Path,
    hosts: Callable[[str], Host],
    portal: LittlePortal,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Fleet:
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    monkeypatch.setattr(fleet, "on_report", [])
    return Fleet(group, served, tmp_path, hosts, admin)


def test_the_portal_orders_and_the_machines_do_it(landscape: Fleet) -> None:
    group = landscape.group
    first, second = landscape.settled()
    routers = Router.objects.filter(machine__environment=group.environment)
    eventually(lambda: set(routers.values_list("observed_state", "cluster_known")) == {("running", True)})

    leader = Runtime.objects.get(environment=group.environment, machine__name=first)
    the_portal_shows_and_retries_what_failed(leader, landscape.hosts[first].home)

    first, second = landscape.settled()
    wish = failover.switch(group, candidate=second, expected_leader=first, actor="operator", now=timezone.now())
    eventually(lambda: wish.refresh_from_db() or wish.status == RequestStatus.SUCCEEDED)
    eventually(lambda: landscape.leads() == second)

    os.kill(landscape.pid(second), signal.SIGKILL)
    eventually(lambda: getattr(landscape.verdict().leader, "machine", None) == first, within=5)
    change = eventually(lambda: LeadershipChange.objects.filter(group=group, cause="crash", detail="killed by signal 9").first())
    assert FailoverGroup.objects.get(pk=group.pk).epoch >= change.epoch


def together(*acts: Callable[[], Any]) -> list[Any]:
    """Each act in a thread of its own, all let go in one instant; what each returned, or the refusal it met."""
    barrier, results = Barrier(len(acts)), [None] * len(acts)

    def run(number: int, act: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            results[number] = act()
        except NotAllowed as refusal:
            results[number] = refusal
        finally:
            connection.close()

    threads = [Thread(target=run, args=item) for item in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_disable_play_and_balance_by_three_people_at_once(landscape: Fleet) -> None:
    """Whoever is first wins; never two open wishes, every loser is told why, and the group ends as the winners wished."""
    group = landscape.group
    for _ in range(4):
        leader, follower = landscape.settled()
        failover.prefer(group.members.get(runtime__machine__name=follower).runtime, Preference.LEADER)
        group.refresh_from_db()
        known = set(GroupRequest.objects.values_list("pk", flat=True))
        began = timezone.now()

        def balance(began: datetime = began) -> balancing.Balanced:
            return balancing.balance(group, release=1, actor="deployment 7", step_began_at=began, now=timezone.now())

        results = together(
            lambda leader=leader: failover.disable(group, leader, actor="ann", now=timezone.now()),
            lambda leader=leader, follower=follower: failover.switch(
                group, candidate=follower, expected_leader=leader, actor="bob", now=timezone.now()
            ),
            balance,
        )
        asked = GroupRequest.objects.exclude(pk__in=known)
        assert asked.count() == 1, [str(request) for request in asked]
        winner = asked.get()
        for refusal in results[:2]:
            if isinstance(refusal, NotAllowed):
                assert refusal.status in (409, 412, 503)
                assert winner.actor in refusal.sentence or "same instant" in refusal.sentence, refusal.sentence
        assert sum(isinstance(result, NotAllowed) for result in results[:2]) >= 1
        assert isinstance(results[2], balancing.Balanced) and not results[2].done, "what is not proven yet is not done"
        eventually(lambda winner=winner: winner.refresh_from_db() or winner.status == RequestStatus.SUCCEEDED)
        eventually(lambda follower=follower: (found := landscape.verdict().leader) and found.machine == follower and found.state == "on")
        if winner.kind == "disable":
            eventually(lambda leader=leader: {said.machine: said.status for said in landscape.verdict().members}[leader] == "disabled")
            failover.enable(group, leader, actor="ann", now=timezone.now())
        eventually(lambda follower=follower: landscape.leads() == follower)
        eventually(lambda balance=balance: balance().done)
        assert LeadershipChange.objects.order_by("-epoch").first().actor == winner.actor  # type: ignore[union-attr]


def test_balance_fails_naming_who_moved_the_group_meanwhile(landscape: Fleet) -> None:
    group = landscape.group
    leader, follower = landscape.settled()
    failover.prefer(group.members.get(runtime__machine__name=leader).runtime, Preference.LEADER)
    began = timezone.now()
    failover.switch(group, candidate=follower, expected_leader=leader, actor="bob", now=began)
    eventually(lambda: landscape.leads() == follower)

    def balanced() -> balancing.Balanced | None:
        try:
            return balancing.balance(group, release=1, actor="deployment 7", step_began_at=began, now=timezone.now())
        except Stale:  # on a computer that stood still for a moment nobody leads: a step looks again
            return None

    found = eventually(balanced)
    assert found.failed and "bob moved erp-orders to" in found.reason and "does not undo that" in found.reason


def test_leadership_returns_by_policy_and_at_the_end_of_a_switch(landscape: Fleet) -> None:
    """Six workers at once, real machines: one hand-over each, with its own cause."""
    group = landscape.group
    home, away = landscape.settled()
    failover.prefer(group.members.get(runtime__machine__name=home).runtime, Preference.LEADER)
    group.refresh_from_db()
    work = [lambda: failback.carry_out(group.pk, now=timezone.now())] * 6

    failback.set_policy(group, FailbackPolicy.AUTOMATIC, stable_seconds=1)
    os.kill(landscape.pid(home), signal.SIGKILL)
    eventually(lambda: (found := landscape.verdict().leader) and found.machine == away)
    eventually(lambda: together(*work) and landscape.leads() == home, within=20)
    assert [change.cause for change in LeadershipChange.objects.order_by("epoch")][-2:] == ["crash", "failback"]
    assert GroupRequest.objects.filter(cause="failback").count() == 1

    failback.set_policy(group, FailbackPolicy.MANUAL, stable_seconds=1)
    FailoverGroup.objects.update(return_asked_at=None)
    hours = timedelta(hours=2)
    failback.switch(group, candidate=away, expected_leader=home, actor="olga", now=timezone.now(), returns_after=hours)
    eventually(lambda: landscape.leads() == away)
    assert not any(together(*work)), "its time is not over"
    TimedSwitch.objects.update(until=timezone.now())
    eventually(lambda: together(*work) and landscape.leads() == home, within=20)
    eventually(lambda: together(*work) and TimedSwitch.objects.get().ending == "returned", within=20)
    last = LeadershipChange.objects.order_by("-epoch").first()
    assert last is not None and (last.cause, last.actor) == ("expiry", "olga")
    assert GroupRequest.objects.filter(cause="expiry").count() == 1
