"""Every row of the table "Who leads when links are cut" (docs/failover.md), by name: A leads, B follows, W is the witness.

Each test begins with external01 leading both groups and its router leading etcd's cluster. LAB_PATIENCE (default 2) is for the computer on
which three hosts share a few processors with other work: the table's bounds times it, and a quarter of a second Off for each unit above 1
where nothing should move. What was measured is printed.
"""

import os
import time
from collections.abc import Callable

import pytest

from tests.lab.clock import boot
from tests.lab.judge import late_emits
from tests.lab.lab import CONNECTORS, EXTERNAL, Lab, until
from tests.lab.landscape import GROUPS

A, B, W = "external01", "external02", "core01"
PATIENCE = float(os.environ.get("LAB_PATIENCE", "2"))  # for the measured 1.5 s of the table
BOUND = 1.5 * PATIENCE
SLOW = 30.0  # for what must come about, however long programs take to start

pytestmark = pytest.mark.lab


class Watching:
    """What every group did since a fault began."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.epochs = {connector: lab.epoch(connector) for connector in CONNECTORS}
        self.began = boot()

    def moved_to(self, host: str, within: float) -> None:
        """Every group is On at `host`, and only there, within so many seconds of the fault."""
        left = within - (boot() - self.began)
        until(
            lambda: all(self.lab.leader(connector) == host for connector in CONNECTORS),
            max(left, 0.01),
            f"{host} leads",
            self.lab.facts,
        )
        for connector in CONNECTORS:
            at = until(lambda connector=connector: self.lab.pages.next_on(connector, self.began, host), 5, "the sampler saw it too")
            self.lab.gaps.append(at - self.began)

    def stays_at(self, host: str, seconds: float = 2.5) -> None:
        """Nothing moves: the same leadership, On without a break."""
        time.sleep(seconds)
        for connector in CONNECTORS:
            assert self.lab.leader(connector) == host, self.lab.facts()
            assert self.lab.pages.off_seconds(connector, host, self.began) <= 0.25 * (PATIENCE - 1), "it was Off for a while"
            assert self.epoch_now(connector) == self.epochs[connector]

    def epoch_now(self, connector: str) -> int:
        return self.lab.epoch(connector)

    def nobody(self, within: float = BOUND, seconds: float = 2.0) -> None:
        """Nobody takes nor emits, from then on."""
        until(lambda: not any(self.lab.pages.on(connector) for connector in CONNECTORS), within, "everything stopped")
        stopped = boot()
        time.sleep(seconds)
        for connector in CONNECTORS:
            assert self.lab.pages.next_on(connector, stopped) is None

    def one_again(self, within: float = SLOW) -> None:
        self.lab.heal()
        until(lambda: all(self.lab.settled(connector) for connector in CONNECTORS), within, "one leads again", self.lab.facts)

    def follows_again(self, leader: str, within: float = SLOW) -> None:
        """The fault is cleared: the new leader stays, the other follows."""
        other = B if leader == A else A
        self.lab.heal()
        wanted = (leader, other)
        until(lambda: all(self.lab.settled(each) == wanted for each in CONNECTORS), within, f"{other} follows {leader}", self.lab.facts)

    def emitted_by(self, host: str, after: float) -> int:
        """Commits of that host after an instant, under the epoch it had at the beginning."""
        return sum(
            emit.at > after and emit.machine == host and emit.epoch is not None and emit.epoch % 10**12 == self.epochs[connector]
            for connector in CONNECTORS
            for emit in self.lab.sinks.emits(connector)
        )


def a_isolated(lab: Lab, see: Watching) -> None:
    lab.hosts[A].isolate()
    see.moved_to(B, BOUND)
    see.follows_again(B)


def b_isolated(lab: Lab, see: Watching) -> None:
    lab.hosts[B].isolate()
    see.stays_at(A)
    see.follows_again(A)


def w_isolated(lab: Lab, see: Watching) -> None:
    lab.hosts[W].isolate()
    see.stays_at(A)
    hand_over(lab)
    lab.heal()


def portal_down(lab: Lab, see: Watching) -> None:
    lab.core.hold_down("portal", "worker", "beat", "broker")
    see.stays_at(A)
    hand_over(lab)
    lab.heal()


def hand_over(lab: Lab) -> None:
    """Each group by the machine's own command, which needs no portal."""
    see = Watching(lab)
    for connector in CONNECTORS:
        lab.by_hand(A, "switch", GROUPS[connector], "--to", B)
    see.moved_to(B, SLOW)


def a_b_cut(lab: Lab, see: Watching) -> None:
    lab.cut(A, B)
    see.stays_at(A)
    see.follows_again(A)


def a_w_cut(lab: Lab, see: Watching) -> None:
    lab.cut(A, W)
    see.stays_at(A)
    see.follows_again(A)


def b_w_cut(lab: Lab, see: Watching) -> None:
    lab.cut(B, W)
    see.stays_at(A)
    see.follows_again(A)


def all_cut(lab: Lab, see: Watching) -> None:
    for one, other in ((A, B), (A, W), (B, W)):
        lab.cut(one, other)
    see.nobody()
    see.one_again()


def a_deaf(lab: Lab, see: Watching) -> None:
    lab.cut_one_way(B, A)
    lab.cut_one_way(W, A)
    see.moved_to(B, BOUND)
    see.follows_again(B)


def a_and_w_lost(lab: Lab, see: Watching) -> None:
    lab.hosts[A].power_off()
    lab.hosts[W].power_off()
    see.nobody()
    see.one_again(within=60)


def process_killed(lab: Lab, see: Watching) -> None:
    lab.hosts[A].kill(*(f"process:{connector}" for connector in CONNECTORS))
    see.moved_to(B, 0.5 * PATIENCE)
    see.follows_again(B)


def powered_off(lab: Lab, see: Watching) -> None:
    lab.hosts[A].power_off()
    see.moved_to(B, BOUND)
    see.follows_again(B, within=60)


def process_paused(lab: Lab, see: Watching) -> None:
    lab.hosts[A].stop(*(f"process:{connector}" for connector in CONNECTORS))
    see.moved_to(B, BOUND)
    taken = boot()
    lab.hosts[A].cont()
    see.follows_again(B)
    assert see.emitted_by(A, taken) == 0, "its keeper ended it before it could be resumed"


def router_killed(lab: Lab, see: Watching) -> None:
    lab.hosts[A].kill("router")
    until(lambda: all(lab.settled(connector) for connector in CONNECTORS), SLOW, "one leads, the other follows", lab.facts)


def machine_paused(lab: Lab, see: Watching) -> None:
    lab.hosts[A].pause()
    see.moved_to(B, BOUND)
    taken = boot()
    time.sleep(1)
    lab.hosts[A].resume()
    see.follows_again(B)
    time.sleep(0.5)
    assert see.emitted_by(A, taken) <= len(CONNECTORS), "at most the one commit that was in flight in each flow"
    assert not late_emits(lab.sinks.emits("erp")), "the queue refuses even that one"


def keeper_and_process_stopped(lab: Lab, see: Watching) -> None:
    lab.hosts[A].stop(*(f"{part}:{connector}" for connector in CONNECTORS for part in ("keeper", "process")))
    see.moved_to(B, BOUND)
    taken = boot()
    time.sleep(1)
    assert see.emitted_by(A, taken) == 0
    lab.hosts[A].cont()
    see.follows_again(B)
    assert see.emitted_by(A, taken) <= len(CONNECTORS), "at most the one commit that was in flight in each flow"


def both_off(lab: Lab, see: Watching) -> None:
    for host in EXTERNAL:
        lab.hosts[host].power_off()
    see.nobody(seconds=0.5)
    see.one_again(within=60)


ROWS: dict[str, Callable[[Lab, Watching], None]] = {
    "A isolated: B": a_isolated,
    "B isolated: A stays": b_isolated,
    "W isolated: A stays, hand-over works": w_isolated,
    "portal down: A stays, hand-over works": portal_down,
    "A-B cut: A stays": a_b_cut,
    "A-W cut: A stays": a_w_cut,
    "B-W cut: A stays": b_w_cut,
    "all three cut: nobody, then one again": all_cut,
    "A deaf to both: B within 1.5 s": a_deaf,
    "A and W both lost: nobody": a_and_w_lost,
    "A's process killed: B at once": process_killed,
    "A powered off: B within 1.5 s": powered_off,
    "A's process paused, resumed: B, A emits nothing": process_paused,
    "router of A killed: A or B": router_killed,
    "machine A paused, resumed: B": machine_paused,
    "keeper and process of A stopped together: B": keeper_and_process_stopped,
    "both machines off, then on: one leads": both_off,
}
QUICK = ("A isolated: B", "A's process killed: B at once", "A powered off: B within 1.5 s")  # what `make test` has time for


@pytest.mark.parametrize("row", [pytest.param(row, id=row, marks=[pytest.mark.journey] if row in QUICK else []) for row in ROWS])
def test_who_leads(lab: Lab, row: str) -> None:
    ROWS[row](lab, Watching(lab))
    assert not lab.pages.overlaps


CUTS = {"A-B": (A, B), "A-W": (A, W), "B-W": (B, W)}


@pytest.mark.parametrize("raft", [A, B, W])
@pytest.mark.parametrize("cut", CUTS)
def test_one_link_cut_wherever_etcds_leader_is(running_lab: Lab, cut: str, raft: str) -> None:
    """A member cut off from etcd's leader gets no answer through it, so the agents move etcd's leadership to who sees both."""
    running_lab.begin()
    for _ in range(5):  # on a busy computer a sibling may seem silent, and etcd's leadership is handed on
        running_lab.move_raft_leader(raft)
        time.sleep(2)  # the agent there looks once per second whether its router leads; after 5 s at rest it would hand it to A
        if running_lab.raft_leader() == raft:
            break
    see = Watching(running_lab)
    running_lab.cut(*CUTS[cut])
    see.stays_at(A)
    see.follows_again(A)
    assert not running_lab.pages.overlaps
