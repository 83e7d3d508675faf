"""What a deployment brought, runtime by runtime, from what its steps kept. What runs today may come from a later one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from deployments.models import BROKEN, DEPLOYS, DONE, StepRun

How = Literal["deployed", "unchanged", "stopped", "under way", "failed", "not reached", "skipped"]


@dataclass(frozen=True)
class Result:
    """Of one runtime. `digest` is that of the bundle it was given; empty: none."""

    runtime: str  # key; of a machine whose step did not begin, its name
    how: How
    digest: str
    sentence: str


def results(steps: Iterable[StepRun]) -> list[Result]:
    """In the order of the steps that deploy; a runtime that two steps deploy stands there once, as the last left it. Pure."""
    found: dict[str, Result] = {}
    for step in steps:
        if step.kind not in DEPLOYS:
            continue
        told = step.memory.get("runtimes", {})
        for key in told or [f"{step.machine}.{step.connector}" if step.connector else step.machine]:
            memory = told.get(key, {})
            found[key] = Result(key, _how(step, memory), memory.get("digest", ""), step.reason)
    return list(found.values())


def _how(step: StepRun, memory: dict[str, object]) -> How:
    if "orders" in memory and (memory.get("proven") or step.status in DONE):
        return "stopped" if "digest" not in memory else "unchanged" if memory.get("unchanged") else "deployed"
    if step.status in DONE:
        return "skipped"
    if step.status in BROKEN:
        return "failed"
    return "under way" if step.started_at is not None and step.ended_at is None else "not reached"
