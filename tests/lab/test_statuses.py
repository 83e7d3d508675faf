"""All six statuses, each reached by its real cause and shown by the portal's API with the reason in one sentence."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.lab.lab import ADDRESSES, CONNECTORS, EXTERNAL, ROUTER_PORT, Lab, until

A, B, W = "external01", "external02", "core01"
CLOCK = r"since (\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d UTC"
pytestmark = pytest.mark.lab


def member(lab: Lab, connector: str, host: str) -> dict[str, Any]:
    """As the portal shows it now; empty while the portal does not answer."""
    try:
        found: dict[str, Any] = next(each for each in lab.group(connector)["members"] if each["machine"] == host)
    except (httpx.HTTPError, KeyError, ValueError):
        return {}
    return found


def shown(lab: Lab, host: str, status: str, state: str, reason: str, within: float = 25.0) -> str:
    """Wait until the portal shows that host so in every group; returns one of the reasons."""

    def all_so() -> str:
        said = ""
        for connector in CONNECTORS:
            now = member(lab, connector, host)
            if (now.get("status"), now.get("state")) != (status, state) or not re.search(reason, now["reason"]):
                return ""
            said = now["reason"]
        return said

    return until(all_so, within, f"{host} is shown as {status}, {state}: {reason}", lambda: json.dumps(lab.group(CONNECTORS[0])["members"]))


def no_router_traffic(lab: Lab, host: str) -> None:
    """A firewall lets nothing through to that host's router nor from it to others; all else works, the portal too."""
    lab.hosts[host].wire.refuse(ROUTER_PORT)


@pytest.fixture
def policy(lab: Lab) -> Iterator[Callable[[str], None]]:
    """Sets every group's isolation policy; it is `stop` again afterwards."""

    def set_policy(wanted: str) -> None:
        for connector in CONNECTORS:
            answer = lab.api("PUT", f"groups/{lab.group(connector)['id']}/isolation-policy/", policy=wanted)
            assert answer.status_code in (200, 202), answer.text
            until(
                lambda connector=connector: {each["isolation_policy"] for each in lab.group(connector)["members"]} == {wanted},
                20,
                f"every member of {connector} knows the policy {wanted}",
            )

    yield set_policy
    lab.heal()
    until(lambda: all(lab.settled(connector) for connector in CONNECTORS), 60, "settled", lab.facts)
    set_policy("stop")


def test_leader_and_follower_name_each_other(lab: Lab) -> None:
    assert re.fullmatch(r"Leads with epoch 1·\d+\.", shown(lab, A, "leader", "on", "Leads with epoch"))
    assert re.fullmatch(rf"Follows {A}\.\w+, which holds epoch 1·\d+\.", shown(lab, B, "follower", "off", "Follows"))


def test_disabled_names_who_did_it(lab: Lab) -> None:
    for connector in CONNECTORS:
        lab.disable(connector, B)
    assert shown(lab, B, "disabled", "off", "Disabled") == "Disabled until enabled again, by admin."


def test_unknown_carries_the_age_of_the_last_report(lab: Lab) -> None:
    lab.hosts[B].hold_down("agent")
    said = shown(lab, B, "unknown", "off", "has not been heard from", within=30)
    assert re.fullmatch(
        rf"{B} has not been heard from for \d+ s; it then was Follower, Off; {A} still reaches its router, so .*\.", said
    ), said


def test_isolated_names_peer_address_and_time(lab: Lab) -> None:
    no_router_traffic(lab, B)
    said = shown(lab, B, "isolated", "off", f"{A} cannot be reached")
    for host in (A, W):
        assert re.search(rf"{host} cannot be reached on {re.escape(ADDRESSES[host])}:{ROUTER_PORT} {CLOCK} \(", said), said
    assert lab.leader(CONNECTORS[0]) == A, "the other side goes on"


def test_a_leader_that_loses_the_majority_is_isolated_and_the_other_leads(lab: Lab) -> None:
    no_router_traffic(lab, A)
    said = shown(lab, A, "isolated", "off", f"{B} cannot be reached on {re.escape(ADDRESSES[B])}:{ROUTER_PORT} {CLOCK}")
    assert said.endswith(".") and not said.startswith("isolated"), "the status stands beside it"
    shown(lab, B, "leader", "on", "Leads with epoch")


def test_a_router_whose_port_is_taken_isolates_its_machine_by_name(lab: Lab) -> None:
    assert lab.take_router_port(B)
    shown(lab, B, "isolated", "off", rf"{re.escape(ADDRESSES[B])}:{ROUTER_PORT} is already taken by another program")


def test_a_router_without_room_on_its_disk_isolates_its_machine_by_name(lab: Lab) -> None:
    assert lab.fill_router_disk(B, kill=True)
    shown(lab, B, "isolated", "off", r"the disk of .* is full: \d+ MB are free, the router needs 16 MB; free some space")
    lab.hosts[B].free_disk()
    shown(lab, B, "follower", "off", "Follows")


@pytest.mark.parametrize(("wanted", "status", "state"), [("stop", "isolated", "off"), ("run-alone", "single-node", "on")])
@pytest.mark.parametrize("cause", ["wrong port", "wrong cluster name", "missing routers"])
def test_unreachable_routers_under_both_policies(
    lab: Lab, policy: Callable[[str], None], cause: str, wanted: str, status: str, state: str
) -> None:
    policy(wanted)
    if cause == "wrong port":
        no_router_traffic(lab, B)
        reason = rf"{A} cannot be reached on {re.escape(ADDRESSES[A])}:{ROUTER_PORT} {CLOCK}"
    elif cause == "wrong cluster name":
        another_clusters_data(lab, B)
        reason = r"this router's data belongs to the cluster baton-another, but baton-\w+-1 is ordered"
    else:
        lab.hosts[A].power_off()
        lab.core.hold_down("agent")  # the portal goes on, only the witness is gone
        lab.core.kill("router-keeper", "router")
        reason = rf"{W} cannot be reached on {re.escape(ADDRESSES[W])}:{ROUTER_PORT} {CLOCK} \(Connection refused\)"
    said = shown(lab, B, status, state, reason)
    if status == "single-node":
        assert said.startswith("Runs alone, as the group's isolation policy says: "), said
    assert lab.pages.on(CONNECTORS[0]) == ([] if cause == "missing routers" else [A]), "no permit without a majority"
    if cause == "wrong cluster name":
        own_data_again(lab, B)


def another_clusters_data(lab: Lab, host: str) -> None:
    """The machine's router finds the data of another cluster, as after a restored backup of another machine."""
    lab.hosts[host].hold_down("agent")
    file = lab.hosts[host].home / "router" / "member.json"
    shutil.copy(file, file.with_suffix(".kept"))
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"cluster_token": "baton-another", "led": True}))
    lab.hosts[host].kill("router-keeper", "router")
    lab.hosts[host].allow()


def own_data_again(lab: Lab, host: str) -> None:
    lab.hosts[host].hold_down("agent")
    file = lab.hosts[host].home / "router" / "member.json"
    file.with_suffix(".kept").replace(file)
    lab.hosts[host].allow()


def test_every_status_ends_with_its_cause(lab: Lab) -> None:
    """Returns by itself: Isolated becomes Follower again when the link is back."""
    lab.hosts[B].isolate()
    time.sleep(1.5)
    lab.mend_links()
    shown(lab, B, "follower", "off", "Follows")
    assert {host: member(lab, CONNECTORS[0], host)["status"] for host in EXTERNAL} == {A: "leader", B: "follower"}
