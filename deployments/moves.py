"""Which groups take what, before and after: a flow that moves between groups, or a group that turns failover on or off, must never run
both ways at once (docs/failover.md, Keys). Then every other runtime of the connector stops before the first starts the new bundle.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from deployments.models import DEPLOYS, Release, StepFields, StepKind
from portal.models import Environment
from portal.prepared import Prepared
from runtimes import fleet
from runtimes.models import Bundle, Runtime
from runtimes.protocol import BundleContent, RuntimeState


@dataclass(frozen=True)
class Layout:
    """What of a bundle decides who may take: flow id -> (name, group id), group id -> (name, whether it fails over)."""

    flows: Mapping[str, tuple[str, str | None]]
    groups: Mapping[str, tuple[str, bool]]

    def group_name(self, key: str | None) -> str:
        return self.groups[key][0] if key is not None and key in self.groups else str(key)


def layout_of(bundle: BundleContent) -> Layout:
    return Layout(
        flows={flow.id: (flow.name, flow.group) for flow in bundle.flows},
        groups={group.id: (group.name, group.fails_over) for group in bundle.groups},
    )


def same_but_release(one: BundleContent, other: BundleContent) -> bool:
    """Do they run the same, in one environment. The number of the release is for people: it alone restarts nothing."""
    return msgspec.structs.replace(one, release=0, cluster="") == msgspec.structs.replace(other, release=0, cluster="")


def fails_over(designed: Mapping[str, Any], members: int, *, routers: bool) -> bool:
    """Do the groups of this connector (of a release's content) fail over where it has so many runtimes."""
    return bool(designed["failover"]) and members > 1 and routers


def promised(release: Release, connector: str, members: int, *, routers: bool) -> Layout | None:
    """What the release will give the connector's runtimes; None: it does not have the connector."""
    content = release.content
    designed = next((item for item in content["connectors"] if item["name"] == connector), None)
    if designed is None:
        return None
    failover = fails_over(designed, members, routers=routers)
    return Layout(
        flows={flow["id"]: (flow["name"], flow["group"]) for flow in content["flows"] if flow["connector"] == connector},
        groups={group["id"]: (group["name"], failover) for group in content["groups"] if group["connector"] == connector},
    )


def lacks(release: Release, connector: str) -> str:
    """ "Release 3 has no connector erp"; empty when it has. What runs of it must not go on unnoticed: see docs/decisions/0072."""
    here = any(item["name"] == connector for item in release.content["connectors"])
    return "" if here else f"Release {release.number} has no connector {connector}"


def pointless(release: Release, step: StepFields) -> str:
    """Why a step on a runtime has nothing to do when this release is deployed: its connector, group or flow is not part of the release.
    Empty when it has, and for steps that deploy or stop: they have something to do all the same."""
    if not step.connector or step.kind in (*DEPLOYS, StepKind.STOP_RUNTIME):
        return ""
    content = release.content
    if reason := lacks(release, step.connector):
        return f"{reason}: nothing to do."
    for word, rows, name in (("group", content["groups"], step.group), ("flow", content["flows"], step.flow)):
        if name and not any(row["name"] == name and row["connector"] == step.connector for row in rows):
            return f"Release {release.number} has no {word} {name} of {step.connector}: nothing to do."
    return ""


def retired(release: Release, environment: Environment, steps: Sequence[StepFields]) -> list[str]:
    """Which runtimes deploying the release here by these steps stops, because it lacks their connector, and which run on all the same."""
    rows = Runtime.objects.filter(environment=environment, desired_bundle__isnull=False, held="").select_related("machine", "connector")
    found = []
    by_connector: dict[str, list[Runtime]] = {}
    for row in rows.order_by("machine__name"):
        by_connector.setdefault(row.connector.name, []).append(row)
    for connector, runtimes in sorted(by_connector.items()):
        reason = lacks(release, connector)
        stops = [row.machine.name for row in runtimes if any(deploys(step, row) for step in steps)]
        stays = [row for row in runtimes if row.machine.name not in stops and row.desired_running]
        if reason and stops:
            found.append(f"{reason}: it is stopped on {' and '.join(stops)}, with everything that it takes.")
        if reason and stays:
            keys = " and ".join(row.key for row in stays)
            found.append(f"{reason}, and no step deploys {keys}: what ran before runs on there. Add a step that deploys or stops it.")
    return found


def disagreements(ran: Layout, comes: Layout) -> list[str]:
    """Why runtimes of one connector must not run both at once, a clause each; empty when they may. Pure.

    Names do not matter, ids do: a renamed group is the same group. What only one of them has cannot be taken twice.
    """
    clauses = []
    for flow, (name, group) in comes.flows.items():
        former = ran.flows[flow][1] if flow in ran.flows else group
        if former == group:
            continue
        if former is None:
            clauses.append(f"flow {name} comes into group {comes.group_name(group)}")
        elif group is None:
            clauses.append(f"flow {name} leaves group {ran.group_name(former)}")
        else:
            clauses.append(f"flow {name} moves from group {ran.group_name(former)} to {comes.group_name(group)}")
    for group, (name, failover) in comes.groups.items():
        if group in ran.groups and ran.groups[group][1] != failover:
            clauses.append(f"group {name} {'comes into' if failover else 'leaves'} failover")
    return clauses


def clashes(runtimes: Iterable[Runtime], comes: Layout) -> list[tuple[Runtime, list[str]]]:
    """Those whose ordered bundle, or the one their process was last seen with, disagrees with what comes. Two queries."""
    rows = list(runtimes)
    digests = {row.desired_bundle_id for row in rows} | {row.observed_digest for row in rows if row.observed_state != RuntimeState.STOPPED}
    bundles = {bundle.digest: bundle for bundle in Bundle.objects.filter(pk__in={digest for digest in digests if digest})}
    found = []
    for row in rows:
        seen = row.observed_digest if row.observed_state != RuntimeState.STOPPED else ""
        clauses: dict[str, None] = {}
        for digest in (row.desired_bundle_id, seen):
            if digest in bundles:
                clauses |= dict.fromkeys(_disagreements(bundles[digest], comes))
        if clauses:
            found.append((row, list(clauses)))
    return found


def _disagreements(ran: Bundle, comes: Layout) -> list[str]:
    """As `disagreements`. Of a lost bundle only its layout's digest is known: if that differs, everything may."""
    if not ran.is_lost:
        return disagreements(layout_of(ran.read()), comes)
    flows = ((flow, group) for flow, (_, group) in comes.flows.items())
    same = ran.layout == fleet.layout_digest(flows, ((group, failover) for group, (_, failover) in comes.groups.items()))
    return [] if same else ["what ran before cannot be read, its property key is missing"]


_what_they_run = Prepared(
    lambda environment, connector: (
        Runtime.objects.filter(environment=environment, connector=connector)
        .order_by()
        .values_list("desired_bundle", "desired_bundle__layout", "observed_digest", "observed_state")
    )
)


def clashing(runtime: Runtime, bundle: Bundle) -> list[tuple[Runtime, list[str]]]:
    """Runtimes of the same connector there, this one included, that clash with a bundle which it is to run. One query when all have its
    layout and run what they are ordered to run."""
    comes = bundle.read()
    same = (fleet.layout_of(comes), None)  # not the bundle's own column, which is empty in an old one
    rows = _what_they_run.all(runtime.environment_id, runtime.connector_id)
    if all(layout in same and (seen in (digest, "") or state == RuntimeState.STOPPED) for digest, layout, seen, state in rows):
        return []
    family = Runtime.objects.filter(environment_id=runtime.environment_id, connector_id=runtime.connector_id)
    return clashes(family.select_related("machine", "connector"), layout_of(comes))


def gap(connector: str, stopping: Sequence[Runtime], clauses: Sequence[str]) -> str:
    """ "erp stops on external01 and external02 before the new release starts anywhere: flow x moves from group a to b"."""
    machines = " and ".join(sorted(runtime.machine.name for runtime in stopping))
    return f"{connector} stops on {machines} before the new release starts anywhere: {' and '.join(clauses)}"


@dataclass(frozen=True)
class Foreseen:
    """A gap that deploying a release by a plan will make."""

    sentence: str
    clauses: Sequence[str]
    left: Sequence[Runtime]  # would be stopped, and no later step deploys them


def foreseen(release: Release, environment: Environment, steps: Sequence[StepFields]) -> list[Foreseen]:
    """What deploying the release here by these steps will stop, one finding per connector."""
    rows = Runtime.objects.filter(environment=environment).select_related("machine", "connector").order_by("machine__name")
    routers = fleet.has_routers(environment.pk)
    by_connector: dict[str, list[Runtime]] = {}
    for row in rows:
        by_connector.setdefault(row.connector.name, []).append(row)
    found = []
    for connector, runtimes in sorted(by_connector.items()):
        comes = promised(release, connector, len(runtimes), routers=routers)
        order = [runtime for step in steps for runtime in runtimes if deploys(step, runtime)]
        if comes is None or not order:
            continue
        clashing = [(runtime, clauses) for runtime, clauses in clashes(runtimes, comes) if runtime != order[0]]
        if clashing:
            stopping = [runtime for runtime, _ in clashing]
            clauses = list(dict.fromkeys(clause for _, some in clashing for clause in some))
            both = [runtime for runtime in runtimes if runtime in stopping or (runtime == order[0] and runtime.desired_bundle_id)]
            found.append(
                Foreseen(
                    f"Deploying it makes a gap: {gap(connector, both, clauses)}.",
                    clauses,
                    [runtime for runtime in stopping if runtime not in order],
                )
            )
    return found


def deploys(step: StepFields, runtime: Runtime) -> bool:
    """Is it this step that deploys the runtime."""
    return step.kind in DEPLOYS and step.machine == runtime.machine.name and step.connector in ("", runtime.connector.name)


def not_deployed_later(runtime: Runtime, clauses: Sequence[str]) -> str:
    """The refusal: stopping it would leave it stopped."""
    return (
        f"{runtime.key} would have to stop ({' and '.join(clauses)}), and no later step deploys it: "
        f"add Deploy runtime {runtime.key} to the plan."
    )
