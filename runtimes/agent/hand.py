"""What a machine's administrator sees and does on the machine itself, with or without the portal (docs/failover.md, On the machine).

Reads the agent's home, which only he can read, and talks to the majority through this machine's own router. Nothing here votes or leads,
and nothing in the home is changed: a wish goes into `control/<group>` exactly as the agent carries one of the portal.
"""

import asyncio
import os
import pwd
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from runtimes.agent import linux
from runtimes.agent.decide import Launched
from runtimes.agent.etcd_member import Health, Member, RouterLaunch, judge
from runtimes.agent.home import Home, Identity
from runtimes.agent.peers import SILENT, Seen, clock_of, look_around, why_cut_off
from runtimes.agent.program import Program
from runtimes.process.etcd import Etcd, OutcomeUnknown
from runtimes.process.tls import ClientTls
from runtimes.process.wishes import Picture, RefusedError, look, moving, place_request
from runtimes.protocol import (
    BundleContent,
    Cause,
    FlowReport,
    GroupReport,
    GroupRequest,
    GroupSpec,
    IsolationPolicy,
    KeeperNews,
    Orders,
    PeerReport,
    RequestKind,
    RequestOutcome,
    RequestStatus,
    RouterReport,
    RouterState,
    RuntimeOrder,
    State,
    Status,
    Timing,
    Wire,
    decode,
    digest_of,
    runtime_key,
)

ASK_SECONDS = 1.0  # one question to the router
LOOK_AGAIN_SECONDS = 0.1
LEADS = (Status.LEADER, Status.SINGLE_NODE)
BEYOND_DRAIN_SECONDS = 10.0  # a switch is followed for the drain limit and so long


class NotHere(Exception):  # noqa: N818 - said by name
    """No access to the home, or nothing here by the given name; the message says what to do."""


class Refused(Exception):  # noqa: N818 - said by name
    """The wish was refused or failed; the message says why."""


# --------------------------------------------------------------------------------------------------------------------- what is here


@dataclass(frozen=True)
class GroupHere:
    """A group of which this machine has a member, as its bundle says."""

    spec: GroupSpec
    key: str  # this machine's member, "external01.erp"
    connector: str
    release: int | None  # that is ordered here

    @property
    def title(self) -> str:
        return f"{self.connector}/{self.spec.name}"


class Machine:
    """One machine by its agent's home.

    Raises (made from a folder): NotHere.
    """

    def __init__(self, root: Path) -> None:
        self.home = open_home(root)
        identity = self.home.read("identity.json", Identity)
        if identity is None:
            raise NotHere(f"the machine of {self.home.root} has not joined a portal yet: start its agent with --token")
        self.identity: Identity = identity
        self.orders: Orders = self.home.read("orders.json", Orders) or Orders(version=0, namespace="")
        self.member: Member | None = self.home.read("router/member.json", Member) if self.orders.router is not None else None
        self.groups = [group for order in self.orders.runtimes for group in self._groups_of(order)]

    @property
    def timing(self) -> Timing:
        return self.orders.timing

    def agent_is_running(self) -> bool:
        return linux.is_locked(self.home.root / "agent.lock")

    def router_url(self) -> str | None:
        """Client address of this machine's own router; None: it has none."""
        return f"https://127.0.0.1:{self.member.client_port}" if self.member is not None else None

    @asynccontextmanager
    async def router(self) -> AsyncIterator[Etcd | None]:
        """This machine's own router, as its runtimes reach it."""
        url = self.router_url()
        if url is None:
            yield None
            return
        client = Etcd(url, self.home.tls)
        try:
            yield client
        finally:
            await client.close()

    async def place(self, group: GroupHere, request: GroupRequest) -> RequestOutcome:
        """Carry a wish as the agent does. Raises: Refused where there is no router."""
        async with self.router() as client:
            if client is None:
                raise Refused("this machine has no router, so it cannot reach the other members: deploy the routers")
            return await place_request(
                client,
                self.orders.namespace,
                request,
                member=group.key,
                generation=self.orders.generation,
                timing=self.timing,
                activated=group.release,
            )

    async def picture(self, client: Etcd, group: GroupHere) -> Picture:
        return await look(client, self.orders.namespace, group.spec.id, self.timing)

    def launched(self, key: str) -> Launched | None:
        """What the runtime was started with last."""
        found: Launched | None = _record(key, self.home.runtime_folder(key)).what(Launched)
        return found

    def launched_router(self) -> RouterLaunch | None:
        found: RouterLaunch | None = _record("router", self.home.router).what(RouterLaunch)
        return found

    async def news(self, key: str) -> KeeperNews | None:
        """What the runtime's keeper says now; None when there is none."""
        folder = self.home.runtime_folder(key)
        return await Program.glance(folder) if linux.is_locked(folder / "keeper.lock") else None

    def bundle(self, digest: str) -> BundleContent | None:
        """A verified bundle's content; None when it is not here, or not what its digest says (doctor tells)."""
        try:
            data = self.home.bundle_path(digest).read_bytes()
            return decode(BundleContent, data) if digest_of(data) == digest else None
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def named(self, name: str) -> GroupHere:
        """The group of that name, "connector/name" or id. Raises: NotHere."""
        found = [group for group in self.groups if name in (group.spec.name, group.title, group.spec.id)]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotHere(f"{name} is a group of several connectors here: say one of {', '.join(group.title for group in found)}")
        known = ", ".join(group.title for group in self.groups) or "none"
        raise NotHere(f"this machine has no member in a group {name}; its groups: {known}")

    def _groups_of(self, order: RuntimeOrder) -> list[GroupHere]:
        """As the bundle says that runs (or ran last); else as the ordered one."""
        launched = self.launched(order.key)
        for digest in (launched.digest if launched else None, order.digest):
            content = self.bundle(digest) if digest else None
            if content is not None:
                return [GroupHere(spec, order.key, order.connector, order.release) for spec in content.groups]
        return []


def open_home(root: Path) -> Home:
    """The home of this machine's agent, if this user may read it. Raises: NotHere."""
    try:
        if not root.is_dir():
            raise NotHere(f"{root} is no agent's home: name it with --home (or BATON_AGENT_HOME)")
        list(root.iterdir())
        for name in ("identity.json", "orders.json"):
            if (root / name).exists():
                (root / name).open("rb").close()
    except PermissionError:
        raise NotHere(
            f"{root} may be read by this machine's administrator only: run this as the user that the agent runs as, or as root (sudo)"
        ) from None
    return Home.existing(root)


def _record(name: str, folder: Path) -> Program:
    return Program(name, folder, lambda: None, lambda _: None, lambda _: None)


def actor(machine: str) -> str:
    """Who acts, for people: "<login> on <machine>"."""
    try:
        login = os.getlogin()  # of the terminal: who became root by sudo is still told by name
    except OSError:
        login = os.environ.get("SUDO_USER", "") if os.geteuid() == 0 else ""
    if not login:
        try:
            login = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            login = f"user {os.getuid()}"
    return f"{login} on {machine}"


# --------------------------------------------------------------------------------------------------------------------- status


class RouterStatus(Wire, frozen=True):
    state: RouterState
    majority: bool  # did it answer through a majority just now
    reason: str
    url: str | None
    etcd_version: str = ""
    members: list[str] = []


class MemberStatus(Wire, frozen=True):
    runtime: str
    machine: str
    session: str  # "fresh": it moved while it was watched for a TTL; "stands still"; "absent"; "unknown": no majority was reached
    ready: bool = False
    on: bool = False
    disabled: bool = False
    leads: bool = False
    release: int | None = None


class RequestHere(Wire, frozen=True):
    id: str
    to: str | None
    actor: str
    cause: Cause


class GroupStatus(Wire, frozen=True):
    """`leader` and what follows come from the majority; `here` is the own process's word, None when its keeper does not answer."""

    id: str
    name: str
    connector: str
    known: bool  # could a majority be asked
    leader: str | None
    epoch: int
    isolation: IsolationPolicy
    request: RequestHere | None
    members: list[MemberStatus]
    here: GroupReport | None
    problem: str = ""


class MachineStatus(Wire, frozen=True):
    machine: str
    environment: str
    project: str
    portal: str
    agent_running: bool
    router: RouterStatus
    groups: list[GroupStatus]
    peers: list[PeerReport] = []  # the siblings' routers, tried now; since when, as the agent has seen them

    @property
    def well(self) -> bool:
        """The router has a majority and every group a living leader, and no own process says otherwise."""
        router = self.router.majority or self.router.state == RouterState.ABSENT
        return router and not any(group.problem for group in self.groups)


async def status(machine: Machine) -> MachineStatus:
    """Takes up to a TTL: a session is fresh when it is seen to move. Works without the portal, and without the agent."""
    peers = await peers_now(machine)
    async with machine.router() as client:
        router = with_cause(await router_status(machine, client), peers)
        heard, pictures = await _read(machine, client, router)
        moved = await _moved(machine, client, pictures) if client and router.majority else None
        if any(leads_off(group, pictures[group.spec.id], heard[group.key]) for group in machine.groups):
            await asyncio.sleep(machine.timing.ttl)  # a hand-over passes through Off within milliseconds
            heard, pictures = await _read(machine, client, router)
        groups = [_group_status(machine, group, pictures[group.spec.id], heard[group.key], moved) for group in machine.groups]
    return MachineStatus(
        machine=machine.identity.machine,
        environment=machine.identity.environment,
        project=machine.identity.project,
        portal=machine.identity.portal,
        agent_running=machine.agent_is_running(),
        router=router,
        groups=groups,
        peers=peers,
    )


async def _read(
    machine: Machine, client: Etcd | None, router: RouterStatus
) -> "tuple[dict[str, KeeperNews | None], dict[str, Picture | str]]":
    """What the own processes say, by runtime, and what the majority says, by group (or why it cannot be asked)."""
    heard = {order.key: await machine.news(order.key) for order in machine.orders.runtimes}
    pictures: dict[str, Picture | str] = {}
    for group in machine.groups:
        pictures[group.spec.id] = await _try_look(machine, client, group) if client and router.majority else router.reason
    return heard, pictures


async def peers_now(machine: Machine) -> list[PeerReport]:
    """Every sibling's router, tried now; since when it is as it is, the agent has written down."""
    seen = machine.home.read("peers.json", Seen) or Seen()
    known = {peer.machine: peer for peer in seen.peers}
    return list((await look_around(machine.orders.router, machine.home, ClientTls(machine.home.tls), known)).values())


def with_cause(router: RouterStatus, peers: list[PeerReport]) -> RouterStatus:
    """A router that knows no majority, with the siblings that it cannot reach."""
    if router.majority or router.state is RouterState.ABSENT:
        return router
    cut = why_cut_off(RouterReport(state=router.state, reason=router.reason), peers, linux.utc_now())
    return msgspec.structs.replace(router, reason=cut)


async def router_status(machine: Machine, client: Etcd | None) -> RouterStatus:
    """How this machine's router is: asked now."""
    order = machine.orders.router
    if client is None or order is None:
        return RouterStatus(state=RouterState.ABSENT, majority=False, reason="no router is ordered on this machine", url=None)
    health = await _health(client)
    launched = machine.launched_router()
    return RouterStatus(
        state=health.state,
        majority=health.state == RouterState.RUNNING,
        reason=health.reason,
        url=client.url,
        etcd_version=launched.version if launched is not None else "",
        members=sorted(order.members),
    )


async def _health(client: Etcd) -> Health:
    try:
        told = dict(await client.ask("/v3/maintenance/status", {}, timeout=ASK_SECONDS))
    except OutcomeUnknown as error:
        if isinstance(error.__cause__, httpx.TimeoutException):  # its process is there, or the connection would be refused
            return Health(RouterState.NO_MAJORITY, SILENT)
        return Health(RouterState.FAILED, str(error))
    try:
        alarms = await client.ask("/v3/maintenance/alarm", {"action": "GET"}, timeout=ASK_SECONDS)
        await client.ask("/v3/kv/range", {"key": "AA==", "keys_only": True}, timeout=ASK_SECONDS)  # linearizable: a majority has to answer
    except OutcomeUnknown:
        return judge(told, False, [], "")
    return judge(told, True, [str(alarm.get("alarm")) for alarm in alarms.get("alarms", [])], "")


async def _try_look(machine: Machine, client: Etcd, group: GroupHere) -> "Picture | str":
    try:
        return await machine.picture(client, group)
    except (OutcomeUnknown, RefusedError) as error:
        return str(error)


async def _moved(machine: Machine, client: Etcd, pictures: "dict[str, Picture | str]") -> set[str] | None:
    """Runtimes whose session moved while it was watched; None: no majority answered any more."""
    keys = {member for group in machine.groups for member in group.spec.members}
    read_so = {
        key: seen for picture in pictures.values() if isinstance(picture, Picture) for key, seen in picture.sessions.items() if key in keys
    }
    try:
        return await moving(client, machine.orders.namespace, read_so, machine.timing, enough=len(read_so))
    except OutcomeUnknown:
        return None


def leads_off(group: GroupHere, picture: "Picture | str", news: KeeperNews | None) -> str:
    """ "external02.erp leads, but its inbounds are Off: …" by the leader's own last word; empty while they run, or nobody leads."""
    here = _here(group, news)
    if here is not None and here.status in LEADS:
        if here.state != State.OFF or news is None:
            return ""
        reasons = [f"{flow.name} is off: {flow.reason}" for flow in news.flows if flow.group == here.group and not flow.on and flow.reason]
        return f"{group.key} leads, but its inbounds are Off: {'; '.join(reasons) or here.reason}"
    leader = picture.leader.runtime if isinstance(picture, Picture) and picture.leader is not None else None
    if leader is None or leader == group.key or not isinstance(picture, Picture) or leader not in picture.sessions:
        return ""
    mark = picture.sessions[leader][0].groups.get(group.spec.id)
    return "" if mark is not None and mark.on else f"{leader} leads, but not all of its inbounds run: look there"


def _here(group: GroupHere, news: KeeperNews | None) -> GroupReport | None:
    return next((said for said in news.groups if said.group == group.spec.id), None) if news is not None else None


def _trouble_here(machine: Machine, group: GroupHere, news: KeeperNews | None) -> str:
    """What this machine's own process says of its member that is not as it should be."""
    here = _here(group, news)
    if news is None or here is None:
        as_ordered = news is None and any(order.key == group.key and not order.running for order in machine.orders.runtimes)
        return "" if as_ordered else f"the process of {group.key} is not running"
    if here.state == State.PARTLY:
        return f"some inbounds run here and some do not: {here.reason}"
    if here.status in (Status.FOLLOWER, Status.DISABLED) and here.state == State.ON:
        return f"{group.key} is {here.status}, but its inbounds are On"
    silent = [_silence(flow) for flow in news.flows if flow.group == here.group] if here.status in LEADS else []
    return next(filter(None, silent), "") or news.hangs


def _silence(flow: FlowReport) -> str:
    """As the alarm "Leader but silent" says it."""
    since = flow.undelivered_since or flow.silent_since
    if not flow.on or not since:
        return ""
    what = f"the target of {flow.name} has taken nothing" if flow.undelivered_since else f"{flow.name} has had no answer of its source"
    return f"{what} since {clock_of(since, linux.utc_now())}" + (f": {flow.reason}" if flow.reason else "")


def _group_status(
    machine: Machine, group: GroupHere, picture: "Picture | str", news: KeeperNews | None, moved: set[str] | None
) -> GroupStatus:
    here = _here(group, news)
    fields: dict[str, Any] = {"id": group.spec.id, "name": group.spec.name, "connector": group.connector, "here": here}
    trouble = leads_off(group, picture, news) or _trouble_here(machine, group, news)
    if not isinstance(picture, Picture):
        single = here is not None and here.status == Status.SINGLE_NODE and machine.orders.router is None
        members = [MemberStatus(runtime=key, machine=_machine_of(key), session="unknown") for key in group.spec.members]
        policy = here.isolation if here is not None else IsolationPolicy.STOP
        leads = here.leader if here is not None else None
        problem = "" if single else f"who leads cannot be told: {picture}"
        fields |= {"known": False, "leader": leads if single else None, "epoch": 0, "isolation": policy, "request": None}
        return GroupStatus(**fields, members=members, problem=trouble or problem)
    leader = picture.leader.runtime if picture.leader is not None else None
    members = [_member_status(group, picture, key, moved) for key in group.spec.members]
    request = picture.control.request
    problem = ""
    if leader is None:
        problem = "nobody leads"
        if here is not None and here.status == Status.SINGLE_NODE:
            leader, problem = here.leader, ""
    elif moved is not None and leader not in moved:
        problem = f"{leader} holds the leadership but its session does not move"
    return GroupStatus(
        **fields,
        known=True,
        leader=leader,
        epoch=picture.epoch(machine.orders.generation),
        isolation=picture.control.isolation,
        request=RequestHere(id=request.id, to=request.to, actor=request.actor, cause=request.cause) if request is not None else None,
        members=members,
        problem=problem or trouble,
    )


def _member_status(group: GroupHere, picture: Picture, key: str, moved: set[str] | None) -> MemberStatus:
    found = picture.sessions.get(key)
    mark = found[0].groups.get(group.spec.id) if found else None
    session = "absent" if found is None else "unknown" if moved is None else "fresh" if key in moved else "stands still"
    return MemberStatus(
        runtime=key,
        machine=_machine_of(key),
        session=session,
        ready=mark.ready if mark else False,
        on=mark.on if mark else False,
        disabled=key in picture.control.disabled,
        leads=picture.leader is not None and picture.leader.runtime == key,
        release=found[0].release if found else None,
    )


def _machine_of(key: str) -> str:
    return key.split(".", 1)[0]


# --------------------------------------------------------------------------------------------------------------------- acts


async def switch(machine: Machine, group: GroupHere, to: str | None) -> str:
    """Hand the group over to its member on `to` (None: to any ready follower), and follow that until it is done.

    Returns: how it ended, as a sentence. Raises: Refused, NotHere.
    """
    _refuse_unknown(group, to)
    before = await _look_or_refuse(machine, group)
    request = _request(machine, group, RequestKind.SWITCH, to, Cause.SWITCH, before.epoch(machine.orders.generation))
    outcome = await machine.place(group, request)
    until = time.monotonic() + machine.timing.drain + BEYOND_DRAIN_SECONDS
    while outcome.status == RequestStatus.RUNNING or (outcome.code == "no-majority" and time.monotonic() < until):
        if time.monotonic() >= until:
            raise Refused("it was asked for, but nobody has said how it ended; see `baton-agent status`")
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
        outcome = await machine.place(group, request)  # asking again tells how it went
    return _sentence(outcome)


async def disable(machine: Machine, group: GroupHere, name: str | None) -> str:
    """Disable the member on a machine (None: this one), and follow it until it is Off. Returns and raises as `switch` does."""
    name = name or machine.identity.machine
    _refuse_unknown(group, name)
    request = _request(machine, group, RequestKind.DISABLE, name, Cause.DISABLE, None)
    said = _sentence(await machine.place(group, request))
    key = runtime_key(name, group.connector)
    until = time.monotonic() + machine.timing.drain + BEYOND_DRAIN_SECONDS
    while time.monotonic() < until:
        picture = await _look_or_refuse(machine, group)
        leader = picture.leader.runtime if picture.leader is not None else None
        if leader != key:
            others = [other for other in group.spec.members if other != key and other not in picture.control.disabled]
            if leader is None and others:  # a ready member takes it within this time
                await asyncio.sleep(machine.timing.ttl)
                picture = await _look_or_refuse(machine, group)
                leader = picture.leader.runtime if picture.leader is not None else None
            led = f"{leader} leads" if leader else "nobody leads, no other member was ready: the data waits in the source"
            return f"{key} is disabled and takes no leadership until it is enabled; {led}"
        if not await _session_moves(machine, picture, key):
            return f"{said}; its process does not answer, so it holds the leadership by name only until another takes it"
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
    raise Refused(f"{said}; it has not given leadership up yet: see `baton-agent status`")


async def enable(machine: Machine, group: GroupHere, name: str | None) -> str:
    """Enable the member on a machine (None: this one). Returns and raises as `switch` does."""
    name = name or machine.identity.machine
    _refuse_unknown(group, name)
    return _sentence(await machine.place(group, _request(machine, group, RequestKind.ENABLE, name, Cause.SWITCH, None)))


def _request(machine: Machine, group: GroupHere, kind: RequestKind, name: str | None, cause: Cause, epoch: int | None) -> GroupRequest:
    return GroupRequest(
        id=str(uuid.uuid4()),
        kind=kind,
        group=group.spec.id,
        machine=name,
        expected_epoch=epoch,
        cause=cause,
        actor=actor(machine.identity.machine),
        valid_seconds=machine.timing.drain + BEYOND_DRAIN_SECONDS,
    )


def _refuse_unknown(group: GroupHere, name: str | None) -> None:
    machines = [_machine_of(key) for key in group.spec.members]
    if name is not None and name not in machines:
        raise NotHere(f"{name} has no member in {group.title}: its members are on {', '.join(machines)}")
    if not group.spec.failover:
        raise Refused(f"{group.title} does not run in failover: it runs on this machine as a normal inbound")


async def _look_or_refuse(machine: Machine, group: GroupHere) -> Picture:
    async with machine.router() as client:
        if client is None:
            raise Refused("this machine has no router, so it cannot reach the other members: deploy the routers")
        try:
            return await machine.picture(client, group)
        except OutcomeUnknown as error:
            raise Refused(_without_majority(str(error))) from error
        except RefusedError as error:
            raise Refused(str(error)) from error


async def _session_moves(machine: Machine, picture: Picture, key: str) -> bool:
    if key not in picture.sessions:
        return False
    async with machine.router() as client:
        assert client is not None
        try:
            return bool(await moving(client, machine.orders.namespace, {key: picture.sessions[key]}, machine.timing, enough=1))
        except OutcomeUnknown as error:
            raise Refused(str(error)) from error


def _sentence(outcome: RequestOutcome) -> str:
    if outcome.code == "no-majority":
        raise Refused(_without_majority(outcome.reason))
    if outcome.status != RequestStatus.SUCCEEDED:
        raise Refused(outcome.reason or outcome.code or str(outcome.status))
    return outcome.reason


def _without_majority(trouble: str) -> str:
    """Of a wish that could not be written or followed: what it lacks, and what stops a member all the same."""
    return (
        f"{trouble}. Without a majority of the routers no wish reaches a group; "
        "a member that runs alone is stopped with its runtime, in the portal on the page of its machine, tab Runtimes"
    )
