"""The property values that a deployment uses, frozen when it is prepared: what is edited meanwhile waits for the next one.

A value is kept as it is; of a secret only a keyed digest is kept, and its text is read from the property when it is needed. If it is not
the same any more, the step that needs it is refused instead of using two secrets in one deployment. What becomes a secret later is one from
the beginning: `hide` takes its text out of what was frozen, and nobody reads the kept entries but through `entries_of`.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from django.contrib.auth.models import AbstractBaseUser
from django.db.models import Max, QuerySet, TextField
from django.db.models.functions import Cast
from django.utils.crypto import salted_hmac

from deployments import plans
from deployments.comparison import Value
from deployments.models import ApprovalRequest, Deployment, FrozenValues, Release, RunningValues, RunStatus
from portal import properties, property_uses, property_values
from portal.errors import NotAllowed
from portal.models import Environment, Property, scope_name
from portal.placeholders import placeholders
from portal.prepared import Prepared
from runtimes.models import Router, Runtime

Scoped = tuple[str, str, str]  # key, machine, connector
Kept = TypeVar("Kept", FrozenValues, ApprovalRequest)
ROWS_AT_ONCE = 20


def keys_of(release: Release) -> set[str]:
    """Every key that the release's flows and routers name."""
    content = release.content
    found = {use.key for flow in content["flows"] for use in property_uses.uses(flow["name"], flow)}
    return found | _keys_of_routers(machine["name"] for machine in content["machines"] if machine["router"])


def keys_of_flows(release: Release, connector: str) -> set[str]:
    """Every key that this connector's flows name there: of these values the bundles of its runtimes are made."""
    flows = [flow for flow in release.content["flows"] if flow["connector"] == connector]
    return {use.key for flow in flows for use in property_uses.uses(flow["name"], flow)}


def _keys_of_routers(machines: Iterable[str]) -> set[str]:
    return {use.key for machine in machines for use in property_uses.router_uses(machine)}


def keys_used(release: Release, environment: Environment, *, begun: Deployment | None = None) -> set[str]:
    """Every key that the release, an applied router or the plan names there; of a deployment that has begun, its own steps, whatever
    became of the plan."""
    routers = Router.objects.filter(machine__environment=environment).values_list("machine__name", flat=True)
    if begun is None:
        named = {use.key for use in plans.url_uses(environment)}
    else:
        urls = begun.steps.filter(url__contains="${").values_list("url", flat=True)
        named = {key for url in urls for key in placeholders(url)}
    return keys_of(release) | _keys_of_routers(routers) | named


def present(release: Release, environment: Environment, *, begun: Deployment | None = None) -> list[dict[str, Any]]:
    """What would be frozen now: every value, in every scope, of a key that is used (`begun` as there)."""
    keys = keys_used(release, environment, begun=begun)
    rows = Property.objects.filter(environment=environment).order_by("key", "machine", "connector")
    used = [row for row in rows if row.key in keys]
    secret = {row.key for row in used if row.secret}  # of a key that is one in any scope nothing is told
    return [_entry(row, secret=row.key in secret) for row in used]


def _entry(row: Property, *, secret: bool) -> dict[str, Any]:
    text = row.reveal()
    return {
        "key": row.key,
        "machine": row.machine,
        "connector": row.connector,
        "secret": secret,
        "value": None if secret else text,
        "digest": _digest_of_secret(text) if secret else hashlib.sha256(text.encode()).hexdigest(),
    }


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One kept value, to be compared; never shown, for its key may be secret by now."""

    key: str
    machine: str
    connector: str
    secret: bool
    value: str | None
    digest: str

    def says(self, text: str) -> bool:
        """Is this the value that was kept. Of a secret too: by its digest."""
        return _digest_of_secret(text) == self.digest if self.secret else self.value == text


_ENTRIES = msgspec.json.Decoder(list[Entry])


def kept(rows: Collection[int], keys: Collection[str]) -> dict[int, dict[Scoped, Entry]]:
    """Id of frozen values -> key and scope -> value, of these keys; decoded as text, for there may be many. One query."""
    texts = FrozenValues.objects.filter(pk__in=rows).order_by().values_list("pk", Cast("values", TextField()))
    return {
        pk: {(entry.key, entry.machine, entry.connector): entry for entry in _ENTRIES.decode(text) if entry.key in keys}
        for pk, text in (texts if rows else ())
    }


def _digest_of_secret(text: str) -> str:
    """Keyed, so that a short secret cannot be found by trying."""
    return salted_hmac("baton.frozen", text, algorithm="sha256").hexdigest()


def hidden(entries: Iterable[Mapping[str, Any]], keys: Collection[str]) -> list[dict[str, Any]]:
    """The entries, those of `keys` as secrets are kept: without a text, with a keyed digest. Pure."""
    return [
        dict(entry)
        if entry["secret"] or entry["key"] not in keys
        else {**entry, "secret": True, "value": None, "digest": _digest_of_secret(entry["value"])}
        for entry in entries
    ]


def hide(environments: Collection[int], keys: Collection[str]) -> None:
    """These keys are secrets there from now on: their texts leave every deployment's frozen values and every approval request. The digests
    become those of the same values as secrets, so that an unchanged value still counts as unchanged."""
    for frozen in _in_portions(FrozenValues.objects.filter(deployment__environment__in=environments)):
        if (entries := hidden(frozen.values, keys)) != frozen.values:
            FrozenValues.objects.filter(pk=frozen.pk).update(values=entries, digest=digest_of(entries))
    for asked in _in_portions(ApprovalRequest.objects.filter(environment__in=environments)):
        if (entries := hidden(asked.values, keys)) != asked.values:
            ApprovalRequest.objects.filter(pk=asked.pk).update(values=entries, values_digest=digest_of(entries))


def _in_portions(rows: QuerySet[Kept]) -> Iterator[Kept]:
    """A few at a time: each holds up to thousands of values."""
    pks = list(rows.values_list("pk", flat=True))
    for start in range(0, len(pks), ROWS_AT_ONCE):
        yield from rows.filter(pk__in=pks[start : start + ROWS_AT_ONCE])


def entries_of(kept: FrozenValues | ApprovalRequest, environment: Environment) -> list[dict[str, Any]]:
    """What was kept there, as it may be told now: of a key that is secret by now without its text, even if it was frozen in the very
    instant in which the key became one. One query."""
    return hidden(kept.values, properties.secret_keys(environment.project_id, environment.pk))


def digest_of(entries: Iterable[Mapping[str, Any]]) -> str:
    """Equal values in equal scopes give an equal digest, secrets included."""
    stable = sorted([entry["key"], entry["machine"], entry["connector"], entry["secret"], entry["digest"]] for entry in entries)
    return hashlib.sha256(json.dumps(stable, separators=(",", ":")).encode()).hexdigest()


def preferences(environment: Environment) -> dict[str, str]:
    """Runtime -> preference, as it is now, of runtimes in failover."""
    rows = Runtime.objects.filter(environment=environment, failover=True).select_related("machine", "connector")
    return {row.key: row.preference for row in rows}


def freeze(deployment: Deployment, *, by: AbstractBaseUser | None, now: datetime) -> FrozenValues:
    """Freeze the values as they are now, for this deployment; resuming freezes anew, and what was frozen before is kept. One that brings a
    machine what it missed uses the values of the one it completes, however often it is resumed: an edit goes live by a deployment.

    Raises:
        NotAllowed: it completes another, and a secret was changed or removed since that one froze its values.
    """
    completed = of(deployment.completes) if deployment.completes is not None else None
    if completed is not None:
        values_of(completed.deployment)
        entries, now = completed.values, completed.created_at
    else:
        begun = deployment if deployment.steps.exists() else None
        entries = present(deployment.release, deployment.environment, begun=begun)
    last = FrozenValues.objects.filter(deployment=deployment).aggregate(last=Max("number"))["last"] or 0
    return FrozenValues.objects.create(
        deployment=deployment,
        number=last + 1,
        digest=digest_of(entries),
        values=entries,
        preferences=preferences(deployment.environment),
        created_at=now,
        created_by_id=by.pk if by else None,
    )


_newest = Prepared(lambda deployment: FrozenValues.objects.filter(deployment=deployment).order_by("-number")[:1])


def of(deployment: Deployment) -> FrozenValues | None:
    """The newest; None: it was prepared before values were frozen."""
    return _newest.first(deployment.pk)


def given(runtime: Runtime, newest: FrozenValues | None) -> None:
    """A runtime is ordered a bundle of a deployment, or runs the same already: it runs with the newest values frozen for it (`of`)."""
    if newest is not None:
        row = RunningValues(runtime=runtime, frozen=newest)
        RunningValues.objects.bulk_create([row], update_conflicts=True, unique_fields=["runtime"], update_fields=["frozen"])


def running(environment: Environment) -> list[RunningValues]:
    """What each runtime runs with, those of which it is known. One query; the values themselves are read when they are needed."""
    rows = RunningValues.objects.filter(runtime__environment=environment).defer("frozen__values", "frozen__preferences")
    return list(rows.select_related("runtime__machine", "runtime__connector", "frozen").order_by("runtime"))


def effective(entries: Iterable[Mapping[str, Any]], machine: str, connector: str) -> list[Mapping[str, Any]]:
    """Of each key the entry that a runtime gets, the narrowest one, as if it were global."""
    rank = {scope: place for place, scope in enumerate(property_values.scopes(machine, connector))}
    found: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for entry in entries:
        place = rank.get((entry["machine"], entry["connector"]))
        if place is not None and (entry["key"] not in found or found[entry["key"]][0] < place):
            found[entry["key"]] = (place, {**entry, "machine": "", "connector": ""})
    return [entry for _, entry in found.values()]


def changed_keys(before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys whose value, scope or secrecy differs, sorted."""

    def table(entries: Iterable[Mapping[str, Any]]) -> dict[Scoped, tuple[Any, Any]]:
        return {(entry["key"], entry["machine"], entry["connector"]): (entry["secret"], entry["digest"]) for entry in entries}

    old, new = table(before), table(after)
    return sorted({place[0] for place in {*old, *new} if old.get(place) != new.get(place)})


def values_of(deployment: Deployment) -> list[Property]:
    """What the deployment's steps resolve placeholders from: the frozen values, never saved. One query, two when some are secret.
    Raises NotAllowed, as `values_in`."""
    return values_in(of(deployment), deployment)


def values_in(frozen: FrozenValues | None, deployment: Deployment) -> list[Property]:
    """The same from the newest values of the deployment (`of`). No query, one when some are secret.

    Raises:
        NotAllowed: a secret was changed or removed since it was frozen; the remedy is to resume, which freezes the values anew, or to
            deploy when it ended.
    """
    over = deployment.completes_id is not None or deployment.status == RunStatus.SUCCEEDED
    if frozen is None:
        return list(Property.objects.filter(environment=deployment.environment))
    keys = {entry["key"] for entry in frozen.values if entry["secret"]}
    rows = Property.objects.filter(environment=deployment.environment)
    secrets = {(row.key, row.machine, row.connector): row for row in rows.filter(secret=True) if row.key in keys} if keys else {}
    found = []
    for entry in frozen.values:
        key, machine, connector = place = (entry["key"], entry["machine"], entry["connector"])
        live = secrets.get(place) if entry["secret"] else None
        if entry["secret"] and live is None:  # made readable since, or its key is secret in another scope only
            live = rows.filter(key=key, machine=machine, connector=connector).first()
        if not entry["secret"]:
            row = Property(environment=deployment.environment, key=key, machine=machine, connector=connector, value=entry["value"])
        elif live is not None and _digest_of_secret(live.reveal()) == entry["digest"]:
            row = live
        else:
            what = "changed" if live is not None else "removed"
            raise NotAllowed(
                f"The secret {entry['key']} was {what} since deployment {deployment.pk} froze its values: "
                f"{'deploy again' if over else 'resume the deployment'} to take the values as they are now."
            )
        found.append(row)
    return found


def compared(entries: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Value]:
    """In the shape that deployments.comparison takes."""
    found = {}
    for entry in entries:
        scope = scope_name(entry["machine"], entry["connector"])
        found[(entry["key"], scope)] = Value(entry["value"], entry["digest"], secret=entry["secret"])
    return found
