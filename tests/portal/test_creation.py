"""The Create phase: flows and their settings, groups that are picked, versions, and failover taken over from Design."""

import pytest
from django.contrib.auth.models import User

from portal import components, creation, design
from portal.errors import Invalid, NotAllowed
from portal.models import Connector, Flow, FlowVersion, Group, MachineKind, Project
from runtimes.process.connectors import INBOUNDS, OUTBOUNDS

FILE_TO_QUEUE = {
    "inbound_kind": "file",
    "inbound_settings": {"folder": "${erp.outbox}"},
    "outbound_kind": "queue",
    "outbound_settings": {"url": "${queues.url}", "queue": "orders"},
}

TEMPLATE = {"url": "${queues.url}", "queue": "orders", "transform": "{{ text }}"}


@pytest.fixture
def flow(erp: Connector) -> Flow:
    return erp.flows.get()


def settled(project: Project) -> Connector:
    """Tills: failover settled in Design, not yet transferred."""
    connector = design.create_system(project, name="Tills", multiple_runtimes=True, number_of_runtimes=2, failover=True).connectors.get()
    for name in ("external01", "external02"):
        design.place(connector, design.add_machine(project, name=name, kind=MachineKind.EXTERNAL))
    design.add_machine(project, name="core01", kind=MachineKind.CORE)
    creation.save_flow(Flow(connector=connector), name="tills-sales", **FILE_TO_QUEUE)  # type: ignore[arg-type]
    return connector


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"inbound_settings": {}}, "inbound_folder", id="a folder that is missing"),
        pytest.param({"inbound_settings": {"folder": "${erp.outbox"}}, "inbound_folder", id="a placeholder that does not end"),
        pytest.param({"inbound_settings": {"folder": "${ERP Outbox}"}}, "inbound_folder", id="a placeholder that is no key"),
        pytest.param({"inbound_settings": {"folder": "/x", "poll_seconds": "often"}}, "inbound_poll_seconds", id="not a number"),
        pytest.param(
            {"outbound_kind": "log", "outbound_settings": {"transform": "{% if %}"}}, "outbound_transform", id="a template that is none"
        ),
        pytest.param(
            {"outbound_kind": "log", "outbound_settings": {"transform": "{% if text %}{{ text | uper }}{% endif %}"}},
            "outbound_transform",
            id="a template with a filter that is none",
        ),
        pytest.param(
            {"outbound_kind": "log", "outbound_settings": {"transform": "{{ dat.number }}"}},
            "outbound_transform",
            id="a template with a name that nobody gives",
        ),
        pytest.param(
            {"outbound_kind": "http", "outbound_settings": {"url": "http://x", "headers": "Authorization: Bearer Tök3n"}},
            "outbound_headers",
            id="a header that is not ASCII",
        ),
        pytest.param({"inbound_settings": {"folder": "/x\n/y"}}, "inbound_folder", id="two lines where one is meant"),
        pytest.param({"inbound_kind": "command", "inbound_settings": {}}, "inbound_program", id="a command without a program"),
        pytest.param(
            {"inbound_kind": "command", "inbound_settings": {"program": "x", "items": "maybe"}},
            "inbound_items",
            id="a word that is no choice",
        ),
        pytest.param(
            {"inbound_kind": "command", "inbound_settings": {"program": "x", "environment": "A=1\nB"}}, "inbound_environment", id="no value"
        ),
        pytest.param({"inbound_settings": {"folder": "/x", "poll_seconds": "0"}}, "inbound_poll_seconds", id="a poll without a pause"),
        pytest.param({"inbound_settings": {"folder": "/x", "color": "red"}}, "inbound_color", id="an unknown setting"),
        pytest.param({"inbound_kind": "pigeon"}, "inbound_kind", id="an unknown kind"),
        pytest.param({"outbound_settings": {"url": "redis://x"}}, "outbound_queue", id="a queue without a name"),
        pytest.param({"name": "Erp Orders"}, "name", id="a name of forbidden characters"),
        pytest.param({"name": "erp-returns"}, "name", id="a name that is taken"),
    ],
)
def test_a_flow_that_cannot_be_right_is_refused(flow: Flow, change: dict[str, object], field: str) -> None:
    creation.save_flow(Flow(connector=flow.connector), name="erp-returns", **FILE_TO_QUEUE)  # type: ignore[arg-type]
    with pytest.raises(Invalid) as refusal:
        creation.save_flow(flow, **({"name": "erp-orders", **FILE_TO_QUEUE} | change))  # type: ignore[arg-type]
    assert refusal.value.field == field
    assert Flow.objects.get(pk=flow.pk).inbound_settings == {"folder": "${erp.outbox}"}


def test_everything_that_is_wrong_with_a_flow_is_named_at_once(flow: Flow) -> None:
    with pytest.raises(Invalid) as refusal:
        creation.save_flow(
            flow,
            name="Erp Orders",
            inbound_kind="file",
            inbound_settings={"folder": "", "poll_seconds": "often"},
            outbound_kind="queue",
            outbound_settings={"url": "redis://x", "transform": "{% if %}"},
        )
    named = {"name", "inbound_folder", "inbound_poll_seconds", "outbound_queue", "outbound_transform"}
    assert set(refusal.value.faults) == named and len(refusal.value.reasons) == 5
    assert flow.name == "erp-orders"


def test_every_choice_has_a_meaning_when_it_is_left_open() -> None:
    for kinds in components.REGISTRY.values():
        for settings in kinds.values():
            for setting in settings:
                assert not setting.choices or setting.default in dict(setting.choices)


def test_a_version_that_leaves_open_what_the_working_copy_writes_out_is_the_same(flow: Flow, developer: User) -> None:
    flow = creation.save_flow(flow, name="erp-orders", **FILE_TO_QUEUE | {"outbound_settings": TEMPLATE})  # type: ignore[arg-type]
    definition = flow.definition()
    open_choices = {**definition["outbound"]["settings"], "transform_empty": ""}
    del open_choices["transform_from"]
    FlowVersion.objects.create(
        flow=flow, major=1, minor=0, patch=0, definition=definition | {"outbound": {"kind": "queue", "settings": open_choices}}
    )
    flow = Flow.objects.get(pk=flow.pk)
    assert not creation.has_unsaved_changes(flow)
    with pytest.raises(NotAllowed, match="Nothing changed"):
        creation.save_version(flow, "patch", by=developer)
    creation.save_flow(flow, name="erp-orders", **FILE_TO_QUEUE | {"outbound_settings": TEMPLATE | {"transform_empty": "skip"}})  # type: ignore[arg-type]
    assert creation.has_unsaved_changes(Flow.objects.get(pk=flow.pk))


def test_every_kind_on_the_page_is_a_kind_that_runtimes_know_and_the_other_way_round() -> None:
    assert {str(kind) for kind in components.INBOUNDS} == {str(kind) for kind in INBOUNDS}
    assert {str(kind) for kind in components.OUTBOUNDS} == {str(kind) for kind in OUTBOUNDS}


def test_a_command_keeps_its_arguments_line_by_line(flow: Flow) -> None:
    given = {"program": "mosquitto_sub", "arguments": " -h\r\n${tills.host}\r\n", "items": "lines", "environment": "KEY=${tills.key}"}
    creation.save_flow(flow, name="sales", **{**FILE_TO_QUEUE, "inbound_kind": "command", "inbound_settings": given})
    assert flow.inbound_settings["arguments"] == "-h\n${tills.host}"


def test_empty_optional_settings_are_left_out(flow: Flow) -> None:
    creation.save_flow(
        flow,
        name="erp-orders",
        inbound_kind="file",
        inbound_settings={"folder": " /data/in ", "error_folder": "", "poll_seconds": "${erp.poll}"},
        outbound_kind="log",
        outbound_settings={},
    )
    flow.refresh_from_db()
    assert flow.inbound_settings == {"folder": "/data/in", "poll_seconds": "${erp.poll}"}


def test_versions_count_up_and_never_change(flow: Flow, developer: User) -> None:
    numbers = [creation.save_version(flow, "minor", "first", by=developer).number]
    for bump in ("patch", "minor", "patch", "major"):
        creation.save_flow(flow, name="erp-orders", **(FILE_TO_QUEUE | {"inbound_settings": {"folder": f"/in/{len(numbers)}"}}))  # type: ignore[arg-type]
        numbers.append(creation.save_version(flow, bump, by=developer).number)  # type: ignore[arg-type]
    assert numbers == ["1.0.0", "1.0.1", "1.1.0", "1.1.1", "2.0.0"]
    first = flow.versions.get(major=1, minor=0, patch=0)
    assert first.definition["inbound"]["settings"] == {"folder": "${erp.outbox}"}
    assert first.created_by == developer


def test_a_version_without_a_change_is_refused(flow: Flow, developer: User) -> None:
    assert creation.has_unsaved_changes(flow)
    creation.save_version(flow, "minor", by=developer)
    assert not creation.has_unsaved_changes(flow)
    with pytest.raises(NotAllowed, match=r"Nothing changed in erp-orders since version 1\.0\.0"):
        creation.save_version(flow, "major", by=developer)
    creation.pick_group(flow, None)
    assert creation.has_unsaved_changes(Flow.objects.get(pk=flow.pk))


def test_a_group_is_picked_and_named_only_once(flow: Flow) -> None:
    creation.pick_group(flow, None, new_name="night-orders")
    group = Group.objects.get(name="night-orders")
    assert flow.group == group
    other = creation.save_flow(Flow(connector=flow.connector), name="erp-returns", **FILE_TO_QUEUE)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="pick it from the list"):
        creation.pick_group(other, None, new_name="night-orders")
    creation.pick_group(other, group)
    assert group.flows.count() == 2


def test_a_group_of_another_connector_is_refused(webshop: Project, flow: Flow) -> None:
    tills = design.create_system(webshop, name="Tills").connectors.get()
    with pytest.raises(Invalid, match="another connector"):
        creation.pick_group(flow, Group.objects.create(connector=tills, name="sales"))


def test_a_renamed_group_keeps_its_key(flow: Flow) -> None:
    group = flow.group
    assert group
    key = group.key
    creation.rename_group(group, "orders")
    assert Group.objects.get(pk=group.pk).key == key
    with pytest.raises(NotAllowed, match="still holds erp-orders"):
        creation.remove_group(group)


def test_failover_is_transferred_after_it_was_settled(webshop: Project) -> None:
    connector = settled(webshop)
    assert creation.pending_transfers(webshop) == []
    with pytest.raises(NotAllowed, match="Apply settings first"):
        creation.transfer_failover(connector, {})
    design.apply_settings(webshop)
    connector = Connector.objects.get(pk=connector.pk)
    [offer] = creation.pending_transfers(webshop)
    assert [(flow.name, group) for flow, group in offer.flows] == [("tills-sales", "tills-sales")]
    creation.transfer_failover(connector, {"tills-sales": "tills-sales"})
    flow = Flow.objects.select_related("group", "connector").get(name="tills-sales")
    assert flow.connector.failover
    assert flow.group
    assert flow.group.name == "tills-sales"
    assert creation.pending_transfers(webshop) == []


def test_a_transfer_with_an_unknown_flow_changes_nothing(webshop: Project) -> None:
    connector = settled(webshop)
    design.apply_settings(webshop)
    connector = Connector.objects.get(pk=connector.pk)
    with pytest.raises(Invalid, match="no flow nothing"):
        creation.transfer_failover(connector, {"tills-sales": "a", "nothing": "b"})
    connector.refresh_from_db()
    assert not connector.failover
    assert not Group.objects.exists()


def test_failover_turned_off_in_design_is_transferred_too(webshop: Project, erp: Connector) -> None:
    design.change_system(erp.system, name="ERP", description="", multiple_runtimes=True, number_of_runtimes=2, failover=False)
    design.apply_settings(webshop)
    [offer] = creation.pending_transfers(webshop)
    assert not offer.wanted
    creation.transfer_failover(Connector.objects.get(pk=erp.pk))
    assert not Connector.objects.get(pk=erp.pk).failover
