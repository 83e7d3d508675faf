"""What the tests of deployments start from: a saved flow, values, an applied Test, a release."""

import pytest
from django.contrib.auth.models import User

from deployments import releases
from deployments.models import Release
from portal import properties
from portal.models import Connector, Environment, Flow, FlowVersion
from runtimes.models import FailoverGroup
from tests import factories

VALUES = {
    "erp.outbox": "/srv/erp/outbox",
    "queues.url": "redis://127.0.0.1:7000/0",
    "queues.prefix": "baton:",
    "external01.failover.internal-ip": "10.0.0.11",
    "external02.failover.internal-ip": "10.0.0.12",
    "core01.failover.internal-ip": "10.0.0.10",
    "external01.failover.port": "2380",
    "external02.failover.port": "2380",
    "core01.failover.port": "2380",
}


def save_version(flow: Flow, minor: int = 0, **changes: object) -> FlowVersion:
    return FlowVersion.objects.create(flow=flow, major=1, minor=minor, patch=0, definition=flow.definition() | changes)


@pytest.fixture
def flow(erp: Connector) -> Flow:
    """erp-orders with one saved version."""
    made = Flow.objects.get(connector=erp)
    save_version(made)
    return made


@pytest.fixture
def release(flow: Flow, developer: User) -> Release:
    return releases.build(flow.connector.project, name="First", by=developer)


@pytest.fixture
def filled(test_environment: Environment, developer: User) -> Environment:
    """Test with every property filled in."""
    for key, value in VALUES.items():
        properties.set_value(test_environment, key, value, by=developer)
    return test_environment


@pytest.fixture
def group(test_environment: Environment, erp: Connector) -> FailoverGroup:
    """Test as applied, with agents that just reported: the group erp-orders of external01 and external02."""
    return factories.applied(test_environment, erp)
