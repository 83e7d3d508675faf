"""What /readyz says of the groups, under `make run`."""

from datetime import timedelta

import pytest
from django.utils import timezone

from portal.models import Connector, Environment
from runtimes.models import Machine, Router
from runtimes.protocol import RouterState
from runtimes.readiness import groups_have_leaders
from tests import factories

pytestmark = pytest.mark.django_db


def test_a_group_without_leader_is_told_with_what_keeps_a_router_from_running(
    test_environment: Environment, erp: Connector, settings
) -> None:
    factories.applied(test_environment, erp)
    now = timezone.now()
    settings.BATON_STACK_STARTED_AT = (now - timedelta(minutes=1)).isoformat()
    machine = Machine.objects.get(name="external01")
    Machine.objects.filter(pk=machine.pk).update(last_report_at=now)
    Router.objects.update_or_create(
        machine=machine, defaults={"observed_state": RouterState.FAILED, "observed_reason": "/bin/true does not tell an etcd version"}
    )
    said = groups_have_leaders(now)
    assert said.startswith("Group erp-orders has no leader.")
    assert "router on external01: /bin/true does not tell an etcd version." in said

    Machine.objects.filter(pk=machine.pk).update(last_report_at=now - timedelta(minutes=2))  # of an earlier start: may be true no more
    assert groups_have_leaders(now) == "Group erp-orders has no leader."
