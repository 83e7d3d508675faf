"""Values of placeholders as people fill them in: what each has to be, what is refused, one act for many, its history and its undoing.

What a runtime gets of them: portal/property_values.py. Who names a key: portal/property_uses.py. Addresses of routers: portal/addresses.py.
"""

import hashlib
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Count, Max, Q
from django.utils import timezone

from portal import components, property_types, property_uses, router_addresses, vault
from portal.access import may, role_to_deploy
from portal.errors import Invalid, NotAllowed, Stale
from portal.models import (
    PROPERTY_KEY,
    Connector,
    DesignedMachine,
    Environment,
    Project,
    Property,
    PropertyChange,
    PropertyKind,
    PropertyType,
    scope_name,
)
from portal.placeholders import only_placeholder

FEW_KEYS = 5  # so many are looked up one by one
MANY_KEYS = 500  # databases limit the parameters of one query: above, rows are read without naming their keys

# Called with environments and keys that are secret there from now on, within the act's transaction: whoever wrote their values down while
# they were readable hides them (deployments.frozen; docs/architecture.md, layer rule 5).
on_secret: list[Callable[[Collection[int], Collection[str]], None]] = []


# ------------------------------------------------------------------------------------------------------- what a value has to be


@dataclass(frozen=True)
class Expectation:
    """The type of a key: declared, or guessed from what uses it."""

    kind: str  # PropertyKind
    because: str  # "declared", "flow erp-orders, Folder of the inbound", "Failover port"
    declared: bool = False
    may_be_empty: bool = False

    @property
    def label(self) -> str:
        return PropertyKind(self.kind).label


TEXT = Expectation(PropertyKind.TEXT, "", may_be_empty=True)


SEALED_FOR_GOOD = "made secret"  # cause of a change that nothing takes back: what was readable is told nowhere any more


def failover_expectation(key: str) -> Expectation | None:
    if key.endswith(router_addresses.PORT_SUFFIX):
        return Expectation(PropertyKind.PORT, "Failover port")
    return Expectation(PropertyKind.HOST, "Internal IP") if key.endswith(router_addresses.ADDRESS_SUFFIX) else None


def expectations(
    project: int, *, only: Collection[str] | None = None, mentions: property_uses.Mentions | None = None
) -> dict[str, Expectation]:
    """The type of every key (`only` these) that has one: declared, else guessed from the setting that a placeholder wholly stands for.
    Three queries; one when what the flows name (`mentions`) was read already."""
    declared = PropertyType.objects.filter(project=project).values_list("key", "kind")
    if mentions is None:
        mentions = property_uses.Mentions(project, naming=only if only is not None and len(only) <= FEW_KEYS else None)
    told = guessed(mentions.definitions(only), only)
    return told | {key: Expectation(kind, "declared", declared=True) for key, kind in declared if not router_addresses.is_failover_key(key)}


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
        for side in components.SIDES:
            for name, text in definition[side]["settings"].items():
                setting = typed.get((side, definition[side]["kind"], name))
                key = only_placeholder(str(text)) if setting else None
                if not setting or not key or (only is not None and key not in only) or router_addresses.is_failover_key(key):
                    continue
                guess = Expectation(setting.kind, f"flow {flow}, {setting.label} of the {side}", may_be_empty=not setting.required)
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

    Type "secret" seals the present values, so it takes the right to change them; so does a type that present secrets are judged by, for the
    answer tells something of them. A secret stays one when its type changes: set it anew to make it readable.

    Raises:
        Invalid: the key's type is fixed, or present values are not of the new type (one reason each).
        NotAllowed: values that would be sealed, or secrets that would be judged, stand in an environment that the person may not change.
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
        rows = list(Property.objects.filter(environment__project=project, key=key).select_related("environment__project"))
        judged = [row for row in rows if row.secret] if property_types.is_checked(kind) else []
        _refuse_without_right(key, judged, by, "a secret", "which this type would be held against")
        faults = [(row, fault) for row in rows if (fault := _fault(kind, row))]
        if faults:
            reasons = [f"{row.environment.name}, {row.scope}: {_quoted(row)} {fault}." for row, fault in faults]
            label = PropertyKind(kind).label
            raise Invalid(
                f"{key} cannot be of type {label}: {len(faults)} value{'s are' if len(faults) > 1 else ' is'} not. Correct "
                f"{'them' if len(faults) > 1 else 'it'} first. {' '.join(reasons)}",
                field="kind",
                reasons=reasons,
            )
        plain = [row for row in rows if not row.secret] if kind == PropertyKind.SECRET else []
        _refuse_without_right(key, plain, by, "a readable value", "which becoming a secret would change")
        made, _ = PropertyType.objects.update_or_create(project=project, key=key, defaults={"kind": kind, "updated_by": by})
        if plain:
            _apply(
                [Edit(row.environment, key, row.value, row.machine, row.connector, secret=True) for row in plain],
                by=by,
                cause=SEALED_FOR_GOOD,
            )
        if kind == PropertyKind.SECRET:  # also where its value was deleted while it was readable
            _tell_no_longer(project.environments.values_list("pk", flat=True), [key])
    return made


def _refuse_without_right(key: str, rows: Iterable[Property], by: Any, what: str, why: str) -> None:
    """Declaring a type is a developer's; what it does to these values, who may change them."""
    for environment in {row.environment.pk: row.environment for row in rows}.values():
        role = role_to_deploy(environment)
        if not may(by, environment.project.team_id, role):
            raise NotAllowed(
                f"{key} has {what} on {environment.name}, {why}: that needs the role {role.label.lower()}. Ask one of them to declare it.",
                field="kind",
            )


def _fault(kind: str, row: Property) -> str:
    """As property_types.fault, of a value that is there. What nobody can read has none."""
    try:
        return property_types.fault(kind, row.reveal(), hidden=row.secret)
    except vault.Unreadable:
        return ""


def _quoted(row: Property) -> str:
    return "the secret" if row.secret else f'"{row.value}"'


# ------------------------------------------------------------------------------------------------------------------ filling in


@dataclass(frozen=True)
class Edit:
    """A wish for one value. `value` None deletes it; `secret` None keeps what the property says (a new one: what the key is elsewhere).

    `secret` False makes readable what is a secret, with a value typed anew. Of a new value it says nothing (a box that nobody touched):
    what is secret in one place of the project does not become readable in another by leaving something out. `readable` says it outright:
    the value stands in a text that the whole project reads, as a project's file.
    """

    environment: Environment
    key: str
    value: str | None = field(repr=False)
    machine: str = ""
    connector: str = ""
    secret: bool | None = None
    readable: bool = False

    @property
    def scope(self) -> str:
        return scope_name(self.machine, self.connector)

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
        if self.before.secret != self.secret or self.secret:
            return "change"  # an equal secret too: "none" would tell whoever tries values which one is right
        return "none" if self.before.reveal() == self.value else "change"


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


def newest_change(project: Project) -> int:
    """Id of the last change of a value in the project: whoever opens a form for many values says by this what he saw."""
    return PropertyChange.objects.filter(environment__project=project).aggregate(newest=Max("pk"))["newest"] or 0


def set_together(edits: Sequence[Edit], *, seen: int, by: Any) -> list[Planned]:
    """As `set_values`, of values that the person saw as they stood at the change `seen`.

    Raises:
        Stale: some of them were changed since, with who and which.
        Invalid: as `set_values`.
    """
    with transaction.atomic():
        cells = {edit.cell for edit in edits}
        later = PropertyChange.objects.filter(environment__in={cell[0] for cell in cells}, pk__gt=seen).select_related("environment", "by")
        told: dict[tuple[int, str, str, str], str] = {}
        for change in later:
            cell = (change.environment_id, change.key, change.machine, change.connector)
            if cell in cells and cell not in told:
                who = change.by.get_username() if change.by else "Somebody"
                told[cell] = f"{who} changed {change.key} ({change.environment.name}, {change.scope}) since you opened this."
        if told:
            raise Stale(" ".join([*told.values(), "Press again to replace that, or leave it."]))
        return _apply(edits, by=by, cause="set together")


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


def tag(row: Property | None) -> str:
    """Of one value as it stands ("none" of none): whoever edits it says by this what he saw. Tells nothing of a secret."""
    return hashlib.sha256(f"{row.pk} {row.updated_at.isoformat()}".encode()).hexdigest()[:32] if row is not None else "none"


def change_seen(
    environment: Environment,
    key: str,
    value: str | None,
    *,
    machine: str = "",
    connector: str = "",
    secret: bool | None = None,
    seen: str,
    by: Any,
) -> Property | None:
    """Set a value (None: delete it) that the person saw as `seen` (its `tag`). Two people on one page never overwrite each other
    unseen. Returns what is kept.

    Raises:
        Stale: it was changed since, to something else than what is wished; the sentence shows both values, but of secrets none.
        Invalid: as `set_value`.
    """
    with transaction.atomic():
        scoped = Property.objects.select_for_update().filter(environment=environment, key=key, machine=machine, connector=connector)
        now = scoped.first()
        same = (now is None) if value is None else now is not None and not now.secret and now.value == value
        if tag(now) != seen and not same:
            raise Stale(_other_saved(environment, key, machine, connector, now, value, secret), field="value")
        if value is None:
            remove_value(environment, key, machine=machine, connector=connector, by=by)
            return None
        return set_value(environment, key, value, machine=machine, connector=connector, secret=secret, by=by)


def _other_saved(
    environment: Environment, key: str, machine: str, connector: str, now: Property | None, value: str | None, secret: bool | None
) -> str:
    """ "anna set it to “/two” since you opened it; yours is “/three”. Save again to replace it, or leave it." """
    last = (
        PropertyChange.objects.filter(environment=environment, key=key, machine=machine, connector=connector).select_related("by").first()
    )
    who = last.by.get_username() if last is not None and last.by is not None else "Somebody"
    hidden = bool(secret) or (now is not None and now.secret) or (last is not None and (last.secret_before or last.secret_after))
    theirs = "deleted it" if now is None else "set a new secret" if hidden else f"set it to {_in_words(now.value)}"
    if value is None:
        return f"{who} {theirs} since you opened it. Delete again to take that away, or leave it."
    yours = "" if hidden else f"; yours is {_in_words(value)}"
    return f"{who} {theirs} since you opened it{yours}. Save again to replace it, or leave it."


def _in_words(value: str) -> str:
    return f"“{value[:60]}…”" if len(value) > 60 else f"“{value}”"


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
        sealed_before=_sealed_for_undo(before) if before is not None and hidden else "",
    )


def _sealed_for_undo(before: Property) -> str:
    """Under the sealing key of now. Empty for a secret whose key is lost: setting it anew, or deleting it, is the remedy."""
    try:
        return vault.seal(before.reveal())
    except vault.Unreadable:
        return ""


def _forget_former_secrets(changes: Sequence[Planned]) -> None:
    """Only the last change of a key can be undone, so older secrets go; and what a key said before it became secret is told no longer."""
    keys = {item.edit.key for item in changes if item.secret or (item.before and item.before.secret)}
    if not keys:
        return
    environments = {item.edit.environment.pk for item in changes}
    former = PropertyChange.objects.filter(environment__in=environments)
    for some in _portions(sorted(keys)):
        former.filter(key__in=some).exclude(sealed_before="").update(sealed_before="")
    turned: dict[int, set[str]] = {}
    for item in changes:
        if item.value is not None and item.secret and not (item.before and item.before.secret):
            turned.setdefault(item.edit.environment.pk, set()).add(item.edit.key)
    for environment, some_keys in turned.items():
        _tell_no_longer([environment], some_keys)


def _tell_no_longer(environments: Collection[int], keys: Collection[str]) -> None:
    """What these keys said while they were readable is not told any more: not in the history, nor by who else wrote it down."""
    former = PropertyChange.objects.filter(environment__in=environments)
    for some in _portions(sorted(keys)):
        former.filter(key__in=some, before__isnull=False).update(before="", secret_before=True)
        former.filter(key__in=some, after__isnull=False).update(after="", secret_after=True)
    for hide in on_secret:
        hide(environments, keys)


def _portions(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), MANY_KEYS):
        yield keys[start : start + MANY_KEYS]


@dataclass(frozen=True)
class LastAct:
    """What `undo_last` would take back: how many changes, in which environments."""

    act: uuid.UUID
    count: int
    environments: list[Environment]


def last_act(environment: Environment) -> LastAct | None:
    """None: nothing was changed here. Three queries, none of which reads the changes: there may be thousands."""
    act = PropertyChange.objects.filter(environment=environment).values_list("act", flat=True).first()
    if act is None:
        return None
    counts = dict(PropertyChange.objects.filter(act=act).order_by().values_list("environment").annotate(count=Count("pk")))
    return LastAct(act, sum(counts.values()), list(Environment.objects.filter(pk__in=counts).select_related("project")))


def undo_last(environment: Environment, *, by: Any, act: uuid.UUID | None = None) -> list[Planned]:
    """Take back the last act that changed values here, whole, also what it changed in other environments of the project. Undoing an undo
    does it again.

    Args:
        act: what the asker saw as the last one.

    Raises:
        NotAllowed: nothing to undo, or something else has changed since.
    """
    with transaction.atomic():
        newest = PropertyChange.objects.filter(environment=environment).first()
        if newest is None or (act is not None and newest.act != act):
            raise NotAllowed("There is nothing to undo." if not newest else "Something else has changed since: look at the history again.")
        changes = list(PropertyChange.objects.filter(act=newest.act).select_related("environment"))
        if newest.cause == SEALED_FOR_GOOD:
            raise NotAllowed(f"{newest.key} was made a secret, and what became one stays one: set a readable value of it anew instead.")
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
    """The one rule of whether a value is a secret (Edit.secret)."""
    if expected.kind == PropertyKind.SECRET or edit.secret:
        return True
    if edit.readable:
        return False
    if before is None:
        return edit.key in secret_keys
    return before.secret and edit.secret is None


def secret_keys(project: int, environment: int | None = None) -> set[str]:
    """Keys that are secret in a project, or in one environment of it: declared so, or with a value that is one. One query."""
    rows = Property.objects.filter(environment__project=project, secret=True)
    rows = rows if environment is None else rows.filter(environment=environment)
    declared = PropertyType.objects.filter(project=project, kind=PropertyKind.SECRET).order_by()
    return set(rows.order_by().values_list("key", flat=True).union(declared.values_list("key", flat=True)))


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
    if secret and router_addresses.is_failover_key(edit.key):
        raise Invalid(f"{edit.key} cannot be a secret: the other machines have to know it.", field="secret")
    if secret and not value:
        raise Invalid("Type the new secret. To take it away instead, delete the value.", field="value")
    if not value and expected.may_be_empty:
        return value
    try:
        return property_types.checked(expected.kind, value, key=edit.key, hidden=secret)
    except Invalid as refusal:
        if expected.declared or router_addresses.is_failover_key(edit.key):
            raise
        raise Invalid(
            f"{refusal.sentence.removesuffix('.')}, as {expected.because} expects it; or declare another type for {edit.key}.",
            field="value",
        ) from None


def _checked_together(found: list[Planned], present: Mapping[tuple[int, str, str, str], Property]) -> list[Planned]:
    """Internal IPs and Failover ports are compared with all others of their environment, as they will be after the edits. Deleting one is
    an edit too: a more general value may come to light."""
    ours = [
        item
        for item in found
        if not item.refusal and (item.before or item.value is not None) and router_addresses.is_failover_key(item.edit.key)
    ]
    if not ours:
        return found
    touched = {item.edit.environment.pk for item in ours}
    after = {cell: row.value or "" for cell, row in present.items() if cell[0] in touched and router_addresses.is_failover_key(cell[1])}
    for item in ours:
        if item.value is None:
            after.pop(item.edit.cell, None)
        else:
            after[item.edit.cell] = item.value
    known: dict[int, dict[str, router_addresses.Address]] = {}
    for pk in touched:
        rows = [
            Property(key=key, machine=machine, connector=connector, value=value)
            for (where, key, machine, connector), value in after.items()
            if where == pk
        ]
        known[pk] = router_addresses.of_all(rows)
    refused = {
        id(item): said
        for item in ours
        if (
            said := router_addresses.clash(
                item.edit.key, item.value, known[item.edit.environment.pk], one_host=item.edit.environment.one_host
            )
        )
    }
    return [
        Planned(item.edit, item.before, item.value, item.secret, Invalid(refused[id(item)], field="value")) if id(item) in refused else item
        for item in found
    ]
