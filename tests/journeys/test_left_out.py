"""A machine that is off is left out of a deployment, and gets the release by itself when it is back. (`make test-long`)"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.baton import Baton, until
from tests.journeys.test_regrouping import Pages

pytestmark = [pytest.mark.journey, pytest.mark.long]

LIVE = ("pending", "running", "waiting")


def pids_of(baton: Baton, machine: str) -> list[int]:
    """Agent, router, keepers and processes of one machine."""
    place, found = os.fsencode(baton.home / "machines" / machine), []
    for pid in baton.processes():
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            about = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes() + os.fsencode((folder / "cwd").readlink())
            if place in about:
                found.append(pid)
    return found


@contextlib.contextmanager
def off(baton: Baton, machine: str) -> Iterator[None]:
    """Everything of a machine stands still, as when its power is off; it goes on at the end."""
    stopped = pids_of(baton, machine)
    assert len(stopped) >= 4, "agent, router, keepers and processes"
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def machine(baton: Baton, name: str) -> dict[str, Any]:
    rows = baton.api.get("machines/", params={"project": "webshop", "environment": "test"}).json()["results"]
    return next(row for row in rows if row["name"] == name)


def deployment(baton: Baton, pk: int) -> dict[str, Any]:
    found: dict[str, Any] = baton.api.get(f"deployments/{pk}/").json()
    return found


def stands_still(baton: Baton, pk: int, within: float) -> dict[str, Any]:
    return until(lambda: (told := deployment(baton, pk))["status"] not in LIVE and told, within, f"deployment {pk} stands still")


def test_an_offline_machine_is_left_out_and_catches_up_when_it_returns(baton: Baton) -> None:
    pages = Pages(baton)
    for connector, flow in (("erp", "erp-orders"), ("tills", "tills-sales")):
        pages.fill(f"projects/webshop/create/flows/{connector}/{flow}/version/", bump="minor", description="upgraded")
    pages.client.close()
    made = baton.post("releases/", project="webshop", name="Without external02").json()
    assert made["omissions"] == []
    baton.post(f"releases/{made['id']}/activate/", environment="test")
    with off(baton, "external02"):
        until(lambda: baton.leader("tills-sales") == "external01", 10, "external01 took over what external02 led")
        until(lambda: machine(baton, "external02")["silent"], 30, "the portal misses external02")
        refused = baton.post(f"releases/{made['id']}/deployments/", environment="test").json()
        assert "external02 has not been heard from" in refused["detail"]
        asked = {"environment": "test", "leaving_out": "external02"}
        foreseen = baton.api.get(f"releases/{made['id']}/preview/", params=asked).json()
        assert foreseen["obstacles"] == []
        begun = baton.command("deploy", "latest", "--leave-out", "external02", "--no-follow", "--json")
        run = json.loads(begun.stdout)
        for _ in range(4):
            told = stands_still(baton, run["id"], 90)
            if told["status"] == "succeeded":
                break
            choices = baton.api.get(f"deployments/{run['id']}/choices/").json()
            assert "override" in [one["choice"] for one in choices], told
            decided = baton.post(f"deployments/{run['id']}/decide/", choice="override", reason="The standby has no power.")
            assert decided.status_code == 202, decided.text
        assert told["status"] == "succeeded", [(step["title"], step["reason"]) for step in told["steps"]]
        balance = told["steps"][-1]
        assert "Proven without external02, left out of this deployment." in balance["reason"], balance["reason"]
        assert {one["runtime"]: one["how"] for one in told["results"]}["external02.erp"] == "skipped"
        print(f"Without external02: {balance['reason']}", flush=True)
    caught_up = until(lambda: deployment(baton, run["id"])["exclusions"][0]["caught_up_by"], 60, "external02 is back and catches up")
    after = stands_still(baton, caught_up, 60)
    assert after["status"] == "succeeded" and after["completes"] == run["id"], [(step["title"], step["reason"]) for step in after["steps"]]
    rows = baton.api.get("runtimes/", params={"project": "webshop", "environment": "test"}).json()["results"]
    assert {row["release"] for row in rows} == {made["number"]}, rows
    assert baton.settled("tills-sales") == ("external02", "external01"), "Balance brought it home"
