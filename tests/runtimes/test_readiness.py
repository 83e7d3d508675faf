"""What /readyz says of the groups, under `make run`."""

from datetime import timedelta

import pytest
from django.utils import timezone

from portal.models import Connector, Environment
from runtimes.models import FailoverGroup, GroupMember, Machine, Router, Runtime
from runtimes.protocol import RouterState, RuntimeState, State, Status
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
    assert said.startswith("Nobody is known to lead erp-orders.")
    assert "router on external01: /bin/true does not tell an etcd version." in said

    Machine.objects.filter(pk=machine.pk).update(last_report_at=now - timedelta(minutes=2))  # of an earlier start: may be true no more
    assert groups_have_leaders(now) == "Nobody is known to lead erp-orders."


@pytest.mark.parametrize(
    ("statuses", "age", "sentence"),
    [
        pytest.param({"external01": Status.LEADER, "external02": Status.FOLLOWER}, 0, "", id="one leads"),
        pytest.param(
            {"external01": Status.LEADER, "external02": Status.FOLLOWER},
            30,
            "Nobody is known to lead erp-orders: external01, which led it, has not been heard from.",
            id="its machine is silent, and it may lead on",
        ),
        pytest.param(
            {"external01": Status.SINGLE_NODE, "external02": Status.SINGLE_NODE},
            0,
            "Nobody leads erp-orders: external01 and external02 run alone.",
            id="two run alone",
        ),
        pytest.param(
            {"external01": Status.ISOLATED, "external02": Status.ISOLATED}, 0, "Nobody is known to lead erp-orders.", id="no majority"
        ),
    ],
)
def test_who_leads_is_told_as_it_is_known(
    test_environment: Environment, erp: Connector, settings, statuses: dict[str, Status], age: float, sentence: str
) -> None:
    factories.applied(test_environment, erp)
    now = timezone.now()
    settings.BATON_STACK_STARTED_AT = (now - timedelta(minutes=1)).isoformat()
    for name, status in statuses.items():
        at = now - timedelta(seconds=age if status == Status.LEADER else 0)
        Machine.objects.filter(name=name).update(last_report_at=at)
        on = status in (Status.LEADER, Status.SINGLE_NODE)
        epoch = 41 if status in (Status.LEADER, Status.FOLLOWER) else 0
        GroupMember.objects.filter(runtime__machine__name=name).update(
            observed_status=status, observed_state=State.ON if on else State.OFF, observed_epoch=epoch, observed_at=at
        )
    FailoverGroup.objects.update(epoch=41)
    Runtime.objects.update(desired_running=True, observed_state=RuntimeState.READY, observed_at=now)
    assert groups_have_leaders(now) == sentence
