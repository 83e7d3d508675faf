"""Where routers stand: Internal IP and Failover port of each machine, and which of them could not form one cluster."""

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import transaction

from portal.errors import NotAllowed
from portal.models import Environment, Property
from portal.property_values import Values

Address = tuple[str | None, str | None]  # Internal IP and Failover port; None where no value is filled in
ADDRESS_SUFFIX = ".failover.internal-ip"
PORT_SUFFIX = ".failover.port"
LOCAL_NAMES = ("localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback")


def failover_keys(machine: str) -> tuple[str, str]:
    """("external01.failover.internal-ip", "external01.failover.port")"""
    return f"{machine}{ADDRESS_SUFFIX}", f"{machine}{PORT_SUFFIX}"


def is_failover_key(key: str) -> bool:
    return key.endswith((ADDRESS_SUFFIX, PORT_SUFFIX))


def failover_address(machine: str, values: Iterable[Property]) -> Address:
    """The resolved Internal IP and Failover port of a machine; None where no value is filled in."""
    keys = failover_keys(machine)
    known = Values(row for row in values if row.key in keys).winners(machine)
    address, port = (known[key].reveal() if key in known else None for key in keys)
    return address or None, port or None


def address_conflicts(addresses: Mapping[str, Address], *, one_host: bool) -> list[str]:
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
        other = seen.setdefault((_one_spelling(address), port.strip()), machine)
        if other != machine:
            findings.append(_duplicate_refusal(machine, other, address, port))
    return findings


def _apart(addresses: Mapping[str, Address]) -> list[str]:
    """What machines on hosts of their own cannot have, one sentence each."""
    findings = []
    seen: dict[str, str] = {}
    for machine, (address, _) in sorted(addresses.items()):
        if not address:
            continue
        if is_loopback(address):
            findings.append(_apart_loopback(machine, address))
            continue
        other = seen.setdefault(_one_spelling(address), machine)
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
            rows = list(Property.objects.filter(environment=environment, key__endswith=ADDRESS_SUFFIX))
            machines = {row.key.removesuffix(ADDRESS_SUFFIX) for row in rows}
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


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address may be written as IPv6 (::ffff:127.0.0.1). Raises ValueError."""
    found = ipaddress.ip_address(address)
    return getattr(found, "ipv4_mapped", None) or found


def is_loopback(address: str) -> bool:
    try:
        return _parsed(address).is_loopback
    except ValueError:
        return address.lower().rstrip(".") in LOCAL_NAMES


def _one_spelling(address: str) -> str:
    """One spelling per address, so that duplicates are seen; a name is not looked up, only those of loopback are known."""
    try:
        return str(_parsed(address))
    except ValueError:
        return "127.0.0.1" if is_loopback(address) else address.lower().rstrip(".")


def of_all(values: Iterable[Property]) -> dict[str, Address]:
    """Of every machine that the values name."""
    rows = [row for row in values if is_failover_key(row.key)]
    machines = {row.key.removesuffix(PORT_SUFFIX).removesuffix(ADDRESS_SUFFIX) for row in rows}
    return {name: failover_address(name, rows) for name in machines}


def clash(key: str, value: str | None, known: Mapping[str, Address], *, one_host: bool) -> str:
    """Why an Internal IP or Failover port cannot become `value` (None: deleted, so that a more general one applies) beside the others,
    which are `known` as they will be then; empty when it can."""
    is_port = key.endswith(PORT_SUFFIX)
    owner = key.removesuffix(PORT_SUFFIX if is_port else ADDRESS_SUFFIX)
    mine, port = known.get(owner, (None, None))
    here = mine if value is None or is_port else value
    if not here:
        return ""
    others = {name: address for name, (address, _) in sorted(known.items()) if name != owner and address}
    if not one_host and not is_port:
        if is_loopback(here):
            return _apart_loopback(owner, here)
        if other := next((name for name, address in others.items() if _one_spelling(address) == _one_spelling(here)), ""):
            return _apart_duplicate(owner, other, here)
    elsewhere = [name for name, address in others.items() if not is_loopback(address)]
    if not is_port and is_loopback(here) and elsewhere:
        return _loopback_refusal(owner, here, elsewhere)
    for other, (address, taken) in sorted(known.items()):
        if other != owner and mine and port and address and _one_spelling(address) == _one_spelling(mine) and taken == port:
            return _duplicate_refusal(owner, other, mine, port)
    return ""
