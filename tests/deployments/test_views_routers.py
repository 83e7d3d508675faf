"""Dialogs about the routers of an environment: a change that was left unfinished, and the certificate authority."""

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from deployments.models import Release, RunStatus
from runtimes import joining, protocol
from runtimes.agent.certificate import make_request
from runtimes.models import CertificateAuthority, FailoverGroup, Machine, MembershipChange
from tests import factories

PLACE = "/projects/webshop/test/architecture/"
BEFORE = {"external01": ["10.0.0.1", 7400], "external02": ["10.0.0.2", 7400], "core01": ["10.0.0.3", 7400]}


@pytest.fixture
def halted(group: FailoverGroup) -> MembershipChange:
    return MembershipChange.objects.create(
        environment=group.environment,
        wished=BEFORE | {"external01": ["10.0.0.9", 7500]},
        before=BEFORE,
        actor="deployment 12",
        status="halted",
        sentence="Stopped halfway, because deployment 12 was cancelled.",
        created_at=timezone.now(),
    )


def certify(*machines: Machine) -> None:
    for machine in machines:
        _, request = make_request(machine.name)
        known = Machine.objects.get(pk=machine.pk)
        joining.certify(known, protocol.CertificateRequest(request=request), now=timezone.now())


def test_a_change_that_was_left_unfinished_is_shown_with_its_two_ways_on(client: Client, operator: User, halted: MembershipChange) -> None:
    client.force_login(operator)
    page = client.get(PLACE).content.decode()
    assert "Stopped halfway, because deployment 12 was cancelled." in page and "Resume or roll back" in page
    dialog = client.get(f"{PLACE}router-change/").content.decode()
    assert "external01 on 10.0.0.9:7500" in dialog and "external01 on 10.0.0.1:7400" in dialog


@pytest.mark.parametrize(("act", "host"), [("resume", "10.0.0.9"), ("roll-back", "10.0.0.1")])
def test_an_operator_chooses_how_it_goes_on(client: Client, operator: User, halted: MembershipChange, act: str, host: str) -> None:
    client.force_login(operator)
    assert client.post(f"{PLACE}router-change/", {"act": act}).status_code == 302
    newest = MembershipChange.objects.order_by("-pk").first()
    assert newest is not None and newest.actor == operator.get_username() and newest.wished["external01"][0] == host
    halted.refresh_from_db()
    assert halted.status == "replaced"
    MembershipChange.objects.filter(pk=newest.pk).update(status="running", driven_at=timezone.now())
    again = client.post(f"{PLACE}router-change/", {"act": act}).content.decode()
    assert "are being changed" in again


def test_by_the_api_too(client: Client, operator: User, viewer: User, halted: MembershipChange) -> None:
    machine = Machine.objects.get(name="external01", environment=halted.environment)
    client.force_login(viewer)
    assert client.post(f"/api/v1/machines/{machine.pk}/roll-back-router-change/").status_code == 403
    client.force_login(operator)
    answer = client.post(f"/api/v1/machines/{machine.pk}/roll-back-router-change/")
    assert (answer.status_code, answer.json()["wished"]) == (202, BEFORE)
    MembershipChange.objects.filter(actor="operator").update(status="running", driven_at=timezone.now())
    refused = client.post(f"/api/v1/machines/{machine.pk}/resume-router-change/")
    assert refused.status_code == 409 and "are being changed" in refused.json()["detail"]
    MembershipChange.objects.update(status="succeeded")
    refused = client.post(f"/api/v1/machines/{machine.pk}/resume-router-change/")
    assert "nothing to resume" in refused.json()["detail"]


@pytest.mark.parametrize("act", ["resume", "roll-back"])
def test_while_a_deployment_is_under_way_neither_page_nor_api_goes_on(
    client: Client, operator: User, halted: MembershipChange, act: str
) -> None:
    """Both would hand leadership over, each for reasons of its own."""
    release = Release.objects.create(project=halted.environment.project, number=3, name="Stock", content={}, digest="x" * 64)
    factories.deployed(halted.environment, release, status=RunStatus.RUNNING)
    machine = Machine.objects.get(name="external01", environment=halted.environment)
    client.force_login(operator)
    refused = client.post(f"/api/v1/machines/{machine.pk}/{act}-router-change/")
    assert refused.status_code == 409 and "is under way on Test" in refused.json()["detail"]
    assert "is under way on Test" in client.post(f"{PLACE}router-change/", {"act": act}).content.decode()
    halted.refresh_from_db()
    assert halted.status == "halted"


@pytest.mark.parametrize("act", ["", "rollback", "Retire"])
def test_nothing_is_done_in_place_of_an_act_that_does_not_exist(client: Client, admin: User, halted: MembershipChange, act: str) -> None:
    certify(*Machine.objects.filter(environment=halted.environment))
    client.force_login(admin)
    for page in ("router-change/", "authority/"):
        assert "There is no act" in client.post(PLACE + page, {"act": act}).content.decode()
    halted.refresh_from_db()
    assert halted.status == "halted"
    assert not CertificateAuthority.objects.get().former


def test_below_operator_nothing_is_chosen(client: Client, developer: User, halted: MembershipChange) -> None:
    client.force_login(developer)
    assert client.post(f"{PLACE}router-change/", {"act": "resume"}).status_code == 403
    assert "Resume or roll back" not in client.get(PLACE).content.decode()


def test_an_administrator_renews_the_authority_and_retires_the_former(client: Client, admin: User, group: FailoverGroup) -> None:
    machines = list(Machine.objects.filter(environment=group.environment))
    certify(*machines)
    client.force_login(admin)
    assert "Certificate authority" in client.get(PLACE).content.decode()
    assert "Renew the authority" in client.get(f"{PLACE}authority/").content.decode()
    assert client.post(f"{PLACE}authority/", {"act": "renew"}).status_code == 302
    assert CertificateAuthority.objects.get().number == 2
    dialog = client.post(f"{PLACE}authority/", {"act": "retire"}).content.decode()
    assert "no certificate of the new authority yet: start the agent there" in dialog
    certify(*machines)
    assert "Every machine has a certificate of the new authority: retire the former one." in client.get("/").content.decode()
    assert client.post(f"{PLACE}authority/", {"act": "retire"}).status_code == 302
    assert CertificateAuthority.objects.get().former == ""
    assert "retire the former one" not in client.get("/").content.decode()


def test_below_administrator_the_authority_is_nobodys_business(client: Client, operator: User, group: FailoverGroup) -> None:
    certify(*Machine.objects.filter(environment=group.environment))
    client.force_login(operator)
    assert client.get(f"{PLACE}authority/").status_code == 403
    assert "Certificate authority" not in client.get(PLACE).content.decode()
