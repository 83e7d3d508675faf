"""Scheduled activations under chaos: `python -m tests.journeys.chaos HOME [--activations 100] [--seed N]`.

Real workers and real beats (Celery, a real Valkey, the portal's own settings and database) are killed with SIGKILL at random and started
again, while scheduled activations become due and deploy. The machines take their orders and report through the portal's own doors
(`fleet.orders_for`, `fleet.record_report`), without processes. Afterwards the database must tell that each activation was carried out
exactly once, that nothing is stuck, and that no step ran twice. Prints one line of figures as JSON.
"""

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
WORKERS, BEATS, ENVIRONMENTS = 10, 3, 10
KILL_EVERY = (0.5, 3.0)  # seconds
LIMIT = 900.0


class Crowd:
    """The processes that are killed and started again."""

    def __init__(self, home: Path, chance: random.Random) -> None:
        self.home, self.chance = home, chance
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.killed: Counter[str] = Counter()

    def start(self) -> None:
        for name in [f"worker{number}" for number in range(WORKERS)] + [f"beat{number}" for number in range(BEATS)]:
            self._launch(name)

    def _launch(self, name: str) -> None:
        celery = [sys.executable, "-P", "-m", "celery", "-A", "portal"]
        if name.startswith("worker"):
            own = ["worker", "--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat", "-n", f"{name}@%h"]
        else:
            own = ["beat", "--pidfile", "", "-s", str(self.home / f"{name}-schedule")]
        with (self.home / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                [*celery, *own, "--loglevel", "WARNING"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill_one(self) -> None:
        name = self.chance.choice(sorted(self.children))
        child = self.children[name]
        if child.poll() is None:
            self.killed[name.rstrip("0123456789")] += 1
            child.send_signal(signal.SIGKILL)
        child.wait()
        self._launch(name)

    def end(self) -> None:
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            child.wait()


def broker(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    from portal import broker as brokers
    from tests.journeys.baton import free_port, until

    port, password = free_port(), secrets.token_hex(12)
    configuration = brokers.configure(home / "broker", port=port, password=password)
    with (home / "broker.log").open("ab") as log:
        child = subprocess.Popen([brokers.find().path, str(configuration)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    url = f"redis://:{password}@127.0.0.1:{port}/0"

    def answers() -> bool:
        try:
            return bool(brokers.ping(url, seconds=1.0))
        except Exception:
            return False

    until(answers, 15, "the broker answers")
    return child, url


def prepare(count: int) -> list[Any]:
    """So many projects with an applied Test, two releases each, and the activations, which all become due within seconds."""
    from datetime import timedelta

    from django.utils import timezone

    from deployments import plans, releases, schedules
    from portal import properties
    from portal.models import Flow, Role, Team
    from runtimes.models import FailoverGroup
    from tests import factories
    from tests.deployments.conftest import VALUES, save_version
    from tests.deployments.machines import Machines

    team = Team.objects.create(name="Chaos", slug="chaos")
    person = factories.person("developer", team, Role.DEVELOPER)
    found, due = [], []
    for number in range(min(ENVIRONMENTS, count)):
        project = factories.project(team, f"p{number}")
        connector = factories.failover_design(project)
        test = project.environments.get(kind="test")
        factories.applied(test, connector)
        FailoverGroup.objects.filter(environment=test).delete()
        for key, value in VALUES.items():
            properties.set_value(test, key, value, by=person)
        flow = Flow.objects.get(connector=connector)
        plans.default_plan(test)
        pair = []
        for minor in (0, 1):
            save_version(flow, minor)
            pair.append(releases.build(project, name=f"r{minor}", by=person))
        found.append(Machines(test))
        due.append((test, pair))
    now = timezone.now()
    for number in range(count):
        test, pair = due[number % len(due)]
        turn = number // len(due)
        schedules.schedule(
            pair[turn % 2], test, due_at=now + timedelta(seconds=3 + turn), by=person, now=now, deploys=True, expires_after_minutes=None
        )
    return found


def live_through(machines: list[Any], crowd: Crowd, chance: random.Random, count: int) -> float:
    """Report and kill until everything is over. How long it took, in seconds."""
    from django.utils import timezone

    from deployments.models import LIVE, Activation, ActivationStatus, Deployment

    began, kill_at = time.monotonic(), time.monotonic() + 5.0
    while True:
        for machine in machines:
            machine.report(timezone.now())
            if time.monotonic() >= kill_at:
                crowd.kill_one()
                kill_at = time.monotonic() + chance.uniform(*KILL_EVERY)
        waiting = Activation.objects.filter(status__in=(ActivationStatus.SCHEDULED, ActivationStatus.HELD)).count()
        going = Deployment.objects.filter(status__in=LIVE).count()
        if not waiting and not going:
            return time.monotonic() - began
        if time.monotonic() - began > LIMIT:
            raise SystemExit(f"After {LIMIT:.0f} s, {waiting} of {count} activations wait and {going} deployments go on: stuck.")


def judge(count: int, machines: list[Any]) -> dict[str, Any]:
    """What the database tells, and every violation of what must be true."""
    from deployments.models import Activation, ActivationStatus, Deployment, RunStatus, StepLog, StepRun

    wrong = []
    activations = list(Activation.objects.select_related("release"))
    carried_out = [row for row in activations if row.status in (ActivationStatus.ACTIVE, ActivationStatus.REPLACED)]
    if len(activations) != count or len(carried_out) != count:
        became = dict(Counter(row.status for row in activations))
        wrong.append(f"{len(carried_out)} of {len(activations)} activations were carried out, not {count}: {became}.")
    begun = Counter(row.deployment_id for row in carried_out)
    wrong += [f"Activation {row.pk} began no deployment." for row in carried_out if row.deployment_id is None]
    wrong += [f"Deployment {pk} was begun by {times} activations." for pk, times in begun.items() if times > 1]
    deployments = list(Deployment.objects.all())
    if len(deployments) != count:
        wrong.append(f"{len(deployments)} deployments instead of {count}.")
    ended = Counter(deployment.status for deployment in deployments)
    if ended[RunStatus.SUCCEEDED] != count:
        wrong.append(f"Deployments ended as {dict(ended)}.")
    for active in Counter(row.environment_id for row in activations if row.status == ActivationStatus.ACTIVE).values():
        if active != 1:
            wrong.append("An environment has more than one active release.")
    steps = list(StepRun.objects.all())
    unlike = [step for step in steps if (step.status, step.attempt) != (RunStatus.SUCCEEDED, 1)]
    wrong += [f"Step {step.pk} is {step.status}, attempt {step.attempt}." for step in unlike]
    # Each step tells its success once; each order to a runtime is told once per step.
    told = Counter(
        (line.step_id, "ordered" if " is ordered to run " in line.text else line.text)
        for line in StepLog.objects.filter(level="info")
        if " is ordered to run " in line.text or line.text.endswith((" runs release 1.", " runs release 2."))
    )
    wrong += [f"Step {step} said {what!r} {times} times." for (step, what), times in told.items() if times > 1]
    # A machine starts a process anew when its orders change: once per deployment and runtime, for the releases alternate.
    starts: Counter[str] = Counter()
    for machine in machines:
        starts.update(machine.started)
    runs = len(deployments) * 2
    if sum(starts.values()) != runs:
        wrong.append(f"Runtimes were started {sum(starts.values())} times instead of {runs}.")
    return {
        "violations": wrong,
        "activations": len(carried_out),
        "deployments": ended[RunStatus.SUCCEEDED],
        "steps": len(steps),
        "starts": sum(starts.values()),
    }


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("home", type=Path)
    arguments.add_argument("--activations", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=secrets.randbelow(10_000))
    asked = arguments.parse_args()
    home = asked.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    os.environ |= {"BATON_HOME": str(home), "DJANGO_SETTINGS_MODULE": "portal.settings", "DATABASE_URL": ""}
    server, os.environ["REDIS_URL"] = broker(home)
    import django

    django.setup()
    from django.core.management import call_command

    chance = random.Random(asked.seed)
    crowd = Crowd(home, chance)
    try:
        call_command("migrate", verbosity=0)
        machines = prepare(asked.activations)
        crowd.start()
        seconds = live_through(machines, crowd, chance, asked.activations)
        crowd.end()
        found = judge(asked.activations, machines)
    finally:
        crowd.end()
        server.kill()
        server.wait()
    figures = found | {"seconds": round(seconds, 1), "killed": dict(crowd.killed), "seed": asked.seed}
    print(json.dumps(figures), flush=True)
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
