"""Placeholders, scopes, and the values failover needs."""

import pytest
from django.contrib.auth.models import User
from pytest_django import DjangoAssertNumQueries

from portal import properties, property_uses, property_values, router_addresses
from portal.errors import Invalid, NotAllowed
from portal.models import Connector, Environment, Flow, FlowVersion, Property
from portal.placeholders import check_placeholders, placeholders


def row(value: str, *, machine: str = "", connector: str = "", key: str = "erp.outbox") -> Property:
    return Property(key=key, value=value, machine=machine, connector=connector)


GLOBAL = row("global")
CONNECTOR = row("connector", connector="erp")
MACHINE = row("machine", machine="external01")
RUNTIME = row("runtime", machine="external01", connector="erp")


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        pytest.param([RUNTIME, MACHINE, CONNECTOR, GLOBAL], "runtime", id="the runtime's value wins over all others"),
        pytest.param([GLOBAL, CONNECTOR, MACHINE, RUNTIME], "runtime", id="in whatever order the rows come"),
        pytest.param([GLOBAL, CONNECTOR, MACHINE], "machine", id="then the machine's"),
        pytest.param([CONNECTOR, GLOBAL], "connector", id="then the connector's"),
        pytest.param([GLOBAL], "global", id="then the global one"),
        pytest.param(
            [row("elsewhere", machine="external02"), row("other", connector="tills"), GLOBAL], "global", id="others' do not count"
        ),
        pytest.param([GLOBAL, row("", machine="external01")], "", id="an empty value of a present property is a value"),
    ],
)
def test_the_most_specific_scope_wins(rows: list[Property], value: str) -> None:
    found = property_values.resolve({"folder": "${erp.outbox}"}, property_values.Values(rows).winners("external01", "erp"))
    assert (found.settings, found.missing) == ({"folder": value}, set())


def test_a_placeholder_without_a_value_stays_and_is_named() -> None:
    found = property_values.resolve({"url": "redis://${host}:${port}/0"}, property_values.Values([row("h", key="host")]).winners("m", "c"))
    assert found.settings == {"url": "redis://h:${port}/0"}
    assert found.missing == {"port"}


def test_a_value_is_taken_as_it_is() -> None:
    found = property_values.resolve({"password": "${secret}"}, property_values.Values([row("a${b}\\1", key="secret")]).winners("m", "c"))
    assert found.settings == {"password": "a${b}\\1"}


def test_placeholders_are_found_in_texts_lists_and_mappings() -> None:
    assert placeholders({"a": ["x${one}y${two}", {"b": "${ three }"}], "c": "${}"}) == {"one", "two", "three"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("${erp.outbox", "does not end", id="unterminated"),
        pytest.param("${a${b}", "does not end", id="one inside another"),
        pytest.param("${}", "empty placeholder", id="empty"),
        pytest.param("${ }", "empty placeholder", id="blank"),
        pytest.param("${Erp Outbox}", "no valid key", id="a key of forbidden characters"),
    ],
)
def test_what_can_never_be_replaced_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence) as refusal:
        check_placeholders({"folder": text}, field="inbound_settings")
    assert refusal.value.field == "inbound_settings"


def test_plain_text_and_good_placeholders_pass() -> None:
    check_placeholders({"folder": "/srv/${erp.outbox}/in", "price": "5 $ {x}", "empty": ""})


def test_developer_fills_in_a_value_and_changes_it(test_environment: Environment, developer: User) -> None:
    made = properties.set_value(test_environment, "erp.outbox", "/srv/a", by=developer, secret=True)
    changed = properties.set_value(test_environment, "erp.outbox", "/srv/b", by=developer)
    assert changed.pk == made.pk
    assert (changed.reveal(), changed.value, changed.secret, changed.updated_by) == ("/srv/b", "", True, developer)
    assert changed.updated_at > made.updated_at


def test_a_bad_key_is_refused_naming_the_field(test_environment: Environment, developer: User) -> None:
    with pytest.raises(Invalid, match="lower-case") as refusal:
        properties.set_value(test_environment, "ERP outbox", "x", by=developer)
    assert refusal.value.field == "key"


def test_removing_a_value_lets_the_less_specific_one_apply_again(test_environment: Environment, erp: Connector, developer: User) -> None:
    properties.set_value(test_environment, "k", "all", by=developer)
    properties.set_value(test_environment, "k", "one", machine="external01", by=developer)
    assert properties.remove_value(test_environment, "k", machine="external01")
    assert not properties.remove_value(test_environment, "k", machine="external01")
    assert property_values.Values(Property.objects.all()).winners("external01", "erp")["k"].reveal() == "all"


@pytest.mark.parametrize("value", ["10.0.0.11", "fd00::11", "external01.lan", "external01"])
def test_an_internal_ip_may_be_an_address_or_a_host_name(test_environment: Environment, developer: User, value: str) -> None:
    properties.set_value(test_environment, "external01.failover.internal-ip", f" {value} ", by=developer)
    assert router_addresses.failover_address("external01", Property.objects.all()) == (value, None)


@pytest.mark.parametrize(
    "value", ["", "300.1.1.1", "10.0.0", "a b", "-x.lan", "http://external01", "0.0.0.0", "224.0.0.1", "10.0.0.1:2380"]
)
def test_a_wrong_internal_ip_is_refused(test_environment: Environment, developer: User, value: str) -> None:
    with pytest.raises(Invalid, match=r"fill in an IP address.* for external01.failover.internal-ip") as refusal:
        properties.set_value(test_environment, "external01.failover.internal-ip", value, by=developer)
    assert refusal.value.field == "value"


@pytest.mark.parametrize("value", ["", "0", "65536", "-1", "2380.0", "abc", "٣", "02380"])
def test_a_wrong_port_is_refused(test_environment: Environment, developer: User, value: str) -> None:
    with pytest.raises(Invalid, match="from 1 to 65535 for external01"):
        properties.set_value(test_environment, "external01.failover.port", value, by=developer)


def test_the_same_address_and_port_for_another_machine_is_refused(test_environment: Environment, developer: User) -> None:
    router_addresses.mark_one_host(test_environment, True, by=developer)
    for machine in ("external01", "external02"):
        properties.set_value(test_environment, f"{machine}.failover.internal-ip", "127.0.0.1", by=developer)
    properties.set_value(test_environment, "external01.failover.port", "2380", by=developer)
    with pytest.raises(Invalid) as refusal:
        properties.set_value(test_environment, "external02.failover.port", "2380", by=developer)
    assert refusal.value.sentence == (
        "external01 already uses 127.0.0.1:2380 (external01.failover.internal-ip and external01.failover.port): "
        "give external02 another address or port (external02.failover.internal-ip or external02.failover.port)."
    )
    properties.set_value(test_environment, "external02.failover.port", "2381", by=developer)


def test_a_duplicate_is_seen_from_the_address_side_too(test_environment: Environment, developer: User) -> None:
    for machine in ("external01", "external02"):
        properties.set_value(test_environment, f"{machine}.failover.port", "2380", by=developer)
    properties.set_value(test_environment, "external01.failover.internal-ip", "External.lan", by=developer)
    with pytest.raises(Invalid, match="external01 already uses"):
        properties.set_value(test_environment, "external02.failover.internal-ip", "external.LAN", by=developer)


def test_one_environment_does_not_hinder_another(test_environment: Environment, acceptance: Environment, developer: User) -> None:
    for environment, machine in ((test_environment, "external01"), (acceptance, "external02")):
        properties.set_value(environment, f"{machine}.failover.internal-ip", "10.0.0.11", by=developer)
        properties.set_value(environment, f"{machine}.failover.port", "2380", by=developer)


@pytest.mark.parametrize("loopback", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_beside_a_real_address_is_refused_also_on_one_host(test_environment: Environment, developer: User, loopback: str) -> None:
    router_addresses.mark_one_host(test_environment, True, by=developer)
    properties.set_value(test_environment, "external01.failover.internal-ip", "10.0.0.11", by=developer)
    with pytest.raises(Invalid, match="reachable only from external02 itself, but external01 uses another network"):
        properties.set_value(test_environment, "external02.failover.internal-ip", loopback, by=developer)


def test_the_way_from_loopback_to_real_addresses_is_open(test_environment: Environment, developer: User) -> None:
    router_addresses.mark_one_host(test_environment, True, by=developer)
    for machine in ("external01", "external02", "core01"):
        properties.set_value(test_environment, f"{machine}.failover.internal-ip", "127.0.0.1", by=developer)
    for number, machine in enumerate(("external01", "external02", "core01")):
        properties.set_value(test_environment, f"{machine}.failover.internal-ip", f"10.0.0.{number + 1}", by=developer)


def test_what_slipped_in_is_found_before_routers_are_deployed() -> None:
    local = {"a": ("127.0.0.1", "1"), "b": ("127.0.0.1", "2"), "c": ("localhost", None)}
    assert router_addresses.address_conflicts(local, one_host=True) == []
    assert len(router_addresses.address_conflicts(local, one_host=False)) == 3
    assert router_addresses.address_conflicts({"a": ("10.0.0.1", "1"), "b": ("10.0.0.2", "1")}, one_host=False) == []
    (shared,) = router_addresses.address_conflicts({"a": ("10.0.0.1", "1"), "b": ("10.0.0.1", "2")}, one_host=False)
    assert shared.startswith("a already uses 10.0.0.1 (a.failover.internal-ip): give b its own address.")
    mixed, double = router_addresses.address_conflicts(
        {"a": ("127.0.0.1", "1"), "b": ("10.0.0.1", "7"), "c": ("10.0.0.1", "7")}, one_host=True
    )
    assert mixed.startswith("127.0.0.1 is reachable only from a itself, but b, c use another network")
    assert double.startswith("b already uses 10.0.0.1:7")


def test_expected_keys_are_known_before_any_value_exists(
    test_environment: Environment, erp: Connector, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(3):
        routers = {use.key: use.used_by for use in property_uses.drawn_routers(test_environment.project_id)}
        mentions = property_uses.Mentions(test_environment.project_id)
        assert mentions.used_by({"erp.outbox", "nobody"}) == {"erp.outbox": ["flow erp-orders, Folder of the inbound"], "nobody": []}
    assert routers["external01.failover.internal-ip"] == "router on external01, Internal IP"
    assert routers["core01.failover.port"] == "witness on core01, Failover port"
    assert set(routers) == {f"{m}.failover.{k}" for m in ("core01", "external01", "external02") for k in ("internal-ip", "port")}
    assert set(mentions.keys) == {"erp.outbox", "queues.url", "queues.prefix"}


def test_a_key_is_seen_in_the_text_of_a_definition_however_it_is_written(test_environment: Environment, erp: Connector) -> None:
    Flow.objects.update(inbound_settings={"folder": 'é"${ blanks }\\/${\tab.key\n}', "error_folder": "${} ${open"})
    mentions = property_uses.Mentions(test_environment.project_id)
    assert {"blanks", "ab.key"} <= set(mentions.keys)
    assert "" not in mentions.keys
    assert mentions.used_by(["ab.key"]) == {"ab.key": ["flow erp-orders, Folder of the inbound"]}


def test_a_key_of_the_last_saved_version_is_expected_though_the_flow_moved_on(
    test_environment: Environment, erp: Connector, developer: User, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    flow = Flow.objects.get()
    for minor in range(3):
        definition = flow.definition() | {"inbound": {"kind": "file", "settings": {"folder": f"${{folder-{minor}}}"}}}
        FlowVersion.objects.create(flow=flow, major=1, minor=minor, patch=0, definition=definition)
    properties.set_value(test_environment, "folder-0", "x", by=developer)
    with django_assert_num_queries(3):
        drawn = property_uses.drawn_routers(test_environment.project_id)
        keys = set(property_uses.Mentions(test_environment.project_id).keys)
    assert {"erp.outbox", "folder-2"} <= keys
    assert "folder-0" not in keys
    assert len(drawn) == 6


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1", "localhost"])
def test_loopback_is_refused_unless_all_machines_stand_on_one_host_on_purpose(
    test_environment: Environment, developer: User, loopback: str
) -> None:
    with pytest.raises(Invalid, match=r"reachable only from external01 itself.* mark that on the machine.s tab Failover first"):
        properties.set_value(test_environment, "external01.failover.internal-ip", loopback, by=developer)
    router_addresses.mark_one_host(test_environment, True, by=developer)
    properties.set_value(test_environment, "external01.failover.internal-ip", loopback, by=developer)


def test_two_machines_share_an_address_only_on_one_host(test_environment: Environment, developer: User) -> None:
    properties.set_value(test_environment, "external01.failover.internal-ip", "10.0.0.11", by=developer)
    properties.set_value(test_environment, "external01.failover.internal-ip", "10.0.0.11", by=developer)  # itself
    with pytest.raises(Invalid, match=r"external01 already uses 10\.0\.0\.11"):
        properties.set_value(test_environment, "external02.failover.internal-ip", "10.0.0.11", by=developer)
    router_addresses.mark_one_host(test_environment, True, by=developer)
    properties.set_value(test_environment, "external02.failover.internal-ip", "10.0.0.11", by=developer)
    with pytest.raises(NotAllowed, match="The addresses say otherwise"):
        router_addresses.mark_one_host(test_environment, False, by=developer)
    properties.set_value(test_environment, "external02.failover.internal-ip", "10.0.0.12", by=developer)
    router_addresses.mark_one_host(test_environment, False, by=developer)


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param("::ffff:127.0.0.1", id="an IPv4 loopback written as IPv6"),
        pytest.param("LOCALHOST.", id="the name, in capitals and with a dot"),
        pytest.param("127.9.9.9", id="another one of 127.0.0.0/8"),
        pytest.param("0x7f000001", id="hexadecimal, which the resolver takes for 127.0.0.1"),
        pytest.param("localhost.localdomain", id="a name that every hosts file gives to it"),
        pytest.param("ip6-localhost", id="the same, of IPv6"),
    ],
)
def test_loopback_is_refused_however_it_is_written(test_environment: Environment, developer: User, spelling: str) -> None:
    with pytest.raises(Invalid):
        properties.set_value(test_environment, "external01.failover.internal-ip", spelling, by=developer)


def test_two_spellings_of_one_address_are_one_address(test_environment: Environment, developer: User) -> None:
    properties.set_value(test_environment, "external01.failover.internal-ip", "10.0.0.11", by=developer)
    with pytest.raises(Invalid, match="external01 already uses"):
        properties.set_value(test_environment, "external02.failover.internal-ip", "::ffff:10.0.0.11", by=developer)


def test_deleting_a_value_must_not_bring_a_duplicate_address_to_light(
    test_environment: Environment, erp: Connector, developer: User
) -> None:
    key = "external01.failover.internal-ip"
    properties.set_value(test_environment, key, "10.0.0.12", by=developer)
    properties.set_value(test_environment, key, "10.0.0.11", machine="external01", by=developer)
    properties.set_value(test_environment, "external02.failover.internal-ip", "10.0.0.12", by=developer)
    with pytest.raises(Invalid, match=r"external02 already uses 10\.0\.0\.12"):
        properties.remove_value(test_environment, key, machine="external01", by=developer)
    assert properties.remove_value(test_environment, key, by=developer)
    assert properties.remove_value(test_environment, key, machine="external01", by=developer)
