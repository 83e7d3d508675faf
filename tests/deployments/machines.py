"""The machines of an environment as the portal knows them: they take orders and report, without processes. For tests of the engine."""

from datetime import datetime, timedelta

import msgspec

from portal.models import Environment
from runtimes import fleet, ordering, protocol
from runtimes.models import Machine
from runtimes.protocol import GroupReport, RouterState, RuntimeReport, RuntimeState, State, Status


class Machines:
    """Obeys every order at the next report. One leader per group: the first that runs, until a hand-over or its runtime stops."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.silent: set[str] = set()
        self.failing: dict[str, str] = {}  # runtime key -> reason
        self.routers: dict[str, str] = {}  # machine -> why its router does not run
        self.plays_etcd = False  # do its routers list their members, and carry changes of them
        self.listed: dict[str, protocol.ClusterMember] = {}
        self.refusing: str = ""  # why hand-overs fail
        self.leaders: dict[str, str] = {}  # group id -> runtime key
        self.interrupted: list[str] = []  # runtimes that were stopped or changed while they led
        self.interrupted_groups: list[str] = []  # ids of the groups that they led
        self.handed_over: list[tuple[str, str]] = []  # runtime key, cause
        self.commands: dict[str, protocol.CommandReport] = {}  # name -> what becomes of it
        self.listed_commands: list[str] | None = None  # as agents of earlier versions: nothing is told
        self.started: list[str] = []  # runtime keys, each time a process began
        self.together: set[frozenset[str]] = set()  # digests that ran at one instant
        self._epochs: dict[str, int] = {}
        self._runs: dict[str, tuple[str, int]] = {}  # runtime key -> digest and restarts of its process
        self._outcomes: dict[str, protocol.RequestOutcome] = {}
        self._orders: dict[str, protocol.Orders] = {}  # machine -> what it took
        self._said: dict[str, tuple[protocol.Report, datetime]] = {}  # machine -> what it told last, and when
        self._sequence = 0

    def report(self, now: datetime) -> None:
        """Every machine that is not silent takes its orders and reports, twice: the second tells what the others did in the first."""
        for _ in range(2):
            for machine in Machine.objects.filter(environment=self.environment).exclude(name__in=self.silent).order_by("name"):
                self._report(machine, now)

    def _report(self, machine: Machine, now: datetime) -> None:
        """As an agent does: at once where there is news, else every second."""
        said = self._say(self._take_orders(machine, now), machine.name, now)
        before, at = self._said.get(machine.name, (None, now))
        if said == before and now - at < timedelta(seconds=1):
            return
        self._said[machine.name] = said, now
        self._sequence += 1
        fleet.record_report(machine, msgspec.structs.replace(said, sequence=self._sequence), now=now)

    def _take_orders(self, machine: Machine, now: datetime) -> protocol.Orders:
        """As an agent does: asked for anew only when there are newer ones."""
        known = self._orders.get(machine.name)
        if known is None or known.version != machine.orders_version:
            known = self._orders[machine.name] = ordering.orders_for(machine, now=now)
        return known

    def _say(self, orders: protocol.Orders, machine: str, now: datetime) -> protocol.Report:
        for runtime in orders.runtimes:
            self._obey(runtime)
        for request in orders.requests:
            self._carry(request, machine)
        router = None
        if orders.router is not None:
            reason = self.routers.get(machine, "")
            router = protocol.RouterReport(state=RouterState.FAILED if reason else RouterState.RUNNING, reason=reason, cluster_id="c1")
            router = self._member(orders) if self.plays_etcd else router
        return protocol.Report(
            agent_version="1",
            boot_id="b",
            started_at="2026-01-01T00:00:00+00:00",
            orders_version=orders.version,
            sequence=0,
            listed_commands=self.listed_commands,
            router=router,
            runtimes=[self._runtime(runtime, now) for runtime in orders.runtimes],
            outcomes=list(self._outcomes.values()),
            commands=[
                msgspec.structs.replace(self.commands[order.name], id=order.id) for order in orders.commands if order.name in self.commands
            ],
        )

    def _member(self, orders: protocol.Orders) -> protocol.RouterReport:
        """A router that runs as ordered; its etcd takes every change of an address at once."""
        assert orders.router is not None
        if not self.listed:
            members = orders.router.members.items()
            self.listed = {name: protocol.ClusterMember(id=name.encode().hex(), name=name, url=url) for name, url in members}
        change = orders.member_change
        if change is not None and change.listed == sorted(self.listed.values(), key=lambda member: member.id):
            name = bytes.fromhex(change.member).decode()
            self.listed[name] = protocol.ClusterMember(id=change.member, name=name, url=change.url)
        return protocol.RouterReport(
            state=RouterState.RUNNING,
            cluster_id="c1",
            member_id=orders.router.name.encode().hex(),
            cluster_token=orders.router.cluster_token,
            address=orders.router.members[orders.router.name],
            members=sorted(self.listed.values(), key=lambda member: member.id),
            members_at=self._sequence,
        )

    def _obey(self, order: protocol.RuntimeOrder) -> None:
        wished = (order.digest, order.restarts) if order.running and order.digest and order.key not in self.failing else None
        present = self._runs.get(order.key)
        if present == wished:
            return
        for group, leader in list(self.leaders.items()):
            if leader == order.key and present is not None:
                self.interrupted.append(order.key)
                self.interrupted_groups.append(group)
                del self.leaders[group]
        self._runs.pop(order.key, None)
        if wished is not None:
            self._runs[order.key] = wished
            self.started.append(order.key)
        self.together.add(frozenset(digest for digest, _ in self._runs.values()))

    def _carry(self, request: protocol.GroupRequest, machine: str) -> None:
        if request.id in self._outcomes:
            return
        leader = self.leaders.get(request.group)
        members = [key for key in self._runs if key.split(".")[1] == self._connector_of(request.group) and key != leader]
        chosen = next((key for key in members if request.machine in (None, key.split(".")[0])), None)
        if self.refusing or chosen is None:
            outcome = protocol.RequestOutcome(
                id=request.id, status=protocol.RequestStatus.FAILED, code="x", reason=self.refusing or "nobody"
            )
        else:
            self.lead(request.group, chosen)
            self.handed_over.append((chosen, request.cause))
            outcome = protocol.RequestOutcome(id=request.id, status=protocol.RequestStatus.SUCCEEDED)
        self._outcomes[request.id] = outcome

    def _connector_of(self, group: str) -> str:
        from portal.models import Group

        return Group.objects.get(key=group).connector.name

    def lead(self, group: str, key: str) -> None:
        self.leaders[group] = key
        self._epochs[group] = self._epochs.get(group, 0) + 1

    def _runtime(self, order: protocol.RuntimeOrder, now: datetime) -> RuntimeReport:
        if order.key in self.failing:
            return RuntimeReport(key=order.key, state=RuntimeState.FAILED, reason=self.failing[order.key])
        if order.key not in self._runs:
            return RuntimeReport(key=order.key, state=RuntimeState.STOPPED)
        digest, restarts = self._runs[order.key]
        return RuntimeReport(
            key=order.key,
            state=RuntimeState.READY,
            pid=4711,
            restarts=restarts,
            digest=digest,
            release=order.release,
            groups=[self._group(group, order.key) for group in order.preferences],
        )

    def _group(self, group: str, key: str) -> GroupReport:
        if group not in self.leaders:
            self.lead(group, key)
        leads = self.leaders[group] == key
        return GroupReport(
            group=group,
            status=Status.LEADER if leads else Status.FOLLOWER,
            state=State.ON if leads else State.OFF,
            reason="leads" if leads else "follows",
            epoch=self._epochs[group],
            leader=self.leaders[group],
            ready=True,
        )
