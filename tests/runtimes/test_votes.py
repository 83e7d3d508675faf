"""From one membership of routers to another: the next safe step as a table, and that no path falls below a majority."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.votes import Act, Condition, Voter, next_change, quorum

WELL, AWAY, LOST, LEARNS = Condition.WELL, Condition.AWAY, Condition.LOST, Condition.LEARNS


def voters(*names: str, learner: str = "") -> list[Voter]:
    made = [Voter(f"id-{name}", name, f"https://{name}:1") for name in names]
    return [*made, Voter(f"id-{learner}", learner, f"https://{learner}:1", learner=True)] if learner else made


def at(*names: str, **moved: str) -> dict[str, str]:
    return {name: f"https://{name}:1" for name in names} | moved


@pytest.mark.parametrize(
    ("listed", "wished", "away", "act", "machine", "said"),
    [
        pytest.param(voters("a", "b", "w"), at("a", "b", "w"), {}, Act.NOTHING, "", "as wished", id="nothing to do"),
        pytest.param(voters("a", "b", "w"), at("a", "b", "w"), {"b": AWAY}, Act.NOTHING, "", "as wished", id="one is away: let it"),
        pytest.param(voters("a", "b", "w"), at("a", "b", "w"), {"b": LOST}, Act.REMOVE, "b", "data are gone", id="data lost"),
        pytest.param(voters("a", "w"), at("a", "b", "w"), {}, Act.ADD, "b", "without a vote", id="data lost: then added"),
        pytest.param(voters("a", "w", learner="b"), at("a", "b", "w"), {"b": AWAY}, Act.WAIT, "b", "yet to start", id="then starts"),
        pytest.param(voters("a", "w", learner="b"), at("a", "b", "w"), {"b": LEARNS}, Act.PROMOTE, "b", "its vote", id="then votes"),
        pytest.param(voters("a", "w", learner="b"), at("a", "b", "w"), {"b": LOST}, Act.REMOVE, "b", "again", id="lost once more"),
        pytest.param(voters("a", "w", learner="b"), at("a"), {"b": LEARNS}, Act.REMOVE, "b", "again", id="a newcomer not wished any more"),
        pytest.param(voters("a", "b", "w"), at("a", "w", b="https://x:2"), {}, Act.UPDATE, "b", "moves from", id="an address moves"),
        pytest.param(
            voters("a", "b", "w"), at("a", "w", b="https://x:2"), {"b": AWAY}, Act.UPDATE, "b", "moves", id="it was moved already"
        ),
        pytest.param(
            voters("a", "b", "w"), at("a", "w", b="https://x:2"), {"a": AWAY}, Act.REFUSE, "", "a must run before", id="another is away"
        ),
        pytest.param(
            voters("a", "b", "w"), at("w", b="https://a:1", a="https://b:1"), {}, Act.REFUSE, "", "is still there", id="swapped addresses"
        ),
        pytest.param(voters("a", "b", "w"), at("a", "b", "c"), {}, Act.ADD, "c", "added", id="a third external: it comes first …"),
        pytest.param(voters("a", "b", "c", "w"), at("a", "b", "c"), {}, Act.REMOVE, "w", "not wished", id="… then the witness goes"),
        pytest.param(voters("a", "b", "c"), at("a", "b", "w"), {"c": AWAY}, Act.REMOVE, "c", "does not run", id="what is dead goes first"),
        pytest.param(voters("a", "b", "c"), at("a", "b", "w"), {"b": AWAY}, Act.REFUSE, "", "b must run", id="not while another is away"),
        pytest.param(voters("a", "b", "w"), at("a"), {}, Act.REMOVE, "b", "not wished", id="down to one"),
        pytest.param(voters("a"), at(a="https://x:2"), {}, Act.UPDATE, "a", "moves", id="the only one moves"),
        pytest.param(voters("a"), at("b"), {}, Act.ADD, "b", "added", id="the only one is replaced: first the new one"),
        pytest.param(voters("a"), {"b": "https://a:1"}, {}, Act.REFUSE, "", "only member", id="by one at its address"),
        pytest.param(voters("a", "b", "w"), at("a", "b", "w"), {"b": AWAY, "w": LOST}, Act.REFUSE, "", "no majority", id="no majority"),
        pytest.param(voters("a", "b", "w"), {}, {"a": AWAY, "b": AWAY}, Act.REFUSE, "", "1 of 3 routers run", id="none may go"),
        pytest.param(
            voters("a", "b", "w"),
            {"a": "https://a:1", "c": "https://b:1", "w": "https://w:1"},
            {},
            Act.REMOVE,
            "b",
            "",
            id="its place taken",
        ),
    ],
)
def test_the_next_safe_step(
    listed: list[Voter], wished: Mapping[str, str], away: dict[str, Condition], act: Act, machine: str, said: str
) -> None:
    conditions = {voter.machine: WELL for voter in listed} | away
    step = next_change(listed, wished, conditions)
    assert (step.act, step.machine) == (act, machine)
    assert said in step.sentence


def test_who_bears_a_revoked_certificate_leaves_first() -> None:
    step = next_change(voters("a", "b", "w"), at("a", "b", "w"), {"a": WELL, "b": Condition.REVOKED, "w": WELL})
    assert (step.act, step.machine, step.disturbs) == (Act.REMOVE, "b", False)
    assert "bears a certificate that was taken back" in step.sentence
    assert next_change(voters("a", "b", "w"), at("a", "b", "w"), {"a": WELL, "b": Condition.REVOKED, "w": AWAY}).act is Act.REFUSE


def test_a_router_that_runs_well_is_disturbed_and_a_dead_one_is_not() -> None:
    listed, wished = voters("a", "b", "w"), at("a", "w", b="https://x:2")
    assert next_change(listed, wished, dict.fromkeys("abw", WELL)).disturbs
    assert not next_change(listed, wished, {"a": WELL, "w": WELL, "b": AWAY}).disturbs


MACHINES = st.sampled_from("abcdefg")
ODD = st.sets(MACHINES, min_size=1, max_size=5).filter(lambda names: len(names) % 2 == 1)


class Cluster:
    """As etcd sees it: who is listed, who runs. A step is carried out as ordered; the machine follows at once."""

    def __init__(self, names: set[str]) -> None:
        self.listed = [Voter(f"1{name}", name, f"https://{name}:1") for name in sorted(names)]
        self.runs = dict.fromkeys(names, WELL)
        self.number = 1

    def check(self) -> None:
        votes = [voter for voter in self.listed if not voter.learner]
        assert sum(self.runs[voter.machine] == WELL for voter in votes) >= quorum(len(votes)), "below a majority"
        assert sum(voter.learner for voter in self.listed) <= 1

    def carry_out(self, act: Act, machine: str, url: str) -> None:
        rest = [voter for voter in self.listed if voter.machine != machine]
        mine = next((voter for voter in self.listed if voter.machine == machine), None)
        if act is Act.REMOVE:
            self.listed = rest
            del self.runs[machine]
        elif act is Act.ADD:
            assert mine is None
            self.number += 1
            self.listed = [*rest, Voter(f"{self.number}{machine}", machine, url, learner=True)]
            self.runs[machine] = LEARNS
        elif act is Act.PROMOTE:
            assert mine is not None
            self.listed = [*rest, Voter(mine.id, machine, mine.url)]
            self.runs[machine] = WELL
        elif act is Act.UPDATE:
            assert mine is not None
            before = self.runs[machine]
            self.listed = [*rest, Voter(mine.id, machine, url)]
            if len(self.listed) > 1:  # the only one is away for a moment, and that is said
                self.runs[machine] = AWAY  # it restarts
                self.check()
            self.runs[machine] = WELL if before is not LOST else LOST


@given(before=ODD, after=ODD, moved=st.sets(MACHINES), broken=st.dictionaries(MACHINES, st.sampled_from([AWAY, LOST]), max_size=2))
def test_no_path_falls_below_a_majority(before: set[str], after: set[str], moved: set[str], broken: dict[str, Condition]) -> None:
    """Every step leaves a majority running, and with at most the broken ones in the way it comes to an end: all as wished, or a refusal."""
    cluster = Cluster(before)
    cluster.runs |= {name: condition for name, condition in broken.items() if name in before}
    wished = {name: f"https://{name}:{2 if name in moved else 1}" for name in after}
    well = sum(condition == WELL for condition in cluster.runs.values())
    for _ in range(40):
        step = next_change(cluster.listed, wished, cluster.runs)
        if step.act in (Act.NOTHING, Act.REFUSE):
            break
        cluster.carry_out(step.act, step.machine, step.url)
        cluster.check()
    else:
        pytest.fail("it never ends")
    if step.act is Act.REFUSE:
        assert well < quorum(len(before)) or AWAY in cluster.runs.values(), step.sentence
    else:
        assert {voter.machine: voter.url for voter in cluster.listed} == wished
