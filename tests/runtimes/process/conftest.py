"""Servers shared by this package's tests; records and queues are emptied between tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtimes.process.lab import Broker, EtcdCluster, Landscape


@pytest.fixture(scope="package")
def three_routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path_factory.mktemp("etcd3"), 3)
    yield cluster
    cluster.close()


@pytest.fixture(scope="package")
def one_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path_factory.mktemp("etcd1"), 1)
    yield cluster
    cluster.close()


@pytest.fixture(scope="package")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    server = Broker(tmp_path_factory.mktemp("valkey"))
    yield server
    server.close()


@pytest.fixture
def broker(valkey: Broker) -> Broker:
    valkey.client.flushall()
    return valkey


@pytest.fixture
def router(one_router: EtcdCluster) -> EtcdCluster:
    one_router.clear()
    return one_router


@pytest.fixture
def landscape(tmp_path: Path, three_routers: EtcdCluster, broker: Broker) -> Iterator[Landscape]:
    three_routers.clear()
    made = Landscape(tmp_path, three_routers, broker)
    yield made
    made.close()
