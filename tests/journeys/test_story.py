"""The seed's story on real processes: portal, broker, worker, beat, three agents with routers, keepers and runtimes.

One stack for the whole file; the tests follow each other as a person's afternoon would.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.journeys.baton import ROOT, Baton, until

pytestmark = pytest.mark.journey

ORDERS, SALES = "erp-orders", "tills-sales"


def test_the_first_start_deploys_the_demonstration_and_balances_it(baton: Baton) -> None:
    assert baton.ready_after < 90
    assert (baton.home / "demo/erp/outbox").is_dir()
    assert (baton.home / "demo/tills/outbox").is_dir()
    assert baton.settled(ORDERS) == ("external01", "external02")
    assert baton.settled(SALES) == ("external02", "external01")
    first = baton.api.get("deployments/", params={"environment": "test"}).json()["results"][0]
    assert first["status"] == "succeeded"
    assert first["steps"][-1]["kind"] == "balance-failover"
    assert {step["status"] for step in first["steps"]} == {"succeeded"}


def test_every_process_belongs_to_its_home_and_listens_on_loopback_below_the_ephemeral_ports(baton: Baton) -> None:
    processes = baton.processes()
    assert len(processes) > 20, "runner, broker, portal, worker, beat, agents; keepers, routers and runtimes"
    for pid, command in processes.items():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"BATON_HOME=" + os.fsencode(baton.home) in environment, command
        where = Path(f"/proc/{pid}/cwd").readlink()
        assert where == baton.home or baton.home in where.parents, (command, where)
    listening = baton.listening()
    assert len(listening) >= 8, "portal, broker, a peer and a client port of each router"
    assert set(listening.values()) == {"0100007F"}, listening
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(listening) < ephemeral, listening


def test_what_the_erp_drops_arrives_in_the_warehouse_byte_for_byte(baton: Baton) -> None:
    data = os.urandom(300_000)
    receipt = baton.received(baton.drop(data, "order 1.xml"))
    assert (receipt["flow"], receipt["group"], receipt["machine"]) == (ORDERS, ORDERS, "external01")
    assert receipt["epoch"] == baton.group(ORDERS)["epoch"] > 10**12
    assert receipt["file"].endswith("-order 1.xml")
    assert (baton.home / "demo/warehouse/inbox" / receipt["file"]).read_bytes() == data
    assert baton.received(baton.drop(b"a sale", "s1", system="tills"))["flow"] == SALES


def test_odd_files_arrive_and_unfinished_ones_wait(baton: Baton) -> None:
    outbox = baton.home / "demo/erp/outbox"
    (outbox / ".hidden").write_bytes(b"no 1")
    (outbox / "draft.tmp").write_bytes(b"no 2")
    (outbox / "draft.part").write_bytes(b"no 3")
    assert baton.received(baton.drop(b"", "empty"))["file"].endswith("-empty")
    assert baton.received(baton.drop(b"latin-1", b"caf\xe9"))["file"].endswith("-caf\udce9")
    with (outbox / "growing").open("wb") as writer:
        for _ in range(10):
            writer.write(b"x" * 1000)
            writer.flush()
            time.sleep(0.2)
    assert baton.received(hashlib.sha256(b"x" * 10_000).hexdigest())
    assert sorted(path.name for path in outbox.iterdir() if path.is_file()) == [".hidden", "draft.part", "draft.tmp"]
    shorter = {hashlib.sha256(b"x" * 1000 * n).hexdigest() for n in range(1, 10)}
    assert not shorter & {line["sha256"] for line in baton.receipts()}


def kill_the_leader_once(baton: Baton) -> None:
    leader, follower = until(lambda: baton.settled(ORDERS), 8, "one leads, one follows")
    pid = baton.member(ORDERS, leader)["pid"]
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: baton.leader(ORDERS) == follower, 2, f"{follower} leads, on")
    until(lambda: baton.settled(ORDERS) == (follower, leader), 5 - (time.monotonic() - killed), f"{leader} follows")
    assert baton.member(ORDERS, leader)["pid"] != pid
    assert baton.group(ORDERS)["last_gap_seconds"] is not None


def test_after_kill_9_of_the_leader_the_other_leads_and_the_killed_one_follows(baton: Baton) -> None:
    for _ in range(4):
        kill_the_leader_once(baton)


def all_of(baton: Baton, digests: set[str]) -> list[dict[str, object]]:
    """The receipts of these, duplicates included, once none is missing."""
    lines = [line for line in baton.receipts() if line["sha256"] in digests]
    return lines if {line["sha256"] for line in lines} == digests else []


def test_two_hundred_files_survive_two_kills_of_the_leader(baton: Baton) -> None:
    sent = {}
    for number in range(200):
        data = f"order {number} ".encode() * (1 + number % 50)
        sent[baton.drop(data, f"order-{number:03}.xml")] = data
        if number in (60, 140):
            leader, _ = until(lambda: baton.settled(ORDERS), 8, "one leads, one follows")
            os.kill(baton.member(ORDERS, leader)["pid"], signal.SIGKILL)
        time.sleep(0.01)
    inbox = baton.home / "demo/warehouse/inbox"
    arrived = until(lambda: all_of(baton, set(sent)), 40, "200 distinct files")
    for line in arrived:
        assert (inbox / line["file"]).read_bytes() == sent[line["sha256"]]
    assert len({line["id"] for line in arrived}) == 200
    assert len(arrived) <= 210


def test_play_stop_disable_and_enable(baton: Baton) -> None:
    leader, follower = until(lambda: baton.settled(ORDERS), 8, "one leads, one follows")
    group = f"groups/{baton.group(ORDERS)['id']}"
    epoch = baton.group(ORDERS)["epoch"]

    assert baton.post(f"{group}/switch/", candidate="nowhere").status_code == 404
    assert baton.post(f"{group}/switch/", candidate=follower, expected_leader=follower).status_code == 412
    play = baton.post(f"{group}/switch/", candidate=follower, expected_leader=leader)
    assert play.status_code == 202, play.text
    until(lambda: baton.settled(ORDERS) == (follower, leader), 5, "Play moved leadership")
    assert baton.group(ORDERS)["epoch"] > epoch

    stop = until(lambda: (answer := baton.post(f"{group}/switch/")).status_code == 202 and answer, 5, "Stop is accepted")
    assert stop.json()["request"]
    until(lambda: baton.settled(ORDERS) == (leader, follower), 5, "Stop handed over to the follower")

    until(lambda: baton.post(f"{group}/disable/", machine=leader).status_code == 202, 5, "Disable is accepted")
    until(lambda: baton.member(ORDERS, leader)["status"] == "disabled", 5, "the leader is disabled")
    until(lambda: baton.leader(ORDERS) == follower, 5, "the other leads")
    refused = until(lambda: (answer := baton.post(f"{group}/switch/", candidate=leader)).status_code != 409 and answer, 5, "no longer busy")
    assert refused.status_code == 503
    assert baton.post(f"{group}/enable/", machine=leader).status_code == 202
    until(lambda: baton.settled(ORDERS) == (follower, leader), 5, "enabled, it follows")


def test_deploying_again_brings_leadership_to_the_preferred_machine(baton: Baton) -> None:
    leader, _ = until(lambda: baton.settled(ORDERS), 8, "one leads, one follows")
    if leader == "external01":
        baton.post(f"groups/{baton.group(ORDERS)['id']}/switch/", candidate="external02")
        until(lambda: baton.leader(ORDERS) == "external02", 5, "away from home")
    ended = baton.deploy()
    assert ended["status"] == "succeeded", ended
    assert baton.settled(ORDERS) == ("external01", "external02")
    assert baton.settled(SALES) == ("external02", "external01")


def test_the_command_line_switches_and_deploys_and_its_exit_status_tells_the_outcome(baton: Baton) -> None:
    leader, follower = until(lambda: baton.settled(ORDERS), 8, "one leads, one follows")
    switched = baton.command("switch", ORDERS, "--to", follower, "--expect", leader)
    assert switched.returncode == 0, switched.stderr
    assert f"{follower} leads" in switched.stdout
    assert baton.leader(ORDERS) == follower
    stale = baton.command("switch", ORDERS, "--to", follower, "--expect", leader)
    assert (stale.returncode, f"{follower} does" in stale.stderr) == (3, True)
    deployed = baton.command("deploy", "latest")
    assert deployed.returncode == 0, deployed.stderr
    assert "Balance failover" in deployed.stdout
    until(lambda: baton.settled(ORDERS) == ("external01", "external02"), 5, "balanced")


def test_a_killed_agent_is_restarted_and_disturbs_nothing(baton: Baton) -> None:
    before = baton.group(ORDERS)
    agents = baton.children("machines/external01")
    os.kill(agents[0], signal.SIGKILL)
    until(lambda: baton.children("machines/external01") not in ([], agents), 5, "the agent is back")
    time.sleep(1)
    until(lambda: baton.settled(ORDERS) == ("external01", "external02"), 10, "the new agent reports")
    after = baton.group(ORDERS)
    assert after["epoch"] == before["epoch"]
    assert [member["pid"] for member in after["members"]] == [member["pid"] for member in before["members"]]
    assert baton.received(baton.drop(b"after the agent", "agent"))["epoch"] == before["epoch"]


def test_without_portal_worker_and_broker_leadership_stays_and_nothing_is_lost(baton: Baton) -> None:
    before = baton.group(ORDERS)
    paused = [baton.children(words)[0] for words in ("portal.serve", " worker ", "broker.conf")]
    try:
        for pid in paused:
            os.kill(pid, signal.SIGSTOP)
        digests = []
        for number in range(8):
            digests.append(baton.drop(f"meanwhile {number}".encode(), f"meanwhile-{number}"))
            time.sleep(1)
    finally:
        for pid in paused:
            os.kill(pid, signal.SIGCONT)
    for digest in digests:
        assert baton.received(digest, within=15)["epoch"] == before["epoch"]
    until(lambda: baton.settled(ORDERS) == ("external01", "external02"), 10, "everybody reports again")
    assert baton.group(ORDERS)["epoch"] == before["epoch"]


@pytest.mark.parametrize("part", ["portal.serve", " worker ", " beat ", "broker.conf"])
def test_a_killed_part_is_started_again(baton: Baton, part: str) -> None:
    killed = baton.children(part)
    os.kill(killed[0], signal.SIGKILL)
    until(lambda: baton.children(part) not in ([], killed), 5, f"{part} is back")
    baton.wait_ready(within=60)
    assert baton.received(baton.drop(f"after {part}".encode(), "after"), within=15)


def test_a_second_runner_on_the_same_home_is_refused(baton: Baton) -> None:
    environment = os.environ | {"BATON_HOME": str(baton.home), "PORT": str(baton.port + 1)}
    second = subprocess.run(
        [sys.executable, "manage.py", "runstack"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30
    )
    assert second.returncode == 1
    assert "already runs" in second.stderr


def test_sigterm_to_the_whole_group_stops_everything_and_the_next_start_goes_on(baton: Baton) -> None:
    epoch = baton.group(ORDERS)["epoch"]
    assert baton.stop(signal.SIGTERM, group=True) < 10
    waiting = baton.drop(b"while everything was off", "off")
    baton.start()
    baton.wait_ready(within=60)
    until(lambda: baton.settled(ORDERS), 10, "leadership settled by itself")
    assert baton.received(waiting)
    assert baton.group(ORDERS)["epoch"] > epoch


def test_kill_9_of_the_runner_leaves_no_process(baton: Baton) -> None:
    assert baton.stop(signal.SIGKILL) < 10
    waiting = baton.drop(b"while the runner was dead", "dead")
    baton.start()
    baton.wait_ready(within=60)
    assert baton.received(waiting, within=15)
    assert baton.stop(signal.SIGINT) < 10


def test_no_child_needed_a_restart_that_nobody_asked_for(baton: Baton) -> None:
    told = Path(baton.output).read_text(errors="replace")
    assert told.count("restarts") == 5, told  # one agent and four parts, each killed once
