"""What the tests of deployments start from: a saved flow, values, an applied Test, a release."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from deployments import plans, releases, rollout, windows
from deployments.models import Deployment, Release, RunStatus
from portal import properties
from portal.models import Connector, Environment, Flow, FlowVersion
from runtimes.models import FailoverGroup
from tests import factories
from tests.deployments.machines import Machines

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
    properties.set_values([properties.Edit(test_environment, key, value) for key, value in VALUES.items()], by=developer)
    return test_environment


@pytest.fixture
def group(test_environment: Environment, erp: Connector) -> FailoverGroup:
    """Test as applied, with agents that just reported: the group erp-orders of external01 and external02."""
    return factories.applied(test_environment, erp)


@pytest.fixture
def far_future(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of 2098 are near enough: a test with dates, weekdays and clock changes in it must not age."""
    monkeypatch.setattr(windows, "FURTHEST", timedelta(days=36_600))


class Engine:
    """Drives deployments as workers and agents would, with a clock of its own."""

    def __init__(self, environment: Environment) -> None:
        self.machines = Machines(environment)
        self.now = timezone.now()
        self.sent: list[int] = []

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.machines.report(self.now)

    def tick(self, deployment: Deployment) -> str:
        """One look at the step that is due."""
        step = rollout.next_step(deployment)
        assert step is not None
        return rollout.tick(step.pk, now=self.now)

    def run(self, deployment: Deployment, *, until: int | None = None, every: float = 0.5) -> Deployment:
        """Look and report `every` so many seconds until the deployment ends or waits (or step `until` is due)."""
        for _ in range(100):
            deployment.refresh_from_db()
            step = rollout.next_step(deployment)
            if deployment.status not in (RunStatus.PENDING, RunStatus.RUNNING) or (step and until == step.number):
                break
            self.tick(deployment)
            self.pass_time(every)
        else:
            raise AssertionError(f"{deployment} neither ends nor waits for anybody: {step.reason if step else 'no step is due'}")
        deployment.refresh_from_db()
        return deployment


@pytest.fixture
def engine(filled: Environment, group: FailoverGroup, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Test filled in and applied, its machines reporting, what is sent to workers kept in `sent`."""
    group.members.all().delete()  # they come with the first deployment
    group.delete()
    made = Engine(filled)
    monkeypatch.setattr(rollout, "send", lambda step, kind: made.sent.append(step))
    made.machines.report(made.now)
    return made


@pytest.fixture
def active(release: Release, engine: Engine, filled: Environment, developer: User) -> Release:
    """The release, active on Test, whose plan is the default one."""
    plans.default_plan(filled)
    releases.activate(release, filled, by=developer, now=engine.now)
    return release
