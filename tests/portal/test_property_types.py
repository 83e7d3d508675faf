"""What a value has to be: tables of each type, guesses from settings, and declaring a type."""

import pytest
from django.contrib.auth.models import User

from portal import properties, property_types
from portal.errors import Invalid, NotAllowed
from portal.models import Connector, Environment, Flow, Property, PropertyKind, PropertyType

GOOD = {
    "text": ["", "a b", " x ", "${not} replaced"],
    "number": ["0", "250", "-3", " 7 "],
    "decimal": ["0.5", "12", "-1.25"],
    "port": ["1", "443", "65535"],
    "ip": ["10.0.0.11", "fd00::11", "127.0.0.1"],
    "host": ["erp.example.com", "external01", "10.0.0.11", "erp_db.lan", "xn--caf-dma.example"],
    "url": [
        "https://erp.example.com/api?a=b",
        "redis://:pass%40word@10.0.0.5:6379/0",
        "sftp://[fd00::11]:22/in",
        "file:///srv/in",
        "unix:///run/s",
    ],
    "cron": [
        "* * * * *",
        "*/5 0-6 1,15 * mon-fri",
        "30 2 * jan,jul 0",
        "0 0 31 12 7",
        "10-50/10 * * * *",
        "0 0 31 2 mon",
        "0 0 29 2 *",
        "0 0 31 */2 *",
    ],
    "file": ["/srv/erp/outbox", "/srv/with blank/x"],
    "secret": ["anything at all"],
}
BAD = {
    "number": ["", "1.5", "07", "1e3", "٣", "1 000", "--1"],
    "decimal": ["", ".5", "1,5", "nan", "1e3"],
    "port": ["", "0", "65536", "-1", "02380", "http", "8080 tcp"],
    "ip": ["", "10.0.0", "300.1.1.1", "external01", "10.0.0.1/24", "0.0.0.0", "224.0.0.1"],
    "host": ["", "-x.lan", "a b", "http://x", "10.0.0.256", "x..y", "a" * 64],
    "url": ["", "erp.example.com", "https://", "https:///path", "http://a b/", "http://host:99999/", "http://[::1/", "://x", "http://-x/"],
    "cron": [
        "",
        "* * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "*/0 * * * *",
        "5/2 * * * *",
        "9-3 * * * *",
        "@daily",
        "a * * * *",
        "0 0 31 2 *",
        "0 0 30-31 feb *",
        "0 0 31 4,6,9,11 *",
    ],
    "file": ["", "outbox", "../x", "/srv/../etc", "C:\\x", "/a\nb"],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in GOOD.items() for value in values])
def test_a_right_value_passes(kind: str, value: str) -> None:
    assert property_types.checked(kind, value, key="k") == (value if kind in ("text", "secret") else value.strip())
    assert kind in ("text", "secret") or property_types.fault(kind, value) == ""


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in BAD.items() for value in values])
def test_a_wrong_value_is_refused_with_the_remedy(kind: str, value: str) -> None:
    with pytest.raises(Invalid) as refusal:
        property_types.checked(kind, value, key="some.key")
    assert refusal.value.field == "value"
    assert refusal.value.sentence.endswith(f"{property_types.REMEDIES[PropertyKind(kind)]} for some.key.")
    assert property_types.fault(kind, value)


def test_a_wrong_secret_is_not_repeated_in_its_refusal() -> None:
    with pytest.raises(Invalid) as refusal:
        property_types.checked("url", "hunter2", key="queues.url", hidden=True)
    assert "hunter2" not in refusal.value.sentence


def test_every_type_but_text_and_secret_has_a_remedy_and_cases() -> None:
    checked = set(PropertyKind) - {PropertyKind.TEXT, PropertyKind.SECRET}
    assert set(property_types.REMEDIES) == checked
    assert set(BAD) == {str(kind) for kind in checked}


# --------------------------------------------------------------------------------------------------------------- guessed


def flow(name: str, url: str = "", folder: str = "", error_folder: str = "") -> tuple[str, dict[str, object]]:
    settings = {key: value for key, value in (("folder", folder), ("error_folder", error_folder)) if value}
    return name, {
        "inbound": {"kind": "file", "settings": settings},
        "outbound": {"kind": "queue", "settings": {"url": url, "queue": "q"}},
    }


@pytest.mark.parametrize(
    ("definitions", "key", "kind", "empty"),
    [
        pytest.param([flow("a", url="${q.url}")], "q.url", "url", False, id="a URL"),
        pytest.param([flow("a", folder="${ in }")], "in", "file", False, id="a folder"),
        pytest.param([flow("a", error_folder="${err}")], "err", "file", True, id="an optional setting may be empty"),
        pytest.param([flow("a", error_folder="${x}"), flow("b", folder="${x}")], "x", "file", False, id="not where another needs it"),
        pytest.param([flow("a", url="redis://${host}:1/0")], "host", None, True, id="a part of a setting says nothing"),
        pytest.param([flow("a", url="${x}", folder="${x}")], "x", "text", False, id="settings that disagree say nothing"),
    ],
)
def test_a_type_is_guessed_from_the_setting(definitions: list, key: str, kind: str | None, empty: bool) -> None:
    guess = properties.guessed(definitions).get(key)
    if kind is None:
        assert guess is None
    else:
        assert guess is not None
        assert (guess.kind, guess.may_be_empty, guess.declared) == (kind, empty, False)


def test_a_guessed_type_is_checked_and_says_why_and_what_to_do(test_environment: Environment, erp: Connector, developer: User) -> None:
    with pytest.raises(Invalid) as refusal:
        properties.set_value(test_environment, "queues.url", "somewhere", by=developer)
    assert "as flow erp-orders, Server of the outbound expects it; or declare another type for queues.url" in refusal.value.sentence
    properties.declare_type(test_environment.project, "queues.url", "text", by=developer)
    properties.set_value(test_environment, "queues.url", "somewhere", by=developer)


# -------------------------------------------------------------------------------------------------------------- declared


def test_a_declared_type_is_checked_in_every_environment(test_environment: Environment, acceptance: Environment, developer: User) -> None:
    properties.declare_type(test_environment.project, "retries", "number", by=developer)
    for environment in (test_environment, acceptance):
        with pytest.raises(Invalid, match="is no whole number"):
            properties.set_value(environment, "retries", "often", by=developer)
        assert properties.set_value(environment, "retries", " 3 ", by=developer).value == "3"


def test_a_type_that_present_values_are_not_of_is_refused_listing_them(
    test_environment: Environment, acceptance: Environment, erp: Connector, developer: User, operator: User
) -> None:
    properties.set_value(test_environment, "timer", "often", by=developer)
    properties.set_value(acceptance, "timer", "5", machine="external01", by=developer)
    properties.set_value(acceptance, "timer", "hunter2", secret=True, by=developer)
    with pytest.raises(Invalid) as refusal:
        properties.declare_type(test_environment.project, "timer", "number", by=operator)
    assert refusal.value.reasons == [
        'Test, global: "often" is no whole number.',
        "Acceptance, global: the secret is not of type Whole number.",
    ]
    assert "hunter2" not in refusal.value.sentence
    assert not PropertyType.objects.exists()


def test_the_type_of_a_routers_address_is_fixed(test_environment: Environment, developer: User) -> None:
    with pytest.raises(Invalid, match="always of type Port"):
        properties.declare_type(test_environment.project, "external01.failover.port", "text", by=developer)


def test_a_key_that_becomes_secret_is_sealed_with_its_history(test_environment: Environment, developer: User) -> None:
    properties.set_value(test_environment, "erp.password", "former1", by=developer)
    properties.set_value(test_environment, "erp.password", "hunter2", by=developer)
    properties.declare_type(test_environment.project, "erp.password", "secret", by=developer)
    row = Property.objects.get()
    assert (row.secret, row.value, row.reveal()) == (True, "", "hunter2")
    for change in test_environment.property_changes.all():
        assert "hunter2" not in f"{change.before}{change.after}"
        assert "former1" not in f"{change.before}{change.after}"


def test_no_refusal_tells_anything_of_a_secret(test_environment: Environment, developer: User, operator: User) -> None:
    project, words = test_environment.project, "correct horse battery staple foo"
    production = project.environments.get(kind="production")
    properties.set_value(production, "db.password", words, secret=True, by=operator)
    for kind in ("cron", "number", "port", "ip", "host", "url", "file"):
        for value in (words, "correct horse", "12"):  # right or wrong, one answer
            properties.set_value(production, "db.password", value, by=operator)
            with pytest.raises(NotAllowed, match=r"has a secret on Production.*held against.*needs the role operator"):
                properties.declare_type(project, "db.password", kind, by=developer)
    properties.set_value(production, "db.password", words, by=operator)
    with pytest.raises(Invalid) as refusal:
        properties.declare_type(project, "db.password", "cron", by=operator)
    assert refusal.value.reasons == ["Production, global: the secret is not of type Cron."]
    properties.declare_type(project, "timer", "cron", by=developer)
    with pytest.raises(Invalid) as refusal:
        properties.set_value(test_environment, "timer", words, secret=True, by=developer)
    assert "correct" not in refusal.value.sentence and "five fields" in refusal.value.sentence


def test_a_key_that_becomes_secret_is_hidden_in_the_history_though_its_value_was_deleted(
    test_environment: Environment, developer: User
) -> None:
    properties.set_value(test_environment, "erp.password", "hunter2", by=developer)
    properties.remove_value(test_environment, "erp.password", by=developer)
    properties.declare_type(test_environment.project, "erp.password", "secret", by=developer)
    assert [(change.before, change.after) for change in test_environment.property_changes.all()] == [("", None), (None, "")]


def test_a_key_becomes_secret_only_by_who_may_change_its_values_everywhere(
    test_environment: Environment, developer: User, operator: User
) -> None:
    project = test_environment.project
    production = project.environments.get(kind="production")
    properties.set_value(production, "erp.password", "hunter2", by=operator)
    with pytest.raises(NotAllowed, match=r"readable value on Production.*needs the role operator"):
        properties.declare_type(project, "erp.password", "secret", by=developer)
    assert (Property.objects.get().value, PropertyType.objects.count(), production.property_changes.count()) == ("hunter2", 0, 1)
    properties.declare_type(project, "erp.password", "text", by=developer)  # rewrites nothing
    properties.declare_type(project, "erp.password", "secret", by=operator)
    assert Property.objects.get().secret
    properties.declare_type(project, "erp.password", "text", by=developer)
    properties.declare_type(project, "erp.password", "secret", by=developer)  # sealed already: nothing to rewrite


def test_taking_a_declaration_back_lets_the_guess_apply_again(test_environment: Environment, erp: Connector, developer: User) -> None:
    properties.declare_type(test_environment.project, "queues.url", "text", by=developer)
    properties.declare_type(test_environment.project, "queues.url", "", by=developer)
    assert Flow.objects.exists()
    assert properties.expectations(test_environment.project_id)["queues.url"].kind == "url"
