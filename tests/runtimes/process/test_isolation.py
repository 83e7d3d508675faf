"""Run alone: what is remembered of the policy, and three real routers of which the majority dies under two real runtimes."""

from pathlib import Path

import pytest
import structlog

from runtimes.process.isolation import Memory, Remembered
from runtimes.process.records import ControlRecord, Disabled
from runtimes.protocol import (
    PERMIT,
    BundleContent,
    Cause,
    FlowSpec,
    GroupReport,
    GroupRequest,
    GroupSpec,
    IsolationPolicy,
    ProcessCommand,
    RequestKind,
    RequestStatus,
    State,
    Status,
)
from tests.runtimes.process.lab import EtcdCluster, Launched, folder, launch, place, until

ALONE, STOP = IsolationPolicy.RUN_ALONE, IsolationPolicy.STOP
ME = "external01.erp"


@pytest.mark.parametrize(
    ("heard", "remembered"),
    [
        pytest.param([], (STOP, Remembered(False)), id="never heard of: stop"),
        pytest.param([ControlRecord(isolation=ALONE)], (ALONE, Remembered(False)), id="run alone"),
        pytest.param([ControlRecord(isolation=ALONE), ControlRecord()], (STOP, Remembered(False)), id="and stop again"),
        pytest.param([ControlRecord({ME: Disabled("r")}, isolation=ALONE)], (ALONE, Remembered(True)), id="but disabled here"),
        pytest.param(
            [ControlRecord({"external02.erp": Disabled("r")}, isolation=ALONE)], (ALONE, Remembered(False)), id="disabled elsewhere"
        ),
        pytest.param([None], (STOP, Remembered(False)), id="never understood: stop"),
        pytest.param([ControlRecord(isolation=ALONE), None], (ALONE, Remembered(False, unread=True)), id="not understood any more"),
        pytest.param(
            [ControlRecord(isolation=ALONE), None, ControlRecord(isolation=ALONE)], (ALONE, Remembered(False)), id="understood again"
        ),
    ],
)
def test_the_last_word_survives_a_restart(tmp_path: Path, heard: list[ControlRecord | None], remembered: object) -> None:
    memory = Memory(tmp_path / "isolation.json", structlog.get_logger())
    for control in heard:
        memory.learn("g", control, ME)
    memory.close()
    assert Memory(tmp_path / "isolation.json", structlog.get_logger()).recall("g") == remembered


def test_a_damaged_memory_means_stop(tmp_path: Path) -> None:
    (tmp_path / "isolation.json").write_text("{")
    assert Memory(tmp_path / "isolation.json", structlog.get_logger()).recall("g") == (STOP, Remembered(False))


class Two:
    """external01 and external02, each with its own folder, in two groups: `alone` may run alone, `stops` may not."""

    def __init__(self, home: Path, cluster: EtcdCluster) -> None:
        self.home, self.cluster = home, cluster
        self.members = [f"external0{number}.erp" for number in (1, 2)]
        self.launches = 0
        self.processes: dict[int, Launched] = {}

    def start(self, number: int) -> Launched:
        bundle = BundleContent(
            environment="test",
            machine=f"external0{number}",
            connector="erp",
            release=1,
            flows=[
                FlowSpec(
                    id=f"f-{group}",
                    name=group,
                    version="1.0.0",
                    inbound=folder(self.home / f"out-{group}-{number}"),
                    outbound=folder(self.home / f"in-{group}-{number}", receipts=str(self.home / f"receipts-{group}-{number}")),
                    group=group,
                )
                for group in ("alone", "stops")
            ],
            groups=[GroupSpec(id=group, name=group, failover=True, members=self.members) for group in ("alone", "stops")],
        )
        self.launches += 1
        key, etcd = f"external0{number}.erp", self.cluster.urls[number - 1]
        self.processes[number] = launch(self.home, bundle, key, etcd, self.launches, tls=self.cluster.tls)
        return self.processes[number]

    def said(self, number: int, group: str) -> GroupReport:
        return self.processes[number].groups[group]

    def is_now(self, number: int, group: str, status: Status, state: State) -> bool:
        found = self.processes[number].groups.get(group)
        return found is not None and (found.status, found.state) == (status, state)

    def leaders(self, group: str) -> int:
        return sum(self.is_now(number, group, Status.LEADER, State.ON) for number in (1, 2))

    def settled(self, group: str) -> bool:
        follows = sum(self.is_now(number, group, Status.FOLLOWER, State.OFF) for number in (1, 2))
        return self.leaders(group) == 1 and follows == 1

    def set_policy(self, policy: IsolationPolicy) -> None:
        request = GroupRequest(
            id=f"p-{policy}",
            kind=RequestKind.POLICY,
            group="alone",
            machine=None,
            expected_epoch=None,
            cause=Cause.SWITCH,
            actor="operator",
            valid_seconds=30,
            policy=policy,
        )
        outcome = place(self.cluster, 0, request, self.members[0])
        assert outcome.status == RequestStatus.SUCCEEDED, outcome.reason

    def delivers(self, number: int, group: str, name: str) -> None:
        outbox = self.home / f"out-{group}-{number}"
        (outbox / f".{name}").write_text(name)
        (outbox / f".{name}").rename(outbox / name)
        until(lambda: [path for path in (self.home / f"in-{group}-{number}").glob(f"*{name}") if path.read_text() == name], 8, name)


@pytest.mark.journey
def test_without_a_majority_one_group_runs_alone_the_other_stops_and_then_one_leads_again(tmp_path: Path) -> None:
    (tmp_path / "etcd").mkdir()
    cluster = EtcdCluster(tmp_path / "etcd", 3)
    two = Two(tmp_path, cluster)
    try:
        first, second = two.start(1), two.start(2)
        until(lambda: two.settled("alone") and two.settled("stops"), 15)
        two.set_policy(ALONE)
        until(lambda: all(two.said(number, "alone").isolation == ALONE for number in (1, 2)), what="both have heard of the policy")
        epoch = max(two.said(number, "alone").epoch for number in (1, 2))

        cluster.stop(1, 2)  # external01's own router lives but knows no majority; external02's is dead
        for number in (1, 2):
            until(lambda n=number: two.is_now(n, "stops", Status.ISOLATED, State.OFF), what="under stop a member is Off")
            until(lambda n=number: two.is_now(n, "alone", Status.SINGLE_NODE, State.ON), 10, "under run alone it is On by itself")
            said = two.said(number, "alone")
            assert (said.epoch, said.leader) == (0, two.members[number - 1])
            until(lambda n=number: two.processes[n].alone, what="it tells so")
            assert (two.processes[number].alone[-1].group, two.processes[number].alone[-1].until) == ("alone", "")
            assert "isolation policy" in said.reason and "router" in said.reason
            assert two.is_now(number, "stops", Status.ISOLATED, State.OFF)
        two.delivers(1, "alone", "while-alone")
        page = PERMIT.unpack(Path(first.config.permit).read_bytes())
        assert page[1] == 0, "a standing duty has no permit whose end the keeper would watch"

        second.command(ProcessCommand(stop=True))
        until(lambda: second.process.poll() == 0, 8, "a runtime that runs alone stops as asked")
        until(lambda: second.alone[-1].until > second.alone[-1].since, what="and tells when it ended")
        second.close()
        again = two.start(2)
        until(lambda: two.is_now(2, "alone", Status.SINGLE_NODE, State.ON), 15, "a process that starts without contact remembers")
        assert two.is_now(2, "stops", Status.ISOLATED, State.OFF)
        assert again.ready and again.alone[-1].until == ""

        cluster.restart(1, 2)
        until(lambda: two.settled("alone") and two.settled("stops"), 15, "one leads again, one follows")
        assert max(two.said(number, "alone").epoch for number in (1, 2)) >= epoch
        assert [two.said(number, "alone").status for number in (1, 2)].count(Status.SINGLE_NODE) == 0
        for process in (first, again):
            until(
                lambda p=process: p.alone[-1].until > p.alone[-1].since,
                what="it tells when it ended",
            )
        leader = next(number for number in (1, 2) if two.is_now(number, "alone", Status.LEADER, State.ON))
        two.delivers(leader, "alone", "afterwards")
        log = first.log.read_text()
        assert log.index("On without an epoch") < log.index("Off, it ran alone and a majority answers again")
    finally:
        for process in two.processes.values():
            process.close()
        cluster.close()
