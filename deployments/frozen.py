"""The property values that a deployment uses, frozen when it is prepared: what is edited meanwhile waits for the next one.

A value is kept as it is; of a secret only a keyed digest is kept, and its text is read from the property when it is needed. If it is not
the same any more, the step that needs it is refused instead of using two secrets in one deployment.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db.models import Max
from django.utils.crypto import salted_hmac

from deployments import plans
from deployments.comparison import Value
from deployments.models import Deployment, FrozenValues, Release
from portal import property_uses
from portal.errors import NotAllowed
from portal.models import Environment, Property, scope_name
from portal.placeholders import placeholders
from runtimes.models import Router, Runtime

Scoped = tuple[str, str, str]  # key, machine, connector


def keys_of(release: Release) -> set[str]:
    """Every key that the release's flows and routers name."""
    content = release.content
    found = {use.key for flow in content["flows"] for use in property_uses.uses(flow["name"], flow)}
    return found | _keys_of_routers(machine["name"] for machine in content["machines"] if machine["router"])


def _keys_of_routers(machines: Iterable[str]) -> set[str]:
    return {use.key for machine in machines for use in property_uses.router_uses(machine)}


def keys_used(release: Release, environment: Environment) -> set[str]:
    """Every key that the release, an applied router or the plan names there."""
    routers = Router.objects.filter(machine__environment=environment).values_list("machine__name", flat=True)
    return keys_of(release) | _keys_of_routers(routers) | {use.key for use in plans.url_uses(environment)}


def present(release: Release, environment: Environment, *, urls: Iterable[str] = ()) -> list[dict[str, Any]]:
    """What would be frozen now: every value, in every scope, of a key that is used, or that one of these addresses names."""
    keys = keys_used(release, environment) | {key for url in urls for key in placeholders(url)}
    rows = Property.objects.filter(environment=environment).order_by("key", "machine", "connector")
    return [_entry(row) for row in rows if row.key in keys]


def _entry(row: Property) -> dict[str, Any]:
    text = row.reveal()
    return {
        "key": row.key,
        "machine": row.machine,
        "connector": row.connector,
        "secret": row.secret,
        "value": None if row.secret else text,
        "digest": _digest_of_secret(text) if row.secret else hashlib.sha256(text.encode()).hexdigest(),
    }


def _digest_of_secret(text: str) -> str:
    """Keyed, so that a short secret cannot be found by trying."""
    return salted_hmac("baton.frozen", text, algorithm="sha256").hexdigest()


def digest_of(entries: Iterable[Mapping[str, Any]]) -> str:
    """Equal values in equal scopes give an equal digest, secrets included."""
    stable = sorted([entry["key"], entry["machine"], entry["connector"], entry["secret"], entry["digest"]] for entry in entries)
    return hashlib.sha256(json.dumps(stable, separators=(",", ":")).encode()).hexdigest()


def preferences(environment: Environment) -> dict[str, str]:
    """Runtime -> preference, as it is now, of runtimes in failover."""
    rows = Runtime.objects.filter(environment=environment, failover=True).select_related("machine", "connector")
    return {row.key: row.preference for row in rows}


def freeze(deployment: Deployment, *, by: AbstractBaseUser | None, now: datetime) -> FrozenValues:
    """Freeze the values as they are now, for this deployment; resuming freezes anew, and what was frozen before is kept."""
    # A deployment that is resumed has its own steps, whatever became of the plan.
    urls = deployment.steps.exclude(url="").values_list("url", flat=True)
    entries = present(deployment.release, deployment.environment, urls=urls)
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


def of(deployment: Deployment) -> FrozenValues | None:
    """The newest; None: it was prepared before values were frozen."""
    return FrozenValues.objects.filter(deployment=deployment).order_by("-number").first()


def changed_keys(before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys whose value, scope or secrecy differs, sorted."""

    def table(entries: Iterable[Mapping[str, Any]]) -> dict[Scoped, tuple[Any, Any]]:
        return {(entry["key"], entry["machine"], entry["connector"]): (entry["secret"], entry["digest"]) for entry in entries}

    old, new = table(before), table(after)
    return sorted({place[0] for place in {*old, *new} if old.get(place) != new.get(place)})


def values_of(deployment: Deployment) -> list[Property]:
    """What the deployment's steps resolve placeholders from: the frozen values, never saved. One query, two when some are secret.

    Raises:
        NotAllowed: a secret was changed or removed since it was frozen; the remedy is to resume, which freezes the values anew.
    """
    frozen = of(deployment)
    if frozen is None:
        return list(Property.objects.filter(environment=deployment.environment))
    secret = {entry["key"] for entry in frozen.values if entry["secret"]}
    rows = Property.objects.filter(environment=deployment.environment, secret=True) if secret else []
    live = {(row.key, row.machine, row.connector): row for row in rows if row.key in secret}
    found = []
    for entry in frozen.values:
        place = (entry["key"], entry["machine"], entry["connector"])
        if not entry["secret"]:
            row = Property(environment=deployment.environment, key=place[0], machine=place[1], connector=place[2], value=entry["value"])
        elif place in live and _entry(live[place])["digest"] == entry["digest"]:
            row = live[place]
        else:
            what = "changed" if place in live else "removed"
            raise NotAllowed(
                f"The secret {entry['key']} was {what} since deployment {deployment.pk} froze its values: "
                "resume the deployment to take the values as they are now."
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
