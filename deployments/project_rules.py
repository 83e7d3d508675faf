"""What a project's file says beside design, values and plans: saved versions of flows, rules, windows, freezes, retention, group policies.

Each `told` gives what an export holds; each `carry_out` makes it so by the acts that pages use, under the rights that those ask.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.utils import timezone

from deployments import promotion, retention
from deployments.models import DeploymentFreeze, DeploymentWindow
from portal import access, components
from portal.errors import NotAllowed
from portal.models import Environment, Flow, FlowVersion, Group, Project, Role, new_group_key
from portal.yaml_lines import Items, Map, refuse_unknown, wrong
from runtimes import failback, failover
from runtimes.models import FailbackPolicy, FailoverGroup
from runtimes.protocol import IsolationPolicy

RULES = ("in_order", "approvals", "approval_days", "time_zone", "expires_after_minutes")
RETENTION = ("enabled", "keep_last", "keep_days")
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})", re.ASCII)


# ---------------------------------------------------------------------------------------------------------------- versions


def versions_told(versions: Iterable[FlowVersion]) -> list[dict[str, Any]]:
    """The saved versions of one flow, the first one first. Who saved them when is history, and not in the file."""
    return [_version(row) for row in sorted(versions, key=lambda row: (row.major, row.minor, row.patch))]


def _version(row: FlowVersion) -> dict[str, Any]:
    said = row.definition
    return {
        "version": row.number,
        "description": row.description,
        "name": said["name"],
        "group": said["group_name"] if said["group"] else None,
        "auto_start": said["auto_start"],
        "inbound": _side(said["inbound"]),
        "outbound": _side(said["outbound"]),
    }


def _side(side: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": side["kind"], "settings": dict(sorted(side["settings"].items()))}


def save_versions(flow: Flow, items: Items, read: Any, *, by: AbstractBaseUser) -> None:
    """Make the saved versions of a flow what the file says. `read` gives a side's kind and settings of an item.

    Raises:
        Invalid: with its line; also a number that is saved here with another content, for versions never change.
    """
    present = {row.number: row for row in FlowVersion.objects.filter(flow=flow)}
    groups = {row.name: row.key for row in Group.objects.filter(connector=flow.connector)}
    wished: set[str] = set()
    for line, item in items.each():
        if not isinstance(item, Map):
            raise wrong(line, "a version is a mapping with its number.")
        for name in item:
            if name not in ("version", "description", "name", "group", "auto_start", "inbound", "outbound"):
                raise wrong(item.lines[name], f"there is no field {name} of a version.")
        number = str(item.get("version", ""))
        found = _NUMBER.fullmatch(number)
        if not found:
            raise wrong(item.lines.get("version", line), f'"{number}" is no version: write it as "1.4.0".')
        if number in wished:
            raise wrong(line, f"version {number} of {flow.name} occurs twice.")
        wished.add(number)
        told: dict[str, Any] = {
            "version": number,
            "description": str(item.get("description") or "")[:200],
            "name": str(item.get("name") or flow.name),
            "group": item.get("group"),
            "auto_start": item.get("auto_start", True),
            **{side: dict(zip(("kind", "settings"), read(item, side), strict=True)) for side in ("inbound", "outbound")},
        }
        if not isinstance(told["auto_start"], bool):
            raise wrong(item.lines["auto_start"], "auto_start is true or false.")
        if number in present:
            former = _version(present[number])
            if other := [name for name in told if former[name] != told[name]]:
                what = "description" if other == ["description"] else "content"
                at = item.lines.get("description", line) if what == "description" else line
                raise wrong(
                    at, f"version {number} of {flow.name} is saved here with another {what}, and versions never change: use a new number."
                )
            continue
        for side in ("inbound", "outbound"):
            try:
                components.checked(side, told[side]["kind"], told[side]["settings"])
            except NotAllowed as refusal:
                raise wrong(item.lines[side], refusal.sentence) from None
        group = told["group"]
        FlowVersion.objects.create(
            flow=flow,
            major=int(found[1]),
            minor=int(found[2]),
            patch=int(found[3]),
            description=told["description"],
            definition={
                "name": told["name"],
                "inbound": told["inbound"],
                "outbound": told["outbound"],
                # a group that is gone since keeps the version what it was: a release says that the group is missing
                "group": groups.get(str(group)) or new_group_key() if group else None,
                "group_name": str(group) if group else None,
                "auto_start": told["auto_start"],
            },
            created_by_id=by.pk,
        )
    FlowVersion.objects.filter(pk__in=[row.pk for number, row in present.items() if number not in wished]).delete()


# ------------------------------------------------------------------------------------------------------------------- rules


def rules_told(environment: Environment) -> dict[str, Any]:
    rules = promotion.rules_of(environment)
    windows = sorted(DeploymentWindow.objects.filter(environment=environment), key=lambda row: (row.days, row.opens, row.closes))
    freezes = sorted(DeploymentFreeze.objects.filter(environment=environment), key=lambda row: (row.starts_at, row.ends_at, row.reason))
    return {
        **{name: getattr(rules, name) for name in RULES},
        "windows": [{"days": row.days, "opens": _clock(row.opens), "closes": _clock(row.closes)} for row in windows],
        "freezes": [{"from": _moment(row.starts_at), "until": _moment(row.ends_at), "reason": row.reason} for row in freezes],
    }


def _clock(of: time) -> str:
    return f"{of:%H:%M}" if not of.second else f"{of:%H:%M:%S}"


def _moment(of: datetime) -> str:
    return of.astimezone(UTC).isoformat().replace("+00:00", "Z")


def carry_out_rules(environment: Environment, given: Map, *, by: AbstractBaseUser) -> None:
    """Raises Invalid with the line; rules ask for the administrator, freezes for the operator."""
    for name in given:
        if name not in (*RULES, "windows", "freezes"):
            raise wrong(given.lines[name], f"there is no rule {name}; known are {', '.join((*RULES, 'windows', 'freezes'))}.")
    now = timezone.now()
    told = rules_told(environment)
    if any(name in given and given[name] != told[name] for name in (*RULES, "windows")):
        _require(environment.project, by, promotion.MAY_SET_RULES, given.line, f"the rules of {environment.name}")
        for name in RULES:
            if name in given and type(given[name]) is not type(told[name]):
                raise wrong(given.lines[name], f"{name} is {'true or false' if isinstance(told[name], bool) else 'of another kind'}.")
        windows = None
        if "windows" in given:
            windows = [
                promotion.WindowInput(_days(item), _time(item, "opens"), _time(item, "closes"))
                for item in _mappings(given, "windows", ("days", "opens", "closes"))
            ]
        promotion.set_rules(environment, by=by, now=now, windows_=windows, **{name: given[name] for name in RULES if name in given})
    if "freezes" in given and given["freezes"] != told["freezes"]:
        _require(environment.project, by, promotion.MAY_FREEZE, given.line, f"the freezes of {environment.name}")
        wished = [
            (_instant(item, "from"), _instant(item, "until"), str(item.get("reason") or "").strip())
            for item in _mappings(given, "freezes", ("from", "until", "reason"))
        ]
        for row in DeploymentFreeze.objects.filter(environment=environment):
            if (row.starts_at, row.ends_at, row.reason) in wished:
                wished.remove((row.starts_at, row.ends_at, row.reason))
            else:
                promotion.lift(row, by=by, now=now)
        for starts, ends, reason in wished:
            if ends > now:  # one that is over forbids nothing any more
                promotion.freeze(environment, starts_at=starts, ends_at=ends, reason=reason, by=by, now=now)


def retention_told(project: Project) -> dict[str, Any]:
    rule = retention.rule_of(project)
    return {name: getattr(rule, name) for name in RETENTION}


def carry_out_retention(project: Project, given: Map, *, by: AbstractBaseUser) -> None:
    for name in given:
        if name not in RETENTION:
            raise wrong(given.lines[name], f"there is no field {name} of retention; known are {', '.join(RETENTION)}.")
    told = retention_told(project)
    changes = {name: given[name] for name in RETENTION if name in given and given[name] != told[name]}
    if not changes:
        return
    for name, value in changes.items():
        if type(value) is not type(told[name]):
            raise wrong(given.lines[name], f"{name} is {'true or false' if name == 'enabled' else 'a whole number'}.")
    _require(project, by, retention.MAY_SET_RULE, given.line, "retention")
    retention.set_rule(project, by=by, **changes)


# ------------------------------------------------------------------------------------------------------------------ groups


def _groups(environment: Environment) -> list[FailoverGroup]:
    rows = FailoverGroup.objects.filter(environment=environment).select_related("group__connector", "environment")
    return sorted(rows, key=lambda row: (row.group.connector.name, row.group.name))


def _name(row: FailoverGroup) -> str:
    return f"{row.group.connector.name}/{row.group.name}"


def isolation_told(environment: Environment) -> dict[str, str]:
    """Only what is not the default."""
    return {_name(row): str(row.isolation_policy) for row in _groups(environment) if row.isolation_policy != IsolationPolicy.STOP}


def failback_told(environment: Environment) -> dict[str, dict[str, Any]]:
    """Only what is not the default."""
    return {_name(row): _failback(row) for row in _groups(environment) if _failback(row) != _MANUAL}


def _failback(row: FailoverGroup) -> dict[str, Any]:
    told: dict[str, Any] = {"policy": str(row.failback), "stable_seconds": row.failback_stable_seconds}
    if row.failback_window_start and row.failback_window_end:
        told |= {"from": _clock(row.failback_window_start), "until": _clock(row.failback_window_end), "zone": row.failback_zone}
    return told


_STABLE_SECONDS = FailoverGroup._meta.get_field("failback_stable_seconds").default
_MANUAL: dict[str, Any] = {"policy": str(FailbackPolicy.MANUAL), "stable_seconds": _STABLE_SECONDS}


def carry_out_groups(environment: Environment, given: Map, *, by: AbstractBaseUser) -> list[str]:
    """Isolation and failback policies of the groups that run there. Returns a note for each that does not run yet.

    Raises:
        Invalid: with the line; also where no agent of a group is heard of, which has to carry its isolation policy.
    """
    notes: list[str] = []
    rows = {_name(row): row for row in _groups(environment)}
    of_project = Group.objects.filter(connector__project=environment.project).values_list("connector__name", "name")
    there = {f"{connector}/{name}" for connector, name in of_project}
    for part in ("isolation", "failback"):
        wishes = given.get(part)
        if wishes is None:
            continue
        if not isinstance(wishes, Map):
            raise wrong(given.lines[part], f"{part} is a mapping of connector/group.")
        for name in wishes:
            if name not in there:
                raise wrong(wishes.lines[name], f"{name} is no group of this file: say connector/group, as {_example(there)}.")
            if name not in rows:
                notes.append(
                    f"Group {name} does not run on {environment.name} yet: its {part} policy is left out; deploy, then import again."
                )
        for name, row in rows.items():
            line = wishes.lines.get(name, wishes.line)
            try:
                _carry_out_group(row, part, wishes.get(name), line, by)
            except NotAllowed as refusal:
                raise refusal if refusal.sentence.startswith("Line ") else wrong(line, f"group {name}: {refusal.sentence}") from None
    return notes


def _carry_out_group(row: FailoverGroup, part: str, wish: Any, line: int, by: AbstractBaseUser) -> None:
    if part == "isolation":
        policy = str(IsolationPolicy.STOP) if wish is None else str(wish)
        if policy not in list(IsolationPolicy):
            raise wrong(line, f"{policy} is no policy: say {' or '.join(IsolationPolicy)}.")
        if policy != str(row.isolation_policy):
            _require(row.environment.project, by, Role.OPERATOR, line, "isolation policies")
            failover.set_isolation_policy(row, IsolationPolicy(policy), actor=by.get_username(), now=timezone.now())
        return
    told = _MANUAL if wish is None else wish
    if not isinstance(told, dict) or told.get("policy") not in FailbackPolicy.values:
        raise wrong(line, f"failback is a mapping with its policy: {', '.join(FailbackPolicy.values)}.")
    if dict(told) == _failback(row):
        return
    if isinstance(told, Map):
        refuse_unknown(told, ("policy", "stable_seconds", "from", "until", "zone"))
    _require(row.environment.project, by, Role.OPERATOR, line, "failback policies")
    seconds = told.get("stable_seconds", _MANUAL["stable_seconds"])
    if not isinstance(seconds, int):
        raise wrong(line, "stable_seconds is a whole number.")
    window = (_time(told, "from"), _time(told, "until")) if "from" in told else None
    failback.set_policy(row, FailbackPolicy(told["policy"]), stable_seconds=seconds, window=window, zone=str(told.get("zone", "UTC")))


# ----------------------------------------------------------------------------------------------------------- small readers


def _require(project: Project, by: AbstractBaseUser, role: Role, line: int, what: str) -> None:
    if not access.may(by, project.team_id, role):
        raise wrong(line, f"changing {what} needs the role {role.label.lower()}, and this file changes it.")


def _example(of: Iterable[str]) -> str:
    return min(of, default="erp/erp-orders")


def _mappings(given: Map, name: str, fields: tuple[str, ...]) -> Items:
    items = given[name]
    if not isinstance(items, Items) or not all(isinstance(item, Map) for item in items):
        raise wrong(given.lines[name], f"{name} is a list of mappings.")
    for item in items:
        refuse_unknown(item, fields)
    return items


def _days(item: Map) -> str:
    days = item.get("days")
    if not isinstance(days, str) or not days or set(days) - set("0123456"):
        at = item.lines.get("days", item.line)
        raise wrong(at, """days is a text of digits, 0 Monday to 6 Sunday, in quotes: '01234' is Monday to Friday.""")
    return days


def _time(item: Mapping[str, Any], name: str) -> time:
    read = None
    with contextlib.suppress(ValueError):
        read = time.fromisoformat(str(item.get(name, "")))
    if read is None or read.tzinfo is not None:
        at = item.lines.get(name, item.line) if isinstance(item, Map) else 1
        raise wrong(at, f'{name}: "{item.get(name, "")}" is no time of day: write it as "08:00"; its zone stands beside it.')
    return read


def _instant(item: Map, name: str) -> datetime:
    moment = None
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(str(item.get(name, "")))
    if moment is None or moment.tzinfo is None:
        raise wrong(item.lines.get(name, item.line), f'{name}: "{item.get(name, "")}" is no moment: write it as "2027-01-04T08:00:00Z".')
    return moment
