"""The judge is not blind: what must be a violation is one, what must not be is none. Needs no network."""

import itertools
import random
import time
from pathlib import Path

import pytest

from tests.lab.clock import boot
from tests.lab.faults import fault
from tests.lab.judge import PAGE, Emit, Page, Pages, Watch, late_emits


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
