"""What the portal orders while the routers of a running cluster change, from what they report; etcd is played by a list."""

import itertools
from datetime import datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client

from portal.errors import Invalid, NotAllowed
from portal.models import Environment
from runtimes import fleet, membership, ordering, protocol, reports
from runtimes.models import (
    CertificateAuthority,
    FailoverGroup,
    GroupMember,
    GroupRequest,
    Machine,
    MachineCertificate,
    MembershipChange,
    Router,
    Runtime,
)
from runtimes.protocol import ClusterMember, MemberAct, PeerReport, RouterReport, RouterState
from tests import factories
from tests.runtimes.conftest import NOW, content_for, said

THREE = {"external01": ("10.0.0.1", 7400), "external02": ("10.0.0.2", 7400), "core01": ("10.0.0.3", 7400)}


class Cluster:
    """Agents and their etcd members: they take their orders and report, when they are told to."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.members: list[ClusterMember] = []
        self.emptied: set[str] = set()
        self.silent: set[str] = set()
        self.without_majority = False
        self.revoked: dict[str, datetime] = {}  # machine -> since when its siblings see a revoked certificate there
        self.lazy = ""  # reports, and carries nothing
        self.index = 100
        self.numbers = itertools.count(1)
        self.ids = itertools.count(0x10)
        self.joined: dict[str, str] = {}  # machine -> id
        self.runs: dict[str, str] = {}  # machine -> peer URL at which its member runs
        self.made: list[tuple[str, str]] = []  # act, machine or URL
        self.tried: set[str] = set()
        self.now = NOW

    def found(self) -> None:
        for name, (host, port) in THREE.items():
            self.joined[name] = f"{next(self.ids):x}"
            self.runs[name] = f"https://{host}:{port}"
            self.members.append(ClusterMember(id=self.joined[name], name=name, url=self.runs[name]))
        self.round()

    def round(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += timedelta(seconds=2)
            for machine in Machine.objects.filter(environment=self.environment).exclude(name__in=self.silent).order_by("name"):
                report = said(next(self.numbers), router=self.report(machine), peers=self.peers(machine.name))
                fleet.record_report(machine, report, now=self.now)
                if membership.under_way(self.environment) is None:
                    membership.shut_out(self.environment.pk, machine.name, now=self.now)
            membership.advance(self.environment.pk, now=self.now)

    def take_back(self, machine: str, *, since: datetime | None = None) -> None:
        """The certificate of a machine is taken back, and its siblings see that its router shows it still."""
        self.revoked[machine] = since or self.now
        authority, _ = CertificateAuthority.objects.get_or_create(environment=self.environment, defaults={"created_at": self.now})
        MachineCertificate.objects.create(
            authority=authority,
            name=machine,
            serial="1",
            issued_at=self.now,
            expires_at=self.now + timedelta(days=365),
            revoked_at=self.now,
        )

    def peers(self, name: str) -> list[PeerReport]:
        others = [(other, *address) for other, address in THREE.items() if other != name]
        return [
            PeerReport(
                machine=other,
                address=f"{host}:{port}",
                reachable=other not in self.revoked,
                since=self.revoked.get(other, NOW).isoformat(),
                revoked=other in self.revoked and name not in self.revoked,
            )
            for other, host, port in others
        ]

    def report(self, machine: Machine) -> RouterReport | None:
        orders = ordering.orders_for(machine, now=self.now)
        order, name = orders.router, machine.name
        if order is None:
            return None
        change = orders.member_change
        if change is not None and name != self.lazy and change.id not in self.tried and change.listed == self.members:
            self.tried.add(change.id)
            self.make(change)
        if order.join_existing and self.joined.get(name) != order.member_id:
            self.emptied.discard(name)
            self.joined[name] = order.member_id
        own = next((member for member in self.members if member.id == self.joined.get(name)), None)
        token = reports.cluster_token(self.environment)
        if name in self.emptied or own is None:
            return RouterReport(state=RouterState.FAILED, reason="empty", outside=True, ordered_as=order.member_id)
        self.runs[name] = order.members[name]
        if self.without_majority:
            return RouterReport(state=RouterState.NO_MAJORITY, member_id=own.id, cluster_token=token, ordered_as=order.member_id)
        return RouterReport(
            state=RouterState.STARTING if own.learner else RouterState.RUNNING,
            cluster_id="c1",
            member_id=own.id,
            cluster_token=token,
            address=self.runs[name],
            learner=own.learner,
            ordered_as=order.member_id,
            members=[] if own.learner else self.members,
            members_at=self.index,
            change=change.id if change else "",
        )

    def make(self, change: protocol.MemberChange) -> None:
        self.index += 1
        by_id = {member.id: member for member in self.members}
        name = by_id[change.member].name if change.member else change.url
        self.made.append((change.act, name))
        if change.act is MemberAct.ADD:
            self.members = [*self.members, ClusterMember(id=f"{next(self.ids):x}", name="", url=change.url, learner=True)]
            return
        if change.act is MemberAct.REMOVE:
            del by_id[change.member]
        elif change.act is MemberAct.PROMOTE:
            owner = next(name for name, member in self.joined.items() if member == change.member)
            by_id[change.member] = ClusterMember(id=change.member, name=owner, url=by_id[change.member].url)
        else:
            by_id[change.member] = ClusterMember(id=change.member, name=name, url=change.url)
        self.members = list(by_id.values())

    def change(self) -> MembershipChange:
        return MembershipChange.objects.latest("created_at")


def routers(environment: Environment) -> dict[str, Router]:
    return {router.machine.name: router for router in fleet.routers_of(environment)}


@pytest.fixture
def cluster(group: FailoverGroup) -> Cluster:
    fleet.assign_routers(group.environment, THREE)
    made = Cluster(group.environment)
    made.found()
    assert all(router.cluster_known for router in routers(group.environment).values())
    return made


def assign(cluster: Cluster, **moved: tuple[str, int]) -> MembershipChange | None:
    return membership.assign(cluster.environment, {**THREE, **moved}, actor="deployment 2", now=cluster.now, driven=True)


def test_routers_that_run_as_wished_are_left_alone(cluster: Cluster) -> None:
    assert assign(cluster) is None


def test_a_router_without_its_data_is_removed_and_added_again(cluster: Cluster, operator: User) -> None:
    former = cluster.joined["external02"]
    cluster.emptied.add("external02")
    cluster.round()
    machine = Machine.objects.get(environment=cluster.environment, name="external02")
    membership.rebuild_router(machine, actor="operator", now=cluster.now)
    cluster.round(8)
    assert cluster.change().status == "succeeded", cluster.change().sentence
    assert [act for act, _ in cluster.made] == ["remove", "add", "promote"]
    router = routers(cluster.environment)["external02"]
    assert router.desired_member_id == cluster.joined["external02"] != former
    assert router.cluster_known, "from now on an empty data directory is refused again"
    order = ordering.orders_for(machine, now=cluster.now).router
    assert order is not None and not order.join_existing and not order.may_start_empty
    assert not any(router.desired_change for router in routers(cluster.environment).values())


def test_what_lost_its_data_once_more_gets_another_id(cluster: Cluster) -> None:
    cluster.emptied.add("external02")
    cluster.round()
    assign(cluster)
    cluster.round(8)
    second = cluster.joined["external02"]
    cluster.emptied.add("external02")
    cluster.round()
    assign(cluster)
    cluster.round(2)
    order = ordering.orders_for(Machine.objects.get(name="external02"), now=cluster.now).router
    assert (order.member_id if order else None) == "", "before another one is added it goes by none: a late start would take the new id"
    assert [act for act, _ in cluster.made][-1] == "remove"
    cluster.round(8)
    assert cluster.change().status == "succeeded"
    assert cluster.joined["external02"] != second


def test_an_address_moves_after_the_machine_handed_over(cluster: Cluster) -> None:
    change = assign(cluster, external01=("10.0.0.9", 7500))
    assert change is not None
    cluster.round(3)
    change.refresh_from_db()
    assert (change.hand_over, cluster.made) == ("external01", []), "nothing is touched before"
    assert routers(cluster.environment)["external01"].desired_host == "10.0.0.1"
    membership.handed_over(change, "external01", now=cluster.now)
    cluster.round(4)
    change.refresh_from_db()
    assert change.status == "succeeded", change.sentence
    assert cluster.made == [("update", "external01")]
    assert cluster.runs["external01"] == "https://10.0.0.9:7500"
    assert {router.desired_host for router in routers(cluster.environment).values()} == {"10.0.0.9", "10.0.0.2", "10.0.0.3"}


def halfway(cluster: Cluster) -> MembershipChange:
    """One machine is moved, the other waits for a hand-over; then the deployment is cancelled."""
    change = assign(cluster, external01=("10.0.0.9", 7500), external02=("10.0.0.7", 7500))
    assert change is not None
    while not (cluster.made and change.hand_over):
        cluster.round()
        change.refresh_from_db()
        if change.hand_over and not cluster.made:
            membership.handed_over(change, change.hand_over, now=cluster.now)
            change.refresh_from_db()
    membership.halt(change, "deployment 2 was cancelled", now=cluster.now)
    change.refresh_from_db()
    assert (change.status, change.hand_over, change.driven_at) == ("halted", "", None)
    assert change.sentence.startswith("Stopped halfway, because deployment 2 was cancelled; what it was at: ")
    assert len(cluster.made) == 1
    return change


def test_a_change_whose_deployment_was_cancelled_stands_still_and_is_resumed(cluster: Cluster) -> None:
    change = halfway(cluster)
    cluster.round(4)
    assert len(cluster.made) == 1, "nothing more is done"
    found = membership.unfinished(cluster.environment)
    assert found is not None and found.pk == change.pk
    resumed = membership.resume(change, actor="operator", now=cluster.now)
    with pytest.raises(NotAllowed, match="has ended"):
        membership.resume(change, actor="operator", now=cluster.now)
    cluster.round(8)
    resumed.refresh_from_db()
    assert resumed.status == "succeeded", resumed.sentence
    assert cluster.runs["external01"] == "https://10.0.0.9:7500" and cluster.runs["external02"] == "https://10.0.0.7:7500"
    assert membership.unfinished(cluster.environment) is None


def test_a_change_that_a_deployment_drives_is_not_taken_out_of_its_hands(cluster: Cluster) -> None:
    change = assign(cluster, external01=("10.0.0.9", 7500))
    assert change is not None and change.is_driven
    for act in (membership.resume, membership.roll_back):
        with pytest.raises(NotAllowed, match=r"are being changed \(deployment 2\)"):
            act(change, actor="operator", now=cluster.now)


def test_what_was_resumed_and_cannot_go_on_is_rolled_back_instead(cluster: Cluster) -> None:
    resumed = membership.resume(halfway(cluster), actor="operator", now=cluster.now)
    back = membership.roll_back(resumed, actor="operator", now=cluster.now)
    cluster.round(8)
    back.refresh_from_db()
    assert back.status == "succeeded", back.sentence
    assert cluster.runs == {name: f"https://{host}:{port}" for name, (host, port) in THREE.items()}


def test_a_change_that_was_stopped_halfway_is_rolled_back(cluster: Cluster) -> None:
    membership.roll_back(halfway(cluster), actor="operator", now=cluster.now)
    cluster.round(8)
    assert cluster.change().status == "succeeded", cluster.change().sentence
    assert cluster.runs == {name: f"https://{host}:{port}" for name, (host, port) in THREE.items()}


def test_a_change_that_was_stopped_halfway_stands_in_nobodys_way(cluster: Cluster) -> None:
    change = halfway(cluster)
    assign(cluster, core01=("10.0.0.8", 7400))
    change.refresh_from_db()
    assert change.status == "replaced"
    newest = membership.unfinished(cluster.environment)
    assert newest is not None and newest.before == {name: list(address) for name, address in THREE.items()}, "before all of it"


def test_a_change_halts_by_itself_when_its_deployment_looks_at_it_no_more_and_goes_on_when_it_does(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = assign(cluster, external01=("10.0.0.9", 7500))
    assert change is not None

    def report_at(moment: datetime) -> str:
        monkeypatch.setattr("runtimes.membership.timezone.now", lambda: moment)
        membership.wake(cluster.environment.pk, "external01")
        change.refresh_from_db()
        return str(change.status)

    assert report_at(cluster.now + timedelta(seconds=20)) == "running"
    membership.drive(change, now=cluster.now + timedelta(seconds=25))
    assert report_at(cluster.now + timedelta(seconds=50)) == "running"
    assert report_at(cluster.now + timedelta(seconds=60)) == "halted"
    assert "deployment 2 ended before it was done" in change.sentence
    cluster.now += timedelta(seconds=61)
    cluster.round()
    assert membership.drive(change, now=cluster.now).status == "running"


def test_without_a_deployment_the_portal_hands_over_what_the_machine_leads(cluster: Cluster, group: FailoverGroup) -> None:
    change = halfway(cluster)
    at = {"at": cluster.now + timedelta(seconds=2)}
    (machine,) = {"external01", "external02"} - {name for _, name in cluster.made}
    other = "external02" if machine == "external01" else "external01"
    factories.heard(group, machine, protocol.Status.LEADER, **at)
    factories.heard(group, other, protocol.Status.FOLLOWER, observed_ready=False, **at)
    resumed = membership.resume(change, actor="operator", now=cluster.now)
    cluster.round()
    resumed.refresh_from_db()
    assert resumed.refused and "No follower is ready" in resumed.sentence, "it waits, and says for what"
    assert not resumed.is_driven, "a person may still choose to roll it back"
    at = {"at": cluster.now + timedelta(seconds=2)}
    factories.heard(group, machine, protocol.Status.LEADER, **at)
    factories.heard(group, other, protocol.Status.FOLLOWER, **at)
    cluster.round()
    request = GroupRequest.objects.get()
    assert (request.cause, request.actor) == ("deploy", "operator")
    assert len(cluster.made) == 1
    at = {"at": cluster.now + timedelta(seconds=2)}
    factories.heard(group, machine, protocol.Status.FOLLOWER, **at)
    factories.heard(group, other, protocol.Status.LEADER, **at)
    cluster.round(6)
    resumed.refresh_from_db()
    assert resumed.status == "succeeded", resumed.sentence


def test_the_witness_moves_without_a_hand_over(cluster: Cluster) -> None:
    assign(cluster, core01=("10.0.0.8", 7400))
    cluster.round(4)
    assert cluster.change().status == "succeeded"


def test_nothing_is_changed_while_another_router_is_away(cluster: Cluster) -> None:
    cluster.silent.add("external02")
    cluster.now += timedelta(minutes=5)
    cluster.round()
    change = assign(cluster, core01=("10.0.0.8", 7400))
    assert change is not None
    cluster.round(3)
    change.refresh_from_db()
    assert change.refused
    assert change.sentence.startswith("external02 must run before another router is changed")
    assert cluster.made == []


def test_a_machine_that_moved_already_is_found_at_its_new_address(cluster: Cluster) -> None:
    cluster.silent.add("external02")
    cluster.now += timedelta(minutes=5)
    cluster.round()
    assign(cluster, external02=("10.0.0.9", 7400))
    cluster.round(2)
    assert cluster.made == [("update", "external02")]
    assert cluster.change().sentence.startswith("The members are as wished; external02 has yet to run")
    cluster.silent.clear()
    cluster.round(2)
    assert cluster.change().status == "succeeded"


def test_a_router_that_does_not_carry_a_change_is_passed_over(cluster: Cluster) -> None:
    cluster.emptied.add("external02")
    cluster.round()
    assign(cluster)
    (carrier,) = [name for name, router in routers(cluster.environment).items() if router.desired_change]
    cluster.lazy = carrier
    cluster.round(5)
    assert cluster.made == [], "it has fifteen seconds, for each step"
    cluster.round(30)  # of three steps
    assert cluster.change().status == "succeeded"


def test_a_newer_wish_replaces_the_former(cluster: Cluster) -> None:
    first = assign(cluster, core01=("10.0.0.8", 7400))
    second = assign(cluster, core01=("10.0.0.7", 7400))
    assert first is not None and second is not None
    first.refresh_from_db()
    assert first.status == "replaced"
    cluster.round(4)
    assert cluster.runs["core01"] == "https://10.0.0.7:7400"


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        pytest.param(False, "has not lost its data", id="it runs"),
        pytest.param(True, "No router reports that it knows a majority", id="no majority"),
    ],
)
def test_a_router_is_not_rebuilt_in_vain(cluster: Cluster, lost: bool, said: str) -> None:
    if lost:
        cluster.emptied.add("external02")
        cluster.without_majority = True
    cluster.round()
    with pytest.raises(NotAllowed, match=said):
        machine = Machine.objects.get(environment=cluster.environment, name="external02")
        membership.rebuild_router(machine, actor="operator", now=cluster.now)


# --------------------------------------------------------------------------------------------------- the majority lost for good


@pytest.fixture
def survivor(cluster: Cluster) -> Machine:
    """external01 is left without a majority, minutes after the others fell silent; external02 was disabled."""
    GroupMember.objects.filter(runtime__machine__name="external02").update(observed_disabled=True)
    cluster.silent |= {"external02", "core01"}
    cluster.without_majority = True
    cluster.now += timedelta(minutes=5)
    cluster.round()
    return Machine.objects.select_related("environment").get(environment=cluster.environment, name="external01")


def test_of_two_people_who_build_anew_from_two_machines_the_second_is_refused(cluster: Cluster) -> None:
    """Before the second machine has heard of it: what the first one leads by now would be thrown away."""
    cluster.without_majority = True
    cluster.round()
    first, second = (Machine.objects.select_related("environment").get(name=name) for name in ("external01", "external02"))
    membership.rebuild(first, confirm="Test", actor="admin", now=cluster.now)
    second = Machine.objects.select_related("environment").get(pk=second.pk)
    with pytest.raises(NotAllowed, match="The cluster is being built anew from external01 already"):
        membership.rebuild(second, confirm="Test", actor="another admin", now=cluster.now)
    cluster.environment.refresh_from_db()
    assert cluster.environment.generation == 2
    Machine.objects.filter(pk=first.pk).update(last_report_at=cluster.now - timedelta(minutes=5))
    assert membership.why_not_rebuild(second, now=cluster.now) == "", "it died over it"


def test_a_survivor_gets_a_new_generation_and_what_must_stay_disabled(cluster: Cluster, survivor: Machine, erp02: Runtime) -> None:
    membership.rebuild(survivor, confirm=" Test ", actor="admin", now=cluster.now)
    order = ordering.orders_for(survivor, now=cluster.now)
    assert order.router is not None
    assert (order.generation, order.router.survivor, order.router.members) == (2, True, {"external01": "https://10.0.0.1:7400"})
    assert list(order.router.disabled.values()) == [["external02.erp"]]
    other = ordering.orders_for(Machine.objects.get(name="external02"), now=cluster.now).router
    assert other is not None
    assert not other.survivor and not other.may_start_empty and not other.join_existing
    assert other.cluster_token == order.router.cluster_token != f"baton-{cluster.environment.cluster.hex}-1"


def test_former_members_come_back_with_a_deployment_only(cluster: Cluster, survivor: Machine) -> None:
    """One by one they would make two votes; the deployment brings both."""
    membership.rebuild(survivor, confirm="Test", actor="admin", now=cluster.now)
    cluster.members = [member for member in cluster.members if member.name == "external01"]
    cluster.without_majority = False
    cluster.silent.clear()
    cluster.environment.refresh_from_db()
    cluster.round(2)
    assert cluster.change().status == "succeeded", cluster.change().sentence
    other = Machine.objects.get(environment=cluster.environment, name="external02")
    with pytest.raises(NotAllowed, match="external02 is no member of this cluster: a deployment"):
        membership.rebuild_router(other, actor="operator", now=cluster.now)
    assert membership.present(cluster.environment) == ({"external01": ("10.0.0.1", 7400)}, {})
    assign(cluster)
    cluster.round(14)
    assert cluster.change().status == "succeeded", cluster.change().sentence
    assert {member.name for member in cluster.members} == set(THREE)
    assert [act for act, _ in cluster.made] == ["add", "promote"] * 2


def test_beyond_five_the_others_pass_traffic_on(cluster: Cluster) -> None:
    """The sixth external machine comes to five that vote; the witness leaves."""
    for number in range(3, 7):
        machine = Machine.objects.create(environment=cluster.environment, name=f"external0{number}", kind="external")
        Router.objects.create(machine=machine)
    more = {f"external0{number}": (f"10.0.0.1{number}", 7400) for number in range(3, 7)}
    assign(cluster, **more)
    cluster.round(17)
    assert cluster.change().status == "succeeded", cluster.change().sentence
    assert {member.name for member in cluster.members} == {f"external0{number}" for number in range(1, 6)}
    sixth = ordering.orders_for(Machine.objects.get(name="external06"), now=cluster.now).router
    assert sixth is not None
    assert sixth.name not in sixth.members and set(sixth.members) == {member.name for member in cluster.members}
    assert routers(cluster.environment)["external01"].desired_gateways
    assert not routers(cluster.environment)["core01"].desired_running
    assert membership.present(cluster.environment)[1] == {"external06": ("10.0.0.16", 7400)}


def test_building_anew_asks_for_the_environments_name(cluster: Cluster, survivor: Machine) -> None:
    with pytest.raises(Invalid, match="Type Test to build its cluster anew"):
        membership.rebuild(survivor, confirm="external01", actor="admin", now=cluster.now)
    survivor.environment.refresh_from_db()
    assert survivor.environment.generation == 1


def test_a_cluster_with_a_majority_is_not_built_anew(cluster: Cluster) -> None:
    machine = Machine.objects.select_related("environment").get(environment=cluster.environment, name="external01")
    with pytest.raises(NotAllowed, match="core01, external01, external02 still know a majority"):
        membership.rebuild(machine, confirm="Test", actor="admin", now=cluster.now)


def test_nothing_is_built_from_a_silent_or_emptied_machine(cluster: Cluster, survivor: Machine) -> None:
    silent = Machine.objects.select_related("environment").get(environment=cluster.environment, name="external02")
    with pytest.raises(NotAllowed, match="external02 is silent"):
        membership.rebuild(silent, confirm="Test", actor="admin", now=cluster.now)
    cluster.emptied.add("external01")
    cluster.round()
    with pytest.raises(
        NotAllowed, match=r"has no data of this cluster any more: empty\. Where no machine has any, take failover off in the"
    ):
        membership.rebuild(survivor, confirm="Test", actor="admin", now=cluster.now)


def test_building_anew_is_the_administrators(
    cluster: Cluster, survivor: Machine, admin: User, operator: User, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_that_time() -> datetime:
        return cluster.now

    monkeypatch.setattr("django.utils.timezone.now", at_that_time)
    page, api = "/projects/webshop/test/machines/external01/rebuild-cluster/", f"/api/v1/machines/{survivor.pk}/rebuild-cluster/"
    client.force_login(operator)
    assert client.get(page).status_code == 403
    assert client.post(api, {"confirm": "Test"}).status_code == 403
    client.force_login(admin)
    assert b"becomes the only router of a new cluster (generation 2)" in client.get(page).content
    assert b"Type Test to build" in client.post(page, {"confirm": "Prod"}).content
    assert client.post(api, {"confirm": "Acceptance"}).status_code == 400
    assert client.post(page, {"confirm": "Test"}).status_code == 302
    assert Environment.objects.get(pk=survivor.environment_id).generation == 2
    answer = client.post(api, {"confirm": "Test"})
    assert answer.status_code == 409
    assert "already" in answer.json()["detail"]


def test_rebuilding_a_router_is_the_operators(
    cluster: Cluster, operator: User, viewer: User, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.utils.timezone.now", lambda: cluster.now)
    cluster.emptied.add("external02")
    cluster.round()
    machine = Machine.objects.get(environment=cluster.environment, name="external02")
    client.force_login(viewer)
    assert client.post(f"/api/v1/machines/{machine.pk}/rebuild-router/").status_code == 403
    client.force_login(operator)
    assert b"Rebuild router" in client.get("/projects/webshop/test/machines/external02/").content
    answer = client.post(f"/api/v1/machines/{machine.pk}/rebuild-router/")
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert b"Routers are being changed" in client.get("/projects/webshop/test/machines/external02/").content
    assert client.get(f"/api/v1/machines/{machine.pk}/router-changes/").json()["results"][0]["actor"] == "operator"
    assert b"are being changed already" in client.post("/projects/webshop/test/machines/external02/rebuild-router/").content


def test_a_router_that_leaves_stays_while_something_there_runs_in_failover(
    cluster: Cluster, erp02: Runtime, group: FailoverGroup, client: Client, viewer: User
) -> None:
    """A connector was taken out of failover, another one goes on: its runtimes lose their router after they were deployed, not before."""
    Router.objects.filter(machine__name="external02").update(leaving=True)
    bundle = fleet.store_bundle(group.environment, content_for(erp02, group))
    fleet.assign(erp02, bundle)
    assert assign(cluster) is None, "the cluster stays as it is"
    wished = {name: THREE[name] for name in ("external01", "core01")}
    change = membership.assign(cluster.environment, wished, actor="deployment 2", now=cluster.now, driven=True)
    assert change is None and not cluster.made
    stays = (
        "The router of external02 stays while external02.erp runs in failover there: one deployment ends that, and the one after it lets "
        "it leave the cluster (step Deploy routers)."
    )
    routers = list(Router.objects.select_related("machine"))
    assert membership.going(cluster.environment, routers) == stays
    client.force_login(viewer)
    pages = ("/projects/webshop/test/machines/external02/", "/projects/webshop/test/architecture/")
    assert all(stays in client.get(page).content.decode() for page in pages), "the pages promise no more"
    Runtime.objects.filter(pk=erp02.pk).update(desired_running=False)
    leaves = "The router of external02 leaves the cluster with the next deployment (step Deploy routers)."
    assert all(leaves in client.get(page).content.decode() for page in pages)
    change = membership.assign(cluster.environment, wished, actor="deployment 3", now=cluster.now, driven=True)
    assert change is not None and "external02" not in change.wished, "now it is to leave"


def test_rebuilding_a_router_lets_no_other_one_leave(cluster: Cluster) -> None:
    """That one goes with a deployment, as its page says: what runs there in failover would stand still without it."""
    Router.objects.filter(machine__name="external02").update(leaving=True)
    cluster.emptied.add("core01")
    cluster.round()
    membership.rebuild_router(Machine.objects.get(name="core01"), actor="operator", now=cluster.now)
    cluster.round(8)
    assert cluster.change().status == "succeeded", cluster.change().sentence
    assert cluster.made[0] == ("remove", "core01") and [act for act, _ in cluster.made] == ["remove", "add", "promote"]
    assert routers(cluster.environment)["external02"].leaving


def test_after_a_rebuild_the_refused_members_are_not_what_a_roll_back_goes_back_to(cluster: Cluster, survivor: Machine) -> None:
    membership.rebuild(survivor, confirm="Test", actor="admin", now=cluster.now)
    assert membership.present(cluster.environment) == ({"external01": ("10.0.0.1", 7400)}, {})


@pytest.mark.parametrize(("version", "generation"), [(2**63 - 1, 1), (2**63 - 1, 2), (41, 2_000_000_000)])
def test_a_machine_that_tells_of_orders_nobody_gave_is_not_believed(
    cluster: Cluster, external02: Machine, version: int, generation: int
) -> None:
    """Believed, its own orders could never be given again, and on PostgreSQL nobody's."""
    before = external02.orders_version
    token = f"{reports.cluster_token(cluster.environment).removesuffix('-1')}-{generation}"
    Machine.objects.exclude(pk=external02.pk).update(last_report_at=cluster.now - timedelta(hours=1))
    router = RouterReport(state=RouterState.RUNNING, cluster_id="c1", member_id="m", cluster_token=token)
    fleet.record_report(external02, said(1000, router=router, orders_version=version), now=cluster.now)
    external02.refresh_from_db()
    cluster.environment.refresh_from_db()
    assert (cluster.environment.generation, external02.orders_version - before) in ((1, 0), (1, 1))


def test_a_portal_that_was_restored_takes_over_what_runs(cluster: Cluster, external02: Machine) -> None:
    """A backup from before the cluster was built anew, and before external02 was added to it: nothing may be ordered back."""
    environment, backup = cluster.environment, Router.objects.get(machine=external02).desired_members
    joined = cluster.joined["external02"]
    token = reports.cluster_token(environment).removesuffix("-1") + "-2"

    def runs(sequence: int, version: int, **more: object) -> RouterReport:
        router = RouterReport(
            state=RouterState.RUNNING, cluster_id="c1", member_id=joined, cluster_token=token, address="https://10.0.0.9:7401",
            ordered_as=joined, members=cluster.members, members_at=200, **more,  # type: ignore[arg-type]
        )  # fmt: skip
        fleet.record_report(external02, said(sequence, router=router, orders_version=version), now=cluster.now)
        return router

    runs(1000, 41)
    environment.refresh_from_db()
    assert environment.generation == 1, "one machine of three says so"
    Machine.objects.exclude(pk=external02.pk).update(last_report_at=cluster.now - timedelta(hours=1))  # as after a backup
    Router.objects.exclude(machine=external02).update(cluster_known=False)  # from before the cluster was founded
    runs(1002, 41)
    environment.refresh_from_db()
    external02.refresh_from_db()
    assert environment.generation == 2 and external02.orders_version > 41, "its agent waits for more than it has taken"
    order = ordering.orders_for(external02, now=cluster.now).router
    assert order is not None and (order.cluster_token, order.member_id) == (token, joined)
    assert (order.peer_host, order.peer_port, order.members) == ("10.0.0.9", 7401, backup)
    assert not order.may_start_empty and not order.join_existing
    assert all(router.cluster_known for router in fleet.routers_of(environment)), "nobody founds that generation beside it"
    version = external02.orders_version
    runs(1003, version)
    external02.refresh_from_db()
    assert external02.orders_version == version, "and then nothing is new"


def test_a_router_of_a_cluster_that_has_ended_proves_nothing_of_the_one_to_be_founded(external01: Machine, routers_addressed: None) -> None:
    """Failover was taken off and comes again; this machine's agent was away meanwhile, its router was not."""
    environment, router = external01.environment, Router.objects.get(machine=external01)
    Environment.objects.filter(pk=environment.pk).update(generation=2)

    def runs(sequence: int, generation: int) -> bool:
        token = f"baton-{environment.cluster.hex}-{generation}"
        report = RouterReport(state=RouterState.RUNNING, cluster_id="c1", member_id="b1", cluster_token=token)
        fleet.record_report(Machine.objects.get(pk=external01.pk), said(sequence, router=report), now=NOW)
        router.refresh_from_db()
        return router.cluster_known

    assert not runs(1, 1), "else it would be refused as one that lost its data"
    assert runs(2, 2)


def test_a_token_of_another_cluster_raises_no_generation(cluster: Cluster, external02: Machine) -> None:
    router = RouterReport(state=RouterState.RUNNING, cluster_id="c9", member_id="9", cluster_token="baton-other-7", ordered_as="9")
    fleet.record_report(external02, said(1000, router=router, orders_version=900), now=cluster.now)
    cluster.environment.refresh_from_db()
    assert cluster.environment.generation == 1


# ---------------------------------------------------------------------------------------------------- a certificate was taken back


def test_a_router_whose_certificate_was_taken_back_is_shut_out_and_its_machine_comes_back_with_another(cluster: Cluster) -> None:
    """It could read and vote through the others' calls: etcd asks no list when it calls."""
    cluster.take_back("external02")
    cluster.round(10)
    assert cluster.made == [], "a machine that is registered anew shows its new certificate within this time"
    cluster.round(10)
    assert cluster.made == [("remove", "external02")]
    change = cluster.change()
    assert (change.actor, change.status, change.refused) == ("revocation of external02", "running", True)
    assert change.sentence.startswith("external02 is out and not added again, for somebody answers at its address whose certificate was")
    cluster.revoked.clear()
    cluster.round(8)
    assert cluster.change().status == "succeeded", cluster.change().sentence
    assert [act for act, _ in cluster.made] == ["remove", "add", "promote"]


def test_nobody_is_shut_out_on_anothers_word_alone(cluster: Cluster) -> None:
    """Its certificate was never taken back: who says that it was is wrong, or lies."""
    cluster.revoked["external02"] = cluster.now
    cluster.round(20)
    assert cluster.made == [] and membership.under_way(cluster.environment) is None


@pytest.mark.parametrize("since", ["", "2026-11-22T11:00:00", "yesterday"])
def test_a_moment_that_is_none_stops_no_look_at_the_routers(cluster: Cluster, external01: Machine, since: str) -> None:
    cluster.round()
    cluster.take_back("external02")
    peer = PeerReport(machine="external02", address="10.0.0.2:7400", reachable=True, since=since, revoked=True)
    fleet.record_report(external01, said(1000, router=cluster.report(external01), peers=[peer]), now=cluster.now)
    membership.shut_out(cluster.environment.pk, "external01", now=cluster.now)
    assert membership.under_way(cluster.environment) is None


def test_not_below_a_majority(cluster: Cluster) -> None:
    cluster.silent.add("core01")
    cluster.take_back("external02")
    cluster.round(17)
    assert cluster.made == []
    assert "1 of 3 routers run, no majority" in cluster.change().sentence


def test_a_deployment_that_changes_the_routers_shuts_out_too(cluster: Cluster) -> None:
    cluster.take_back("external02", since=cluster.now - membership.REVOKED_FOR)
    cluster.round()
    change = assign(cluster)
    assert change is not None and change.status == "running"
    cluster.round(4)
    assert ("remove", "external02") in cluster.made
