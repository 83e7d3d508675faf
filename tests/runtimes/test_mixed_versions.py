"""An older side meets words that only a newer one knows: they are told or refused by name, and the rest of the message counts."""

import asyncio
import inspect
import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from runtimes import fleet, ordering, protocol
from runtimes.agent import items, members
from runtimes.models import FailoverGroup, GroupMember, GroupRequest, LeadershipChange, Machine, Router, Runtime
from runtimes.process.records import LeaderRecord, SessionRecord, parse
from runtimes.process.wishes import Picture, RefusedError, _judge
from runtimes.protocol import BundleContent, Orders, Report, Told, decode, encode
from tests.runtimes.conftest import NOW, said

ENUMS = [found for _, found in inspect.getmembers(protocol, inspect.isclass) if issubclass(found, Told) and found is not Told]
NEWER = "a-word-of-tomorrow"


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_every_word_of_the_wire_has_a_reading_for_what_it_does_not_know(enum: type[Told]) -> None:
    read = msgspec.json.decode(json.dumps(NEWER), type=enum)
    assert isinstance(read, enum)
    assert read.name == protocol.READ_AS[enum.__name__]


@pytest.mark.parametrize("nonsense", [5, None, [], {}, True])
def test_what_is_no_word_at_all_is_still_refused(nonsense: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(nonsense), type=protocol.Cause)


def newer(message: object, *paths: str) -> bytes:
    """The message with other words at these places ("groups.0.status"), and fields that nobody knows."""
    fields: Any = json.loads(encode(message))
    for path in paths:
        *way, last = path.split(".")
        place = fields
        for key in way:
            place = place[int(key)] if key.isdigit() else place[key]
        place[last] = NEWER
    return json.dumps({**fields, "of_tomorrow": {"deep": [1, 2]}}).encode()


def test_an_older_portal_takes_a_newer_agents_report(external01: Machine, erp01: Runtime, group: FailoverGroup) -> None:
    key = group.group.key
    report = said(
        1,
        router=protocol.RouterReport(state=protocol.RouterState.RUNNING, reason="as tomorrow"),
        runtimes=[
            protocol.RuntimeReport(
                key=erp01.key,
                state=protocol.RuntimeState.READY,
                pid=77,
                groups=[
                    protocol.GroupReport(group=key, status=protocol.Status.LEADER, state=protocol.State.ON, reason="it leads", epoch=41)
                ],
            )
        ],
        events=[protocol.LeadershipEvent(group=key, epoch=41, runtime=erp01.key, previous=None, cause=protocol.Cause.CRASH)],
        outcomes=[protocol.RequestOutcome(id="00000000-0000-0000-0000-000000000001", status=protocol.RequestStatus.FAILED)],
        logs=[protocol.LogLine(runtime="agent", at=NOW.isoformat(), level=protocol.LogLevel.ERROR, text="hello")],
    )
    Router.objects.get_or_create(machine=external01)
    paths = ["router.state", "runtimes.0.state", "runtimes.0.groups.0.status", "runtimes.0.groups.0.state"]
    data = newer(report, *paths, "events.0.cause", "outcomes.0.status", "logs.0.level")
    assert fleet.record_report(external01, decode(Report, data), now=NOW)
    erp01.refresh_from_db()
    assert (erp01.observed_state, erp01.observed_pid) == ("other", 77)
    assert Router.objects.get(machine=external01).observed_state == "other"
    member = GroupMember.objects.get(runtime=erp01)
    assert (member.observed_status, member.observed_state) == ("unknown", "partly"), "no fact is made of it"
    assert LeadershipChange.objects.get(epoch=41).cause == "other"


def test_an_older_agent_takes_a_newer_portals_orders() -> None:
    orders = Orders(
        version=7,
        namespace="/baton/1/",
        member_change=protocol.MemberChange(id="c", act=protocol.MemberAct.ADD, listed=[]),
        runtimes=[
            protocol.RuntimeOrder(
                key="a.erp", connector="erp", running=True, digest=None, release=None, preferences={"g": protocol.Preference.LEADER}
            )
        ],
        requests=[
            protocol.GroupRequest(
                id="r",
                kind=protocol.RequestKind.SWITCH,
                group="g",
                machine=None,
                expected_epoch=None,
                cause=protocol.Cause.SWITCH,
                actor="operator",
                valid_seconds=10,
            )
        ],
        inquiries=[protocol.Inquiry(id="i", runtime="a.erp", flow="f", act=protocol.ItemAct.LIST)],
    )
    data = newer(orders, "member_change.act", "requests.0.kind", "requests.0.cause", "inquiries.0.act", "runtimes.0.preferences.g")
    read = decode(Orders, data)
    assert read.version == 7 and read.runtimes[0].preferences == {"g": protocol.Preference.NONE}
    assert read.requests[0].kind is protocol.RequestKind.OTHER and read.requests[0].actor == "operator"


def test_a_change_of_members_that_it_does_not_know_is_not_made() -> None:
    made: list[str] = []

    async def call(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        made.append(path)
        return {}

    change = protocol.MemberChange(id="c", act=protocol.MemberAct.OTHER, listed=[], member="1f")
    with pytest.raises(members.NotMade, match="older than the portal"):
        asyncio.run(members.make(call, change))
    assert made == []


def test_a_wish_that_it_does_not_know_is_refused_by_name() -> None:
    wish = protocol.GroupRequest(
        id="r",
        kind=protocol.RequestKind.OTHER,
        group="g",
        machine=None,
        expected_epoch=None,
        cause=protocol.Cause.OTHER,
        actor="operator",
        valid_seconds=10,
    )
    control = protocol.Timing()
    from runtimes.process.records import ControlRecord

    picture = Picture(ControlRecord(), 0, None, 0, {})
    with pytest.raises(RefusedError, match="upgrade it"):
        asyncio.run(_judge(None, "/baton/1/", wish, picture, "a.erp", 1, control, None))  # type: ignore[arg-type]


def test_a_question_about_items_that_it_does_not_know_is_answered(tmp_path: Any) -> None:
    flow = protocol.FlowSpec(
        id="f",
        name="orders",
        version="1.0.0",
        inbound=protocol.Component(kind=protocol.ComponentKind.OTHER),
        outbound=protocol.Component(kind=protocol.ComponentKind.LOG),
    )
    content = BundleContent(environment="test", machine="a", connector="erp", release=1, flows=[flow], groups=[])
    asked = protocol.Inquiry(id="i", runtime="a.erp", flow="f", act=protocol.ItemAct.OTHER)
    assert "upgrade it" in items.answered(asked, (content, tmp_path)).problem


def test_members_of_two_versions_read_each_others_records() -> None:
    leader = parse(LeaderRecord, {"runtime": "a.erp", "session": "s:1", "cause": NEWER, "of_tomorrow": 1})
    assert leader is not None and (leader.runtime, leader.cause) == ("a.erp", protocol.Cause.OTHER)
    groups = {"g": {"ready": True, "on": False, "preference": NEWER}}
    session = parse(SessionRecord, {"session": "s:1", "counter": 1, "runtime": "a.erp", "release": 1, "groups": groups})
    assert session is not None and session.groups["g"].preference is protocol.Preference.NONE


def test_a_request_of_a_newer_portals_database_is_still_ordered(group: FailoverGroup) -> None:
    """After a roll-back of the portal its rows may have words of the newer one."""
    GroupRequest.objects.create(group=group, kind="tomorrow", cause="tomorrow", actor="operator", expires_at=NOW)
    machine = Machine.objects.get(name="external01", environment=group.environment)
    assert ordering.orders_for(machine, now=NOW.replace(year=2020)).requests[0].kind is protocol.RequestKind.OTHER
