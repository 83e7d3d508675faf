"""Who names a key: flows as edited and as last saved, and the routers that the project draws."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import OuterRef, Q, Subquery, TextField
from django.db.models.functions import Cast

from portal import components
from portal.models import DesignedMachine, Flow, FlowVersion, MachineKind
from portal.placeholders import placeholders
from portal.router_addresses import failover_keys

_NAMED = re.compile(r"\$\{([^{}]*)\}")  # in the text of a JSON value, where a key stands as it is: it has only plain characters


@dataclass(frozen=True)
class Use:
    """One place that names a key."""

    key: str
    used_by: str  # "flow erp-orders, Folder of the inbound": as the form calls the setting


def uses(flow: str, definition: Mapping[str, Any]) -> list[Use]:
    """Every key a flow's definition names, with the place: "flow erp-orders, Folder of the inbound"."""
    found = []
    for side in components.SIDES:
        for name, text in definition[side]["settings"].items():
            if "${" in str(text):
                place = f"flow {flow}, {components.label(side, definition[side]['kind'], name)} of the {side}"
                found += [Use(key, place) for key in sorted(placeholders(text))]
    return found


def router_uses(machine: str) -> list[Use]:
    """The two keys that the router (or witness) on a machine needs."""
    address, port = failover_keys(machine)
    return [Use(address, "Internal IP"), Use(port, "Failover port")]


def router_name(machine: str, kind: str) -> str:
    """What findings call it: "router on external01", "witness on core01"."""
    return f"{'witness' if kind == MachineKind.CORE else 'router'} on {machine}"


@dataclass(frozen=True)
class _Text:
    """A definition as the database holds it, decoded only when somebody asks for it: there may be thousands."""

    connector: int
    name: str  # of the flow; a saved version bears its own
    kinds: tuple[str, str]  # of a draft: inbound, outbound
    texts: tuple[str, ...]  # a draft's settings of inbound and outbound, or a whole saved definition

    def keys(self) -> set[str]:
        found: set[str] = set()
        for text in self.texts:
            named = _NAMED.findall(text)
            if any("\\" in key for key in named):  # an escaped blank: seen only when decoded
                found |= placeholders(json.loads(text))
            else:
                found.update(key.strip() for key in named)
        found.discard("")
        return found

    def is_said_by(self, saved: str) -> bool:
        """Does a saved definition say the same as this draft. False where that cannot be seen without decoding."""
        sides = zip(("inbound", "outbound"), self.kinds, self.texts, strict=True)
        said = (f'"{side}": {{"kind": "{kind}", "settings": {text}}}' for side, kind, text in sides)
        return f'"name": "{self.name}"' in saved and all(part in saved for part in said)

    def definition(self) -> tuple[str, Mapping[str, Any]]:
        if len(self.texts) == 1:
            saved = json.loads(self.texts[0])
            return saved["name"], saved
        sides = [{"kind": kind, "settings": json.loads(text)} for kind, text in zip(self.kinds, self.texts, strict=True)]
        return self.name, {"inbound": sides[0], "outbound": sides[1]}


class Mentions:
    """Which keys the flows of a project name, as edited and as last saved. Read once, in two queries, without decoding a definition.

    `naming`: only flows that name one of these few keys are read; the others' keys are then not known.
    """

    def __init__(self, project: int, *, naming: Collection[str] | None = None) -> None:
        self._texts = list(_texts(project, naming))
        self.by_connector: dict[int, set[str]] = defaultdict(set)  # keys, by the connector's id
        self._naming: dict[str, list[int]] = defaultdict(list)
        for index, text in enumerate(self._texts):
            keys = text.keys()
            self.by_connector[text.connector] |= keys
            for key in keys:
                self._naming[key].append(index)

    def __contains__(self, key: object) -> bool:
        return key in self._naming

    @property
    def keys(self) -> Collection[str]:
        return self._naming.keys()

    def connectors(self, key: str) -> list[int]:
        """Ids of those with a flow that names it."""
        return list(dict.fromkeys(self._texts[index].connector for index in self._naming.get(key, ())))

    def used_by(self, keys: Collection[str]) -> dict[str, list[str]]:
        """Key -> places ("flow erp-orders, inbound folder"), of these keys; only flows that name one of them are looked at."""
        found: dict[str, list[str]] = {key: [] for key in keys}
        for name, definition in self.definitions(keys):
            for use in uses(name, definition):
                if use.key in found and use.used_by not in found[use.key]:
                    found[use.key].append(use.used_by)
        return found

    def definitions(self, keys: Collection[str] | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Name and definition of every flow, as edited and as saved, that names one of these keys (None: of every flow)."""
        wanted = range(len(self._texts)) if keys is None else sorted({index for key in keys for index in self._naming.get(key, ())})
        for index in wanted:
            yield self._texts[index].definition()


def _texts(project: int, naming: Collection[str] | None) -> Iterator[_Text]:
    """By flow, its draft before its saved version, which is left out where it says the same."""
    taken, given, whole = Cast("inbound_settings", TextField()), Cast("outbound_settings", TextField()), Cast("definition", TextField())
    flows = Flow.objects.filter(connector__project=project)
    newest = FlowVersion.objects.filter(flow=OuterRef("pk")).order_by("-major", "-minor", "-patch").values("pk")[:1]
    versions = FlowVersion.objects.filter(pk__in=flows.values(latest=Subquery(newest))).order_by("flow_id")
    drafts = flows.alias(source=taken, target=given).order_by("pk")
    if naming is not None:
        inside = [Q(source__contains=key) | Q(target__contains=key) for key in naming]
        drafts = drafts.filter(reduce(or_, inside, Q(pk=None)))
        versions = versions.alias(text=whole).filter(reduce(or_, [Q(text__contains=key) for key in naming], Q(pk=None)))
    names = ("connector_id", "name", "inbound_kind", "outbound_kind")
    found = {
        pk: _Text(connector, name, (inbound, outbound), (source, target))
        for pk, connector, name, inbound, outbound, source, target in drafts.values_list("pk", *names, taken, given)
    }
    saved = {
        pk: _Text(connector, name, ("", ""), (text,))
        for pk, connector, name, text in versions.values_list("flow_id", "flow__connector_id", "flow__name", whole)
    }
    for pk in sorted({*found, *saved}):
        draft, version = found.get(pk), saved.get(pk)
        if draft:
            yield draft
        if version and not (draft and draft.is_said_by(version.texts[0])):
            yield version


def drawn_routers(project: int) -> list[Use]:
    """What the routers need that the project draws; one query."""
    return [
        Use(use.key, f"{router_name(machine.name, machine.kind)}, {use.used_by}")
        for machine in DesignedMachine.objects.filter(project=project, router=True)
        for use in router_uses(machine.name)
    ]
