"""Placeholders and their values: `${external01.failover.internal-ip}` -> what Property rows say for an environment and a runtime."""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import OuterRef, Subquery
from django.utils import timezone

from portal.errors import Invalid
from portal.models import PROPERTY_KEY, Connector, DesignedMachine, Environment, Flow, FlowVersion, MachineKind, Property

_PLACEHOLDER = re.compile(r"\$\{([^{}]*)\}")
_ADDRESS_SUFFIX = ".failover.internal-ip"
_PORT_SUFFIX = ".failover.port"
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


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


# ------------------------------------------------------------------------------------------------------------- placeholders


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for item in value:
            yield from _texts(item)


def placeholders(value: Any) -> set[str]:
    """Keys named as ${key} anywhere in a text, list or mapping."""
    return {key.strip() for text in _texts(value) for key in _PLACEHOLDER.findall(text) if key.strip()}


def check_placeholders(value: Any, *, field: str = "") -> None:
    """Refuse what could never be replaced, in a text, list or mapping.

    Raises:
        Invalid: an unterminated "${", an empty "${}", or a key of forbidden characters; `field` names the form's field.
    """
    for text in _texts(value):
        for key in _PLACEHOLDER.findall(text):
            if not key.strip():
                raise Invalid(f'"{text}" has an empty placeholder: write a key between the braces, as in ${{erp.outbox}}.', field=field)
            try:
                PROPERTY_KEY(key.strip())
            except ValidationError as error:
                raise Invalid(f'The placeholder ${{{key}}} in "{text}" is no valid key. {error.messages[0]}', field=field) from None
        if "${" in _PLACEHOLDER.sub("", text):
            raise Invalid(f'"{text}" has a placeholder that does not end: close it with "}}".', field=field)


def uses(flow: str, definition: Mapping[str, Any]) -> list[Use]:
    """Every key a flow's definition names, with the place: "flow erp-orders, inbound folder"."""
    return [
        Use(key, f"flow {flow}, {side} {name}")
        for side in ("inbound", "outbound")
        for name, text in definition[side]["settings"].items()
        for key in sorted(placeholders(text))
    ]


def router_uses(machine: str) -> list[Use]:
    """The two keys that the router (or witness) on a machine needs."""
    address, port = failover_keys(machine)
    return [Use(address, "Internal IP"), Use(port, "Failover port")]


def router_name(machine: str, kind: str) -> str:
    """What findings call it: "router on external01", "witness on core01"."""
    return f"{'witness' if kind == MachineKind.CORE else 'router'} on {machine}"


# ------------------------------------------------------------------------------------------------------------------- values


def lookup(values: Iterable[Property], *, machine: str, connector: str) -> dict[str, str]:
    """Key -> value as one runtime sees it: runtime scope wins over machine, machine over connector, connector over global."""
    ranked = sorted(
        (row for row in values if row.machine in ("", machine) and row.connector in ("", connector)),
        key=lambda row: (bool(row.machine), bool(row.connector)),
    )
    return {row.key: row.value for row in ranked}


def resolve(settings: Mapping[str, str], values: Iterable[Property], *, machine: str, connector: str) -> tuple[dict[str, str], set[str]]:
    """The settings with every placeholder replaced, and the keys that have no value. Most specific scope wins; an empty value of a
    present property counts as a value. `values` are the environment's properties, read once by the caller.

    A value is taken as it is: "${" inside a value is text, not another placeholder.
    """
    known = lookup(values, machine=machine, connector=connector)
    missing = placeholders(settings) - known.keys()

    def replaced(match: re.Match[str]) -> str:
        return known.get(match[1].strip(), match[0])

    return {name: _PLACEHOLDER.sub(replaced, str(text)) for name, text in settings.items()}, missing


def failover_keys(machine: str) -> tuple[str, str]:
    """("external01.failover.internal-ip", "external01.failover.port")"""
    return f"{machine}{_ADDRESS_SUFFIX}", f"{machine}{_PORT_SUFFIX}"


def is_failover_key(key: str) -> bool:
    return key.endswith((_ADDRESS_SUFFIX, _PORT_SUFFIX))


def failover_address(machine: str, values: Iterable[Property]) -> tuple[str | None, str | None]:
    """The resolved Internal IP and Failover port of a machine; None where no value is filled in."""
    known = lookup(values, machine=machine, connector="")
    address, port = failover_keys(machine)
    return known.get(address) or None, known.get(port) or None


def address_conflicts(addresses: Mapping[str, tuple[str | None, str | None]]) -> list[str]:
    """Why these routers (machine -> Internal IP, Failover port) could not form one cluster, one sentence each; empty when they could.

    Loopback is right only when every machine uses it, as in a demonstration on one host: otherwise each side would find only itself.
    """
    findings = []
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


# ------------------------------------------------------------------------------------------------------------------ filling in


def set_value(
    environment: Environment, key: str, value: str, *, machine: str = "", connector: str = "", secret: bool | None = None, by: Any
) -> Property:
    """Fill in a value, validated where the key says what it is (an Internal IP, a Failover port: 1–65535, not used by another machine
    on the same address). `secret` None keeps what the property says (a new one: not secret). It reaches machines with the next
    deployment. Raises Invalid naming the field and the remedy."""
    key, value = check_value(environment, key, value, machine=machine, connector=connector)
    scope = {"environment": environment, "key": key, "machine": machine, "connector": connector}
    changes: dict[str, Any] = {"value": value, "updated_at": timezone.now(), "updated_by": by}
    if secret is not None:
        changes["secret"] = secret
    if not Property.objects.filter(**scope).update(**changes):
        try:
            with transaction.atomic():
                return Property.objects.create(**scope, value=value, secret=bool(secret), updated_by=by)
        except IntegrityError:  # somebody filled it in a moment ago: the later value stays
            Property.objects.filter(**scope).update(**changes)
    return Property.objects.get(**scope)


def check_value(environment: Environment, key: str, value: str, *, machine: str = "", connector: str = "") -> tuple[str, str]:
    """Key and value as they would be kept. Raises Invalid as `set_value` does, and writes nothing."""
    key = key.strip()
    try:
        PROPERTY_KEY(key)
    except ValidationError as error:
        raise Invalid(f'"{key}" is no valid key. {error.messages[0]}', field="key") from None
    _check_scope(environment, machine, connector)
    if is_failover_key(key):
        value = value.strip()
        _check_failover_value(environment, key, value, machine=machine, connector=connector)
    return key, value


def _check_scope(environment: Environment, machine: str, connector: str) -> None:
    """A value for a machine or connector that nobody designed would never work, and nobody would notice."""
    project = environment.project_id
    if machine and not DesignedMachine.objects.filter(project=project, name=machine).exists():
        raise Invalid(
            f"{machine} is no machine of this project: draw it in Design › Architecture first, or correct the name.", field="machine"
        )
    if connector and not Connector.objects.filter(project=project, name=connector).exists():
        raise Invalid(f"{connector} is no connector of this project: correct the name, or leave it out for all.", field="connector")


def remove_value(environment: Environment, key: str, *, machine: str = "", connector: str = "") -> bool:
    """Forget a value in one scope; a less specific one, if any, applies again. False: there was none."""
    return bool(Property.objects.filter(environment=environment, key=key, machine=machine, connector=connector).delete()[0])


def _check_failover_value(environment: Environment, key: str, value: str, *, machine: str, connector: str) -> None:
    is_port = key.endswith(_PORT_SUFFIX)
    if is_port:
        _check_port(key, value)
    else:
        _check_address(key, value)
    owner = key.removesuffix(_PORT_SUFFIX if is_port else _ADDRESS_SUFFIX)
    rows = [
        row
        for row in Property.objects.filter(environment=environment, key__contains=".failover.")
        if (row.key, row.machine, row.connector) != (key, machine, connector)
    ]
    rows.append(Property(environment=environment, key=key, value=value, machine=machine, connector=connector))
    machines = {row.key.removesuffix(_PORT_SUFFIX).removesuffix(_ADDRESS_SUFFIX) for row in rows if is_failover_key(row.key)}
    addresses = {name: failover_address(name, rows) for name in machines}
    mine, port = addresses[owner]
    others = sorted(name for name, (address, _) in addresses.items() if name != owner and address and not is_loopback(address))
    if not is_port and is_loopback(value) and others:
        raise Invalid(_loopback_refusal(owner, value, others), field="value")
    for other, (address, taken) in sorted(addresses.items()):
        if other != owner and mine and port and address and _same_address(address) == _same_address(mine) and taken == port:
            raise Invalid(_duplicate_refusal(owner, other, mine, port), field="value")


def _check_port(key: str, value: str) -> None:
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= 65535 and str(int(value)) == value):
        raise Invalid(f'"{value}" is no port: fill in a number from 1 to 65535 for {key}.', field="value")


def _check_address(key: str, value: str) -> None:
    remedy = f"fill in an IP address such as 10.0.0.11, or a host name, for {key}."
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        labels = value.removesuffix(".").split(".")
        if len(value) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
            raise Invalid(f'"{value}" is neither an IP address nor a host name: {remedy}', field="value") from None
    else:
        if address.is_unspecified or address.is_multicast:
            raise Invalid(f"{value} is not the address of one machine: {remedy}", field="value")


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
    project = environment.project_id
    for designed in DesignedMachine.objects.filter(project=project, router=True):
        for use in router_uses(designed.name):
            yield Use(use.key, f"{router_name(designed.name, designed.kind)}, {use.used_by}")
    for flow in Flow.objects.filter(connector__project=project).select_related("group"):
        yield from uses(flow.name, flow.definition())
    newest = FlowVersion.objects.filter(flow=OuterRef("flow")).order_by("-major", "-minor", "-patch").values("pk")[:1]
    for version in FlowVersion.objects.filter(flow__connector__project=project, pk=Subquery(newest)):
        yield from uses(version.definition["name"], version.definition)
