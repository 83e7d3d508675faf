"""Carries wishes for groups from the orders into etcd's control/<group>, through this machine's own router; each at most once."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Protocol

import structlog

from runtimes.agent import linux
from runtimes.agent.home import Home
from runtimes.agent.spool import OPEN, Spool
from runtimes.protocol import GroupRequest, RequestOutcome, RequestStatus, Wire

log = structlog.get_logger()
KEPT = 1_000  # handled ids remembered
AGAIN_SECONDS = 0.25
FOLLOW_SECONDS = 1.0  # between two questions how a wish that stands in etcd has ended; the member that closes it tells sooner
FOLLOW_BEYOND = 30.0  # after its validity
AT_ONCE = 8  # groups whose wishes are carried at the same time
NO_MAJORITY_SECONDS = 5.0  # a router that finds no majority for so long gives a wish back


class NotPlaced(Exception):  # noqa: N818 - said by name
    """The router did not take the wish now; the message says why."""


class Place(Protocol):
    async def __call__(self, request: GroupRequest, asks: bool = False) -> RequestOutcome: ...


class Handled(Wire, frozen=True):
    ids: list[str] = []


class Carrier:
    """`place` writes one wish (`asks`: only looks how it ended). It returns the outcome so far, or raises NotPlaced to be asked again."""

    def __init__(self, home: Home, spool: Spool, place: Place, changed: Callable[[], None]) -> None:
        self.home = home
        self.spool = spool
        self.place = place
        self.changed = changed
        self.handled: list[str] = (home.read("requests.json", Handled) or Handled()).ids
        self.waiting: dict[str, tuple[GroupRequest, float]] = {}  # by id, with the moment of receipt (linux.boot_seconds)
        self.standing: dict[str, tuple[GroupRequest, float]] = {}  # written, their end not known yet
        self.wake = asyncio.Event()

    def take(self, requests: list[GroupRequest]) -> None:
        """The open wishes of the latest orders; one that is no longer among them is dropped."""
        now = linux.boot_seconds()
        self.waiting = {  # as first received: its validity counts from then
            request.id: self.waiting.get(request.id, (request, now)) for request in requests if request.id not in self.handled
        }
        open_ids = {request.id for request in requests}
        self.standing = {key: item for key, item in self.standing.items() if key in open_ids}
        self.wake.set()

    async def run(self) -> None:
        while True:
            self.wake.clear()
            await self._each(self._carry, self.waiting.values())
            await self._each(self._follow, self.standing.values())
            patience = AGAIN_SECONDS if self.waiting else FOLLOW_SECONDS if self.standing else None
            try:
                await asyncio.wait_for(self.wake.wait(), patience)
            except TimeoutError:
                pass

    async def _each(
        self, act: Callable[[GroupRequest, float], Coroutine[None, None, None]], wishes: Iterable[tuple[GroupRequest, float]]
    ) -> None:
        """Several groups at the same time (each wish waits until its candidate is seen to live), those of one group in their order."""
        of_group: dict[str, list[tuple[GroupRequest, float]]] = {}
        for request, received in wishes:
            of_group.setdefault(request.group, []).append((request, received))
        gate = asyncio.Semaphore(AT_ONCE)

        async def in_turn(some: list[tuple[GroupRequest, float]]) -> None:
            async with gate:
                for request, received in some:
                    await act(request, received)

        async with asyncio.TaskGroup() as tasks:
            for some in of_group.values():
                tasks.create_task(in_turn(some))

    async def _carry(self, request: GroupRequest, received: float) -> None:
        if request.id not in self.waiting:
            return  # withdrawn meanwhile
        age = linux.boot_seconds() - received  # goes on while the machine is suspended
        try:
            outcome = lost_wish(request, age, "it was not placed before") if age >= request.valid_seconds else await self.place(request)
        except NotPlaced as trouble:
            outcome = lost_wish(request, linux.boot_seconds() - received, str(trouble))
        if outcome is None:
            return
        self.handled = [*self.handled, request.id][-KEPT:]
        self.home.remember("requests.json", Handled(ids=self.handled))
        self.waiting.pop(request.id, None)
        if outcome.status in OPEN:
            self.standing[request.id] = (request, received)
        self.spool.add_outcome(outcome)
        level = 20 if outcome.status in OPEN or outcome.status is RequestStatus.SUCCEEDED else 30
        log.log(level, "request_carried", text=f"Asked by {request.actor}: {request.kind}; {outcome.status}. {outcome.reason}".strip())
        self.changed()

    async def _follow(self, request: GroupRequest, received: float) -> None:
        """The news of an end may be lost with the process that had it; etcd remembers."""
        if linux.boot_seconds() - received > request.valid_seconds + FOLLOW_BEYOND:
            self.standing.pop(request.id, None)
            return
        try:
            outcome = await self.place(request, asks=True)
        except NotPlaced:
            return
        if outcome.status not in OPEN:
            self.standing.pop(request.id, None)
            self.spool.add_outcome(outcome)
            self.changed()


def lost_wish(request: GroupRequest, age: float, trouble: str) -> RequestOutcome | None:
    """What becomes of a wish that could not be written for `age` seconds; None: try again."""
    if age >= request.valid_seconds:
        reason = f"it could not be carried out within {request.valid_seconds:g} s: {trouble}"
        return RequestOutcome(id=request.id, status=RequestStatus.EXPIRED, code="no-majority", reason=reason)
    if age >= NO_MAJORITY_SECONDS:
        return RequestOutcome(id=request.id, status=RequestStatus.FAILED, code="no-majority", reason=trouble)
    return None
