"""`make bench-rollout`: what the portal costs per step, against a bare Celery round trip on the same broker.

Real portal (uvicorn), worker, beat and Valkey, each a process of its own; 40 light agents (benchmarks/light.py) speak the agents' real
protocol over HTTP. One plan of 200 steps (Deploy runtime, one after another) over 40 machines. A step lasts from the end of the one before
to its own; by the clock of this one host that is

    begin      from the end of the step before to the commit of what this step orders
    ordering   from there to the moment its machine has the order (the agent woken, its long poll answered)
    machine    from then to the moment it sends the report that proves the step: the bundle fetched and verified
    report     from there to the begin of the look that finds the proof (over HTTP, stored, a task sent and taken by a worker)
    proof      from there to the commit of what it found

and engine = begin + report + proof, overhead = engine + ordering: all but the machine's own part. The ratio is the median of the engine's
part over the median of bare Celery round trips on the same broker and worker, one every 0.2 s during the same run; the ratio of all
overhead is printed beside it. Then a machine stays silent for ten seconds while its step waits: how much of that time the worker is busy,
by its own count and by what `celery inspect active` sees.
"""

import argparse
import contextlib
import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.light import Fleet, LightAgent

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 4
PARTS = ("begin", "ordering", "machine", "report", "proof")  # of a step, in order


@contextlib.contextmanager
def stack(home: Path) -> Iterator[str]:
    """Valkey, portal, worker and beat over a fresh BATON_HOME; yields the portal's address."""
    from portal import broker

    password, valkey_port = secrets.token_hex(8), _free_port()
    configuration = broker.configure(home / "valkey", port=valkey_port, password=password)
    os.environ |= {
        "BATON_HOME": str(home),
        "REDIS_URL": f"redis://:{password}@127.0.0.1:{valkey_port}/0",
        "DJANGO_SETTINGS_MODULE": "portal.settings",
    }
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    children: list[subprocess.Popen[bytes]] = []
    output = (home / "output.log").open("ab")

    def start(*command: str, **more: Any) -> None:
        children.append(subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, **more))

    try:
        start(str(broker.find().path), str(configuration))
        _until(lambda: _reachable(valkey_port), "the broker answers")
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, check=True, stdout=output, stderr=output)
        start(sys.executable, "-m", "portal.serve", str(listening.fileno()), pass_fds=[listening.fileno()])
        celery = (sys.executable, "-m", "celery", "-A", "portal")
        more = ("--without-gossip", "--without-mingle", "--loglevel", "WARNING", "--include", "benchmarks.echo")
        start(*celery, "worker", "--pool", "threads", "--concurrency", str(WORKERS), *more)
        start(*celery, "beat", "--pidfile", "", "--loglevel", "WARNING")
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        for child in reversed(children):
            child.send_signal(signal.SIGTERM)
        for child in reversed(children):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(8)
            child.kill()
            child.wait()
        output.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(look: Any, what: str, within: float = 60) -> Any:
    end = time.monotonic() + within
    while not (answer := look()):
        if time.monotonic() > end:
            raise SystemExit(f"not within {within:g} s: {what}")
        time.sleep(0.02)
    return answer


class Landscape:
    """Machines, connectors without failover and one runtime of each on every machine, in an environment of their own."""

    def __init__(self, machines: int, connectors: int) -> None:
        from django.contrib.auth.models import User

        from portal.models import Connector, Environment, EnvironmentKind, Flow, FlowVersion, MachineKind, Project, System, Team
        from runtimes.models import Machine, Runtime

        self.person = User.objects.create(username=f"bench-{uuid.uuid4().hex[:6]}")
        team = Team.objects.create(name=f"Bench {uuid.uuid4().hex[:6]}", slug=uuid.uuid4().hex[:12])
        self.project = Project.objects.create(team=team, name="Bench", slug=f"bench-{uuid.uuid4().hex[:6]}")
        self.environment = Environment.objects.create(project=self.project, kind=EnvironmentKind.TEST)
        self.flows = []
        made = [
            Machine.objects.create(environment=self.environment, name=f"machine{number:02}", kind=MachineKind.EXTERNAL)
            for number in range(1, machines + 1)
        ]
        for number in range(1, connectors + 1):
            system = System.objects.create(project=self.project, name=f"System {number}", slug=f"system{number}")
            connector = Connector.objects.create(project=self.project, system=system, name=f"connector{number}")
            flow = Flow.objects.create(
                connector=connector, name=f"flow{number}", inbound_kind="file", inbound_settings={"folder": "/srv/in"},
                outbound_kind="log", outbound_settings={},
            )  # fmt: skip
            FlowVersion.objects.create(flow=flow, major=1, minor=0, patch=0, definition=flow.definition())
            self.flows.append(flow)
            Runtime.objects.bulk_create(Runtime(environment=self.environment, machine=one, connector=connector) for one in made)
        self.machines = made

    def tokens(self) -> dict[str, str]:
        from runtimes import joining

        return {machine.name: joining.register(machine, by=self.person) for machine in self.machines}

    def release(self, minor: int) -> Any:
        """A release that changes every runtime, active."""
        from django.utils import timezone

        from deployments import releases
        from portal.models import FlowVersion

        for flow in self.flows:
            definition = flow.definition() | {"inbound": {"kind": "file", "settings": {"folder": f"/srv/in{minor}"}}}
            FlowVersion.objects.create(flow=flow, major=1, minor=minor, patch=0, definition=definition)
        made = releases.build(self.project, name=f"Release {minor}", by=self.person)
        releases.activate(made, self.environment, by=self.person, now=timezone.now())
        return made

    def plan(self, steps: int) -> None:
        from deployments import plans
        from deployments.models import Step, StepKind
        from runtimes.models import Runtime

        plan = plans.plan_of(self.environment)
        rows = Runtime.objects.filter(environment=self.environment).select_related("machine", "connector")
        rows = rows.order_by("connector__name", "machine__name")[:steps]
        Step.objects.filter(plan=plan).delete()
        Step.objects.bulk_create(
            Step(plan=plan, position=number, kind=StepKind.DEPLOY_RUNTIME, machine=row.machine.name, connector=row.connector.name)
            for number, row in enumerate(rows, start=1)
        )

    def deploy(self, release: Any) -> Any:
        from django.utils import timezone

        from deployments import rollout

        return rollout.prepare(release, on=self.environment, by=self.person, now=timezone.now())

    def reporting(self) -> int:
        from django.utils import timezone

        return sum(
            not machine.is_silent(now=timezone.now()) for machine in type(self.machines[0]).objects.filter(environment=self.environment)
        )


def send_agents(portal: str, tokens: dict[str, str]) -> Fleet:
    """An agent per machine; they have nothing to decide among themselves."""
    return Fleet([LightAgent(portal, name, token) for name, token in tokens.items()])


def bare_round_trip() -> float:
    """Seconds from sending a task that does nothing to its answer."""
    from benchmarks import echo

    key = f"bench:echo:{uuid.uuid4().hex}"
    begun = time.perf_counter()
    echo.echo.delay(key)
    if echo.client().blpop([key], timeout=60) is None:
        raise SystemExit("The worker does not answer.")
    return time.perf_counter() - begun


@contextlib.contextmanager
def bare_round_trips(every: float) -> Iterator[list[float]]:
    """One every so many seconds for as long as the block runs, so under the same load as what runs in it."""
    took: list[float] = []
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(every):
            took.append(bare_round_trip())

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


def ended(deployment: Any, within: float) -> Any:
    from deployments.models import LIVE

    def look() -> bool:
        deployment.refresh_from_db()
        return deployment.status not in LIVE

    _until(look, "the deployment ends", within)
    return deployment


def parts(deployment: Any, fleet: Fleet) -> dict[str, list[float]]:
    """Seconds of each step but the first, part by part (see above)."""
    from benchmarks import echo

    found: dict[str, list[float]] = {name: [] for name in (*PARTS, "engine", "overhead", "whole")}
    before, looks = None, echo.looks()
    for step in deployment.steps.all():
        (told,) = step.memory["runtimes"].values()
        agent, key = fleet.agents[step.machine], f"{step.machine}.{step.connector} {told['digest']}"
        heard, sent = agent.heard[key], agent.reported[key]
        (_, ordered), (proving, end) = looks[step.pk][0], looks[step.pk][-1]
        if before is not None:
            moments = (before, ordered, heard, sent, proving, end)
            took = dict(zip(PARTS, (after - earlier for earlier, after in itertools.pairwise(moments)), strict=True))
            engine = took["begin"] + took["report"] + took["proof"]
            for name, seconds in (took | {"engine": engine, "overhead": engine + took["ordering"], "whole": end - before}).items():
                found[name].append(seconds)
        before = end
    return found


def share(seconds: list[float], part: float) -> float:
    """The value below which this part of them lies."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def line(name: str, seconds: list[float]) -> str:
    p50, p95, p99 = (share(seconds, part) * 1000 for part in (0.5, 0.95, 0.99))
    return f"{name:<34} {len(seconds):>5} {p50:>9.2f} {p95:>9.2f} {p99:>9.2f}"


def mend_and_resume(landscape: Landscape, fleet: Fleet, number: int) -> bool:
    """The step of that number fails; its runtime is mended and the deployment resumed. True: the steps before were not touched."""
    from django.utils import timezone

    from deployments import decisions
    from deployments.models import Choice
    from deployments.plans import plan_of

    target = plan_of(landscape.environment).steps.get(position=number)
    agent = fleet.agents[target.machine]
    agent.failing[f"{target.machine}.{target.connector}"] = "no memory"
    deployment = ended(landscape.deploy(landscape.release(50)), 600)
    step = deployment.steps.get(number=number)
    print(f"step {number} of {deployment.steps.count()}: {step.status}: {step.reason}")

    def facts() -> list[tuple[Any, ...]]:
        fields = ("number", "status", "attempt", "reason", "started_at", "ended_at", "memory")
        return list(deployment.steps.filter(number__lt=number).values_list(*fields))

    before, at = facts(), deployment.status
    agent.failing.clear()
    decisions.decide(deployment, Choice.RETRY, by=landscape.person, now=timezone.now())
    ended(deployment, 600)
    step.refresh_from_db()
    untouched, kept = facts() == before, step.attempts.count()
    log = list(deployment.log.values_list("number", flat=True))
    whole = log == list(range(1, deployment.log_lines + 1))
    print(
        f"mended and resumed: {at}, then {deployment.status}; steps 1-{number - 1} {'untouched' if untouched else 'TOUCHED'}, "
        f"step {number} in attempt {step.attempt} ({kept} kept), log of {len(log)} lines {'without a gap' if whole else 'WITH GAPS'}",
        flush=True,
    )
    return untouched and whole and (at, deployment.status, step.attempt, kept) == ("failed", "succeeded", 2, 1)


def busy_while_waiting(landscape: Landscape, fleet: Fleet, seconds: int) -> tuple[str, bool]:
    """What the worker does while a step waits for a machine that says nothing, and whether that is next to nothing."""
    from benchmarks import echo
    from deployments.models import RunStatus
    from portal.celery import app

    landscape.plan(1)
    silent = landscape.machines[0].name
    fleet.agents[silent].paused = True
    time.sleep(1)
    deployment = landscape.deploy(landscape.release(90))
    _until(lambda: deployment.steps.filter(status=RunStatus.RUNNING).exists(), "the step waits")
    before, tasks, begun, seen = echo.busy(), sum(echo.counted().values()), time.monotonic(), []
    for second in range(1, seconds + 1):
        time.sleep(max(0.0, begun + second - time.monotonic()))
        active = app.control.inspect(timeout=0.3).active() or {}
        seen.append(sum(map(len, active.values())))
    wall, busy = time.monotonic() - begun, echo.busy() - before
    tasks = sum(echo.counted().values()) - tasks
    waited = deployment.steps.filter(status=RunStatus.RUNNING).exists()
    fleet.agents[silent].paused = False
    status, share = ended(deployment, 60).status, busy / (wall * WORKERS)
    sentence = (
        f"while a step waited {wall:.1f} s for a silent machine: {tasks} tasks of {busy / max(tasks, 1) * 1000:.1f} ms, sweeps included; "
        f"the worker's {WORKERS} threads busy {share:.2%} of the time; "
        f"celery inspect active: {sum(seen)} tasks seen in {len(seen)} looks; then it {status}"
    )
    return sentence, waited and share < 0.05 and status == "succeeded"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rollout", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--machines", type=int, default=40)
    parser.add_argument("--fail-at", type=int, default=0, help="instead: this step fails, is mended, and the deployment is resumed")
    parser.add_argument("--aim", type=float, default=5.0, help="the ratio to stay below; above it the exit status is 1")
    options = parser.parse_args()
    connectors = -(-options.steps // options.machines)
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder, stack(Path(folder)) as portal:
        import django

        django.setup()
        from benchmarks import echo

        idle = [bare_round_trip() for _ in range(120)][20:]  # the first ones open connections
        landscape = Landscape(options.machines, connectors)
        fleet = send_agents(portal, landscape.tokens())
        _until(lambda: landscape.reporting() == options.machines, "all machines report")
        landscape.plan(options.steps)
        if options.fail_at:
            good = mend_and_resume(landscape, fleet, options.fail_at)
            fleet.stop()
            return 0 if good else 1
        release = landscape.release(1)
        busy, tasks, begun = echo.busy(), echo.counted(), time.monotonic()
        with bare_round_trips(every=0.2) as bare:
            deployment = ended(landscape.deploy(release), 600)
        wall, busy = time.monotonic() - begun, echo.busy() - busy
        tasks = {name: count - tasks.get(name, 0) for name, count in echo.counted().items()}
        found = parts(deployment, fleet)
        print(f"{options.steps} steps over {options.machines} machines: {deployment.status} in {wall:.1f} s", flush=True)
        print(f"{'milliseconds':<34} {'n':>5} {'p50':>9} {'p95':>9} {'p99':>9}")
        print(line("bare Celery round trip, idle", idle))
        print(line("bare Celery round trip, meanwhile", bare))
        print(line("engine, per step", found["engine"]))
        for name in ("begin", "report", "proof"):
            print(line(f"  of it {name}", found[name]))
        for name in ("ordering", "machine", "overhead", "whole"):
            print(line(f"{name}, per step", found[name]))
        ratio = share(found["engine"], 0.5) / share(bare, 0.5)
        print(f"engine per step / bare round trip: {ratio:.2f} at p50, {share(found['engine'], 0.95) / share(bare, 0.95):.2f} at p95")
        whole = [share(found["overhead"], part) / share(bare, part) for part in (0.5, 0.95)]
        print(f"overhead per step / bare round trip: {whole[0]:.2f} at p50, {whole[1]:.2f} at p95")
        print(
            f"tasks per step: {tasks.get('run_step', 0) / options.steps:.2f}; worker's {WORKERS} threads busy {busy / wall / WORKERS:.1%}"
        )
        sentence, waits = busy_while_waiting(landscape, fleet, 10)
        print(sentence, flush=True)
        fleet.stop()
    return 0 if deployment.status == "succeeded" and ratio <= options.aim and waits else 1


if __name__ == "__main__":
    sys.exit(main())
