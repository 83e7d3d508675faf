"""The program itself, without peers: configuration, single nodes, stopping, proven death, and the permit page."""

import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimes.process.config import load
from runtimes.process.connectors.base import ConfigError
from runtimes.process.farewell import end_session
from runtimes.process.permits import boot_clock
from runtimes.protocol import (
    PERMIT,
    BundleContent,
    FlowSpec,
    GroupSpec,
    ProcessCommand,
    RuntimeConfig,
    State,
    Status,
    Timing,
    TlsFiles,
    digest_of,
    encode,
)
from tests.runtimes.process.lab import NAMESPACE, Broker, EtcdCluster, Launched, folder, launch, queue, until


def bundle(flow: FlowSpec, *groups: GroupSpec) -> BundleContent:
    return BundleContent(environment="test", machine="external01", connector="erp", release=1, flows=[flow], groups=list(groups))


def flow(tmp_path: Path, group: str | None = None) -> FlowSpec:
    inbound, outbound = folder(tmp_path / "outbox"), folder(tmp_path / "inbox", receipts=str(tmp_path / "received.jsonl"))
    return FlowSpec(id="f", name="erp-orders", version="1.0.0", inbound=inbound, outbound=outbound, group=group)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Launched]]:
    processes: list[Launched] = []
    yield processes
    for process in processes:
        process.close()


def test_an_ungrouped_flow_starts_by_itself_stops_on_a_wish_and_the_process_ends_when_asked(
    tmp_path: Path, started: list[Launched]
) -> None:
    process = launch(tmp_path, bundle(flow(tmp_path)), "core01.erp", None)
    started.append(process)
    until(lambda: "f" in process.flows and process.flows["f"].on, 5, "it is on")
    (tmp_path / "outbox" / "a").write_bytes(b"x")
    until(lambda: len(list((tmp_path / "inbox").glob("*-a"))) == 1, 3, "it arrives")
    process.command(ProcessCommand(stopped_flows=["f"]))
    until(lambda: not process.flows["f"].on, 2, "it is off")
    assert process.flows["f"].reason == "stopped by a person"
    process.command(ProcessCommand(stopped_flows=[]))
    until(lambda: process.flows["f"].on, 2, "it is on again")
    process.command(ProcessCommand(stop=True))
    assert process.process.wait(5) == 0


def test_a_failover_group_without_a_router_is_off_and_says_so(tmp_path: Path, started: list[Launched]) -> None:
    """Its sibling may run the same bundle, and lead or be without a router too."""
    group = GroupSpec(id="g", name="orders", failover=True, members=["external01.erp", "external02.erp"])
    process = launch(tmp_path, bundle(flow(tmp_path, "g"), group), "external01.erp", None)
    started.append(process)
    until(lambda: "g" in process.groups and "no router" in process.groups["g"].reason, 5, "it says why")
    report = process.groups["g"]
    assert (report.status, report.state, report.ready) == (Status.ISOLATED, State.OFF, False)
    assert (process.ready, process.flows["f"].on) == (False, False)
    process.command(ProcessCommand(stop=True))
    assert process.process.wait(5) == 0


def test_a_disk_that_takes_no_mark_of_the_generation_keeps_no_runtime_from_running(tmp_path: Path, started: list[Launched]) -> None:
    (tmp_path / "external01.erp" / "data" / ".generation.part").mkdir(parents=True)  # cannot be written, as on a full disk
    process = launch(tmp_path, bundle(flow(tmp_path)), "external01.erp", None)
    started.append(process)
    until(lambda: "f" in process.flows and process.flows["f"].on, 5, "it is on")


def test_a_single_node_runs_with_epoch_0_and_tells_the_cause(tmp_path: Path, started: list[Launched]) -> None:
    group = GroupSpec(id="g", name="orders", failover=False, members=["external01.erp", "external02.erp"])
    process = launch(tmp_path, bundle(flow(tmp_path, "g"), group), "external01.erp", None)
    started.append(process)
    until(lambda: "g" in process.groups and process.groups["g"].state == State.ON, 5, "it is on")
    report = process.groups["g"]
    assert (report.status, report.epoch, report.ready) == (Status.SINGLE_NODE, 0, True)
    assert "failover is not on" in report.reason


def test_an_unreachable_router_isolates_and_says_so(tmp_path: Path, router: EtcdCluster, started: list[Launched]) -> None:
    group = GroupSpec(id="g", name="orders", failover=True, members=["external01.erp", "external02.erp"])
    process = launch(tmp_path, bundle(flow(tmp_path, "g"), group), "external01.erp", "https://127.0.0.1:1", tls=router.tls)
    started.append(process)
    until(lambda: "g" in process.groups and "cannot be reached" in process.groups["g"].reason, 5, "it says why")
    assert (process.groups["g"].status, process.groups["g"].state) == (Status.ISOLATED, State.OFF)
    assert not process.ready
    process.process.terminate()
    assert process.process.wait(5) == 0


def test_a_second_process_of_a_runtime_waits_until_the_first_has_stood_still(
    tmp_path: Path, router: EtcdCluster, broker: Broker, started: list[Launched]
) -> None:
    group = GroupSpec(id="g", name="orders", failover=True, members=["external01.erp", "external02.erp"])
    spec = FlowSpec(id="f", name="f", version="1.0.0", inbound=folder(tmp_path / "o"), outbound=queue(broker), group="g")
    first = launch(tmp_path, bundle(spec, group), "external01.erp", router.urls[0], 1, tls=router.tls)
    started.append(first)
    until(first.leads, 5, "it leads")
    permit_until, on = PERMIT.unpack(Path(first.config.permit).read_bytes())
    assert boot_clock() < permit_until < boot_clock() + 0.8 and on == 1
    second = launch(tmp_path, bundle(spec, group), "external01.erp", router.urls[0], 2, tls=router.tls)
    started.append(second)
    until(lambda: "g" in second.groups and "another process" in second.groups["g"].reason, 5, "it says what it waits for")
    time.sleep(1.5)
    assert second.status() == Status.ISOLATED
    until(first.leads, 5, "the first leads on")
    first.kill(keeper=False)
    until(second.leads, 4, "the second leads once the first has stood still")
    assert second.groups["g"].epoch > first.groups["g"].epoch


def test_a_tampered_bundle_is_refused_with_the_remedy(tmp_path: Path, started: list[Launched]) -> None:
    process = launch(tmp_path, bundle(flow(tmp_path)), "core01.erp", None)
    started.append(process)
    Path(process.config.bundle).write_bytes(b"{}")
    with pytest.raises(ConfigError, match="deploy this runtime again"):
        load(next((tmp_path / "core01.erp").glob("config-*.json")))


@pytest.mark.parametrize(
    ("timing", "says"),
    [
        pytest.param(Timing(guard=1.0), "timing: renewal", id="the guard eats the TTL"),
        pytest.param(Timing(renewal=0.9), "timing: renewal", id="the renewal is too slow"),
    ],
)
def test_timing_that_cannot_keep_two_apart_is_refused(tmp_path: Path, timing: Timing, says: str) -> None:
    content = encode(bundle(flow(tmp_path)))
    (tmp_path / "bundle").write_bytes(content)
    config = RuntimeConfig(
        key="a.b", environment="test", machine="a", connector="b", launch="1", bundle=str(tmp_path / "bundle"), digest=digest_of(content),
        release=1, etcd=None, tls=TlsFiles(authority="", machine=""), namespace="/", generation=1, timing=timing,
        data=str(tmp_path), permit=str(tmp_path / "p"),
    )  # fmt: skip
    (tmp_path / "config.json").write_bytes(encode(config))
    with pytest.raises(ConfigError, match=says):
        load(tmp_path / "config.json")


def test_a_flow_that_cannot_be_made_ends_the_process_with_the_reason(tmp_path: Path, started: list[Launched]) -> None:
    broken = FlowSpec(id="f", name="erp-orders", version="1.0.0", inbound=folder(Path("relative")), outbound=folder(tmp_path / "inbox"))
    process = launch(tmp_path, bundle(broken), "core01.erp", None)
    started.append(process)
    assert process.process.wait(5) == 2
    until(lambda: "setting folder of its file inbound is not an absolute path" in process.reason, 2)


def test_end_session_says_what_it_found(router: EtcdCluster) -> None:
    assert "gone already" in end_session(router.urls[0], NAMESPACE, "external01.erp", "l1", router.client, 1.0)
    started = time.monotonic()
    assert "could not be ended within 0.3 s" in end_session("https://127.0.0.1:1", NAMESPACE, "external01.erp", "l1", router.client, 0.3)
    assert time.monotonic() - started < 1


def test_end_session_is_bounded_when_the_router_hangs(router: EtcdCluster) -> None:
    class Silent(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            time.sleep(1.0)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(router.tls.machine)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started = time.monotonic()
        said = end_session(f"https://127.0.0.1:{server.server_address[1]}", NAMESPACE, "external01.erp", "l1", router.client, 0.4)
        assert "could not be ended" in said and time.monotonic() - started < 0.8
        server.shutdown()
