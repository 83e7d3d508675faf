"""Three machines with real agents under the real portal, served by uvicorn from a database in a file."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from portal import vault
from runtimes import failover, fleet, items
from runtimes.agent.router import pick_port
from runtimes.models import FailoverGroup, ItemInquiry, LeadershipChange, Machine, Router, Runtime
from runtimes.protocol import BundleContent, Component, ComponentKind, FlowSpec, GroupSpec, ItemAct, RequestStatus
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


def test_the_portal_orders_and_the_machines_do_it(
    group: FailoverGroup,
    admin: User,
    served: str,
    tmp_path: Path,
    hosts: Callable[[str], Host],
    portal: LittlePortal,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    monkeypatch.setattr(fleet, "on_report", [])
    environment = group.environment
    machines = {machine.name: machine for machine in Machine.objects.filter(environment=environment)}
    folder = tmp_path / "outbox"
    folder.mkdir()
    joining: dict[str, Host] = {}
    for name in NAMES:
        joining[name] = hosts(name)
        joining[name].start("--portal", served, "--token", fleet.register(machines[name], by=admin), standin=False)
    fleet.assign_routers(environment, {name: ("127.0.0.1", pick_port("127.0.0.1")) for name in NAMES})
    for runtime in Runtime.objects.filter(environment=environment):
        fleet.assign(runtime, fleet.store_bundle(environment, bundle(runtime.machine.name, group, folder)))
        fleet.start(runtime)

    def leads() -> str | None:
        found = failover.verdict(FailoverGroup.objects.get(pk=group.pk), now=timezone.now())
        others = [said.status for said in found.members if said is not found.leader]
        return found.leader.machine if found.leader and others == ["follower"] else None

    def pid(name: str) -> int | None:
        return Runtime.objects.get(environment=environment, machine__name=name).observed_pid

    first = eventually(leads, within=30)
    routers = Router.objects.filter(machine__environment=environment)
    eventually(lambda: set(routers.values_list("observed_state", "cluster_known")) == {("running", True)})
    second = next(name for name in EXTERNAL if name != first)

    the_portal_shows_and_retries_what_failed(Runtime.objects.get(environment=environment, machine__name=first), joining[first].home)

    wish = failover.switch(group, candidate=second, expected_leader=first, actor="operator", now=timezone.now())
    eventually(lambda: wish.refresh_from_db() or wish.status == RequestStatus.SUCCEEDED)
    eventually(lambda: leads() == second)

    began = time.monotonic()
    os.kill(pid(second), signal.SIGKILL)
    eventually(lambda: leads() == first, within=5)
    assert time.monotonic() - began < 5
    change = eventually(lambda: LeadershipChange.objects.filter(group=group, cause="crash").first())
    assert FailoverGroup.objects.get(pk=group.pk).epoch >= change.epoch
