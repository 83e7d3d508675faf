"""Never two (I1), epochs only grow (I4), a disabled member never leads (I5): the product's own election in a small world (`world.py`).

Hypothesis tells the stories: crashes with and without a keeper's proof, restarts, twins, pauses, answers lost or late, transactions that
commit long after their time-out, clocks of different rates, switch, disable, enable, clean stops, lost keepers, drains. And each rule of
docs/failover.md is removed in turn: then a story breaks an invariant, or the search were blind.
"""

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from runtimes.process import election
from runtimes.process.etcd import Answer
from runtimes.protocol import Timing
from tests.runtimes.process.removals import REMOVALS
from tests.runtimes.process.world import (
    GROUPS,
    LAN,
    MACHINES,
    WAN,
    Link,
    Operation,
    Process,
    Step,
    Violation,
    World,
    key_of,
    play,
    shortest,
    story,
)

machines = st.sampled_from(MACHINES)
groups = st.sampled_from(GROUPS)
then = st.sampled_from([0.0, 0.02, 0.06, 0.1, 0.2, 0.4, 1.0])  # seconds that pass after what happened


class Election(RuleBasedStateMachine):
    """Three machines, two groups. Every step is followed by a look at the invariants at each instant that passes."""

    wire: Callable[[Process, Operation], Operation] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.world = World(wire=type(self).wire)
        self.steps: list[Step] = []
        self.broken = False

    def happens(self, verb: str, *words: Any, then: float = 0.0) -> None:
        for step in ((verb, *words), ("go_on", then)):
            self.steps.append(step)
            try:
                self.world.do(*step)
            except BaseException:
                self.broken = True
                raise

    @initialize()
    def everybody_starts(self) -> None:
        for machine in MACHINES:
            self.world.start(machine)
        self.happens("go_on", 0.5)

    @rule(seconds=st.sampled_from([0.1, 0.3, 0.6, 0.9, 1.1, 1.4]))
    def time_passes(self, seconds: float) -> None:
        self.happens("go_on", seconds)

    @rule(verb=st.sampled_from(["crash", "crash_proven", "crash_proven_late", "orphan", "stop"]), machine=machines, then=then)
    def a_process_ends(self, verb: str, machine: str, then: float) -> None:
        self.happens(verb, machine, then=then)

    @rule(verb=st.sampled_from(["start", "start", "twin"]), machine=machines, timing=st.sampled_from([LAN, LAN, WAN]), then=then)
    def a_process_starts(self, verb: str, machine: str, timing: Timing, then: float) -> None:
        """Members of one group may run under different profiles while the environment changes from one to the other."""
        self.happens(verb, machine, timing, then=then)

    @rule(machine=machines, then=then)
    def a_keeper_of_before_speaks_again(self, machine: str, then: float) -> None:
        self.happens("farewell_again", machine, then=then)

    @rule(verb=st.sampled_from(["pause", "resume"]), machine=machines, then=then)
    def a_process_stands_still(self, verb: str, machine: str, then: float) -> None:
        self.happens(verb, machine, then=then)

    @rule(machine=machines, state=st.sampled_from([Link.FINE, *Link]), then=then)
    def a_link_changes(self, machine: str, state: Link, then: float) -> None:
        self.happens("link", machine, state.value, then=then)

    @rule(machine=machines, on=st.booleans())
    def the_watch_breaks_or_is_back(self, machine: str, on: bool) -> None:
        self.happens("watch", machine, on)

    @rule(number=st.integers(0, 5), then=then)
    def a_late_request_is_carried_out(self, number: int, then: float) -> None:
        self.happens("commit", number, then=then)

    @rule(verb=st.sampled_from(["disable", "enable", "switch", "switch"]), machine=machines, group=groups, then=then)
    def a_person_wishes(self, verb: str, machine: str, group: str, then: float) -> None:
        self.happens(verb, machine, group, then=then)

    @rule(verb=st.sampled_from(["ready", "busy"]), machine=machines, on=st.booleans(), group=groups, then=then)
    def a_flow_changes(self, verb: str, machine: str, on: bool, group: str, then: float) -> None:
        self.happens(verb, machine, on, group, then=then)

    def teardown(self) -> None:
        try:
            if not self.broken:
                self.steps.append(("calm",))
                self.world.do("calm")
        finally:
            self.world.close()


STORIES = settings(
    max_examples=35,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
TestElection = Election.TestCase
TestElection.settings = STORIES


@pytest.mark.parametrize("name", REMOVALS)
def test_without_a_rule_an_invariant_is_broken(name: str) -> None:
    removal = REMOVALS[name]
    play([*removal.story, ("calm",)])  # with the rule nothing is broken, and one leads afterwards

    assert _breaks(name, removal.story), f"nothing is broken without the rule that {removal.rule}"
    _tell(name, removal.story)


@pytest.mark.long
def test_no_invariant_breaks_in_many_stories() -> None:
    run_state_machine_as_test(Election, settings=settings(STORIES, max_examples=1500, stateful_step_count=50))


FOUND_BLINDLY = (
    "renew-own", "renew-control", "permit-guard", "permit-named", "permit-session", "permit-end", "take-ttl", "take-receipt", "take-leader",
    "start-still", "farewell-launch",
)  # fmt: skip  # the others need more luck than minutes of search have


@pytest.mark.long
@pytest.mark.parametrize("name", FOUND_BLINDLY)
def test_the_search_itself_finds_what_a_removed_rule_breaks(name: str) -> None:
    """Without a story to begin with; what is found is shortened."""
    told: list[Election] = []

    class Without(Election):
        wire = REMOVALS[name].wire

        def __init__(self) -> None:
            super().__init__()
            told[:] = [self]

    search = settings(STORIES, max_examples=1500, stateful_step_count=40, phases=(Phase.generate,), report_multiple_bugs=False)
    with pytest.raises(Violation):
        REMOVALS[name].without(lambda wire: run_state_machine_as_test(Without, settings=search))
    _tell(name, told[0].steps)


def _breaks(name: str, steps: Sequence[Step]) -> bool:
    try:
        REMOVALS[name].play_without(steps)
    except Violation:
        return True
    return False


def _tell(name: str, steps: Sequence[Step]) -> None:
    """Print the shortest part of the story that still breaks an invariant."""
    short = shortest(steps, lambda fewer: _breaks(name, fewer))
    with pytest.raises(Violation) as violation:
        REMOVALS[name].play_without(short)
    print(f"Without the rule that {REMOVALS[name].rule}:\n{story(short)}\n{violation.value}")


def test_stories_do_change_leaders() -> None:
    steps: list[Step] = [("go_on", 0.5)]
    for machine in ("B", "C", "A"):
        steps += [("switch", machine, group) for group in GROUPS]
        steps += [("go_on", 0.6), ("crash_proven", machine), ("go_on", 0.4), ("start", machine), ("go_on", 1.3)]
    assert play(steps).leaderships == 12, "two at first, then by each switch to another and by each death"


def test_no_hand_over_is_refused_because_its_candidate_has_just_renewed() -> None:
    """Whenever it is asked for, and of two groups at once: each leaves its group Off for two transactions, no more."""
    told: list[bool] = []

    class Listening(World):
        def _carry_out(self, operation: Operation) -> Answer:
            answer = super()._carry_out(operation)
            told.extend(answer.succeeded for each in operation[1] if "request_put" in each and key_of(each).startswith("/leaders/"))
            return answer

    world = Listening()
    try:
        for machine in MACHINES:
            world.start(machine)
        world.go_on(1.0)
        told.clear()
        for turn in range(20):
            for group in GROUPS:
                world.switch("BA"[turn % 2], group)
            world.go_on(0.7 + 0.021 * turn)
    finally:
        world.close()
    assert told == [True] * 20 * len(GROUPS)


def test_decisions_have_no_clock_and_no_input_or_output() -> None:
    """Time is an argument, the records are the view; nothing else of the process or the machine can be reached from there."""
    tree = ast.parse(Path(election.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {
        "collections.abc", "dataclasses", "enum", "runtimes.process.permits", "runtimes.process.records", "runtimes.protocol",
    }  # fmt: skip
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.AsyncFunctionDef | ast.Await | ast.Global)]
    borrowed = {
        name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("runtimes.process")
        for name in node.names
    }
    assert borrowed == {"ALWAYS", "NEVER", "ControlRecord", "LeaderRecord", "Observed", "epoch_of"}, "constants and records, no clock"
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__", "getattr", "setattr"}
