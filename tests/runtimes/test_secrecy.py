"""What a deployment's log shows of secrets: nothing, in whatever spelling a machine prints them."""

import pytest
from django.contrib.auth.models import User
from pytest_django import DjangoAssertNumQueries

from portal import properties
from portal.models import Environment, Property
from runtimes import secrecy

KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----"


@pytest.mark.parametrize(
    ("secret", "line", "shown"),
    [
        pytest.param("hunter2", "login with hunter2 failed", "login with ••• failed", id="as it is"),
        pytest.param(KEY, "hkiG9w0BAQEFAASC", "•••", id="a line of a key, as commands print it"),
        pytest.param(KEY, f"key {KEY!r}", "key '•••'", id="a key in one line, escaped"),
        pytest.param("redis://:p%40ss-word@h:1/0", "connect to h:1 as p@ss-word", "connect to h:1 as •••", id="the password inside a URL"),
        pytest.param("p ss/wörd", "GET /?token=p%20ss%2Fw%C3%B6rd", "GET /?token=•••", id="quoted for a URL"),
        pytest.param('sl\\ash"quote', '{"password": "sl\\\\ash\\"quote"}', '{"password": "•••"}', id="in JSON"),
    ],
)
def test_a_secret_is_masked_however_it_is_spelled(
    test_environment: Environment, developer: User, secret: str, line: str, shown: str
) -> None:
    properties.set_value(test_environment, "erp.secret", secret, secret=True, by=developer)
    assert secrecy.masked(line, secrecy.pattern(test_environment.pk)) == shown


def test_secrets_are_read_once_until_one_changes(
    test_environment: Environment, developer: User, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    def shown() -> str:
        return secrecy.masked("first1 second2 third3", secrecy.pattern(test_environment.pk))

    properties.set_value(test_environment, "a.secret", "first1", secret=True, by=developer)
    assert shown() == "••• second2 third3"
    with django_assert_num_queries(1):
        assert shown() == "••• second2 third3"
    properties.set_value(test_environment, "b.secret", "second2", secret=True, by=developer)
    assert shown() == "••• ••• third3"
    properties.set_value(test_environment, "a.secret", "third3", by=developer)
    assert shown() == "first1 ••• •••"
    properties.remove_value(test_environment, "b.secret", by=developer)
    assert shown() == "first1 second2 •••"
    Property.objects.all().delete()
    assert shown() == "first1 second2 third3"
