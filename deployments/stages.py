"""Stages and lanes of a plan, pure: neighbours with the same stage name are one stage, and Balance failover always stands alone.

Stages come one after another; lanes of one stage run side by side; steps of one lane come one after another, in the plan's order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from deployments.models import StepKind


class Placed(Protocol):
    """What of a step decides when it comes."""

    kind: str
    stage: str
    lane: str


S = TypeVar("S", bound=Placed)


@dataclass
class Lane(Generic[S]):
    name: str
    steps: list[S] = field(default_factory=list)


@dataclass
class Stage(Generic[S]):
    number: int  # from 1 on
    name: str
    lanes: list[Lane[S]] = field(default_factory=list)

    @property
    def steps(self) -> list[S]:
        return [step for lane in self.lanes for step in lane.steps]

    def add(self, step: S) -> None:
        lane = next((lane for lane in self.lanes if lane.name == step.lane), None)
        if lane is None:
            lane = Lane(step.lane)
            self.lanes.append(lane)
        lane.steps.append(step)


def stages_of(steps: Iterable[S]) -> list[Stage[S]]:
    """The steps, in the plan's order, as stages of lanes."""
    found: list[Stage[S]] = []
    before: S | None = None
    for step in steps:
        alone = StepKind.BALANCE_FAILOVER in (step.kind, before.kind if before is not None else "")
        if before is None or alone or step.stage != before.stage:
            found.append(Stage(len(found) + 1, step.stage))
        found[-1].add(step)
        before = step
    return found


def stage_numbers(steps: Sequence[S]) -> list[int]:
    """For each step, in order, the number of its stage."""
    by_step = {id(step): stage.number for stage in stages_of(steps) for step in stage.steps}
    return [by_step[id(step)] for step in steps]
