"""Who names a key: flows as edited and as last saved, and the routers that the project draws."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import OuterRef, Subquery

from portal.models import DesignedMachine, Environment, Flow, FlowVersion, MachineKind, Property
from portal.placeholders import placeholders
from portal.router_addresses import failover_keys, is_failover_key


@dataclass(frozen=True)
class ExpectedKey:
    """A key that the project's flows or routers use, whether or not it has a value yet."""

    key: str
    used_by: str  # "flow erp-orders, inbound folder; flow tills-sales, outbound url"
    failover: bool  # an Internal IP or a Failover port


@dataclass(frozen=True)
class Use:
    """One place that names a key."""

    key: str
    used_by: str


def uses(flow: str, definition: Mapping[str, Any]) -> list[Use]:
    """Every key a flow's definition names, with the place: "flow erp-orders, inbound folder"."""
    found = []
    for side in ("inbound", "outbound"):
        for name, text in definition[side]["settings"].items():
            if "${" in str(text):
                found += [Use(key, f"flow {flow}, {side} {name}") for key in sorted(placeholders(text))]
    return found


def router_uses(machine: str) -> list[Use]:
    """The two keys that the router (or witness) on a machine needs."""
    address, port = failover_keys(machine)
    return [Use(address, "Internal IP"), Use(port, "Failover port")]


def router_name(machine: str, kind: str) -> str:
    """What findings call it: "router on external01", "witness on core01"."""
    return f"{'witness' if kind == MachineKind.CORE else 'router'} on {machine}"


def expected(environment: Environment) -> list[ExpectedKey]:
    """Every key that the project's flows (as edited and as last saved) and its drawn routers use, sorted by key, in three queries:
    the rows a properties page shows before any value exists."""
    found: dict[str, list[str]] = {}
    for use in _uses_in(environment):
        places = found.setdefault(use.key, [])
        if use.used_by not in places:
            places.append(use.used_by)
    return [ExpectedKey(key, "; ".join(places), is_failover_key(key)) for key, places in sorted(found.items())]


def unused(environment: Environment) -> set[str]:
    """Keys with a value in this environment that nothing of the project names any more."""
    named = {use.key for use in _uses_in(environment)}
    return set(Property.objects.filter(environment=environment).values_list("key", flat=True)) - named


def _uses_in(environment: Environment) -> Iterator[Use]:
    for designed in DesignedMachine.objects.filter(project=environment.project_id, router=True):
        for use in router_uses(designed.name):
            yield Use(use.key, f"{router_name(designed.name, designed.kind)}, {use.used_by}")
    for name, definition in definitions_in(environment.project_id):
        yield from uses(name, definition)


def definitions_in(project: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every flow as edited and as last saved, with its name; two queries."""
    for _, name, definition in drafts_and_versions(project):
        yield name, definition


def drafts_and_versions(project: int) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Connector, name, and inbound and outbound of every flow as edited, and as last saved where that differs; two queries, no models:
    there may be thousands."""
    flows = Flow.objects.filter(connector__project=project)
    newest = FlowVersion.objects.filter(flow=OuterRef("pk")).order_by("-major", "-minor", "-patch").values("pk")[:1]
    versions = FlowVersion.objects.filter(pk__in=flows.values(latest=Subquery(newest)))
    saved = dict(versions.values_list("flow_id", "definition"))
    fields = ("pk", "connector_id", "name", "inbound_kind", "inbound_settings", "outbound_kind", "outbound_settings")
    for pk, connector, name, inbound, taken, outbound, given in flows.order_by("pk").values_list(*fields):
        draft = {"inbound": {"kind": inbound, "settings": taken}, "outbound": {"kind": outbound, "settings": given}}
        yield connector, name, draft
        version = saved.get(pk)
        if version and (version["inbound"], version["outbound"], version["name"]) != (draft["inbound"], draft["outbound"], name):
            yield connector, version["name"], version
