"""The inbound `command`: real programs under real guards."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from runtimes.process.connectors import command as command_module
from runtimes.process.connectors import program
from runtimes.process.connectors.base import ConfigError, NotReady, Setting
from runtimes.process.connectors.command import ALLOWED_ENV, CommandInbound
from runtimes.process.connectors.program import LINE_LIMIT
from runtimes.process.flows import Flow
from runtimes.process.permits import Duty, boot_clock
from runtimes.protocol import Component, ComponentKind, FlowSpec, Timing
from tests import PATIENCE
from tests.runtimes.process.lab import ROOT, folder, until

EPOCH = 10**12 + 7


def command(script: str, **settings: str) -> Component:
    rows = "\n".join(["-u", "-c", "exec(" + json.dumps(textwrap.dedent(script)) + ")"])
    return Component(kind=ComponentKind.COMMAND, settings={"program": sys.executable, "arguments": rows, **settings})


def setting(component: Component, tmp_path: Path) -> Setting:
    return Setting("f1", "till-sales", component, "inbound", "external01.erp", "external01", tmp_path / "data", structlog.get_logger())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] not in "ZX"
    except OSError:
        return False


def pids_in(path: Path, count: int) -> list[int]:
    def found() -> list[int]:
        pids = [int(line) for line in path.read_text().split()] if path.exists() else []
        return pids if len(pids) >= count else []

    return until(found, 5)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., tuple[Flow, Duty]]]:
    made: list[tuple[Flow, Duty]] = []

    def start(inbound: Component, until_boot: float = float("inf"), outbound: Component | None = None) -> tuple[Flow, Duty]:
        spec = FlowSpec(
            id="f1", name="till-sales", version="1", inbound=inbound, outbound=outbound or folder(tmp_path / "inbox"), group="g"
        )
        log = structlog.get_logger()
        flow = Flow(spec, key="external01.erp", machine="external01", data=tmp_path / "data", changed=lambda: None, log=log)
        duty = Duty("g", "orders", EPOCH, until_boot)
        flow.open()
        flow.start(duty)
        made.append((flow, duty))
        return flow, duty

    yield start
    for flow, duty in made:
        duty.void()
        flow.abort()
        flow.close()
    until(lambda: not any(flow.busy for flow, _ in made), 8)


def arrived(tmp_path: Path) -> dict[str, bytes]:
    """By name, with the id before it."""
    return {path.name: path.read_bytes() for path in (tmp_path / "inbox").glob("[0-9a-f]*-*")}


# ------------------------------------------------------------------------------------------------------------------- the contract


def test_a_program_learns_who_it_works_for_and_nothing_else(
    tmp_path: Path, run: Callable[..., tuple[Flow, Duty]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "of somebody else")
    script = """
        import json, os, sys, time
        print(json.dumps({"id": 1, **dict(os.environ), "stdin": sys.stdin.read()}))
        time.sleep(60)
    """
    run(command(script, items="lines", environment="TOPIC=a=b\nKEY=s3cret"))
    until(lambda: arrived(tmp_path), 5, "its line arrives")
    (line,) = arrived(tmp_path).values()
    facts = json.loads(line)
    assert (facts["BATON_GROUP"], facts["BATON_GROUP_ID"], facts["BATON_EPOCH"]) == ("orders", "g", str(EPOCH))
    assert (facts["BATON_FLOW"], facts["BATON_FLOW_ID"], facts["BATON_RUNTIME"]) == ("till-sales", "f1", "external01.erp")
    assert facts["BATON_INSTANCE"].startswith(f"f1-{EPOCH}-") and facts["BATON_MESSAGE_PREFIX"] == "f1-"
    assert (facts["TOPIC"], facts["KEY"], facts["stdin"]) == ("a=b", "s3cret", "")
    assert "DATABASE_PASSWORD" not in facts and "BATON_CONTROL_FD" not in facts


def test_a_program_starts_with_no_signal_ignored(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    """Python ignores SIGPIPE, and what is ignored is inherited: in a pipeline `yes | head -n 1` the first would not end as it should."""
    script = 'yes | head -n 1 > /dev/null; echo "${PIPESTATUS[0]} $(grep SigIgn /proc/self/status)"; sleep 60'
    settings = {"program": "/bin/bash", "arguments": f"-c\n{script}", "items": "lines"}
    run(Component(kind=ComponentKind.COMMAND, settings=settings))
    until(lambda: arrived(tmp_path), 5, "its line arrives")
    (line,) = arrived(tmp_path).values()
    status, _, ignored = line.decode().split()
    settable = sum(1 << number - 1 for number in signal.valid_signals())  # two belong to the C library, which may have inherited its own
    assert (int(status), int(ignored, 16) & settable) == (128 + signal.SIGPIPE, 0)


def test_lines_are_items_json_with_an_id_keeps_it_over_restarts_and_errors_go_to_the_log(
    tmp_path: Path, run: Callable[..., tuple[Flow, Duty]], capsys: pytest.CaptureFixture[str]
) -> None:
    script = """
        import sys
        print("plain"); print('{"id": "A-1", "total": 3}'); print(""); sys.stdout.write("no line break at the end")
        print("to the log", file=sys.stderr)
    """
    flow, _ = run(command(script, items="lines", again_seconds="0.2"))
    until(lambda: flow.report().delivered >= 6, 6, "two starts, three items each")
    contents = list(arrived(tmp_path).values())
    assert contents.count(b"plain") >= 2, "a line without an id is another one each time"
    assert contents.count(b'{"id": "A-1", "total": 3}') == 1, "the same id gives the same item"
    assert contents.count(b"no line break at the end") >= 2
    assert "to the log" in capsys.readouterr().out


def test_a_line_is_acknowledged_once_the_target_has_it(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    script = f"""
        import json, sys, pathlib
        print('{{"id": "A-1"}}')
        answer = json.loads(sys.stdin.readline())
        there = len(list(pathlib.Path({str(tmp_path / "inbox")!r}).iterdir()))
        print(json.dumps({{"id": "seen", "answer": answer, "there": there}}))
        sys.stdin.read()
    """
    flow, _ = run(command(script, items="lines", acknowledge="yes"))
    until(lambda: flow.report().delivered == 2, 5)
    (seen,) = [json.loads(data) for data in arrived(tmp_path).values() if b"answer" in data]
    assert seen["answer"]["line"] == 1 and len(seen["answer"]["delivered"]) == 32 and seen["there"] == 1


def test_a_program_that_never_reads_its_acknowledgements_holds_nobody_up(
    tmp_path: Path, run: Callable[..., tuple[Flow, Duty]], capsys: pytest.CaptureFixture[str]
) -> None:
    script = """
        import time
        for number in range(3000): print(number)
        time.sleep(60)
    """
    flow, duty = run(command(script, items="lines", acknowledge="yes"), outbound=Component(kind=ComponentKind.LOG))
    until(lambda: flow.report().delivered == 3000, 10, "more than its standard input holds unread")
    duty.stop_taking()
    flow.stop()
    until(lambda: not flow.busy, 3, "it stops in time")
    assert capsys.readouterr().out.count("does not read its standard input: acknowledgements are dropped") == 1


def test_a_program_that_floods_the_log_has_to_wait_and_stops_in_time(
    tmp_path: Path, run: Callable[..., tuple[Flow, Duty]], capsys: pytest.CaptureFixture[str]
) -> None:
    flow, duty = run(Component(kind=ComponentKind.COMMAND, settings={"program": "yes", "arguments": "flood"}))
    until(lambda: flow.on, 5)
    time.sleep(1.0)
    duty.stop_taking()
    flow.stop()
    until(lambda: not flow.busy, 1, "it stops in time")
    said = capsys.readouterr().out
    assert "writes more than 500 lines a second for the log: it has to wait" in said
    assert 50 <= said.count("flood ") <= 3000, "some hundreds a second, and what stood in the pipe"


def test_what_a_program_wrote_before_anybody_listened_is_read_too() -> None:
    """A busy computer may let it write for a while before the thread that reads runs."""
    reading, writing = os.pipe()
    os.write(writing, b"a line\n" * 5000)
    os.close(writing)
    lines: list[bytes] = []
    over = threading.Event()
    over.set()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        program._read(pipe, program.Paced(lines.append, over))
    assert lines.count(b"a line") == 5000


def test_a_line_that_is_too_long_is_moved_aside_and_the_next_arrives(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    flow, _ = run(command(f"print('x' * {LINE_LIMIT * 3}); print('next'); import time; time.sleep(60)", items="lines"))
    until(lambda: b"next" in arrived(tmp_path).values(), 5)
    until(lambda: flow.report().failed == 1, 5)
    reasons = [json.loads(path.read_text()) for path in (tmp_path / "data" / "errors" / "f1").glob("*.reason.json")]
    assert "longer than" in reasons[0]["reason"] and reasons[0]["tries"] == 3


def test_files_it_puts_into_its_folder_are_items(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    script = """
        import os, pathlib, time
        out = pathlib.Path(os.environ["BATON_OUTBOX"])
        (out / ".half").write_text("not yet")
        (out / "whole").write_text("<x/>")
        time.sleep(60)
    """
    run(command(script, items="folder"))
    until(lambda: list(arrived(tmp_path).values()) == [b"<x/>"], 5)
    until(lambda: [path.name for path in (tmp_path / "data" / "outbox" / "f1").iterdir()] == [".half"], 2)


def test_half_a_line_of_a_killed_program_is_no_item_and_is_kept(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    """What is written in more than one piece is cut by a kill."""
    script = """
        import os, signal, sys, time
        print('{"id": "A-1"}')
        sys.stdout.write('{"id": "A-2", "tot'); sys.stdout.flush()
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    flow, _ = run(command(script, items="lines", again_seconds="60"))
    until(lambda: "killed by signal 9" in flow.reason, 5)
    failures = flow._inbound.failures
    until(lambda: failures.listed()[1], 5, "what came of it is kept, with the reason")
    kept = failures.listed()[1][0]
    assert kept.reason == "the command was killed before it had written this line to its end"
    assert failures.content(kept.key, 100)[0] == b'{"id": "A-2", "tot'
    until(lambda: flow.report().delivered >= 2, 5, "the next start says the first line again")
    assert set(arrived(tmp_path).values()) == {b'{"id": "A-1"}'}


def test_files_that_a_program_writes_when_it_is_told_to_stop_are_delivered(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    """They would wait here until this machine leads again."""
    script = """
        import os, pathlib, signal, sys, time
        def end(*_):
            (pathlib.Path(os.environ["BATON_OUTBOX"]) / "last").write_text("<last/>")
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        (pathlib.Path(os.environ["BATON_OUTBOX"]) / "first").write_text("<first/>")
        time.sleep(60)
    """
    flow, duty = run(command(script, items="folder", stop_seconds="0.4"))
    until(lambda: arrived(tmp_path), 5)
    duty.stop_taking()
    flow.stop()
    until(lambda: not flow.busy, Timing().drain, "within the drain limit")
    assert sorted(arrived(tmp_path).values()) == [b"<first/>", b"<last/>"]


# ---------------------------------------------------------------------------------------------------------------------- stopping

TREE = """
    import os, pathlib, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, {on_term})
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"],
        start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
            os.environ.clear()
            time.sleep(100)
        os._exit(0)
    open({pids!r}, "a").write(f"{{os.getpid()}}\\n{{child.pid}}\\n")
    print("started", flush=True)
    time.sleep(100)
"""


def test_it_is_asked_to_stop_and_what_it_took_before_still_arrives(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    script = """
        import signal, sys, time
        def end(*_):
            print("last words"); sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("first")
        time.sleep(60)
    """
    flow, duty = run(command(script, items="lines"))
    until(lambda: b"first" in arrived(tmp_path).values(), 5)
    duty.stop_taking()
    flow.stop()
    until(lambda: not flow.busy, 3, "it let go well before the drain limit")
    assert b"last words" in arrived(tmp_path).values() and not flow.on


def test_its_whole_tree_is_killed_after_the_drain_limit_also_grandchildren_in_sessions_of_their_own(
    tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]
) -> None:
    pids = tmp_path / "pids"
    flow, duty = run(command(TREE.format(on_term="signal.SIG_IGN", pids=str(pids)), stop_seconds="0.5"))
    tree = pids_in(pids, 3)
    until(lambda: flow.on, 5)
    assert all(alive(pid) for pid in tree)
    began = time.monotonic()
    duty.stop_taking()
    flow.stop()
    time.sleep(0.3)
    assert all(alive(pid) for pid in tree), "it has its drain limit"
    until(lambda: not flow.busy, 3)
    assert not any(alive(pid) for pid in tree) and time.monotonic() - began < 2


def test_an_error_while_it_stops_keeps_nobody_from_taking_over(
    run: Callable[..., tuple[Flow, Duty]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed item beyond its retention, say, that this user may not remove."""
    met: list[str] = []

    def failing(act: str) -> Callable[..., Any]:
        real = getattr(CommandInbound, act)

        def once(inbound: CommandInbound, *given: Duty) -> Any:
            if act in met:
                return real(inbound, *given)
            met.append(act)
            raise PermissionError(13, "Permission denied")

        return once

    flow, duty = run(command("import time; time.sleep(60)"))
    until(lambda: flow.on, 5)
    for act in ("stopped", "stop"):
        monkeypatch.setattr(CommandInbound, act, failing(act))
    duty.stop_taking()
    flow.stop()
    until(lambda: not flow.busy, 4)
    assert sorted(met) == ["stop", "stopped"] and not flow.on


def test_however_long_it_may_take_to_stop_a_hand_over_does_not_fail_for_it(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    """Also with a target that takes nothing of what it said last."""
    script = """
        import signal, time
        signal.signal(signal.SIGTERM, lambda *_: print("last words"))
        print("begun")
        while True: time.sleep(1)
    """
    flow, duty = run(command(script, items="lines", stop_seconds="30"))
    until(lambda: arrived(tmp_path), 5)
    shutil.rmtree(tmp_path / "inbox")
    (tmp_path / "inbox").write_text("no folder any more")
    duty.stop_taking()
    flow.stop()
    until(lambda: not flow.busy, Timing().drain, "within the drain limit")


def test_the_end_of_the_program_ends_what_it_left_behind_and_it_starts_again(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    pids = tmp_path / "pids"
    flow, _ = run(command(TREE.format(on_term="signal.SIG_DFL", pids=str(pids))))
    tree = pids_in(pids, 3)
    main = next(pid for pid in tree if b"exec(" in Path(f"/proc/{pid}/cmdline").read_bytes() and os.getsid(pid) == pid)
    for pid in tree:
        if pid == main or alive(pid):
            os.kill(main, signal.SIGKILL)
            break
    until(lambda: "exit" in flow.reason or "signal 9" in flow.reason, 3, "it says why")
    until(lambda: len(pids_in(pids, 3)) == 6, 5, "it starts again")
    assert not any(alive(pid) for pid in tree)


@pytest.mark.parametrize("frozen", [pytest.param(False, id="the process lives"), pytest.param(True, id="nobody feeds the permit any more")])
def test_at_the_end_of_the_permit_the_tree_is_dead(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]], frozen: bool) -> None:
    pids = tmp_path / "pids"
    ends = boot_clock() + 2.0
    flow, duty = run(command(TREE.format(on_term="signal.SIG_IGN", pids=str(pids))), ends)
    tree = pids_in(pids, 3)
    if not frozen:
        duty.void()
        flow.abort()
        until(lambda: not any(alive(pid) for pid in tree), 0.1)
        assert boot_clock() < ends
        return
    while boot_clock() < ends:
        time.sleep(0.01)
    until(lambda: not any(alive(pid) for pid in tree), 0.1, "its guard looks at the permit itself")


def test_a_killed_guard_leaves_nothing_running(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    pids = tmp_path / "pids"
    flow, _ = run(command(TREE.format(on_term="signal.SIG_IGN", pids=str(pids)).replace("os.environ.clear()", ""), again_seconds="60"))
    tree = pids_in(pids, 3)
    inbound: Any = flow._inbound
    os.kill(inbound._program._guard.pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in tree), 3)


def test_a_program_dies_with_a_killed_runtime_process(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"""
        import structlog, time
        from pathlib import Path
        from tests.runtimes.process.test_command import *
        from runtimes.process.permits import Duty
        home = Path({str(tmp_path)!r})
        inbound = CommandInbound(setting(command(TREE.format(on_term="signal.SIG_IGN", pids=str(home / "pids"))), home))
        inbound.prepare()
        inbound.begin(Duty("g", "orders", 5, float("inf")))
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, env={**os.environ, "DJANGO_SETTINGS_MODULE": ""})
    tree = pids_in(pids, 3)
    process.kill()
    process.wait(5)
    until(lambda: not any(alive(pid) for pid in tree), 2)


# ------------------------------------------------------------------------------------------------------------- health and restarts


def test_a_failing_program_backs_off_and_says_so(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    script = f"""
        import sys
        with open({str(tmp_path / "starts")!r}, "a") as file: file.write("x")
        print("cannot reach the feed\\n", file=sys.stderr)
        raise SystemExit(3)
    """
    flow, _ = run(command(script))
    says = r"the command ended: exit status 3 \(it said last: “cannot reach the feed”\); next start at (\d\d):(\d\d):(\d\d) UTC"
    moments: list[int] = []

    def told() -> bool:
        if found := re.fullmatch(says, flow.reason):
            hours, minutes, seconds = map(int, found.groups())
            moment = 3600 * hours + 60 * minutes + seconds
            moments.extend([moment] if moment not in moments else [])
        return len(moments) == 2

    until(told, 20, "a moment, and another")
    assert (moments[1] - moments[0]) % 86400 >= 2, "the back-off doubles"
    assert len((tmp_path / "starts").read_text()) >= 2
    assert flow.report().last_poll == "", "a start is no answer"


def test_a_program_that_fails_at_every_start_is_not_on_until_it_has_run_for_a_while(
    tmp_path: Path, run: Callable[..., tuple[Flow, Duty]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_module, "SOUND_SECONDS", 3.0)
    monkeypatch.setattr(command_module, "BACKOFF_SECONDS", 0.25)
    script = f"""
        import pathlib, time
        time.sleep(60 if pathlib.Path({str(tmp_path / "mended")!r}).exists() else 0.1)
        raise SystemExit(3)
    """
    flow, _ = run(command(script))
    until(lambda: flow.on, 5, "it runs at first")
    until(lambda: not flow.on and "exit status 3" in flow.report().reason, 5)
    seen, until_then = [], time.monotonic() + 20
    inbound = getattr(flow, "_inbound")  # noqa: B009
    while inbound._backoff < 2.0 and time.monotonic() < until_then:  # its third end
        seen.append((flow.on, "exit status 3" in flow.reason))
        time.sleep(0.01)
    assert set(seen) == {(False, True)}, "neither On nor without its reason while it is tried again"
    assert "items wait in the source" not in flow.reason, "of a program nobody knows that"
    assert flow.report().last_poll == "", "it was started, and never answered"
    (tmp_path / "mended").touch()
    until(lambda: flow.on and flow.reason == "", 12, "once it has run for a while")


def test_a_program_that_ends_well_and_starts_again_is_on_all_the_time(run: Callable[..., tuple[Flow, Duty]]) -> None:
    flow, _ = run(command("pass", again_seconds="0.5"))
    until(lambda: flow.on, 5)
    for _ in range(60):
        assert (flow.on, flow.reason) == (True, "")
        time.sleep(0.02)


def test_a_program_that_goes_into_the_background_is_told_to_stay(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    script = f"""
        import os, pathlib, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                with open({str(tmp_path / "pids")!r}, "a") as file: file.write(str(os.getpid()) + " ")
                time.sleep(60)
            os._exit(0)
        time.sleep(0.3)
    """
    flow, _ = run(command(script))
    says = "the command ended: exit status 0, and left processes behind (1), which were killed: let it stay in the foreground"
    until(lambda: says in flow.reason and "next start at" in flow.reason, 5)
    assert not any(alive(pid) for pid in pids_in(tmp_path / "pids", 1))


def test_a_program_whose_clock_was_set_back_is_not_taken_for_ill(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    script = """
        import os, time
        while True:
            behind = time.time() - 86400  # as a step of the clock would leave it
            os.utime(os.environ["BATON_HEALTH_FILE"], (behind, behind)); time.sleep(0.1)
    """
    flow, _ = run(command(script, health_seconds="0.8"))
    time.sleep(2.5)
    assert flow.on and flow.reason == ""


def test_a_program_that_gives_no_sign_of_health_is_ended_and_started_again(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    script = """
        import os, pathlib, time
        for _ in range(4):
            pathlib.Path(os.environ["BATON_HEALTH_FILE"]).touch(); time.sleep(0.3)
        time.sleep(60)
    """
    flow, _ = run(command(script, health_seconds="0.8"))
    time.sleep(1.2)
    assert flow.on and flow.reason == "", "while it touches its file all is well"
    until(lambda: "no sign of health" in flow.reason, 4)


def test_nothing_is_started_beside_a_program_that_gives_no_sign_of_health_and_does_not_end(
    tmp_path: Path, run: Callable[..., tuple[Flow, Duty]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that hangs in a mount that is gone: SIGKILL waits for that."""
    monkeypatch.setattr(program.Program, "kill", lambda _: None)
    monkeypatch.setattr(command_module, "END_SECONDS", 0.1)
    monkeypatch.setattr(command_module, "START_SECONDS", 0.1)
    monkeypatch.setattr(command_module, "SOUND_SECONDS", 0.5)
    script = f"""
        import os, time
        with open({str(tmp_path / "pids")!r}, "a") as file: file.write(str(os.getpid()) + " ")
        time.sleep(3.5)
    """
    flow, _ = run(command(script, health_seconds="0.5"))
    (pid,) = pids_in(tmp_path / "pids", 1)
    until(lambda: "does not end" in flow.reason and not flow.on, 3)
    time.sleep(0.5)
    assert alive(pid) and not flow.on and len(pids_in(tmp_path / "pids", 1)) == 1
    until(lambda: len(pids_in(tmp_path / "pids", 1)) == 2, 8, "it starts again once the former one has ended")
    monkeypatch.undo()


def test_a_missing_or_forbidden_program_makes_a_follower_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Component(kind=ComponentKind.COMMAND, settings={"program": "no-such-program"})
    with pytest.raises(NotReady, match="no-such-program is not on this machine"):
        CommandInbound(setting(missing, tmp_path)).prepare()
    monkeypatch.setenv(ALLOWED_ENV, "/opt/feeds/*:/usr/bin/rsync")
    with pytest.raises(NotReady, match=r"does not allow the program .*python"):
        CommandInbound(setting(command("pass"), tmp_path)).prepare()
    monkeypatch.setenv(ALLOWED_ENV, os.path.realpath(sys.executable))
    CommandInbound(setting(command("pass"), tmp_path)).prepare()


def test_a_program_that_runs_as_another_user_is_refused_where_it_could_not_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program_file = tmp_path / "as-root"
    program_file.write_text("#!/bin/sh\n")
    program_file.chmod(0o4755)
    inbound = CommandInbound(setting(Component(kind=ComponentKind.COMMAND, settings={"program": str(program_file)}), tmp_path))
    inbound.prepare()
    owner = program_file.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(NotReady, match="runs as another user"):
        inbound.check()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param({}, "setting program .* is missing", id="no program"),
        pytest.param({"program": "x", "items": "maybe"}, "is none of none, lines, folder", id="an unknown word"),
        pytest.param({"program": "x", "environment": "NAME"}, "a line without '='", id="no value"),
        pytest.param({"program": "x", "stop_seconds": "0"}, "is not a number from", id="no time to stop"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(tmp_path: Path, given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        CommandInbound(setting(Component(kind=ComponentKind.COMMAND, settings=given), tmp_path))


def test_a_stop_loses_no_line_that_the_target_did_not_take(tmp_path: Path) -> None:
    script = "print('a'); print('b'); import time; time.sleep(60)"
    inbound = CommandInbound(setting(command(script, items="lines", stop_seconds="0.3"), tmp_path))
    inbound.prepare()
    duty = Duty("g", "orders", EPOCH, float("inf"))
    inbound.begin(duty)
    until(lambda: len(inbound.poll(duty)) == 2, 5)
    inbound.stop(duty)
    until(inbound.stopped, 3)
    count, kept = inbound.failures.listed()
    assert count == 2 and {item.reason for item in kept} == {"the flow stopped before the target took it"}
    inbound.failures.retry(kept[0].key)
    inbound.begin(duty)
    until(lambda: any(item.id == kept[0].item for item in inbound.poll(duty)), 3)
    (again,) = [item for item in inbound.poll(duty) if item.id == kept[0].item]
    inbound.remove(again, duty)
    assert inbound.failures.listed()[0] == 1 and not any(item.id == kept[0].item for item in inbound.poll(duty))
    inbound.abort()
    inbound.stop(duty)
    until(inbound.stopped, 3)


def test_a_program_that_writes_on_while_it_stops_is_held_back_and_what_it_wrote_is_kept_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "STOPPING_LINES_LIMIT", 500)
    script = """
        import itertools, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for number in itertools.count(1):
            print(number)
    """
    inbound = CommandInbound(setting(command(script, items="lines", stop_seconds="1"), tmp_path))
    inbound.prepare()
    duty = Duty("g", "orders", EPOCH, float("inf"))
    inbound.begin(duty)
    until(lambda: len(inbound.poll(duty)) == 100, 5)
    duty.void()
    inbound.stop(duty)
    most = 0
    began = time.monotonic()
    while not inbound.stopped():
        most = max(most, len(inbound._lines))
        time.sleep(0.01)
    assert most <= 500 and time.monotonic() - began < 10 * PATIENCE
    count, kept = inbound.failures.listed()
    assert count == 101
    (together,) = [item for item in kept if "lines: tried again they go out as one item" in item.reason]
    lines = [int(line) for line in inbound.failures.content(together.key, 10**6)[0].split()]
    assert lines == list(range(101, lines[-1] + 1)) and lines[-1] >= 600, "every line that was read"


def test_lines_that_are_kept_together_bear_the_id_of_none_of_them(tmp_path: Path) -> None:
    """A target that had one of them already would take them all for it."""
    script = """
        import time
        for number in range(150): print('{"id": "%d"}' % number)
        time.sleep(60)
    """
    inbound = CommandInbound(setting(command(script, items="lines", stop_seconds="0.3"), tmp_path))
    inbound.prepare()
    duty = Duty("g", "orders", EPOCH, float("inf"))
    inbound.begin(duty)
    until(lambda: len(inbound.poll(duty)) == 100 and len(inbound._lines) == 50, 5)
    alone = {item.id for item in inbound.poll(duty)}
    of_the_others = {inbound._item(program.Line(b'{"id": "%d"}' % number), duty).id for number in range(100, 150)}
    inbound.stop(duty)
    until(inbound.stopped, 3)
    (together,) = [item for item in inbound.failures.listed()[1] if "these 50 lines" in item.reason]
    assert together.item not in alone | of_the_others


def test_a_program_that_waits_until_its_lines_are_taken_is_not_taken_for_ill(tmp_path: Path, run: Callable[..., tuple[Flow, Duty]]) -> None:
    """With a target that is away it stands in the middle of a write, and can give no sign of health."""
    script = """
        import itertools, os, pathlib
        for number in itertools.count(1):
            pathlib.Path(os.environ["BATON_HEALTH_FILE"]).touch()
            print("%d %s" % (number, "x" * 1000))
    """
    flow, _ = run(command(script, items="lines", health_seconds="1.5"))
    until(lambda: flow.report().delivered > 5, 5)
    (tmp_path / "inbox").rename(tmp_path / "away")
    inbound: Any = flow._inbound
    until(lambda: len(inbound._lines) >= program.LINES_LIMIT, 5)
    first = inbound._program
    time.sleep(2.5)
    assert inbound._program is first and first.ended() is None and "health" not in flow.reason
    (tmp_path / "away").rename(tmp_path / "inbox")
    before = flow.report().delivered
    until(lambda: flow.report().delivered > before + 200, 5, "and goes on by itself")
    assert inbound._program is first


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs do not start, as on a file system that does not answer."""
    folder = Path(program.GUARD).parent
    guard = tmp_path / "guard.py"
    guard.write_text(
        f"import sys, os, time\nsys.path.insert(0, {str(folder)!r})\nimport guard\n"
        f"os.execvp = lambda *_: (open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n'), time.sleep(60))\nguard.main()\n"
    )
    monkeypatch.setattr(program, "GUARD", str(guard))
    return tmp_path / "pids"


def test_a_program_that_does_not_start_is_given_up_and_leaves_nothing(
    tmp_path: Path, run: Callable[..., tuple[Flow, Duty]], hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "START_SECONDS", 0.5)
    flow, _ = run(command("print('x'); import time; time.sleep(60)", items="lines"))
    until(lambda: "cannot be started: it did not start within 0.5 s: its file system may not answer" in flow.reason, 5)
    assert not any(alive(pid) for pid in pids_in(hanging, 1))
    monkeypatch.undo()
    until(lambda: len(arrived(tmp_path)) == 1, 5, "once it can be started it is")


@pytest.mark.parametrize("how", ["hand-over", "the permit's end"])
def test_a_start_that_hangs_holds_up_no_stop(run: Callable[..., tuple[Flow, Duty]], hanging: Path, how: str) -> None:
    flow, duty = run(command("print('x')"))
    pids = pids_in(hanging, 1)
    began = time.monotonic()
    if how == "hand-over":
        duty.stop_taking()
        flow.stop()
    else:
        duty.void()
        flow.abort()
    until(lambda: not flow.busy, 3)
    assert time.monotonic() - began < program.START_SECONDS / 2 and not any(alive(pid) for pid in pids)


def test_a_path_that_does_not_answer_holds_up_nobody_either(run: Callable[..., tuple[Flow, Duty]], monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()
    monkeypatch.setattr(command_module, "START_SECONDS", 0.3)
    real = CommandInbound._resolved
    asked: list[float] = []

    def resolved(inbound: CommandInbound) -> str:
        asked.append(time.monotonic())
        if len(asked) > 1:  # it was there when it was prepared
            gone.wait(20)
        return real(inbound)

    monkeypatch.setattr(CommandInbound, "_resolved", resolved)
    monkeypatch.setattr(CommandInbound, "check", lambda inbound: None)
    flow, _ = run(command("import time; time.sleep(60)"))
    until(lambda: "its file system does not answer" in flow.reason, 5)
    time.sleep(1.5)
    assert len(asked) == 2, "one look at a time"
    gone.set()
    until(lambda: flow.on, 5)
