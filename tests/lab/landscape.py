"""The lab's project, made by the product's own acts in the lab's own BATON_HOME (`python -m tests.lab.landscape <facts.json>`).

Webshop of team Lab: system ERP feeds a queue on core01 (fenced by epoch), system Tills writes into a shared folder (an outbound that
knows no fence, so that only the permit keeps two leaders from writing), and the warehouse on core01 writes what the queue brings.
"""

import json
import os
import sys
from pathlib import Path

import django

GROUPS = {"erp": "erp-orders", "tills": "tills-sales"}  # connector -> its flow, and the group of the same name


def main(facts: dict[str, str]) -> None:
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.utils import timezone

    from deployments import plans, releases
    from portal import creation, design, properties, router_addresses
    from portal.models import Connector, Environment, EnvironmentKind, Flow, Membership, Project, Role, Team
    from runtimes import architecture, failover, joining
    from runtimes.models import Machine, Runtime
    from runtimes.protocol import Preference

    call_command("migrate", verbosity=0, interactive=False)
    addresses: dict[str, str] = json.loads(facts["addresses"])
    shared = Path(facts["shared"])
    team = Team.objects.create(name="Lab", slug="lab")
    admin = User.objects.create_superuser("admin", "admin@lab.invalid", "baton")
    Membership.objects.create(team=team, user=admin, role=Role.ADMINISTRATOR)
    project = Project.objects.create(team=team, name="Webshop", slug="webshop")
    for position, kind in enumerate(EnvironmentKind):
        Environment.objects.create(project=project, kind=kind, position=position, timing_profile=facts["profile"])
    machines = {
        name: design.add_machine(project, name=name, kind="core" if name.startswith("core") else "external") for name in sorted(addresses)
    }
    many = int(facts["many"])  # groups on one more connector
    for system in ("ERP", "Tills", *(["Many"] if many else [])):
        design.create_system(project, name=system, multiple_runtimes=True, number_of_runtimes=2, failover=True)
        for machine in ("external01", "external02"):
            design.place(Connector.objects.get(project=project, name=system.lower()), machines[machine])
    design.create_system(project, name="Warehouse")
    warehouse = Connector.objects.get(project=project, name="warehouse")
    design.place(warehouse, machines["core01"])
    design.apply_settings(project)

    queue = {"url": "${queues.url}", "prefix": "lab:", "queue": "orders"}
    made = []
    for name, flow in GROUPS.items():
        connector = Connector.objects.get(project=project, name=name)
        written = {"folder": f"${{{name}.inbox}}", "receipts": f"${{{name}.receipts}}"}
        made.append(
            creation.save_flow(
                Flow(connector=connector),
                name=flow,
                inbound_kind="file",
                inbound_settings={"folder": f"${{{name}.outbox}}"},
                outbound_kind="queue" if name == "erp" else "file",
                outbound_settings=queue if name == "erp" else written,
            )
        )
        creation.transfer_failover(connector, {flow: flow})
    for number in range(many):
        connector, name = Connector.objects.get(project=project, name="many"), f"many-{number:02}"
        folders = {"folder": str(shared / "many" / f"{number:02}")}
        written = {"folder": str(shared / "many" / "inbox")}
        made.append(
            creation.save_flow(
                Flow(connector=connector),
                name=name,
                inbound_kind="file",
                inbound_settings=folders,
                outbound_kind="file",
                outbound_settings=written,
            )
        )
    if many:
        creation.transfer_failover(
            Connector.objects.get(project=project, name="many"), {f"many-{n:02}": f"many-{n:02}" for n in range(many)}
        )
    made.append(
        creation.save_flow(
            Flow(connector=warehouse),
            name="warehouse-orders",
            inbound_kind="queue",
            inbound_settings=queue,
            outbound_kind="file",
            outbound_settings={"folder": "${erp.inbox}", "receipts": "${erp.receipts}"},
        )
    )
    for saved in made:
        saved.refresh_from_db()
        creation.save_version(saved, "major", "The lab's.", by=admin)

    test = project.environments.get(kind=EnvironmentKind.TEST)
    architecture.apply(test, seen=None, by=admin)
    values = {"queues.url": facts["queues_url"]}
    for name in GROUPS:
        values |= {f"{name}.outbox": str(shared / name / "outbox"), f"{name}.inbox": str(shared / name / "inbox")}
        values[f"{name}.receipts"] = str(shared / name / "received.jsonl")
    for machine, address in addresses.items():
        address_key, port_key = router_addresses.failover_keys(machine)
        values |= {address_key: address, port_key: "2380"}
    for key, value in values.items():
        properties.set_value(test, key, value, by=admin)
    for runtime in Runtime.objects.filter(environment=test, machine__name="external01"):
        failover.prefer(runtime, Preference.LEADER)
    plans.default_plan(test)
    release = releases.build(project, name="The lab's release", note="", by=admin)
    releases.activate(release, test, by=admin, now=timezone.now())
    tokens = {machine.name: joining.register(machine, by=admin) for machine in Machine.objects.filter(environment=test)}
    Path(facts["tokens"]).write_text(json.dumps(tokens))


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    django.setup()
    main(json.loads(Path(sys.argv[1]).read_text()))
