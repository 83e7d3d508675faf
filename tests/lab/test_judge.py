"""The judge is not blind: what must be a violation is one, what must not be is none. Needs no network."""

import itertools
import os
import random
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.lab.clock import PRELOAD, HostClock, boot
from tests.lab.faults import fault
from tests.lab.host import ROOT
from tests.lab.judge import PAGE, Emit, Page, Pages, Shown, Stood, Turn, Watch, in_flight, late_emits


def emit(epoch: int | None, at: float = 0.0) -> Emit:
    return Emit(at, epoch, "id", "external01")


@pytest.mark.parametrize(
    ("epochs", "late"),
    [
        pytest.param([1, 1, 2, 2, 5], 0, id="epochs that grow"),
        pytest.param([1, 2, 1], 1, id="the old leader once more"),
        pytest.param([1, 2, 1, 2, 1], 2, id="two that interleave"),
        pytest.param([2, None, 2, 0, 3], 0, id="an unknown epoch and a single node's say nothing"),
    ],
)
def test_an_emit_under_a_lower_epoch_than_one_before_is_late(epochs: list[int | None], late: int) -> None:
    assert len(late_emits([emit(epoch) for epoch in epochs])) == late


@pytest.mark.parametrize(
    ("at", "machine", "times", "explained"),
    [
        pytest.param(12.3, "external01", 1, 1, id="its one system call ends when it goes on"),
        pytest.param(12.3, "external01", 2, 1, id="one, not two"),
        pytest.param(12.3, "external02", 1, 0, id="another machine did not stand still"),
        pytest.param(14.0, "external01", 1, 0, id="too long after it went on"),
        pytest.param(9.0, "external01", 1, 0, id="before it stood still"),
    ],
)
def test_only_what_had_just_stood_still_may_have_had_a_commit_in_flight(at: float, machine: str, times: int, explained: int) -> None:
    stood = [Stood("external01", ("tills",), 10.0, 12.0), Stood("external01", ("erp",), 13.5, 13.9)]
    late = [Emit(at, 1, str(number), machine) for number in range(times)]
    assert len(in_flight(late, "tills", stood)) == explained


@pytest.mark.parametrize(
    ("first", "second", "alive", "overlap"),
    [
        pytest.param((60.0, 1), (60.0, 1), True, True, id="both On"),
        pytest.param((60.0, 1), (60.0, 0), True, False, id="one is Off"),
        pytest.param((60.0, 1), (-1.0, 1), True, False, id="the permit of one has ended"),
        pytest.param((60.0, 1), (60.0, 1), False, False, id="the dead leave their page as it was"),
    ],
)
def test_two_pages_on_at_once_are_seen(
    tmp_path: Path, first: tuple[float, int], second: tuple[float, int], alive: bool, overlap: bool
) -> None:
    made = []
    for host, (until, on) in {"external01": first, "external02": second}.items():
        (tmp_path / host).write_bytes(PAGE.pack(boot() + until, on))
        made.append(Page(tmp_path / host, host, "erp"))
    pages = Pages(made, lambda host, connector: alive or host == "external01")
    pages.start()
    time.sleep(0.1)
    pages.close()
    assert bool(pages.overlaps) == overlap


def test_a_disabled_member_that_is_on_is_seen(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(PAGE.pack(boot() + 60, 1))
    pages = Pages([Page(tmp_path / "page", "external01", "erp")], lambda host, connector: True)
    pages.forbidden["erp", "external01"] = boot() - 1
    pages.start()
    time.sleep(0.1)
    pages.close()
    assert pages.disabled_led


def shown(status: str, state: str, age: float, machine: str = "external01") -> dict[str, Any]:
    """A member as the API shows it, reported `age` seconds before."""
    return {"machine": machine, "status": status, "state": state, "age": age}


ON_ALL_THE_TIME, ON_UNTIL_A_MINUTE_AGO, NEVER_ON = [(-100.0, True)], [(-100.0, True), (-60.0, False)], list[tuple[float, bool]]()


@pytest.mark.parametrize(
    ("turns", "members", "lies"),
    [
        pytest.param(ON_ALL_THE_TIME, [shown("leader", "on", 1)], 0, id="the leader is On"),
        pytest.param(NEVER_ON, [shown("leader", "on", 1)], 1, id="the shown leader never was On"),
        pytest.param(ON_UNTIL_A_MINUTE_AGO, [shown("leader", "on", 1)], 1, id="it was, a minute ago"),
        pytest.param(ON_UNTIL_A_MINUTE_AGO, [shown("unknown", "on", 70)], 0, id="Unknown says how old it is"),
        pytest.param(NEVER_ON, [shown("follower", "off", 20)], 1, id="too old to be shown as a fact"),
        pytest.param(ON_ALL_THE_TIME, [shown("isolated", "off", 1)], 1, id="shown Off, On all the time"),
        pytest.param(ON_ALL_THE_TIME, [shown("leader", "on", 1), shown("leader", "off", 1, "external02")], 1, id="two leaders"),
        pytest.param(NEVER_ON, [shown("single-node", "on", 1)], 0, id="a single node has no permit page that could say"),
    ],
)
def test_what_the_portal_shows_is_compared_with_what_was(turns: list[tuple[float, bool]], members: list[dict[str, Any]], lies: int) -> None:
    pages = Pages([], lambda host, connector: True)
    now = boot()
    pages.turns["erp"] = [Turn(now + at, on, "external01") for at, on in turns]
    judge = Shown(lambda: None, pages, {"erp-orders": "erp"})
    reported = [{**member, "last_report_at": datetime.fromtimestamp(time.time() - member["age"], UTC).isoformat()} for member in members]
    judge.compare({"name": "erp-orders", "epoch": 5, "members": reported}, now, now, boot() - time.time())
    assert len(judge.lies) == lies, judge.lies


def test_a_shown_epoch_never_goes_back() -> None:
    judge = Shown(lambda: None, Pages([], lambda host, connector: True), {"erp-orders": "erp"})
    for epoch in (5, 5, 7, 6):
        judge.compare({"name": "erp-orders", "epoch": epoch, "members": []}, 0.0, 0.0, 0.0)
    assert len(judge.lies) == 1


def test_a_hosts_own_clock_is_read_as_that_host_reads_it(tmp_path: Path) -> None:
    clock = HostClock(tmp_path / "clock")
    clock.run_at(0.5)
    now = boot()
    assert abs(clock.shown(now) - now) < 0.1
    assert abs(clock.shown(now + 10) - (now + 5)) < 0.1
    clock.step(3600.0)
    program = "import time; from datetime import UTC, datetime as d; print(time.time(), d.now(UTC).timestamp(), time.clock_gettime(7))"
    environment = os.environ | clock.environment("")
    said = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    wall, date, its_boot = map(float, said.split())
    assert abs(wall - time.time() - 3600) < 5
    assert abs(date - wall) < 1
    assert abs(its_boot - clock.shown(boot())) < 5


def test_what_a_control_takes_out_is_out(tmp_path: Path) -> None:
    """A negative control whose guard is still there would say that the judge is blind."""
    program = (
        "from runtimes.process.connectors import queue; from runtimes.process.permits import Duty, boot_clock; import time\n"
        "print(sum('if epoch < mark' in text for text in queue.SCRIPTS), sum('if false then' in text for text in queue.SCRIPTS))\n"
        "began = time.monotonic(); Duty('g', 'g', 1, boot_clock() + 60).check(); print(time.monotonic() - began)"
    )
    environment = os.environ | {"PYTHONPATH": f"{PRELOAD}:{ROOT}", "LAB_REMOVE": "fence", "LAB_DAWDLE": "0.05"}
    said = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    guarded, unguarded, seconds = said.split()
    assert (int(guarded), int(unguarded) > 0) == (0, True)
    assert float(seconds) >= 0.05


def test_the_order_of_commits_is_the_kernels(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    names = [f"item-{number}" for number in range(50)]
    for name in names:
        (tmp_path / ".part").write_bytes(b"x")
        (tmp_path / ".part").rename(tmp_path / name)
    deadline = time.monotonic() + 5
    while len(watch.events) < 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.close()
    assert [name for _, name in watch.events] == names
    assert all(before[0] <= after[0] for before, after in itertools.pairwise(watch.events))


def test_a_seed_gives_the_same_faults_again() -> None:
    def names(seed: int) -> list[str]:
        dice = random.Random(seed)
        return [fault(dice).name for _ in range(100)]

    assert names(7) == names(7)
    assert names(7) != names(8)
    assert len({name.split()[0] for name in names(7)}) >= 6
