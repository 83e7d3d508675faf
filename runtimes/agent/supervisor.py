"""One runtime on this machine: from its order to a ready process, and back to what the portal is told about it."""

import asyncio
import math
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
import structlog

from runtimes.agent import linux
from runtimes.agent.decide import Act, BundleState, Keeping, Launched, Seen, Step, next_step, retry_delay
from runtimes.agent.home import Home, TamperedBundle
from runtimes.agent.linux import python_command, utc_now, write_atomically
from runtimes.agent.program import CannotStart, Program, new_launch
from runtimes.agent.spool import LogBuffer, Spool
from runtimes.protocol import (
    ALONE_BECAUSE,
    ISOLATED_BECAUSE,
    PERMIT,
    PROFILES,
    BundleContent,
    FlowReport,
    GroupReport,
    ProcessCommand,
    RuntimeConfig,
    RuntimeOrder,
    RuntimeReport,
    RuntimeState,
    State,
    Status,
    Timing,
    decode,
    encode,
)

log = structlog.get_logger()
STOP_MARGIN = 3.0  # seconds beyond its own limit (drain and TTL) that a stopping process gets
ATTACH_AGAIN = 0.5
PROCESS_MODULE = "runtimes.process"


class BundleUnavailable(Exception):  # noqa: N818 - said by name
    """The portal did not give a bundle; the message says why."""


@dataclass(frozen=True)
class Surroundings:
    """What all runtimes of this machine share."""

    namespace: str
    generation: int
    timing: Timing
    etcd: str | None
    machine: str
    outside: str = ""  # as RuntimeConfig.outside


class RuntimeSupervisor:
    """Reconciles one runtime for ever; `changed` is called when something worth a report happened."""

    def __init__(
        self,
        key: str,
        home: Home,
        *,
        fetch: Callable[[str], Awaitable[bytes]],
        changed: Callable[[], None],
        spool: Spool,
        logs: LogBuffer,
        why_cut_off: Callable[[], str] = str,
        why_all_late: Callable[[], str] = str,
    ) -> None:
        self.key = key
        self.why_all_late = why_all_late  # why no process of this machine answers; empty: some do
        self.why_cut_off = why_cut_off  # what keeps this machine from the majority, naming peer, address and time; empty: nothing known
        self.home = home
        self.folder = home.runtime(key)
        self.fetch = fetch
        self.changed = changed
        self.program = Program(key, self.folder, self._program_changed, spool.store, logs.add)
        self.order: RuntimeOrder | None = None
        self.around: Surroundings | None = None
        self.wake = asyncio.Event()
        self.bundle_state: dict[str, tuple[BundleState, str]] = {}  # by digest
        self.fetch_again_at = 0.0
        self.fetch_failures = 0
        self.fetching: asyncio.Task[None] | None = None
        self.cannot = ""  # why the last start was refused
        self.waiting = ""  # why the order cannot be carried out as it is
        self.told: ProcessCommand | None = None
        self.absent_since = utc_now()
        self.essence: object = None
        self.contents: dict[str, BundleContent] = {}

    # -------------------------------------------------------------------------------------------------------------- wishes

    def take(self, order: RuntimeOrder | None, around: Surroundings) -> None:
        """A new wish. None: the runtime is no longer of this machine."""
        if order == self.order and around == self.around:
            return
        before = self.order
        if order is None or before is None or (order.digest, order.restarts) != (before.digest, before.restarts):
            self.program.forget_back_off()
            self.fetch_again_at = 0.0 if self.fetching is None or self.fetching.done() else self.fetch_again_at
            self.fetch_failures = 0
        self.order, self.around = order, around
        if self.wished() is None:
            self.program.stand_down()
        self.wake.set()

    def wished(self) -> Launched | None:
        if self.order is None or self.around is None or not self.order.running or self.order.digest is None:
            return None
        return Launched(
            digest=self.order.digest,
            release=self.order.release or 0,
            restarts=self.order.restarts,
            etcd=self.around.etcd,
            namespace=self.around.namespace,
            generation=self.around.generation,
        )

    def seen(self) -> Seen:
        launched: Launched | None = self.program.what(Launched)
        state, reason = self._bundle(self.order.digest) if self.order and self.order.digest else (BundleState.HERE, "")
        return Seen(
            keeping=self.program.keeping,
            stopping=bool(self.program.stopping),
            launched=launched,
            bundle=state,
            bundle_reason=reason,
            fails_over=self._fails_over(launched),
            fallback_here=self._may_fall_back() and launched is not None and self._bundle(launched.digest)[0] is BundleState.HERE,
            fetch_again_at=self.fetch_again_at,
            start_again_at=self.program.start_again_at,
            exits_in_a_row=self.program.exits_in_a_row,
        )

    def _fails_over(self, launched: Launched | None) -> bool:
        """What cannot be read counts as a bundle that does."""
        content = self._content(launched)
        return content is None or any(group.fails_over for group in content.groups)

    def _may_fall_back(self) -> bool:
        """Not after it was ordered not to run: siblings may have been given what must not run beside its former bundle."""
        return self.program.record is not None and not self.program.record.stood_down

    def _bundle(self, digest: str) -> tuple[BundleState, str]:
        """Its state, verified from disk once in the life of this agent and again before each start."""
        if digest not in self.bundle_state:
            try:
                here = self.home.bundle(digest) is not None
                self.bundle_state[digest] = (BundleState.HERE if here else BundleState.MISSING, "")
            except TamperedBundle as error:
                self.bundle_state[digest] = (BundleState.REFUSED, str(error))
        return self.bundle_state[digest]

    # ---------------------------------------------------------------------------------------------------------------- loop

    async def run(self) -> None:
        await self.program.attach()
        while True:
            self.wake.clear()
            try:
                step = next_step(self.wished(), self.seen(), now=time.monotonic())
                patience = await self._do(step)
            except (OSError, msgspec.MsgspecError) as error:
                self.cannot = f"cannot be started: {error}"
                log.error("supervision_failed", program=self.key, text=f"{self.key}: {error}.")
                patience = 2.0
            self._note()
            try:
                await asyncio.wait_for(self.wake.wait(), patience)
            except TimeoutError:
                pass

    async def _do(self, step: Step) -> float | None:
        """Carry out one step. Returns: seconds after which to look again at the latest; None: when something happens."""
        self.waiting = step.because if step.act is Act.WAIT else ""
        if step.act is Act.NOTHING:
            self._tell()
            return None
        if step.act is Act.WAIT:
            self._tell()
            at = step.at or 0.0
            return None if at == math.inf else max(0.0, at - time.monotonic()) + 0.001
        if step.act is Act.ATTACH:
            await self.program.attach()
            self._tell()
            return ATTACH_AGAIN
        if step.act is Act.FETCH:
            self._begin_fetch()
            return 0.0
        if step.act is Act.STOP:
            log.info("runtime_stops", program=self.key, text=f"{self.key} is stopped: {step.because}.")
            self.program.stop(step.because, self._stop_seconds())
            return None
        assert step.launch is not None
        await self._start(step.launch)
        return 0.0

    def _stop_seconds(self) -> float:
        """How long its process may take by the profile that it runs under, which may not be the environment's yet."""
        content = self.content()
        timing = content.timing if content is not None else max(PROFILES.values(), key=lambda each: each.drain + each.ttl)
        return timing.drain + timing.ttl + STOP_MARGIN

    def _tell(self) -> None:
        """What goes to the living process without a restart."""
        if self.order is None or self.program.pid is None or self.program.stopping:
            return
        outside = self.around.outside if self.around is not None else ""
        live = ProcessCommand(preferences=self.order.preferences, stopped_flows=self.order.stopped_flows, outside=outside)
        if live != self.told:
            self.program.tell(live)
            self.told = live

    def _begin_fetch(self) -> None:
        """In the background: while a portal is slow, a process that crashes still restarts at once."""
        assert self.order is not None and self.order.digest is not None
        digest, release = self.order.digest, self.order.release
        self.bundle_state[digest] = (BundleState.UNREACHABLE, f"the bundle of release {release} is being fetched")
        self.fetch_again_at = math.inf
        self.fetching = asyncio.create_task(self._fetch(digest, release))

    async def _fetch(self, digest: str, release: int | None) -> None:
        try:
            self.home.bundle_path(digest)  # refuses what is no digest before it becomes a URL
            self.home.keep_bundle(digest, await self.fetch(digest))
            self.fetch_failures = 0
            self.bundle_state[digest] = (BundleState.HERE, "")
        except (BundleUnavailable, TamperedBundle, OSError) as error:
            self.fetch_failures += 1
            refused = isinstance(error, TamperedBundle)
            self.bundle_state[digest] = (BundleState.REFUSED if refused else BundleState.UNREACHABLE, str(error))
            self.fetch_again_at = time.monotonic() + retry_delay(self.fetch_failures, first=0.5, longest=30.0 if refused else 5.0)
            if self.fetch_failures == 1:
                log.error("bundle_not_taken", program=self.key, text=f"{self.key} cannot take over release {release}: {error}.")
        self.wake.set()

    async def _start(self, wished: Launched) -> None:
        assert self.order is not None and self.around is not None
        data = self.home.bundle(wished.digest)
        if data is None:
            self.bundle_state.pop(wished.digest, None)  # it was changed on disk: fetch it again
            return
        content = decode(BundleContent, data)
        launch = new_launch()
        config = RuntimeConfig(
            key=self.key,
            environment=content.environment,
            machine=self.around.machine,
            connector=self.order.connector,
            launch=launch,
            bundle=str(self.home.bundle_path(wished.digest)),
            digest=wished.digest,
            release=content.release,
            etcd=wished.etcd,
            tls=self.home.tls,
            namespace=wished.namespace,
            generation=wished.generation,
            timing=content.timing,
            data=str(self.folder / "data"),
            permit=str(self.folder / "permit"),
            preferences=self.order.preferences,
            stopped_flows=self.order.stopped_flows,
            outside=self.around.outside,
        )
        path = self.folder / "config.json"
        write_atomically(path, encode(config))
        self.told = ProcessCommand(preferences=config.preferences, stopped_flows=config.stopped_flows)
        log.info("runtime_starts", program=self.key, text=f"{self.key} starts with release {content.release}.")
        try:
            await self.program.launch(
                launch,
                [*python_command(PROCESS_MODULE), str(path)],
                wished,
                permit=self.folder / "permit",
                runtime=self.key,
                etcd=wished.etcd,
                tls=self.home.tls,
                namespace=wished.namespace,
            )
            self.cannot = ""
        except CannotStart as error:
            self.cannot = str(error)
            log.error("runtime_cannot_start", program=self.key, text=f"{self.key} cannot be started: {error}.")

    # -------------------------------------------------------------------------------------------------------------- reports

    def _program_changed(self) -> None:
        self.wake.set()
        self._note()

    def _note(self) -> None:
        """Ask for a report at once when more than counters changed."""
        report = self.report()
        quiet = [msgspec.structs.replace(group, last_activity="") for group in report.groups]
        flows = [(flow.flow, flow.on, flow.reason, flow.silent_since, flow.undelivered_since) for flow in report.flows]
        essence = (report.state, report.reason, report.pid, report.digest, report.restarts, quiet, flows)
        if essence != self.essence:
            self.essence = essence
            self.changed()

    def state(self) -> tuple[RuntimeState, str]:
        program, wished = self.program, self.wished()
        if program.keeping is Keeping.STUCK:
            return RuntimeState.FAILED, "its keeper holds the lock but does not answer"
        if program.hangs:
            return RuntimeState.HANGING, self.why_all_late() or program.hangs
        if program.keeping is Keeping.ALIVE:
            said = program.news.reason if program.news is not None else ""
            reason = f"it is being stopped: {program.stopping}" if program.stopping else self.waiting or said
            return (RuntimeState.READY if program.ready else RuntimeState.STARTING), reason
        if program.launching or not program.looked:  # "stopped" would be a guess, and others start upon it
            return RuntimeState.STARTING, "starting" if program.launching else "the agent has just started and looks for its process"
        if wished is None:
            undeployed = self.order is not None and self.order.digest is None
            return RuntimeState.STOPPED, "nothing was deployed here yet" if undeployed else "stopped as ordered"
        ended = program.exit_reason
        wait = program.start_again_at - time.monotonic()
        if self.bundle_state.get(wished.digest, (BundleState.HERE, ""))[0] in (BundleState.REFUSED, BundleState.UNREACHABLE):
            first_try = self.fetching is not None and not self.fetching.done() and not self.fetch_failures
            return RuntimeState.STARTING if first_try else RuntimeState.FAILED, self.bundle_state[wished.digest][1]
        if self.cannot:
            return RuntimeState.FAILED, self.cannot
        if wait > 0:
            count = program.exits_in_a_row
            # the moment, not the seconds left: a sentence that changes all the time would be news all the time
            return RuntimeState.BACKOFF, f"{ended}: {count} exits in a row without having been ready; tries again later"
        return RuntimeState.STARTING, f"{ended}; restarting" if ended and program.starts else "starting"

    def report(self) -> RuntimeReport:
        state, reason = self.state()
        program, news = self.program, self.program.news
        alive = program.pid is not None and news is not None
        launched: Launched | None = program.what(Launched)
        groups: list[GroupReport] = news.groups if alive and news is not None else []
        flows: list[FlowReport] = news.flows if alive and news is not None else []
        if not groups:
            groups = self._absent_groups(launched, state, reason)
        elif program.hangs and self._says_on():  # under its permit it may consume again at any moment, or goes on without its keeper
            groups = [msgspec.structs.replace(group, ready=False, reason=reason) for group in groups]
        elif program.hangs:
            groups, flows = self._hanging(groups, flows, reason)
        else:
            self.absent_since = ""
            groups = [self._with_cause(group) for group in groups]
        return RuntimeReport(
            key=self.key,
            state=state,
            reason=reason,
            pid=program.pid,
            started_at=news.started_at if alive and news is not None else "",
            starts=program.starts,
            restarts=launched.restarts if launched is not None else 0,
            digest=launched.digest if launched is not None else None,
            release=launched.release if launched is not None else None,
            groups=groups,
            flows=flows or self._absent_flows(launched, state, reason),
        )

    def _says_on(self) -> bool:
        """Does the permit page say that some group is On, under a permit that has not ended."""
        try:
            until, on = PERMIT.unpack((self.folder / "permit").read_bytes()[: PERMIT.size])
        except (OSError, struct.error):
            return False
        return bool(on) and linux.boot_seconds() < until

    def _absence(self, state: RuntimeState, reason: str) -> str:
        if self.program.pid is not None:
            return f"the process of {self.key} is starting"
        return f"the process of {self.key} is not running: {reason or state}"

    def _hanging(self, groups: list[GroupReport], flows: list[FlowReport], hangs: str) -> tuple[list[GroupReport], list[FlowReport]]:
        """What a process that does not answer said last, without what is no fact any more.

        A failover group is Off: its permit has ended, or its keeper would have killed it. Nothing ends the inbounds of a single node or
        of an ungrouped flow: as last heard.
        """
        self.absent_since = self.absent_since or utc_now()
        standing = {None, *(group.group for group in groups if group.status is Status.SINGLE_NODE)}
        said = [
            msgspec.structs.replace(
                group,
                status=Status.ISOLATED,
                state=group.state if group.group in standing else State.OFF,
                reason=hangs,
                leader=None,
                ready=False,
                since=self.absent_since,
            )
            for group in groups
        ]
        return said, [msgspec.structs.replace(flow, on=flow.on and flow.group in standing, reason=hangs) for flow in flows]

    def _with_cause(self, group: GroupReport) -> GroupReport:
        """A process sees its own router only; its agent knows what is wrong with it, and whom it cannot reach since when."""
        head = next((head for head in (ISOLATED_BECAUSE, ALONE_BECAUSE) if group.reason.startswith(head)), "")
        cause = self.why_cut_off() if head else ""
        return msgspec.structs.replace(group, reason=head + cause) if cause else group

    def content(self) -> BundleContent | None:
        """What it runs or last ran, else what it is wished to run."""
        return self._content(self.program.what(Launched))

    def _content(self, launched: Launched | None) -> BundleContent | None:
        """Of the bundle that runs or last ran, else of the wished one."""
        digest = launched.digest if launched is not None else self.order.digest if self.order is not None else None
        if digest is None:
            return None
        if digest not in self.contents:
            try:
                data = self.home.bundle(digest)
                if data is None:
                    return None
                self.contents = {digest: decode(BundleContent, data)}
            except (TamperedBundle, msgspec.MsgspecError):
                return None
        return self.contents[digest]

    def _absent_groups(self, launched: Launched | None, state: RuntimeState, reason: str) -> list[GroupReport]:
        content = self._content(launched)
        if content is None:
            return []
        self.absent_since = self.absent_since or utc_now()
        said = self._absence(state, reason)
        return [
            GroupReport(group=group.id, status=Status.ISOLATED, state=State.OFF, reason=said, since=self.absent_since)
            for group in content.groups
        ]

    def _absent_flows(self, launched: Launched | None, state: RuntimeState, reason: str) -> list[FlowReport]:
        content = self._content(launched)
        said = self._absence(state, reason)
        return [
            FlowReport(flow=flow.id, name=flow.name, on=False, group=flow.group, reason=said)
            for flow in (content.flows if content is not None else [])
        ]

    def has_group(self, group: str) -> bool:
        """Is this runtime a member of the group, as ordered or as it last ran."""
        content = self._content(self.program.what(Launched))
        known = {spec.id for spec in content.groups} if content is not None else set()
        return group in known or (self.order is not None and group in self.order.preferences)

    def digests(self) -> set[str]:
        """Bundles this runtime still needs."""
        launched: Launched | None = self.program.what(Launched)
        return {digest for digest in (self.order and self.order.digest, launched and launched.digest) if digest}

    async def close(self) -> None:
        """Let go of the keeper; the process goes on."""
        if self.fetching is not None:
            self.fetching.cancel()
            await asyncio.gather(self.fetching, return_exceptions=True)
        await self.program.let_go()
