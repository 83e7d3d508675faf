"""Many values at once, all or nothing; history; undo."""

import pytest
from django.contrib.auth.models import User
from pytest_django import DjangoAssertNumQueries

from portal import properties
from portal.errors import Invalid, NotAllowed
from portal.models import Connector, Environment, Property, PropertyChange
from portal.properties import Edit


def values(environment: Environment) -> dict[str, str]:
    return {f"{row.key} {row.scope}": row.reveal() for row in Property.objects.filter(environment=environment)}


def test_one_wrong_value_keeps_all_others_out(test_environment: Environment, erp: Connector, developer: User) -> None:
    edits = [
        Edit(test_environment, "a", "1"),
        Edit(test_environment, "external01.failover.port", "seventy"),
        Edit(test_environment, "a", "2"),
    ]
    with pytest.raises(Invalid) as refusal:
        properties.set_values(edits, by=developer)
    assert refusal.value.sentence == "Nothing is changed: 2 of 3 values are refused."
    assert [reason.split(":")[0] for reason in refusal.value.reasons] == ["external01.failover.port (Test, global)", "a (Test, global)"]
    assert not Property.objects.exists()
    assert not PropertyChange.objects.exists()


def test_addresses_are_compared_as_they_will_be_after_all_edits(test_environment: Environment, erp: Connector, developer: User) -> None:
    one, two = "external01.failover.internal-ip", "external02.failover.internal-ip"
    ports = [Edit(test_environment, f"external0{number}.failover.port", "2380") for number in (1, 2)]
    properties.set_values([Edit(test_environment, one, "10.0.0.11"), Edit(test_environment, two, "10.0.0.12"), *ports], by=developer)
    properties.set_values([Edit(test_environment, one, "10.0.0.12"), Edit(test_environment, two, "10.0.0.11")], by=developer)  # swapped
    with pytest.raises(Invalid, match="already uses"):
        properties.set_value(test_environment, one, "10.0.0.11", by=developer)


def test_the_history_says_who_and_what_and_of_secrets_only_that(test_environment: Environment, developer: User) -> None:
    properties.set_value(test_environment, "a", "one", by=developer)
    properties.set_value(test_environment, "a", "two", by=developer)
    properties.set_value(test_environment, "a", "two", by=developer)  # no change, no history
    properties.set_value(test_environment, "p", "hunter2", secret=True, by=developer)
    properties.remove_value(test_environment, "p", by=developer)
    told = [(c.key, c.cause, c.before, c.after, c.secret_before or c.secret_after, c.by) for c in PropertyChange.objects.order_by("pk")]
    assert told == [
        ("a", "set", None, "one", False, developer),
        ("a", "set", "one", "two", False, developer),
        ("p", "set", None, "", True, developer),
        ("p", "deleted", "", None, True, developer),
    ]


def test_the_last_act_is_undone_whole_and_undoing_again_does_it_again(test_environment: Environment, developer: User) -> None:
    properties.set_values([Edit(test_environment, "a", "1"), Edit(test_environment, "p", "hunter2", secret=True)], by=developer)
    before = values(test_environment)
    act = [Edit(test_environment, "a", None), Edit(test_environment, "b", "new"), Edit(test_environment, "p", "hunter3")]
    properties.set_values(act, by=developer)
    after = values(test_environment)
    properties.undo_last(test_environment, by=developer)
    assert values(test_environment) == before == {"a global": "1", "p global": "hunter2"}
    properties.undo_last(test_environment, by=developer)
    assert values(test_environment) == after == {"b global": "new", "p global": "hunter3"}


def test_a_former_secret_is_forgotten_at_the_next_change(test_environment: Environment, developer: User) -> None:
    for value in ("hunter1", "hunter2", "hunter3"):
        properties.set_value(test_environment, "p", value, secret=True, by=developer)
    assert PropertyChange.objects.exclude(sealed_before="").count() == 1
    properties.undo_last(test_environment, by=developer)
    assert values(test_environment) == {"p global": "hunter2"}


def test_an_undo_is_refused_when_something_else_came_between(
    test_environment: Environment, acceptance: Environment, developer: User
) -> None:
    with pytest.raises(NotAllowed, match="nothing to undo"):
        properties.undo_last(test_environment, by=developer)
    properties.set_values([Edit(test_environment, "a", "1"), Edit(acceptance, "a", "1")], by=developer)
    last = properties.last_act(test_environment)
    assert last and last.count == 2
    act = last.act
    properties.set_value(acceptance, "a", "2", by=developer)
    with pytest.raises(NotAllowed, match="other environments"):
        properties.undo_last(test_environment, by=developer)
    properties.set_value(test_environment, "a", "3", by=developer)
    with pytest.raises(NotAllowed, match="look at the history again"):
        properties.undo_last(test_environment, by=developer, act=act)


def test_a_key_that_is_secret_elsewhere_is_secret_here(test_environment: Environment, acceptance: Environment, developer: User) -> None:
    properties.set_value(test_environment, "p", "hunter2", secret=True, by=developer)
    assert properties.set_value(acceptance, "p", "hunter3", by=developer).secret
    properties.remove_value(acceptance, "p", by=developer)
    assert properties.set_value(acceptance, "p", "hunter3", secret=False, by=developer).secret, "nobody touched the box"
    assert not properties.set_value(acceptance, "p", "public", secret=False, by=developer).secret, "made readable on purpose, typed anew"
    assert properties.set_value(test_environment, "p", "hunter4", by=developer).secret


def test_an_address_that_others_must_know_is_no_secret(test_environment: Environment, developer: User) -> None:
    with pytest.raises(Invalid, match="cannot be a secret"):
        properties.set_value(test_environment, "external01.failover.port", "2380", secret=True, by=developer)


def test_many_values_need_as_many_queries_as_few(
    test_environment: Environment, developer: User, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_max_num_queries(150):
        properties.set_values([Edit(test_environment, f"key.{number}", "x") for number in range(5000)], by=developer)
    with django_assert_max_num_queries(8):
        assert len(properties.plan([Edit(test_environment, f"key.{number}", "y") for number in range(5000)])) == 5000


def test_what_became_a_secret_is_not_said_to_be_undone(test_environment: Environment, operator: User) -> None:
    properties.set_value(test_environment, "erp.url", "http://erp", by=operator)
    properties.declare_type(test_environment.project, "erp.url", "secret", by=operator)
    with pytest.raises(NotAllowed, match=r"erp\.url was made a secret, and what became one stays one"):
        properties.undo_last(test_environment, by=operator)
