"""Commands on this machine: those of its own list, once, with a time-out, and with nothing left running."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtimes.agent import linux
from runtimes.agent.commands import LINES_PER_REPORT, Commands, NotListed, listed
from runtimes.agent.home import Home
from runtimes.protocol import CommandOrder, CommandReport, CommandStatus
from tests.runtimes.agent.conftest import disk_full

LIST = '''
[hello]
run = ["/bin/sh", "-c", "echo one; echo two >&2; echo $BATON_MACHINE; echo secret=$SECRET"]
[fails]
run = ["/bin/sh", "-c", "exit 3"]
[sleeps]
run = ["/bin/sh", "-c", "trap '' TERM; sleep 60 & echo $!; wait; sleep 60"]
timeout_seconds = 0.5
[long]
run = ["/bin/sh", "-c", "sleep 60"]
[much]
run = ["/bin/sh", "-c", "seq 1 1200"]
[bad]
run = "echo"
[tells]
run = ["/bin/sh", "-c", """
  echo login with hunter2-of-erp
  printf '%2040s' ' '; printf hunter2-of-erp; printf '%20000s' x; printf hunter2; sleep 0.1; echo -of-erp
  echo aHVudGVyMi1vZi1lcnA="""]
'''


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "agent")
    path = made.root / "commands.toml"
    path.write_text(LIST)
    path.chmod(0o600)
    return made


def order(name: str, key: str = "1", seconds: float = 20) -> CommandOrder:
    return CommandOrder(id=key, name=name, timeout_seconds=seconds)


def test_the_names_that_would_run_are_told_and_the_file_is_read_again_when_it_changed(home: Home) -> None:
    commands, path = Commands(home, lambda: None), home.root / "commands.toml"
    assert commands.names() == ["fails", "hello", "long", "much", "sleeps", "tells"]  # bad has no list of words
    path.write_text("[one]\nrun = ['/bin/true']\n")
    assert commands.names() == ["one"]
    path.chmod(0o666)
    assert commands.names() == [], "a list that others may write lets nothing run"
    path.unlink()
    assert commands.names() == []


def test_a_command_that_could_be_run_twice_is_not_begun(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "write_atomically", disk_full)
    told, lines = run(home, "hello")
    assert (told.status, lines) == (CommandStatus.FAILED, [])
    assert told.reason.startswith("hello was not begun: the agent's disk is full")


async def until_ended(commands: Commands) -> tuple[CommandReport, list[str]]:
    lines: list[str] = []
    for _ in range(2000):
        (told,) = commands.report()
        assert told.first == len(lines)
        lines += told.lines
        commands.stored([told])
        if told.status is not CommandStatus.RUNNING:
            return told, lines
        await asyncio.sleep(0.02)
    raise AssertionError("it did not end")


def run(home: Home, name: str, seconds: float = 20) -> tuple[CommandReport, list[str]]:
    async def work() -> tuple[CommandReport, list[str]]:
        commands = Commands(home, lambda: None, "external01")
        commands.take([order(name, seconds=seconds)])
        return await until_ended(commands)

    return asyncio.run(work())


def test_a_listed_command_runs_and_its_output_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    told, lines = run(home, "hello")
    assert (told.status, told.exit_status, told.reason) == (CommandStatus.SUCCEEDED, 0, "")
    assert lines == ["one", "two", "external01", "secret="], "nothing of the agent's environment is handed on"


def test_another_exit_status_is_a_failure(home: Home) -> None:
    told, _ = run(home, "fails")
    assert (told.status, told.exit_status, told.reason) == (CommandStatus.FAILED, 3, "fails ended with exit status 3")


@pytest.mark.parametrize(
    ("spoil", "name", "sentence"),
    [
        pytest.param(lambda path: None, "rm", "rm is not on this machine's list of commands", id="not listed"),
        pytest.param(lambda path: path.unlink(), "hello", "this machine has no list of commands", id="no list"),
        pytest.param(lambda path: path.chmod(0o666), "hello", "may be written by others than its owner", id="a list others may write"),
        pytest.param(lambda path: path.write_text("[hello"), "hello", "cannot be read", id="a list that is no TOML"),
        pytest.param(lambda path: None, "bad", "needs run = ", id="a command that is no list of words"),
    ],
)
def test_what_is_not_listed_is_not_run(home: Home, spoil: Callable[[Path], object], name: str, sentence: str) -> None:
    path = home.root / "commands.toml"
    spoil(path)
    with pytest.raises(NotListed, match=sentence):
        listed(path, name)
    told, _ = run(home, name)
    assert told.status is CommandStatus.FAILED and sentence in told.reason


def test_a_time_out_ends_the_whole_tree(home: Home) -> None:
    begun = time.monotonic()
    told, lines = run(home, "sleeps")
    assert (told.status, told.reason) == (CommandStatus.FAILED, "sleeps was ended: it took longer than 0.5 s")
    assert time.monotonic() - begun < 15
    stat = Path(f"/proc/{lines[0]}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z", "its child is gone, or dead and waiting for init"


def test_an_order_that_is_taken_back_ends_the_command(home: Home) -> None:
    async def work() -> None:
        commands = Commands(home, lambda: None)
        commands.take([order("long")])
        await asyncio.sleep(0.3)
        task = commands.commands["1"].task
        assert task is not None and not task.done()
        commands.take([])
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 10)
        assert commands.commands["1"].status is CommandStatus.FAILED
        assert commands.report() == []

    asyncio.run(work())


def test_a_command_is_not_run_twice_even_by_another_agent_process(home: Home) -> None:
    run(home, "hello")

    async def again() -> None:
        commands = Commands(home, lambda: None)
        commands.take([order("hello")])
        assert commands.commands["1"].task is None
        (told,) = commands.report()
        assert told.status is CommandStatus.SUCCEEDED

    asyncio.run(again())


def test_an_agent_that_ended_meanwhile_says_that_the_end_is_not_known(home: Home) -> None:
    async def begin() -> None:
        commands = Commands(home, lambda: None)
        commands.take([order("long")])
        task = commands.commands["1"].task
        assert task is not None
        kept = (home.root / "commands.json").read_bytes()
        await commands.close()
        (home.root / "commands.json").write_bytes(kept)  # as a killed agent leaves it

    asyncio.run(begin())

    async def later() -> None:
        commands = Commands(home, lambda: None)
        commands.take([order("long")])
        (told,) = commands.report()
        assert told.status is CommandStatus.FAILED and "how it ended is not known" in told.reason

    asyncio.run(later())


def test_long_output_comes_in_pieces_without_a_gap_and_the_end_with_the_last(home: Home) -> None:
    told, lines = run(home, "much")
    assert lines == [str(number) for number in range(1, 1201)]
    assert told.status is CommandStatus.SUCCEEDED and len(told.lines) <= LINES_PER_REPORT


def test_no_secret_of_what_runs_here_leaves_the_machine_in_an_output(home: Home) -> None:
    """Also where a line is so long that it is told in parts, or comes in two pieces."""

    async def work() -> tuple[CommandReport, list[str]]:
        commands = Commands(home, lambda: None, "external01", lambda: ["hunter2-of-erp"])
        commands.take([order("tells")])
        return await until_ended(commands)

    told, lines = asyncio.run(work())
    assert (told.status, lines[0], lines[-1]) == (CommandStatus.SUCCEEDED, "login with •••", "•••=")
    assert not [line for line in lines if "hunter2" in line or "-of-erp" in line]
    assert "hunter2" not in (home.root / "commands.json").read_text()
