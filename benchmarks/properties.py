"""How long the grid of properties and the missing-value check take with 10,000 properties: `make bench-properties`.

Makes a project of its own in a new SQLite file, 2,500 flows on 40 runtimes that name every key, and prints milliseconds of server time.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROPERTIES = int(os.environ.get("PROPERTIES", "10000"))
RUNS = int(os.environ.get("RUNS", "7"))
AIM_MS = 300


def measured(name: str, act: Callable[[], object]) -> None:
    from django.db import connection, reset_queries

    act()  # the first one loads templates
    reset_queries()
    connection.force_debug_cursor = True
    act()
    queries = len(connection.queries)
    connection.force_debug_cursor = False
    times, busy = [], []
    for _ in range(RUNS):
        started, worked = time.perf_counter(), time.process_time()
        act()
        times.append((time.perf_counter() - started) * 1000)
        busy.append((time.process_time() - worked) * 1000)
    median = statistics.median(times)
    print(
        f"{name:<50}{median:7.0f} ms median {max(times):7.0f} ms worst of {RUNS} {statistics.median(busy):7.0f} ms of CPU"
        f" {median / AIM_MS:6.2f} of the aim {queries:5} queries",
        flush=True,
    )


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as home:
        os.environ |= {"BATON_HOME": home, "DJANGO_SETTINGS_MODULE": "portal.settings", "BATON_LOG_LEVEL": "WARNING"}
        os.environ.pop("DATABASE_URL", None)
        sys.path.insert(0, str(ROOT))
        import django

        django.setup()
        from django.conf import settings
        from django.core.management import call_command

        settings.ALLOWED_HOSTS = ["*"]
        call_command("migrate", verbosity=0)
        bench()


def bench() -> None:
    from datetime import timedelta

    from django.test import Client
    from django.utils import timezone

    from deployments import grid, releases, sheet
    from portal import creation, properties
    from portal.models import Connector, DesignedMachine, Environment, Flow, FlowVersion, Placement, Property, Role, System, Team
    from runtimes.models import Machine, Runtime
    from tests import factories

    team = Team.objects.create(name="Bench", slug="bench")
    person = factories.person("bench", team, Role.ADMINISTRATOR)
    project = factories.project(team, "bench")
    machines = [DesignedMachine(project=project, name=f"machine{number:02}") for number in range(20)]
    DesignedMachine.objects.bulk_create(machines)
    connectors = []
    for number in range(20):
        system = System.objects.create(project=project, name=f"System {number}", slug=f"system{number}")
        connectors.append(Connector.objects.create(project=project, system=system, name=f"system{number}"))
        for machine in machines[number % 20 :][:2] or machines[:2]:
            Placement.objects.create(connector=connectors[-1], machine=machine)
    keys = [f"bench.key.{number:05}" for number in range(PROPERTIES)]
    flows = [
        Flow(
            connector=connectors[number % 20],
            name=f"flow-{number}",
            inbound_kind="file",
            inbound_settings={"folder": f"${{{keys[4 * number]}}}", "error_folder": f"${{{keys[4 * number + 1]}}}"},
            outbound_kind="file",
            outbound_settings={"folder": f"${{{keys[4 * number + 2]}}}", "receipts": f"${{{keys[4 * number + 3]}}}"},
        )
        for number in range(PROPERTIES // 4)
    ]
    Flow.objects.bulk_create(flows)
    FlowVersion.objects.bulk_create(FlowVersion(flow=flow, major=1, minor=0, patch=0, definition=flow.definition()) for flow in flows)
    test = Environment.objects.get(project=project, kind="test")
    Property.objects.bulk_create(Property(environment=test, key=key, value=f"/srv/{key}") for key in keys[: PROPERTIES - 100])
    release = releases.build(project, name="Bench", by=person)
    assert creation and properties
    print(f"{PROPERTIES} keys, {len(flows)} flows, {Placement.objects.count()} runtimes, SQLite")
    client = Client()
    client.force_login(person)
    here = "/projects/bench/test/properties/"

    def page(name: str, address: str) -> None:
        def act() -> None:
            answer = client.get(address)
            assert answer.status_code == 200, (address, answer.status_code)

        measured(f"page: {name}", act)

    for by in grid.VIEWS:
        page(f"grid by {by}", f"{here}grid/?by={by}")
    for name in sheet.FILTERS:
        page(f"grid by environments, only {name}", f"{here}grid/?by=environments&only={name}")
    page("grid by runtimes, only missing, last page", f"{here}grid/?by=runtimes&only=missing&page=2")
    page("grid, searched", f"{here}grid/?q=key.0099")
    page("values", here)
    page("one key", f"{here}key/?key={keys[0]}")
    chosen = "&".join(f"keys={key}" for key in keys[: grid.ROWS_PER_PAGE])
    page("set 50 keys together", f"{here}bulk/?by=runtimes&{chosen}")
    page("CSV of all", here.rstrip("/") + ".csv")
    page("release with its missing values", f"/projects/bench/releases/{release.number}/?environment=test&tab=preflight")
    page("dialog Activate with missing values", f"/projects/bench/test/releases/{release.number}/activate/")
    edit = {"key": keys[0], "machine": "", "connector": "", "by": "environments", "act": "set", "value": "/srv/other"}
    measured("one cell is saved", lambda: client.post(f"{here}cell/", edit))
    measured("grid, environments", lambda: grid.read(test))
    measured("sheet with missing values", lambda: sheet.find(test))
    measured("missing-value check of a release", lambda: releases.missing(release, test))
    edits = [properties.Edit(test, key, f"/new/{key}") for key in keys]
    measured("preview of an import of all", lambda: properties.plan(edits))

    for machine in machines:
        applied = Machine.objects.create(environment=test, name=machine.name, kind=machine.kind)
        for placement in machine.placements.select_related("connector"):
            Runtime.objects.create(environment=test, machine=applied, connector=placement.connector)
    Property.objects.update(updated_at=timezone.now() - timedelta(hours=1))
    factories.given(factories.deployed(test, release))
    for machine in machines[:4]:  # each of these by a deployment of its own
        pair = [f"{machine.name}.{name}" for name in machine.placements.values_list("connector__name", flat=True)]
        factories.given(factories.deployed(test, release), *pair)
    page("deployed: grid by runtimes", f"{here}grid/?by=runtimes")
    properties.set_values(edits[:100], by=person)
    page("100 newer than what runs: grid by environments", f"{here}grid/?by=environments&only=changed")
    properties.set_values(edits, by=person)
    page("all newer than what runs: grid by environments", f"{here}grid/?by=environments&only=changed")
    page("all newer than what runs: grid by runtimes", f"{here}grid/?by=runtimes&only=changed")
    measured("what is newer than what runs", lambda: sheet.find(test, only=["changed"]))


if __name__ == "__main__":
    main()
