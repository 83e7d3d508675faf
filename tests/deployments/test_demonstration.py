"""The demonstration is made once, whole, by the product's own acts, and stays the person's afterwards."""

import dataclasses
import json
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.test import RequestFactory
from django.utils import timezone

from deployments import demonstration, releases, rollout
from deployments.demonstration import Place
from deployments.models import Deployment, RunStatus, StepKind
from portal import properties
from portal.errors import NotAllowed
from portal.models import Environment, Project, Property, Team
from runtimes.models import JoinToken, Machine, Router, Runtime

pytestmark = pytest.mark.django_db

PORTS = {"core01": 21001, "external01": 21002, "external02": 21003}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(home=tmp_path, queues_url="redis://:pw@127.0.0.1:21000/0", queues_prefix="baton:1234:", failover_ports=PORTS)


def test_it_is_what_the_readme_promises(place: Place) -> None:
    demonstration.prepare(place)
    project = Project.objects.get(slug="webshop")
    assert (project.team.name, project.name) == ("Demo", "Webshop")
    assert [environment.kind for environment in project.environments.all()] == ["test", "acceptance", "production"]
    assert sorted(project.systems.values_list("name", "number_of_runtimes", "failover_applied")) == [
        ("ERP", 2, True),
        ("Tills", 2, True),
        ("Warehouse", 1, False),
    ]
    test = demonstration.environment()
    assert test is not None
    assert sorted(runtime.key for runtime in Runtime.objects.filter(environment=test).select_related("machine", "connector")) == [
        "core01.warehouse",
        "external01.erp",
        "external01.tills",
        "external02.erp",
        "external02.tills",
    ]
    assert Router.objects.filter(machine__environment=test).count() == 3
    assert not Machine.objects.exclude(environment=test).exists()
    preferred = Runtime.objects.filter(preference="leader").values_list("machine__name", "connector__name")
    assert sorted(preferred) == [("external01", "erp"), ("external02", "tills")]
    assert Property.objects.get(key="external02.failover.port").value == "21003"
    assert Property.objects.get(key="queues.url").secret
    steps = list(test.plan.steps.values_list("kind", flat=True))
    assert steps.count(StepKind.DEPLOY_RUNTIME) == 5
    assert steps[-1] == StepKind.BALANCE_FAILOVER
    assert releases.active(test) is not None
    for folder in ("erp/outbox", "tills/outbox", "warehouse/inbox"):
        assert (place.home / "demo" / folder).is_dir()


@pytest.mark.parametrize(
    ("name", "role", "superuser"),
    [("admin", "administrator", True), ("developer", "developer", False), ("operator", "operator", False), ("viewer", "viewer", False)],
)
def test_its_people_can_sign_in(place: Place, name: str, role: str, superuser: bool) -> None:
    demonstration.prepare(place)
    person = authenticate(RequestFactory().post("/login/"), username=name, password="baton")
    assert isinstance(person, User)
    assert person.memberships.get().role == role
    assert person.is_superuser is superuser


def test_each_agent_finds_a_token_that_only_its_owner_reads(place: Place) -> None:
    demonstration.prepare(place)
    for machine in PORTS:
        file = place.home / "tokens" / machine
        assert file.read_text()
        assert file.stat().st_mode & 0o077 == 0
    assert JoinToken.objects.count() == 3


def test_a_machine_that_joined_gets_no_new_token_unless_its_folder_is_gone(place: Place) -> None:
    demonstration.prepare(place)
    Machine.objects.update(joined_at=timezone.now())
    for machine in PORTS:
        (place.home / "machines" / machine).mkdir(parents=True)
        (place.home / "machines" / machine / "identity.json").write_text("{}")
    before = {machine: (place.home / "tokens" / machine).read_text() for machine in PORTS}
    (place.home / "machines" / "core01" / "identity.json").unlink()
    demonstration.prepare(place)
    changed = [machine for machine in PORTS if (place.home / "tokens" / machine).read_text() != before[machine]]
    assert changed == ["core01"]


def test_a_start_that_broke_off_leaves_nothing_and_the_next_one_makes_it_whole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(demonstration.releases, "build", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            demonstration.prepare(place)
    assert not Team.objects.exists()
    demonstration.prepare(place)
    assert Project.objects.count() == 1


def test_the_second_start_changes_nothing_the_person_did(place: Place) -> None:
    demonstration.prepare(place)
    Property.objects.filter(key="erp.outbox").update(value="/elsewhere")
    demonstration.prepare(place)
    assert Property.objects.get(key="erp.outbox").value == "/elsewhere"
    assert Project.objects.count() == 1


def test_a_project_that_was_removed_stays_removed(place: Place) -> None:
    demonstration.prepare(place)
    Project.objects.update(slug="mine")
    assert "no demonstration" in demonstration.prepare(place)
    assert Project.objects.count() == 1


def test_only_test_can_be_deployed_to_and_the_reason_is_said(place: Place) -> None:
    demonstration.prepare(place)
    acceptance = Project.objects.get().environments.get(kind="acceptance")
    release = acceptance.project.releases.get()
    with pytest.raises(NotAllowed) as refused:
        rollout.prepare(release, on=acceptance, by=User.objects.get(username="operator"), now=timezone.now())
    assert "machines" in " ".join([refused.value.sentence, *refused.value.reasons])


# ------------------------------------------------------------------------------------------------------------- what is due


def ended(status: RunStatus, **more: object) -> Deployment:
    test = demonstration.environment()
    assert test is not None
    return Deployment.objects.create(environment=test, release=test.project.releases.get(), status=status, **more)


def test_the_first_start_deploys_and_a_later_one_does_not(place: Place) -> None:
    demonstration.prepare(place)
    test = demonstration.environment()
    assert test is not None
    assert demonstration.deployment_due(test, place) is True
    ended(RunStatus.SUCCEEDED)
    assert demonstration.deployment_due(test, place) is False


@pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.FAILED, RunStatus.TIMED_OUT])
def test_a_first_deployment_that_was_interrupted_or_failed_is_seen_through(place: Place, status: RunStatus) -> None:
    demonstration.prepare(place)
    test = demonstration.environment()
    assert test is not None
    begun = ended(status)
    assert demonstration.deployment_due(test, place) == begun


def test_when_the_broker_moved_its_address_is_filled_in_and_deployed_even_after_an_interruption(place: Place) -> None:
    demonstration.prepare(place)
    test = demonstration.environment()
    assert test is not None
    ended(RunStatus.SUCCEEDED)
    moved = dataclasses.replace(place, queues_url="redis://:pw@127.0.0.1:21999/0")
    assert "another address" in demonstration.prepare(moved)
    assert Property.objects.get(key="queues.url").reveal() == moved.queues_url
    assert Property.objects.get(key="queues.url").secret
    demonstration.prepare(moved)  # killed before the deployment began, and started again
    assert demonstration.deployment_due(test, moved) is True
    demonstration._remember(moved, deployed=moved.queues_url)
    assert demonstration.deployment_due(test, moved) is False


def test_an_address_of_the_queues_that_a_person_filled_in_is_left_alone(place: Place) -> None:
    demonstration.prepare(place)
    test = demonstration.environment()
    assert test is not None
    ended(RunStatus.SUCCEEDED)
    properties.set_value(Environment.objects.get(kind="test"), "queues.url", "redis://theirs/0", by=None)
    moved = dataclasses.replace(place, queues_url="redis://:pw@127.0.0.1:21999/0")
    demonstration.prepare(moved)
    assert Property.objects.get(key="queues.url").reveal() == "redis://theirs/0"
    assert demonstration.deployment_due(test, moved) is False


def test_what_is_remembered_is_private_for_it_holds_the_password(place: Place) -> None:
    demonstration.prepare(place)
    assert place.memory.stat().st_mode & 0o077 == 0
    assert json.loads(place.memory.read_text())["filled_in"] == place.queues_url


# --------------------------------------------------------------------------------------------------------------- readiness


@pytest.mark.parametrize(
    ("status", "said"),
    [
        pytest.param(None, "has not begun", id="none yet"),
        pytest.param(RunStatus.RUNNING, "is running", id="under way"),
        pytest.param(RunStatus.FAILED, "is failed", id="failed"),
        pytest.param(RunStatus.SUCCEEDED, "", id="well"),
    ],
)
def test_ready_means_that_the_first_deployment_ended_well(place: Place, settings, status: RunStatus | None, said: str) -> None:
    demonstration.prepare(place)
    if status:
        ended(status)
    settings.BATON_STACK_STARTED_AT = ""
    assert demonstration.first_deployment_ended_well(timezone.now()) == ""
    settings.BATON_STACK_STARTED_AT = (timezone.now() - timedelta(minutes=1)).isoformat()
    found = demonstration.first_deployment_ended_well(timezone.now())
    assert said in found
    assert bool(found) is bool(said)
