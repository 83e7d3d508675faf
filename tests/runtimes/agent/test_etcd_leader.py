"""Where etcd's leader goes, as a table. That it keeps a group's leader in place, the lab shows (tests/lab/test_links.py)."""

import pytest

from runtimes.agent.etcd_leader import MOVE_AGAIN_SECONDS, REST_SECONDS, Seen, next_move

BOTH = {"core01": True, "external01": True}
CUT = {"core01": True, "external01": False}
NOW = 100.0
A, B, W = "external01", "external02", "core01"


@pytest.mark.parametrize(
    ("seen", "to"),
    [
        pytest.param(Seen(B, BOTH), None, id="everybody answers, nothing is known of groups"),
        pytest.param(Seen(B, CUT, frozenset({A})), W, id="the link to one is cut"),
        pytest.param(
            Seen(B, {W: False, A: False}, frozenset({A, W})),
            None,
            id="cut off from everybody: nobody to hand it to",
        ),
        pytest.param(Seen(B, CUT), None, id="silent since before this router led: no move to and fro"),
        pytest.param(
            Seen(
                W,
                {A: True, B: True, "external03": False},
                frozenset({"external03"}),
                None,
                frozenset({B}),
            ),
            B,
            id="of two that answer, the one that leads a group",
        ),
        pytest.param(
            Seen(W, {A: True, B: True}, frozenset({B})),
            A,
            id="back already, but it was away",
        ),
        pytest.param(
            Seen(B, CUT, frozenset({A}), moved_at=NOW - MOVE_AGAIN_SECONDS + 0.1),
            None,
            id="moved a moment ago",
        ),
        pytest.param(
            Seen(B, BOTH, all_answer_since=NOW - REST_SECONDS, group_leaders=frozenset({A})),
            A,
            id="at rest, to the machine that leads every group",
        ),
        pytest.param(
            Seen(B, BOTH, all_answer_since=NOW - REST_SECONDS + 0.1, group_leaders=frozenset({A})),
            None,
            id="not at rest for long enough",
        ),
        pytest.param(
            Seen(A, {W: True, B: True}, all_answer_since=0.0, group_leaders=frozenset({A})),
            None,
            id="it is there already",
        ),
        pytest.param(
            Seen(W, BOTH, all_answer_since=0.0, group_leaders=frozenset({A, B})),
            None,
            id="groups led on two machines",
        ),
    ],
)
def test_where_etcds_leader_goes(seen: Seen, to: str | None) -> None:
    move = next_move(seen, now=NOW)
    assert (move.to if move else None) == to


def test_a_move_says_why() -> None:
    move = next_move(Seen(B, CUT, frozenset({A})), now=NOW)
    assert move is not None
    assert move.because == "external01 cannot be reached from here, core01 can, and may reach both"
