"""What a step asks of the database: so many queries, whatever else there is (docs/decisions/0071)."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from benchmarks.rollout import Landscape
from deployments import rollout
from deployments.models import RunStatus
from portal.models import Property
from runtimes.models import Machine
from tests.deployments.machines import Machines

pytestmark = pytest.mark.django_db

BEGIN, PROVE = 26, 14  # of them six and four begin and end transactions and savepoints


class Counted:
    """A plan of Deploy runtime, one step after another, whose machines take every order at once; what each look asks of the database."""

    def __init__(self, machines: int, connectors: int, steps: int, values: int = 0) -> None:
        self.landscape = Landscape(machines, connectors)
        for number in range(values):
            Property.objects.create(environment=self.landscape.environment, key=f"key{number}", value="value")
        Machine.objects.filter(environment=self.landscape.environment).update(joined_at=timezone.now())
        self.machines = Machines(self.landscape.environment)
        self.machines.report(timezone.now())
        self.landscape.plan(steps)
        self.deploy(1)  # so that there is something that each step replaces

    def deploy(self, number: int) -> list[int]:
        """Queries of each look, begin and proof in turn."""
        deployment = self.landscape.deploy(self.landscape.release(number))
        counts, due = [], [deployment.steps.get(number=1).pk]
        while due:
            look = due.pop()
            for _ in range(2):
                with CaptureQueriesContext(connection) as queries:
                    rollout.tick(look, now=timezone.now(), onward=due)
                counts.append(len(queries))
                self.machines.report(timezone.now())
        deployment.refresh_from_db()
        assert deployment.status == RunStatus.SUCCEEDED
        return counts


@pytest.mark.parametrize(
    ("machines", "connectors", "steps", "values"),
    [
        pytest.param(2, 1, 2, 0, id="a few"),
        pytest.param(4, 2, 8, 0, id="more machines and steps"),
        pytest.param(2, 1, 2, 50, id="many values"),
    ],
)
def test_a_step_is_begun_and_proven_with_so_many_queries(machines: int, connectors: int, steps: int, values: int) -> None:
    counts = Counted(machines, connectors, steps, values).deploy(2)
    begin = BEGIN + connection.features.has_select_for_update  # PostgreSQL locks the machine's row first (fleet.take_rows)
    # The first look of all notes when the deployment started.
    assert counts == [begin + 1, PROVE, *[begin, PROVE] * (steps - 1)]
