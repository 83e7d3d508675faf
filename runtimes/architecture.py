"""Design -> machines, runtimes and routers of one environment: what Apply would change, and Apply."""

from dataclasses import dataclass

from django.contrib.auth.models import AbstractBaseUser

from portal.models import Environment


@dataclass(frozen=True)
class Change:
    """One line of the pop-up: act "create", "remove" or "change"; kind "machine", "runtime", "router", "witness" or "failover"."""

    act: str
    kind: str
    name: str
    sentence: str  # "Router on external01 will be created."


def diff(environment: Environment) -> list[Change]:
    """Everything Apply would do now, routers first; empty when the environment is as designed."""
    raise NotImplementedError


def apply(environment: Environment, *, seen: list[Change] | None, by: AbstractBaseUser) -> list[Change]:
    """Make the environment as designed: machines, runtimes, routers; and prefilled properties (portal.properties.prefill).

    `seen` is the difference the person confirmed (None: a script that takes what comes).

    Raises:
        Stale: the design changed since; shows the new difference.
        NotAllowed: a deployment runs, or a runtime that would go still runs (stop it first).
    """
    raise NotImplementedError
