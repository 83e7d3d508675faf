"""A watch whose connection stands while nobody is at its other end any more, as behind a gateway: against a real router."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from runtimes.process.coordination import Coordinator, Result
from runtimes.process.etcd import Etcd, Event, put
from runtimes.process.records import ControlRecord, control_key, plain
from runtimes.protocol import GroupSpec, RuntimeConfig, Timing
from tests.runtimes.process.lab import NAMESPACE, EtcdCluster

ME = "external01.erp"


class DeafAtFirst(Etcd):
    """Its first watch never says anything, and does not break either."""

    watches = 0

    async def watch(self, keys: Sequence[str]) -> AsyncIterator[Event]:
        self.watches += 1
        if self.watches == 1:
            await asyncio.Event().wait()
        async for event in super().watch(keys):
            yield event


def config(router: EtcdCluster, home: Path) -> RuntimeConfig:
    return RuntimeConfig(
        key=ME,
        environment="test",
        machine="external01",
        connector="erp",
        launch="l1",
        bundle="",
        digest="",
        release=1,
        etcd=router.urls[0],
        tls=router.tls,
        namespace=NAMESPACE,
        generation=1,
        timing=Timing(),
        data=str(home),
        permit=str(home / "permit"),
    )


@pytest.mark.journey
def test_a_watch_that_tells_nothing_is_opened_anew(router: EtcdCluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        etcd, told = DeafAtFirst(router.urls[0], router.tls), asyncio.Event()
        groups = [GroupSpec(id="g", name="orders", failover=True, members=[ME, "external02.erp"])]
        coordinator = Coordinator(etcd, config(router, tmp_path), groups, dict)
        watching = asyncio.create_task(coordinator.watch(lambda renew: told.set()))
        other = Etcd(router.urls[0], router.tls)
        try:
            await coordinator.look()
            assert await coordinator.start() == Result.DONE
            async with asyncio.timeout(20):
                while etcd.watches == 1:
                    await asyncio.sleep(0.2)
                    await coordinator.renew()
                await asyncio.sleep(0.5)
                await other.transact([], [put(control_key(NAMESPACE, "g"), plain(ControlRecord()))], [], timeout=5)
                await told.wait()
            before = etcd.watches
            for _ in range(10):
                await asyncio.sleep(0.2)
                await coordinator.renew()
            assert etcd.watches == before, "one that works is left alone"
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await etcd.close()
            await other.close()

    asyncio.run(scenario())
