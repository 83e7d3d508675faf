"""The machine's router: one etcd member, kept by a keeper like any other program (docs/failover.md, Parts)."""

import asyncio
import contextlib
import random
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import structlog

from runtimes.agent import linux, members, standing, upkeep
from runtimes.agent.certificate import Certificates
from runtimes.agent.decide import Keeping
from runtimes.agent.etcd_binary import EtcdBinary, NoEtcd, find_etcd
from runtimes.agent.etcd_member import (
    OPTIONS,
    Begin,
    Health,
    Member,
    RouterLaunch,
    ahead_of,
    command,
    gateway_command,
    judge,
    may_start,
    needs_restart,
    network_ports,
    passes_on,
    trusts_nobody,
    waits_for_its_turn,
)
from runtimes.agent.home import Home
from runtimes.agent.keeper import MARKER_ENV
from runtimes.agent.peers import SILENT, addresses
from runtimes.agent.program import CannotStart, Program, new_launch
from runtimes.agent.spool import LogBuffer, Spool
from runtimes.process.tls import ClientTls
from runtimes.protocol import (
    RESTART_WAITS,
    ClusterMember,
    LogLevel,
    LogLine,
    MemberChange,
    RouterOrder,
    RouterReport,
    RouterState,
    Wire,
    encode,
)

log = structlog.get_logger()
LEAST_FREE_BYTES = 16 * 1024 * 1024  # with less an etcd that starts would only end again …
FIRST_FREE_BYTES = 192 * 1024 * 1024  # … and a new one lays out logs of 64 MiB and needs room for its database
FIRST_CLIENT_PORT = 20_000
LOOK_SECONDS = 1.0  # between two looks at a member that is well …
LOOK_SOON_SECONDS = 0.15  # … and at one that is not yet
RETRY_SECONDS = 3.0  # after something a person has to put right
STOP_SECONDS = 4.0
SAME_LINE_SECONDS = 60.0
ASK_SECONDS = 2.0  # within which a member answers
UPKEEP_SECONDS = 120.0  # … and within which it has rewritten its database
LEAVE_SECONDS = 10.0  # within which connections of a revoked certificate may end by themselves; then the router restarts …
INSIST_SECONDS = 20.0  # … though nobody could take over what is led here: routers do so one after another, all within 60 s
REMOVED = "data-dir used by this member must be removed"  # etcd's last words when the others told it that it is no member any more


class Cleared(Wire, frozen=True):
    """`router/cleared.json`: the list of revoked certificates (its digest) of whose bearers no connection to this router stands."""

    revoked: str


@dataclass
class Suspected:
    """Connections that may be a revoked certificate's, while they are waited for to end."""

    revoked: str  # digest of the list
    began: float  # monotonic
    connections: frozenset[standing.Connection]


class RouterSupervisor:
    """Reconciles the etcd member for ever."""

    def __init__(
        self,
        home: Home,
        certificates: Certificates,
        *,
        changed: Callable[[], None],
        spool: Spool,
        logs: LogBuffer,
        etcd: str | None = None,
        step_down: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        """`step_down`: has everything handed over that is led on this machine. Returns: empty when that is done and the other routers have
        a majority without this one, else why it must not restart now."""
        self.home = home
        self.certificates = certificates
        self.folder = home.router
        self.data = self.folder / "data"
        self.changed = changed
        self.logs = logs
        self.chosen = etcd
        self.program = Program("router", self.folder, self._program_changed, spool.store, self._write)
        self.order: RouterOrder | None = None
        self.member: Member | None = home.read("router/member.json", Member)
        self.wake = asyncio.Event()
        self.health = Health(RouterState.ABSENT, "")
        self.step_down = step_down
        self.free_port: int | None = None  # where the ordered one is taken
        self.waits = ""  # why a restart that is ordered is not made yet
        cleared = home.read("router/cleared.json", Cleared)
        self.cleared = cleared.revoked if cleared is not None else ""
        self.suspected: Suspected | None = None
        self.refused = ""  # why the order cannot be carried out
        self.outside = False  # refused for it is no member of the ordered cluster
        self.namespace = ""
        self.change: MemberChange | None = None  # still to be made
        self.change_until = 0.0  # on the boot-time clock
        self.changed_last: tuple[str, str] = ("", "")  # id of the last change that was tried, and why it was not made
        self.listed: list[ClusterMember] = []
        self.listed_at = 0  # raft index
        self.size: upkeep.Size | None = None  # of its database, as of the last look
        self.cared: dict[upkeep.Care, float] = {}  # when what was done for it last; monotonic
        self.last_error = ""  # etcd's own, from its log
        self.said: dict[str, float] = {}
        self.asked = ""  # client URL of the member that is looked at
        self.tls = ClientTls(home.tls)
        self.client = httpx.AsyncClient(verify=self.tls.context, trust_env=False, timeout=ASK_SECONDS)

    # -------------------------------------------------------------------------------------------------------------- wishes

    def take(self, order: RouterOrder | None, change: MemberChange | None = None, namespace: str = "") -> None:
        self.namespace = namespace
        if self.change is not None and (change is None or change.id != self.change.id):
            self.change = None  # withdrawn: the cluster may have a majority again long after nobody wants it any more
        if change is not None and change.id != self.changed_last[0]:
            self.change, self.changed_last = change, (change.id, "")
            self.change_until = linux.boot_seconds() + change.valid_seconds
            self.wake.set()
        if order == self.order:
            return
        self.order, self.outside = order, False  # what was said under the former order says nothing of this one
        self.program.forget_back_off()
        if order is not None and (self.member is None or self.program.keeping is Keeping.GONE):
            self._remember_port()  # known before it runs, so that the runtimes need not start twice
        self.wake.set()

    @property
    def endpoint(self) -> str | None:
        """Client URL for this machine's runtimes; None without a router."""
        if self.order is None or self.member is None:
            return None
        return f"https://127.0.0.1:{self.member.client_port}"

    def ahead_of(self, order: RouterOrder | None) -> RouterOrder | None:
        """See ahead_of."""
        launched: RouterLaunch | None = self.program.what(RouterLaunch)
        return ahead_of(order, launched.order if launched is not None else None, self.member)

    @property
    def is_member(self) -> bool:
        """Does it run as ordered, knowing a majority."""
        return self.health.state is RouterState.RUNNING and not self.refused and self.program.keeping is Keeping.ALIVE

    def _remember_port(self) -> None:
        """Keep the client port while it can be had, else pick a free one that the kernel will not hand out."""
        assert self.order is not None
        if self.member is not None and (self.program.keeping is not Keeping.GONE or not linux.why_not_free("127.0.0.1", self._port())):
            return
        peers = {peer for _, peer in addresses(self.order, own=True).values()}
        port = pick_port("127.0.0.1", avoid=peers | {peer + 1 for peer in peers})
        if self.member is None:
            # an empty token: the member was never started
            self.member = Member(name=self.order.name, cluster_token="", members={}, client_port=port)
        else:
            self.member = msgspec.structs.replace(self.member, client_port=port)
        self.home.remember("router/member.json", self.member)

    def _port(self) -> int:
        assert self.member is not None
        return self.member.client_port

    def _save_member(self) -> None:
        """Raises: OSError, where what is not on disk must not be gone on with."""
        assert self.member is not None
        self.home.write("router/member.json", self.member)

    # ---------------------------------------------------------------------------------------------------------------- loop

    async def run(self) -> None:
        await self.program.attach()
        while True:
            self.wake.clear()
            before = self.report(), self.endpoint
            try:
                patience = await self._step()
            except (OSError, msgspec.MsgspecError) as error:
                self.refused = f"cannot be started: {error}"
                patience = RETRY_SECONDS
            if (self.report(), self.endpoint) != before:
                self.changed()
            try:
                await asyncio.wait_for(self.wake.wait(), patience)
            except TimeoutError:
                pass

    async def _step(self) -> float | None:
        program, order = self.program, self.order
        if program.keeping is Keeping.STUCK:
            await program.attach()
            return 0.5
        if program.keeping is Keeping.ALIVE:
            if program.stopping:
                return None
            launched: RouterLaunch | None = program.what(RouterLaunch)
            if order is None:
                program.stop("no router is ordered here", STOP_SECONDS)
                return None
            if launched is not None and self._outdated(launched, order):
                return await self._change(launched, order, "its order has changed")
            self.refused, self.outside = "", False
            await self._look(launched, order)
            if launched is not None and launched.rebuilding:
                return await self._rebuild(order)
            await self._make_change()
            await self._keep_small(order)
            cut = await self._why_cut(order)
            if cut and launched is not None:
                return await self._change(launched, order, cut, looked=True)
            self.waits = ""
            return LOOK_SECONDS if self.health.state is RouterState.RUNNING and self.change is None else LOOK_SOON_SECONDS
        if order is None:
            self.health, self.refused, self.outside = Health(RouterState.ABSENT, ""), "", False
            return None
        full = self._why_full()
        if full:
            program.forget_back_off()  # nothing is tried meanwhile, so the first try after it need not wait
            self._refuse(full)
            return RETRY_SECONDS
        wait = program.start_again_at - time.monotonic()
        if wait > 0:
            return wait + 0.001
        awaited = self.certificates.awaited(order.peer_host)
        if awaited:
            self.health, self.refused = Health(RouterState.STARTING, awaited), ""
            return RETRY_SECONDS
        await self._start(order)
        return RETRY_SECONDS if self.refused else 0.0

    def _outdated(self, launched: RouterLaunch, order: RouterOrder) -> bool:
        if launched.rebuilding and self.member is not None and self.member.cluster_token == order.cluster_token:
            return True  # it was built anew, and now runs as any other
        if launched.options < OPTIONS and not passes_on(order):
            return True  # an older agent started it
        led = self.member is not None and (self.member.led or bool(self.member.joined)) and not passes_on(order)
        return needs_restart(launched.order, order, led=led) or trusts_nobody(launched.authority, self.certificates.roots)

    async def _change(self, launched: RouterLaunch, order: RouterOrder, why: str, *, looked: bool = False) -> float | None:
        """A running member is to restart: it does when data and certificate allow, it is its turn, the others have a majority and nothing
        is led here any more; else it stays as it is and says why."""
        begin, because = may_start(order, self.member, data=self._has_data())
        if self.certificates.awaited(order.peer_host):
            return RETRY_SECONDS
        if begin in (Begin.OUTSIDE, Begin.FOREIGN):
            self._refuse(because, outside=begin is Begin.OUTSIDE)
            self.program.stop("it is no member of the ordered cluster", STOP_SECONDS)
            return None
        if begin is Begin.REFUSE or self.certificates.trouble():
            self.refused = because if begin is Begin.REFUSE else self.certificates.trouble()
            return RETRY_SECONDS
        waits = await self._why_not_there(launched.order, order)
        if not waits and begin is Begin.GO and waits_for_its_turn(launched.order, order):
            if not looked:
                await self._look(launched, order)
                await self._make_change()
            waits = await self._why_wait(order) if self.health.state is RouterState.RUNNING else ""
        if waits:
            if waits != self.waits:
                log.info("router_restart_waits", text=f"The router is to restart ({why}), and waits: {waits}.")
            self.waits = waits
            return LOOK_SECONDS
        log.info("router_restarts", text=f"The router is restarted: {why} ({because}).")
        self.waits = ""
        self.program.stop(why, STOP_SECONDS)
        return None

    async def _why_not_there(self, before: RouterOrder, order: RouterOrder) -> str:
        """Why it could not listen where it is ordered to; empty when it could, or does already."""
        try:
            host = await resolve(order.peer_host)
        except OSError as error:
            return f"{order.peer_host} cannot be resolved: {error}; correct the machine's Internal IP address"
        held = network_ports(before) if before.peer_host == order.peer_host else []
        return next((why for port in network_ports(order) if port not in held and (why := linux.why_not_free(host, port))), "")

    async def _why_wait(self, order: RouterOrder) -> str:
        """What a restart waits for; empty when it may be made now."""
        try:
            if not await members.take_turn(self._post, self.namespace, order.name):
                return "another router restarts first"
            waits = await self.step_down() if self.step_down is not None else ""
            if waits and self.suspected is not None and time.monotonic() > self.suspected.began + INSIST_SECONDS:
                return ""  # a revoked machine's connections are not to stand until somebody is ready to take over
            if waits:
                await members.give_turn(self._post, self.namespace, order.name)
            return waits
        except (httpx.HTTPError, ValueError, KeyError, members.NotMade) as error:
            return f"the other routers do not answer ({str(error) or type(error).__name__})"

    # --------------------------------------------------------------------------------------------- connections of revoked certificates

    async def _why_cut(self, order: RouterOrder) -> str:
        """Why this router is to restart so that connections of a revoked certificate end; empty when none stands, or they may yet end."""
        revoked = self.certificates.revoked_list
        if not revoked or revoked == self.cleared or passes_on(order):
            return ""
        if self.suspected is None or self.suspected.revoked != revoked:
            self.suspected = Suspected(revoked, time.monotonic(), await self._suspects(order))
        if order.name in self.certificates.just_revoked:  # its own connections to the others were made with one that was taken back
            return "" if self.certificates.asks_for_another() else "its own certificate was taken back, and it has another one"
        if self.suspected.connections:
            self.suspected.connections &= await self._suspects(order)
        if not self.suspected.connections:
            self._clear(revoked)
            return ""
        if time.monotonic() < self.suspected.began + LEAVE_SECONDS:
            return ""
        hosts = ", ".join(sorted({connection.remote_host for connection in self.suspected.connections}))
        return f"connections from {hosts} may be those of a certificate that was taken back"

    async def _suspects(self, order: RouterOrder) -> frozenset[standing.Connection]:
        good: set[str] = set()
        bad: set[str] = set()
        for name, (host, _) in addresses(order).items():
            with contextlib.suppress(OSError):
                (bad if name in self.certificates.just_revoked else good).add(await resolve(host))
        return await asyncio.to_thread(self._suspects_now, order, good - bad)

    def _suspects_now(self, order: RouterOrder, trusted: set[str]) -> frozenset[standing.Connection]:
        marker = f"{MARKER_ENV}={self.home.root}/".encode()
        return standing.suspects(
            standing.read_tables(),
            network_ports=network_ports(order),
            client_port=self._port(),
            trusted_hosts=trusted,
            own_sockets=standing.sockets_of(standing.own_pids(marker)),
        )

    def _clear(self, revoked: str) -> None:
        self.cleared, self.suspected = revoked, None
        with contextlib.suppress(OSError):  # a full disk: the next agent looks once more
            self.home.write("router/cleared.json", Cleared(revoked=revoked))

    def _has_data(self) -> bool:
        return (self.data / "member").exists()

    async def _start(self, order: RouterOrder) -> None:
        self.health = Health(RouterState.STARTING, "starting")
        known = self.member if self.member is not None and self.member.cluster_token else None
        begin, because = may_start(order, known, data=self._has_data())
        if begin in (Begin.REFUSE, Begin.OUTSIDE, Begin.FOREIGN):
            self._refuse(because, outside=begin is Begin.OUTSIDE)
            return
        uncertified = self.certificates.trouble()
        if uncertified:
            self._refuse(uncertified)
            return
        try:
            listen_host = await resolve(order.peer_host)
        except OSError as error:
            self._refuse(f"{order.peer_host} cannot be resolved: {error}; correct the machine's Internal IP address")
            return
        taken = next((why for port in network_ports(order) if (why := linux.why_not_free(listen_host, port))), "")
        if taken:
            self._propose_port(listen_host, order)
            self._refuse(f"{taken} ({self.free_port} is free)" if self.free_port else taken)
            return
        self.free_port = None
        try:
            binary = await asyncio.to_thread(find_etcd, self.chosen, data_of=self._data_of(begin))
        except NoEtcd as error:
            self._refuse(str(error))
            return
        if begin is Begin.DISCARD:
            log.warning("router_data_discarded", text=f"The data of the former router is discarded: {because}.")
            await asyncio.to_thread(shutil.rmtree, self.data)
        await self._launch(order, binary, listen_host, rebuilding=begin is Begin.REBUILD)

    def _propose_port(self, host: str, order: RouterOrder) -> None:
        """Another port for the one that is taken; the same one as long as it is free."""

        def free(port: int) -> bool:
            return not any(linux.why_not_free(host, each) for each in (port, port + 1)[: 2 if order.gateways else 1])

        if self.free_port is not None and free(self.free_port):
            return
        used = {port for _, port in addresses(order, own=True).values()} | ({self._port()} if self.member is not None else set())
        self.free_port = None
        with contextlib.suppress(OSError):  # the address is no more this machine's, or nothing is free
            self.free_port = next((port for port in (pick_port(host, avoid=used) for _ in range(20)) if free(port)), None)

    def _why_full(self) -> str:
        """A sentence when the disk has no room for etcd's data; empty when it has."""
        free = shutil.disk_usage(self.folder).free
        needed = LEAST_FREE_BYTES if self._has_data() else FIRST_FREE_BYTES
        if free >= needed:
            return ""
        return f"the disk of {self.data} is full: {free >> 20} MB are free, the router needs {needed >> 20} MB; free some space"

    def _data_of(self, begin: Begin) -> str:
        """Which etcd wrote the data that is to be used; empty when none is."""
        kept = begin is not Begin.DISCARD and self._has_data() and self.member is not None
        return self.member.etcd_version if kept and self.member is not None else ""

    async def _launch(self, order: RouterOrder, binary: EtcdBinary, listen_host: str, *, rebuilding: bool) -> None:
        if order != self.order:
            return  # another order came meanwhile: this one may be about a member that the cluster has removed since
        self._remember_port()
        assert self.member is not None
        if rebuilding:  # out of the runtimes' reach, and remembered as what it is until it is done
            client_port = pick_port("127.0.0.1", avoid={self._port()})
        else:
            client_port = self._port()
            if not passes_on(order):
                self._remember_start(order, binary)
        self.data.mkdir(mode=0o700, exist_ok=True)
        self.refused, self.outside, self.last_error = "", False, ""
        what = RouterLaunch(
            order=order,
            client_port=client_port,
            version=binary.version,
            warning=binary.warning,
            authority=" ".join(self.certificates.roots),
            rebuilding=rebuilding,
            options=OPTIONS,
        )
        self._clear(self.certificates.revoked_list)  # nothing is connected to it yet
        argv = (
            gateway_command(binary.path, order, client_port)
            if passes_on(order)
            else command(
                binary.path,
                order,
                listen_host=listen_host,
                client_port=client_port,
                data=str(self.data),
                tls=self.home.tls,
                revoked=str(self.home.revoked),
                rebuilding=rebuilding,
            )
        )
        log.info("router_starts", text=f"The router starts: etcd {binary.version} at {order.peer_host}:{order.peer_port}.")
        try:
            await self.program.launch(
                new_launch(),
                argv,
                what,
                lifeline_seconds=2.0,
                after_locks=str(self.home.root / "runtimes"),
                grace_seconds=1.0,
                without="ETCD_",
            )
        except CannotStart as error:
            self._refuse(f"etcd cannot be started: {error}")

    def _remember_start(self, order: RouterOrder, binary: EtcdBinary) -> None:
        """On disk before etcd writes its first byte: a member that was added starts empty once."""
        assert self.member is not None
        data = self._has_data()
        joins = order.join_existing and self.member.joined != order.member_id
        self.member = msgspec.structs.replace(
            self.member,
            name=order.name,
            cluster_token=order.cluster_token,
            members=order.members,
            led=self.member.led and data and not joins,
            etcd_version=binary.version,
            member_id=order.member_id if joins else self.member.member_id,
            joined=order.member_id if joins else self.member.joined,
            removed=self.member.removed and data and not joins,
        )
        self._save_member()

    def _refuse(self, because: str, *, outside: bool = False) -> None:
        if because != self.refused:
            log.error("router_refused", text=f"The router is not started: {because}.")
        self.refused, self.outside = because, outside

    # ------------------------------------------------------------------------------------------------------------- looking

    async def _look(self, launched: RouterLaunch | None, order: RouterOrder) -> None:
        """Ask the member how it is, and whom the cluster lists."""
        was, answered_itself = self.health.state, False
        port = launched.client_port if launched is not None else self._port()
        self.asked = f"https://127.0.0.1:{port}"
        try:
            self.tls.refresh()
            if passes_on(order):
                self.health = await self._look_through()
                return
            status = await self._post("/v3/maintenance/status", {})
            answered_itself = True  # what follows needs a majority, and waits for one
            health = (await self.client.get(f"{self.asked}/health")).status_code == 200
            alarms = [] if health else await self._alarms()
            self.health, self.size = judge(status, health, alarms, ""), upkeep.Size.of(status, alarms)
            if order.join_existing and self.health.member_id != order.member_id:
                self._mistaken(self.health.member_id)
                return
            if self.health.state is RouterState.RUNNING:
                await self._list(int(status.get("raftAppliedIndex", status.get("raftIndex", 0))))
        except (httpx.HTTPError, OSError, ValueError, members.NotMade) as error:
            answered = f"etcd does not answer yet: {error if 'certificate' in str(error) else type(error).__name__}"
            late = was in (RouterState.RUNNING, RouterState.NO_MAJORITY)
            said = "it sees no majority of the cluster's members" if answered_itself else SILENT
            self.health = Health(RouterState.NO_MAJORITY, said) if late else Health(RouterState.STARTING, answered)
            return
        assert self.member is not None
        if self.health.state is RouterState.RUNNING and not (launched is not None and launched.rebuilding):
            ids = {"led": True, "member_id": self.health.member_id, "cluster_id": self.health.cluster_id}
            known = msgspec.structs.replace(self.member, **ids)
            if known != self.member:
                self.member = known
                self._save_member()
            self.program.forget_back_off()
            if was is not RouterState.RUNNING:
                log.info("router_runs", text=f"The router runs and knows a majority (member {self.health.member_id}).")
                with contextlib.suppress(httpx.HTTPError, ValueError, members.NotMade):
                    await members.give_turn(self._post, self.namespace, order.name)

    async def _keep_small(self, order: RouterOrder) -> None:
        """Its database, by what it said at the last look."""
        now, size = time.monotonic(), self.size
        if size is None or passes_on(order) or self.health.state not in (RouterState.RUNNING, RouterState.FAILED):
            return
        idle = {care: now - at for care, at in self.cared.items()}
        care = upkeep.care_for(size, quota=upkeep.QUOTA_BYTES, idle=idle)
        if care is upkeep.Care.NOTHING:
            return
        if care is upkeep.Care.DEFRAGMENT and len(order.members) > 1:
            waits = await self._why_wait(order)
            if waits and not upkeep.presses(size, quota=upkeep.QUOTA_BYTES):
                self.cared[care] = now - upkeep.DEFRAGMENT_AGAIN + upkeep.TURN_AGAIN
                return
        self.cared[care] = now
        told = f"{size.in_use // upkeep.MEGABYTE} of {size.file // upkeep.MEGABYTE} MB are in use"
        try:
            if care is not upkeep.Care.DEFRAGMENT:
                await upkeep.compact(self._post_patiently, size)
            if care is not upkeep.Care.COMPACT:
                await upkeep.defragment(self._post_patiently)
            if care is upkeep.Care.RESCUE:
                await upkeep.disarm(self._post, self.health.member_id)
            log.info("router_database", text=f"The router's database was looked after ({care}; {told} before).")
        except (httpx.HTTPError, ValueError, members.NotMade) as error:
            log.warning(
                "router_database_full", text=f"The router's database ({told}) cannot be looked after: {error or type(error).__name__}."
            )
        finally:
            if care is upkeep.Care.DEFRAGMENT and len(order.members) > 1:
                with contextlib.suppress(httpx.HTTPError, ValueError, members.NotMade):
                    await members.give_turn(self._post, self.namespace, order.name)

    def _mistaken(self, member_id: str) -> None:
        """etcd takes the id that the cluster lists at its address, which is another one than ordered: that one was started here, and must
        never start empty again."""
        assert self.member is not None
        log.error("router_mistaken", text=f"The router runs as member {member_id}, which is not the one that was ordered: it stops.")
        self.member = msgspec.structs.replace(self.member, joined=member_id, removed=True)
        self._save_member()
        self.program.stop("it is another member than ordered", STOP_SECONDS)

    async def _look_through(self) -> Health:
        """What a router without a vote reaches: whether one that votes gets an answer from a majority."""
        answered = (await self.client.get(f"{self.asked}/health")).status_code == 200
        if answered:
            self.program.forget_back_off()
            return Health(RouterState.RUNNING, "")
        return Health(RouterState.NO_MAJORITY, "no voting router that it reaches gets an answer from a majority")

    async def _alarms(self) -> list[str]:
        found = await self._post("/v3/maintenance/alarm", {"action": "GET"})
        return [str(alarm.get("alarm")) for alarm in found.get("alarms", [])]

    async def _list(self, index: int) -> None:
        """`index`: applied by this member before it was asked, so the list has every change up to it."""
        listed = await members.members_of(self._post)
        if listed != self.listed:
            self.listed, self.listed_at = listed, index

    async def _post_patiently(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._post(path, body, timeout=UPKEEP_SECONDS)

    async def _post(self, path: str, body: Mapping[str, Any], timeout: float = ASK_SECONDS) -> dict[str, Any]:
        """Raises: httpx.HTTPError without an answer, members.NotMade with etcd's reason, ValueError for an answer that is none."""
        answer = await self.client.post(f"{self.asked}{path}", content=encode(body), timeout=timeout)
        fields = msgspec.json.decode(answer.content)
        if not isinstance(fields, dict):
            raise ValueError(f"etcd answered {answer.content[:80]!r}")
        if answer.status_code != 200:
            raise members.NotMade(str(fields.get("message") or fields.get("error") or answer.status_code))
        return fields

    # ------------------------------------------------------------------------------------------------------- the cluster's members

    async def _make_change(self) -> None:
        """The one change of the cluster's members that the portal has ordered through this router, while it is valid."""
        change = self.change
        if change is not None and linux.boot_seconds() > self.change_until:
            self.change, self.changed_last = None, (change.id, self.changed_last[1] or "it could not be made in time")
            return
        if change is None or self.health.state is not RouterState.RUNNING:
            return
        trouble, again = members.why_stale(change, self.listed), False
        if not trouble:
            try:
                await members.make(self._post, change)
                log.info("member_changed", text=f"The cluster's members were changed: {change.act} {change.member or change.url}.")
                await self._look(self.program.what(RouterLaunch), self.order) if self.order is not None else None
            except (httpx.HTTPError, ValueError, members.NotMade) as error:
                trouble = str(error) or type(error).__name__
                again = any(words in trouble for words in members.PASSING) and linux.boot_seconds() < self.change_until
        self.changed_last = (change.id, trouble)
        if not again:
            self.change = None

    async def _rebuild(self, order: RouterOrder) -> float | None:
        """The member runs alone on the survivor's data, out of reach: settle what the former cluster left, then start it as any other."""
        if self.health.state is not RouterState.RUNNING:
            return LOOK_SOON_SECONDS
        assert self.member is not None
        try:
            await members.settle(self._post, self.namespace, order.disabled)
        except (httpx.HTTPError, ValueError, members.NotMade) as error:
            log.warning("router_not_rebuilt", text=f"The cluster cannot be built anew yet: {error}.")
            return RETRY_SECONDS
        self.member = msgspec.structs.replace(
            self.member,
            cluster_token=order.cluster_token,
            members=order.members,
            led=True,
            removed=False,
            member_id=self.health.member_id,
            cluster_id=self.health.cluster_id,
        )
        self._save_member()
        log.warning("router_rebuilt", text="The cluster was built anew from this machine's data, without its former members.")
        self.program.stop("the cluster was built anew", STOP_SECONDS)
        return None

    # -------------------------------------------------------------------------------------------------------------- reports

    def _program_changed(self) -> None:
        if self.program.keeping is Keeping.GONE:
            self.wake.set()

    def _write(self, line: LogLine) -> None:
        """Only etcd's warnings and errors go on to the portal, and the same one once a minute."""
        if line.level not in (LogLevel.WARNING, LogLevel.ERROR):
            return
        if line.level is LogLevel.ERROR:
            self.last_error = line.text
        if REMOVED in line.text and self.member is not None and not self.member.removed:
            self.member = msgspec.structs.replace(self.member, removed=True)
            self.home.remember("router/member.json", self.member)
        head, now = line.text[:60], time.monotonic()
        if now - self.said.get(head, -SAME_LINE_SECONDS) < SAME_LINE_SECONDS:
            return
        if len(self.said) > 200:
            self.said.clear()
        self.said[head] = now
        self.logs.add(line)

    def report(self) -> RouterReport | None:
        if self.order is None and self.program.keeping is Keeping.GONE:
            return None
        launched: RouterLaunch | None = self.program.what(RouterLaunch)
        alive = self.program.keeping is Keeping.ALIVE
        state, reason = self.health.state, self.health.reason
        if alive and launched is not None and launched.rebuilding:
            state, reason = RouterState.STARTING, "the cluster is being built anew from this machine's data"
        if self.program.keeping is Keeping.STUCK:
            state, reason = RouterState.FAILED, "its keeper holds the lock but does not answer"
        elif self.refused:
            state, reason = RouterState.FAILED, self.refused
        elif not alive and self.order is not None and self.program.exits_in_a_row:
            state = RouterState.FAILED if self.program.exits_in_a_row >= 3 else RouterState.STARTING
            reason = f"etcd {self.program.exit_reason}" + (f": {self.last_error}" if self.last_error else "")
        elif self.waits and alive and state is RouterState.RUNNING:
            reason = f"{RESTART_WAITS}{self.waits}"
        return RouterReport(
            state=state,
            reason=reason,
            member_id=(self.health.member_id if alive else "") or (self.member.member_id if self.member is not None else ""),
            cluster_id=self.member.cluster_id if self.member is not None and not self._passes_on() else "",
            etcd_version=launched.version if launched is not None and alive else "",
            client_port=self.member.client_port if self.member is not None and self.order is not None else None,
            warning=self._warning(launched) if launched is not None and alive else "",
            address=launched.order.members.get(launched.order.name, "") if launched is not None and alive else "",
            cluster_token=launched.order.cluster_token if launched is not None and alive and not launched.rebuilding else "",
            learner=alive and self.health.learner,
            trusts=launched.authority.split() if launched is not None and alive and not passes_on(launched.order) else [],
            outside=self.outside,
            ordered_as=self._ordered_as(),
            members=self.listed if alive and self.health.state is RouterState.RUNNING else [],
            members_at=self.listed_at,
            free_port=self.free_port if self.refused else None,
            change=self.changed_last[0],
            change_error=self.changed_last[1],
        )

    def _passes_on(self) -> bool:
        return self.order is not None and passes_on(self.order)

    def _warning(self, launched: RouterLaunch) -> str:
        full = upkeep.warning(self.size, quota=upkeep.QUOTA_BYTES) if self.size is not None else ""
        return "; ".join(filter(None, (launched.warning, full)))

    def _ordered_as(self) -> str:
        """The member id that this machine goes by: of what runs or is being started, else of its order."""
        launched: RouterLaunch | None = self.program.what(RouterLaunch)
        if launched is not None and (self.program.keeping is not Keeping.GONE or self.program.launching):
            return launched.order.member_id
        return self.order.member_id if self.order is not None else ""

    async def close(self) -> None:
        await self.program.let_go()
        await self.client.aclose()


async def resolve(host: str) -> str:
    """etcd listens on addresses only. Raises: OSError."""
    loop = asyncio.get_running_loop()
    found = await asyncio.wait_for(loop.getaddrinfo(host, None, type=socket.SOCK_STREAM), 3.0)
    return str(found[0][4][0])


def pick_port(host: str, avoid: Collection[int] = ()) -> int:
    """A free port below the kernel's ephemeral range. Raises: OSError when there is none."""
    upper = linux.first_ephemeral_port()
    lower = min(FIRST_CLIENT_PORT, upper // 2)
    for _ in range(200):
        port = random.randrange(lower, upper)  # noqa: S311 - not a secret
        if port not in avoid and not linux.why_not_free(host, port):
            return port
    raise OSError(f"no free port between {lower} and {upper} on {host}")
