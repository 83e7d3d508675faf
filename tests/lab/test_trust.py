"""Certificates on three real hosts: the authority is renewed and retired under load, and a revoked machine's connections end."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab.host import ROOT
from tests.lab.lab import ADDRESSES, CONNECTORS, ROUTER_PORT, Lab, until
from tests.lab.network import inside

A, B, W = "external01", "external02", "core01"

pytestmark = [pytest.mark.lab, pytest.mark.long]


def manage(lab: Lab, *words: str) -> str:
    """A management command beside the portal."""
    with inside(lab.core.wire.namespace):
        done = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *words],
            env=lab.portal_environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launches(lab: Lab) -> dict[str, str]:
    found = {}
    for name, host in lab.hosts.items():
        text = (Path(host.home) / "router" / "launch.json").read_text()
        found[name] = re.findall(r'"launch":"(\w+)"', text)[0]
    return found


def test_the_authority_is_renewed_without_a_leadership_change_and_the_former_retired_by_hand_overs(lab: Lab) -> None:
    epochs = {connector: lab.epoch(connector) for connector in CONNECTORS}
    before = launches(lab)
    assert "The former one is trusted too" in manage(lab, "renew_authority", "webshop", "test")
    until(lambda: "retire the former one" in manage(lab, "renew_authority", "webshop", "test", "--show"), 60, "all have new certificates")
    time.sleep(3)
    assert {connector: lab.epoch(connector) for connector in CONNECTORS} == epochs and launches(lab) == before
    manage(lab, "renew_authority", "webshop", "test", "--retire")
    until(lambda: all(now != before[name] for name, now in launches(lab).items()), 120, "every router has restarted", lab.facts)
    until(
        lambda: "read only the former" not in manage(lab, "renew_authority", "webshop", "test", "--show"), 60, "none trusts the former one"
    )
    until(lambda: all(lab.settled(connector) for connector in CONNECTORS), 60, "each group has a leader and a follower", lab.facts)
    epoch = lab.epoch(CONNECTORS[0])
    moved: list[dict[str, Any]] = []

    def told() -> bool:
        changes = lab.api("GET", f"groups/{lab.group(CONNECTORS[0])['id']}/changes/").json()["results"]
        moved[:] = [change for change in changes if change["epoch"] % 10**12 > epochs[CONNECTORS[0]]]
        return bool(moved) and moved[0]["epoch"] % 10**12 == epoch

    until(told, 60, "the history tells of the last hand-over", lab.facts)
    assert {change["cause"] for change in moved} == {"deploy"}, moved
    assert all(change["gap_seconds"] is None or change["gap_seconds"] < 1.0 for change in moved), moved
    print("gaps of the hand-overs:", [change["gap_seconds"] for change in moved])


def test_a_machine_that_is_registered_anew_keeps_no_connection_of_its_former_certificate(lab: Lab) -> None:
    """B's agent and router go on, as a stolen machine's would: whatever they had opened to the others ends."""

    def opened() -> list[str]:
        """B's connections to the routers of A and W, as those hosts see them."""
        found = []
        for name in (A, W):
            with inside(lab.hosts[name].wire.namespace):
                command = ["ss", "-tnH", "state", "established", f"( sport = :{ROUTER_PORT} )"]
                seen = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
            found += [line for line in seen.splitlines() if f"{ADDRESSES[B]}:" in line.split()[-1]]
        return found

    assert opened()
    token = token_for(lab, B)
    began = time.monotonic()
    answer = manage(
        lab,
        "shell",
        "-c",
        "from django.utils import timezone; from runtimes import joining, protocol; "
        f"print(joining.join(protocol.JoinRequest(token={token!r}, agent_version='9'), now=timezone.now()).machine)",
    )
    assert B in answer
    until(lambda: not opened(), 60, "B's connections have ended", lab.facts)
    print(f"B's connections ended after {time.monotonic() - began:.1f} s")
    assert all(lab.leader(connector) in (A, B) for connector in CONNECTORS)
    until(lambda: "external02 leaves the cluster: who answers at its address bears" in shut_out(lab), 120, "its vote is taken", lab.facts)
    print(f"its router was no member any more after {time.monotonic() - began:.1f} s")
    lab.tokens[B] = token_for(lab, B)  # found again: its agent joins with a token of its own
    lab.hosts[B].kill("agent")
    until(lambda: all(lab.settled(connector) for connector in CONNECTORS), 120, "B is back", lab.facts)
    until(lambda: "succeeded" in shut_out(lab), 120, "its router is a member again", lab.facts)


def shut_out(lab: Lab) -> str:
    """What the portal has done with routers whose certificate was taken back, and how far it is."""
    words = "[(change.status, change.log) for change in MembershipChange.objects.filter(actor__startswith='revocation')]"
    return manage(lab, "shell", "-c", f"from runtimes.models import MembershipChange; print({words})")


def token_for(lab: Lab, host: str) -> str:
    machines = lab.api("GET", "machines/", environment="test", project="webshop").json()["results"]
    number = next(machine["id"] for machine in machines if machine["name"] == host)
    return str(lab.api("POST", f"machines/{number}/token/").json()["token"])
