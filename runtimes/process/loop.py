"""The loop of a runtime: renew, decide, act, report (docs/failover.md, Loop of a runtime).

This thread does the election only. Flows run in worker threads, so that copying 100 MB never delays a renewal.
"""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from runtimes.process.config import Loaded
from runtimes.process.connectors.aside import now_text
from runtimes.process.control import Control
from runtimes.process.coordination import Coordinator, Result
from runtimes.process.election import (
    NO_ROUTER,
    Action,
    Decision,
    GroupView,
    Own,
    SessionAction,
    decide,
    decide_session,
    margin,
    single_node_cause,
    vacancy,
)
from runtimes.process.etcd import Etcd
from runtimes.process.files import write_whole
from runtimes.process.flows import Flow
from runtimes.process.isolation import Memory
from runtimes.process.permits import ALWAYS, NEVER, Clock, Duty, PermitPage, boot_clock, boot_id
from runtimes.process.records import ControlRecord, GroupMark, design_of, epoch_of
from runtimes.process.seat import Seat
from runtimes.process.state import GroupState
from runtimes.protocol import (
    LONGEST_TTL,
    SIGN_OF_LIFE_SECONDS,
    Cause,
    FlowReport,
    FlowSpec,
    GroupReport,
    LeadershipEnd,
    LeadershipEvent,
    Preference,
    ProcessCommand,
    ProcessNews,
    RanAlone,
    RequestOutcome,
    RequestStatus,
    State,
    Status,
    epoch_words,
)

FLOW_NEWS_SECONDS = 1.0  # counters alone are news at most so often
SHORTEST_WAIT = 0.005
TURN_SECONDS = 0.02  # what is idle has drained within it


class Runtime:
    """One process: its flows, its groups, its session."""

    def __init__(self, loaded: Loaded, control: Control | None, log: Any, clock: Clock = boot_clock) -> None:
        self._config, self._bundle = loaded.config, loaded.bundle
        self._control, self._log, self._clock = control, log, clock
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._preferences = dict(self._config.preferences)
        self._stopped_flows = set(self._config.stopped_flows)
        self._outside = self._config.outside
        self._stopping_since: float | None = None
        self._orphaned = False
        self._renew_now = False
        self._confirm = False  # after anything but success, the next own transaction is a plain renewal
        self._session = ""
        self._session_sentence = ""
        self._said: dict[str, str] = {}
        self._last_flows: list[FlowReport] = []
        self._last_flows_at = NEVER
        self._spoke_at = NEVER
        self._looked_at = clock()  # when the warden last looked: longer ago than it may be means that this process stood still
        self._boot_id = boot_id()
        self._last_ready: tuple[bool, str] | None = None
        data = Path(self._config.data)
        data.mkdir(parents=True, exist_ok=True)
        self._memory_etcd: Etcd | None = None
        self._page = PermitPage(self._config.permit)
        self._flows = [self._make_flow(spec, data) for spec in self._bundle.flows]
        self._free = {flow.spec.id: flow for flow in self._flows if flow.spec.group is None}
        self._free_duties: dict[str, Duty] = {}
        self._alone: list[tuple[Seat, str]] = []
        self._seats: list[Seat] = []
        self._cut_off: list[Seat] = []  # failover groups, and this machine has no router
        for spec in self._bundle.groups:
            seat = Seat(spec, [flow for flow in self._flows if flow.spec.group == spec.id], clock)
            cause = single_node_cause(spec, self._config.key)
            if cause is not None:
                self._alone.append((seat, cause))
            elif self._config.etcd is None:  # Off, whatever its policy: every sibling may be in the same case
                self._cut_off.append(seat)
            else:
                self._seats.append(seat)
        self._coordinator: Coordinator | None = None
        if self._seats and self._config.etcd is not None:
            specs = [seat.spec for seat in self._seats]
            router = Etcd(self._config.etcd, self._config.tls)
            self._coordinator = Coordinator(router, self._config, specs, self._marks, clock, design_of(self._bundle))
        self._memory = Memory(data / "isolation.json", log)
        self._not_before = self._after_new_generation(data / "generation")

    # -------------------------------------------------------------------------------------------------------------------- running

    async def run(self) -> int:
        """Until asked to stop (0) or orphaned (1)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop, f"received {number.name}")
        for flow in self._flows:
            flow.open()
        tasks = [asyncio.create_task(self._warden())]
        if self._control is not None:
            tasks.append(asyncio.create_task(self._listen(self._control)))
        if self._coordinator is not None:
            tasks.append(asyncio.create_task(self._coordinator.watch(self._watched)))
        try:
            await self._elect(tasks)
            return await self._end()
        finally:
            self._void_all()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._coordinator is not None:
                await self._coordinator.etcd.close()
            if self._memory_etcd is not None:
                await self._memory_etcd.close()
            self._memory.close()

    async def _elect(self, tasks: list["asyncio.Task[None]"]) -> None:
        while not self._finished():
            self._wake.clear()
            for task in tasks:  # a defect there must not leave this loop leading without its warden
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    raise error
            if self._coordinator is not None:
                await self._session_step(self._coordinator)
            acted = await self._group_step()
            self._publish()
            if not acted:
                await self._sleep()

    async def _sleep(self) -> None:
        now = self._clock()
        at = now + FLOW_NEWS_SECONDS
        if self._spoke_at != NEVER:
            at = min(at, self._spoke_at + SIGN_OF_LIFE_SECONDS)
        if self._coordinator is not None:
            at = min(at, self._next_renewal(self._coordinator))
            at = min([at, *(seat.decision.again_at for seat in self._seats if seat.decision is not None)])
        if self._renew_now:
            at = now
        try:
            async with asyncio.timeout(max(at - now, SHORTEST_WAIT)):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _finished(self) -> bool:
        if self._orphaned:
            return True
        if self._stopping_since is None:
            return False
        if self._clock() >= self._stopping_since + self._config.timing.drain + self._config.timing.ttl:
            self._log.warning("stopping without having drained: the limit has passed")
            return True
        leading = [
            seat for seat in self._seats if seat.decision is not None and seat.decision.status != Status.ISOLATED and self._holds(seat)
        ]
        return not leading and not any(flow.busy for flow in self._flows)

    def _holds(self, seat: Seat) -> bool:
        assert self._coordinator is not None
        if not self._coordinator.started or self._clock() >= self._coordinator.contact_until:
            return False
        return self._view(seat, self._clock()).mine or seat.spec.id in self._coordinator.held_off

    async def _end(self) -> int:
        self._void_all()
        deadline = self._loop.time() + 0.5
        while any(flow.busy for flow in self._flows) and self._loop.time() < deadline:  # noqa: ASYNC110 - bounded by the deadline
            await asyncio.sleep(0.01)
        for flow in self._flows:
            flow.close()
        quiet = not any(flow.busy for flow in self._flows)
        if self._coordinator is not None and self._coordinator.started and quiet:
            await self._coordinator.end()
        self._publish()
        if self._control is not None:
            await self._control.close()
        self._log.info("ended")
        return 1 if self._orphaned else 0

    def _void_all(self) -> None:
        for duty in self._free_duties.values():
            duty.void()
        for flow in self._free.values():
            flow.abort()
        for seat in [*self._seats, *(seat for seat, _ in self._alone)]:
            seat.off()
            self._ran_alone(seat)
        self._turn_page()

    def _ran_alone(self, seat: Seat) -> None:
        """It is Off: told once, from when to when another member may have consumed beside it."""
        if seat.ran is not None:
            self._send(ProcessNews(alone=msgspec.structs.replace(seat.ran, until=now_text(), until_boot=self._clock())))
            seat.ran = None

    # -------------------------------------------------------------------------------------------------------------------- messages

    def _stop(self, why: str) -> None:
        if self._stopping_since is None:
            self._log.info(f"stopping: {why}")
            self._stopping_since = self._clock()
            self._renew_now = True
            self._wake.set()

    async def _listen(self, control: Control) -> None:
        await control.listen(self._command, self._log)
        if self._stopping_since is None:
            self._log.error("the keeper is gone: every permit is void, this process ends")
        self._orphaned = True
        self._void_all()
        self._wake.set()

    def _command(self, command: ProcessCommand) -> None:
        if command.preferences is not None:
            self._preferences = dict(command.preferences)
            self._renew_now = True
        if command.stopped_flows is not None:
            self._stopped_flows = set(command.stopped_flows)
        if command.outside is not None:
            self._outside = command.outside
        if command.stop:
            self._stop("asked by its keeper")
        self._wake.set()

    def _watched(self, renew: bool) -> None:
        self._renew_now = self._renew_now or renew
        self._wake.set()

    def _changed(self) -> None:
        """Called by worker threads."""
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:
            pass  # the loop has ended

    # -------------------------------------------------------------------------------------------------------------------- session

    async def _session_step(self, coordinator: Coordinator) -> None:
        now = self._clock()
        decision = decide_session(coordinator.own_session, coordinator.session, coordinator.started, now)
        if decision.action == SessionAction.RENEW:
            if self._renew_now or now >= self._next_renewal(coordinator):
                self._renew_now = False
                self._settle(coordinator, await coordinator.renew())
            return
        self._session_sentence = decision.sentence
        self._say("session", decision.sentence)
        due = now >= self._next_renewal(coordinator)
        if decision.action == SessionAction.START:
            if due or self._renew_now or not self._confirm:
                self._renew_now = False
                self._settle(coordinator, await coordinator.start())
        elif due and await coordinator.look() == Result.DONE and decision.action == SessionAction.LOOK:
            await self._session_step(coordinator)  # what was read says at once whether a session may start

    def _next_renewal(self, coordinator: Coordinator) -> float:
        return coordinator.sent_at + self._config.timing.renewal

    def _settle(self, coordinator: Coordinator, result: Result) -> None:
        """After each own transaction: what it said about permits is true for the duties too."""
        if coordinator.session != self._session:
            for seat in self._seats:
                self._cut(seat)
            self._session = coordinator.session
        for seat in self._seats:
            if seat.duty is not None and not seat.alone:
                until = coordinator.permits[seat.spec.id]
                if until == NEVER:
                    self._cut(seat)
                else:
                    seat.duty.extend(until)
        self._turn_page()
        self._confirm = result != Result.DONE
        if result == Result.REFUSED:
            self._renew_now = True

    def _marks(self) -> dict[str, GroupMark]:
        return {
            seat.spec.id: GroupMark(
                ready=seat.ready and self._stopping_since is None,
                on=seat.state == State.ON,
                preference=self._preferences.get(seat.spec.id, Preference.NONE),
            )
            for seat in self._seats
        }

    def _turn_page(self) -> None:
        # A group that runs alone has a standing duty, as a single node has: no permit ends that the keeper would have to watch.
        until = min((seat.duty.until for seat in self._seats if seat.duty is not None and not seat.alone), default=None)
        if until is None or until == NEVER:
            self._page.off()
        else:
            self._page.on(until)

    async def _warden(self) -> None:
        """Turn groups Off just before their permit ends, even while the election waits for an answer."""
        while True:
            now = self._clock()
            ends = [(seat.duty.until - margin(self._config.timing), seat) for seat in self._seats if seat.duty is not None]
            for end, seat in ends:
                if now >= end:
                    self._log.warning(f"group {seat.spec.name}: Off, its permit ends and no renewal has succeeded")
                    self._cut(seat)
                    self._turn_page()
                    self._wake.set()
            self._looked_at = now
            soon = min((end for end, _ in ends if end > now), default=ALWAYS)
            await asyncio.sleep(max(min(soon - now, self._config.timing.renewal), 0.001))

    def _cut(self, seat: Seat) -> None:
        """Off because the permit ends or is gone, not given up: tell how this leadership ended, in case that another takes over. One that
        ran alone may be Off because its session begins."""
        duty, now = seat.duty, self._clock()
        seat.off()
        self._ran_alone(seat)
        disabled = seat.decision is not None and seat.decision.status == Status.DISABLED
        if duty is None or duty.epoch == 0 or seat.cut == duty.epoch or disabled:
            return
        seat.cut = duty.epoch
        stood = now - self._looked_at
        if stood > self._config.timing.ttl / 2:  # the warden looks at every renewal
            cause, reason = Cause.HANG, f"the process of {self._config.key} stood still for {stood:.1f} s"
        else:
            trouble = self._coordinator.trouble if self._coordinator is not None else ""
            cause, reason = Cause.LOST_MAJORITY, trouble or "no answer from a majority of the routers"
        self._send(ProcessNews(ended=self._ended(seat, duty.epoch, cause, reason)))

    def _ended(self, seat: Seat, epoch: int, cause: Cause, reason: str) -> LeadershipEnd:
        """A leadership that ends at this instant."""
        return LeadershipEnd(
            group=seat.spec.id,
            epoch=epoch,
            runtime=self._config.key,
            cause=cause,
            reason=reason,
            at=now_text(),
            at_boot=self._clock(),
            boot_id=self._boot_id,
        )

    # -------------------------------------------------------------------------------------------------------------------- groups

    async def _group_step(self) -> bool:
        """Decide for each group and act; True when a transaction was made, so that its answer is judged at once."""
        self._run_ungrouped()
        acted = False
        for seat in self._seats:
            now = self._clock()
            leads = self._view(seat, now).mine or seat.alone
            for flow in seat.flows:
                flow.turn(leads=leads)
            decision = seat.decision = decide(self._view(seat, now), now)
            self._say(seat.spec.id, f"group {seat.spec.name}: {decision.sentence}")
            if seat.alone and decision.status != Status.SINGLE_NODE:  # first stop, then join the election
                self._log.warning(f"group {seat.spec.name}: Off, it ran alone and a majority answers again")
                seat.off()
                self._ran_alone(seat)
                seat.drain_since = None
                self._turn_page()
            acted = await self._act(seat, decision, now) or acted
        if self._coordinator is not None:
            self._coordinator.awaited = frozenset(seat.decision.awaits for seat in self._seats if seat.decision and seat.decision.awaits)
        return acted

    def _view(self, seat: Seat, now: float) -> GroupView:
        coordinator = self._coordinator
        assert coordinator is not None
        group = seat.spec.id
        leader, leader_revision = coordinator.leader(group)
        control, control_revision = coordinator.control(group)
        unreadable = control is None or (leader is None and leader_revision != 0)
        if coordinator.heard:
            self._memory.learn(group, control, self._config.key)
        isolation, remembered = self._memory.recall(group)
        own = Own(
            preference=self._preferences.get(group, Preference.NONE),
            ready=seat.ready,
            reason=seat.reason,
            stopping=self._stopping_since is not None,
            permit_until=coordinator.permits[group],
            contact_until=coordinator.contact_until,
            trouble=coordinator.trouble or ("" if coordinator.started else self._session_sentence),
            held_off=group in coordinator.held_off,
            busy=seat.busy,
            drain_since=seat.drain_since,
            vacant_since=seat.vacant_since,
            not_before=self._not_before,
            isolation=isolation,
            disabled=remembered.disabled,
            unread=remembered.unread,
            lost_since=coordinator.lost_since(now),
            alone=seat.alone,
            outside=self._outside,
        )
        view = GroupView(
            seat.spec,
            self._config.key,
            coordinator.session,
            leader,
            leader_revision,
            control or ControlRecord(),
            unreadable,
            control_revision,
            coordinator.sessions,
            coordinator.named,
            own,
            self._config.timing,
            self._config.generation,
        )
        if view.mine or vacancy(view, now)[0] is None:
            seat.vacant_since = None
        elif seat.vacant_since is None:
            seat.vacant_since = now
        return view

    async def _act(self, seat: Seat, decision: Decision, now: float) -> bool:
        coordinator = self._coordinator
        assert coordinator is not None
        view = self._view(seat, now)
        if decision.action == Action.LEAD:
            self._lead(seat, view, coordinator)
            return False
        if decision.action == Action.LEAD_ALONE:
            if seat.lead(0, ALWAYS):
                self._log.warning(f"group {seat.spec.name}: On without an epoch: {decision.sentence}")
                seat.ran = RanAlone(
                    group=seat.spec.id,
                    runtime=self._config.key,
                    reason=decision.sentence,
                    since=now_text(),
                    since_boot=now,
                    boot_id=self._boot_id,
                )
                self._send(ProcessNews(alone=seat.ran))
                self._turn_page()
            return False
        if decision.action == Action.FOLLOW:
            self._cut(seat)
            seat.drain_since = None
            self._turn_page()
            return False
        if decision.action == Action.DRAIN:
            first = seat.drain_since is None
            if first and decision.status == Status.LEADER and self._another_goes_first(now):
                seat.decision = replace(decision, again_at=now + TURN_SECONDS)
                return False
            seat.drain(now)
            return first  # what is idle is drained already
        if self._confirm or not coordinator.started:
            return False
        if decision.action == Action.CLOSE:
            await self._close(seat, view, decision, coordinator)
        elif decision.action == Action.TAKE:
            await self._take(seat, view, decision, coordinator)
        else:
            await self._give_up(seat, view, decision, coordinator)
        return True

    def _another_goes_first(self, now: float) -> bool:
        """Fifty groups handed over at once shall not all be Off until the last transaction: the next one stops when the one before is given
        up, or has something in flight that takes its time."""
        return any(
            seat.drain_since is not None and seat.duty is not None and (not seat.busy or now < seat.drain_since + TURN_SECONDS)
            for seat in self._seats
        )

    def _lead(self, seat: Seat, view: GroupView, coordinator: Coordinator) -> None:
        until = coordinator.permits[seat.spec.id]
        if seat.duty is None or not seat.duty.valid():  # the page first: it must never be Off while inbounds are On
            others = [other.duty.until for other in self._seats if other.duty is not None and other.duty.valid()]
            self._page.on(min([until, *others]))
        seat.lead(view.epoch, until)
        # Until its event is told, what counts is when the former leadership was On.
        if seat.state == State.ON and seat.announced == view.epoch:
            seat.on_at = self._clock()

    async def _take(self, seat: Seat, view: GroupView, decision: Decision, coordinator: Coordinator) -> None:
        assert decision.cause is not None
        old = view.sessions.get(view.leader.runtime) if view.leader and view.leader.runtime else None
        sign = coordinator.last_sign.get(view.leader.runtime) if old and view.leader and view.leader.runtime else None
        result = await coordinator.take(view, decision.cause, decision.actor)
        self._settle(coordinator, result)
        if result == Result.DONE:
            epoch = epoch_of(self._config.generation, coordinator.leader(seat.spec.id)[1])
            if sign is not None and decision.cause in (Cause.CRASH, Cause.SILENCE):
                seat.detection = (epoch, self._clock() - sign)
        else:
            self._log.info(f"group {seat.spec.name}: the take was {result}")

    async def _give_up(self, seat: Seat, view: GroupView, decision: Decision, coordinator: Coordinator) -> None:
        assert decision.cause is not None
        seat.off()
        ended = self._ended(seat, view.epoch, decision.cause, decision.sentence)
        self._turn_page()
        request = view.control.request
        outcome = None
        if request is not None and decision.action == Action.HAND_OVER:
            done = request.to in (None, decision.to)
            reason = f"{decision.to} leads" if done else f"{decision.to} leads: {decision.sentence}"
            outcome = _outcome(request.id, "" if done else "stale", reason)
        result = await coordinator.give_up(view, decision.to, decision.cause, decision.actor, outcome)
        self._settle(coordinator, result)
        if result == Result.DONE:
            seat.drain_since = None
            if decision.to is None:  # whoever leads next, this process too after its restart, has not seen it On
                self._send(ProcessNews(ended=ended))
            if outcome is not None:
                self._send(ProcessNews(outcome=outcome))
        else:
            self._log.info(f"group {seat.spec.name}: giving up was {result}")

    async def _close(self, seat: Seat, view: GroupView, decision: Decision, coordinator: Coordinator) -> None:
        request = view.control.request
        assert request is not None
        outcome = _outcome(request.id, decision.code, decision.sentence)
        result = await coordinator.close_request(view, outcome)
        self._settle(coordinator, result)
        if result == Result.DONE:
            self._send(ProcessNews(outcome=outcome))

    def _run_ungrouped(self) -> None:
        """Single nodes and ungrouped flows: a standing duty, until they are stopped."""
        stopping = self._stopping_since is not None
        for seat, cause in self._alone:
            if stopping:
                if seat.duty is not None and seat.duty.taking:
                    seat.drain(self._clock())
            elif seat.duty is None:
                self._say(seat.spec.id, f"group {seat.spec.name}: {cause}")
                seat.lead(0, ALWAYS)
        for flow_id, flow in self._free.items():
            duty = self._free_duties.get(flow_id)
            wanted = not stopping and flow_id not in self._stopped_flows
            if wanted and duty is None:
                duty = self._free_duties[flow_id] = Duty(None, "", 0, ALWAYS, self._clock)
                flow.start(duty)
            elif not wanted and duty is not None:
                duty.stop_taking()
                flow.stop()
                del self._free_duties[flow_id]

    # -------------------------------------------------------------------------------------------------------------------- reporting

    def _publish(self) -> None:
        """Tell the keeper what changed, and announce a leadership once its inbounds are On."""
        groups = [
            *(self._report(seat) for seat in self._seats),
            *(self._report_alone(seat, cause) for seat, cause in self._alone),
            *(self._report_cut_off(seat) for seat in self._cut_off),
        ]
        seats = [*self._seats, *(seat for seat, _ in self._alone), *self._cut_off]
        news = any(
            seat.last_report is None or _without_activity(seat.last_report) != _without_activity(report)
            for seat, report in zip(seats, groups, strict=True)
        )
        ready = self._readiness()
        flows = [self._flow_report(flow) for flow in self._flows]
        states = [(flow.on, flow.reason, flow.silent_since, flow.undelivered_since) for flow in flows] != [
            (flow.on, flow.reason, flow.silent_since, flow.undelivered_since) for flow in self._last_flows
        ]
        late = flows != self._last_flows and self._loop.time() - self._last_flows_at >= FLOW_NEWS_SECONDS
        if (news or states or late or ready != self._last_ready) and self._send(
            ProcessNews(ready=ready[0], reason=ready[1], groups=groups, flows=flows)
        ):
            for seat, report in zip(seats, groups, strict=True):
                seat.last_report = report
            self._last_flows, self._last_flows_at, self._last_ready = flows, self._loop.time(), ready
        for seat in self._seats:
            self._announce(seat)
        if self._clock() >= self._spoke_at + SIGN_OF_LIFE_SECONDS:
            self._send(ProcessNews())

    def _readiness(self) -> tuple[bool, str]:
        for flow in self._flows:
            if not flow.prepared:
                return False, f"flow {flow.spec.name}: {flow.reason}"
        if self._stopping_since is not None:
            return False, "stopping"
        if self._cut_off:
            return False, NO_ROUTER
        if self._coordinator is not None and self._coordinator.contact_until == NEVER and not any(seat.alone for seat in self._seats):
            return False, f"no contact with its router yet: {self._coordinator.trouble or self._said.get('session', '')}"
        return True, ""

    def _flow_report(self, flow: Flow) -> FlowReport:
        report = flow.report()
        if not report.on and not report.reason and flow.spec.group is None:
            why = "stopped by a person" if flow.spec.auto_start else "does not start by itself: start it on the tab Flows"
            return FlowReport(**{**{name: getattr(report, name) for name in report.__struct_fields__}, "reason": why})
        return report

    def _report(self, seat: Seat) -> GroupReport:
        now = self._clock()
        view, decision = self._view(seat, now), seat.decision
        status = decision.status if decision is not None else Status.ISOLATED
        if seat.status != status:
            seat.status, seat.since = status, now_text()
        leader = view.leader.runtime if view.leader is not None else None
        if not view.mine and vacancy(view, now)[0] is not None:
            leader = None
        connected = now < view.own.contact_until
        return GroupReport(
            group=seat.spec.id,
            status=status,
            state=seat.state,
            reason=decision.sentence if decision is not None else "starting",
            epoch=0 if status == Status.SINGLE_NODE else view.epoch,
            leader=self._config.key if status == Status.SINGLE_NODE else leader if connected else None,
            ready=seat.ready and (connected or status == Status.SINGLE_NODE) and self._stopping_since is None,
            since=seat.since,
            last_activity=seat.last_activity,
            disabled=sorted(view.control.disabled),
            open_request=view.control.request.id if view.control.request else None,
            isolation=view.own.isolation,
            ttl=self._config.timing.ttl,
        )

    def _report_alone(self, seat: Seat, cause: str) -> GroupReport:
        if not seat.since:
            seat.since = now_text()
        return GroupReport(
            group=seat.spec.id,
            status=Status.SINGLE_NODE,
            state=seat.state,
            reason=cause,
            leader=self._config.key,
            ready=seat.ready and self._stopping_since is None,
            since=seat.since,
            last_activity=seat.last_activity,
        )

    def _report_cut_off(self, seat: Seat) -> GroupReport:
        if not seat.since:
            seat.since = now_text()
        self._say(seat.spec.id, f"group {seat.spec.name}: {NO_ROUTER}")
        return GroupReport(
            group=seat.spec.id,
            status=Status.ISOLATED,
            state=State.OFF,
            reason=NO_ROUTER,
            since=seat.since,
            isolation=self._memory.recall(seat.spec.id)[0],
            ttl=self._config.timing.ttl,
        )

    def _announce(self, seat: Seat) -> None:
        """The event of a new leadership, once, when its inbounds are On."""
        duty = seat.duty
        if duty is None or seat.alone or seat.state != State.ON:
            return
        now = self._clock()
        coordinator = self._coordinator
        assert coordinator is not None
        leader, revision = coordinator.leader(seat.spec.id)
        if seat.announced == duty.epoch:
            seat.on_at = now
            return
        if leader is None or epoch_of(self._config.generation, revision) != duty.epoch:
            return
        runtime, last_on = coordinator.last_on.get(seat.spec.id, (None, NEVER))
        if leader.previous == self._config.key:
            runtime, last_on = leader.previous, seat.on_at
        gap = now - last_on if runtime is not None and runtime == leader.previous and last_on != NEVER else None
        seat.announced, seat.on_at = duty.epoch, now
        coordinator.last_on.pop(seat.spec.id, None)  # what the former leader did before is no part of the gap after this leadership
        event = LeadershipEvent(
            group=seat.spec.id,
            epoch=duty.epoch,
            runtime=self._config.key,
            previous=leader.previous,
            cause=leader.cause,
            actor=leader.actor,
            at=now_text(),
            at_boot=now,
            boot_id=self._boot_id,
            detection_seconds=seat.detection[1] if seat.detection and seat.detection[0] == duty.epoch else None,
            gap_seconds=gap,
        )
        self._log.info(
            f"group {seat.spec.name}: inbounds On with epoch {epoch_words(duty.epoch)}",
            cause=leader.cause,
            gap_seconds=gap,
            previous=leader.previous,
        )
        self._send(ProcessNews(event=event))

    def _send(self, news: ProcessNews) -> bool:
        sent = self._control is None or self._control.send(news)
        if sent:
            self._spoke_at = self._clock()
        return sent

    def _say(self, subject: str, sentence: str) -> None:
        """Log a sentence when it changes; figures in it alone are no change."""
        shape = "".join(letter for letter in sentence if not letter.isdigit())
        if self._said.get(subject) != shape:
            self._said[subject] = shape
            self._log.info(sentence)

    # -------------------------------------------------------------------------------------------------------------------- beginning

    def _make_flow(self, spec: FlowSpec, data: Path) -> Flow:
        changed: Callable[[], None] = self._changed
        return Flow(
            spec,
            key=self._config.key,
            machine=self._config.machine,
            data=data,
            changed=changed,
            log=self._log,
            shared=self._shared_state(spec),
        )

    def _shared_state(self, spec: FlowSpec) -> GroupState | None:
        """In etcd for a flow whose group fails over; the router's connection is made later."""
        group = next((group for group in self._bundle.groups if group.id == spec.group), None)
        if group is None or self._config.etcd is None or single_node_cause(group, self._config.key) is not None:
            return None
        return GroupState(self._router, self._loop, self._config.namespace, group.id, spec.id)

    def _router(self) -> Etcd:
        """A connection of its own: what a flow remembers never waits before, nor delays, a renewal."""
        if self._memory_etcd is None:
            assert self._config.etcd is not None
            self._memory_etcd = Etcd(self._config.etcd, self._config.tls)
        return self._memory_etcd

    def _after_new_generation(self, mark: Path) -> float:
        """After a cluster was built anew the longest TTL is waited before anything is taken: what was seen before counts no more, not
        even under which profile the others ran."""
        try:
            before = mark.read_text()
        except OSError:
            before = ""
        now = str(self._config.generation)
        if before != now:
            try:
                write_whole(mark, now.encode())
            except OSError as error:  # a full disk: the next start waits once more
                self._log.error(f"the generation of the cluster could not be written down: {error}")
        return self._clock() + LONGEST_TTL if before not in ("", now) else NEVER


def _without_activity(report: GroupReport) -> tuple[Any, ...]:
    return tuple(getattr(report, name) for name in report.__struct_fields__ if name != "last_activity")


def _outcome(request: str, code: str, reason: str) -> RequestOutcome:
    return RequestOutcome(id=request, status=RequestStatus.FAILED if code else RequestStatus.SUCCEEDED, code=code, reason=reason)
