"""What a machine's administrator does on the machine itself: real agents, routers and processes, with the portal away."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import msgspec
import pytest

from runtimes.agent import console, doctor, hand
from runtimes.agent.__main__ import main
from runtimes.agent.certificate import Held
from runtimes.agent.home import Home, Identity
from runtimes.agent.peers import SILENT
from runtimes.process.etcd import OutcomeUnknown
from runtimes.process.records import ControlRecord, GroupMark, LeaderRecord, SessionRecord
from runtimes.process.wishes import Picture
from runtimes.protocol import (
    Cause,
    FlowReport,
    GroupReport,
    GroupSpec,
    IsolationPolicy,
    KeeperNews,
    Orders,
    Preference,
    RouterState,
    RuntimeOrder,
    State,
    Status,
    TlsFiles,
    digest_of,
    encode,
    epoch_words,
)
from tests.runtimes.agent.conftest import ROOT, Host, LittlePortal, content, erp, eventually
from tests.runtimes.agent.test_failover import EXTERNAL, NAMES, Landscape


def baton_agent(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "runtimes.agent", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


# ------------------------------------------------------------------------------------------------------------------ without machines


@pytest.mark.parametrize(
    ("given", "command", "rest"),
    [
        pytest.param([], "run", [], id="as ever"),
        pytest.param(["--home", "h", "--portal", "http://p"], "run", ["--home", "h", "--portal", "http://p"], id="as make run starts it"),
        pytest.param(["run", "--home", "h"], "run", ["--home", "h"], id="run"),
        pytest.param(["status", "--json"], "status", ["--json"], id="a command"),
        pytest.param(["--home", "h", "switch", "g"], "switch", ["--home", "h", "g"], id="home first"),
        pytest.param(["--home=h", "doctor"], "doctor", ["--home=h"], id="home first, in one word"),
        pytest.param(["--home", "status"], "run", ["--home", "status"], id="a home of that name"),
    ],
)
def test_commands_and_the_agent_itself_share_one_program(given: list[str], command: str, rest: list[str]) -> None:
    assert console.split(given) == (command, rest)


def test_status_names_the_bundle_and_not_the_release_that_pages_name() -> None:
    """A later release that changes nothing here runs the same bundle: pages call that by the later one's number."""
    router = hand.RouterStatus(state=RouterState.RUNNING, majority=True, reason="", url="https://127.0.0.1:2379", members=["external01"])
    member = hand.MemberStatus(runtime="external01.tills", machine="external01", session="fresh", ready=True, on=True, release=1)
    group = hand.GroupStatus(
        id="g", name="tills-sales", connector="tills", known=True, leader="external01.tills", epoch=41, isolation=IsolationPolicy.STOP,
        request=None, members=[member], here=None,
    )  # fmt: skip
    found = hand.MachineStatus(
        machine="external01", environment="Test", project="webshop", portal="", agent_running=True, router=router, groups=[group]
    )
    assert any(line.endswith("session fresh, On, bundle of release 1") for line in console.described(found))


@pytest.fixture
def joined(tmp_path: Path) -> Home:
    """external01 with the connectors crm and erp, which both have a group orders; erp has returns too."""
    home = Home(tmp_path / "home")
    home.root.chmod(0o700)
    identity = Identity(
        credential="secret", machine="external01", environment="test", project="webshop", portal="http://127.0.0.1:9", token_digest=""
    )
    home.write("identity.json", identity)
    runtimes = []
    for connector, names in (("crm", ["orders"]), ("erp", ["orders", "returns"])):
        members = [f"{machine}.{connector}" for machine in EXTERNAL]
        groups = [GroupSpec(id=f"{connector}-{name}", name=name, failover=True, members=members) for name in names]
        data = encode(content(connector=connector, groups=groups))
        home.keep_bundle(digest_of(data), data)
        runtimes.append(erp(digest_of(data), key=f"external01.{connector}", connector=connector))
    home.write("orders.json", Orders(version=1, namespace="/baton/1/", runtimes=runtimes))
    return home


@pytest.mark.parametrize(
    ("name", "found"),
    [
        pytest.param("returns", "erp/returns", id="a name"),
        pytest.param("erp/orders", "erp/orders", id="connector and name"),
        pytest.param("crm-orders", "crm/orders", id="an id"),
        pytest.param("orders", "several connectors here: say one of crm/orders, erp/orders", id="an ambiguous name"),
        pytest.param("nothing", "its groups: crm/orders, erp/orders, erp/returns", id="an unknown name"),
    ],
)
def test_groups_are_found_by_name(joined: Home, name: str, found: str) -> None:
    machine = hand.Machine(joined.root)
    try:
        said = machine.named(name).title
    except hand.NotHere as error:
        said = str(error)
    assert found in said


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        pytest.param(["switch", "nothing"], 2, "no member in a group nothing", id="an unknown group"),
        pytest.param(["switch", "returns", "--to", "mars"], 2, "members are on external01, external02", id="an unknown machine"),
        pytest.param(["switch"], 2, "GROUP", id="no group"),
        pytest.param(["switch", "returns"], 1, "no router", id="no router"),
        pytest.param(["status", "--home", "/nowhere"], 2, "no agent's home", id="no home"),
    ],
)
def test_what_cannot_be_done_is_said(joined: Home, arguments: list[str], status: int, says: str) -> None:
    home = [] if "--home" in arguments else ["--home", str(joined.root)]
    done = baton_agent(*arguments, *home)
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("days", "level", "says"),
    [
        pytest.param(240, "well", "is valid until", id="good"),
        pytest.param(246, "well", "is valid until", id="asked for these days"),
        pytest.param(250, "warning", "and should have been renewed since", id="its agent is stopped, or gets an error"),
        pytest.param(368, "bad", "ended on", id="nobody accepts it"),
    ],
)
def test_doctor_warns_of_a_certificate_that_is_not_renewed(
    days: int, level: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = datetime.now(UTC) - timedelta(days=days)
    held = Held(frozenset({"external01"}), 7, since, since + timedelta(days=367), "CA")
    monkeypatch.setattr(doctor, "read_certificate", lambda pem, authority: held)
    files = TlsFiles(authority=str(tmp_path / "authority.pem"), machine=str(tmp_path / "machine.pem"))
    for path in (files.authority, files.machine):
        Path(path).write_text("")
    machine = SimpleNamespace(
        home=SimpleNamespace(tls=files), orders=SimpleNamespace(router=None), identity=SimpleNamespace(machine="external01")
    )
    check = doctor.certificate_check(machine)  # type: ignore[arg-type]
    assert (check.level, says in check.sentence) == (level, True), check.sentence


@pytest.mark.parametrize("command", [["status"], ["switch", "returns"], ["disable", "returns"], ["enable", "returns"], ["doctor"]])
def test_other_users_of_the_machine_are_refused(
    joined: Home, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, *tmp_path.parents):  # everything above the home may be entered, so that the home itself refuses
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o711)
    os.seteuid(65534)
    try:
        status = main([*command, "--home", str(joined.root)])
    finally:
        os.seteuid(0)
    assert status == 2
    assert "administrator only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("boot", "raw", "level"),
    [
        pytest.param(0.5, 0.5, "well", id="alike"),
        pytest.param(0.51, 0.5, "well", id="within a drift that any clock may have"),
        pytest.param(0.6, 0.5, "bad", id="too fast"),
        pytest.param(0.4, 0.5, "bad", id="too slow"),
        pytest.param(0.0, 0.5, "bad", id="standing still"),
        pytest.param(-1.0, 0.5, "bad", id="going back"),
    ],
)
def test_a_clock_that_permits_cannot_trust_is_told(boot: float, raw: float, level: str) -> None:
    assert doctor.judge_clock(boot, raw).level == level


@pytest.mark.parametrize(
    ("now", "says"),
    [
        pytest.param(1_700_000_000.0, "agrees", id="the same"),
        pytest.param(1_700_000_000.0 + 3600, "ahead of", id="an hour ahead"),
        pytest.param(1_700_000_000.0 - 3600, "behind", id="an hour behind"),
    ],
)
def test_the_wall_clock_is_compared_with_the_portals(now: float, says: str) -> None:
    (check,) = doctor.wall_clock("Tue, 14 Nov 2023 22:13:20 GMT", now)
    assert says in check.sentence
    assert check.level != "bad", "leadership does not depend on it"


def test_a_bundle_changed_on_disk_is_told_and_left_for_the_agent(joined: Home) -> None:
    machine = hand.Machine(joined.root)
    assert [check.level for check in doctor.bundle_checks(machine)] == ["well", "well"]
    path = joined.bundle_path(machine.orders.runtimes[0].digest)
    path.write_bytes(path.read_bytes() + b" ")
    check = doctor.bundle_checks(machine)[0]
    assert check.level == "bad" and "changed on disk" in check.sentence
    assert path.exists()


@pytest.mark.parametrize(
    ("ready", "level", "says"),
    [
        ([True, True], "well", "external01.erp runs and is ready (process 2)."),
        ([True, False], "bad", "external01.erp runs (process 2) but is not ready in 1 of its 2 groups: the folder to poll is gone."),
        ([False, False], "bad", "external01.erp runs (process 2) but is not ready in 2 of its 2 groups: the folder to poll is gone."),
        ([False], "bad", "external01.erp runs (process 2) but is not ready in its group: the folder to poll is gone."),
    ],
)
def test_doctor_calls_a_process_ready_only_when_its_groups_are(ready: list[bool], level: str, says: str) -> None:
    said = [
        GroupReport(group=str(number), status=Status.FOLLOWER, state=State.OFF, reason="the folder to poll is gone", ready=one)
        for number, one in enumerate(ready)
    ]

    async def news(key: str) -> KeeperNews:
        return KeeperNews(launch="l", keeper_pid=1, pid=2, started_at="", ready=True, groups=said)

    order = RuntimeOrder(key="external01.erp", connector="erp", running=True, digest="d", release=1)
    check = asyncio.run(doctor._runtime_check(SimpleNamespace(news=news), order))  # type: ignore[arg-type]
    assert (check.level, check.sentence) == (level, says)


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        pytest.param(httpx.ReadTimeout("late"), "this machine's own router does not answer", id="etcd stands still"),
        pytest.param(httpx.ConnectError("refused"), "this machine's router does not run", id="nothing is there"),
    ],
)
def test_a_router_that_stands_still_is_not_said_not_to_run(joined: Home, cause: Exception, says: str) -> None:
    """As the pages say it; its process is there."""

    async def ask(*_: object, **__: object) -> None:
        raise OutcomeUnknown("the router at https://127.0.0.1:1 did not say") from cause

    silent = SimpleNamespace(url="https://127.0.0.1:1", ask=ask)
    machine = SimpleNamespace(orders=SimpleNamespace(router=SimpleNamespace(members={})), launched_router=lambda: None)
    told = hand.with_cause(asyncio.run(hand.router_status(machine, silent)), [])  # type: ignore[arg-type]
    assert told.reason.startswith(says) and not told.majority


def test_doctor_says_what_to_do_about_a_router_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def router() -> "AsyncIterator[None]":
        yield None

    async def silent(*_: object) -> hand.RouterStatus:
        return hand.RouterStatus(state=RouterState.NO_MAJORITY, majority=False, reason=SILENT, url="https://127.0.0.1:1")

    monkeypatch.setattr(doctor, "router_status", silent)
    launched = SimpleNamespace(version="3.4.23", warning="")
    machine = SimpleNamespace(orders=SimpleNamespace(router=object()), router=router, launched_router=lambda: launched)
    _, check = asyncio.run(doctor.etcd_checks(machine, None))  # type: ignore[arg-type]
    assert check.level == "bad" and "does not answer, though its process is there" in check.sentence
    assert "kill that etcd" in check.sentence


def test_a_full_disk_is_told(joined: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(joined.root)
    assert doctor.disk_check(joined.root).level == "well"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1024**2))
    check = doctor.disk_check(joined.root)
    assert check.level == "bad" and "1 MiB" in check.sentence


def flow_said(**facts: object) -> FlowReport:
    return FlowReport(**{"flow": "f1", "name": "tills", "group": "erp-returns", "on": True, **facts})


@pytest.mark.parametrize(
    ("status", "state", "flow", "leader", "leader_on", "says"),
    [
        pytest.param("leader", "on", {}, "external01", True, "", id="all is well"),
        pytest.param(
            "leader", "off", {"on": False, "reason": "no such folder"}, "external01", False,
            "external01.erp leads, but its inbounds are Off: tills is off: no such folder", id="leader but Off",
        ),
        pytest.param("leader", "partly", {"on": False}, "external01", False, "some inbounds run here and some do not", id="partly"),
        pytest.param(
            "leader", "on", {"silent_since": "2026-11-01T12:03:41Z", "reason": "refused"}, "external01", True,
            "tills has had no answer of its source since 2026-11-01 12:03:41 UTC: refused", id="leader but silent",
        ),
        pytest.param(
            "leader", "on", {"undelivered_since": "2026-11-01T12:03:41Z"}, "external01", True,
            "the target of tills has taken nothing since 2026-11-01 12:03:41 UTC", id="its target is silent",
        ),
        pytest.param("follower", "off", {"on": False}, "external02", True, "", id="another leads"),
        pytest.param(
            "follower", "off", {"on": False}, "external02", False, "external02.erp leads, but not all of its inbounds run",
            id="another leads and is Off",
        ),
        pytest.param("follower", "on", {}, "external02", True, "external01.erp is follower, but its inbounds are On", id="a stray"),
        pytest.param(None, "off", {}, "external02", True, "the process of external01.erp is not running", id="no process"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_leader_is_told_on_the_machine_too(
    joined: Home, status: str | None, state: str, flow: dict[str, object], leader: str, leader_on: bool, says: str
) -> None:
    machine = hand.Machine(joined.root)
    group = machine.named("returns")
    said = GroupReport(group="erp-returns", status=Status(status or "follower"), state=State(state), reason="as decided")
    news = KeeperNews(launch="l", keeper_pid=1, pid=2, started_at="", groups=[said], flows=[flow_said(**flow)])
    sessions = {
        f"{name}.erp": (
            SessionRecord("l:1", 1, f"{name}.erp", 3, {"erp-returns": GroupMark(True, leader_on and name == leader, Preference.NONE)}),
            7,
        )
        for name in EXTERNAL
    }
    picture = Picture(ControlRecord(), 0, LeaderRecord(f"{leader}.erp", "l:1", Cause.FIRST), 5, sessions)
    found = hand._group_status(machine, group, picture, news if status else None, set(sessions))
    assert found.problem.startswith(says) if says else found.problem == ""


def test_a_runtime_that_is_stopped_as_ordered_is_no_trouble(joined: Home) -> None:
    """Doctor says so too."""
    orders = joined.read("orders.json", Orders)
    assert orders is not None
    stopped = [msgspec.structs.replace(order, running=False) for order in orders.runtimes]
    joined.write("orders.json", msgspec.structs.replace(orders, runtimes=stopped))
    machine = hand.Machine(joined.root)
    sessions = {
        "external02.erp": (SessionRecord("l:1", 1, "external02.erp", 3, {"erp-returns": GroupMark(True, True, Preference.NONE)}), 7),
    }
    picture = Picture(ControlRecord(), 0, LeaderRecord("external02.erp", "l:1", Cause.FIRST), 5, sessions)
    assert hand._group_status(machine, machine.named("returns"), picture, None, set(sessions)).problem == ""


# --------------------------------------------------------------------------------------------------------------------- with machines


@pytest.fixture
def landscape(tmp_path: Path, hosts: Callable[[str], Host], portal: LittlePortal) -> Iterator[Landscape]:
    landscape = Landscape(tmp_path, hosts, portal)
    eventually(landscape.settled, within=20)
    yield landscape


def on(landscape: Landscape, machine: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return baton_agent(*arguments, "--home", str(landscape.machines[machine].home))


def told(landscape: Landscape, machine: str) -> dict[str, object]:
    done = on(landscape, machine, "status", "--json")
    found = json.loads(done.stdout)
    assert done.returncode in (0, 1), done.stderr
    return found


@pytest.mark.journey
def test_a_group_is_switched_disabled_and_enabled_while_the_portal_is_away_and_history_hears_of_it(landscape: Landscape) -> None:
    leader, follower = landscape.settled()
    landscape.portal.leave()
    landscape.portal.reports.clear()

    before = eventually(lambda: (said := told(landscape, leader))["groups"][0]["problem"] == "" and said)
    group = before["groups"][0]
    assert (group["leader"], before["agent_running"]) == (f"{leader}.erp", True)
    assert [member["session"] for member in group["members"]] == ["fresh", "fresh"]
    assert (group["here"]["status"], group["here"]["state"]) == ("leader", "on")
    assert before["router"]["majority"] is True
    words = eventually(lambda: (said := on(landscape, follower, "status")).returncode == 0 and said)
    assert f"erp/erp-orders: led by {leader}.erp, epoch {epoch_words(group['epoch'])}" in words.stdout
    assert "here       follower, off" in words.stdout
    assert told(landscape, "core01")["groups"] == []

    switched = on(landscape, leader, "switch", "erp-orders", "--to", follower)
    assert (switched.returncode, switched.stderr) == (0, "")
    assert switched.stdout == f"erp/erp-orders: {follower}.erp leads.\n"
    after = told(landscape, leader)["groups"][0]
    assert after["leader"] == f"{follower}.erp" and after["epoch"] > group["epoch"]
    assert on(landscape, leader, "switch", "erp-orders", "--to", follower).stdout.endswith("leads already.\n")

    disabled = on(landscape, follower, "disable", "erp-orders")
    assert disabled.returncode == 0, disabled.stderr
    assert f"{follower}.erp is disabled" in disabled.stdout and f"{leader}.erp leads" in disabled.stdout
    assert told(landscape, follower)["groups"][0]["here"]["status"] == "disabled"
    refused = on(landscape, leader, "switch", "erp/erp-orders", "--to", follower)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "disabled; enable it first" in refused.stderr
    enabled = on(landscape, leader, "enable", "erp-orders", "--machine", follower)
    assert (enabled.returncode, enabled.stdout) == (0, f"erp/erp-orders: {follower}.erp is enabled.\n")

    landscape.portal.arrive()
    eventually(lambda: landscape.settled() == (leader, follower))
    events = {event.epoch: event for reports in landscape.portal.reports.values() for report in reports for event in report.events}
    told_causes = [(events[epoch].cause, events[epoch].runtime.split(".")[0]) for epoch in sorted(events)]
    assert told_causes[-2:] == [(Cause.SWITCH, follower), (Cause.DISABLE, leader)]
    actors = [events[epoch].actor for epoch in sorted(events)][-2:]
    assert re.fullmatch(rf"\S+ on {leader}", actors[0]) and re.fullmatch(rf"\S+ on {follower}", actors[1])


@pytest.mark.journey
def test_doctor_tells_what_is_wrong_and_a_wish_without_a_majority_is_refused(landscape: Landscape) -> None:
    leader, follower = landscape.settled()
    healthy = on(landscape, leader, "doctor")
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    for words in ("credential", "majority of its 3 members", f"{follower} is reached", "verifies", "runs and is ready", "boot-time clock"):
        assert words in healthy.stdout
    landscape.portal.forgotten.add(leader)
    assert "does not accept this machine's credential" in on(landscape, leader, "doctor").stdout

    landscape.portal.leave()
    landscape.machines[leader].kill_agent()
    for name in NAMES:
        if name != leader:
            landscape.machines[name].kill_agent()
            landscape.machines[name].end_lifeline()
    assert all(landscape.machines[name].all_gone(12) for name in NAMES if name != leader)
    time.sleep(2)
    ill = on(landscape, leader, "doctor", "--json")
    assert ill.returncode == 1
    bad = {check["name"]: check["sentence"] for check in json.loads(ill.stdout) if check["level"] == "bad"}
    assert {"agent", "portal", "majority", "peer"} <= bad.keys(), bad
    assert f"{follower} cannot be reached at 127.0.0.1:" in bad["peer"] or "core01 cannot be reached" in bad["peer"]
    assert "refused" in bad["peer"], "by what error"

    alone = on(landscape, leader, "status")
    assert alone.returncode == 1
    assert "NO MAJORITY" in alone.stdout and "here       isolated, off" in alone.stdout and "Agent    NOT running" in alone.stdout
    for name in (follower, "core01"):
        assert re.search(rf"{name} cannot be reached on 127\.0\.0\.1:\d+ since \d\d:\d\d:\d\d UTC \(", alone.stdout), alone.stdout
    who = next(line for line in alone.stdout.splitlines() if "ATTENTION" in line)
    assert "who leads cannot be told" in who and f"{follower} cannot be reached on" in who
    told = {peer["machine"]: peer for peer in json.loads(on(landscape, leader, "status", "--json").stdout)["peers"]}
    seen = {peer["machine"]: peer for peer in json.loads((landscape.machines[leader].home / "peers.json").read_text())["peers"]}
    assert not told[follower]["reachable"]
    if not seen[follower]["reachable"]:
        assert told[follower]["since"] == seen[follower]["since"], "since when the agent has seen it so, not since now"
    for act in ("switch", "disable"):
        refused = on(landscape, leader, act, "erp-orders")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "router" in refused.stderr
        assert "Without a majority of the routers no wish reaches a group" in refused.stderr, refused.stderr
