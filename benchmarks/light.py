"""Light agents: the agents' real protocol over HTTP (join, long poll for orders, reports), but their processes run nothing."""

import asyncio
import time

import httpx

from runtimes import protocol
from runtimes.protocol import RuntimeReport, RuntimeState

REPORT_SECONDS = 2.0  # as agents do


class LightAgent:
    """One machine. What it is ordered to run is ready at once, unless it is `paused` or the runtime is `failing`."""

    def __init__(self, portal: str, name: str, token: str) -> None:
        self.portal, self.name, self.token = portal, name, token
        self.orders: protocol.Orders | None = None
        self.reported: dict[str, float] = {}  # "<runtime> <digest>" -> moment the report that told it was sent
        self.failing: dict[str, str] = {}
        self.paused = False
        self._sequence = 0
        self._started = protocol_now()
        self._news = asyncio.Event()

    async def run(self, client: httpx.AsyncClient) -> None:
        joined = await client.post(
            f"{self.portal}/agent/v1/join/", content=protocol.encode(protocol.JoinRequest(token=self.token, agent_version="light"))
        )
        joined.raise_for_status()
        answer = protocol.decode(protocol.JoinAnswer, joined.content)
        headers = {"Authorization": f"Bearer {answer.credential}"}
        await asyncio.gather(self._listen(client, headers), self._report_for_ever(client, headers))

    async def _listen(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        while True:
            after = self.orders.version if self.orders else 0
            try:
                answer = await client.get(
                    f"{self.portal}/agent/v1/orders/", params={"after": after, "wait": 20}, headers=headers, timeout=40
                )
            except httpx.HTTPError:
                await asyncio.sleep(0.2)
                continue
            if answer.status_code == 200 and not self.paused:
                self._take(protocol.decode(protocol.Orders, answer.content))

    def _take(self, orders: protocol.Orders) -> None:
        if self.orders is None or orders.version > self.orders.version:
            self.orders = orders
            self._news.set()

    async def _report_for_ever(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        while True:
            if not self.paused:
                await self._report(client, headers)
            try:
                await asyncio.wait_for(self._news.wait(), REPORT_SECONDS)
            except TimeoutError:
                pass
            self._news.clear()

    async def _report(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        self._sequence += 1
        orders = self.orders
        runtimes = [self._runtime(order) for order in (orders.runtimes if orders else [])]
        report = protocol.Report(
            agent_version="light",
            boot_id="light",
            started_at=self._started,
            orders_version=orders.version if orders else 0,
            sequence=self._sequence,
            runtimes=runtimes,
        )
        sent = time.time()
        for runtime in runtimes:
            if runtime.state is RuntimeState.READY:
                self.reported.setdefault(f"{runtime.key} {runtime.digest}", sent)
        try:
            answer = await client.post(f"{self.portal}/agent/v1/report/", content=protocol.encode(report), headers=headers, timeout=30)
        except httpx.HTTPError:
            return
        if answer.status_code == 200:
            self._take(protocol.decode(protocol.ReportAnswer, answer.content).orders)

    def _runtime(self, order: protocol.RuntimeOrder) -> RuntimeReport:
        if order.key in self.failing:
            return RuntimeReport(key=order.key, state=RuntimeState.FAILED, reason=self.failing[order.key])
        if not (order.running and order.digest):
            return RuntimeReport(key=order.key, state=RuntimeState.STOPPED)
        return RuntimeReport(
            key=order.key, state=RuntimeState.READY, pid=1, restarts=order.restarts, digest=order.digest, release=order.release
        )


def protocol_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
