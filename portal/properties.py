"""Placeholders and their values: `${external01.failover.internal-ip}` -> what Property rows say for an environment and a runtime."""

import ipaddress
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import OuterRef, Q, Subquery
from django.utils import timezone

from portal import components, property_types, vault
from portal.errors import Invalid, NotAllowed
from portal.models import (
    PROPERTY_KEY,
    Connector,
    DesignedMachine,
    Environment,
    Flow,
    FlowVersion,
    MachineKind,
    Project,
    Property,
    PropertyChange,
    PropertyKind,
    PropertyType,
)
from portal.placeholders import only_placeholder, placeholders, replaced

_ADDRESS_SUFFIX = ".failover.internal-ip"
_PORT_SUFFIX = ".failover.port"
MANY_KEYS = 500  # databases limit the parameters of one query: above, rows are read without naming their keys


@dataclass(frozen=True)
class Missing:
    """A placeholder without a value: which key, for which runtime ("external01.erp") or router ("router on external01"), used by what."""

    key: str
    runtime: str
    used_by: str  # "flow erp-orders, inbound folder"

    @property
    def sentence(self) -> str:
        return f"{self.runtime} needs a value for {self.key} ({self.used_by})."


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


# --------------------------------------------------------------------------------------------------------------------- uses


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


# ------------------------------------------------------------------------------------------------------------------- values


def winners(values: Iterable[Property], *, machine: str, connector: str) -> dict[str, Property]:
    """Key -> the row that one runtime gets: runtime scope wins over machine, machine over connector, connector over global."""
    ranked = sorted(
        (row for row in values if row.machine in ("", machine) and row.connector in ("", connector)),
        key=lambda row: (bool(row.machine), bool(row.connector)),
    )
    return {row.key: row for row in ranked}


def lookup(values: Iterable[Property], *, machine: str, connector: str) -> dict[str, str]:
    """Key -> value as one runtime sees it, secrets readable: for what goes to that runtime, never for a page."""
    return {key: row.reveal() for key, row in winners(values, machine=machine, connector=connector).items()}


@dataclass(frozen=True)
class Resolved:
    settings: dict[str, str]
    missing: set[str]  # keys without a value
    secrets: set[str]  # values in the settings that nobody may read in a log


def resolve(settings: Mapping[str, str], values: Iterable[Property], *, machine: str, connector: str) -> Resolved:
    """The settings with every placeholder replaced. Most specific scope wins; an empty value of a present property counts as a value.
    `values` are the environment's properties, read once by the caller.

    A value is taken as it is: "${" inside a value is text, not another placeholder. Raises vault.Unreadable.
    """
    named = placeholders(settings)
    rows = winners((row for row in values if row.key in named), machine=machine, connector=connector)
    known = {key: row.reveal() for key, row in rows.items()}
    return Resolved(
        settings={name: replaced(str(text), known) for name, text in settings.items()},
        missing=named - known.keys(),
        secrets={known[key] for key, row in rows.items() if row.secret and known[key]},
    )


def failover_keys(machine: str) -> tuple[str, str]:
    """("external01.failover.internal-ip", "external01.failover.port")"""
    return f"{machine}{_ADDRESS_SUFFIX}", f"{machine}{_PORT_SUFFIX}"


def is_failover_key(key: str) -> bool:
    return key.endswith((_ADDRESS_SUFFIX, _PORT_SUFFIX))


def failover_address(machine: str, values: Iterable[Property]) -> tuple[str | None, str | None]:
    """The resolved Internal IP and Failover port of a machine; None where no value is filled in."""
    keys = failover_keys(machine)
    known = lookup((row for row in values if row.key in keys), machine=machine, connector="")
    return known.get(keys[0]) or None, known.get(keys[1]) or None


def address_conflicts(addresses: Mapping[str, tuple[str | None, str | None]], *, one_host: bool) -> list[str]:
    """Why these routers (machine -> Internal IP, Failover port) could not form one cluster, one sentence each; empty when they could.

    Loopback, or one address for several machines, is right only with the explicit mark that all stand on one host, as in a demonstration,
    and loopback then only when every machine uses it: otherwise each side would find only itself.
    """
    findings = [] if one_host else _apart(addresses)
    if findings:
        return findings
    filled = {machine: address for machine, (address, _) in addresses.items() if address}
    local = sorted(machine for machine, address in filled.items() if is_loopback(address))
    if local and len(local) < len(filled):
        findings.append(_loopback_refusal(local[0], filled[local[0]], sorted(set(filled) - set(local))))
    seen: dict[tuple[str, str], str] = {}
    for machine, (address, port) in sorted(addresses.items()):
        if not address or not port:
            continue
        other = seen.setdefault((_same_address(address), port.strip()), machine)
        if other != machine:
            findings.append(_duplicate_refusal(machine, other, address, port))
    return findings


def _apart(addresses: Mapping[str, tuple[str | None, str | None]]) -> list[str]:
    """What machines on hosts of their own cannot have, one sentence each."""
    findings = []
    seen: dict[str, str] = {}
    for machine, (address, _) in sorted(addresses.items()):
        if not address:
            continue
        if is_loopback(address):
            findings.append(_apart_loopback(machine, address))
            continue
        other = seen.setdefault(_same_address(address), machine)
        if other != machine:
            findings.append(_apart_duplicate(machine, other, address))
    return findings


_ON_ONE_HOST = "If all machines stand on one host on purpose (a demonstration), mark that on the machine's tab Failover first."


def _apart_loopback(machine: str, address: str) -> str:
    return (
        f"{address} is reachable only from {machine} itself, and the other machines have to reach it: "
        f"fill in its address in their network. {_ON_ONE_HOST}"
    )


def _apart_duplicate(machine: str, other: str, address: str) -> str:
    return f"{other} already uses {address} ({failover_keys(other)[0]}): give {machine} its own address. {_ON_ONE_HOST}"


def mark_one_host(environment: Environment, one_host: bool, *, by: Any) -> None:
    """Say that all machines of the environment stand on one host on purpose, or take that back.

    Raises:
        NotAllowed: taking it back while machines have loopback addresses or share one; one reason each.
    """
    with transaction.atomic():
        if not one_host:
            rows = list(Property.objects.filter(environment=environment, key__endswith=_ADDRESS_SUFFIX))
            machines = {row.key.removesuffix(_ADDRESS_SUFFIX) for row in rows}
            findings = _apart({name: failover_address(name, rows) for name in machines})
            if findings:
                raise NotAllowed(f"The addresses say otherwise. {' '.join(findings)}", reasons=findings)
        Environment.objects.filter(pk=environment.pk).update(one_host=one_host)
        environment.one_host = one_host


def _loopback_refusal(machine: str, address: str, others: list[str]) -> str:
    return (
        f"{address} is reachable only from {machine} itself, but {', '.join(others)} use{'s' if len(others) == 1 else ''} another "
        f"network: fill in the address under which the other machines reach {machine}."
    )


def _duplicate_refusal(machine: str, other: str, address: str, port: str) -> str:
    return (
        f"{other} already uses {address}:{port} ({' and '.join(failover_keys(other))}): "
        f"give {machine} another address or port ({' or '.join(failover_keys(machine))})."
    )


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower().rstrip(".") == "localhost"


def _same_address(address: str) -> str:
    """One spelling per address, so that duplicates are seen; a name is not looked up, only "localhost" is known."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return "127.0.0.1" if is_loopback(address) else address.lower().rstrip(".")


# ------------------------------------------------------------------------------------------------------- what a value has to be


@dataclass(frozen=True)
class Expectation:
    """The type of a key: declared, or guessed from what uses it."""

    kind: str  # PropertyKind
    because: str  # "declared", "flow erp-orders, inbound folder", "Failover port"
    declared: bool = False
    may_be_empty: bool = False

    @property
    def label(self) -> str:
        return PropertyKind(self.kind).label


TEXT = Expectation(PropertyKind.TEXT, "", may_be_empty=True)


def failover_expectation(key: str) -> Expectation | None:
    if key.endswith(_PORT_SUFFIX):
        return Expectation(PropertyKind.PORT, "Failover port")
    return Expectation(PropertyKind.HOST, "Internal IP") if key.endswith(_ADDRESS_SUFFIX) else None


def expectations(
    project: int, *, only: Collection[str] | None = None, definitions: Iterable[tuple[str, Mapping[str, Any]]] | None = None
) -> dict[str, Expectation]:
    """The type of every key (`only` these) that has one: declared, else guessed from the setting that a placeholder wholly stands for.
    Three queries; one when the project's `definitions` were read already."""
    declared = PropertyType.objects.filter(project=project).values_list("key", "kind")
    told = guessed(definitions_in(project) if definitions is None else definitions, only)
    return told | {key: Expectation(kind, "declared", declared=True) for key, kind in declared if not is_failover_key(key)}


def guessed(definitions: Iterable[tuple[str, Mapping[str, Any]]], only: Collection[str] | None = None) -> dict[str, Expectation]:
    """What components' settings say of the keys (`only` these) that stand for them. Settings that disagree say nothing."""
    typed = {
        (side, str(kind), setting.name): setting
        for side, kinds in components.REGISTRY.items()
        for kind, settings in kinds.items()
        for setting in settings
        if setting.kind != PropertyKind.TEXT
    }
    found: dict[str, Expectation] = {}
    for flow, definition in definitions:
        for side in ("inbound", "outbound"):
            for name, text in definition[side]["settings"].items():
                setting = typed.get((side, definition[side]["kind"], name))
                key = only_placeholder(str(text)) if setting else None
                if not setting or not key or (only is not None and key not in only) or is_failover_key(key):
                    continue
                guess = Expectation(setting.kind, f"flow {flow}, {side} {name}", may_be_empty=not setting.required)
                known = found.setdefault(key, guess)
                if known.kind != guess.kind:
                    found[key] = Expectation(PropertyKind.TEXT, f"{known.because} and {guess.because} expect different things")
                elif known.may_be_empty and not guess.may_be_empty:
                    found[key] = guess
    return found


def expectation(key: str, known: Mapping[str, Expectation]) -> Expectation:
    return failover_expectation(key) or known.get(key, TEXT)


def declare_type(project: Project, key: str, kind: str, *, by: Any) -> PropertyType | None:
    """Say what every value of a key has to be; an empty kind takes the declaration back (the type is guessed again).

    Type "secret" seals the present values. A secret stays one when its type changes: set it anew to make it readable.

    Raises:
        Invalid: the key's type is fixed, or present values are not of the new type (one reason each).
    """
    key = _checked_key(key)
    if fixed := failover_expectation(key):
        raise Invalid(f"{key} is always of type {fixed.label}: it is the {fixed.because} of a router.", field="kind")
    if kind and kind not in PropertyKind.values:
        raise Invalid(f'"{kind}" is no type: choose one of {", ".join(PropertyKind.values)}.', field="kind")
    with transaction.atomic():
        if not kind:
            PropertyType.objects.filter(project=project, key=key).delete()
            return None
        rows = list(Property.objects.filter(environment__project=project, key=key).select_related("environment"))
        faults = [(row, fault) for row in rows if (fault := property_types.fault(kind, row.reveal()))]
        if faults:
            reasons = [f"{row.environment.name}, {row.scope}: {_quoted(row)} {fault}." for row, fault in faults]
            label = PropertyKind(kind).label
            raise Invalid(
                f"{key} cannot be of type {label}: {len(faults)} value{'s are' if len(faults) > 1 else ' is'} not. Correct "
                f"{'them' if len(faults) > 1 else 'it'} first. {' '.join(reasons)}",
                field="kind",
                reasons=reasons,
            )
        made, _ = PropertyType.objects.update_or_create(project=project, key=key, defaults={"kind": kind, "updated_by": by})
        if kind == PropertyKind.SECRET and (plain := [row for row in rows if not row.secret]):
            _apply(
                [Edit(row.environment, key, row.value, row.machine, row.connector, secret=True) for row in plain],
                by=by,
                cause="made secret",
            )
    return made


def _quoted(row: Property) -> str:
    return "the secret" if row.secret else f'"{row.value}"'


# ------------------------------------------------------------------------------------------------------------------ filling in


@dataclass(frozen=True)
class Edit:
    """A wish for one value. `value` None deletes it; `secret` None keeps what the property says (a new one: what the key is elsewhere)."""

    environment: Environment
    key: str
    value: str | None = field(repr=False)
    machine: str = ""
    connector: str = ""
    secret: bool | None = None

    @property
    def scope(self) -> str:
        return Property(machine=self.machine, connector=self.connector).scope

    @property
    def cell(self) -> tuple[int, str, str, str]:
        return self.environment.pk, self.key, self.machine, self.connector


@dataclass(frozen=True)
class Planned:
    """What an edit would do."""

    edit: Edit
    before: Property | None
    value: str | None = field(repr=False)  # as it would be kept, readable; None: no value
    secret: bool
    refusal: Invalid | None = None

    @property
    def verb(self) -> str:
        """ "refused", "none" (it changes nothing), "add", "change" or "delete"."""
        if self.refusal:
            return "refused"
        if self.value is None:
            return "delete" if self.before else "none"
        if self.before is None:
            return "add"
        return "none" if self.before.secret == self.secret and self.before.reveal() == self.value else "change"


def plan(edits: Sequence[Edit]) -> list[Planned]:
    """What these edits would do, each with its refusal; writes nothing. All edits are of one project. A fixed number of queries."""
    if not edits:
        return []
    project = edits[0].environment.project_id
    keys = {edit.key for edit in edits}
    known = expectations(project, only=keys)
    rows = Property.objects.filter(environment__project=project)
    rows = rows.filter(Q(key__in=keys) | Q(key__contains=".failover.")) if len(keys) <= MANY_KEYS else rows
    present = {(row.environment_id, row.key, row.machine, row.connector): row for row in rows}
    secret_keys = {row.key for row in present.values() if row.secret}
    machines = set(DesignedMachine.objects.filter(project=project).values_list("name", flat=True))
    connectors = set(Connector.objects.filter(project=project).values_list("name", flat=True))
    seen: set[tuple[int, str, str, str]] = set()
    found: list[Planned] = []
    for edit in edits:
        before = present.get(edit.cell)
        expected = expectation(edit.key, known)
        secret = _becomes_secret(edit, before, expected, secret_keys)
        try:
            if edit.cell in seen:
                raise Invalid(f"{edit.key} ({edit.scope}) occurs twice: leave one out.", field="key")
            seen.add(edit.cell)
            value = edit.value
            if value is not None:
                _checked_key(edit.key)
                _check_scope(edit, machines, connectors, new=before is None)
                value = _checked_value(edit, expected, secret)
        except Invalid as refusal:
            found.append(Planned(edit, before, edit.value, secret, refusal))
        else:
            found.append(Planned(edit, before, value, secret))
    return _checked_together(found, present)


def set_values(edits: Sequence[Edit], *, by: Any, cause: str = "set") -> list[Planned]:
    """Carry out all edits or none; what changes is written with its history as one act, which `undo_last` takes back.

    Raises:
        Invalid: one reason per refused edit; `field` is the first one's.
    """
    with transaction.atomic():
        return _apply(edits, by=by, cause=cause)


def set_value(
    environment: Environment, key: str, value: str, *, machine: str = "", connector: str = "", secret: bool | None = None, by: Any
) -> Property:
    """Fill in a value, validated as its key's type says (declared, guessed from where it is used; an Internal IP and a Failover port are
    also compared with other machines'). `secret` None keeps what the property says (a new one: what the key is elsewhere). It reaches
    machines with the next deployment. Raises Invalid naming the field and the remedy."""
    edit = Edit(environment, key.strip(), value, machine, connector, secret)
    try:
        set_values([edit], by=by)
    except IntegrityError:  # somebody filled it in a moment ago: the later value stays
        set_values([edit], by=by)
    return Property.objects.get(environment=environment, key=edit.key, machine=machine, connector=connector)


def check_value(
    environment: Environment, key: str, value: str, *, machine: str = "", connector: str = "", secret: bool | None = None
) -> str:
    """The value as it would be kept. Raises Invalid as `set_value` does, and writes nothing."""
    (planned,) = plan([Edit(environment, key.strip(), value, machine, connector, secret)])
    if planned.refusal:
        raise planned.refusal
    assert planned.value is not None
    return planned.value


def remove_value(environment: Environment, key: str, *, machine: str = "", connector: str = "", by: Any = None) -> bool:
    """Forget a value in one scope; a less specific one, if any, applies again. False: there was none."""
    (done,) = set_values([Edit(environment, key, None, machine, connector)], by=by, cause="deleted")
    return done.verb == "delete"


def _apply(edits: Sequence[Edit], *, by: Any, cause: str) -> list[Planned]:
    planned = plan(edits)
    refused = [item for item in planned if item.refusal]
    if len(refused) == 1 and len(planned) == 1 and refused[0].refusal:
        raise refused[0].refusal
    if refused:
        reasons = [f"{item.edit.key} ({item.edit.environment.name}, {item.edit.scope}): {item.refusal}" for item in refused]
        first = refused[0].refusal
        raise Invalid(
            f"Nothing is changed: {len(refused)} of {len(planned)} values are refused.", reasons=reasons, field=first.field if first else ""
        )
    _write([item for item in planned if item.verb != "none"], by=by, cause=cause)
    return planned


def _write(changes: Sequence[Planned], *, by: Any, cause: str) -> None:
    """Rows and history, a fixed number of queries per thousand values."""
    if not changes:
        return
    now, act = timezone.now(), uuid.uuid4()
    history = [_change(item, act=act, cause=cause, at=now, by=by) for item in changes]  # before the rows take their new values
    _forget_former_secrets(changes)
    gone = [item.before.pk for item in changes if item.value is None and item.before]
    for start in range(0, len(gone), MANY_KEYS):
        Property.objects.filter(pk__in=gone[start : start + MANY_KEYS]).delete()
    new: list[Property] = []
    changed: list[Property] = []
    for item in changes:
        if item.value is None:
            continue
        edit = item.edit
        row = item.before or Property(environment=edit.environment, key=edit.key, machine=edit.machine, connector=edit.connector)
        row.secret, row.updated_at, row.updated_by = item.secret, now, by
        row.value, row.sealed = ("", vault.seal(item.value)) if item.secret else (item.value, "")
        (changed if item.before else new).append(row)
    Property.objects.bulk_create(new, batch_size=MANY_KEYS)
    Property.objects.bulk_update(changed, ["value", "sealed", "secret", "updated_at", "updated_by"], batch_size=MANY_KEYS // 5)
    PropertyChange.objects.bulk_create(history, batch_size=MANY_KEYS)


def _change(item: Planned, *, act: uuid.UUID, cause: str, at: Any, by: Any) -> PropertyChange:
    """The history of one value. A secret's text is in none of it; what was readable before its key became secret is sealed."""
    edit, before = item.edit, item.before
    hidden = before is not None and (before.secret or item.secret)
    return PropertyChange(
        environment=edit.environment,
        act=act,
        cause=cause,
        at=at,
        by=by,
        key=edit.key,
        machine=edit.machine,
        connector=edit.connector,
        before=None if before is None else "" if hidden else before.value,
        after=None if item.value is None else "" if item.secret else item.value,
        secret_before=hidden,
        secret_after=item.secret and item.value is not None,
        sealed_before=vault.seal(before.reveal()) if before is not None and hidden else "",
    )


def _forget_former_secrets(changes: Sequence[Planned]) -> None:
    """Only the last change of a key can be undone, so older secrets go; and what a key said before it became secret is no longer told."""
    keys = {item.edit.key for item in changes if item.secret or (item.before and item.before.secret)}
    if not keys:
        return
    environments = {item.edit.environment.pk for item in changes}
    former = PropertyChange.objects.filter(environment__in=environments)
    for some in _portions(sorted(keys)):
        former.filter(key__in=some).exclude(sealed_before="").update(sealed_before="")
    turned = {item.edit.key for item in changes if item.secret and item.before and not item.before.secret}
    for some in _portions(sorted(turned)):
        former.filter(key__in=some, before__isnull=False).update(before="", secret_before=True)
        former.filter(key__in=some, after__isnull=False).update(after="", secret_after=True)


def _portions(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), MANY_KEYS):
        yield keys[start : start + MANY_KEYS]


def last_act(environment: Environment) -> list[PropertyChange]:
    """The changes that `undo_last` would take back; empty when there is nothing."""
    newest = PropertyChange.objects.filter(environment=environment).first()
    if newest is None:
        return []
    return list(PropertyChange.objects.filter(act=newest.act).select_related("environment", "by"))


def undo_last(environment: Environment, *, by: Any, act: uuid.UUID | None = None) -> list[Planned]:
    """Take back the last act that changed values here, whole, also what it changed in other environments of the project. Undoing an undo
    does it again.

    Args:
        act: what the asker saw as the last one.

    Raises:
        NotAllowed: nothing to undo, or something else has changed since.
    """
    with transaction.atomic():
        changes = last_act(environment)
        if not changes or (act is not None and changes[0].act != act):
            raise NotAllowed("There is nothing to undo." if not changes else "Something else has changed since: look at the history again.")
        others = PropertyChange.objects.filter(
            environment__in={change.environment_id for change in changes}, pk__gt=max(c.pk for c in changes)
        )
        if others.exists():
            raise NotAllowed("The last change touched other environments too, and there something else has changed since: undo that first.")
        edits = []
        for change in changes:
            former = change.before
            if change.secret_before and former is not None:
                if not change.sealed_before:
                    raise NotAllowed(f"The former secret of {change.key} is no longer kept: set it anew.")
                former = vault.unseal(change.sealed_before)
            edits.append(
                Edit(
                    change.environment,
                    change.key,
                    former,
                    change.machine,
                    change.connector,
                    secret=change.secret_before if former is not None else None,
                )
            )
        return _apply(edits, by=by, cause="undone")


# -------------------------------------------------------------------------------------------------------------- what is refused


def _becomes_secret(edit: Edit, before: Property | None, expected: Expectation, secret_keys: set[str]) -> bool:
    if expected.kind == PropertyKind.SECRET:
        return True
    if edit.secret is not None:
        return edit.secret
    return before.secret if before else edit.key in secret_keys


def _checked_key(key: str) -> str:
    key = key.strip()
    try:
        PROPERTY_KEY(key)
    except ValidationError as error:
        raise Invalid(f'"{key}" is no valid key. {error.messages[0]}', field="key") from None
    return key


def _check_scope(edit: Edit, machines: set[str], connectors: set[str], *, new: bool) -> None:
    """A value for a machine or connector that nobody designed would never work, and nobody would notice."""
    if edit.machine and edit.machine not in machines:
        raise Invalid(
            f"{edit.machine} is no machine of this project: draw it in Design › Architecture first, or correct the name.", field="machine"
        )
    if edit.connector and edit.connector not in connectors:
        raise Invalid(f"{edit.connector} is no connector of this project: correct the name, or leave it out for all.", field="connector")


def _checked_value(edit: Edit, expected: Expectation, secret: bool) -> str:
    value = edit.value or ""
    if secret and is_failover_key(edit.key):
        raise Invalid(f"{edit.key} cannot be a secret: the other machines have to know it.", field="secret")
    if secret and not value:
        raise Invalid("Type the new secret. To take it away instead, delete the value.", field="value")
    if not value and expected.may_be_empty:
        return value
    try:
        return property_types.checked(expected.kind, value, key=edit.key, hidden=secret)
    except Invalid as refusal:
        if expected.declared or is_failover_key(edit.key):
            raise
        raise Invalid(
            f"{refusal.sentence.removesuffix('.')}, as {expected.because} expects it; or declare another type for {edit.key}.",
            field="value",
        ) from None


def _checked_together(found: list[Planned], present: Mapping[tuple[int, str, str, str], Property]) -> list[Planned]:
    """Internal IPs and Failover ports are compared with all others of their environment, as they will be after the edits."""
    touched = {item.edit.environment.pk for item in found if not item.refusal and item.value is not None and is_failover_key(item.edit.key)}
    if not touched:
        return found
    after = {cell: (row.value or "") for cell, row in present.items() if cell[0] in touched and is_failover_key(cell[1])}
    for item in found:
        if not item.refusal and item.edit.environment.pk in touched and is_failover_key(item.edit.key):
            if item.value is None:
                after.pop(item.edit.cell, None)
            else:
                after[item.edit.cell] = item.value
    addresses: dict[int, dict[str, tuple[str | None, str | None]]] = {}
    for pk in touched:
        rows = [
            Property(key=key, machine=machine, connector=connector, value=value)
            for (where, key, machine, connector), value in after.items()
            if where == pk
        ]
        machines = {row.key.removesuffix(_PORT_SUFFIX).removesuffix(_ADDRESS_SUFFIX) for row in rows}
        addresses[pk] = {name: failover_address(name, rows) for name in machines}
    checked = []
    for item in found:
        refusal = item.refusal
        if not refusal and item.value is not None and is_failover_key(item.edit.key):
            refusal = _clash(item, addresses[item.edit.environment.pk])
        checked.append(item if refusal is item.refusal else Planned(item.edit, item.before, item.value, item.secret, refusal))
    return checked


def _clash(item: Planned, addresses: Mapping[str, tuple[str | None, str | None]]) -> Invalid | None:
    """Why this address or port cannot stand beside the others."""
    is_port, value = item.edit.key.endswith(_PORT_SUFFIX), item.value or ""
    owner = item.edit.key.removesuffix(_PORT_SUFFIX if is_port else _ADDRESS_SUFFIX)
    mine, port = addresses[owner]
    if not item.edit.environment.one_host and not is_port:
        if is_loopback(value):
            return Invalid(_apart_loopback(owner, value), field="value")
        for other, (address, _) in sorted(addresses.items()):
            if other != owner and address and _same_address(address) == _same_address(value):
                return Invalid(_apart_duplicate(owner, other, value), field="value")
    others = sorted(name for name, (address, _) in addresses.items() if name != owner and address and not is_loopback(address))
    if not is_port and is_loopback(value) and others:
        return Invalid(_loopback_refusal(owner, value, others), field="value")
    for other, (address, taken) in sorted(addresses.items()):
        if other != owner and mine and port and address and _same_address(address) == _same_address(mine) and taken == port:
            return Invalid(_duplicate_refusal(owner, other, mine, port), field="value")
    return None


# -------------------------------------------------------------------------------------------------------------- what is expected


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


@dataclass(frozen=True)
class Filled:
    """Where values stand, without the values: key -> (machine, connector) of each, and which of them are empty."""

    scopes: Mapping[str, set[tuple[str, str]]]
    empty: Set[tuple[str, str, str]]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, str, bool]]) -> "Filled":
        """From (key, machine, connector, is empty)."""
        scopes: dict[str, set[tuple[str, str]]] = {}
        empty = set()
        for key, machine, connector, is_empty in rows:
            scopes.setdefault(key, set()).add((machine, connector))
            if is_empty:
                empty.add((key, machine, connector))
        return cls(scopes, empty)

    def source(self, key: str, machine: str, connector: str) -> tuple[str, str] | None:
        """The scope that gives it its value, as `winners` chooses; None: it is missing."""
        present = self.scopes.get(key)
        if not present:
            return None
        for scope in ((machine, connector), (machine, ""), ("", connector), ("", "")):
            if scope in present:
                return scope
        return None

    def lacks_address(self, key: str, machine: str) -> bool:
        """An Internal IP or Failover port must not be empty either."""
        scope = self.source(key, machine, "")
        return scope is None or (key, *scope) in self.empty


def filled(environment: Environment) -> Filled:
    """One query that reads no value."""
    rows = Property.objects.filter(environment=environment)
    return Filled.of(rows.annotate(is_empty=Q(value="") & Q(secret=False)).values_list("key", "machine", "connector", "is_empty"))
