"""The agent with real keepers and real child programs, and a real little portal."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from runtimes.protocol import PERMIT, Preference, RuntimeState, Status
from tests.runtimes.agent.conftest import Host, LittlePortal, content, erp, eventually, is_alive

pytestmark = pytest.mark.journey


@pytest.fixture
def running(host: Host, portal: LittlePortal) -> Host:
    """external01 runs release 1 of the ERP connector."""
    portal.order("external01", runtimes=[erp(portal.keep(content()))])
    host.start()
    eventually(host.ready)
    return host


def test_an_order_becomes_a_ready_process(running: Host) -> None:
    runtime = running.runtime()
    assert is_alive(runtime.pid)
    assert (runtime.release, runtime.starts) == (1, 1)
    assert runtime.groups[0].status == Status.FOLLOWER


def test_a_killed_agent_disturbs_nothing_and_its_successor_finds_the_same_process(running: Host, portal: LittlePortal) -> None:
    pid = running.ready().pid
    running.kill_agent()
    time.sleep(0.3)
    assert is_alive(pid)
    portal.reports.clear()
    running.start("--portal", portal.url)
    assert eventually(running.ready).pid == pid


def test_an_agent_ends_within_two_seconds_of_sigterm_and_leaves_its_processes(running: Host) -> None:
    pid = running.ready().pid
    assert running.kill_agent(signal.SIGTERM) < 2.0
    assert is_alive(pid)


def test_a_killed_process_restarts_at_once_and_the_report_says_why(running: Host, portal: LittlePortal) -> None:
    old = running.ready().pid
    killed_at = time.monotonic()
    os.kill(old, signal.SIGKILL)
    new = eventually(lambda: running.ready() if running.runtime().pid not in (old, None) else None, within=3)
    assert time.monotonic() - killed_at < 1.5
    assert new.starts == 2
    absent = [runtime for report in portal.reports["external01"] for runtime in report.runtimes if runtime.pid is None and runtime.starts]
    told = [group.reason for runtime in absent for group in runtime.groups]
    log = running.log.read_text()
    assert "killed by signal 9" in log
    assert not told or "killed by signal 9" in " ".join(told) or "starting" in " ".join(told)


def test_a_process_that_crashes_while_the_agent_is_away_is_restarted_by_the_next_agent(running: Host, portal: LittlePortal) -> None:
    old = running.ready().pid
    running.kill_agent()
    os.kill(old, signal.SIGKILL)
    eventually((running.folder() / "exit.json").exists)
    portal.reports.clear()
    running.start("--portal", portal.url)
    assert eventually(running.ready).pid != old


def write(page: Path, data: bytes) -> None:
    """In place: the keeper has it mapped."""
    with page.open("r+b") as file:
        file.write(data)


def test_a_keeper_that_stands_still_with_its_process_is_not_believed(running: Host) -> None:
    """Its last word was that all is well. A process that goes on without it says On in its permit page."""
    pid = running.ready().pid
    keeper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    time.sleep(4)
    assert running.ready(), "one that has nothing new to say speaks all the same"
    page = running.folder() / "permit"
    for number in (keeper, pid):
        os.kill(number, signal.SIGSTOP)
    try:
        told = eventually(lambda: runtime if (runtime := running.runtime()).state == RuntimeState.HANGING else None, within=5)
        said = f"the keeper of external01.erp has not answered for 3 s (pid {keeper})"
        assert (told.reason, told.groups[0].status, told.groups[0].ready) == (said, Status.ISOLATED, False)
        write(page, PERMIT.pack(time.clock_gettime(time.CLOCK_BOOTTIME) + 60, 1))
        group = eventually(lambda: group if (group := running.runtime().groups[0]).status == Status.FOLLOWER else None, within=5)
        assert (group.ready, group.reason) == (False, said)
    finally:
        write(page, PERMIT.pack(0.0, 0))
        for number in (pid, keeper):
            os.kill(number, signal.SIGCONT)
    assert eventually(running.ready).pid == pid


def test_the_whole_tree_of_a_killed_process_dies_with_it(running: Host, portal: LittlePortal) -> None:
    running.behave("family")
    os.kill(running.ready().pid, signal.SIGKILL)
    eventually((running.folder() / "data" / "pid.grandchild").exists)
    family = [int((running.folder() / "data" / f"pid.{who}").read_text()) for who in ("child", "grandchild")]
    eventually(lambda: running.ready() and running.runtime().starts == 2)
    assert all(map(is_alive, family))
    running.behave("")
    os.kill(running.ready().pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, family)), within=2)


def test_a_killed_keeper_takes_its_process_along_and_what_it_left_is_swept(running: Host) -> None:
    running.behave("family")
    os.kill(running.ready().pid, signal.SIGKILL)
    second = eventually(lambda: running.ready() if running.runtime().starts == 2 else None)
    grandchild = int((running.folder() / "data" / "pid.grandchild").read_text())
    running.behave("")
    keeper = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{second.pid}/status").read_text())[1])
    os.kill(keeper, signal.SIGKILL)
    third = eventually(lambda: running.ready() if running.runtime().starts == 3 else None)
    assert third.pid != second.pid
    assert not is_alive(second.pid)
    assert not is_alive(grandchild)


def test_a_process_that_hangs_while_on_is_killed_when_its_permit_ends(running: Host) -> None:
    running.behave("hang")
    os.kill(running.ready().pid, signal.SIGKILL)
    eventually(lambda: "permit ended" in running.log.read_text(), within=3)
    second = eventually(lambda: running.ready() if running.runtime().starts == 3 else None)
    assert second.reason == ""


def test_three_exits_without_having_been_ready_bring_the_back_off(host: Host, portal: LittlePortal) -> None:
    portal.order("external01", runtimes=[erp(portal.keep(content()))])
    host.behave("crash")
    host.start()
    runtime = eventually(lambda: host.runtime() if host.runtime() and host.runtime().state == RuntimeState.BACKOFF else None)
    assert runtime.starts == 3
    assert "exited with status 3" in runtime.reason
    assert "exited with status 3" in runtime.groups[0].reason
    host.behave("")
    assert eventually(host.ready, within=3).starts == 4


def test_a_process_that_cannot_run_as_configured_says_why(host: Host, portal: LittlePortal) -> None:
    portal.order("external01", runtimes=[erp(portal.keep(content()))])
    host.behave("refuse")
    host.start()
    runtime = eventually(lambda: host.runtime() if host.runtime() and host.runtime().state == RuntimeState.BACKOFF else None)
    assert "exited with status 2: setting time_zone of its timer inbound names no time zone: Mars/Base" in runtime.reason


def test_a_new_release_replaces_the_process_and_preferences_do_not(running: Host, portal: LittlePortal) -> None:
    first = running.ready()
    portal.order("external01", runtimes=[erp(first.digest, preferences={"g1": Preference.LEADER})])
    commands = running.folder() / "data" / "commands"
    eventually(lambda: commands.exists() and '"leader"' in commands.read_text())
    assert running.ready().pid == first.pid
    portal.order("external01", runtimes=[erp(portal.keep(content(2)), 2, preferences={"g1": Preference.LEADER})])
    second = eventually(lambda: running.ready() if running.runtime().release == 2 else None)
    assert second.pid != first.pid
    assert not is_alive(first.pid)


def test_a_restart_counter_restarts_and_a_stop_stops(running: Host, portal: LittlePortal) -> None:
    first = running.ready()
    portal.order("external01", runtimes=[erp(first.digest, restarts=1)])
    second = eventually(lambda: running.ready() if running.runtime().restarts == 1 else None)
    assert second.pid != first.pid
    portal.order("external01", runtimes=[erp(first.digest, restarts=1, running=False)])
    stopped = eventually(lambda: running.runtime() if running.runtime().state == RuntimeState.STOPPED else None)
    assert stopped.pid is None
    assert not is_alive(second.pid)


def test_a_runtime_that_is_no_longer_ordered_is_stopped(running: Host, portal: LittlePortal) -> None:
    pid = running.ready().pid
    portal.order("external01", runtimes=[])
    eventually(lambda: not is_alive(pid))
    eventually(lambda: running.runtime() is None)


def test_a_tampered_bundle_is_refused_and_the_old_one_runs_on(running: Host, portal: LittlePortal) -> None:
    first = running.ready()
    digest = portal.keep(content(2))
    portal.bundles[digest] += b" "
    portal.order("external01", runtimes=[erp(digest, 2)])
    runtime = eventually(lambda: running.runtime() if "does not verify" in running.runtime().reason else None)
    assert digest in runtime.reason
    assert (runtime.pid, runtime.release, runtime.state) == (first.pid, 1, RuntimeState.READY)
    os.kill(first.pid, signal.SIGKILL)
    again = eventually(lambda: running.ready() if running.runtime().starts == 2 else None)
    assert again.release == 1


def test_a_tampered_first_bundle_leaves_the_runtime_failed(host: Host, portal: LittlePortal) -> None:
    digest = portal.keep(content())
    portal.bundles[digest] = b"{}"
    portal.order("external01", runtimes=[erp(digest)])
    host.start()
    runtime = eventually(lambda: host.runtime() if host.runtime() and host.runtime().state == RuntimeState.FAILED else None)
    assert digest in runtime.reason
    assert "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" in runtime.reason
    assert runtime.pid is None


def test_after_a_reboot_everything_comes_back_without_the_portal(running: Host, portal: LittlePortal) -> None:
    before = running.ready().pid
    portal.leave()
    running.kill_agent()
    keeper = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{before}/status").read_text())[1])
    os.kill(keeper, signal.SIGKILL)  # as a power cut: keeper and process at once, sockets and locks stale
    eventually(lambda: not is_alive(before))
    running.start("--portal", portal.url)

    def came_back() -> int | None:
        config = running.folder() / "process.log"
        return config.exists() and config.read_text().count("the stand-in starts") == 2

    eventually(came_back)
    portal.arrive()
    assert eventually(lambda: running.ready() if running.runtime().starts == 2 else None).pid != before


def test_events_wait_on_disk_while_the_portal_is_away(running: Host, portal: LittlePortal) -> None:
    running.behave("event")
    portal.leave()
    os.kill(running.ready().pid, signal.SIGKILL)
    spool = running.home / "spool.json"
    eventually(lambda: spool.exists() and b'"epoch":7' in spool.read_bytes())
    running.kill_agent()
    portal.reports.clear()
    portal.arrive()
    running.start("--portal", portal.url)
    eventually(lambda: any(event.epoch == 7 for report in portal.reports.get("external01", []) for event in report.events))
    eventually(lambda: b'"epoch":7' not in spool.read_bytes())


def test_a_forgotten_credential_is_said_clearly_and_everything_runs_on(running: Host, portal: LittlePortal) -> None:
    pid = running.ready().pid
    portal.forgotten.add("external01")
    eventually(lambda: "does not accept this machine's credential" in running.log.read_text())
    assert is_alive(pid)


def test_the_end_of_the_lifeline_ends_everything_even_a_process_that_ignores_sigterm(running: Host) -> None:
    running.behave("deaf")
    os.kill(running.ready().pid, signal.SIGKILL)
    pid = eventually(lambda: running.ready().pid if running.ready() and running.runtime().starts == 2 else None)
    began = time.monotonic()
    running.end_lifeline()
    assert running.all_gone(within=8)
    assert time.monotonic() - began > 3.5
    assert not is_alive(pid)


def test_the_output_of_a_process_reaches_the_portal(running: Host, portal: LittlePortal) -> None:
    eventually(
        lambda: any(
            line.runtime == "external01.erp" and line.text == "the stand-in starts"
            for report in portal.reports["external01"]
            for line in report.logs
        )
    )


def test_a_second_agent_on_the_same_home_is_refused(running: Host) -> None:
    first, running.agent = running.agent, None
    running.start()
    assert running.agent.wait(5) == 3
    running.agent = first
    assert "one home has one agent" in running.log.read_text()


def test_a_wrong_token_ends_the_agent_with_the_remedy(host: Host, portal: LittlePortal) -> None:
    host.start("--portal", portal.url, "--token", "wrong")
    assert host.agent.wait(5) == 2
    assert "Make a new one on the machine's page" in host.log.read_text()


def test_joining_waits_for_a_portal_that_is_away(host: Host, portal: LittlePortal) -> None:
    portal.leave()
    host.start()
    eventually(lambda: "Joining waits for the portal" in host.log.read_text())
    portal.arrive()
    eventually(lambda: portal.last("external01"))
    assert oct((host.home / "identity.json").stat().st_mode)[-3:] == "600"


def test_a_process_that_stands_still_is_told_within_seconds_and_again_when_it_answers(running: Host, portal: LittlePortal) -> None:
    pid = running.ready().pid
    time.sleep(1)
    os.kill(pid, signal.SIGSTOP)
    stopped_at = time.monotonic()
    hanging = eventually(lambda: running.runtime() if running.runtime().state == RuntimeState.HANGING else None, within=8)
    assert time.monotonic() - stopped_at > 2
    said = f"the process of external01.erp has not answered for 3 s (pid {pid})"
    assert (hanging.pid, hanging.reason) == (pid, said)
    (group,) = hanging.groups
    assert (group.status, group.state, group.ready, group.leader, group.reason) == (Status.ISOLATED, "off", False, None, said)
    # As long as its permit lasts (three seconds in the profile WAN) it would consume if it went on now: that is not told to be Off.
    page = running.folder() / "permit"
    write(page, PERMIT.pack(time.clock_gettime(time.CLOCK_BOOTTIME) + 60, 1))
    group = eventually(lambda: group if (group := running.runtime().groups[0]).status == Status.FOLLOWER else None, within=5)
    assert (group.ready, group.reason) == (False, said)
    write(page, PERMIT.pack(0.0, 0))
    eventually(lambda: running.runtime().groups[0].status == Status.ISOLATED, within=5)
    os.kill(pid, signal.SIGCONT)
    again = eventually(running.ready)
    assert (again.pid, again.starts, again.groups[0].status, again.groups[0].ready) == (pid, 1, Status.FOLLOWER, True)


@pytest.mark.long
def test_a_process_that_stands_still_for_half_a_minute_starts_anew(running: Host) -> None:
    pid = running.ready().pid
    os.kill(pid, signal.SIGSTOP)
    new = eventually(lambda: running.ready() if running.runtime().pid not in (pid, None) else None, within=45)
    assert new.starts == 2
    assert "killed by its keeper: it had not answered for 30 s" in running.log.read_text()


def test_what_was_ordered_to_stop_starts_only_with_what_is_ordered_then(running: Host, portal: LittlePortal) -> None:
    first = running.ready()
    portal.order("external01", runtimes=[erp(first.digest, running=False)])
    eventually(lambda: running.runtime().state == RuntimeState.STOPPED)
    second = portal.keep(content(2))
    data = portal.bundles.pop(second)  # the portal does not give it yet
    portal.order("external01", runtimes=[erp(second, 2)])
    failed = eventually(lambda: running.runtime() if running.runtime().state == RuntimeState.FAILED else None)
    running.kill_agent()
    running.start("--portal", portal.url)
    time.sleep(1.5)
    assert (running.runtime().pid, running.runtime().starts, failed.pid) == (None, 1, None), "not the former release"
    portal.bundles[second] = data
    assert eventually(running.ready, within=15).release == 2
