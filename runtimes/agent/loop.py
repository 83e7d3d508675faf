"""The agent itself: orders in, reports out, and between them the router, the runtimes and the carrier of wishes."""

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog

from runtimes.agent import linux
from runtimes.agent.carrier import AT_ONCE, Carrier, NotPlaced
from runtimes.agent.certificate import Certificates
from runtimes.agent.client import LONGEST_WAIT, NotKnown, NotTaken, Portal, PortalAway, own_address
from runtimes.agent.commands import Commands
from runtimes.agent.decide import Keeping, retry_delay, why_all_late
from runtimes.agent.etcd_leader import EtcdLeader
from runtimes.agent.home import Home, Identity
from runtimes.agent.items import Clerk, Where
from runtimes.agent.peers import Peers, who_refuses, why_cut_off
from runtimes.agent.reach import Reach
from runtimes.agent.router import RouterSupervisor, pick_port
from runtimes.agent.spool import LogBuffer, Spool
from runtimes.agent.supervisor import RuntimeSupervisor, Surroundings
from runtimes.process.etcd import Etcd
from runtimes.process.wishes import place_request
from runtimes.protocol import (
    UPGRADE,
    Cause,
    GroupReport,
    GroupRequest,
    LogLevel,
    LogLine,
    Orders,
    Report,
    RequestKind,
    RequestOutcome,
    RequestStatus,
    RouterOrder,
    RuntimeOrder,
    Status,
    Wire,
    cluster_of,
)

log = structlog.get_logger()
REPORT_SECONDS = 2.0  # at least so often
DEBOUNCE_SECONDS = 0.05
HAND_OVER_SECONDS = 5.0  # beyond the drain limit, for what is led here to be handed over before the router restarts
LOOK_AGAIN_SECONDS = 0.1
COMPLAIN_SECONDS = 60.0  # between two log lines about the same trouble with the portal


class Outside(Wire, frozen=True):
    """`outside.json`: why this machine is no part of its environment's cluster any more; empty when it is, or nothing is known."""

    router: str = ""  # its router is refused as a member; until it runs as one
    credential: str = ""  # the portal refuses it; until it accepts it


class Suggestion(Wire, frozen=True):
    port: int


class Agent:
    """One machine. `run()` goes on until it is cancelled; keepers, router and runtimes go on without it."""

    def __init__(self, home: Home, identity: Identity, logs: LogBuffer, version: str, *, etcd: str | None = None) -> None:
        self.home = home
        self.identity = identity
        self.logs = logs
        self.version = version
        self.portal = Portal(identity.portal, identity.credential)
        self.spool = Spool(home)
        self.changed = asyncio.Event()
        self.certificates = Certificates(home, identity.machine, self.portal.certify, self._certificates_changed)
        self.router = RouterSupervisor(
            home, self.certificates, changed=self._router_changed, spool=self.spool, logs=logs, etcd=etcd, step_down=self._step_down
        )
        self.peers = Peers(home, self._router_changed)
        self.etcd_leader = EtcdLeader(self.router, home.tls, lambda: self.orders.namespace if self.orders is not None else "")
        self.carrier = Carrier(home, self.spool, self._place, self.changed.set)
        self.clerk = Clerk(self._where, self.changed.set)
        self.commands = Commands(home, self.changed.set, identity.machine, self._secrets)
        self.client: Etcd | None = None  # of this machine's router
        self.reach = Reach(identity.machine, home.tls, self.changed.set)
        self.runtimes: dict[str, RuntimeSupervisor] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.outside = home.read("outside.json", Outside) or Outside()
        self.orders: Orders | None = None
        self.orders_at = 0.0  # monotonic moment at which they came
        self.taken = 0  # version of the last orders that were carried out whole
        self.undone: dict[str, str] = {}  # parts of the present orders that were not carried out, with the reason
        self.sequence = 0
        self.started_at = linux.utc_now()
        self.boot_id = linux.boot_id()
        self.suggested_address = own_address(identity.portal)
        self.suggested_port = self._suggested_port()
        self.portal_said = ""  # the present trouble with the portal
        self.all_late = ""  # why no process here answers, or answered a moment ago
        self.complained_at = 0.0

    def _suggested_port(self) -> int | None:
        known = self.home.read("suggestion.json", Suggestion)
        if known is not None:
            return known.port
        try:
            port = pick_port("0.0.0.0")  # noqa: S104 - only tried, for an instant
        except OSError:
            return None
        self.home.write("suggestion.json", Suggestion(port=port))
        return port

    # ------------------------------------------------------------------------------------------------------------------ run

    async def run(self) -> None:
        """Until cancelled. A part that fails unexpectedly is logged and started again; it never takes the others with it."""
        await self.router.program.attach()
        self._remember_orders()
        self._start("certificate", self.certificates.run)
        self._start("router", self.router.run)
        self._start("peers", self.peers.run)
        self._start("etcd's leader", self.etcd_leader.run)
        self._start("carrier", self.carrier.run)
        self._start("reports", self._report_for_ever)
        self._start("orders", self._listen_for_ever)
        try:
            await asyncio.Event().wait()
        finally:
            await self._close()

    def _remember_orders(self) -> None:
        """What is to be, not what was to be done once: who knows how long ago that was, and what has happened since."""
        remembered = self.home.read("orders.json", Orders)
        if remembered is not None:
            remembered = msgspec.structs.replace(remembered, member_change=None, requests=[], inquiries=[], commands=[])
            self._carry_out(self._never_back(remembered))

    def _start(self, name: str, part: Any) -> None:
        self.tasks[name] = asyncio.create_task(self._guard(name, part))

    async def _guard(self, name: str, part: Any) -> None:
        while True:
            try:
                work: Coroutine[Any, Any, None] = part()
                await work
            except Exception:  # the last resort: one part's fault must not end the agent
                log.exception("part_failed", text=f"The agent's part {name} failed and is started again.")
            await asyncio.sleep(1.0)

    async def _close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        await asyncio.gather(*(runtime.close() for runtime in self.runtimes.values()), return_exceptions=True)
        await self.commands.close()
        await self.reach.close()
        await self.router.close()
        if self.client is not None:
            await self.client.close()
        await self.portal.close()

    # --------------------------------------------------------------------------------------------------------------- orders

    def take_orders(self, orders: Orders, asked_at: float) -> None:
        """Make orders the desired state, on disk first. An answer that was overtaken by a newer one is ignored; a portal whose
        numbers went back (restored from a backup) is believed, but for a former generation of the cluster.

        Args:
            asked_at: monotonic moment at which the call that brought them began.
        """
        orders = self._never_back(orders)
        if self.orders is not None:
            if same(orders, self.orders) and not self.undone:
                return
            if orders.version < self.orders.version:
                if asked_at < self.orders_at:
                    return
                log.warning("orders_went_back", text=f"The portal's orders went back from {self.orders.version} to {orders.version}.")
        try:
            self.home.write("orders.json", msgspec.structs.replace(orders, reach=[]))  # of the moment, with a secret
        except OSError as error:
            log.error("orders_not_kept", text=f"The orders cannot be written down ({error}); a reboot would bring back older ones.")
        self._carry_out(orders)
        self.changed.set()

    def _never_back(self, orders: Orders) -> Orders:
        """Orders of a former generation change nothing of router and generation: epochs only grow, and what runs well goes on. The portal
        reads in the reports which generation runs, and takes it over."""
        kept = self.router.ahead_of(orders.router)
        if kept is None or orders.router is None:
            return orders
        generation = cluster_of(kept.cluster_token)[1]
        if self.orders is None or self.orders.version != orders.version:
            said = f"The portal orders generation {orders.generation} of the cluster, which is in generation {generation}"
            log.warning("orders_of_a_former_generation", text=f"{said}: its router goes on as it is.")
        return msgspec.structs.replace(orders, router=kept, member_change=None, generation=generation)

    def _carry_out(self, orders: Orders) -> None:
        """Each part by itself: one that fails keeps nothing from the others, and is tried again with the next answer of the portal."""
        self.orders, self.orders_at = orders, time.monotonic()
        parts: dict[str, Callable[[], None]] = {
            "certificates": lambda: self.certificates.take(orders.trust),
            "router": lambda: self.router.take(orders.router, orders.member_change, orders.namespace),
            "siblings": lambda: self.peers.take(orders.router),
            "requests": lambda: self.carrier.take(orders.requests),
            "commands": lambda: self.commands.take(orders.commands),
            "tests of addresses": lambda: self.reach.take(orders.reach, orders.router),
            "runtimes": self._hand_out,
            "inquiries": lambda: self.clerk.take(orders.inquiries),
            "bundles": lambda: self.home.forget_bundles_except({key for runtime in self.runtimes.values() for key in runtime.digests()}),
        }
        undone: dict[str, str] = {}
        for name, take in parts.items():
            try:
                take()
            except Exception as error:  # whatever it is: the other parts are orders too
                undone[name] = str(error)
                if self.undone.get(name) != undone[name]:
                    log.exception("orders_not_carried_out", text=f"What the orders say of {name} is not carried out yet: {error}.")
        self.undone = undone
        if not undone:
            self.taken = orders.version

    def _hand_out(self) -> None:
        """Every runtime gets its order and what it shares with the others. Raises: OSError, after the others got theirs."""
        assert self.orders is not None
        around = Surroundings(
            namespace=self.orders.namespace,
            generation=self.orders.generation,
            timing=self.orders.timing,
            etcd=self.router.endpoint,
            machine=self.identity.machine,
            outside=self.outside.router or self.outside.credential or who_refuses(self.peers.report()),
        )
        wished = {order.key: order for order in self.orders.runtimes}
        failed: OSError | None = None
        for key in [*wished, *self._left_over(wished)]:
            try:
                self._supervisor(key).take(wished.get(key), around)
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed

    def _supervisor(self, key: str) -> RuntimeSupervisor:
        """Raises: OSError when a new one's folder cannot be made."""
        if key not in self.runtimes:
            self.runtimes[key] = RuntimeSupervisor(
                key,
                self.home,
                fetch=self.portal.bundle,
                changed=self.changed.set,
                spool=self.spool,
                logs=self.logs,
                why_cut_off=self._why_cut_off,
                why_all_late=self._why_all_late,
            )
            self._start(f"runtime {key}", self.runtimes[key].run)
        return self.runtimes[key]

    def _left_over(self, wished: dict[str, RuntimeOrder]) -> list[str]:
        """Runtimes that are no longer ordered but have a process here, from before this agent's start too."""
        return [key for key in {*self.runtimes, *self.home.running_keys()} if key not in wished]

    def _certificates_changed(self) -> None:
        self.router.wake.set()

    def _router_changed(self) -> None:
        """Or what the siblings say of it."""
        if self.router.outside:
            self._note_outside(router=self.router.refused)
        elif self.router.is_member or (self.orders is not None and self.orders.router is None):
            self._note_outside(router="")
        if self.orders is not None:
            with contextlib.suppress(OSError):  # a new runtime's folder: its order is tried again
                self._hand_out()
        self.changed.set()

    def _note_outside(self, **why: str) -> None:
        """A machine that was replaced, or whose cluster was built anew without it, learns so once and may be cut off ever after."""
        known = msgspec.structs.replace(self.outside, **why)
        if known != self.outside:
            self.outside = known
            self.home.remember("outside.json", known)
            if self.orders is not None:
                with contextlib.suppress(OSError):  # a new runtime's folder: its order is tried again
                    self._hand_out()

    def _why_cut_off(self) -> str:
        return why_cut_off(self.router.report(), self.peers.report(), linux.utc_now())

    def _why_all_late(self) -> str:
        """One sentence for all from the moment the last one falls silent until every one answers: it does not change with each of them."""
        programs = [runtime.program for runtime in self.runtimes.values() if runtime.program.pid is not None]
        late = sum(bool(program.hangs) for program in programs)
        if not late:
            self.all_late = ""
        elif not self.all_late:
            load = os.getloadavg()[0]
            self.all_late = why_all_late(late, len(programs), self.identity.machine, load=load, processors=os.cpu_count() or 1)
        return self.all_late

    def _secrets(self) -> list[str]:
        """Of every bundle that runs here."""
        contents = [runtime.content() for runtime in self.runtimes.values()]
        return sorted({secret for content in contents if content is not None for secret in content.secrets})

    def _where(self, key: str) -> Where | None:
        """What a runtime of this machine runs or last ran, and its data folder."""
        runtime = self.runtimes.get(key)
        content = runtime.content() if runtime is not None else None
        return (content, self.home.runtime(key) / "data") if content is not None else None

    async def _place(self, request: GroupRequest, asks: bool = False) -> RequestOutcome:
        """Write one wish through this machine's router; `asks`: only find out how one that was written has ended. Raises: NotPlaced."""
        member = next((runtime.key for runtime in self.runtimes.values() if runtime.has_group(request.group)), None)
        if self.orders is None or self.router.endpoint is None:
            raise NotPlaced("this machine has no router")
        if member is None:
            raise NotPlaced(f"no runtime of this machine is a member of the group {request.group}")
        if request.kind is RequestKind.OTHER:
            raise NotPlaced(UPGRADE)  # another member's agent may be of the portal's version
        outcome = await place_request(
            await self._client(self.router.endpoint),
            self.orders.namespace,
            request,
            member=member,
            generation=self.orders.generation,
            timing=self.orders.timing,
            asks=asks,
        )
        if outcome.status is RequestStatus.FAILED and outcome.code == "no-majority":
            raise NotPlaced(outcome.reason)
        return outcome

    async def _client(self, url: str) -> Etcd:
        """One for all wishes: each new connection would cost a handshake."""
        if self.client is None or self.client.url != url:
            former, self.client = self.client, Etcd(url, self.home.tls, connections=AT_ONCE)
            if former is not None:
                await former.close()
        return self.client

    async def _step_down(self) -> str:
        """Before this machine's router restarts: the other routers have a majority without it, and ready followers take over what is led
        here. Returns: why that is not so; empty once it is."""
        order = self.router.order
        if order is None or self.orders is None:
            return ""
        waits = await self._why_no_majority(order)
        if waits:
            return waits
        until = time.monotonic() + self.orders.timing.drain + HAND_OVER_SECONDS
        asked: dict[str, GroupRequest] = {}
        while led := self._led_here():
            if time.monotonic() > until:
                return f"{len(led)} of this machine's groups have not been handed over yet"
            for group in led:
                heirs = self._heirs(group.group)
                if heirs is not None and not heirs:
                    return "nobody could take over but machines whose certificates were taken back"
                request = asked.setdefault(group.group, self._give_away(group, heirs[0] if heirs else None))
                try:
                    outcome = await self._place(request)
                except NotPlaced as error:
                    return str(error)
                if outcome.status is RequestStatus.FAILED:
                    return f"what is led here cannot be handed over: {outcome.reason}"
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
        return await self._why_no_majority(order) if asked else ""  # handing over took its time

    async def _why_no_majority(self, order: RouterOrder) -> str:
        """Why the other voters would have no majority without this machine's router; empty when they would. Each is asked now: what the
        rounds of probes last saw may be seconds old."""
        learners = {member.url for member in self.router.listed if member.learner}
        voters = {name for name, url in order.members.items() if url not in learners}
        said = await self.peers.ask(self.router.member.cluster_id if self.router.member is not None else "")
        away = {name: said.get(name, "it is not known where it is") for name in sorted(voters - {order.name})}
        away = {name: why for name, why in away.items() if why}
        if 2 * (len(voters - {order.name}) - len(away)) > len(voters):
            return ""
        names = " and ".join(f"{name} cannot be reached ({why})" for name, why in away.items())
        return f"{names}, so the majority would be lost with this router"

    def _led_here(self) -> list[GroupReport]:
        reports = (runtime.report() for runtime in self.runtimes.values())
        return [group for report in reports for group in report.groups if group.status is Status.LEADER]

    def _heirs(self, group: str) -> list[str] | None:
        """Machines that leadership may go to, where not any may: never to one whose certificate was taken back of late, until no connection
        of such a one stands here and its router shows another certificate."""
        revoked = self.certificates.just_revoked
        if self.router.cleared == self.certificates.revoked_list:
            revoked -= {peer.machine for peer in self.peers.report() if peer.reachable and not peer.revoked}
        contents = [content for runtime in self.runtimes.values() if (content := runtime.content()) is not None]
        members = {key.split(".")[0] for content in contents for spec in content.groups if spec.id == group for key in spec.members}
        others = members - {self.identity.machine}
        return sorted(others - revoked) if others & revoked else None

    def _give_away(self, group: GroupReport, heir: str | None) -> GroupRequest:
        return GroupRequest(
            id=str(uuid.uuid4()),
            kind=RequestKind.SWITCH,
            group=group.group,
            machine=heir,
            expected_epoch=group.epoch,
            cause=Cause.DEPLOY,
            actor=f"restart of the router on {self.identity.machine}",
            valid_seconds=HAND_OVER_SECONDS,
        )

    # -------------------------------------------------------------------------------------------------------------- reports

    def report(self) -> Report:
        """The whole picture of this machine, now."""
        self.sequence += 1
        waits = self.spool.next()
        ordered = {order.key for order in self.orders.runtimes} if self.orders is not None else set()
        return Report(
            agent_version=self.version,
            boot_id=self.boot_id,
            started_at=self.started_at,
            orders_version=self.taken,
            sequence=self.sequence,
            router=self.router.report(),
            peers=self.peers.report(),
            runtimes=[
                runtime.report() for key, runtime in self.runtimes.items() if key in ordered or runtime.program.keeping is not Keeping.GONE
            ],
            outcomes=waits.outcomes,
            events=waits.events,
            ends=waits.ends,
            alone=waits.alone,
            at=linux.utc_now(),
            at_boot=linux.boot_seconds(),
            logs=self.logs.take(),
            answers=list(self.clerk.answers),
            commands=self.commands.report(),
            reach=list(self.reach.answers),
            suggested_address=self.suggested_address,
            suggested_port=self.suggested_port,
            listed_commands=self.commands.names(),
        )

    async def _report_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                more = self.logs.is_long() or self.spool.is_long()
                await asyncio.wait_for(self.changed.wait(), REPORT_SECONDS if not more else DEBOUNCE_SECONDS)
            except TimeoutError:
                pass
            await asyncio.sleep(DEBOUNCE_SECONDS)
            self.changed.clear()
            asked_at = time.monotonic()
            report = self.report()
            try:
                answer = await self.portal.report(report)
            except (NotKnown, PortalAway) as error:
                failures += 1
                self._complain(error)
                if isinstance(error, NotTaken):
                    self.logs.stored()  # whatever it is that the portal refuses, log lines shall not keep the rest from it for ever
                await asyncio.sleep(retry_delay(failures, longest=LONGEST_WAIT))
                continue
            failures = 0
            self._portal_is_back()
            self._note_outside(credential="")
            if answer.accepted:
                self.spool.stored(report)
                self.logs.stored()
                self.clerk.stored(report.answers)
                self.commands.stored(report.commands)
                self.reach.stored(report.reach)
            self.take_orders(answer.orders, asked_at)

    async def _listen_for_ever(self) -> None:
        failures = 0
        while True:
            asked_at = time.monotonic()
            after = self.orders.version if self.orders is not None else 0
            try:
                orders = await self.portal.orders(after)
            except (NotKnown, PortalAway) as error:
                failures += 1
                self._complain(error)
                await asyncio.sleep(retry_delay(failures, longest=LONGEST_WAIT))
                continue
            failures = 0
            if orders is not None and orders.version > after:
                self.take_orders(orders, asked_at)
            elif time.monotonic() - asked_at < 0.5:
                await asyncio.sleep(0.5)  # a portal that does not wait must not be asked in a circle

    def _complain(self, error: Exception) -> None:
        if isinstance(error, NotKnown):
            self._note_outside(credential="the portal does not accept this machine's credential any more")
            said = (
                f"The portal does not accept this machine's credential ({error}). Everything goes on running as last ordered; "
                "to follow new orders, register the machine again and start the agent with the new --token."
            )
        else:
            said = f"The portal is away: {error}. Everything goes on running as last ordered."
        now = time.monotonic()
        if type(error).__name__ != self.portal_said or now - self.complained_at > COMPLAIN_SECONDS:
            self.portal_said, self.complained_at = type(error).__name__, now
            (log.error if isinstance(error, NotKnown) else log.warning)("portal_trouble", text=said)

    def _portal_is_back(self) -> None:
        if self.portal_said:
            self.portal_said = ""
            log.info("portal_back", text="The portal answers again.")


def same(orders: Orders, known: Orders) -> bool:
    """Do they wish the same; how long a wish for a group is still valid changes all the time and is counted from its first receipt."""

    def essence(of: Orders) -> Orders:
        return msgspec.structs.replace(of, requests=[msgspec.structs.replace(item, valid_seconds=0) for item in of.requests])

    return essence(orders) == essence(known)


def to_portal(logs: LogBuffer) -> structlog.typing.Processor:
    """A log processor that sends the agent's own sentences to the portal too."""

    def keep(_: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        level = {"debug": LogLevel.DEBUG, "info": LogLevel.INFO, "warning": LogLevel.WARNING}.get(method, LogLevel.ERROR)
        logs.add(LogLine(runtime="agent", at=linux.utc_now(), level=level, text=str(event.get("text") or event.get("event"))))
        return event

    return keep
