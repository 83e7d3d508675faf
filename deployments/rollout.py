"""The engine: a plan copied into StepRuns and executed one step at a time.

The state machine lives in the database; `send` and `wake` only say "look again". A lost or doubled wake-up changes nothing: the sweep
(tasks.nudge_stalled_deployments) sends again, and every move is a compare-and-set UPDATE inside one transaction with what it orders.
"""

from collections.abc import Callable
from datetime import datetime

from django.contrib.auth.models import AbstractBaseUser

from deployments.models import Deployment, Release, StepRun
from portal.models import Environment


def _not_sent(step_id: int) -> None:
    """Without a broker (tests of pure parts) nothing is sent; the sweep finds it."""


# Set by DeploymentsConfig.ready() to tasks.run_step.delay_on_commit.
send: Callable[[int], object] = _not_sent


def obstacles(release: Release, environment: Environment, *, now: datetime) -> list[str]:
    """Why this release cannot be deployed here now, one sentence each: not active, no machines applied, no agents ("Acceptance has no
    machines: …"), silent agents, missing properties, an invalid plan."""
    raise NotImplementedError


def prepare(release: Release, *, on: Environment, by: AbstractBaseUser | None, now: datetime) -> Deployment:
    """Copy the plan into a deployment and send its first step. Raises NotAllowed with `reasons`, or Busy (one live each)."""
    raise NotImplementedError


def tick(step_id: int, *, now: datetime) -> str:
    """One look at one step: begin it, or check it; move on when it is done. Safe to call twice, from two workers. Returns a sentence."""
    raise NotImplementedError


def next_step(deployment: Deployment) -> StepRun | None:
    """The step to look at: the first that is not DONE."""
    raise NotImplementedError


def wake(environment_id: int) -> None:
    """News came from the environment's machines: look at the current step of its live deployment."""
    raise NotImplementedError


def stalled(now: datetime) -> list[int]:
    """Ids of current steps nobody has looked at for 2 s."""
    raise NotImplementedError


def cancel(deployment: Deployment, *, by: AbstractBaseUser, now: datetime) -> None:
    """End it after the step under way was told; repeated cancel succeeds."""
    raise NotImplementedError


def resume(deployment: Deployment, *, by: AbstractBaseUser, now: datetime) -> None:
    """Go on from the step that failed: the same run, its history kept. Raises NotAllowed when it did not fail."""
    raise NotImplementedError


def confirm(step: StepRun, *, by: AbstractBaseUser, now: datetime) -> None:
    """A person did what a Manual step asked for."""
    raise NotImplementedError
