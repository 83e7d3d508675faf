"""Scheduled activations under chaos: `python -m tests.journeys.chaos HOME [--activations 100] [--seed N] [--kill web,broker,data]`.

Ten Celery workers and three beats, each a process of its own with the portal's own settings, on a real Valkey and a real database (SQLite
in HOME, or DATABASE_URL), are killed with SIGKILL at random and started again, while scheduled activations become due and deploy. The
machines are light agents (benchmarks/light.py): they speak the agents' protocol over HTTP with a portal web process. `--kill` names what
dies beside workers and beats: `web` the portal's web process, `broker` Valkey (started again with its data), `data` Valkey and its data.

What happened is told by two records that the product neither writes nor reads:

    the database's   triggers append every committed change of a status, every order, every request, every command
    the machines'    machines.jsonl in HOME: every process that was started or stopped, hand-over that was carried, command that ran

The plan has steps whose second execution could not stay unseen (restart, command, hand-over). Every activation must have become active
once, in the order in which they were due; every step must have gone pending -> running -> succeeded once; and the machines must have
started exactly the processes that the deployments ask for, never a leader's without a hand-over. Prints one line of figures as JSON.

With the portal or the broker killed too, machines may rightly be silent for longer than 10 s, and wake-ups wait for the sweep. So a wish
may come to its end in words: an activation that was due then is refused because a machine is silent, a step times out because of that. Such
ends are counted under "excused", each with its reason, and only when one of these was away shortly before. What stays: nothing happens
twice (no status, order, start, hand-over or command), nothing out of order, nothing without its order, no leader stopped without a
hand-over, and nothing is stuck.
"""

import argparse
import itertools
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent.parent
WORKERS, BEATS = 10, 3
REST_KILL_EVERY = (8.0, 20.0)  # seconds: of what there is one of only
DUE_EVERY = 6.0  # seconds
LIMIT = 1200.0  # seconds
COMMAND = "note"


# --------------------------------------------------------------------------------------------------------------- the processes


class Crowd:
    """The processes that are killed and started again."""

    def __init__(self, home: Path, chance: random.Random, *, rest: list[str], workers: int = WORKERS, beats: int = BEATS) -> None:
        from tests.journeys.baton import free_port

        self.home, self.chance, self.rest = home, chance, rest
        self.celery = [f"worker{number}" for number in range(workers)] + [f"beat{number}" for number in range(beats)]
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.told: dict[str, int] = {}  # bytes of a child's log when it was last started
        self.killed: Counter[str] = Counter()
        self.gave_up: Counter[str] = Counter()  # who ended by himself while the portal or the broker was killed, and was started again
        self.away: list[tuple[float, float]] = []  # wall clock: when the portal or the broker was killed, and was started again
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1024)  # stays open while the portal restarts, as in runstack
        self.portal = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._port, self._password = free_port(), secrets.token_hex(12)
        self.broker = f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start_broker(self) -> None:
        from portal import broker
        from tests.journeys.baton import until

        configuration = broker.configure(self.home / "broker", port=self._port, password=self._password)
        self._spawn("broker", [str(broker.find().path), str(configuration)])

        def answers() -> bool:
            try:
                return bool(broker.ping(self.broker, seconds=1.0))
            except Exception:
                return False

        until(answers, 15, "the broker answers")

    def start_web(self) -> None:
        number = self._listening.fileno()
        self._spawn("web", [sys.executable, "-m", "portal.serve", str(number)], pass_fds=(number,))

    def start_celery(self) -> None:
        for name in self.celery:
            self._launch(name)

    def _launch(self, name: str) -> None:
        celery = [sys.executable, "-P", "-m", "celery", "-A", "portal"]
        if name.startswith("worker"):
            own = ["worker", "--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat", "-n", f"{name}@%h"]
        else:
            own = ["beat", "--pidfile", "", "-s", str(self.home / f"{name}-schedule")]
        self._spawn(name, [*celery, *own, "--loglevel", "INFO"])

    def _spawn(self, name: str, command: list[str], **more: Any) -> None:
        with (self.home / f"{name}.log").open("ab") as log:
            self.told[name] = log.tell()
            self.children[name] = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **more)

    def kill_one(self) -> None:
        """One of those that have come up: whoever dies before that tells nothing, and on a busy machine nobody would ever work."""
        grown = [name for name in self.celery if self._came_up(name)]
        if not grown:
            return
        name = self.chance.choice(grown)
        self._kill(name, name.rstrip("0123456789"))
        self._launch(name)

    def _came_up(self, name: str) -> bool:
        """By its own word since it was started: a worker is ready, a beat has sent something."""
        with (self.home / f"{name}.log").open("rb") as log:
            log.seek(self.told[name])
            return (b" ready." if name.startswith("worker") else b"Sending due task") in log.read()

    def rest_is_up(self) -> bool:
        """Do portal and broker answer again."""
        from portal import broker

        try:
            httpx.get(f"{self.portal}/login/", timeout=1.0).raise_for_status()
            return bool(broker.ping(self.broker, seconds=1.0))
        except Exception:  # whatever it is: not yet
            return False

    def kill_of_the_rest(self) -> None:
        what, began = self.chance.choice(self.rest), time.time()
        if what == "web":
            self._kill("web", what)
            self.start_web()
        else:
            self._kill("broker", what)
            time.sleep(self.chance.uniform(0.0, 3.0))
            if what == "data":
                shutil.rmtree(self.home / "broker")
            self.start_broker()
        self.away.append((began, time.time()))

    def _kill(self, name: str, what: str) -> None:
        child = self.children[name]
        if child.poll() is None:
            self.killed[what] += 1
            child.send_signal(signal.SIGKILL)
        child.wait()

    def again(self, name: str) -> None:
        {"web": self.start_web, "broker": self.start_broker}.get(name, lambda: self._launch(name))()

    def ended(self) -> list[str]:
        """Who ended by himself, which nobody should."""
        return sorted(name for name, child in self.children.items() if child.poll() is not None)

    def end(self) -> None:
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            child.wait()
        self._listening.close()


class Book:
    """The machines' own record, one line per deed, written before it is done. Any thread may write."""

    def __init__(self, file: Path) -> None:
        self.file, self._lock = file, threading.Lock()
        self._stream = file.open("a")

    def writer(self, environment: int, machine: str) -> Any:
        def write(**deed: Any) -> None:
            with self._lock:
                self._stream.write(json.dumps({"environment": environment, "machine": machine, **deed}) + "\n")
                self._stream.flush()

        return write

    def deeds(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------ the database's own record

WATCHED = (  # what, table, event, column whose change is told, column that says of whom
    ("activation", "deployments_activation", "UPDATE", "status", "id"),
    ("deployment begun", "deployments_deployment", "INSERT", "status", "id"),
    ("deployment", "deployments_deployment", "UPDATE", "status", "id"),
    ("step", "deployments_steprun", "UPDATE", "status", "id"),
    ("attempt", "deployments_steprun", "UPDATE", "attempt", "id"),
    ("attempt kept", "deployments_stepattempt", "INSERT", "number", "step_id"),
    ("bundle", "runtimes_runtime", "UPDATE", "desired_bundle_id", "id"),
    ("restart", "runtimes_runtime", "UPDATE", "desired_restarts", "id"),
    ("command", "runtimes_commandrun", "INSERT", "actor", "id"),
    ("request", "runtimes_grouprequest", "INSERT", "actor", "id"),
)


def watch_the_database() -> None:
    """Triggers write what is committed into a table of the harness, in the transaction that does it."""
    from django.db import connection

    postgres = connection.vendor == "postgresql"
    serial = "bigserial PRIMARY KEY" if postgres else "integer PRIMARY KEY AUTOINCREMENT"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE chaos_record (id {serial}, what text, whose text, former text, latter text)")
        for number, (what, table, event, column, whose) in enumerate(WATCHED):
            former = f"CAST(OLD.{column} AS text)" if event == "UPDATE" else "''"
            insert = (
                "INSERT INTO chaos_record (what, whose, former, latter) "
                f"VALUES ('{what}', CAST(NEW.{whose} AS text), {former}, CAST(NEW.{column} AS text));"
            )
            timing = f"AFTER {event}{f' OF {column}' if event == 'UPDATE' else ''} ON {table} FOR EACH ROW"
            differs = f"WHEN (OLD.{column} IS DISTINCT FROM NEW.{column})" if event == "UPDATE" else ""
            if not postgres:
                differs = differs.replace("IS DISTINCT FROM", "IS NOT")
                cursor.execute(f"CREATE TRIGGER chaos_{number} {timing} {differs} BEGIN {insert} END")
                continue
            body = f"BEGIN {insert} RETURN NEW; END"
            cursor.execute(f"CREATE FUNCTION chaos_{number}() RETURNS trigger LANGUAGE plpgsql AS $chaos${body}$chaos$")
            cursor.execute(f"CREATE TRIGGER chaos_{number} {timing} {differs} EXECUTE FUNCTION chaos_{number}()")


def recorded() -> dict[str, dict[str, list[tuple[str, str]]]]:
    """what -> whose -> its changes (former, latter) in the order in which they were made."""
    from django.db import connection

    found: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    with connection.cursor() as cursor:
        cursor.execute("SELECT what, whose, former, latter FROM chaos_record ORDER BY id")
        for what, whose, former, latter in cursor.fetchall():
            found[what][whose].append((former or "", latter or ""))
    return found


# ------------------------------------------------------------------------------------------------------------------ the landscape


@dataclass
class Place:
    """One project's Test: its two releases by turns, its machines and their join tokens."""

    environment: Any
    releases: list[Any]
    tokens: dict[str, str] = field(default_factory=dict)


def landscape(count: int) -> tuple[Any, list[Place]]:
    """So many projects with an applied Test, preferences, two releases and a plan whose steps must not run twice; and a developer."""
    from deployments import plans, releases
    from deployments.models import Step, StepKind
    from portal import properties
    from portal.models import Flow, Role, Team
    from runtimes import failover, joining
    from runtimes.models import FailoverGroup, Machine, Runtime
    from runtimes.protocol import Preference
    from tests import factories
    from tests.deployments.conftest import VALUES, save_version

    team = Team.objects.create(name="Chaos", slug="chaos")
    person = factories.person("developer", team, Role.DEVELOPER)
    steps: list[dict[str, Any]] = [
        {"kind": StepKind.ALERTING_OFF},
        {"kind": StepKind.DEPLOY_ROUTERS},
        {"kind": StepKind.DEPLOY_RUNTIME, "machine": "external01", "connector": "erp"},
        {"kind": StepKind.DEPLOY_RUNTIME, "machine": "external02", "connector": "erp"},
        {"kind": StepKind.RESTART_RUNTIME, "machine": "external01", "connector": "erp"},
        {"kind": StepKind.RUN_COMMAND, "machine": "core01", "command": COMMAND},
        {"kind": StepKind.BALANCE_FAILOVER},
    ]
    found = []
    for number in range(count):
        project = factories.project(team, f"p{number}")
        connector = factories.failover_design(project)
        test = project.environments.get(kind="test")
        factories.applied(test, connector)
        FailoverGroup.objects.filter(environment=test).delete()  # they come with the first deployment
        Machine.objects.filter(environment=test).update(joined_at=None, last_report_at=None)
        for key, value in VALUES.items():
            properties.set_value(test, key, value, by=person)
        failover.prefer(Runtime.objects.get(environment=test, machine__name="external01"), Preference.LEADER)
        plan = plans.plan_of(test)
        Step.objects.filter(plan=plan).delete()
        Step.objects.bulk_create(Step(plan=plan, position=position, **step) for position, step in enumerate(steps, start=1))
        flow = Flow.objects.get(connector=connector)
        pair = []
        for minor in (0, 1):
            save_version(flow, minor, inbound={"kind": "file", "settings": {"folder": f"/srv/in{minor}"}})
            pair.append(releases.build(project, name=f"r{minor}", by=person))
        place = Place(test, pair)
        for machine in Machine.objects.filter(environment=test):
            place.tokens[machine.name] = joining.register(machine, by=person)
        found.append(place)
    return person, found


def send_agents(places: list[Place], portal: str, book: Book) -> list[Any]:
    """The machines of each environment on a thread of their own."""
    from benchmarks.light import Cluster, Fleet, LightAgent

    fleets = []
    for place in places:
        cluster = Cluster()
        agents = [
            LightAgent(portal, name, token, cluster=cluster, record=book.writer(place.environment.pk, name))
            for name, token in place.tokens.items()
        ]
        fleets.append(Fleet(agents))
    return fleets


def schedule(places: list[Place], count: int, person: Any) -> None:
    """Every DUE_EVERY seconds one of each environment becomes due, with its two releases in turn: mostly while the one before deploys."""
    from datetime import timedelta

    from django.utils import timezone

    from deployments import schedules

    now = timezone.now()
    for number in range(count):
        place, turn = places[number % len(places)], number // len(places)
        due_at = now + timedelta(seconds=3 + DUE_EVERY * turn)
        schedules.schedule(
            place.releases[turn % 2], place.environment, due_at=due_at, by=person, now=now, deploys=True, expires_after_minutes=None
        )


def live_through(crowd: Crowd, fleets: list[Any], chance: random.Random, count: int, every: float, limit: float) -> float:
    """Kill until everything is over. How long it took, in seconds."""
    from django.db import OperationalError

    from deployments.models import LIVE, Activation, ActivationStatus, Deployment

    began = time.monotonic()
    kill_at, rest_at, tell_at = began + 3.0, began + 6.0, began + 15.0
    while True:
        time.sleep(0.05)
        now = time.monotonic()
        if now >= kill_at:
            crowd.kill_one()
            kill_at = time.monotonic() + chance.uniform(0.5, 1.5) * every
        for name in crowd.ended():  # a worker whose broker is away may give up: whoever runs it starts it again
            if not crowd.rest:
                break
            crowd.gave_up[name.rstrip("0123456789")] += 1
            crowd.again(name)
        if crowd.rest and now >= rest_at:
            if down := not crowd.rest_is_up():
                crowd.away[-1:] = [(crowd.away[-1][0], time.time())] if crowd.away else []
            else:
                crowd.kill_of_the_rest()
            rest_at = time.monotonic() + (1.0 if down else chance.uniform(*REST_KILL_EVERY))
        try:
            waiting = Activation.objects.filter(status__in=(ActivationStatus.SCHEDULED, ActivationStatus.HELD)).count()
            going = Deployment.objects.filter(status__in=LIVE).count()
        except OperationalError:
            continue
        if not waiting and not going:
            return time.monotonic() - began
        if not all(fleet.alive for fleet in fleets):
            raise SystemExit("A light agent ended: see above.")
        if now >= tell_at:
            print(f"{now - began:.0f} s: {waiting} activations wait, {going} deployments go on", file=sys.stderr, flush=True)
            tell_at = now + 15.0
        if now - began > limit:
            raise SystemExit(f"After {limit:.0f} s, {waiting} of {count} activations wait and {going} deployments go on: stuck.")


# --------------------------------------------------------------------------------------------------------------------- the judge

STEP = [("pending", "running"), ("running", "succeeded")]
UNCHANGED = [("pending", "running"), ("running", "skipped")]  # after one that was excused the same release may come again
BROKE = ([("pending", "running"), ("running", "failed")], [("pending", "running"), ("running", "timed-out")])
ACTIVATION = [("scheduled", "active"), ("active", "replaced")]
SHADOW_SECONDS = 150.0  # after the portal or the broker was away: a step's own time limit, and until machines are heard again
# What a silent machine, or a wake-up that comes late, may rightly end in; nothing else is excused.
EXCUSES = (
    "has not been heard from",
    "has not taken its orders yet",
    "did not report",
    "within 120 s",
    "carried it in time",
    "nobody is known",
)


@dataclass
class Judge:
    """Every violation of what must be true, and what else came to an end that is excused."""

    away: list[tuple[float, float]]  # when the portal or the broker was
    wrong: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)

    def ended(self, sentence: str, reason: str, at: Any) -> None:
        """Something did not succeed: excused where machines were rightly silent, a violation otherwise."""
        moment = at.timestamp() if at is not None else 0.0
        shadowed = any(began <= moment <= back + SHADOW_SECONDS for began, back in self.away)
        known = any(words in reason for words in EXCUSES)
        (self.excused if shadowed and known else self.wrong).append(f"{sentence}: {reason}")

    def activations(self, count: int, record: Any) -> None:
        from deployments.models import Activation

        rows = list(Activation.objects.all())
        if len(rows) != count:
            self.wrong.append(f"{len(rows)} activations instead of {count}.")
        for row in rows:
            changes = record["activation"][str(row.pk)]
            if changes == [("scheduled", "failed")] and row.deployment_id is None:
                self.ended(f"Activation {row.pk} was refused", row.reason, row.due_at)
                continue
            if changes not in (ACTIVATION, ACTIVATION[:1]):
                self.wrong.append(f"Activation {row.pk} went through {changes}: {row.reason}")
            if row.deployment_id is None:
                self.wrong.append(f"Activation {row.pk} began no deployment.")
        begun = Counter(row.deployment_id for row in rows if row.deployment_id)
        self.wrong += [f"Deployment {pk} was begun by {times} activations." for pk, times in begun.items() if times > 1]
        active = Counter(row.environment_id for row in rows if row.status == "active")
        self.wrong += [f"Environment {pk} has {times} active releases." for pk, times in active.items() if times > 1]
        if len(record["deployment begun"]) != len(begun):
            self.wrong.append(f"{len(record['deployment begun'])} deployments were begun by {len(begun)} activations.")

    def deployment(self, run: Any, record: Any) -> None:
        changes = record["deployment"][str(run.pk)]
        broken = [step for step in run.steps.all() if record["step"][str(step.pk)] in BROKE]
        for step in broken:
            self.ended(f"Step {step.number} of {run.pk} is {step.status}", step.reason, step.ended_at)
        if changes != STEP and not (broken and changes in BROKE):
            self.wrong.append(f"Deployment {run.pk} went through {changes}.")
        if run.alerting_off:
            self.wrong.append(f"Deployment {run.pk} left alerting off.")
        for step in run.steps.all():
            went = record["step"][str(step.pk)]
            if went == STEP or step in broken or (went == UNCHANGED and self.excused) or (broken and not went):
                continue
            self.wrong.append(f"Step {step.number} of {run.pk} went through {went}: {step.reason}")
        lines = sorted(line.number for line in run.log.all())
        if lines != list(range(1, run.log_lines + 1)):
            self.wrong.append(f"The log of {run.pk} has the lines {lines}, of {run.log_lines}.")
        if not broken:
            self.wrong += [f"Deployment {run.pk} says: {line.text}" for line in run.log.all() if line.level == "error"]

    def order(self, place: Place, runs: list[Any]) -> None:
        from deployments.models import Activation

        rows = Activation.objects.filter(environment=place.environment, deployment__isnull=False).order_by("due_at", "pk")
        due = list(rows.values_list("deployment_id", flat=True))
        if due != [run.pk for run in runs]:
            self.wrong.append(f"{place.environment}: activations due in the order {due} were carried out as {[run.pk for run in runs]}.")

    def machines(self, place: Place, runs: list[Any], deeds: list[dict[str, Any]], record: Any) -> None:
        """The processes, hand-overs and commands that were ordered, each once, in their order; all that a step which succeeded proves."""
        from runtimes.models import Runtime

        where = place.environment
        for runtime in Runtime.objects.filter(environment=where).select_related("machine", "connector"):
            begun = [(deed["digest"], deed["restarts"]) for deed in deeds if deed["what"] == "start" and deed["runtime"] == runtime.key]
            ordered = orders_of(runtime.pk)
            proven = sum(_started(step, runtime.machine.name) for run in runs for step in run.steps.all())
            if not within(begun, ordered):
                self.wrong.append(f"{where}: {runtime.key} was started as {_short(begun)}, ordered was {_short(ordered)}.")
            if len(begun) < proven:
                self.wrong.append(f"{where}: {runtime.key} was started {len(begun)} times, and {proven} steps say that they did.")
            if not self.excused and begun != ordered:
                self.wrong.append(f"{where}: {runtime.key} was started as {_short(begun)}, though nothing was away: {_short(ordered)}.")
        led = [deed for deed in deeds if deed["what"] == "stop" and deed["led"]]
        self.wrong += [f"{where}: {deed['runtime']} was stopped while it led {deed['led']}." for deed in led]
        self._orders(where, runs, deeds, record)

    def _orders(self, where: Any, runs: list[Any], deeds: list[dict[str, Any]], record: Any) -> None:
        actors = Counter(changes[0][1] for changes in record["command"].values())
        requests = Counter(changes[0][1] for changes in record["request"].values())
        ran = sum(deed["what"] == "command" for deed in deeds)
        for number, run in enumerate(runs):
            name = f"deployment {run.pk}"
            whole = all(step.status == "succeeded" for step in run.steps.all())
            if actors[name] > 1 or (whole and actors[name] != 1):
                self.wrong.append(f"{name} ordered the command {actors[name]} times.")
            # The leader is handed over before it is deployed, the next before its turn, before the restart, and back by Balance. At first
            # nobody leads: only restart and Balance remain.
            if not self.excused and requests[name] != (4 if number else 2):
                self.wrong.append(f"{name} asked for {requests[name]} hand-overs.")
        for what in ("command", "hand-over"):
            done = Counter(deed["id"] for deed in deeds if deed["what"] == what)
            self.wrong += [f"{where}: {what} {key} was done {times} times." for key, times in done.items() if times > 1]
        failed = [deed for deed in deeds if deed["what"] == "hand-over" and deed["ended"] != "succeeded"]
        if not self.excused:
            self.wrong += [f"{where}: hand-over {deed['id']} {deed['ended']}." for deed in failed]
        told = sum(step.kind == "run-command" and step.status == "succeeded" for run in runs for step in run.steps.all())
        ordered = sum(actors[f"deployment {run.pk}"] for run in runs)
        if not told <= ran <= ordered:
            self.wrong.append(f"{where}: {ran} commands ran; {ordered} were ordered, {told} steps say that theirs did.")


def orders_of(runtime: int) -> list[tuple[str, int]]:
    """What a runtime was ordered to run: bundle and count of restarts after each committed change of one of them."""
    from django.db import connection

    found, digest, restarts = [], "", 0
    with connection.cursor() as cursor:
        query = "SELECT what, latter FROM chaos_record WHERE whose = %s AND what IN ('bundle', 'restart') ORDER BY id"
        cursor.execute(query, [str(runtime)])
        for what, latter in cursor.fetchall():
            digest, restarts = (latter, restarts) if what == "bundle" else (digest, int(latter))
            found.append((digest, restarts))
    return found


def within(begun: list[tuple[str, int]], ordered: list[tuple[str, int]]) -> bool:
    """Is each start one of the orders, in their order, and no order carried out twice."""
    left = iter(ordered)
    return all(start in left for start in begun)


def _started(step: Any, machine: str) -> bool:
    """Does this step prove that it started a process of the machine's."""
    return step.machine == machine and step.kind in ("deploy-runtime", "restart-runtime") and step.status == "succeeded"


def judge(count: int, places: list[Place], deeds: list[dict[str, Any]], away: list[tuple[float, float]]) -> dict[str, Any]:
    """Every violation of what must be true, from the two records and the rows, what is excused, and how much of what there was."""
    from deployments.models import Deployment

    record, verdict = recorded(), Judge(away)
    verdict.activations(count, record)
    deployments = list(Deployment.objects.prefetch_related("steps", "log").order_by("pk"))
    for deployment in deployments:
        verdict.deployment(deployment, record)
    repeated = [f"Step {pk} has attempts {changes}." for what in ("attempt", "attempt kept") for pk, changes in record[what].items()]
    verdict.wrong += repeated
    for place in places:
        runs = [deployment for deployment in deployments if deployment.environment_id == place.environment.pk]
        verdict.order(place, runs)
        verdict.machines(place, runs, [deed for deed in deeds if deed["environment"] == place.environment.pk], record)
    return {
        "violations": verdict.wrong,
        "excused": verdict.excused,
        "activations": sum(("scheduled", "active") in changes for changes in record["activation"].values()),
        "deployments": sum(deployment.status == "succeeded" for deployment in deployments),
        "steps": sum(changes == STEP for changes in record["step"].values()),
        "starts": sum(deed["what"] == "start" for deed in deeds),
        "hand-overs": sum(deed["what"] == "hand-over" for deed in deeds),
        "commands": sum(deed["what"] == "command" for deed in deeds),
    }


def _short(starts: list[tuple[str, int]]) -> list[str]:
    return [f"{digest[:6]}/{restarts}" for digest, restarts in starts]


def errors_in_logs(home: Path) -> dict[str, int]:
    """What processes that were not told to end complained about: the last line of each traceback, counted."""
    found: Counter[str] = Counter()
    for file in home.glob("*.log"):
        inside = False
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Traceback"):
                inside = True
            elif inside and line and not line[0].isspace() and not line.startswith(("During", "The above")):
                found[f"{file.stem.rstrip('0123456789')}: {line[:160]}"] += 1
                inside = False
    return dict(found.most_common(12))


# -------------------------------------------------------------------------------------------------------------------------- main


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.journeys.chaos")
    arguments.add_argument("home", type=Path)
    arguments.add_argument("--activations", type=int, default=100)
    arguments.add_argument("--environments", type=int, default=4, help="in which they become due, with three machines each")
    arguments.add_argument("--seed", type=int, default=secrets.randbelow(10_000))
    arguments.add_argument("--every", type=float, default=4.0, help="seconds between two kills, on average")
    arguments.add_argument("--workers", type=int, default=WORKERS)
    arguments.add_argument("--beats", type=int, default=BEATS)
    arguments.add_argument("--limit", type=float, default=LIMIT, help="seconds, after which what goes on is stuck")
    arguments.add_argument("--kill", default="", help="beside workers and beats: web, broker, data (the broker's, with it)")
    asked = arguments.parse_args()
    home = asked.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    print(f"seed {asked.seed}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the crowd ends then too
    os.environ |= {"BATON_HOME": str(home), "DJANGO_SETTINGS_MODULE": "portal.settings", "BATON_LOG_LEVEL": "WARNING"}
    os.environ.setdefault("DATABASE_URL", "")
    chance = random.Random(asked.seed)
    crowd = Crowd(home, chance, rest=[word for word in asked.kill.split(",") if word], workers=asked.workers, beats=asked.beats)
    os.environ["REDIS_URL"] = crowd.broker
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection
    from django.utils import timezone

    from portal.models import Heartbeat
    from runtimes.models import Machine
    from tests.journeys.baton import until

    book, fleets = Book(home / "machines.jsonl"), []
    try:
        call_command("migrate", verbosity=0)
        watch_the_database()
        person, places = landscape(min(asked.environments, asked.activations))
        crowd.start_broker()
        crowd.start_web()
        fleets = send_agents(places, crowd.portal, book)
        until(lambda: not any(machine.is_silent(now=timezone.now()) for machine in Machine.objects.all()), 60, "all machines report")
        crowd.start_celery()
        until(Heartbeat.objects.exists, 60, "a worker does what a beat sends")
        schedule(places, asked.activations, person)
        seconds = live_through(crowd, fleets, chance, asked.activations, asked.every, asked.limit)
        ended = crowd.ended()
    finally:
        crowd.end()
        for fleet in fleets:
            fleet.stop()
    found = judge(asked.activations, places, book.deeds(), crowd.away)
    found["violations"] += [f"{name} ended by itself." for name in ended]
    trouble = sum((agent.trouble for fleet in fleets for agent in fleet.agents.values()), Counter[str]())
    figures = found | {
        "seconds": round(seconds, 1),
        "killed": dict(crowd.killed),
        "gave up, started again": dict(crowd.gave_up),
        "seed": asked.seed,
        "database": connection.vendor,
        "refused to agents": dict(itertools.islice(trouble.most_common(), 6)),
        "errors in logs": errors_in_logs(home),
    }
    print(json.dumps(figures), flush=True)
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
