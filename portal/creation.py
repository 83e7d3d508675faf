"""The Create phase: flows, groups, versions; and the transfer of failover from Design.

Flow rows are the working copy. What enters a release is the latest saved FlowVersion, which never changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Prefetch, ProtectedError, QuerySet

from portal import components
from portal.errors import Busy, Invalid, NotAllowed
from portal.models import NAME, Connector, Flow, FlowVersion, Group, Project

Bump = Literal["major", "minor", "patch"]


def connectors_of(project: Project) -> QuerySet[Connector]:
    """Connectors with flows, groups and versions: four queries however many."""
    versions = Prefetch("versions", FlowVersion.objects.select_related("created_by"))
    flows = Prefetch("flows", Flow.objects.select_related("group").prefetch_related(versions))
    return project.connectors.select_related("system").prefetch_related(flows, "groups")


def latest_version(flow: Flow) -> FlowVersion | None:
    """The newest saved version. Uses prefetched versions when they are there (newest first, as the model orders them)."""
    return next(iter(flow.versions.all()), None)


def has_unsaved_changes(flow: Flow) -> bool:
    """Does the working copy differ from the newest saved version (or has none been saved)?"""
    latest = latest_version(flow)
    return latest is None or changed_since(latest, flow.definition())


def changed_since(version: FlowVersion, definition: Mapping[str, Any]) -> bool:
    """Does a definition say something else than a saved version? A setting left open in one and written out in the other is the same."""
    return bool(version.definition != definition) and _settled(version.definition) != _settled(definition)


def _settled(definition: Mapping[str, Any]) -> dict[str, Any]:
    return {**definition} | {
        side: {**definition[side], "settings": components.settled(side, definition[side]["kind"], definition[side]["settings"])}
        for side in components.SIDES
    }


# ------------------------------------------------------------------------------------------------------------------- flows


def _checked_name(name: str, what: str) -> str:
    try:
        NAME(name)
    except ValidationError as error:
        raise Invalid(f'"{name}" is no name for a {what}. {error.messages[0]}', field="name") from None
    return name


def save_flow(
    flow: Flow,
    *,
    name: str,
    inbound_kind: str,
    inbound_settings: Mapping[str, str],
    outbound_kind: str,
    outbound_settings: Mapping[str, str],
    auto_start: bool = True,
) -> Flow:
    """Keep the working copy of a new flow (`Flow(connector=…)`) or a changed one. Releases do not see it until a version is saved.

    Raises:
        Invalid: a name that is not allowed or taken, or settings that are missing or malformed (`faults` names each).
    """
    faults: dict[str, str] = {}
    kept: dict[components.Side, dict[str, str]] = {}
    given: dict[components.Side, tuple[str, Mapping[str, str]]] = {
        "inbound": (inbound_kind, inbound_settings),
        "outbound": (outbound_kind, outbound_settings),
    }
    try:
        check_flow_name(flow, name)
    except Invalid as refusal:
        faults |= refusal.faults
    for side, (kind, settings) in given.items():
        try:
            kept[side] = components.checked(side, kind, settings)
        except Invalid as refusal:
            faults |= refusal.faults
    if faults:
        components.refuse(faults)
    flow.name, flow.inbound_settings, flow.outbound_settings = name, kept["inbound"], kept["outbound"]
    flow.inbound_kind, flow.outbound_kind, flow.auto_start = inbound_kind, outbound_kind, auto_start
    try:
        with transaction.atomic():
            flow.save()
    except IntegrityError:  # named so in the same moment
        raise _taken(flow, name) from None
    return flow


def check_flow_name(flow: Flow, name: str) -> None:
    """Raises Invalid for a name that this flow may not bear."""
    if Flow.objects.filter(connector=flow.connector_id, name=_checked_name(name, "flow")).exclude(pk=flow.pk).exists():
        raise _taken(flow, name)


def _taken(flow: Flow, name: str) -> Invalid:
    return Invalid(f"{flow.connector} has a flow {name} already: choose another name.", field="name")


def remove_flow(flow: Flow) -> None:
    """Remove a flow with its versions. Releases that hold it keep their copy."""
    flow.delete()


# ------------------------------------------------------------------------------------------------------------------ groups


def _group_named(connector: Connector, name: str) -> Group:
    group, _ = Group.objects.get_or_create(connector=connector, name=_checked_name(name, "group"))
    return group


@transaction.atomic
def pick_group(flow: Flow, group: Group | None, *, new_name: str = "") -> Flow:
    """Put a flow's inbound into an existing group of its connector, into a new one named once, or into none.

    Raises:
        Invalid: a group of another connector, or a new name that is not allowed or that a group bears already (pick that one).
    """
    if new_name:
        if flow.connector.groups.filter(name=new_name).exists():
            raise Invalid(f"{flow.connector} has a group {new_name} already: pick it from the list.", field="new_name")
        group = _group_named(flow.connector, new_name)
    if group is not None and group.connector_id != flow.connector_id:
        raise Invalid(f"{group} is a group of another connector.", field="group")
    flow.group = group
    flow.save(update_fields=["group", "updated_at"])
    return flow


def namesakes(group: Group) -> list[str]:
    """Other connectors of the project that have a group of this name. They share nothing but the name."""
    same = Group.objects.filter(connector__project=group.connector.project_id, name=group.name).exclude(pk=group.pk)
    return list(same.order_by("connector__name").values_list("connector__name", flat=True))


def rename_group(group: Group, name: str) -> Group:
    """Another name; machines keep knowing the group by its key, so leadership is not disturbed. Raises Invalid for a taken one."""
    _checked_name(name, "group")
    if group.connector.groups.filter(name=name).exclude(pk=group.pk).exists():
        raise Invalid(f"{group.connector} has a group {name} already: choose another name.", field="name")
    group.name = name
    group.save(update_fields=["name"])
    return group


def remove_group(group: Group) -> None:
    """Raises NotAllowed while flows are in it or an environment keeps its history."""
    flows = [flow.name for flow in group.flows.all()]
    if flows:
        raise NotAllowed(f"{group} still holds {', '.join(flows)}: pick another group for them first.")
    try:
        with transaction.atomic():
            group.delete()
    except ProtectedError:
        raise NotAllowed(f"{group} ran in an environment; its history is kept and so is the group.") from None


# ---------------------------------------------------------------------------------------------------- transfer from design


@dataclass(frozen=True)
class Transfer:
    """What a connector would take over from Design. `wanted` False: its failover support goes again."""

    connector: Connector
    wanted: bool
    flows: list[tuple[Flow, str]]  # with the group name offered for each

    @property
    def sentence(self) -> str:
        if self.wanted:
            return f"{self.connector} gets its failover support: cluster settings by placeholders, and groups for its inbounds."
        return f"{self.connector} no longer runs in failover: its groups are then started and stopped per runtime."


def pending_transfers(project: Project) -> list[Transfer]:
    """Connectors whose failover in Create is not as settled in Design."""
    return [
        Transfer(
            connector,
            connector.system.failover_applied,
            [(flow, flow.group.name if flow.group else flow.name) for flow in connector.flows.all()],
        )
        for connector in connectors_of(project)
        if connector.failover != connector.system.failover_applied
    ]


@transaction.atomic
def transfer_failover(connector: Connector, grouping: Mapping[str, str] | None = None) -> Connector:
    """Take over what Design settled for the connector's failover; `grouping` puts flows (by name) into groups (by name; "" for none).

    A grouped inbound of a failover connector does not start by itself: it starts with leadership.

    Raises:
        NotAllowed: Design has not settled failover for it (Apply settings first).
        Invalid: a flow that the connector does not have, or a group name that is not allowed.
    """
    system = connector.system
    if system.failover and not system.failover_applied:
        raise NotAllowed(f"{system.name} shall run in failover, but that is not settled: use Design › Architecture › Apply settings first.")
    if not system.failover_applied and not connector.failover:
        raise NotAllowed(f"{system.name} does not run in failover: turn it on in Design › Solution, then Apply settings.")
    flows = {flow.name: flow for flow in connector.flows.all()}
    for flow_name, group_name in (grouping or {}).items():
        if flow_name not in flows:
            raise Invalid(f"{connector} has no flow {flow_name}.", field=flow_name)
        flow = flows[flow_name]
        flow.group = _group_named(connector, group_name) if group_name else None
        flow.save(update_fields=["group", "updated_at"])
    connector.failover = system.failover_applied
    connector.save(update_fields=["failover"])
    return connector


# ---------------------------------------------------------------------------------------------------------------- versions


def next_number(latest: FlowVersion | None, bump: Bump) -> tuple[int, int, int]:
    """The number after `latest`; the first version is 1.0.0 whatever the bump."""
    if latest is None:
        return 1, 0, 0
    if bump == "major":
        return latest.major + 1, 0, 0
    if bump == "minor":
        return latest.major, latest.minor + 1, 0
    return latest.major, latest.minor, latest.patch + 1


def save_version(flow: Flow, bump: Bump, description: str = "", *, by: AbstractBaseUser | None) -> FlowVersion:
    """Keep the working copy as the next version, for releases to come.

    Raises:
        Invalid: a bump that is none of major, minor, patch.
        NotAllowed: nothing changed since the newest version.
        Busy: a colleague saved a version in the same moment.
    """
    if bump not in ("major", "minor", "patch"):
        raise Invalid("Choose major, minor or patch.", field="bump")
    latest = flow.versions.first()
    definition = flow.definition()
    if latest is not None and not changed_since(latest, definition):
        raise NotAllowed(f"Nothing changed in {flow} since version {latest.number}.")
    major, minor, patch = next_number(latest, bump)
    try:
        with transaction.atomic():
            return FlowVersion.objects.create(
                flow=flow,
                major=major,
                minor=minor,
                patch=patch,
                description=description.strip()[:200],
                definition=definition,
                created_by_id=by.pk if by else None,
            )
    except IntegrityError:
        raise Busy(f"A colleague saved version {major}.{minor}.{patch} of {flow} just now. Look at it, then save again.") from None
