"""The runner behind `make run`: the whole product on one host, one real process per part.

    runner ── broker (Valkey)         kept by BATON_HOME/broker, appendfsync always
           ├─ portal (uvicorn)        on PORT; the runner holds the listening socket
           ├─ worker, beat (Celery)
           └─ one agent per machine ── keepers ── routers and runtime processes

It starts them in order, restarts what dies, and stops them in order. Whatever happens to it, nothing stays behind: the kernel kills its
children with it (portal/children.py), and the keepers, which outlive their agents on purpose, hold the read end of its lifeline pipe.
"""

import contextlib
import fcntl
import http.client
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import redis

from portal import broker, ports
from portal.children import Child, Program, die_with_parent, of_home, stop

ROOT = Path(__file__).resolve().parent.parent
STARTED_ENV = "BATON_STACK_STARTED_AT"
PORTS_ENV = "BATON_FAILOVER_PORTS"  # "external01=21001,…": where the demonstration's routers listen
# What an agent is not given: it would stand on another machine, knowing only the portal's address and its own token.
SECRETS = ("BATON_SECRET_KEY", "BATON_FORMER_SECRET_KEYS", "BATON_PROPERTY_KEYS")
PORTAL_ONLY = ("REDIS_URL", "DATABASE_URL", "BATON_PREFIX", "DJANGO_SETTINGS_MODULE", PORTS_ENV, *SECRETS)
MACHINES_STOP_WITHIN = 5.5  # seconds for runtimes to hand over and drain, routers to end
BACKGROUND_STOPS_WITHIN = 1.5
BROKER_STOPS_WITHIN = 1.0
WORTH_TELLING = 4.0  # seconds that something stands still before the person is told
ACCOUNTS = "admin, developer, operator, viewer (password of each: baton)"


@dataclass(frozen=True)
class Machines:
    """The demonstration's machines, and how their agents are told of the runner's pipes (runtimes/protocol.py, which the portal does
    not import)."""

    names: Sequence[str]
    lifeline_env: str
    presence_env: str


class Refused(Exception):  # noqa: N818 - said by name
    """The stack cannot start: one sentence with the remedy."""


class Stopped(Exception):  # noqa: N818 - no error
    """A person or the system asked the runner to end."""


def say(text: str = "") -> None:
    """A line for the person; whoever reads may be gone by now."""
    try:
        print(text, flush=True)
    except OSError:  # what is still in the buffer would fail again when Python ends
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Stack:
    """One running stack of one BATON_HOME. Raises Refused before anything runs, when it cannot."""

    def __init__(self, home: Path, port: int, machines: Machines) -> None:
        self.home = home
        self.machines = machines
        self.port = port
        self.started_at = datetime.now(UTC)
        self.started_in = Path.cwd()
        self.children: list[Child] = []
        self.stopping = False
        self.stop_asked = ""
        self.ready = False
        self._lock = self._only_one()
        self._end_leftovers()
        self.listener = ports.listen(port)
        self.ports = ports.Ports(home / "ports.json", avoid=port)
        self.facts = self._facts()
        self.lifeline_read, self._lifeline_write = os.pipe()
        self._presence_read, self.presence_write = os.pipe()
        self._news_read, self._news_write = os.pipe()
        for end in (self._news_read, self._news_write):
            os.set_blocking(end, False)
        self._make = _interruptible_make()
        self._next_round = 0.0

    # ------------------------------------------------------------------------------------------------------------- before

    def _only_one(self) -> int:
        """The lock that makes this the only runner of its BATON_HOME, for as long as it lives."""
        lock = os.open(self.home / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode(errors="replace").strip()
            raise Refused(
                f"Baton already runs on {self.home} (process {holder or 'unknown'}). "
                "Stop that one first, or give this one a place of its own: make run PORT=8001 BATON_HOME=another-folder"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock

    def _facts(self) -> dict[str, str]:
        """What this home keeps for good: its id, which prefixes keys and queues in a shared server, and its broker's password."""
        file = self.home / "stack.json"
        try:
            facts: dict[str, str] = json.loads(file.read_text())
        except (FileNotFoundError, ValueError):
            facts = {"id": secrets.token_hex(4), "broker_password": secrets.token_urlsafe(24)}
            draft = file.with_suffix(".tmp")
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as stream:
                json.dump(facts, stream)
            draft.replace(file)
        return facts

    def _end_leftovers(self) -> None:
        """Keepers of a runner that was killed end by themselves in seconds; their ports and data are needed now. With the lock held,
        whoever was started by a stack of this home is such a one."""
        deadline = time.monotonic() + MACHINES_STOP_WITHIN
        while left := of_home(self.home, STARTED_ENV):
            if time.monotonic() > deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    # ---------------------------------------------------------------------------------------------------------- programs

    def environment(self) -> dict[str, str]:
        """Of every child: BATON_HOME as an absolute path, and the code's place, for their working directory is inside BATON_HOME."""
        no_proxy = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1,localhost"]))
        kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PORT")}
        if etcd := kept.get("ETCD_BIN"):
            found = shutil.which(etcd)
            if found is None:
                raise Refused(
                    f"ETCD_BIN says {etcd}, which is no program that can be run. Correct it, or leave it out: an etcd is then found."
                )
            kept["ETCD_BIN"] = str(self.started_in / found)  # children work in other folders
            asked = subprocess.run(
                [sys.executable, "-P", "-m", "runtimes.agent.etcd_binary", kept["ETCD_BIN"]],
                env=kept | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30,
            )  # fmt: skip
            if asked.returncode != 0:
                raise Refused(f"ETCD_BIN cannot be used: {asked.stdout.strip()}. Correct it, or leave it out: an etcd is then found.")
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])]
        return kept | {
            "BATON_HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
            "DJANGO_SETTINGS_MODULE": "portal.settings",
            "BATON_PREFIX": os.environ.get("BATON_PREFIX") or f"baton:{self.facts['id']}:",
            "BATON_STACK_PORT": str(self.port),
            STARTED_ENV: self.started_at.isoformat(),
        }

    def _program(self, name: str, *arguments: str, environment: dict[str, str], **more: Any) -> Program:
        folder = more.pop("folder", self.home)
        log = more.pop("log", self.home / "logs" / f"{name}.log")
        # -P: a folder in BATON_HOME that is called like a package must not be imported in its place.
        return Program(name, [sys.executable, "-P", *arguments], folder, environment, log, **more)

    def _agent(self, machine: str, environment: dict[str, str]) -> Program:
        own = {name: value for name, value in environment.items() if name not in PORTAL_ONLY}
        own |= {self.machines.lifeline_env: str(self.lifeline_read), self.machines.presence_env: str(self.presence_write)}
        home = self.home / "machines" / machine
        arguments = ["-m", "runtimes.agent", "--home", str(home), "--portal", f"http://127.0.0.1:{self.port}"]
        arguments += ["--token-file", str(self.home / "tokens" / machine)]
        return self._program(machine, *arguments, environment=own, folder=home, descriptors=(self.lifeline_read, self.presence_write))

    # --------------------------------------------------------------------------------------------------------------- run

    def run(self) -> None:
        """Start everything, look after it until somebody asks to stop, stop everything."""
        self._listen_to_signals()
        os.chdir(self.home)
        try:
            self._start()
            while True:
                self.turn(1.0)
        except Stopped:
            say(f"\nBaton stops ({self.stop_asked}) …")
        finally:
            self._stop()
        say("Everything has stopped. The next `make run` goes on from here.")

    def _start(self) -> None:
        say(f"Baton starts in {self.home}")
        environment = self._start_broker(self.environment())
        failover = {machine: self.ports.take(f"{machine}.failover", keep=True) for machine in self.machines.names}
        for machine, port in failover.items():
            if port == self.port:
                raise Refused(
                    f"PORT={port} is where the router of {machine} listens in {self.home}. Choose another one: make run PORT={port + 1}"
                )
        for name in self.ports.moved:
            if name != "broker":
                say(f"  attention    port {failover[name.split('.')[0]]} of {name} is taken by another program; that router cannot start")
        environment[PORTS_ENV] = ",".join(f"{machine}={port}" for machine, port in failover.items())
        manage = str(ROOT / "manage.py")
        self._task(self._program("prepare", manage, "demonstration", "prepare", environment=environment, log=None, once=True))
        listener = self.listener.fileno()
        celery = ["-m", "celery", "-A", "portal"]
        self.children += [
            Child(self._program("portal", "-m", "portal.serve", str(listener), environment=environment, descriptors=(listener,))),
            Child(
                self._program(
                    "worker", *celery, "worker", "--pool", "threads", "--concurrency", "4", "--without-gossip", "--without-mingle",
                    "--loglevel", "INFO", environment=environment,
                )
            ),
            Child(self._program("beat", *celery, "beat", "--pidfile", "", "--loglevel", "WARNING", environment=environment)),
            *(Child(self._agent(machine, environment)) for machine in self.machines.names),
        ]  # fmt: skip
        self._launch(self.children[1:] if self.children and self.children[0].name == "broker" else self.children)
        self._wait_for("/healthz", quietly=True)
        say(f"  portal       http://127.0.0.1:{self.port}/   accounts: {ACCOUNTS}")
        first = Child(self._program("first deployment", manage, "demonstration", "deploy", environment=environment, log=None, once=True))
        self.children.append(first)
        self._launch([first])
        self._wait_for("/readyz")
        self.ready = True
        self._tell_what_to_try()

    def _start_broker(self, environment: dict[str, str]) -> dict[str, str]:
        url = os.environ.get("REDIS_URL", "")
        if url:
            version = broker.check(url)
            say(f"  broker       {broker.shown(url)} (REDIS_URL, Redis {version})")
            return environment | {"REDIS_URL": url}
        server = broker.find()
        port = self.ports.take("broker")
        folder = self.home / "broker"
        password = self.facts["broker_password"]
        configuration = broker.configure(folder, port=port, password=password)
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        log = self.home / "logs" / "broker.log"
        child = Child(Program("broker", [server.path, configuration], folder, self.environment(), log))
        self.children.append(child)
        self._launch([child])
        deadline = time.monotonic() + 15
        while True:
            with contextlib.suppress(redis.RedisError):
                broker.ping(url, seconds=1.0)
                break
            if time.monotonic() > deadline:
                raise Refused(f"The broker ({server.words}) does not answer. {log} says: {' '.join(child.last_words())}")
            self.turn(0.05)
        say(f"  broker       {server.words}, port {port}")
        return environment | {"REDIS_URL": url}

    def _launch(self, children: Sequence[Child]) -> None:
        for child in children:
            child.bound_log(at_start=True)
            child.start()

    def _task(self, program: Program) -> None:
        """Run a program to its end. Raises Refused when it fails; it has said why by then."""
        child = Child(program)
        self.children.append(child)
        child.start()
        while not child.done:
            self.turn(0.2)
        self.children.remove(child)
        if child.exit_status:
            raise Refused(f"Baton cannot start: “{program.name}” {'exited with status'} {child.exit_status}; its reason stands above.")

    def _wait_for(self, path: str, *, quietly: bool = False) -> None:
        """Until the portal answers 200, telling what it still waits for when that stays the same for a while."""
        told, since = "", time.monotonic()
        seen = ""
        while True:
            status, words = self._ask(path)
            if status == 200:
                return
            if words != seen:
                seen, since = words, time.monotonic()
            if seen and seen != told and not quietly and time.monotonic() - since > WORTH_TELLING:
                say(f"  waits        {seen}")
                told = seen
            self.turn(0.25)

    def _ask(self, path: str) -> tuple[int, str]:
        """Status and reasons of the portal's answer; 0 while there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3)
        status = 0
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            status = answer.status
            return status, "" if status == 200 else " ".join(json.loads(answer.read())["reasons"])
        except (ValueError, KeyError, TypeError):
            return status, f"The portal answers {status} at {path}."
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def _tell_what_to_try(self) -> None:
        seconds = (datetime.now(UTC) - self.started_at).total_seconds()
        demo = self.home / "demo"
        say(
            f"\nBaton is ready after {seconds:.1f} s:  http://127.0.0.1:{self.port}/   {ACCOUNTS}\n"
            f"  drop a file in      {demo / 'erp' / 'outbox'}\n"
            f"  see it arrive in    {demo / 'warehouse' / 'inbox'} and received.jsonl beside it\n"
            "  then open Webshop › Test › Groups: kill the leader's process (kill -9), press Play on a follower, deploy again to balance\n"
            f"  logs are in         {self.home / 'logs'}\n"
            "Ctrl-C stops everything; the next `make run` goes on from there."
        )

    # -------------------------------------------------------------------------------------------------------- supervision

    def turn(self, seconds: float) -> None:
        """Wait for news at most so long; restart what died. Raises Stopped when somebody asked to stop."""
        with contextlib.suppress(InterruptedError):
            if select.select([self._news_read], [], [], seconds)[0]:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._news_read, 4096)
        if not self.stop_asked and self._make and self._make.was_interrupted():
            self.stop_asked = "make was interrupted"
        if self.stop_asked:
            raise Stopped
        now = time.monotonic()
        for child in list(self.children):
            self._look_after(child, now)
        if now >= self._next_round:
            self._next_round = now + 5.0
            for child in self.children:
                child.bound_log()

    def _look_after(self, child: Child, now: float) -> None:
        if (how := child.ended()) is not None:
            if child.done:
                if child.exit_status and child.name != "prepare":
                    say(f"  attention    {child.name} {how}")
                return
            again = child.due_at - now
            say(f"  {child.name:<12} {how}; {'restarts' if again <= 0 else f'restarts in {again:.0f} s'}")
            if child.quick_deaths >= 3:
                for line in child.last_words(3):
                    say(f"    {line}")
        if child.process is None and not child.done and now >= child.due_at:
            child.start()

    def _listen_to_signals(self) -> None:
        def asked(number: int, _frame: object) -> None:
            self.stop_asked = self.stop_asked or signal.Signals(number).name

        signal.set_wakeup_fd(self._news_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup stays what it is
                signal.signal(number, asked)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake select

    # --------------------------------------------------------------------------------------------------------------- stop

    def _stop(self) -> None:
        """Machines first, so that runtimes end while everything they use is there; the broker last."""
        self.stopping = True
        by_name = {child.name: child for child in self.children}
        tasks = [child for child in self.children if child.program.once]
        agents = [by_name[machine] for machine in self.machines.names if machine in by_name]
        os.close(self._lifeline_write)  # keepers end their trees
        os.close(self.presence_write)
        for child in [*tasks, *agents]:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + MACHINES_STOP_WITHIN
        select.select([self._presence_read], [], [], MACHINES_STOP_WITHIN)  # end of file: no agent and no keeper is left
        stop([*tasks, *agents], within=max(0.1, deadline - time.monotonic()))
        for pid in of_home(self.home, self.machines.lifeline_env):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        stop([by_name[name] for name in ("beat", "worker", "portal") if name in by_name], within=BACKGROUND_STOPS_WITHIN)
        stop([by_name["broker"]] if "broker" in by_name else [], within=BROKER_STOPS_WITHIN)


class _Make:
    """The `make` that started us. GNU make hands SIGTERM on to its recipe, but not SIGINT, which it expects a terminal to send to all:
    so one SIGINT to make alone would be lost. It shows: from then on make no longer catches SIGINT."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def catches_interrupts(self) -> bool:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            caught = next(line for line in lines if line.startswith("SigCgt:"))
            return bool(int(caught.split()[1], 16) >> (signal.SIGINT - 1) & 1)
        return False

    def was_interrupted(self) -> bool:
        return not self.catches_interrupts()


def _interruptible_make() -> _Make | None:
    """The make above us, if there is one: we stop in order when it is killed, or interrupted alone."""
    parent = os.getppid()
    try:
        name = Path(f"/proc/{parent}/comm").read_text().strip()
    except OSError:
        return None
    if "MAKELEVEL" not in os.environ or name not in ("make", "gmake"):
        return None
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        raise Refused("make ended while Baton was starting.")
    made = _Make(parent)
    return made if made.catches_interrupts() else None


def run(home: Path, port: int, machines: Machines) -> NoReturn:
    """Run the stack until it is asked to stop; ends this process with 0, or with 1 and one sentence."""
    try:
        if not 1 <= port <= 65535:
            raise Refused(f"PORT is {port}: say a number from 1 to 65535, as in make run PORT=8000")
        Stack(home, port, machines).run()
    except (Refused, broker.NoBroker, ports.NoPort) as refusal:
        with contextlib.suppress(OSError):
            print(f"\n{refusal}", file=sys.stderr, flush=True)
        sys.exit(1)
    sys.exit(0)
