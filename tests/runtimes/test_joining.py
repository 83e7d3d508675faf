import secrets
from datetime import timedelta
from threading import Barrier, Thread

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from portal.errors import Invalid
from runtimes import fleet, joining, protocol
from runtimes.models import JoinToken, Machine
from tests.runtimes.conftest import joined, said


def ask(token: str, **more: object) -> protocol.JoinRequest:
    return protocol.JoinRequest(token=token, agent_version="0.1.0", **more)  # type: ignore[arg-type]


def test_an_agent_joins_with_a_token_and_is_known_by_its_credential(external01: Machine, admin: User) -> None:
    answer = joining.join(ask(joining.register(external01, by=admin)), now=timezone.now())
    assert (answer.machine, answer.environment, answer.project) == ("external01", "test", "webshop")
    assert joining.machine_of(answer.credential) == external01


def test_neither_token_nor_credential_is_kept(external01: Machine, admin: User) -> None:
    token = joining.register(external01, by=admin)
    credential = joining.join(ask(token), now=timezone.now()).credential
    external01.refresh_from_db()
    assert token not in str(JoinToken.objects.values_list())
    assert credential != external01.credential_digest
    assert len(external01.credential_digest) == 64


@pytest.mark.parametrize("credential", ["", "wrong", "x" * 64])
def test_nobody_is_known_by_a_wrong_credential(external01: Machine, admin: User, credential: str) -> None:
    joined(external01, admin)
    assert joining.machine_of(credential) is None


def test_a_machine_without_agent_is_not_found_by_an_empty_digest(external01: Machine) -> None:
    assert external01.credential_digest == ""
    assert joining.machine_of("") is None


def test_a_token_works_once(external01: Machine, admin: User) -> None:
    token = joining.register(external01, by=admin)
    joining.join(ask(token), now=timezone.now())
    with pytest.raises(Invalid, match=r"already used.*Register") as refusal:
        joining.join(ask(token), now=timezone.now())
    assert refusal.value.field == "token"


def test_an_agent_whose_answer_got_lost_asks_again_and_nobody_else_can(external01: Machine, admin: User) -> None:
    token = joining.register(external01, by=admin)
    lost = joining.join(ask(token, attempt="mine"), now=timezone.now())
    answer = joining.join(ask(token, attempt="mine"), now=timezone.now())
    assert joining.machine_of(lost.credential) is None
    assert joining.machine_of(answer.credential) == external01
    for attempt in ("theirs", ""):
        with pytest.raises(Invalid, match="already used"):
            joining.join(ask(token, attempt=attempt), now=timezone.now())
    assert joining.machine_of(answer.credential) == external01


def test_two_calls_of_one_agent_at_once_are_one_agent(external01: Machine, admin: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """The portal was slow: the agent gave up waiting and asked again, while its first call was still being answered."""
    token, made = joining.register(external01, by=admin), secrets.token_urlsafe
    first: list[protocol.JoinAnswer] = []

    def meanwhile(length: int) -> str:
        if not first:
            monkeypatch.setattr(joining.secrets, "token_urlsafe", made)
            first.append(joining.join(ask(token, attempt="mine"), now=timezone.now()))
        return made(length)

    monkeypatch.setattr(joining.secrets, "token_urlsafe", meanwhile)
    second = joining.join(ask(token, attempt="mine"), now=timezone.now())
    assert first and joining.machine_of(second.credential) == external01


def test_asking_again_ends_with_the_token_and_with_the_next_agent(external01: Machine, admin: User) -> None:
    token = joining.register(external01, by=admin)
    joining.join(ask(token, attempt="mine"), now=timezone.now())
    with pytest.raises(Invalid, match="expired"):
        joining.join(ask(token, attempt="mine"), now=timezone.now() + timedelta(seconds=3601))
    replaced_by = joining.join(ask(joining.register(external01, by=admin), attempt="another"), now=timezone.now())
    with pytest.raises(Invalid, match="already used"):
        joining.join(ask(token, attempt="mine"), now=timezone.now())
    assert joining.machine_of(replaced_by.credential) == external01


def test_a_token_expires(external01: Machine, admin: User) -> None:
    token = joining.register(external01, by=admin)
    with pytest.raises(Invalid, match="expired"):
        joining.join(ask(token), now=timezone.now() + timedelta(seconds=3601))


def test_a_new_token_ends_the_earlier_one(external01: Machine, admin: User) -> None:
    first, second = joining.register(external01, by=admin), joining.register(external01, by=admin)
    with pytest.raises(Invalid, match="expired"):
        joining.join(ask(first), now=timezone.now())
    assert joining.join(ask(second), now=timezone.now()).machine == "external01"


def test_an_unknown_token_is_refused(external01: Machine) -> None:
    with pytest.raises(Invalid, match="unknown"):
        joining.join(ask("guess"), now=timezone.now())


def test_an_agent_of_another_protocol_is_refused(external01: Machine, admin: User) -> None:
    with pytest.raises(Invalid, match="speaks protocol 1") as refusal:
        joining.join(ask(joining.register(external01, by=admin), protocol_version=2), now=timezone.now())
    assert refusal.value.field == "protocol_version"


def test_a_fresh_agent_replaces_the_earlier_one_and_counts_its_reports_anew(external01: Machine, admin: User) -> None:
    first = joined(external01, admin)
    assert fleet.record_report(external01, said(900), now=timezone.now())
    second = joined(external01, admin)
    assert joining.machine_of(first) is None
    assert joining.machine_of(second) == external01
    assert fleet.record_report(external01, said(1, started_at="2026-11-22T10:00:00Z"), now=timezone.now())


@pytest.mark.django_db(transaction=True)
def test_of_two_agents_with_one_token_one_joins(external01: Machine, admin: User, file_database: None) -> None:
    token = joining.register(external01, by=admin)
    start, credentials, refusals = Barrier(4), [], []

    def race() -> None:
        start.wait()
        try:
            credentials.append(joining.join(ask(token), now=timezone.now()).credential)
        except Invalid as refusal:
            refusals.append(refusal.sentence)
        finally:
            connection.close()

    threads = [Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(credentials) == 1, (credentials, refusals)
    assert len(refusals) == 3
    assert joining.machine_of(credentials[0]) == external01


def test_a_token_can_be_pasted_into_a_command_line(external01: Machine, admin: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.joining.secrets.token_urlsafe", lambda size: "-looks-like-an-option")
    assert not joining.register(external01, by=admin).startswith("-")
