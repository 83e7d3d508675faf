"""The plan of an environment: default plan, edits, and what is wrong with it."""

from collections.abc import Sequence

from deployments.models import Plan, Step, StepKind
from portal.models import Environment


def plan_of(environment: Environment) -> Plan:
    """The environment's plan, made empty when there is none."""
    raise NotImplementedError


def default_plan(environment: Environment) -> Plan:
    """Replace the steps by a good plan for the applied architecture: alerting off, routers, one step per runtime (core first, then
    machine by machine, so that followers and leaders alternate safely), Balance failover last when a failover group exists."""
    raise NotImplementedError


def add_step(plan: Plan, kind: StepKind, *, position: int | None = None, **fields: str | int) -> Step:
    """Insert a step (at the end, but before Balance failover, when no position is given).

    Raises:
        Invalid: unknown target for the environment; a second Balance; Balance anywhere but last, or any step after it:
            "Balance failover comes last, after the deployment of all runtimes: …".
    """
    raise NotImplementedError


def move_step(step: Step, position: int) -> None:
    raise NotImplementedError


def change_step(step: Step, **fields: str | int) -> None:
    raise NotImplementedError


def remove_step(step: Step) -> None:
    raise NotImplementedError


def copy_to(plan: Plan, environment: Environment) -> Plan:
    """Replace another environment's plan by this one's steps."""
    raise NotImplementedError


def lint(plan: Plan) -> Sequence[str]:
    """One sentence per weakness; "A failover group exists (erp-orders), but no Balance failover step does: …"."""
    raise NotImplementedError
