"""The parts of the stack runner that need no stack: ports, the lock, children, the broker's configuration, health."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.utils import timezone

from portal import broker, children, env, ports, readiness, stack
from portal.models import Heartbeat

MACHINES = stack.Machines(("core01",), "BATON_LIFELINE_FD", "BATON_PRESENCE_FD")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "a home with spaces"
    folder.mkdir()
    return folder


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


# ------------------------------------------------------------------------------------------------------------------- ports


@pytest.fixture(autouse=True)
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every claim on a port ends with its test."""
    made: list[ports.Ports] = []
    start = ports.Ports.__init__

    def remember(self: ports.Ports, *args: object, **options: object) -> None:
        made.append(self)
        start(self, *args, **options)

    monkeypatch.setattr(ports.Ports, "__init__", remember)
    yield
    for book in made:
        book.release()


def test_a_port_is_remembered_and_below_the_ephemeral_range(home: Path) -> None:
    first = ports.Ports(home / "ports.json", avoid=8000)
    port = first.take("broker")
    assert port in ports.span()
    assert first.take("external01.failover") != port
    first.release()
    assert ports.Ports(home / "ports.json", avoid=8000).take("broker") == port


def test_two_stacks_never_take_the_same_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [port for port in range(20_000, 20_200) if ports.is_free(port)][:2]
    monkeypatch.setattr(ports, "span", lambda: range(free[0], free[0] + 1))
    one = ports.Ports(tmp_path / "one.json", avoid=8000)
    assert one.take("broker") == free[0]
    with pytest.raises(ports.NoPort, match="No free port"):
        ports.Ports(tmp_path / "two.json", avoid=8000).take("broker")


def test_a_remembered_port_that_is_taken_now_is_picked_anew_and_told(home: Path, taken: socket.socket) -> None:
    held = taken.getsockname()[1]
    (home / "ports.json").write_text(f'{{"broker": {held}, "external01.failover": {held}}}')
    book = ports.Ports(home / "ports.json", avoid=8000)
    assert book.take("broker") != held
    assert book.take("external01.failover", keep=True) == held
    assert book.moved == ["broker", "external01.failover"]


def test_a_taken_port_is_refused_with_the_remedy(taken: socket.socket) -> None:
    held = taken.getsockname()[1]
    with pytest.raises(ports.NoPort, match=rf"Port {held} on 127.0.0.1 is taken .* make run PORT={held + 1}"):
        ports.listen(held)


# ---------------------------------------------------------------------------------------------------------------- the lock


def test_a_second_runner_on_the_same_home_is_refused(home: Path) -> None:
    port = next(port for port in range(21_000, 22_000) if ports.is_free(port))
    first = stack.Stack(home, port, MACHINES)
    with pytest.raises(stack.Refused, match=rf"already runs on .*process {os.getpid()}\).*BATON_HOME=another-folder"):
        stack.Stack(home, port + 1, MACHINES)
    first.listener.close()


def test_what_identifies_a_home_is_made_once_and_read_by_its_owner_only(home: Path) -> None:
    port = next(port for port in range(22_000, 23_000) if ports.is_free(port))
    first = stack.Stack(home, port, MACHINES)
    assert (home / "stack.json").stat().st_mode & 0o077 == 0
    assert first._facts() == first.facts
    environment = first.environment()
    assert environment["BATON_HOME"] == str(home)
    assert environment["BATON_PREFIX"] == f"baton:{first.facts['id']}:"
    agent = first._agent("core01", environment | {"REDIS_URL": "redis://secret", "DATABASE_URL": "postgres://secret"})
    assert "secret" not in str(agent.environment)
    assert agent.folder == home / "machines" / "core01"
    first.listener.close()


@pytest.mark.parametrize("wrong", ["0", "65536", "-1"])
def test_a_port_out_of_range_is_refused(home: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        stack.run(home, int(wrong), MACHINES)
    assert ended.value.code == 1
    assert f"PORT is {wrong}: say a number from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        pytest.param({"PORT": "eighty"}, "PORT is 'eighty': say a whole number", id="a port that is no number"),
        pytest.param({"BATON_HOME": "/proc/nowhere"}, "BATON_HOME is '/proc/nowhere', a folder that cannot be written to", id="no folder"),
        pytest.param({"REDIS_URL": "redis://:pw@127.0.0.1:1/0"}, "redis://:***@127.0.0.1:1/0, but no Redis answers", id="no broker"),
        pytest.param({"ETCD_BIN": "/nowhere/etcd"}, "ETCD_BIN says /nowhere/etcd, which is no program", id="no etcd"),
        pytest.param({"ETCD_BIN": "/bin/true"}, "ETCD_BIN cannot be used: /bin/true does not tell an etcd version", id="another program"),
        pytest.param({"REDIS_URL": "nonsense"}, "REDIS_URL says nonsense", id="no URL"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, variables: dict[str, str], sentence: str) -> None:
    port = next(port for port in range(23_000, 24_000) if ports.is_free(port))
    environment = os.environ | {"BATON_HOME": str(tmp_path / "new" / "home"), "PORT": str(port)} | variables
    root = Path(stack.ROOT)
    ended = subprocess.run([sys.executable, "manage.py", "runstack"], cwd=root, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_folder_is_absolute_new_ones_are_private_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATON_HOME", "deep/er")
    assert env.folder("BATON_HOME", tmp_path) == tmp_path / "deep" / "er"
    assert (tmp_path / "deep" / "er").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("BATON_HOME", "")
    assert env.folder("BATON_HOME", tmp_path / "var") == tmp_path / "var"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BATON_HOME", str(tmp_path / "file"))
    with pytest.raises(ImproperlyConfigured, match=r"BATON_HOME is .* cannot be written to"):
        env.folder("BATON_HOME", tmp_path)


def _heed_interrupts() -> None:
    """Tests started in the background of a shell inherit that SIGINT is ignored; the make of this test is one in a terminal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_make_that_was_interrupted_alone_is_noticed(tmp_path: Path) -> None:
    """GNU make does not hand SIGINT on to its recipe; `kill -INT` on make must stop the stack nevertheless."""
    code = "import time; from portal import stack; made = stack._interruptible_make(); print(made is not None, flush=True)\n"
    code += "while made and not made.was_interrupted(): time.sleep(0.02)\nprint('noticed', flush=True)"
    (tmp_path / "program.py").write_text(code)
    (tmp_path / "Makefile").write_text(f"run:\n\t@exec {sys.executable} program.py\n")
    environment = {name: value for name, value in os.environ.items() if name != "MAKELEVEL"} | {"PYTHONPATH": str(stack.ROOT)}
    with subprocess.Popen(
        ["make", "-s", "run"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,
    ) as make:
        assert make.stdout.readline() == "True\n"
        make.send_signal(signal.SIGINT)
        assert make.communicate(timeout=10)[0] == "noticed\n"


# ---------------------------------------------------------------------------------------------------------------- children


@pytest.mark.parametrize(("deaths", "pause"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (7, 16), (8, 30), (40, 30)])
def test_a_child_that_dies_again_and_again_is_restarted_ever_later(deaths: int, pause: float) -> None:
    assert children.pause_before_restart(deaths) == pause


def buried(pid: int) -> bool:
    """Is it gone, or dead and waiting for its new parent to bury it?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def test_a_child_ends_with_its_runner_even_when_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from portal.children import Child, Program\n"
        "child = Child(Program('sleeper', ['sleep', '60'], Path(sys.argv[1]), {}))\n"
        "child.start(); print(child.process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=stack.ROOT, stdout=subprocess.PIPE, text=True) as runner:
        pid = int(runner.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        runner.kill()
        runner.wait()
    deadline = time.monotonic() + 20
    while not buried(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_log_is_cut_while_its_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LOG_BYTES", 100)
    log = tmp_path / "part.log"
    child = children.Child(children.Program("part", ["true"], tmp_path, {}, log))
    with log.open("ab") as writer:
        writer.write(b"x" * 200)
        writer.flush()
        child.bound_log()
        writer.write(b"after")
    assert log.read_bytes() == b"after"
    assert len((tmp_path / "part.log.1").read_bytes()) == 200


def test_a_task_that_a_signal_ended_is_started_again_and_one_that_failed_is_not(tmp_path: Path) -> None:
    for command, done in ((["sh", "-c", "kill -9 $$"], False), (["false"], True)):
        child = children.Child(children.Program("task", command, tmp_path, dict(os.environ), once=True))
        child.start()
        child.process.wait()
        assert "signal 9 (SIGKILL)" in child.ended() if not done else child.exit_status != 0
        child.ended()
        assert child.done is done


# ------------------------------------------------------------------------------------------------------------------ broker


def test_the_brokers_password_is_in_a_file_of_its_owner_and_every_write_reaches_the_disk(tmp_path: Path) -> None:
    file = broker.configure(tmp_path / 'a "quoted" home', port=12345, password="pw")
    assert file.stat().st_mode & 0o077 == 0
    lines = file.read_text().splitlines()
    assert {"bind 127.0.0.1", "port 12345", "requirepass pw", "appendonly yes", "appendfsync always"} <= set(lines)
    assert 'dir "' + str(tmp_path / r"a \"quoted\" home") + '"' in lines


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://me:secret@host/0", "redis://me:***@host/0"),
        ("redis://host:1/0", "redis://host:1/0"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert broker.shown(url) == shown


def test_an_old_server_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.14 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert broker.find().path != old
    old.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=0'\n")
    assert broker.find() == broker.Server(old, "redis-server 7.0.15 on PATH")


# ------------------------------------------------------------------------------------------------------------------ health


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The portal's own checks only, and a broker that answers."""
    own = {"database": readiness.database, "broker": lambda now: "", "worker and beat": readiness.worker_and_beat}
    monkeypatch.setattr(readiness, "checks", own)
    monkeypatch.setattr(readiness, "broker", own["broker"])


def test_anyone_may_ask_whether_the_process_answers(client: Client) -> None:
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("beat_age", "status", "reason"),
    [
        pytest.param(None, 503, r"Worker and beat have not answered yet\.", id="never heard"),
        pytest.param(3, 200, None, id="fresh"),
        pytest.param(12, 503, r"Worker or beat are silent for 1\d s\.", id="silent"),
    ],
)
@pytest.mark.django_db
def test_readyz_tells_whether_work_can_be_done(
    client: Client, alone: None, settings, beat_age: int | None, status: int, reason: str | None
) -> None:
    settings.BATON_STACK_STARTED_AT = ""
    if beat_age is not None:
        Heartbeat.objects.create(name="beat", at=timezone.now() - timedelta(seconds=beat_age))
    answer = client.get("/readyz")
    assert answer.status_code == status
    said = answer.json()["reasons"]
    assert len(said) == (reason is not None)
    assert reason is None or re.fullmatch(reason, said[0])


@pytest.mark.django_db
def test_a_heartbeat_from_before_this_start_proves_nothing(client: Client, alone: None, settings) -> None:
    Heartbeat.objects.create(name="beat", at=timezone.now() - timedelta(seconds=2))
    settings.BATON_STACK_STARTED_AT = timezone.now().isoformat()
    assert client.get("/readyz").status_code == 503


@pytest.mark.django_db
def test_a_broker_that_is_away_is_named_quickly(client: Client, settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    began = time.monotonic()
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "The broker does not answer" in answer.json()["checks"]["broker"]
    assert time.monotonic() - began < 2
