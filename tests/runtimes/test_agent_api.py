"""The agents' endpoints as an agent calls them."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.test import AsyncClient, Client
from django.utils import timezone

from runtimes import fleet, joining, protocol, wakeup
from runtimes.api import agents
from runtimes.models import FailoverGroup, GroupMember, Machine, Runtime
from tests.runtimes.conftest import content_for, joined, said, said_of


@pytest.fixture(autouse=True)
def no_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "on_report", [])


@pytest.fixture(autouse=True)
def no_broker(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there: whatever a test shows works with the broker away."""
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    monkeypatch.setattr(wakeup, "_failed_at", float("-inf"))


@pytest.fixture
def agent(external01: Machine, admin: User) -> Client:
    return Client(headers={"Authorization": f"Bearer {joined(external01, admin)}"})


def post(client: Client, address: str, message: object) -> Any:
    body = message if isinstance(message, bytes) else protocol.encode(message)
    return client.post(f"/agent/v1/{address}/", body, content_type="application/json")


def assert_problem(answer: Any, status: int, code: str, words: str) -> dict[str, Any]:
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/problem+json"), answer.content
    document: dict[str, Any] = json.loads(answer.content)
    assert (document["status"], document["code"]) == (status, code)
    assert words in document["detail"]
    return document


# ---------------------------------------------------------------------------------------------------------- join, report


def test_an_agent_joins_and_reports(external01: Machine, erp01: Runtime, group: FailoverGroup, admin: User) -> None:
    token = joining.register(external01, by=admin)
    joined = post(Client(enforce_csrf_checks=True), "join", protocol.JoinRequest(token=token, agent_version="0.1.0"))
    answer = protocol.decode(protocol.JoinAnswer, joined.content)
    agent = Client(headers={"Authorization": f"Bearer {answer.credential}"}, enforce_csrf_checks=True)
    told = post(agent, "report", said(1, runtimes=[said_of(erp01, group)]))
    assert told.status_code == 200
    stored = protocol.decode(protocol.ReportAnswer, told.content)
    assert stored.accepted
    assert [runtime.key for runtime in stored.orders.runtimes] == ["external01.erp"]
    assert not protocol.decode(protocol.ReportAnswer, post(agent, "report", said(1)).content).accepted


def test_a_wrong_token_is_refused_by_name(external01: Machine) -> None:
    answer = post(Client(), "join", protocol.JoinRequest(token="guess", agent_version="0"))
    assert assert_problem(answer, 400, "invalid", "token is unknown")["errors"].keys() == {"token"}


@pytest.mark.parametrize("credential", [None, "", "Bearer", "Bearer wrong", "Basic b3BlcmF0b3I6YmF0b24="])
@pytest.mark.parametrize("address", ["report", "orders", "bundles/0"])
def test_without_a_machines_credential_nobody_gets_in(agent: Client, address: str, credential: str | None) -> None:
    stranger = Client(headers={"Authorization": credential} if credential is not None else {})
    answer = post(stranger, address, said()) if address == "report" else stranger.get(f"/agent/v1/{address}/")
    assert_problem(answer, 401, "not-authenticated", "credential")
    assert answer["WWW-Authenticate"].startswith("Bearer")


def test_a_person_who_is_logged_in_is_no_agent(external01: Machine, admin: User) -> None:
    client = Client()
    client.force_login(admin)
    assert_problem(post(client, "report", said()), 401, "not-authenticated", "credential")


def test_a_replaced_agent_is_told_to_join_again(agent: Client, external01: Machine, admin: User) -> None:
    joined(external01, admin)
    assert_problem(post(agent, "report", said()), 401, "not-authenticated", "join again")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param(b'{"agent_version": "1", "boot_id": "b", "started_at": "", "orders_version": 1}', "sequence", id="missing"),
        pytest.param(
            b'{"agent_version": 7, "boot_id": "b", "started_at": "", "orders_version": 1, "sequence": 1}', "agent_version", id="wrong type"
        ),
        pytest.param(
            b'{"agent_version": "1", "boot_id": "b", "started_at": "", "orders_version": 1, "sequence": 1,'
            b' "runtimes": [{"key": "external01.erp", "state": 5}]}',
            "runtimes[0].state",
            id="a number for a word, deep down",
        ),
    ],
)
def test_a_wrong_field_is_named(agent: Client, body: bytes, field: str) -> None:
    assert assert_problem(post(agent, "report", body), 400, "invalid", "This is not a Report")["errors"].keys() == {field}


def test_a_nul_that_a_target_answered_keeps_no_report_away(agent: Client, erp01: Runtime) -> None:
    """PostgreSQL keeps none in a text, and would refuse all that the machine says."""
    flow = protocol.FlowReport(flow="f-orders", name="erp-orders", on=True, reason="http://erp answered 503: <\x00?\x00x; see C:\\u0000")
    answer = post(agent, "report", said(1, runtimes=[said_of(erp01, flows=[flow])]))
    assert protocol.decode(protocol.ReportAnswer, answer.content).accepted
    erp01.refresh_from_db()
    assert erp01.observed_flows[0]["reason"] == "http://erp answered 503: <\ufffd?\ufffdx; see C:\\u0000"


def test_more_news_at_once_than_an_agent_keeps_is_refused(agent: Client, erp01: Runtime, group: FailoverGroup) -> None:
    told = protocol.LeadershipEvent(group=group.group.key, epoch=1, runtime=erp01.key, previous=None, cause=protocol.Cause.FIRST)
    answer = post(agent, "report", said(1, events=[told] * (protocol.MOST_KEPT + 1)))
    assert assert_problem(answer, 413, "too-large", "Send 2000 at most")["errors"].keys() == {"events"}


def test_a_number_that_the_database_checks_is_refused(agent: Client, erp01: Runtime) -> None:
    assert_problem(post(agent, "report", said(1, runtimes=[said_of(erp01, pid=-1)])), 400, "invalid", "does not fit")


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-11-23T10:00:00", "yesterday"])
def test_a_moment_that_is_none_breaks_no_page(agent: Client, erp01: Runtime, group: FailoverGroup, operator: User, moment: str) -> None:
    flow = protocol.FlowReport(flow="f-orders", name="erp-orders", on=True, last_activity=moment, kept=1, kept_at=moment)
    leads = said_of(erp01, group, protocol.Status.LEADER, epoch=10**12 + 5, started_at=moment, flows=[flow])
    groups = [msgspec.structs.replace(leads.groups[0], since=moment, last_activity=moment)]
    peer = protocol.PeerReport(machine="external02", address="10.0.0.2:7400", reachable=False, since=moment, error="refused")
    Machine.objects.filter(name="external02").update(last_report_at=timezone.now() - timedelta(hours=1))
    GroupMember.objects.filter(runtime__machine__name="external02").update(observed_at=timezone.now() - timedelta(hours=1))
    told = said(1, started_at=moment, peers=[peer], runtimes=[msgspec.structs.replace(leads, groups=groups)])
    assert protocol.decode(protocol.ReportAnswer, post(agent, "report", told).content).accepted
    client = Client()
    client.force_login(operator)
    here = "/projects/webshop/test/"
    pages = ("groups/", "timeline/", "items/", "architecture/", "machines/external01/", "machines/external01/?tab=runtimes")
    assert [client.get(here + page).status_code for page in pages] == [200] * len(pages)


@pytest.mark.parametrize("gap", [1e18, 1e308, -1e308])
def test_a_gap_that_is_none_breaks_no_page(agent: Client, erp01: Runtime, group: FailoverGroup, operator: User, gap: float) -> None:
    told = protocol.LeadershipEvent(
        group=group.group.key, epoch=10**12 + 5, runtime=erp01.key, previous="external02.erp", cause=protocol.Cause.CRASH, gap_seconds=gap
    )
    assert protocol.decode(protocol.ReportAnswer, post(agent, "report", said(1, events=[told])).content).accepted
    change = group.changes.get()
    assert change.gap_seconds is None
    client = Client()
    client.force_login(operator)
    assert client.get("/projects/webshop/test/timeline/").status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_json_message_is_refused(agent: Client, body: bytes) -> None:
    assert_problem(post(agent, "report", body), 400, "invalid", "This is not a Report")


def test_a_number_beyond_the_database_is_refused(agent: Client) -> None:
    assert_problem(post(agent, "report", said(2**63)), 400, "invalid", "out of range")


def test_a_body_over_8_mib_is_refused_and_one_below_is_not(agent: Client) -> None:
    assert_problem(post(agent, "report", b" " * (agents.BODY_LIMIT + 1)), 413, "too-large", "larger than 8 MiB")
    padded = protocol.encode(said(1)) + b" " * (agents.BODY_LIMIT - 1000)
    assert post(agent, "report", padded).status_code == 200


# --------------------------------------------------------------------------------------------------------------- bundles


def test_a_machine_fetches_the_bundle_it_is_ordered_and_no_other(
    agent: Client, erp01: Runtime, erp02: Runtime, group: FailoverGroup
) -> None:
    mine, other = (fleet.store_bundle(group.environment, content_for(runtime, group)) for runtime in (erp01, erp02))
    fleet.assign(erp01, mine)
    fleet.assign(erp02, other)
    answer = agent.get(f"/agent/v1/bundles/{mine.digest}/")
    assert protocol.digest_of(answer.content) == mine.digest
    for digest in (other.digest, "0" * 64):
        assert_problem(agent.get(f"/agent/v1/bundles/{digest}/"), 404, "not-found", "is ordered to run")
    fleet.assign(erp01, fleet.store_bundle(group.environment, content_for(erp01, group, release=2)))
    assert agent.get(f"/agent/v1/bundles/{mine.digest}/").status_code == 404


# ----------------------------------------------------------------------------------------------------- orders: the long poll


class Waiting:
    """An agent's long polls through the whole ASGI stack, middleware included."""

    def __init__(self, credential: str) -> None:
        self.headers = {"Authorization": f"Bearer {credential}"}

    async def poll(self, after: int, wait: float | str) -> tuple[Any, float]:
        began = time.monotonic()
        answer = await AsyncClient().get(f"/agent/v1/orders/?after={after}&wait={wait}", headers=self.headers)
        return answer, time.monotonic() - began


@pytest.fixture
def waiting(external01: Machine, admin: User) -> Waiting:
    return Waiting(joined(external01, admin))


def test_newer_orders_are_answered_at_once(waiting: Waiting, external01: Machine) -> None:
    answer, took = async_to_sync(waiting.poll)(0, 20)
    assert answer.status_code == 200
    assert protocol.decode(protocol.Orders, answer.content).version == external01.orders_version
    assert took < 0.5


def test_no_news_end_the_wait_without_an_answer(waiting: Waiting, external01: Machine) -> None:
    answer, took = async_to_sync(waiting.poll)(external01.orders_version, 0.6)
    assert (answer.status_code, answer.content) == (204, b"")
    assert 0.6 <= took < 1.2


def test_no_wait_is_a_plain_look(waiting: Waiting, external01: Machine) -> None:
    answer, took = async_to_sync(waiting.poll)(external01.orders_version, 0)
    assert answer.status_code == 204
    assert took < 0.5


@pytest.mark.parametrize("wait", ["soon", "-1", "nan", "1e300"])
def test_a_wait_that_is_no_number_is_refused(waiting: Waiting, wait: str) -> None:
    answer, _ = async_to_sync(waiting.poll)(0, wait)
    assert assert_problem(answer, 400, "invalid", "wait is")["errors"].keys() == {"wait"}


def test_the_wait_is_capped(waiting: Waiting, external01: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "LONGEST_WAIT", 0.3)
    answer, took = async_to_sync(waiting.poll)(external01.orders_version, 3600)
    assert answer.status_code == 204
    assert took < 1.0


def _poll_while(waiting: Waiting, machine: Machine, act: Any, *, after: float = 0.4) -> tuple[Any, float]:
    """Poll for orders; `act` happens in another thread `after` seconds later. Returns the answer and its delay after the act."""
    acted: list[float] = []

    def later() -> None:
        time.sleep(after)
        act()
        acted.append(time.monotonic())

    thread = threading.Thread(target=later)
    thread.start()
    answer, _ = async_to_sync(waiting.poll)(machine.orders_version, 10)
    ended = time.monotonic()
    thread.join()
    return answer, ended - acted[0]


def _touch_elsewhere(machine: Machine) -> Any:
    from django.db import connection

    def act() -> None:
        try:
            fleet.touch(machine)
        finally:
            connection.close()

    return act


@pytest.mark.django_db(transaction=True)
def test_without_a_broker_new_orders_arrive_within_about_a_second(waiting: Waiting, external01: Machine, file_database: None) -> None:
    answer, delay = _poll_while(waiting, external01, _touch_elsewhere(external01))
    assert protocol.decode(protocol.Orders, answer.content).version == external01.orders_version + 1
    assert delay < 1.5


@pytest.mark.django_db(transaction=True)
def test_an_agent_that_waits_is_sent_away_when_its_machine_is_registered_anew(
    waiting: Waiting, external01: Machine, admin: User, file_database: None
) -> None:
    def act() -> None:
        from django.db import connection

        try:
            joined(external01, admin)
        finally:
            connection.close()

    answer, delay = _poll_while(waiting, external01, act)
    assert_problem(answer, 401, "not-authenticated", "join again")
    assert delay < 1.5


@pytest.fixture
def broker(settings: Any, tmp_path: Any) -> Iterator[None]:
    """A real Redis-protocol server of this test's own."""
    import socket
    import subprocess

    import redis

    from portal import broker

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(broker.find().path), "--port", str(port), "--bind", "127.0.0.1", "--save", ""], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    settings.REDIS_URL = f"redis://127.0.0.1:{port}/0"
    client = redis.Redis.from_url(settings.REDIS_URL)
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    client.close()
    yield
    process.send_signal(signal.SIGCONT)
    process.terminate()
    process.wait(5)


@pytest.mark.django_db(transaction=True)
def test_with_a_broker_new_orders_arrive_at_once(waiting: Waiting, external01: Machine, broker: None, file_database: None) -> None:
    delays = []
    for _ in range(5):
        external01.refresh_from_db()
        answer, delay = _poll_while(waiting, external01, _touch_elsewhere(external01))
        assert answer.status_code == 200
        delays.append(delay)
    assert sorted(delays)[2] < 0.3, delays  # without the broker's word it looks once a second


def test_a_broker_that_does_not_answer_holds_up_nobody(external01: Machine, settings: Any, django_capture_on_commit_callbacks: Any) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts, never answers
        settings.REDIS_URL = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"
        began = time.monotonic()
        for _ in range(5):
            with django_capture_on_commit_callbacks(execute=True):
                fleet.touch(external01)
        assert time.monotonic() - began < 0.5


@pytest.mark.django_db(transaction=True)
def test_a_client_that_leaves_ends_its_wait(waiting: Waiting, external01: Machine, file_database: None) -> None:
    """Through Django's ASGI handler, as a server would: the wait is cancelled when the connection goes."""

    async def leave() -> float:
        sent: list[Any] = []
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "path": "/agent/v1/orders/",
            "query_string": f"after={external01.orders_version}&wait=20".encode(),
            "headers": [(b"authorization", waiting.headers["Authorization"].encode()), (b"host", b"localhost")],
        }
        call = asyncio.ensure_future(get_asgi_application()(scope, receive, send))
        await asyncio.sleep(0.5)
        assert not call.done()
        gone.set()
        began = time.monotonic()
        await asyncio.wait_for(call, 3)
        assert sent == []
        return time.monotonic() - began

    assert async_to_sync(leave)() < 1.0


def test_a_server_that_shuts_down_ends_the_waits(waiting: Waiting, external01: Machine) -> None:
    try:
        answer, delay = _poll_while(waiting, external01, agents._shutting_down.set)
    finally:
        agents._shutting_down.clear()
    assert answer.status_code == 204
    assert delay < 0.6


def test_the_signal_of_a_shutdown_is_heard_and_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "_watching", [])
    monkeypatch.setattr(agents, "_shutting_down", threading.Event())
    passed_on: list[int] = []
    former = {number: signal.signal(number, lambda number, frame: passed_on.append(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        agents._watch_for_shutdown()
        os.kill(os.getpid(), signal.SIGTERM)
        assert agents._shutting_down.is_set()
        assert passed_on == [signal.SIGTERM]
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
