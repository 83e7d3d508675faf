"""Timing profiles: chosen by people, taken over by routers one at a time and by runtimes with their deployment."""

from datetime import datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from rest_framework.test import APIClient

from portal.models import Environment, TimingProfile
from runtimes import fleet, ordering, profiles, protocol
from runtimes.models import FailoverGroup, GroupMember, Machine, Router, Runtime
from tests.runtimes.conftest import NOW, said

HTMX = {"HX-Request": "true"}
URL = "/projects/webshop/test/timing-profile/"


def test_the_portal_and_the_wire_have_the_same_profiles() -> None:
    assert set(TimingProfile.values) == {profile.value for profile in protocol.PROFILES}


@pytest.mark.parametrize(
    ("profile", "ttl", "renewal", "guard", "election_ms"),
    [
        pytest.param("lan", 1.0, 0.2, 0.2, 300, id="LAN"),
        pytest.param("fast-lan", 0.5, 0.1, 0.1, 150, id="fast LAN"),
        pytest.param("wan", 4.0, 1.0, 0.8, 1500, id="WAN"),
    ],
)
def test_the_constants_of_each_profile(profile: str, ttl: float, renewal: float, guard: float, election_ms: int) -> None:
    timing = profiles.timing_of(profile)
    assert (timing.ttl, timing.renewal, timing.guard, timing.etcd_election_ms) == (ttl, renewal, guard, election_ms)
    assert timing.ttl / (timing.ttl - timing.guard) == pytest.approx(1.25), "clocks may differ by as much under each"
    assert timing.renewal + timing.request_timeout < timing.ttl - timing.guard, "one lost renewal ends no permit"
    assert timing.etcd_election_ms >= 5 * timing.etcd_heartbeat_ms, "etcd refuses less"
    assert timing.etcd_election_ms < 1000 * timing.ttl, "a raft election is over before a session stands still for too long"


@pytest.fixture
def running(group: FailoverGroup, routers_addressed: None) -> Environment:
    """All three routers run, as reported just now; external01 leads the group."""
    Router.objects.update(cluster_known=True, observed_state=protocol.RouterState.RUNNING)
    GroupMember.objects.update(observed_status=protocol.Status.FOLLOWER, observed_ttl=1.0)
    GroupMember.objects.filter(runtime__machine__name="external01").update(observed_status=protocol.Status.LEADER)
    return heard(group.environment)


def heard(environment: Environment, at: datetime = NOW) -> Environment:
    for machine in Machine.objects.filter(environment=environment):
        Machine.objects.filter(pk=machine.pk).update(orders_taken=machine.orders_version, last_report_at=at, joined_at=NOW)
    return environment


def retimed() -> list[str]:
    return sorted(Router.objects.exclude(desired_profile="lan").values_list("machine__name", flat=True))


def test_a_wish_changes_nothing_that_runs(running: Environment) -> None:
    before = ordering.orders_for(Machine.objects.get(environment=running, name="external01"), now=NOW).router
    profiles.choose(running, "wan")
    assert ordering.orders_for(Machine.objects.get(environment=running, name="external01"), now=NOW).router == before
    used = profiles.in_use(running)
    assert (used.label, used.expected) == ("WAN", "about 4 s after a power-off or a hang, about 0.1 s after a crash")
    assert "external02.erp (LAN)" in used.behind and len(used.behind) == 5, "two runtimes and three routers"


def test_a_report_tells_the_profile_that_a_process_runs_under(
    running: Environment, external01: Machine, erp01: Runtime, group: FailoverGroup
) -> None:
    def tell(sequence: int, *groups: protocol.GroupReport) -> float | None:
        report = protocol.RuntimeReport(key=erp01.key, state=protocol.RuntimeState.READY, groups=list(groups))
        assert fleet.record_report(external01, said(sequence, runtimes=[report]), now=NOW)
        return GroupMember.objects.get(runtime=erp01).observed_ttl

    of_group = protocol.GroupReport(
        group=group.group.key, status=protocol.Status.FOLLOWER, state=protocol.State.OFF, reason="it follows", ttl=0.5
    )
    assert tell(1, of_group) == 0.5
    assert "external01.erp (Fast LAN)" in profiles.in_use(running).behind
    assert tell(2) is None, "what does not run has no profile"
    assert not [each for each in profiles.in_use(running).behind if each.startswith("external01.erp")]


def test_routers_take_a_profile_over_one_at_a_time_those_beside_leaders_last(running: Environment) -> None:
    profiles.choose(running, "wan")
    now = NOW
    for expected in (["core01"], ["core01", "external02"], ["core01", "external01", "external02"]):
        heard(running, now)
        assert "is restarted with the profile WAN" in profiles.retime_next(running, now=now)
        assert retimed() == expected
        assert "starts with the profile WAN" in profiles.retime_next(running, now=now + timedelta(seconds=1)), "it gets its time"
        now += profiles.SETTLES
    assert profiles.retime_next(running, now=now) == ""
    order = ordering.orders_for(Machine.objects.get(environment=running, name="external01"), now=NOW).router
    assert order is not None and (order.heartbeat_ms, order.election_ms) == (250, 1500)


@pytest.mark.parametrize(
    "fact",
    [
        pytest.param({"observed_state": protocol.RouterState.NO_MAJORITY}, id="it knows no majority"),
        pytest.param({"observed_state": protocol.RouterState.FAILED}, id="it failed"),
    ],
)
def test_no_router_is_restarted_while_another_does_not_run(running: Environment, fact: dict[str, str]) -> None:
    profiles.choose(running, "wan")
    heard(running)
    Router.objects.filter(machine__name="external02").update(**fact)
    said = profiles.retime_next(running, now=NOW)
    assert retimed() == ["external02"], "but the one that does not run itself disturbs nobody"
    heard(running, NOW + profiles.SETTLES)
    said = profiles.retime_next(running, now=NOW + profiles.SETTLES)
    assert retimed() == ["external02"] and "only while all others run" in said


def test_routers_that_never_ran_begin_with_the_profile(group: FailoverGroup, routers_addressed: None) -> None:
    profiles.choose(group.environment, "fast-lan")
    profiles.retime_founders(group.environment)
    assert set(Router.objects.values_list("desired_profile", flat=True)) == {"fast-lan"}
    assert profiles.retime_next(group.environment, now=NOW) == ""


def test_a_developer_chooses_on_test_with_the_consequence_in_words(client: Client, developer: User, running: Environment) -> None:
    client.force_login(developer)
    assert (
        "Profile <strong>LAN</strong>: leadership moves about 1 s after a power-off"
        in client.get("/projects/webshop/test/groups/").content.decode()
    )
    dialog = client.get(URL, headers=HTMX).content.decode()
    assert "Bears silence of 3 seconds" in dialog and "Fast LAN: leadership moves about 0.5 s" in dialog
    page = client.post(URL, {"profile": "wan"}, follow=True).content.decode()
    running.refresh_from_db()
    assert running.timing_profile == "wan" and "Not yet: " in page and "router on external01 (LAN)" in page
    assert "Profile <strong>WAN</strong>" in client.get("/projects/webshop/test/architecture/").content.decode()
    assert client.post(URL, {"profile": "never"}).status_code == 200
    running.refresh_from_db()
    assert running.timing_profile == "wan"


@pytest.mark.parametrize(("person", "status"), [("viewer", 403), ("stranger", 404)])
def test_who_may_not_deploy_may_not_choose(
    client: Client, running: Environment, request: pytest.FixtureRequest, person: str, status: int
) -> None:
    client.force_login(request.getfixturevalue(person))
    assert client.post(URL, {"profile": "wan"}).status_code == status
    running.refresh_from_db()
    assert running.timing_profile == "lan"


def test_the_api_reads_and_sets_the_profile(running: Environment, developer: User, viewer: User) -> None:
    url, client = "/api/v1/environments/webshop/test/timing-profile/", APIClient()
    client.force_authenticate(viewer)
    found = client.get(url).json()
    assert (found["profile"], found["ttl_seconds"], found["behind"]) == ("lan", 1.0, [])
    assert client.put(url, {"profile": "wan"}, format="json").status_code == 403
    client.force_authenticate(developer)
    assert client.put(url, {"profile": "soon"}, format="json").status_code == 400
    answer = client.put(url, {"profile": "fast-lan"}, format="json").json()
    assert (answer["profile"], answer["ttl_seconds"], len(answer["behind"])) == ("fast-lan", 0.5, 5)
