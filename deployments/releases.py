"""Releases: build, activate now or at a time."""

from collections.abc import Sequence
from datetime import datetime

from django.contrib.auth.models import AbstractBaseUser

from deployments.models import Activation, Release
from portal.models import Environment, Project
from portal.properties import Missing


def build(project: Project, *, name: str, note: str = "", by: AbstractBaseUser | None) -> Release:
    """An immutable snapshot of the Create phase (the latest saved version of every flow) and the designed placement it needs.

    Raises:
        Invalid: no name, or no flow has a saved version.
    """
    raise NotImplementedError


def missing(release: Release, environment: Environment) -> list[Missing]:
    """Every placeholder without a value, per runtime and router, for this release on this environment; fixed number of queries."""
    raise NotImplementedError


def warnings(release: Release, environment: Environment) -> list[str]:
    """What does not forbid activation but should be known: a failover group and no Balance failover step in the plan, …"""
    raise NotImplementedError


def active(environment: Environment) -> Release | None:
    raise NotImplementedError


def activate(release: Release, environment: Environment, *, by: AbstractBaseUser | None, now: datetime) -> Activation:
    """Choose the release for the environment. Raises NotAllowed with one reason per missing property."""
    raise NotImplementedError


def schedule(release: Release, environment: Environment, *, due_at: datetime, by: AbstractBaseUser, now: datetime) -> Activation:
    """Activate later, by Celery beat. Raises Invalid when `due_at` is not in the future."""
    raise NotImplementedError


def cancel_schedule(activation: Activation, *, by: AbstractBaseUser) -> None:
    raise NotImplementedError


def due(now: datetime) -> Sequence[int]:
    """Ids of scheduled activations whose time has come."""
    raise NotImplementedError


def activate_due(activation_id: int, *, now: datetime) -> str:
    """Carry out one scheduled activation, exactly once however often it is called. Returns a sentence."""
    raise NotImplementedError
