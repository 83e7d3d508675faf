"""What a deployment must never do to a failover group, as a table."""

import pytest

from deployments.gates import Sight, touch

A, B, C = "external01.erp", "external02.erp", "external03.erp"
STOPPED = {B: f"{B} was stopped by a person."}


@pytest.mark.parametrize(
    ("sights", "stops", "touched", "rule"),
    [
        pytest.param([], False, [], "", id="no failover group"),
        pytest.param([Sight("orders", None, [], {B: "away"})], False, [], "", id="nobody leads, so nothing is interrupted"),
        pytest.param([Sight("orders", A, [B], {})], False, [], "", id="a leader with a ready follower"),
        pytest.param([Sight("orders", B, [], {B: "leads"})], False, [], "", id="a follower beside its leader"),
        pytest.param([Sight("orders", A, [], STOPPED)], False, [], "leader", id="a leader without a ready follower"),
        pytest.param([Sight("orders", A, [B], {}), Sight("bulk", A, [], STOPPED)], False, [], "leader", id="in one of two groups"),
        pytest.param([Sight("orders", A, [B], {})], True, [], "", id="a leader is stopped where another takes over"),
        pytest.param([Sight("orders", B, [], {B: "leads"})], True, [], "", id="a follower is stopped"),
        pytest.param([Sight("orders", A, [], STOPPED)], True, [], "last", id="the last member is stopped"),
        pytest.param([Sight("orders", None, [], STOPPED)], True, [], "last", id="the last member that could lead is stopped"),
        pytest.param([Sight("orders", A, [B], {})], False, [B], "one", id="its follower is being changed"),
        pytest.param([Sight("orders", A, [C], {B: "starting"})], False, [B], "one", id="another follower is being changed"),
        pytest.param([Sight("orders", A, [B], {})], False, [A, C], "", id="others of other groups are being changed"),
    ],
)
def test_what_may_be_touched(sights: list[Sight], stops: bool, touched: list[str], rule: str) -> None:
    gate = touch(A, sights, stops=stops, touched=touched)
    assert gate.rule == rule
    assert gate.open is (rule == "") and bool(gate.sentence) is (rule != "")
    assert gate.may_be_overridden is (rule == "leader")


def test_the_reason_names_the_group_and_who_is_lacking() -> None:
    gate = touch(A, [Sight("orders", A, [], STOPPED, hopeless=True)], stops=False, touched=[])
    assert gate.sentence == ("external01.erp leads orders, and no follower is ready to take over: external02.erp was stopped by a person.")
    assert gate.hopeless
