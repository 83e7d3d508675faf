"""A project as one YAML file that lives in git: the same project gives the same bytes, and the file can be planned, then applied.

It holds design, flows with their saved versions, groups, types, properties (secrets only by name), plans, rules and policies; no ids of the
database, no releases and nothing that machines reported or people did.
Applying makes the project what the file says, or changes nothing: the plan is the application itself,
taken back at its end.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, models, transaction
from django.db.models import ProtectedError

from deployments import plans, project_rules
from deployments.models import STEP_FIELDS, Step, StepKind
from portal import creation, design, properties, property_sheets, router_addresses, yaml_lines
from portal.errors import Invalid, NotAllowed
from portal.models import (
    Connector,
    DesignedMachine,
    Environment,
    EnvironmentKind,
    Flow,
    Group,
    MachineKind,
    Placement,
    Project,
    Property,
    PropertyType,
    System,
)
from portal.yaml_lines import Items, Map, refuse_unknown, wrong
from runtimes import failover
from runtimes.models import Runtime
from runtimes.protocol import Preference

FORMAT = 1
HEAD = "# A project of Baton. Values of secrets are not in here. Import shows what would change first.\n"
# What an environment is, as opposed to how it behaves; every other plain field is a policy.
_IDENTITY = {"id", "project", "kind", "position", "cluster", "generation"}
_PLAIN = (models.BooleanField, models.CharField, models.TextField, models.IntegerField, models.FloatField)
_STEP_NUMBERS = {field.name for field in Step._meta.get_fields() if isinstance(field, models.IntegerField)}
_STEP_DEFAULTS = {field.attname: field.get_default() for field in Step._meta.get_fields() if field.name in STEP_FIELDS}  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------------------ export


def export(project: Project) -> str:
    """The project as YAML; a fixed number of queries per environment."""
    return HEAD + yaml_lines.dump(describe(project))


def digest(project: Project) -> str:
    """Of what an export holds, to see whether the project changed since a plan was shown."""
    return hashlib.sha256(export(project).encode()).hexdigest()


def describe(project: Project) -> dict[str, Any]:
    # Sorted here: databases sort texts as their collation says.
    flows = Flow.objects.filter(connector__project=project).select_related("connector", "group").prefetch_related("versions")
    placements = Placement.objects.filter(connector__project=project).values_list("machine__name", "connector__name")
    return {
        "baton": FORMAT,
        "project": {"name": project.name, "description": project.description},
        "retention": project_rules.retention_told(project),
        "systems": [
            _system(row) for row in sorted(System.objects.filter(project=project).prefetch_related("connectors"), key=lambda row: row.slug)
        ],
        "machines": [
            {"name": row.name, "kind": row.kind, "router": row.router}
            for row in sorted(DesignedMachine.objects.filter(project=project), key=lambda row: row.name)
        ],
        "placements": [f"{machine}.{connector}" for machine, connector in sorted(placements)],
        "groups": [
            {"connector": connector, "name": name}
            for connector, name in sorted(Group.objects.filter(connector__project=project).values_list("connector__name", "name"))
        ],
        "flows": [_flow(row) for row in sorted(flows, key=lambda row: (row.connector.name, row.name))],
        "types": dict(sorted(PropertyType.objects.filter(project=project).values_list("key", "kind"))),
        "environments": {row.kind: _environment(row) for row in project.environments.order_by("position")},
    }


def _system(row: System) -> dict[str, Any]:
    return {
        "slug": row.slug,
        "name": row.name,
        "description": row.description,
        "runtimes": row.number_of_runtimes,
        "multiple": row.multiple_runtimes,
        "failover": row.failover,
        "failover_applied": row.failover_applied,
        "connectors": [{"name": item.name, "failover": item.failover} for item in sorted(row.connectors.all(), key=lambda item: item.name)],
    }


def _flow(row: Flow) -> dict[str, Any]:
    return {
        "connector": row.connector.name,
        "name": row.name,
        "group": row.group.name if row.group else None,
        "auto_start": row.auto_start,
        "inbound": {"kind": row.inbound_kind, "settings": dict(sorted(row.inbound_settings.items()))},
        "outbound": {"kind": row.outbound_kind, "settings": dict(sorted(row.outbound_settings.items()))},
        "versions": project_rules.versions_told(row.versions.all()),
    }


def _policy_fields() -> list[str]:
    fields = (field for field in Environment._meta.concrete_fields if isinstance(field, _PLAIN))
    return sorted(field.name for field in fields if field.name not in _IDENTITY and not field.primary_key)


def _environment(row: Environment) -> dict[str, Any]:
    runtimes = Runtime.objects.filter(environment=row).select_related("machine", "connector")
    values = sorted(Property.objects.filter(environment=row), key=lambda item: (item.key, item.machine, item.connector))
    steps = Step.objects.filter(plan__environment=row).order_by("position")
    return {
        "policies": {name: getattr(row, name) for name in _policy_fields()},
        "rules": project_rules.rules_told(row),
        "isolation": project_rules.isolation_told(row),
        "failback": project_rules.failback_told(row),
        "preferences": {
            item.key: str(item.preference) for item in sorted(runtimes, key=lambda item: item.key) if item.preference != Preference.NONE
        },
        "properties": [_property(item) for item in values],
        "plan": [_step(item) for item in steps],
    }


def _property(row: Property) -> dict[str, Any]:
    told: dict[str, Any] = {"key": row.key}
    if row.machine or row.connector:
        told["scope"] = row.scope
    return told | ({"secret": True} if row.secret else {"value": row.value})


def _step(row: Step) -> dict[str, Any]:
    usual = _STEP_DEFAULTS | {"timeout_seconds": plans.usual_seconds(StepKind(row.kind))[0]}
    told = {name: getattr(row, name) for name in STEP_FIELDS if name != "kind" and getattr(row, name) != usual[name]}
    return {"kind": str(row.kind)} | told


# ------------------------------------------------------------------------------------------------------------------ import


@dataclass(frozen=True)
class Difference:
    verb: str  # "create", "change" or "delete"
    what: str  # "flow erp.erp-orders"
    details: list[str]  # "group: none → erp-orders"


@dataclass(frozen=True)
class Imported:
    """What an import changes, or changed; `notes` are what it left out, and why. `before` is the digest of what it started from."""

    differences: list[Difference]
    notes: list[str]
    before: str

    def count(self, verb: str) -> int:
        return sum(item.verb == verb for item in self.differences)


class _TakenBack(Exception):  # noqa: N818 - ends a plan
    pass


def plan(project: Project, text: str, *, by: Any, editable: Iterable[str]) -> Imported:
    """What applying would change. Raises Invalid naming the line, exactly as `apply` would."""
    document = yaml_lines.load(text)
    with transaction.atomic():
        try:
            with transaction.atomic():
                done = _carry_out(project, document, by=by, editable=set(editable))
                raise _TakenBack
        except _TakenBack:
            project.refresh_from_db()
            return done


def apply(project: Project, text: str, *, by: Any, editable: Iterable[str], seen: str = "") -> Imported:
    """Make the project what the file says, whole or not at all.

    Args:
        editable: kinds of the environments the person may change; differences elsewhere are refused.
        seen: the digest of the plan that the person agreed to; refused when the project changed since.

    Raises:
        Invalid: naming the line and the remedy.
        NotAllowed: something that exists in environments stands in the way.
    """
    document = yaml_lines.load(text)
    with transaction.atomic():
        if seen and digest(project) != seen:
            raise NotAllowed("The project was changed since this plan was shown: look at the new plan.")
        return _carry_out(project, document, by=by, editable=set(editable))


def _carry_out(project: Project, document: Any, *, by: Any, editable: set[str]) -> Imported:
    before = describe(project)
    started = hashlib.sha256((HEAD + yaml_lines.dump(before)).encode()).hexdigest()
    notes = _Import(project, _whole(document), by=by, editable=editable).run()
    return Imported(differences(before, describe(project)), notes, started)


def _whole(document: Any) -> Map:
    if not isinstance(document, Map):
        raise wrong(1, "this is no project: it begins with “baton: 1”.")
    if document.get("baton") != FORMAT:
        raise wrong(document.lines.get("baton", 1), f"the format is {document.get('baton')}; this portal reads “baton: {FORMAT}”.")
    refuse_unknown(
        document, {"baton", "project", "retention", "systems", "machines", "placements", "groups", "flows", "types", "environments"}
    )
    return document


class _Import:
    """One pass over the document, in the order in which things need each other. Every refusal names its line."""

    def __init__(self, project: Project, document: Map, *, by: Any, editable: set[str]) -> None:
        self.project, self.document, self.by, self.editable = project, document, by, editable
        self.notes: list[str] = []

    def run(self) -> list[str]:
        before = {row.kind: _environment(row) for row in self.project.environments.all()}  # before anything: types seal values
        self._project()
        flows, groups = self._items("flows"), self._items("groups")
        systems, machines, placements = self._items("systems"), self._items("machines"), self._items("placements", str)
        self._drop_flows(flows)
        self._drop_placements(placements)
        self._drop_groups(groups)
        self._systems(systems)
        self._machines(machines)
        self._connectors(systems)
        self._placements(placements)
        self._groups(groups)
        self._flows(flows)
        self._applied(systems, machines)
        later = self._types()
        self._retention()
        lines = {}
        for line, environment, given in self._environments():
            lines[environment.kind] = line
            self._environment(environment, given)
        self._declare(later)
        for environment in self.project.environments.exclude(kind__in=self.editable):
            if _environment(environment) != before[environment.kind]:
                raise wrong(lines.get(environment.kind, 1), f"you may not change {environment.name}, and this file changes it.")
        return self.notes

    # ------------------------------------------------------------------------------------------------------------- reading

    def _items(self, name: str, kind: type = Map) -> Items:
        given = self.document.get(name)
        if given is None:
            given = Items()
            given.line, given.lines = 1, []
        if not isinstance(given, Items):
            raise wrong(self.document.lines[name], f"{name} is a list.")
        for line, item in given.each():
            if not isinstance(item, kind):
                raise wrong(line, f"an item of {name} is a {'mapping' if kind is Map else 'text'}.")
        return given

    def _environments(self) -> Iterator[tuple[int, Environment, Map]]:
        given = self.document.get("environments") or Map()
        if not isinstance(given, Map):
            raise wrong(self.document.lines["environments"], "environments is a mapping of test, acceptance and production.")
        rows = {row.kind: row for row in self.project.environments.all()}
        for kind, item in given.items():
            line = given.lines[kind]
            if kind not in rows:
                raise wrong(line, f"{kind} is no environment: say {', '.join(EnvironmentKind.values)}.")
            if not isinstance(item, Map):
                raise wrong(line, f"{kind} is a mapping.")
            refuse_unknown(item, {"policies", "rules", "isolation", "failback", "preferences", "properties", "plan"})
            yield line, rows[kind], item

    # -------------------------------------------------------------------------------------------------------------- design

    def _project(self) -> None:
        given = self.document.get("project")
        if given is None:
            return
        if not isinstance(given, Map):
            raise wrong(self.document.lines["project"], "project is a mapping of name and description.")
        refuse_unknown(given, {"name", "description"})
        name, description = _text(given, "name"), _text(given, "description", "")
        with _at(given.line):
            _save(self.project, name=name, description=description)

    def _systems(self, items: Items) -> None:
        present = {row.slug: row for row in System.objects.filter(project=self.project)}
        wished: set[str] = set()
        for line, item in items.each():
            refuse_unknown(item, {"slug", "name", "description", "runtimes", "multiple", "failover", "failover_applied", "connectors"})
            slug = _name(item, "slug")
            _once(wished, slug, line, "system")
            runtimes, multiple, failover = (
                _whole_number(item, "runtimes", 1, most=9),
                _flag(item, "multiple", False),
                _flag(item, "failover", False),
            )
            facts = {
                "name": _text(item, "name", slug),
                "description": _text(item, "description", ""),
                "number_of_runtimes": runtimes,
                "multiple_runtimes": multiple,
                "failover": failover,
            }
            if failover and not multiple:
                raise wrong(line, f"{slug} cannot run in failover with one runtime: say “multiple: true”.")
            if multiple and runtimes < 2:
                raise wrong(line, f"{slug}: multiple runtimes means at least 2.")
            with _at(line):
                _save(present.get(slug) or System(project=self.project, slug=slug), **facts)
        for slug, row in present.items():
            if slug not in wished:
                with _at(items.line):
                    design.remove_system(row)

    def _connectors(self, systems: Items) -> None:
        present = {row.name: row for row in Connector.objects.filter(project=self.project).select_related("system")}
        rows = {row.slug: row for row in System.objects.filter(project=self.project)}
        wished: set[str] = set()
        for line, item in systems.each():
            given = item.get("connectors")
            if not isinstance(given, Items):
                raise wrong(item.lines.get("connectors", line), f"{item['slug']} needs a list of connectors.")
            for at, connector in given.each():
                if not isinstance(connector, Map):
                    raise wrong(at, "a connector is a mapping with its name.")
                refuse_unknown(connector, {"name", "failover"})
                name = _name(connector, "name")
                _once(wished, name, at, "connector")
                with _at(at):
                    row = present.get(name) or Connector(project=self.project, name=name)
                    _save(row, system=rows[item["slug"]], failover=_flag(connector, "failover", False))
        for name, row in present.items():
            if name not in wished:
                with _at(systems.line):
                    row.delete()

    def _machines(self, items: Items) -> None:
        present = {row.name: row for row in DesignedMachine.objects.filter(project=self.project)}
        wished: set[str] = set()
        for line, item in items.each():
            refuse_unknown(item, {"name", "kind", "router"})
            name, kind = _name(item, "name"), _text(item, "kind", str(MachineKind.EXTERNAL))
            _once(wished, name, line, "machine")
            if kind not in MachineKind.values:
                raise wrong(item.lines["kind"], f"{kind} is no kind of machine: say external or core.")
            with _at(line):
                _save(present.get(name) or DesignedMachine(project=self.project, name=name), kind=kind)
        for name, row in present.items():
            if name not in wished:
                with _at(items.line):
                    design.remove_machine(row)

    def _drop_placements(self, items: Items) -> None:
        for row in Placement.objects.filter(connector__project=self.project).select_related("machine", "connector"):
            if f"{row.machine.name}.{row.connector.name}" not in items:
                row.delete()

    def _placements(self, items: Items) -> None:
        machines = {row.name: row for row in DesignedMachine.objects.filter(project=self.project)}
        connectors = {row.name: row for row in Connector.objects.filter(project=self.project).select_related("system")}
        present = set(Placement.objects.filter(connector__project=self.project).values_list("machine__name", "connector__name"))
        wished: set[str] = set()
        for line, item in items.each():
            _once(wished, item, line, "placement")
            machine, _, connector = item.partition(".")
            if machine not in machines or connector not in connectors:
                raise wrong(line, f"{item} names {'no machine' if machine not in machines else 'no connector'} of this file.")
            if (machine, connector) not in present:
                with _at(line):
                    design.place(connectors[connector], machines[machine])

    def _applied(self, systems: Items, machines: Items) -> None:
        """What Apply settings and Transfer settled: written as it is, for it was settled when the file was made."""
        for _, item in systems.each():
            applied = _flag(item, "failover_applied", False)
            System.objects.filter(project=self.project, slug=item["slug"]).update(failover_applied=applied)
        for _, item in machines.each():
            DesignedMachine.objects.filter(project=self.project, name=item["name"]).update(router=_flag(item, "router", False))

    # --------------------------------------------------------------------------------------------------------------- flows

    def _drop_flows(self, items: Items) -> None:
        wished = {(_text(item, "connector"), _text(item, "name")) for item in items}
        for row in Flow.objects.filter(connector__project=self.project).select_related("connector"):
            if (row.connector.name, row.name) not in wished:
                creation.remove_flow(row)

    def _drop_groups(self, items: Items) -> None:
        wished = {(_text(item, "connector"), _text(item, "name")) for item in items}
        for row in Group.objects.filter(connector__project=self.project).select_related("connector"):
            if (row.connector.name, row.name) not in wished:
                row.flows.update(group=None)
                with _at(items.line):
                    creation.remove_group(row)

    def _groups(self, items: Items) -> None:
        connectors = self._connectors_by_name()
        for line, item in items.each():
            refuse_unknown(item, {"connector", "name"})
            with _at(line):
                connector = _among(connectors, item, "connector")
                Group.objects.get_or_create(connector=connector, name=_name(item, "name"))

    def _flows(self, items: Items) -> None:
        connectors = self._connectors_by_name()
        present = {(row.connector_id, row.name): row for row in Flow.objects.filter(connector__project=self.project)}
        groups = {(row.connector_id, row.name): row for row in Group.objects.filter(connector__project=self.project)}
        wished: set[str] = set()
        for line, item in items.each():
            refuse_unknown(item, {"connector", "name", "group", "auto_start", "inbound", "outbound", "versions"})
            connector, name = _among(connectors, item, "connector"), _name(item, "name")
            _once(wished, f"{connector.name}.{name}", line, "flow")
            row = present.get((connector.pk, name)) or Flow(connector=connector)
            sides = {side: self._side(item, side) for side in ("inbound", "outbound")}
            with _at(line):
                creation.save_flow(
                    row,
                    name=name,
                    inbound_kind=sides["inbound"][0],
                    inbound_settings=sides["inbound"][1],
                    outbound_kind=sides["outbound"][0],
                    outbound_settings=sides["outbound"][1],
                    auto_start=_flag(item, "auto_start", True),
                )
            wish = _text(item, "group") if item.get("group") is not None else None
            if wish is not None and (connector.pk, wish) not in groups:
                raise wrong(item.lines["group"], f"{wish} is no group of connector {connector.name}: list it under groups.")
            creation.pick_group(row, groups[connector.pk, wish] if wish is not None else None)
            if "versions" in item:  # a file without them leaves them as they are
                versions = item["versions"]
                if not isinstance(versions, Items):
                    raise wrong(item.lines["versions"], "versions is a list.")
                with _at(item.lines["versions"]):
                    project_rules.save_versions(row, versions, self._side, by=self.by)

    def _side(self, item: Map, side: str) -> tuple[str, dict[str, str]]:
        given = item.get(side)
        if not isinstance(given, Map):
            raise wrong(item.lines.get(side, item.line), f"{side} is a mapping of kind and settings.")
        refuse_unknown(given, {"kind", "settings"})
        settings = given.get("settings") or Map()
        if not isinstance(settings, Map):
            raise wrong(given.lines["settings"], "settings is a mapping of texts.")
        return _text(given, "kind"), {name: _text(settings, name) for name in settings}

    def _connectors_by_name(self) -> dict[str, Connector]:
        return {row.name: row for row in Connector.objects.filter(project=self.project).select_related("system")}

    # -------------------------------------------------------------------------------------------------------- environments

    def _types(self) -> list[str]:
        """Returns keys whose present values are not of their new type: the file may say others, which are filled in first."""
        given = self.document.get("types") or Map()
        if not isinstance(given, Map):
            raise wrong(self.document.lines["types"], "types is a mapping of keys to types.")
        present = dict(PropertyType.objects.filter(project=self.project).values_list("key", "kind"))
        PropertyType.objects.filter(project=self.project).exclude(key__in=list(given)).delete()
        later = []
        for key in given:
            if present.get(key) != given[key]:
                with _at(given.lines[key]):
                    try:
                        with transaction.atomic():
                            properties.declare_type(self.project, key, _text(given, key), by=self.by)
                    except Invalid:
                        PropertyType.objects.filter(project=self.project, key=key).delete()
                        later.append(key)
        return later

    def _declare(self, later: Iterable[str]) -> None:
        for key in later:
            given = self.document["types"]
            with _at(given.lines[key]):
                properties.declare_type(self.project, key, _text(given, key), by=self.by)

    def _retention(self) -> None:
        given = self.document.get("retention")
        if given is None:
            return
        if not isinstance(given, Map):
            raise wrong(self.document.lines["retention"], "retention is a mapping.")
        with _at(given.line):
            project_rules.carry_out_retention(self.project, given, by=self.by)

    def _environment(self, environment: Environment, given: Map) -> None:
        self._policies(environment, given)
        self._properties(environment, given)
        self._addresses(environment, given)
        self._plan(environment, given)
        self._rules(environment, given)
        self._wishes(environment, given)

    def _policies(self, environment: Environment, given: Map) -> None:
        policies = given.get("policies") or Map()
        if not isinstance(policies, Map):
            raise wrong(given.lines["policies"], "policies is a mapping.")
        refuse_unknown(policies, set(_policy_fields()))
        if policies:
            for name, value in policies.items():
                choices = [str(known) for known, _ in getattr(Environment._meta.get_field(name), "choices", None) or []]
                if choices and value not in choices:
                    raise wrong(policies.lines[name], f"{name} is one of {', '.join(choices)}.")
            with _at(policies.line):
                _save(environment, **dict(policies))

    def _rules(self, environment: Environment, given: Map) -> None:
        rules = given.get("rules")
        if rules is None:
            return
        if not isinstance(rules, Map):
            raise wrong(given.lines["rules"], "rules is a mapping.")
        with _at(rules.line):
            project_rules.carry_out_rules(environment, rules, by=self.by)

    def _addresses(self, environment: Environment, given: Map) -> None:
        """Loopback and shared addresses take the mark that all machines stand on one host, whichever of the two the file changes."""
        if not environment.one_host:
            with _at(given.lines.get("policies", given.line)):
                router_addresses.mark_one_host(environment, False, by=self.by)

    def _properties(self, environment: Environment, given: Map) -> None:
        if "properties" not in given:
            return
        items = given["properties"]
        if not isinstance(items, Items):
            raise wrong(given.lines["properties"], "properties is a list.")
        present = {(row.key, row.machine, row.connector): row for row in Property.objects.filter(environment=environment)}
        edits: list[properties.Edit] = []
        lines: list[int] = []
        wished: set[str] = set()
        for line, item in items.each():
            if not isinstance(item, Map):
                raise wrong(line, "a property is a mapping of key and value.")
            refuse_unknown(item, {"key", "scope", "value", "secret"})
            key, scope = _text(item, "key"), property_sheets.scope_of(_text(item, "scope", "global"))
            if scope is None:
                raise wrong(item.lines["scope"], f"{item['scope']} is no scope: say global, a machine, a runtime or “connector erp”.")
            _once(wished, f"{key} ({_text(item, 'scope', 'global')})", line, "property")
            row = present.pop((key, *scope), None)
            if _flag(item, "secret", False):
                if "value" in item:
                    raise wrong(item.lines["value"], f"{key} is a secret: leave its value out of the file and set it in the portal.")
                if row is None:
                    self.notes.append(
                        f"Set the secret {key} ({_text(item, 'scope', 'global')}) on {environment.name}: the file cannot hold it."
                    )
                elif not row.secret:
                    edits.append(properties.Edit(environment, key, row.value, *scope, secret=True))
                    lines.append(line)
                continue
            edits.append(properties.Edit(environment, key, _text(item, "value"), *scope, readable=True))
            lines.append(line)
        edits += [properties.Edit(environment, key, None, machine, connector) for key, machine, connector in present]
        lines += [items.line] * len(present)
        planned = properties.plan(edits)
        for line, item in zip(lines, planned, strict=True):
            if item.refusal:
                raise wrong(line, item.refusal.sentence)
            if item.secret and item.edit.readable:
                raise wrong(line, f"{item.edit.key} is of type secret: say “secret: true” instead of its value, and set it in the portal.")
        properties.set_values(edits, by=self.by, cause="imported with the project")

    def _plan(self, environment: Environment, given: Map) -> None:
        if "plan" not in given:
            return
        items = given["plan"] if given["plan"] is not None else Items()
        if not isinstance(items, Items):
            raise wrong(given.lines["plan"], "plan is a list of steps.")
        steps = []
        lines = items.lines if items else []
        for line, item in zip(lines, items, strict=True):
            if not isinstance(item, Map):
                raise wrong(line, "a step is a mapping with its kind.")
            refuse_unknown(item, set(STEP_FIELDS))
            if item.get("kind") not in StepKind.values:
                raise wrong(item.lines.get("kind", line), f"{item.get('kind')} is no kind of step: say {', '.join(StepKind.values)}.")
            plain = {name: item[name] if name in _STEP_NUMBERS else _text(item, name, "") for name in item}
            steps.append(Step(**{"timeout_seconds": plans.usual_seconds(StepKind(item["kind"]))[0]} | plain))
        present = [_step(row) for row in Step.objects.filter(plan__environment=environment).order_by("position")]
        if [_step(step) for step in steps] == present:
            return
        for line, step in zip(lines, steps, strict=True):
            with _at(line):
                plans.check(step)
                step.full_clean(exclude=["plan", "position"])
        with _at(items.line if items else given.lines["plan"]):
            found = plans.replace(environment, steps)
        self.notes += [f"Plan of {environment.name}: {problem}" for problem in plans.problems(found)]

    def _wishes(self, environment: Environment, given: Map) -> None:
        """Preferences and policies of groups stand on what is applied: where it is not yet, a note says so."""
        runtimes = {row.key: row for row in Runtime.objects.filter(environment=environment).select_related("machine", "connector")}
        preferences = given.get("preferences", None)
        placements = Placement.objects.filter(connector__project=self.project).values_list("machine__name", "connector__name")
        placed = {f"{machine}.{connector}" for machine, connector in placements}
        if isinstance(preferences, Map):
            for key in preferences:
                wish = _text(preferences, key)
                if wish not in list(Preference):
                    raise wrong(preferences.lines[key], f"{wish} is no preference: say {', '.join(Preference)}.")
                if key not in runtimes and key not in placed:
                    raise wrong(preferences.lines[key], f"{key} is no placement of this file: say machine.connector.")
                if key not in runtimes:
                    self.notes.append(
                        f"{key} is not applied on {environment.name} yet: its preference is left out. Apply, then import again."
                    )
            wished = {key: preferences.get(key, str(Preference.NONE)) for key in runtimes}
            # Leaders first: choosing one makes its siblings Backup, whatever they were.
            for key in sorted(runtimes, key=lambda key: (wished[key] != Preference.LEADER, key)):
                row = runtimes[key]
                row.refresh_from_db(fields=["preference"])
                if row.preference != wished[key]:
                    with _at(preferences.lines.get(key, preferences.line)):
                        failover.prefer(row, Preference(wished[key]))
        self.notes += project_rules.carry_out_groups(environment, given, by=self.by)


# ----------------------------------------------------------------------------------------------------------- small readers


def _text(item: Map, name: str, default: str | None = None) -> str:
    if item.get(name) is None:
        if default is None:
            raise wrong(item.lines.get(name, item.line), f"{name} is missing.")
        return default
    value = item[name]
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int):
        raise wrong(item.lines[name], f"{name} is a text.")
    return str(value)


def _name(item: Map, name: str) -> str:
    value = _text(item, name)
    try:
        System._meta.get_field("slug").run_validators(value)
    except ValidationError as error:
        raise wrong(item.lines[name], f'"{value}" is no {name}. {" ".join(error.messages)}') from None
    return value


def _flag(item: Map, name: str, default: bool) -> bool:
    value = item.get(name, default)
    if not isinstance(value, bool):
        raise wrong(item.lines[name], f"{name} is true or false.")
    return value


def _whole_number(item: Map, name: str, default: int, *, most: int) -> int:
    value = item.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise wrong(item.lines[name], f"{name} is a whole number from 1 to {most}.")
    return value


def _among(rows: Mapping[str, Connector], item: Map, name: str) -> Connector:
    value = _text(item, name)
    if value not in rows:
        raise wrong(item.lines[name], f"{value} is no connector of this file.")
    return rows[value]


def _once(seen: set[str], name: str, line: int, what: str) -> None:
    if name in seen:
        raise wrong(line, f"the {what} {name} occurs twice.")
    seen.add(name)


@contextmanager
def _at(line: int) -> Iterator[None]:
    """Refusals of acts and of the database, with the line they are about."""
    try:
        with transaction.atomic():
            yield
    except NotAllowed as refusal:
        raise refusal if refusal.sentence.startswith("Line ") else wrong(line, _whole_sentence(refusal)) from None
    except ValidationError as error:
        raise wrong(line, " ".join(error.messages)) from None
    except ProtectedError as error:
        holders = ", ".join(sorted({str(holder) for holder in error.protected_objects})[:4])
        raise wrong(line, f"what the file leaves out was applied to an environment ({holders}): apply its removal there first.") from None
    except IntegrityError as error:
        raise wrong(line, f"it cannot be kept: {error}") from None


def _whole_sentence(refusal: NotAllowed) -> str:
    return " ".join([refusal.sentence, *(reason for reason in refusal.reasons if reason not in refusal.sentence)])


def _save(row: models.Model, **facts: Any) -> None:
    for name, value in facts.items():
        setattr(row, name, value)
    row.full_clean()
    row.save()


# -------------------------------------------------------------------------------------------------------------- difference


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """What changed between two descriptions, thing by thing, in their order."""
    old, new = dict(_things(before)), dict(_things(after))
    found = [Difference("delete", what, []) for what in old if what not in new]
    for what, facts in new.items():
        if what not in old:
            found.append(
                Difference("create", what, [f"{name}: {_short(value)}" for name, value in facts.items() if value not in ("", None)])
            )
        elif facts != old[what]:
            names = [name for name in dict.fromkeys([*old[what], *facts]) if old[what].get(name) != facts.get(name)]
            found.append(
                Difference("change", what, [f"{name}: {_short(old[what].get(name))} → {_short(facts.get(name))}" for name in names])
            )
    return found


def _things(told: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "project", dict(told["project"])
    yield "retention of releases", dict(told["retention"])
    name_of: dict[str, Callable[[Any], str]] = {
        "systems": lambda item: f"system {item['slug']}",
        "machines": lambda item: f"machine {item['name']}",
        "groups": lambda item: f"group {item['connector']}/{item['name']}",
        "flows": lambda item: f"flow {item['connector']}.{item['name']}",
    }
    for part, name in name_of.items():
        for item in told[part]:
            yield name(item), _flat({key: value for key, value in item.items() if key != "versions"})
            for version in item.get("versions", ()):
                yield f"{name(item)} version {version['version']}", _flat(version)
    for item in told["placements"]:
        yield f"placement {item}", {}
    for key, kind in told["types"].items():
        yield f"type of {key}", {"type": kind}
    for kind, environment in told["environments"].items():
        where = EnvironmentKind(kind).label
        for part in ("policies", "preferences"):
            for name, value in environment[part].items():
                yield f"{where}: {name}", {"is": value}
        yield f"{where}: rules", _flat(environment["rules"])
        for name, value in environment["isolation"].items():
            yield f"{where}: isolation policy of {name}", {"is": value}
        for name, facts in environment["failback"].items():
            yield f"{where}: failback of {name}", dict(facts)
        for item in environment["properties"]:
            facts = {"secret": "set"} if item.get("secret") else {"value": item["value"]}
            yield f"{where}: property {item['key']} ({item.get('scope', 'global')})", facts
        yield f"{where}: plan", {f"step {number}": _short(step) for number, step in enumerate(environment["plan"], 1)}


def _flat(item: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in item.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name} ")
        elif isinstance(value, list):
            found |= {f"{before}{name}": ", ".join(_short(part) for part in value)}
        else:
            found[f"{before}{name}"] = value
    return found


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(part) if name in ("kind", "name") else f"{name}={part}" for name, part in value.items() if part is not False)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
