"""The peers' test of an address as the portal asks for it, hears of it and shows it."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from deployments import grid, rollout, sheet
from deployments.models import Release
from portal import properties
from portal.errors import NotAllowed
from portal.models import Environment
from runtimes import fleet, ordering, protocol, reach
from runtimes.models import FailoverGroup, Machine, ReachTest
from runtimes.protocol import ReachAnswer, ReachOrder, ReachOutcome

KEY = "external01.failover.internal-ip"


def machine(name: str) -> Machine:
    return Machine.objects.get(name=name)


def ordered(name: str) -> list[ReachOrder]:
    return ordering.orders_for(machine(name), now=timezone.now()).reach


_sequence = 0


def says(name: str, outcome: ReachOutcome, reason: str = "", seconds: float | None = None, test: str = "") -> None:
    """The machine's agent reports its part."""
    global _sequence
    _sequence += 1
    key = test or str(ReachTest.objects.get().pk)
    fleet.record_report(
        machine(name),
        protocol.Report(
            agent_version="1",
            boot_id="b",
            started_at="2026-01-01T00:00:00+00:00",
            orders_version=0,
            sequence=_sequence,
            reach=[ReachAnswer(id=key, outcome=outcome, reason=reason, seconds=seconds)],
        ),
        now=timezone.now(),
    )


@pytest.fixture
def asked(group: FailoverGroup, filled: Environment, operator: User, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setattr(reach, "TEST_SECONDS", 600.0)  # a slow machine must not end it
    reach.ask(machine("external01"), actor="otto", now=timezone.now())
    return filled


def last(environment: Environment) -> reach.Tested:
    return reach.tested([environment], now=timezone.now())[environment.pk, "external01"]


def test_the_owner_listens_before_the_others_are_told_to_connect(asked: Environment) -> None:
    (mine,) = ordered("external01")
    assert (mine.machine, mine.host, mine.port, mine.router) == ("external01", "10.0.0.11", 2380, False)
    assert ordered("external02") == ordered("core01") == []
    says("external01", ReachOutcome.LISTENING)
    assert [order.secret for order in ordered("external02")] == [mine.secret]
    says("external02", ReachOutcome.REACHABLE, seconds=0.0006)
    assert ordered("external02") == []  # it has done its part
    assert last(asked).under_way
    says("core01", ReachOutcome.REACHABLE, seconds=0.0012)
    found = last(asked)
    assert (found.under_way, found.tone) == (False, "green")
    assert found.sentences == ["reachable from core01 in 1.2 ms", "reachable from external02 in 0.6 ms"]
    assert ordered("external01") == []  # it need not listen any more


def test_a_refusal_is_certain_and_forbids_the_deployment_until_the_value_or_the_network_is_another(
    asked: Environment, release: Release, developer: User
) -> None:
    says("external01", ReachOutcome.LISTENING)
    says("external02", ReachOutcome.REFUSED, "nobody takes the connection")
    says("core01", ReachOutcome.REACHABLE, seconds=0.001)
    (finding,) = [item for item in reach.findings(asked, now=timezone.now()) if item.machine == "external01"]
    assert finding.blocks
    assert finding.sentence == "10.0.0.11:2380 of external01: refused from external02: nobody takes the connection."
    assert finding.sentence in rollout.obstacles(release, asked, now=timezone.now())
    properties.set_value(asked, KEY, "10.0.0.21", by=developer)
    (finding,) = [item for item in reach.findings(asked, now=timezone.now()) if item.machine == "external01"]
    assert (finding.blocks, finding.sentence) == (False, "10.0.0.21:2380 of external01 was not tried by the other machines yet.")


@pytest.mark.parametrize(
    ("outcome", "blocks"),
    [
        (ReachOutcome.TIMED_OUT, False),
        (ReachOutcome.WRONG_ANSWER, False),
        (ReachOutcome.NO_WAY, False),
        (ReachOutcome.FAILED, False),
        (ReachOutcome.REFUSED, True),
    ],
)
def test_only_what_is_certain_forbids(asked: Environment, outcome: ReachOutcome, blocks: bool) -> None:
    says("external01", ReachOutcome.LISTENING)
    says("external02", outcome, "so it is")
    says("core01", ReachOutcome.REACHABLE, seconds=0.001)
    assert [item.blocks for item in reach.findings(asked, now=timezone.now()) if item.machine == "external01"] == [blocks]
    assert last(asked).tone == "red"


@pytest.mark.parametrize("outcome", [ReachOutcome.TAKEN, ReachOutcome.NOT_HERE])
def test_an_owner_that_cannot_listen_ends_the_test_and_says_why(asked: Environment, outcome: ReachOutcome) -> None:
    says("external01", outcome, "another program listens there")
    assert ordered("external02") == []
    assert last(asked).sentences == ["external01 cannot listen on 10.0.0.11:2380: another program listens there"]
    assert last(asked).certainly_not


def test_an_agent_that_knows_no_tests_leaves_it_open_and_that_is_said(asked: Environment) -> None:
    later = timezone.now() + timedelta(seconds=reach.TEST_SECONDS + 1)
    (finding,) = reach.tested([asked], now=later).values()
    assert finding.sentences == ["the agent of external01 did not take part: it is silent, or older than this portal"]
    assert not finding.certainly_not


def test_nobody_answers_for_another_environment_or_twice(asked: Environment) -> None:
    says("external01", ReachOutcome.LISTENING, test="nonsense")
    assert ordered("external02") == []
    says("external01", ReachOutcome.LISTENING)
    says("external02", ReachOutcome.TIMED_OUT, "first")
    says("external02", ReachOutcome.REACHABLE, seconds=0.1)
    assert [said.reason for said in last(asked).others if said.machine == "external02"] == ["first"]


def test_it_is_refused_with_the_remedy(group: FailoverGroup, test_environment: Environment, filled: Environment, developer: User) -> None:
    now = timezone.now()
    Machine.objects.filter(name="external01").update(last_report_at=now - timedelta(minutes=5))
    with pytest.raises(NotAllowed, match="external01 is silent: its agent has to listen"):
        reach.ask(machine("external01"), actor="otto", now=now)
    Machine.objects.exclude(name="external02").update(last_report_at=now - timedelta(minutes=5))
    with pytest.raises(NotAllowed, match="nobody can try the address"):
        reach.ask(machine("external02"), actor="otto", now=now)
    properties.remove_value(filled, "external02.failover.port", by=developer)
    with pytest.raises(NotAllowed, match=r"Fill in external02\.failover\.port first"):
        reach.ask(machine("external02"), actor="otto", now=now)


def test_it_stands_beside_the_value_on_every_page(client: Client, asked: Environment, operator: User, viewer: User) -> None:
    says("external01", ReachOutcome.LISTENING)
    says("external02", ReachOutcome.REACHABLE, seconds=0.0006)
    says("core01", ReachOutcome.TIMED_OUT, "no answer within 2 s")
    client.force_login(viewer)
    for address in ("properties/?q=external01.failover", "properties/grid/?q=external01.failover", "machines/external01/?tab=failover"):
        html = client.get(f"/projects/webshop/test/{address}").content.decode()
        assert "reachable from external02 in 0.6 ms" in html, address
        assert "timed out from core01: no answer within 2 s" in html, address
    assert "Test from the peers" not in html  # a viewer may not
    assert client.post("/projects/webshop/test/machines/external01/reach/").status_code == 403
    client.force_login(operator)
    part = client.post("/projects/webshop/test/machines/external01/reach/", headers={"HX-Request": "true"}).content.decode()
    assert "external01 is tried on 10.0.0.11:2380" in part
    assert 'hx-trigger="every 1s"' in part
    assert sheet.row(asked, KEY).tested is not None
    assert grid.row(asked, KEY, "environments").cells[0].tested is not None
    assert grid.row(asked, "erp.outbox", "environments").cells[0].tested is None


def test_the_preflight_links_to_the_test(client: Client, group: FailoverGroup, filled: Environment, release: Release, viewer: User) -> None:
    client.force_login(viewer)
    html = client.get(f"/projects/webshop/releases/{release.number}/?environment=test&tab=preflight").content.decode()
    assert "10.0.0.11:2380 of external01 was not tried by the other machines yet." in html
    assert 'href="/projects/webshop/test/machines/external01/?tab=failover">Test from the peers' in html


def test_api(client: Client, asked: Environment, operator: User, viewer: User, stranger: User) -> None:
    address = f"/api/v1/machines/{machine('external01').pk}/reach-test/"
    client.force_login(stranger)
    assert client.get(address).status_code == 404
    client.force_login(viewer)
    assert client.post(address).status_code == 403
    says("external01", ReachOutcome.LISTENING)
    says("external02", ReachOutcome.REACHABLE, seconds=0.0006)
    told = client.get(address).json()
    assert (told["address"], told["under_way"], told["reachable"], told["owner"]["outcome"]) == ("10.0.0.11:2380", True, None, "listening")
    assert {"machine": "external02", "outcome": "reachable", "reason": "", "seconds": 0.0006} in [
        {name: value for name, value in said.items() if name != "at"} for said in told["others"]
    ]
    client.force_login(operator)
    assert client.post(address).status_code == 202
    assert client.get(f"/api/v1/machines/{machine('external02').pk}/reach-test/").json()["code"] == "not-found"


def test_the_secret_of_a_test_is_sealed(asked: Environment) -> None:
    (mine,) = ordered("external01")
    assert mine.secret not in ReachTest.objects.get().secret
