"""Light agents: the agents' own client (runtimes/agent/client.py) and protocol over HTTP - join, long poll for orders, bundles by digest,
reports, hand-overs, commands - but their processes run nothing, and a `Cluster` in memory stands for what routers and processes decide."""

import asyncio
import contextlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from runtimes import protocol
from runtimes.agent.client import NotTaken, Portal, PortalAway
from runtimes.agent.decide import retry_delay
from runtimes.agent.supervisor import BundleUnavailable
from runtimes.protocol import GroupReport, RouterState, RuntimeReport, RuntimeState, State, Status

REPORT_SECONDS = 2.0  # as agents do
Record = Callable[..., None]  # of what an agent did, as keywords


class Cluster:
    """The machines of one environment: who leads each group, and who was asked to take over. One event loop only."""

    def __init__(self) -> None:
        self.agents: list[LightAgent] = []
        self.leaders: dict[str, str] = {}  # group id -> runtime key
        self.epochs: dict[str, int] = {}
        self.members: dict[str, set[str]] = {}  # group id -> runtime keys that run
        self.carried: set[str] = set()  # ids of requests

    def runs(self, key: str, groups: Iterable[str]) -> None:
        for group in groups:
            self.members.setdefault(group, set()).add(key)
            if group not in self.leaders:
                self._lead(group, key)

    def stopped(self, key: str) -> list[str]:
        """The groups that it led: somebody else takes them, if anybody runs."""
        led = [group for group, leader in self.leaders.items() if leader == key]
        for group, members in self.members.items():
            members.discard(key)
            if group in led:
                del self.leaders[group]
                if members:
                    self._lead(group, min(members))
        return led

    def _lead(self, group: str, key: str) -> None:
        self.leaders[group] = key
        self.epochs[group] = self.epochs.get(group, 0) + 1
        for agent in self.agents:
            agent.has_news()

    def carry(self, request: protocol.GroupRequest) -> protocol.RequestOutcome | None:
        """The first agent that sees a request carries it. None: another one did."""
        if request.id in self.carried:
            return None
        self.carried.add(request.id)
        leader = self.leaders.get(request.group)
        ready = sorted(key for key in self.members.get(request.group, ()) if key != leader)
        chosen = next((key for key in ready if request.machine in (None, key.split(".")[0])), None)
        if chosen is None:
            reason = f"{request.machine} does not run it, or leads it already"
            return protocol.RequestOutcome(id=request.id, status=protocol.RequestStatus.FAILED, code="not-ready", reason=reason)
        self._lead(request.group, chosen)
        return protocol.RequestOutcome(id=request.id, status=protocol.RequestStatus.SUCCEEDED)


class LightAgent:
    """One machine. What it is ordered to run is ready at once, unless it is `paused` or the runtime is `failing`."""

    def __init__(self, portal: str, name: str, token: str, *, cluster: Cluster | None = None, record: Record | None = None) -> None:
        self.name = name
        self.orders: protocol.Orders | None = None
        self.reported: dict[str, float] = {}  # "<runtime> <digest>" -> moment the report that told it was sent
        self.heard: dict[str, float] = {}  # "<runtime> <digest>" -> moment its order arrived
        self.failing: dict[str, str] = {}
        self.paused = False
        self.trouble: Counter[str] = Counter()  # what the portal did not answer as it should, by its words
        self.cluster = cluster or Cluster()
        self.cluster.agents.append(self)
        self._portal, self._token = Portal(portal), token
        self._record: Record = record or (lambda **_: None)
        self._runs: dict[str, tuple[str, int]] = {}  # runtime key -> digest and restarts of its process
        self._bundles: set[str] = set()  # fetched and verified
        self._outcomes: dict[str, protocol.RequestOutcome] = {}  # until the portal has stored them
        self._commands: dict[str, protocol.CommandReport] = {}  # until their order is gone
        self._sequence = 0
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._news = asyncio.Event()

    def has_news(self) -> None:
        self._news.set()

    async def run(self) -> None:
        attempt = secrets.token_urlsafe(16)
        try:
            answer = await self._until_answered(lambda: self._portal.join(self._token, "light", attempt))
            await self._portal.close()
            self._portal = Portal(self._portal.url, answer.credential)
            await asyncio.gather(self._listen(), self._report_for_ever())
        finally:
            await self._portal.close()

    async def _until_answered(self, call: Callable[[], Any]) -> Any:
        """What the portal answers, tried as agents do for as long as it is away."""
        failures = 0
        while True:
            try:
                return await call()
            except NotTaken:
                raise
            except (PortalAway, BundleUnavailable) as error:
                failures += 1
                self.trouble[str(error)] += 1
                await asyncio.sleep(retry_delay(failures))

    async def _listen(self) -> None:
        while True:
            after = self.orders.version if self.orders else 0
            orders = await self._until_answered(lambda after=after: self._portal.orders(after))
            if orders is not None and not self.paused:
                self._take(orders)

    def _take(self, orders: protocol.Orders) -> None:
        if self.orders is None or orders.version > self.orders.version:
            self.orders = orders
            now = time.time()
            for order in orders.runtimes:
                self.heard.setdefault(f"{order.key} {order.digest}", now)
            self._news.set()

    async def _report_for_ever(self) -> None:
        while True:
            if not self.paused:
                await self._obey(self.orders)
                await self._report(self.orders)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), REPORT_SECONDS)
            self._news.clear()

    # ----------------------------------------------------------------------------------------------------------------- obeying

    async def _obey(self, orders: protocol.Orders | None) -> None:
        if orders is None:
            return
        for order in orders.runtimes:
            await self._run_as_ordered(order)
        for request in orders.requests:
            outcome = self.cluster.carry(request)
            if outcome is not None:
                self._record(what="hand-over", id=request.id, group=request.group, to=request.machine, ended=str(outcome.status))
                self._outcomes[request.id] = outcome
        wanted = {command.id for command in orders.commands}
        self._commands = {key: report for key, report in self._commands.items() if key in wanted}
        for command in orders.commands:
            if command.id not in self._commands:
                self._record(what="command", id=command.id, name=command.name)
                self._commands[command.id] = protocol.CommandReport(
                    id=command.id, status=protocol.CommandStatus.SUCCEEDED, exit_status=0, lines=["done"]
                )

    async def _run_as_ordered(self, order: protocol.RuntimeOrder) -> None:
        wished = (order.digest, order.restarts) if order.running and order.digest and order.key not in self.failing else None
        present = self._runs.get(order.key)
        if wished is not None and present != wished and wished[0] not in self._bundles:
            try:
                data = await self._portal.bundle(wished[0])
            except BundleUnavailable as error:  # it was ordered anew meanwhile: those orders are on their way
                self.trouble[str(error)] += 1
                return
            assert protocol.digest_of(data) == wished[0], f"{self.name} got a bundle that is not {wished[0]}"
            self._bundles.add(wished[0])
        if present != wished:
            if present is not None:
                led = self.cluster.stopped(order.key)
                self._record(what="stop", runtime=order.key, digest=present[0], restarts=present[1], led=led)
                del self._runs[order.key]
            if wished is not None:
                self._record(what="start", runtime=order.key, digest=wished[0], restarts=wished[1])
                self._runs[order.key] = wished
        if wished is not None:
            self.cluster.runs(order.key, order.preferences)

    # --------------------------------------------------------------------------------------------------------------- reporting

    async def _report(self, orders: protocol.Orders | None) -> None:
        self._sequence += 1
        runtimes = [self._runtime(order) for order in (orders.runtimes if orders else [])]
        outcomes = dict(self._outcomes)
        report = protocol.Report(
            agent_version="light",
            boot_id="light",
            started_at=self._started,
            orders_version=orders.version if orders else 0,
            sequence=self._sequence,
            router=self._router(orders.router) if orders and orders.router else None,
            runtimes=runtimes,
            outcomes=list(outcomes.values()),
            commands=list(self._commands.values()),
        )
        sent = time.time()
        for runtime in runtimes:
            if runtime.state is RuntimeState.READY:
                self.reported.setdefault(f"{runtime.key} {runtime.digest}", sent)
        try:
            answer = await self._portal.report(report)
        except PortalAway as error:
            self.trouble[str(error)] += 1
            self._news.set()
            await asyncio.sleep(retry_delay(1))
            return
        if answer.accepted:
            self._outcomes = {key: outcome for key, outcome in self._outcomes.items() if key not in outcomes}
        self._take(answer.orders)

    def _router(self, order: protocol.RouterOrder) -> protocol.RouterReport:
        return protocol.RouterReport(
            state=RouterState.RUNNING,
            cluster_id="light",
            member_id=order.name.encode().hex()[:32],
            cluster_token=order.cluster_token,
            address=order.members.get(order.name, ""),
            members=[protocol.ClusterMember(id=name.encode().hex()[:32], name=name, url=url) for name, url in order.members.items()],
            members_at=1,
        )

    def _runtime(self, order: protocol.RuntimeOrder) -> RuntimeReport:
        if order.key in self.failing:
            return RuntimeReport(key=order.key, state=RuntimeState.FAILED, reason=self.failing[order.key])
        if order.key not in self._runs:
            return RuntimeReport(key=order.key, state=RuntimeState.STOPPED)
        digest, restarts = self._runs[order.key]
        return RuntimeReport(
            key=order.key,
            state=RuntimeState.READY,
            pid=1,
            started_at=f"{digest[:12]} {restarts}",
            restarts=restarts,
            digest=digest,
            release=order.release,
            groups=[self._group(group, order.key) for group in order.preferences],
        )

    def _group(self, group: str, key: str) -> GroupReport:
        leader = self.cluster.leaders.get(group)
        leads = leader == key
        return GroupReport(
            group=group,
            status=Status.LEADER if leads else Status.FOLLOWER,
            state=State.ON if leads else State.OFF,
            reason="leads" if leads else "follows",
            epoch=self.cluster.epochs.get(group, 0),
            leader=leader,
            ready=True,
        )


class Fleet:
    """Light agents on a thread of their own."""

    def __init__(self, agents: Sequence[LightAgent]) -> None:
        self.agents = {agent.name: agent for agent in agents}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        with contextlib.suppress(asyncio.CancelledError, RuntimeError):
            self._loop.run_until_complete(self._run())

    async def _run(self) -> None:
        await asyncio.gather(*(agent.run() for agent in self.agents.values()))

    @property
    def alive(self) -> bool:
        """An agent that ended, with whatever error, takes the thread with it."""
        return self._thread.is_alive()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self._loop)])
        self._thread.join(5)
