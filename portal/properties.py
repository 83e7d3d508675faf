"""Placeholders and their values: `${external01.failover.internal-ip}` -> what Property rows say for an environment and a runtime."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from portal.models import Environment, Property


@dataclass(frozen=True)
class Missing:
    """A placeholder without a value: which key, for which runtime ("external01.erp") or router ("router on external01"), used by what."""

    key: str
    runtime: str
    used_by: str  # "flow erp-orders, inbound folder"

    @property
    def sentence(self) -> str:
        return f"{self.runtime} needs a value for {self.key} ({self.used_by})."


def placeholders(value: Any) -> set[str]:
    """Keys named as ${key} anywhere in a text, list or mapping."""
    raise NotImplementedError


def resolve(settings: Mapping[str, str], values: Iterable[Property], *, machine: str, connector: str) -> tuple[dict[str, str], set[str]]:
    """The settings with every placeholder replaced, and the keys that have no value. Most specific scope wins; an empty value of a
    present property counts as a value. `values` are the environment's properties, read once by the caller."""
    raise NotImplementedError


def failover_keys(machine: str) -> tuple[str, str]:
    """("external01.failover.internal-ip", "external01.failover.port")"""
    return f"{machine}.failover.internal-ip", f"{machine}.failover.port"


def failover_address(machine: str, values: Iterable[Property]) -> tuple[str | None, str | None]:
    """The resolved Internal IP and Failover port of a machine; None where no value is filled in."""
    raise NotImplementedError


def set_value(
    environment: Environment, key: str, value: str, *, machine: str = "", connector: str = "", secret: bool | None = None, by: Any
) -> Property:
    """Fill in a value, validated where the key says what it is (an Internal IP, a Failover port: 1–65535, not used by another machine
    on the same address). Raises Invalid naming the field and the remedy."""
    raise NotImplementedError
