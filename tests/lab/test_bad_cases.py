"""Cases that must end well (issue: "Bad cases that must end well"), each by name. What was measured is printed."""

import os
import statistics
import time
from collections.abc import Callable

import pytest

from tests.lab.clock import boot
from tests.lab.judge import Record, group_of, leader_of
from tests.lab.lab import CONNECTORS, EXTERNAL, Lab, until
from tests.lab.network import NoLab

A, B, W = "external01", "external02", "core01"
DAY = 86_400.0
SLOW = 40.0

pytestmark = pytest.mark.lab


def one_leader_each(lab: Lab, within: float = SLOW) -> None:
    until(lambda: all(lab.leader(connector) for connector in CONNECTORS), within, "each group has one leader", lab.facts)


def settled(lab: Lab, within: float = 60.0) -> None:
    until(lambda: all(lab.settled(connector) for connector in CONNECTORS), within, "each group has a leader and a follower", lab.facts)


# ------------------------------------------------------------------------------------------------------------- faults of one host


def test_an_agent_upgraded_while_its_machine_leads_moves_nothing(lab: Lab) -> None:
    epochs = {connector: lab.epoch(connector) for connector in CONNECTORS}
    began = boot()
    pid = lab.hosts[A].part("agent")
    lab.hosts[A].upgrade_agent()
    until(lambda: (now := lab.hosts[A].part("agent")) and now != pid, 20, "the other version runs")

    def version() -> str:
        found = lab.api("GET", "machines/", environment="test", project="webshop").json()["results"]
        return str(next(machine["agent_version"] for machine in found if machine["name"] == A))

    until(lambda: version() == "99.0", 20, "the portal hears from the new version")
    for connector in CONNECTORS:
        assert lab.leader(connector) == A
        assert lab.epoch(connector) == epochs[connector]
        assert lab.pages.off_seconds(connector, A, began) == 0.0
    lab.hosts[A].upgrade_agent()  # and back: a downgrade is no different
    until(lambda: version() != "99.0", 20, "the portal hears from the former version")
    assert {connector: lab.epoch(connector) for connector in CONNECTORS} == epochs


@pytest.mark.parametrize("seconds", [-DAY, -3.0, 0.7, DAY])
def test_a_clock_step_on_the_leader_moves_nothing(lab: Lab, seconds: float) -> None:
    epochs = {connector: lab.epoch(connector) for connector in CONNECTORS}
    began = boot()
    lab.hosts[A].clock.step(seconds)
    time.sleep(2.5)
    for connector in CONNECTORS:
        assert lab.leader(connector) == A
        assert lab.epoch(connector) == epochs[connector]
        assert lab.pages.off_seconds(connector, A, began) == 0.0


def test_clocks_two_days_apart_hand_over_and_fail_over_as_ever(lab: Lab) -> None:
    lab.hosts[A].clock.step(DAY)
    lab.hosts[B].clock.step(-DAY)
    for connector in CONNECTORS:
        lab.bring(connector, B)
    began = boot()
    lab.hosts[B].kill(*(f"process:{connector}" for connector in CONNECTORS))
    until(lambda: all(lab.pages.next_on(each, began, A) for each in CONNECTORS), 5, f"{A} takes over", lab.facts)
    settled(lab)


def test_a_full_disk_under_the_leaders_router_ends_well(lab: Lab) -> None:
    assert lab.fill_router_disk(A, kill=True)
    until(lambda: all(lab.leader(connector) == B for connector in CONNECTORS), 10, f"{B} leads", lab.facts)
    assert not lab.pages.overlaps
    freed = boot()
    lab.hosts[A].free_disk()
    settled(lab, within=20)
    print(f"the machine follows again {boot() - freed:.1f} s after its disk had room again")


def test_a_leader_whose_routers_port_is_taken_hands_leadership_over_and_comes_back(lab: Lab) -> None:
    assert lab.take_router_port(A)
    until(lambda: all(lab.leader(connector) == B for connector in CONNECTORS), 10, f"{B} leads", lab.facts)
    lab.hosts[A].free_port()
    settled(lab, within=20)


@pytest.mark.parametrize("delay", [0.01, 0.05])
def test_a_slow_link_of_the_leader_moves_nothing(lab: Lab, delay: float) -> None:
    """Well below the request time-out of 0.3 s: each answer takes twice the delay, or four times when another router leads etcd."""
    epochs = {connector: lab.epoch(connector) for connector in CONNECTORS}
    lab.slow(A, delay)
    time.sleep(3)
    assert {connector: lab.leader(connector) for connector in CONNECTORS} == dict.fromkeys(CONNECTORS, A), lab.facts()
    assert {connector: lab.epoch(connector) for connector in CONNECTORS} == epochs


def test_a_link_slower_than_any_time_out_ends_well(lab: Lab) -> None:
    lab.slow(A, 0.6)
    until(lambda: all(lab.leader(connector) == B for connector in CONNECTORS), 15, f"{B} leads", lab.facts)
    assert not lab.pages.overlaps
    lab.heal()
    settled(lab)


def test_a_bundle_swapped_on_disk_while_leading_is_never_run(lab: Lab) -> None:
    """The running process goes on; when it has to start again, its agent finds out and fetches the right one."""
    epochs = {connector: lab.epoch(connector) for connector in CONNECTORS}
    swapped = {path: path.read_bytes() for path in (lab.hosts[A].home / "bundles").glob("*.json")}
    for path, data in swapped.items():
        path.write_bytes(data.replace(b"erp", b"xrp"))
    time.sleep(1)
    assert {connector: lab.epoch(connector) for connector in CONNECTORS} == epochs
    lab.hosts[A].kill(*(f"process:{connector}" for connector in CONNECTORS))
    until(lambda: all(lab.leader(connector) == B for connector in CONNECTORS), 5, f"{B} leads", lab.facts)
    settled(lab)
    running = {path: path.read_bytes() for path in swapped}
    assert any(running[path] == data for path, data in swapped.items()), "the digest's own bytes are back"


# --------------------------------------------------------------------------------------------------------------------- hand-over


STRETCH = 0.04  # seconds each way on both machines' links, so that each step of a hand-over lasts for longer than a look at it takes


def request_stands(lab: Lab, records: dict[str, Record]) -> bool:
    group = group_of(records, "erp")
    return f"control/{group}" in records and bool(records[f"control/{group}"].value.get("request"))


def candidate_is_named(lab: Lab, records: dict[str, Record]) -> bool:
    return leader_of(records, "erp")[0] == B and B not in lab.pages.on("erp")


def candidate_is_on(lab: Lab, records: dict[str, Record]) -> bool:
    return B in lab.pages.on("erp")


STEPS: dict[str, Callable[[Lab, dict[str, Record]], bool]] = {
    "asked": lambda lab, records: True,
    "the request stands": request_stands,
    "the record names the candidate": candidate_is_named,
    "the candidate is On": candidate_is_on,
}
VICTIMS = {
    "agent of the leader": (A, "agent"),
    "agent of the candidate": (B, "agent"),
    "keeper of the leader": (A, "keeper:erp"),
    "keeper of the candidate": (B, "keeper:erp"),
    "candidate": (B, "process:erp"),
    "leader": (A, "process:erp"),
}


def seen(lab: Lab, step: str, within: float = 5.0) -> bool:
    """Wait for that step, asking the witness's router only, whose link is quick."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        records = lab.records.all(W)
        if records is not None and STEPS[step](lab, records):
            return True
    return False


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_during_a_hand_over(lab: Lab, victim: str, step: str) -> None:
    for _ in range(4):
        lab.begin(raft=W)
        for machine in EXTERNAL:
            lab.slow(machine, STRETCH)
        until(lambda: lab.play("erp", B), 20, "Play is accepted", lab.facts)
        if seen(lab, step):
            break
        lab.heal()
    else:
        pytest.fail(f"the step was not seen in four hand-overs: {step}")
    host, part = VICTIMS[victim]
    assert lab.hosts[host].kill(part)
    killed = boot()
    lab.mend_links()
    one_leader_each(lab)
    print(f"{victim} killed when {step}: {lab.leader('erp')} leads {boot() - killed:.2f} s later")
    settled(lab)
    assert not lab.pages.overlaps


# ------------------------------------------------------------------------------------------------------------------------- long


@pytest.mark.long
def test_both_machines_boot_at_the_same_instant(lab: Lab) -> None:
    """BOOTS times (100): one leads each group, never two, and nothing is lost."""
    took = []
    for _ in range(int(os.environ.get("BOOTS", "100"))):
        for host in EXTERNAL:
            lab.hosts[host].power_off()
        began = boot()
        lab.heal()
        one_leader_each(lab, within=60)
        took.append(boot() - began)
        assert not lab.pages.overlaps
    took.sort()
    print(
        f"{len(took)} boots of both machines at once: a leader of each group after p50 {statistics.median(took):.2f} s, "
        f"p95 {took[int(len(took) * 0.95)]:.2f} s, worst {took[-1]:.2f} s"
    )
    settled(lab)


@pytest.mark.long
def test_fifty_groups_on_one_runtime_all_fail_over() -> None:
    try:
        lab = Lab(many=50)
    except NoLab as reason:
        pytest.skip(str(reason))

    def led_by() -> dict[str, str]:
        records = lab.known() or {}
        names = {key: record.value["runtime"] for key, record in records.items() if key.startswith("leaders/") and record.value["runtime"]}
        return {key: runtime.partition(".")[0] for key, runtime in names.items() if runtime.endswith(".many")}

    def all_on(host: str) -> bool:
        """Every group is led by this host, and its session says that its inbounds run."""
        session = (lab.known() or {}).get(f"sessions/{host}.many")
        marks = session.value["groups"].values() if session else []
        return len(marks) == 50 and all(mark["on"] for mark in marks) and set(led_by().values()) == {host}

    try:
        lab.deploy()
        leader = until(lambda: next((host for host in EXTERNAL if all_on(host)), None), 60, "one machine leads all fifty")
        for name, fault in {
            "process killed": lambda host: lab.hosts[host].kill("process:many"),
            "machine powered off": lambda host: lab.hosts[host].power_off(),
        }.items():
            other = B if leader == A else A
            until(lambda other=other: f"sessions/{other}.many" in (lab.known() or {}), 60, f"{other} follows")
            time.sleep(2)
            before, began = led_by(), boot()
            assert len(before) == 50
            fault(leader)
            until(lambda other=other: all_on(other), 30, f"{other} leads all fifty", lab.facts)
            print(f"fifty groups, {name}: all On at the other machine after {boot() - began:.2f} s")
            lab.heal()
            leader = other
        until(lambda: all(lab.settled(connector) for connector in CONNECTORS), 60, "settled", lab.facts)
    finally:
        lab.close()
