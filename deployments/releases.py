"""Releases: build, activate; and the bundle a runtime gets from one."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction
from django.db.models import Max, OuterRef, Subquery

from deployments import moves, plans, promotion
from deployments.models import Activation, ActivationStatus, Plan, Release
from portal import creation, property_uses, property_values
from portal.errors import Busy, Invalid, NotAllowed
from portal.models import Connector, DesignedMachine, Environment, Flow, FlowVersion, Group, Project
from portal.property_values import Missing
from runtimes import fleet, protocol
from runtimes.models import Machine, Runtime

ATTEMPTS = 10  # at a number or an activation that somebody else just took


# ------------------------------------------------------------------------------------------------------------------- build


def build(project: Project, *, name: str, note: str = "", by: AbstractBaseUser | None) -> Release:
    """An immutable snapshot of the Create phase (the latest saved version of every flow) and the designed placement it needs.

    Raises:
        Invalid: no name, or no flow has a saved version.
    """
    name = name.strip()
    if not name:
        raise Invalid("Give the release a name.", field="name")
    if len(name) > 80:
        raise Invalid("The name is too long: use at most 80 characters.", field="name")
    content, omitted = _snapshot(project), omitted_now(project)
    digest = hashlib.sha256(canonical(content)).hexdigest()
    for _ in range(ATTEMPTS):
        last = Release.objects.filter(project=project).aggregate(last=Max("number"))["last"] or 0
        try:
            with transaction.atomic():
                return Release.objects.create(
                    project=project,
                    number=last + 1,
                    name=name,
                    note=note,
                    content=content,
                    digest=digest,
                    omitted=omitted,
                    created_by_id=by.pk if by else None,
                )
        except IntegrityError:
            continue
    raise Busy("Others are making releases of this project at this moment: try again.")


@dataclass(frozen=True)
class Draft:
    """A flow and the version that a release made now would contain."""

    flow: Flow
    version: FlowVersion | None
    unsaved: bool  # edited since


def drafts(project: Project) -> list[Draft]:
    """Two queries."""
    newest = FlowVersion.objects.filter(flow=OuterRef("pk")).order_by("-major", "-minor", "-patch").values("pk")[:1]
    flows = Flow.objects.filter(connector__project=project).select_related("connector", "group").annotate(newest=Subquery(newest))
    flows = flows.order_by("connector__name", "name")
    versions = FlowVersion.objects.in_bulk([flow.newest for flow in flows if flow.newest])
    found = [(flow, versions.get(flow.newest)) for flow in flows]
    return [Draft(flow, version, bool(version and creation.changed_since(version, flow.definition()))) for flow, version in found]


def omitted_now(project: Project) -> list[dict[str, str]]:
    """What a release made now does not hold: flows without a saved version, and edits since the newest one."""
    return [
        {"flow": draft.flow.name, "connector": draft.flow.connector.name, "version": draft.version.number if draft.version else ""}
        for draft in drafts(project)
        if draft.version is None or draft.unsaved
    ]


def canonical(content: Any) -> bytes:
    """Equal content gives equal bytes: JSON with sorted keys and no spaces."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _snapshot(project: Project) -> dict[str, Any]:
    newest = FlowVersion.objects.filter(flow=OuterRef("flow")).order_by("-major", "-minor", "-patch").values("pk")[:1]
    versions = (
        FlowVersion.objects.filter(flow__connector__project=project, pk=Subquery(newest))
        .select_related("flow__connector")
        .order_by("flow__connector__name", "flow__name")
    )
    groups = {group.key: group for group in Group.objects.filter(connector__project=project).select_related("connector")}
    flows, used = [], {}
    for version in versions:
        definition = version.definition
        group = definition["group"]
        if group and group not in groups:
            raise Invalid(
                f"Flow {version.flow.name} {version.number} is in group {definition['group_name']}, which is gone: "
                "choose a group and save a new version."
            )
        if group:
            used[group] = groups[group]
        flows.append(
            {
                "id": version.flow.key,
                "name": definition["name"],
                "version": version.number,
                "connector": version.flow.connector.name,
                "inbound": definition["inbound"],
                "outbound": definition["outbound"],
                "group": group,
                "auto_start": definition["auto_start"],
            }
        )
    if not flows:
        raise Invalid("No flow has a saved version: save one in Create › Flows first.")
    connectors = Connector.objects.filter(project=project).select_related("system").prefetch_related("placements__machine")
    return {
        "flows": flows,
        "groups": [
            {"id": key, "name": group.name, "connector": group.connector.name}
            for key, group in sorted(used.items(), key=lambda item: (item[1].connector.name, item[1].name))
        ],
        "connectors": [
            {
                "name": connector.name,
                "system": connector.system.name,
                "failover": connector.failover,
                "machines": sorted(placement.machine.name for placement in connector.placements.all()),
            }
            for connector in connectors
        ],
        "machines": [
            {"name": machine.name, "kind": machine.kind, "router": machine.router}
            for machine in DesignedMachine.objects.filter(project=project)
        ],
        "plans": {
            plan.environment.kind: [plans.written(step) for step in plan.steps.all()]
            for plan in Plan.objects.filter(environment__project=project).select_related("environment").prefetch_related("steps")
        },
    }


# ------------------------------------------------------------------------------------------------------------ what it needs


def _places(release: Release, environment: Environment) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(machine, connector) of every runtime and (machine, kind) of every router: as applied here, or as the release was designed."""
    machines = list(Machine.objects.filter(environment=environment).select_related("router").prefetch_related("runtimes__connector"))
    if machines:
        return (
            [(machine.name, runtime.connector.name) for machine in machines for runtime in machine.runtimes.all()],
            [(machine.name, machine.kind) for machine in machines if hasattr(machine, "router") and not machine.router.leaving],
        )
    content = release.content
    return (
        [(machine, connector["name"]) for connector in content["connectors"] for machine in connector["machines"]],
        [(machine["name"], machine["kind"]) for machine in content["machines"] if machine["router"]],
    )


def missing(release: Release, environment: Environment) -> list[Missing]:
    """Every placeholder without a value, once per runtime and router, for this release on this environment; fixed number of queries."""
    filled = property_values.filled(environment)
    runtimes, routers = _places(release, environment)
    used: dict[str, list[property_uses.Use]] = {}
    for flow in release.content["flows"]:
        used.setdefault(flow["connector"], []).extend(property_uses.uses(flow["name"], flow))
    found = []
    for machine, kind in routers:
        name = property_uses.router_name(machine, kind)
        found += [
            Missing(use.key, name, use.used_by) for use in property_uses.router_uses(machine) if filled.lacks_address(use.key, machine)
        ]
    for machine, connector in runtimes:
        key = protocol.runtime_key(machine, connector)
        for use in used.get(connector, ()):
            if filled.source(use.key, machine, connector) is None:
                found.append(Missing(use.key, key, use.used_by))
    found += [Missing(use.key, "the plan", use.used_by) for use in plans.url_uses(environment) if filled.source(use.key, "", "") is None]
    return property_values.once(found)


def warnings(release: Release, environment: Environment) -> list[str]:
    """What does not forbid activation but should be known: a failover group and no Balance failover step in the plan, …"""
    content = release.content
    runtimes, routers = _places(release, environment)
    count: dict[str, int] = {}
    for _, connector in runtimes:
        count[connector] = count.get(connector, 0) + 1
    failing_over = {item["name"] for item in content["connectors"] if item["failover"] and count.get(item["name"], 0) > 1}
    groups = [group["name"] for group in content["groups"] if group["connector"] in failing_over]
    steps = list(plans.plan_of(environment).steps.all())
    sentences = [item.sentence for item in moves.foreseen(release, environment, steps)]
    sentences += moves.retired(release, environment, steps)
    sentences += plans.balance_findings(steps, groups)
    if groups and not routers:
        sentences.append(
            f"{environment.name} has no routers, so nothing fails over there: use Design › Architecture › Apply settings, "
            "then Deploy › Architecture › Apply to environment."
        )
    routed = {machine for machine, _ in routers}
    for name in sorted({group["connector"] for group in content["groups"]} & failing_over if routed else ()):
        lacking = " and ".join(sorted(machine for machine, connector in runtimes if connector == name and machine not in routed))
        if lacking:
            sentences.append(
                f"{name} fails over in this release and stands still on {lacking}, where no router is: use Design › Architecture › "
                "Apply settings, then Deploy › Architecture › Apply to environment."
            )
    for name in sorted({flow["connector"] for flow in content["flows"]} - set(count)):
        sentences.append(f"Connector {name} has no runtime on {environment.name}: its flows run nowhere there.")
    for flow in content["flows"]:
        if flow["connector"] in failing_over and not flow["group"]:
            machines = " and ".join(sorted(machine for machine, connector in runtimes if connector == flow["connector"]))
            sentences.append(f"Flow {flow['name']} has no group: it takes on {machines} at the same time.")
        inbound = flow["inbound"]
        if (
            flow["connector"] in failing_over
            and inbound["kind"] == "amqp"
            and inbound["settings"].get("without_id", "each") in ("", "each")
        ):
            sentences.append(
                f"Flow {flow['name']} gives a message without message-id a new id at each delivery: one that comes again after a takeover "
                "is not known as the same. Let each publisher set one, and choose that messages without are failed items."
            )
    return sentences


def bundle_for(release: Release, runtime: Runtime, values: property_values.Values) -> protocol.BundleContent:
    """What this release gives a runtime to run, every placeholder replaced from `values` (the environment's properties).

    Raises:
        NotAllowed: placeholders without a value, one reason each, or the release knows nothing of the connector.
    """
    machine, connector = runtime.machine.name, runtime.connector.name
    content = release.content
    designed = next((item for item in content["connectors"] if item["name"] == connector), None)
    if designed is None:
        raise NotAllowed(f"Release {release.number} has no connector {connector}: make a new release from Create.")
    known = values.winners(machine, connector)
    lacking: list[Missing] = []

    secrets: set[str] = set()

    def component(flow: dict[str, Any], side: str) -> protocol.Component:
        resolved = property_values.resolve(flow[side]["settings"], known)
        secrets.update(resolved.secrets)
        return protocol.Component(kind=protocol.ComponentKind(flow[side]["kind"]), settings=resolved.settings)

    mine = [flow for flow in content["flows"] if flow["connector"] == connector]
    for flow in mine:
        lacking += [Missing(use.key, runtime.key, use.used_by) for use in property_uses.uses(flow["name"], flow) if use.key not in known]
    if lacking:
        reasons = [item.sentence for item in property_values.once(lacking)]
        raise NotAllowed(" ".join(reasons), reasons=reasons)
    groups = [group for group in content["groups"] if group["connector"] == connector]
    members, failover = _members(runtime, designed) if groups else ([], False)
    flows = [
        protocol.FlowSpec(
            id=flow["id"],
            name=flow["name"],
            version=flow["version"],
            inbound=component(flow, "inbound"),
            outbound=component(flow, "outbound"),
            group=flow["group"],
            auto_start=flow["auto_start"],
        )
        for flow in mine
    ]
    return protocol.BundleContent(
        environment=runtime.environment.kind,
        machine=machine,
        connector=connector,
        release=release.number,
        flows=flows,
        groups=[protocol.GroupSpec(id=group["id"], name=group["name"], failover=failover, members=members) for group in groups],
        timing=protocol.PROFILES[protocol.TimingProfile(runtime.environment.timing_profile)],
        secrets=sorted(secrets),
        cluster=runtime.environment.cluster.hex,
    )


def _members(runtime: Runtime, designed: dict[str, Any]) -> tuple[list[str], bool]:
    """Keys of the runtimes of its connector there, and whether their groups fail over. Two queries at most."""
    siblings = Runtime.objects.filter(environment_id=runtime.environment_id, connector_id=runtime.connector_id)
    members = sorted(protocol.runtime_key(name, designed["name"]) for name in siblings.values_list("machine__name", flat=True))
    return members, moves.fails_over(designed, len(members), routers=fleet.has_routers(runtime.environment_id))


# ----------------------------------------------------------------------------------------------------------------- activate


def active(environment: Environment) -> Release | None:
    """The release chosen for the environment now."""
    return Release.objects.filter(activations__environment=environment, activations__status=ActivationStatus.ACTIVE).first()


def too_many_groups(release: Release, environment: Environment) -> list[str]:
    """Connectors that would have more failover groups than one runtime can lead, a sentence each."""
    runtimes, routers = _places(release, environment)
    places, content = Counter(connector for _, connector in runtimes), release.content
    groups = Counter(group["connector"] for group in content["groups"])
    return [
        f"{item['name']} has {groups[item['name']]} groups in failover, and one runtime leads at most {protocol.MOST_FAILOVER_GROUPS}: "
        "put some of its flows into one group, or into another connector."
        for item in content["connectors"]
        if groups[item["name"]] > protocol.MOST_FAILOVER_GROUPS and moves.fails_over(item, places[item["name"]], routers=bool(routers))
    ]


def refuse_incomplete(release: Release, environment: Environment) -> None:
    """Raises Invalid for a release of another project, NotAllowed with one reason per missing property, or connector of too many groups."""
    if release.project_id != environment.project_id:
        raise Invalid(f"Release {release.number} belongs to another project.", field="release")
    if beyond := too_many_groups(release, environment):
        raise NotAllowed(" ".join(beyond), reasons=beyond)
    if found := missing(release, environment):
        keys, reasons = len(property_values.by_key(found)), [item.sentence for item in found]
        count = f"{keys} keys lack" if keys > 1 else "A key lacks"
        raise NotAllowed(
            f"{count} a value for release {release.number} on {environment.name}: fill in Deploy › Properties. {' '.join(reasons)}",
            reasons=reasons,
        )


def activate(
    release: Release,
    environment: Environment,
    *,
    by: AbstractBaseUser | None,
    now: datetime,
    override: str = "",
    returning: bool = False,
) -> Activation:
    """Choose the release for the environment. Raises NotAllowed with one reason per missing property or rule that forbids it; `override`
    is the reason of a person who may set rules aside, `returning` says that it is a roll back (deployments/promotion.py).

    The release that is active already stays so: nothing is written.
    """
    refuse_incomplete(release, environment)
    for _ in range(ATTEMPTS):
        mine = {"environment": environment, "status": ActivationStatus.ACTIVE}
        if present := Activation.objects.filter(**mine, release=release).first():
            return present
        try:
            with transaction.atomic():
                release.hold()
                promotion.admit(release, environment, act="activate", by=by, at=now, override=override, returning=returning)
                Activation.objects.filter(**mine).update(status=ActivationStatus.REPLACED)
                return Activation.objects.create(**mine, release=release, activated_at=now, created_by_id=by.pk if by else None)
        except IntegrityError:  # somebody activated between the two statements: theirs is replaced in turn
            continue
    raise Busy(f"Others are activating releases on {environment.name} at this moment: try again.")
