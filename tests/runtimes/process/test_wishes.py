"""Whom a wish may name: judged from one reading of the records, before anything is written."""

import pytest

from runtimes.process.records import ControlRecord, GroupMark, LeaderRecord, SessionRecord, design_of
from runtimes.process.wishes import Picture, _why_not
from runtimes.protocol import BundleContent, Cause, Component, ComponentKind, FlowSpec, Preference

A, B = "external01.erp", "external02.erp"
LOG = Component(kind=ComponentKind.LOG)


def bundle(machine: str = "external01", release: int = 1, version: str = "1.0.0", folder: str = "/in", group: str = "g") -> BundleContent:
    inbound = Component(kind=ComponentKind.FILE, settings={"folder": folder})
    flow = FlowSpec(id="f", name="erp-orders", version=version, inbound=inbound, outbound=LOG, group=group)
    return BundleContent(environment="test", machine=machine, connector="erp", release=release, flows=[flow], groups=[])


def session(key: str, release: int, design: str) -> tuple[SessionRecord, int]:
    return SessionRecord(f"{key}:1", 3, key, release, {"g": GroupMark(True, False, Preference.NONE)}, 1.0, design), 50


@pytest.mark.parametrize(
    ("candidate", "leader", "activated", "said"),
    [
        pytest.param((3, "x"), (3, "x"), 3, "", id="all run the activated release"),
        pytest.param((3, "x"), (4, "y"), 3, "", id="it runs what is ordered here"),
        pytest.param((3, "x"), (3, "x"), 5, "", id="release 5 changed neither bundle: both keep number 3"),
        pytest.param((3, "x"), (5, "x"), 5, "", id="release 5 changed a value of the leader's machine only"),
        pytest.param((3, "x"), (5, "y"), 5, "runs release 3, neither the activated one nor the leader's", id="it was not deployed yet"),
        pytest.param((3, ""), (5, ""), 5, "runs release 3", id="programs of a version that do not say what they run"),
        pytest.param((3, "x"), (5, "y"), None, "", id="the portal has compared already"),
    ],
)
def test_a_member_on_another_release_leads_only_what_the_leader_runs(
    candidate: tuple[int, str], leader: tuple[int, str], activated: int | None, said: str
) -> None:
    sessions = {A: session(A, *leader), B: session(B, *candidate)}
    picture = Picture(ControlRecord(), 0, LeaderRecord(A, f"{A}:1", Cause.FIRST), 7, sessions)
    reason = _why_not(B, picture, "g", A, activated)
    assert said in reason if said else reason == ""


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param({"release": 5}, True, id="the number of the release"),
        pytest.param({"machine": "external02", "folder": "/elsewhere"}, True, id="a sibling with values of its own"),
        pytest.param({"version": "1.0.1"}, False, id="another version of a flow"),
        pytest.param({"group": "h"}, False, id="another group"),
    ],
)
def test_what_makes_two_runtimes_run_the_same(change: dict[str, object], same: bool) -> None:
    assert (design_of(bundle(**change)) == design_of(bundle())) is same  # type: ignore[arg-type]
