"""Decisions of the agent, as tables."""

import pytest

from runtimes.agent.carrier import lost_wish
from runtimes.agent.decide import Act, BundleState, Keeping, Launched, Seen, difference, next_step, restart_delay, retry_delay, why_all_late
from runtimes.protocol import Cause, GroupRequest, RequestKind

WISH = Launched(digest="d2", release=2, restarts=0, etcd="http://127.0.0.1:1", namespace="/baton/1/", generation=1)


def launched(**changes: object) -> Launched:
    fields = {name: getattr(WISH, name) for name in WISH.__struct_fields__}
    return Launched(**(fields | changes))


OLD = launched(digest="d1", release=1)


@pytest.mark.parametrize(
    ("exits", "delay"),
    [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 4), (6, 8), (7, 16), (8, 30), (9, 30), (1000, 30)],
)
def test_a_crash_restarts_at_once_and_only_the_third_in_a_row_waits(exits: int, delay: float) -> None:
    assert restart_delay(exits) == delay


def test_calls_to_an_absent_portal_are_never_further_apart_than_two_seconds() -> None:
    assert [retry_delay(failures) for failures in (0, 1, 2, 5, 6, 500)] == [0, 0.1, 0.2, 1.6, 2.0, 2.0]


@pytest.mark.parametrize(
    ("late", "running", "load", "said"),
    [
        pytest.param(0, 3, 40.0, "", id="a loaded machine whose processes answer"),
        pytest.param(2, 3, 40.0, "", id="one answers: each for itself"),
        pytest.param(1, 1, 40.0, "", id="there is one only"),
        pytest.param(3, 3, 23.4, "too little processor time for them (load 23 on 2 processors)", id="starved"),
        pytest.param(3, 3, 0.4, "all at once: the machine stood still, or they wait for a disk", id="not by load"),
    ],
)
def test_processes_that_are_late_together_have_one_cause(late: int, running: int, load: float, said: str) -> None:
    told = why_all_late(late, running, "external01", load=load, processors=2)
    assert said in told and bool(said) == bool(told)
    assert not told or told.startswith("the 3 processes on external01 do not answer in time")


@pytest.mark.parametrize(
    ("wished", "said"),
    [
        pytest.param(WISH, "", id="nothing"),
        pytest.param(launched(digest="d3", release=3), "release 3 replaces release 2", id="a release"),
        pytest.param(launched(restarts=1), "a restart was ordered", id="a restart"),
        pytest.param(launched(generation=2), "built anew", id="a generation"),
        pytest.param(launched(etcd=None), "no router any more", id="the router has gone"),
    ],
)
def test_what_a_process_is_replaced_for(wished: Launched, said: str) -> None:
    assert said in difference(WISH, wished)
    assert bool(said) == bool(difference(WISH, wished))


def test_what_does_not_fail_over_runs_on_when_routers_come_and_go() -> None:
    gone = launched(etcd=None, generation=2)
    assert difference(WISH, gone, fails_over=False) == ""
    assert difference(WISH, gone) == "this machine has no router any more", "not that the cluster was built anew"
    assert next_step(gone, Seen(Keeping.ALIVE, launched=WISH, fails_over=False), now=10.0).act is Act.NOTHING


@pytest.mark.parametrize(
    ("wished", "seen", "act", "said"),
    [
        pytest.param(None, Seen(Keeping.GONE), Act.NOTHING, "stopped as ordered", id="not wished, not there"),
        pytest.param(None, Seen(Keeping.ALIVE, launched=OLD), Act.STOP, "ordered to stop", id="not wished, there"),
        pytest.param(WISH, Seen(Keeping.STUCK), Act.ATTACH, "lock", id="a keeper that does not answer is never bypassed"),
        pytest.param(WISH, Seen(Keeping.GONE), Act.START, "ordered to run", id="wished, not there"),
        pytest.param(WISH, Seen(Keeping.GONE, start_again_at=11.0, exits_in_a_row=3), Act.WAIT, "3 exits", id="in back-off"),
        pytest.param(WISH, Seen(Keeping.GONE, start_again_at=9.0, exits_in_a_row=3), Act.START, "", id="back-off over"),
        pytest.param(WISH, Seen(Keeping.ALIVE, launched=WISH), Act.NOTHING, "runs as ordered", id="as ordered"),
        pytest.param(WISH, Seen(Keeping.ALIVE, launched=OLD), Act.STOP, "replaces", id="another release"),
        pytest.param(WISH, Seen(Keeping.ALIVE, launched=OLD, stopping=True), Act.NOTHING, "stopping", id="already stopping"),
        pytest.param(
            WISH, Seen(Keeping.ALIVE, launched=OLD, bundle=BundleState.MISSING), Act.FETCH, "not here", id="fetched while the old one runs"
        ),
        pytest.param(
            WISH,
            Seen(Keeping.ALIVE, launched=OLD, bundle=BundleState.REFUSED, bundle_reason="tampered", fallback_here=True, fetch_again_at=20),
            Act.WAIT,
            "tampered",
            id="a refused bundle leaves the old one running",
        ),
        pytest.param(
            WISH,
            Seen(Keeping.GONE, launched=OLD, bundle=BundleState.UNREACHABLE, fallback_here=True, fetch_again_at=20),
            Act.START,
            "",
            id="the old one is started while the new one cannot be had",
        ),
        pytest.param(
            WISH,
            Seen(Keeping.GONE, bundle=BundleState.REFUSED, bundle_reason="tampered", fetch_again_at=20),
            Act.WAIT,
            "tampered",
            id="a refused first bundle",
        ),
        pytest.param(
            WISH, Seen(Keeping.GONE, bundle=BundleState.REFUSED, fetch_again_at=9), Act.FETCH, "", id="a refused bundle is asked for again"
        ),
    ],
)
def test_the_next_step(wished: Launched | None, seen: Seen, act: Act, said: str) -> None:
    step = next_step(wished, seen, now=10.0)
    assert step.act is act
    assert said in step.because


def test_a_fallback_keeps_the_old_bundle_and_takes_over_the_rest_of_the_order() -> None:
    seen = Seen(Keeping.GONE, launched=OLD, bundle=BundleState.REFUSED, fallback_here=True, fetch_again_at=20)
    step = next_step(launched(etcd="http://127.0.0.1:2"), seen, now=10.0)
    assert step.launch == launched(digest="d1", release=1, etcd="http://127.0.0.1:2")


@pytest.mark.parametrize(
    ("age", "status"),
    [(0.0, None), (4.9, None), (5.0, "failed"), (29.9, "failed"), (30.0, "expired")],
)
def test_a_wish_that_cannot_be_written_is_given_back_in_time(age: float, status: str | None) -> None:
    wish = GroupRequest(
        id="r1", kind=RequestKind.SWITCH, group="g", machine=None, expected_epoch=1, cause=Cause.SWITCH, actor="operator", valid_seconds=30
    )
    lost = lost_wish(wish, age, "no majority")
    assert (lost.status if lost else None) == status
    assert lost is None or lost.code == "no-majority"
