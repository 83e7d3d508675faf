"""The environment's certificate authority: who gets a certificate, whose is taken back, and what machines are told."""

import base64
import hashlib
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from cryptography import x509
from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives import serialization
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client

from portal.errors import Invalid, NotAllowed
from portal.models import Environment, EnvironmentKind
from runtimes import architecture, authority, certificates, fleet, joining, ordering, protocol
from runtimes.agent.certificate import Held, make_request, read_certificate, why_renew
from runtimes.models import CertificateAuthority, FailoverGroup, Machine, MachineCertificate, Router
from tests.runtimes.conftest import NOW, joined


def certified(machine: Machine) -> protocol.CertificateAnswer:
    _, request = make_request(machine.name)
    return joining.certify(Machine.objects.get(pk=machine.pk), protocol.CertificateRequest(request=request), now=NOW)


def serial(answer: protocol.CertificateAnswer) -> int:
    return x509.load_pem_x509_certificate(answer.certificate.encode()).serial_number


def revoked(machine: Machine) -> set[int]:
    orders = ordering.orders_for(machine, now=NOW)
    assert orders.trust is not None
    return {entry.serial_number for entry in x509.load_der_x509_crl(base64.b64decode(orders.trust.revoked))}


def test_the_first_machine_that_asks_makes_the_authority(external01: Machine, external02: Machine) -> None:
    assert ordering.orders_for(external01, now=NOW).trust is None
    private, request = make_request("external01")
    answer = joining.certify(external01, protocol.CertificateRequest(request=request), now=NOW)
    held = read_certificate(private + answer.certificate.encode(), answer.authority)
    assert held.names == {"external01", "localhost", "127.0.0.1"}
    assert held.not_before == NOW - timedelta(hours=48)
    trust = ordering.orders_for(external02, now=NOW).trust
    assert trust is not None
    assert (trust.authority, trust.names) == (answer.authority, ["127.0.0.1", "external02", "localhost"])
    assert certified(external02).authority == answer.authority
    assert CertificateAuthority.objects.count() == 1


def test_an_assigned_router_puts_its_address_on_the_certificate(external01: Machine, routers_addressed: None) -> None:
    certified(external01)
    trust = ordering.orders_for(external01, now=NOW).trust
    assert trust is not None and trust.names == ["10.0.0.1", "127.0.0.1", "external01", "localhost"]
    assert MachineCertificate.objects.get().names == trust.names
    fleet_version = Machine.objects.get(pk=external01.pk).orders_version
    Router.objects.filter(machine=external01).update(desired_host="10.0.0.9")
    trust = ordering.orders_for(external01, now=NOW).trust
    assert trust is not None and "10.0.0.9" in trust.names and "10.0.0.1" not in trust.names
    assert Machine.objects.get(pk=external01.pk).orders_version == fleet_version


def test_a_router_that_is_to_move_is_certified_at_both_addresses_until_it_has(external01: Machine, routers_addressed: None) -> None:
    """It runs on where it was while it cannot listen at the new address, and the others look where its calls come from."""
    certified(external01)
    Router.objects.filter(machine=external01).update(observed_address="https://10.0.0.1:7400", desired_host="10.0.0.9")
    assert {"10.0.0.1", "10.0.0.9"} < set(trust_of(external01).names)
    certified(external01)
    assert MachineCertificate.objects.latest("pk").names == trust_of(external01).names
    Router.objects.filter(machine=external01).update(observed_address="https://10.0.0.9:7400")
    assert trust_of(external01).names == ["10.0.0.9", "127.0.0.1", "external01", "localhost"]
    Router.objects.filter(machine=external01).update(observed_address="https://[fd00::2]:7400", desired_host="FD00::2")
    assert trust_of(external01).names == ["127.0.0.1", "FD00::2", "external01", "localhost"]


def test_each_environment_has_its_own_authority(external01: Machine, test_environment: Environment) -> None:
    other = Environment.objects.exclude(pk=test_environment.pk).get(project=test_environment.project, kind=EnvironmentKind.PRODUCTION)
    stranger = Machine.objects.create(environment=other, name="external01", kind="external")
    assert certified(external01).authority != certified(stranger).authority


def test_orders_stay_the_same_while_nothing_is_revoked(external01: Machine, external02: Machine) -> None:
    certified(external01)
    first = ordering.orders_for(external01, now=NOW)
    certified(external02)
    certified(external01)
    assert ordering.orders_for(external01, now=NOW + timedelta(days=100)) == first


def test_a_renewal_takes_nothing_back(external01: Machine) -> None:
    certified(external01)
    certified(external01)
    assert revoked(external01) == set()


def test_registering_again_takes_the_former_certificates_back_and_all_machines_are_told(
    external01: Machine, external02: Machine, admin: User
) -> None:
    joined(external01, admin)
    mine, renewed, theirs = serial(certified(external01)), serial(certified(external01)), serial(certified(external02))
    before = {machine.name: machine.orders_version for machine in Machine.objects.all()}
    joined(external01, admin)
    assert revoked(external02) == {mine, renewed}
    assert theirs not in revoked(external01)
    assert all(machine.orders_version > before[machine.name] for machine in Machine.objects.all())
    assert serial(certified(external01)) not in revoked(external02), "the new agent's is good"


def test_who_holds_the_former_credential_gets_no_certificate_though_the_call_was_let_in_before(external01: Machine, admin: User) -> None:
    """A stolen machine asks again and again while another one is registered in its place."""
    joined(external01, admin)
    stolen = Machine.objects.get(pk=external01.pk)
    certified(external01)
    joined(external01, admin)
    _, request = make_request("external01")
    with pytest.raises(NotAllowed, match="was registered anew, or the machine removed: this one gets no certificate any more"):
        joining.certify(stolen, protocol.CertificateRequest(request=request), now=NOW)
    assert not MachineCertificate.objects.filter(revoked_at=None).exists()
    certified(external01)
    assert MachineCertificate.objects.filter(revoked_at=None).count() == 1


def test_a_renewed_authority_makes_no_news_of_what_was_taken_back_long_ago(external01: Machine, external02: Machine, admin: User) -> None:
    """Routers restart for connections of certificates that were taken back of late; renewing the authority restarts none."""
    joined(external01, admin)
    certified(external01)
    assert authority.revoke(external01, because="its agent was registered anew", now=NOW)
    assert trust_of(external02).taken_back == ["external01"]
    fleet.renew_authority(external01.environment, now=NOW + timedelta(hours=3))
    assert trust_of(external02).taken_back == ["external01"], "not all may have heard of it yet"
    for machine in Machine.objects.exclude(joined_at=None):
        certified(machine)
    fleet.retire_authority(external01.environment, now=NOW + timedelta(hours=4))
    fleet.renew_authority(external01.environment, now=NOW + timedelta(days=60))
    assert trust_of(external02).taken_back == []
    assert len(revoked(external02)) == 1, "it stays taken back"


def test_a_removed_machines_certificate_is_taken_back(group: FailoverGroup, external02: Machine, core01: Machine, developer: User) -> None:
    gone, stays = serial(certified(core01)), serial(certified(external02))
    project = group.environment.project
    project.designed_machines.filter(name="core01").delete()
    architecture.apply(group.environment, seen=None, by=developer)
    assert not Machine.objects.filter(pk=core01.pk).exists()
    assert revoked(external02) == {gone}
    assert stays not in revoked(external02)
    row = MachineCertificate.objects.get(serial=f"{gone:x}")
    assert (row.machine, row.name, row.revoked_because) == (None, "core01", "its machine was removed")


def test_an_expired_certificate_leaves_list_and_database(external01: Machine, admin: User) -> None:
    joined(external01, admin)
    certified(external01)
    joined(external01, admin)
    assert len(revoked(external01)) == 1
    later = NOW + timedelta(days=368)
    _, request = make_request("external01")
    external01.refresh_from_db()
    joining.certify(external01, protocol.CertificateRequest(request=request), now=later)
    assert MachineCertificate.objects.count() == 1
    authority.revoke(external01, because="a test", now=later)
    assert len(revoked(external01)) == 1


def test_the_private_key_is_encrypted_under_the_secret_key(external01: Machine, settings: Any) -> None:
    certified(external01)
    row = CertificateAuthority.objects.get()
    assert "PRIVATE" not in row.encrypted_key
    key = serialization.load_pem_private_key(authority._key(row), password=None)
    assert key.public_key() == x509.load_pem_x509_certificate(row.certificate.encode()).public_key()
    former = settings.SECRET_KEY
    settings.SECRET_KEY = "another"
    with pytest.raises(NotAllowed, match="another BATON_SECRET_KEY"):
        certified(external01)
    with pytest.raises(InvalidToken):
        authority._cipher().decrypt(row.encrypted_key.encode())
    settings.SECRET_KEY_FALLBACKS = [former]
    certified(external01)


def test_what_is_no_request_is_refused_by_name(external01: Machine) -> None:
    with pytest.raises(Invalid, match="no certificate signing request") as refusal:
        joining.certify(external01, protocol.CertificateRequest(request="please"), now=NOW)
    assert refusal.value.field == "request"


def test_only_a_machines_credential_gets_one(external01: Machine, admin: User) -> None:
    _, request = make_request("external02")
    body = protocol.encode(protocol.CertificateRequest(request=request))

    def ask(**headers: str) -> Any:
        return Client(headers=headers).post("/agent/v1/certificate/", body, content_type="application/json")

    assert ask().status_code == 401
    assert ask(Authorization="Bearer guess").status_code == 401
    former = joined(external01, admin)
    credential = joined(external01, admin)
    assert ask(Authorization=f"Bearer {former}").status_code == 401
    answer = ask(Authorization=f"Bearer {credential}")
    assert answer.status_code == 200
    given = protocol.decode(protocol.CertificateAnswer, answer.content)
    subject = x509.load_pem_x509_certificate(given.certificate.encode()).subject.rfc4514_string()
    assert subject == "CN=external01", "whatever name the request bears"


def test_routers_made_before_encryption_are_refused_with_the_remedy(group: FailoverGroup) -> None:
    members = {"external01": "http://10.0.0.1:7400", "external02": "http://10.0.0.2:7400", "core01": "http://10.0.0.3:7400"}
    Router.objects.update(desired_running=True, desired_members=members, cluster_known=True)
    with pytest.raises(NotAllowed, match=r"before their traffic was encrypted.*begin anew"):
        fleet.assign_routers(group.environment, {name: (f"10.0.0.{number}", 7400) for number, name in enumerate(members, 1)})


# ------------------------------------------------------------------------------------------------------ the authority is renewed


def trust_of(machine: Machine) -> protocol.Trust:
    trust = ordering.orders_for(machine, now=NOW).trust
    assert trust is not None
    return trust


def test_renewing_the_authority_trusts_both_and_its_certificates_are_good_for_whoever_knows_the_former_only(
    external01: Machine, external02: Machine, admin: User
) -> None:
    joined(external01, admin), joined(external02, admin)
    former = certified(external01)
    certified(external02)
    taken = certified(external02)
    authority.revoke(external02, because="a test", now=NOW)
    known = CertificateAuthority.objects.get()
    before = Machine.objects.get(pk=external01.pk).orders_version

    fleet.renew_authority(external01.environment, now=NOW)

    row = CertificateAuthority.objects.get()
    assert (row.number, row.former) == (2, known.certificate) and row.encrypted_key != known.encrypted_key
    assert Machine.objects.get(pk=external01.pk).orders_version > before
    assert trust_of(external01).authority == row.certificate + known.certificate
    assert serial(taken) in revoked(external01), "what was taken back stays so"
    assert why_renew(held_of(former), trust_of(external01), frozenset(), NOW) == "its environment has another authority"

    private, request = make_request("external01")
    answer = joining.certify(Machine.objects.get(pk=external01.pk), protocol.CertificateRequest(request=request), now=NOW)
    held = read_certificate(private + answer.certificate.encode(), answer.authority)
    assert why_renew(held, trust_of(external01), frozenset(), NOW) == "", "one renewal, not one after the other"
    own, bridge = x509.load_pem_x509_certificates(answer.certificate.encode())
    new, old = x509.load_pem_x509_certificates(answer.authority.encode())
    own.verify_directly_issued_by(new)
    own.verify_directly_issued_by(bridge)
    bridge.verify_directly_issued_by(old)


def held_of(answer: protocol.CertificateAnswer) -> Held:
    pem = x509.load_pem_x509_certificate(answer.certificate.encode())
    names = frozenset({"external01", "localhost", "127.0.0.1"})
    return Held(names, pem.serial_number, pem.not_valid_before_utc, pem.not_valid_after_utc, answer.authority)


def test_the_former_authority_is_retired_when_every_machine_has_a_certificate_of_the_new(
    external01: Machine, external02: Machine, core01: Machine, admin: User
) -> None:
    for machine in (external01, external02, core01):
        joined(machine, admin)
        certified(machine)
    environment = external01.environment
    with pytest.raises(NotAllowed, match="no former authority"):
        fleet.retire_authority(environment, now=NOW)
    fleet.renew_authority(environment, now=NOW)
    with pytest.raises(NotAllowed, match="retire the former one first"):
        fleet.renew_authority(environment, now=NOW)
    certified(external01)
    with pytest.raises(NotAllowed, match="core01 and external02 have no certificate of the new authority yet: start the agent there"):
        fleet.retire_authority(environment, now=NOW)
    certified(core01)
    assert authority.standings_due([environment], now=NOW) == {}
    certified(external02)
    assert "retire the former one" in authority.standings_due([environment], now=NOW)[environment.pk]
    fleet.retire_authority(environment, now=NOW)
    row = CertificateAuthority.objects.get()
    assert trust_of(external01).authority == row.certificate
    assert x509.load_pem_x509_certificates(certified(external01).certificate.encode())[1:], "routers may yet have to restart"


def test_the_next_renewal_waits_for_routers_that_still_trust_the_authority_before(external01: Machine, routers_addressed: None) -> None:
    certified(external01)
    first = CertificateAuthority.objects.get().certificate
    fleet.renew_authority(external01.environment, now=NOW)
    for machine in Machine.objects.exclude(joined_at=None):
        certified(machine)
    fleet.retire_authority(external01.environment, now=NOW)
    Router.objects.filter(machine=external01).update(observed_trusts=[hashlib.sha256(first.encode()).hexdigest()])
    found = authority.standing(external01.environment, now=NOW)
    assert found is not None and found.reads_former == ["external01"]
    with pytest.raises(NotAllowed, match="router on external01 still trusts the authority before"):
        fleet.renew_authority(external01.environment, now=NOW)


def test_a_renewal_is_told_two_years_before_the_authority_ends(external01: Machine) -> None:
    certified(external01)
    environment = external01.environment
    assert authority.standings_due([environment], now=NOW + timedelta(days=17 * 365)) == {}
    late = authority.standings_due([environment], now=NOW + timedelta(days=18 * 365 + 30))
    assert "renew it" in late[environment.pk]


def test_certificates_that_are_not_renewed_are_told_months_before_they_end(external01: Machine, routers_addressed: None) -> None:
    """Its agent is stopped, or the portal refuses: etcd would run on until the last day, and then all routers would part at once."""
    environment = external01.environment
    Machine.objects.filter(environment=environment).update(joined_at=NOW)
    for machine in Machine.objects.filter(environment=environment):
        certified(machine)
    due = NOW + timedelta(days=243)
    assert authority.standings_due([environment], now=due) == {}, "it is asked for these days"
    for machine in Machine.objects.filter(environment=environment).exclude(pk=external01.pk):
        _, request = make_request(machine.name)
        joining.certify(machine, protocol.CertificateRequest(request=request), now=due)
    told = authority.standings_due([environment], now=due + timedelta(days=7))[environment.pk]
    assert told.startswith(f"The certificate of external01 (ends on {NOW + timedelta(days=365):%Y-%m-%d}) is not renewed: see the log of")
    found = authority.standing(environment, now=due + timedelta(days=7))
    assert found is not None and found.due == told
    assert "external01 (ended on" in authority.standings_due([environment], now=NOW + timedelta(days=366))[environment.pk]


def test_an_authority_that_cannot_sign_is_told_at_once(external01: Machine, settings: Any) -> None:
    certified(external01)
    environment = external01.environment
    assert authority.standings_due([environment], now=NOW) == {}
    settings.SECRET_KEY = "another secret key of a portal that was set up anew"
    told = authority.standings_due([environment], now=NOW)[environment.pk]
    assert "cannot sign: its key was encrypted under another BATON_SECRET_KEY" in told
    assert told.endswith("Until then no certificate is renewed.")


def test_an_authority_whose_key_is_lost_is_replaced(external01: Machine, external02: Machine, admin: User, settings: Any) -> None:
    """Else no machine could be registered, removed or certified any more, until everything has ended."""
    joined(external01, admin)
    taken = serial(certified(external01))
    authority.revoke(external01, because="a test", now=NOW)
    where = (external01.environment.project.slug, external01.environment.kind)
    with pytest.raises(CommandError, match="can sign: renew it instead, which restarts nothing"):
        call_command("renew_authority", *where, "--replace")
    settings.SECRET_KEY = "another secret key of a portal that was set up anew"
    with pytest.raises(NotAllowed, match="where that is lost, replace the authority"):
        certified(external02)
    out = StringIO()
    call_command("renew_authority", *where, "--replace", stdout=out)
    assert "external01 has no certificate of it yet" in out.getvalue() and "end the process etcd on all machines" in out.getvalue()
    private, request = make_request("external02")
    answer = joining.certify(Machine.objects.get(pk=external02.pk), protocol.CertificateRequest(request=request), now=NOW)
    assert read_certificate(private + answer.certificate.encode(), answer.authority).authority == trust_of(external01).authority
    assert len(x509.load_pem_x509_certificates(answer.authority.encode())) == 1, "the lost one is trusted no more"
    assert revoked(external02) == {taken}, "a router that has not restarted yet refuses it as before"
    assert authority.standings_due([external01.environment], now=NOW) == {}


def test_an_authority_that_may_certify_machines_only_is_replaced(external01: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that an earlier version of Baton made."""
    certified(external01)

    def refuses(former: str, key: bytes, successor: str, now: datetime) -> str:
        raise certificates.CannotBridge("it was made by an earlier version of Baton and may certify machines only")

    monkeypatch.setattr(certificates, "bridge", refuses)
    with pytest.raises(NotAllowed, match=r"may certify machines only\. It can be replaced, and every router has"):
        fleet.renew_authority(external01.environment, now=NOW)
    fleet.replace_authority(external01.environment, now=NOW)
    monkeypatch.undo()
    fleet.renew_authority(external01.environment, now=NOW)
    assert CertificateAuthority.objects.get().number == 3


def test_no_certificate_outlives_its_authority(external01: Machine) -> None:
    certified(external01)
    _, request = make_request("external01")
    late = NOW + timedelta(days=19 * 365 + 200)
    answer = joining.certify(external01, protocol.CertificateRequest(request=request), now=late)
    end = x509.load_pem_x509_certificate(answer.certificate.encode()).not_valid_after_utc
    assert end == x509.load_pem_x509_certificate(answer.authority.encode()).not_valid_after_utc


def test_an_authority_is_renewed_and_retired_by_command(external01: Machine, admin: User) -> None:
    joined(external01, admin)
    certified(external01)
    where = (external01.environment.project.slug, external01.environment.kind)

    def said(*arguments: str) -> str:
        out = StringIO()
        call_command("renew_authority", *where, *arguments, stdout=out)
        return out.getvalue()

    assert "Authority 1 ends on" in said("--show")
    assert "external01 has no certificate of the new one yet" in said()
    with pytest.raises(CommandError, match="retire the former one first"):
        said()
    for machine in Machine.objects.exclude(joined_at=None):
        certified(machine)
    assert said("--retire").startswith("Authority 2 ends on")
    with pytest.raises(CommandError, match="no environment nowhere"):
        call_command("renew_authority", where[0], "nowhere")
