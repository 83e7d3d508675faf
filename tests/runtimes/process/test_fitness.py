"""When readiness is withdrawn, and that a group does not wander between members that all cannot work."""

import itertools

import pytest

from runtimes.process.fitness import FOLLOWS_SECONDS, LEADS_SECONDS, LOOK_AGAIN_SECONDS, LOOK_SECONDS, Fitness


def after(seconds: float, fitness: Fitness, *, leads: bool, since: float = 0.0, turn: float = 0.9) -> Fitness:
    """The loop turns for so long."""
    for number in range(int(seconds / turn) + 1):
        fitness.turn(since + number * turn, leads=leads)
    return fitness


@pytest.mark.parametrize(
    ("seconds", "leads", "withdrawn"),
    [
        pytest.param(14, False, False, id="a moment on a follower"),
        pytest.param(17, False, True, id="for longer on a follower"),
        pytest.param(28, True, False, id="a leader is more patient"),
        pytest.param(32, True, True, id="but not for ever"),
    ],
)
def test_readiness_is_withdrawn_when_no_look_goes_well_for_a_while(seconds: float, leads: bool, withdrawn: bool) -> None:
    fitness = Fitness()
    fitness.failed("the folder is gone")
    assert after(seconds, fitness, leads=leads).reason == ("the folder is gone" if withdrawn else "")


def test_it_is_back_with_the_first_look_that_goes_well() -> None:
    fitness = Fitness()
    fitness.failed("the folder is gone")
    assert after(40, fitness, leads=True).reason
    fitness.passed()
    fitness.turn(41, leads=True)
    assert fitness.reason == ""
    fitness.failed("the folder is gone")
    assert after(14, fitness, leads=False, since=42).reason == "", "and the while begins anew"


def test_a_look_that_hangs_counts_as_one_that_fails() -> None:
    fitness = Fitness()
    fitness.passed()
    assert "does not come back" in after(40, fitness, leads=True).reason


def test_time_in_which_the_process_stood_still_does_not_count() -> None:
    fitness = Fitness()
    fitness.passed()
    fitness.turn(0, leads=True)
    fitness.turn(3600, leads=True)
    assert fitness.reason == ""


def test_where_both_lose_the_same_share_the_follower_has_said_so_long_before_the_leader_looks_for_another() -> None:
    """Whatever the moments at which each of them looks."""
    for leader_late, follower_late in itertools.product((0.0, 1.3, 2.6, 4.9), repeat=2):
        lost: dict[bool, float] = {}
        for leads, late in ((True, leader_late), (False, follower_late)):
            fitness, looks_at = Fitness(), late
            for tick in range(600):
                now = tick / 10
                if now >= looks_at:
                    gone = now >= 10.0
                    fitness.failed("gone") if gone else fitness.passed()
                    looks_at = now + (LOOK_AGAIN_SECONDS if gone else LOOK_SECONDS)
                fitness.turn(now, leads=leads)
                if fitness.reason:
                    lost.setdefault(leads, now)
        assert lost[False] + 4.0 < lost[True], "longer than the slowest profile takes to tell it"
        assert lost[True] <= 10.0 + LEADS_SECONDS + 0.2 and lost[False] <= 10.0 + FOLLOWS_SECONDS + 0.2
