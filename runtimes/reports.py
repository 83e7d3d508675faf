"""What an agent said, written into observed_*: the only writer of those columns. `fleet.record_report` is the way in."""

import base64
import logging
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.conf import settings
from django.db import connection
from django.db.models import Model, Q

from portal.models import Environment
from portal.prepared import Prepared
from runtimes import history, protocol, secrecy, solitude
from runtimes.clocks import Clock
from runtimes.models import (
    LIVE_COMMANDS,
    LIVE_REQUESTS,
    CommandRun,
    FailoverGroup,
    GroupMember,
    GroupRequest,
    ItemInquiry,
    Machine,
    Router,
    Runtime,
    RuntimeLog,
    SwitchEnding,
    TimedSwitch,
)

logger = logging.getLogger(__name__)

# What is about to bring a runtime what it lacks ("deployment 2, under way,"); empty: nothing (docs/architecture.md, layer rule 5).
bringing: list[Callable[[Runtime], str]] = []

# How long a wish may stand (docs/failover.md, Hand-over): until an agent carried it, and from then on the drain limit and what it takes.
REQUEST_PENDING_SECONDS = 15.0
REQUEST_RUNNING_SECONDS = protocol.Timing().drain + 10.0

LOG_LINES_PER_REPORT = 500  # the newest; an agent that says more loses the rest
LOG_TEXT_LENGTH = 4000
COMMAND_LINES = 20_000  # of one command's output

ITEMS_PER_ANSWER = 200
CONTENT_LIMIT = 256 * 1024  # bytes of a failed item that an agent may send

MOST_COMMANDS = 200  # names of commands that are kept of one machine
RUNTIME_FACTS = [
    "observed_state",
    "observed_reason",
    "observed_pid",
    "observed_started_at",
    "observed_starts",
    "observed_restarts",
    "observed_digest",
    "observed_release",
    "observed_flows",
    "observed_at",
]
MEMBER_FACTS = [
    "observed_status",
    "observed_state",
    "observed_reason",
    "observed_epoch",
    "observed_ready",
    "ready_since",
    "observed_since",
    "observed_last_activity",
    "observed_disabled",
    "observed_isolation",
    "observed_ttl",
    "observed_at",
]


@dataclass(frozen=True)
class News:
    cluster_became_known: bool
    command_ended: bool = False


_runtimes_of = Prepared(
    lambda machine: (
        Runtime.objects.filter(machine=machine)
        .select_related("machine", "connector")
        .only("machine__name", "machine__environment_id", "connector__name", "desired_bundle_id", "desired_release", *RUNTIME_FACTS)
        .order_by("pk")
    )
)
_members_on = Prepared(lambda machine: GroupMember.objects.filter(runtime__machine=machine).select_related("group__group").order_by("pk"))


def store(machine: Machine, report: protocol.Report, *, now: datetime) -> News | None:
    """Write a report down, inside the caller's transaction. None: it is older than one already stored."""
    clock = Clock.of(report, now, boot_id=machine.boot_id, booted_at=machine.booted_at, late_before=machine.late_seconds)
    rebooted = bool(machine.boot_id) and machine.boot_id != report.boot_id
    heard_before = machine.last_report_at
    if not _claim(machine, report, clock):
        return None
    known = _store_router(machine, report.router, report.peers, clock)
    runtimes = {runtime.key: runtime for runtime in _runtimes_of.all(machine.pk)}
    heard = [said for said in report.runtimes if _knows(machine, said.key, runtimes)]
    restarted = {said.key for said in heard if runtimes[said.key].observed_started_at != said.started_at}
    _store_runtimes(runtimes, heard, clock)
    changed = _store_members(machine, runtimes, heard, restarted, clock, [peer.since for peer in report.peers])
    history.store(machine, runtimes, report, clock)
    if changed or report.ends:
        history.note_leading(_members_on.all(machine.pk))
    solitude.store(machine, report.alone, clock)
    if rebooted and heard_before is not None:
        history.note_reboot(machine, since=heard_before)
    _store_outcomes(machine, report.outcomes, now)
    _store_answers(machine, runtimes, report.answers, now)
    ended = _store_commands(machine, report.commands, now)
    _store_logs(machine, runtimes, report.logs, clock)
    return News(cluster_became_known=known, command_ended=ended)


def cluster_token(environment: Environment) -> str:
    """Names one cluster: of this environment, in this generation."""
    return f"baton-{environment.cluster.hex}-{environment.generation}"


def _knows(machine: Machine, key: str, runtimes: dict[str, Runtime]) -> bool:
    if key not in runtimes:
        logger.info("%s reports runtime %s, which this environment does not have: ignored.", machine, key)
    return key in runtimes


def _claim(machine: Machine, report: protocol.Report, clock: Clock) -> bool:
    """Of two reports the newer one wins, whatever order they come in: a later one of the same agent process, or one of a later process.

    A process that says it started earlier (a clock set back) is believed once the other has been silent.
    """
    now = clock.now
    silent = now - timedelta(seconds=settings.AGENT_SILENT_AFTER_SECONDS)
    newer = Q(agent_started_at=report.started_at, report_sequence__lt=report.sequence) | Q(agent_started_at__lt=report.started_at)
    replaced = ~Q(agent_started_at=report.started_at) & (Q(last_report_at=None) | Q(last_report_at__lt=silent))
    return bool(
        Machine.objects.filter(newer | replaced, pk=machine.pk).update(
            last_report_at=now,
            report_sequence=report.sequence,
            agent_started_at=report.started_at[:40],
            agent_version=report.agent_version[:40],
            boot_id=report.boot_id[:64],
            booted_at=clock.booted_at,
            late_seconds=clock.late_seconds,
            clock_ahead_seconds=clock.ahead_seconds,
            orders_taken=report.orders_version,
            suggested_address=report.suggested_address[:64],
            suggested_port=report.suggested_port,
            listed_commands=_names(report.listed_commands),
        )
    )


def _names(listed: list[str] | None) -> list[str] | None:
    return None if listed is None else [name[:80] for name in listed[:MOST_COMMANDS]]


def _store_router(machine: Machine, said: protocol.RouterReport | None, peers: list[protocol.PeerReport], clock: Clock) -> bool:
    """True when its cluster became known by this report."""
    if said is None and not peers and getattr(machine, "router", None) is None:
        return False
    said = said or protocol.RouterReport(state=protocol.RouterState.ABSENT)
    routers = Router.objects.filter(machine=machine)
    routers.update(
        observed_state=said.state,
        observed_reason=said.reason,
        observed_warning=said.warning,
        observed_member_id=said.member_id[:32],
        observed_cluster_id=said.cluster_id[:32],
        observed_version=said.etcd_version[:20],
        observed_peers=msgspec.to_builtins([msgspec.structs.replace(peer, since=clock.text(peer.since)) for peer in peers]),
        observed_address=said.address[:270],
        observed_token=said.cluster_token[:80],
        observed_trusts=[digest[:64] for digest in said.trusts[:8]],
        observed_free_port=said.free_port,
        observed_learner=said.learner,
        observed_outside=said.outside,
        observed_ordered_as=said.ordered_as[:32],
        observed_members=msgspec.to_builtins(said.members),
        observed_members_at=said.members_at,
        observed_change=said.change[:40],
        observed_change_error=said.change_error,
    )
    if said.state != protocol.RouterState.RUNNING or not said.cluster_id:
        return False
    if said.cluster_token not in ("", cluster_token(machine.environment)):
        return False  # it still runs in a cluster that has ended: of the one that is ordered it tells nothing
    # A member that was added is known when it runs under the id it was added with: what its predecessor said last proves nothing.
    unknown = routers.filter(cluster_known=False, desired_running=True, desired_member_id__in=("", said.member_id))
    known = bool(unknown.update(cluster_known=True))
    rebuilt = routers.filter(survivor=True) if said.cluster_token == cluster_token(machine.environment) else routers.none()
    return bool(rebuilt.update(survivor=False)) or known


def _write(rows: Sequence[Model], names: list[str]) -> None:
    """Save these fields of rows of one model by one prepared UPDATE. bulk_update spent two thirds of a report's time on expressions."""
    if not rows:
        return
    meta, quoted = rows[0]._meta, connection.ops.quote_name
    fields = [field for field in meta.concrete_fields if field.name in names]
    columns = ", ".join(f"{quoted(str(field.column))} = %s" for field in fields)
    values = [[*(field.get_db_prep_save(getattr(row, field.attname), connection) for field in fields), row.pk] for row in rows]
    sql = f"UPDATE {quoted(meta.db_table)} SET {columns} WHERE id = %s"  # noqa: S608 - names come from the models, values are bound
    with connection.cursor() as cursor:
        cursor.executemany(sql, values)


def _store_runtimes(runtimes: dict[str, Runtime], heard: list[protocol.RuntimeReport], clock: Clock) -> None:
    machine = next((runtimes[said.key].machine for said in heard), None)
    troubled = any(said.reason or any(flow.reason for flow in said.flows) for said in heard)
    hidden = secrecy.pattern(machine.environment_id) if machine is not None and troubled else None
    for said in heard:
        row = runtimes[said.key]
        row.observed_state = said.state
        row.observed_reason = secrecy.masked(said.reason, hidden)
        row.observed_pid = said.pid
        row.observed_started_at = said.started_at[:40]
        row.observed_starts = said.starts
        row.observed_restarts = said.restarts
        row.observed_digest = (said.digest or "")[:64]
        # A release that changed nothing here restarts nothing: what runs is what the newest release gives it.
        as_ordered = bool(said.digest) and said.digest == row.desired_bundle_id and row.desired_release is not None
        row.observed_release = row.desired_release if as_ordered else said.release
        former = {flow["flow"]: flow for flow in row.observed_flows}
        counted_at = row.observed_at.isoformat() if row.observed_at else ""
        row.observed_flows = [
            _counted(msgspec.to_builtins(_shown(_timely(flow, clock), hidden)), former.get(flow.flow), counted_at) for flow in said.flows
        ]
        row.observed_at = clock.now
    _write([runtimes[said.key] for said in heard], RUNTIME_FACTS)


def _shown(flow: protocol.FlowReport, hidden: re.Pattern[str] | None) -> protocol.FlowReport:
    """Without any secret of the environment, also one that its own runtime does not know."""
    return msgspec.structs.replace(flow, reason=secrecy.masked(flow.reason, hidden)) if flow.reason and hidden is not None else flow


def _counted(flow: dict[str, Any], former: dict[str, Any] | None, at: str) -> dict[str, Any]:
    """Failed items lie where they are when nobody counts them: the last count stands, with its age."""
    if flow["kept"] is not None or former is None or former.get("kept") is None:
        return flow
    return flow | {"kept": former["kept"], "again": former.get("again"), "kept_at": former.get("kept_at") or at}


def _timely(flow: protocol.FlowReport, clock: Clock) -> protocol.FlowReport:
    """With its moments in the portal's time."""
    if not clock.is_off:
        return flow
    moments = {name: clock.text(getattr(flow, name)) for name in ("last_activity", "last_poll", "silent_since", "undelivered_since")}
    return msgspec.structs.replace(flow, **moments)


def _why_without(runtime: protocol.RuntimeReport, row: Runtime) -> str:
    """Why a runtime says nothing of one of its groups."""
    if runtime.state == protocol.RuntimeState.READY:
        what = f"release {runtime.release}" if runtime.release else "a bundle"
        under_way = next((told for bring in bringing if (told := bring(row))), "")
        return f"{runtime.key} runs {what}, which does not have this group: {under_way or 'a deployment'} brings it"
    return f"{runtime.key} is {runtime.state}{': ' + runtime.reason if runtime.reason else ''}"


def _store_members(
    machine: Machine,
    runtimes: dict[str, Runtime],
    heard: list[protocol.RuntimeReport],
    restarted: set[str],
    clock: Clock,
    moments: list[str],
) -> bool:
    """Did a member's status or state change. A runtime that was reported without one of its groups does not run it: Unknown and Off, never
    the last thing heard. `moments` of the machine's own clock that a reason may name."""
    changed = False
    by_runtime = {runtimes[said.key].pk: said for said in heard}
    rows = [row for row in _members_on.all(machine.pk) if row.runtime_id in by_runtime]
    spoken: set[tuple[int, str]] = set()
    epochs: dict[FailoverGroup, int] = {}
    disabled: dict[uuid.UUID, Sequence[str]] = {}  # by group, as control/<group> says
    for row in rows:
        runtime = by_runtime[row.runtime_id]
        said = next((group for group in runtime.groups if group.group == row.group.group.key), None)
        silent = row.observed_at is None or clock.now - row.observed_at > timedelta(seconds=settings.AGENT_SILENT_AFTER_SECONDS)
        row.observed_at = clock.now
        if said is None:
            row.ready_since = None
            row.observed_status, row.observed_state, row.observed_ready = protocol.Status.UNKNOWN, protocol.State.OFF, False
            row.observed_reason = _why_without(runtime, runtimes[runtime.key])
            row.observed_ttl = None
            continue
        spoken.add((row.runtime_id, said.group))
        changed = changed or (row.observed_since, row.observed_state) != (clock.text(said.since), said.state)
        row.observed_status = said.status
        row.observed_state = said.state
        row.observed_reason = clock.sentence(said.reason, moments)
        epoch = said.epoch if history.may_be(said.epoch, machine) else 0
        row.observed_epoch = epoch
        row.observed_ready = said.ready
        row.observed_since = clock.text(said.since)
        row.observed_last_activity = clock.text(said.last_activity) or row.observed_last_activity  # a new process has none yet
        if said.ttl is not None:  # its process is there to say so
            row.observed_isolation = said.isolation
        row.observed_ttl = said.ttl
        row.observed_disabled = _is_disabled(runtime.key, said, before=row.observed_disabled)
        if row.observed_disabled and said.status == protocol.Status.ISOLATED:
            row.observed_status = protocol.Status.DISABLED  # it stays so, whatever else keeps it from leading
        unbroken = None if silent or runtime.key in restarted else row.ready_since
        row.ready_since = (unbroken or clock.now) if said.ready and not row.observed_disabled else None
        epochs[row.group] = max(epoch, epochs.get(row.group, 0))
        if _hears_majority(said):
            disabled[row.group_id] = said.disabled
    _write(rows, MEMBER_FACTS)
    _store_siblings(by_runtime, disabled)
    for group, epoch in epochs.items():
        history.raise_epoch(group, epoch)
    for runtime_id, runtime in by_runtime.items():
        for said in runtime.groups:
            if (runtime_id, said.group) not in spoken:
                logger.info("%s reports group %s in %s, which it is no member of: ignored.", machine, said.group, runtime.key)
    return changed


def _hears_majority(said: protocol.GroupReport) -> bool:
    """Is what this member says of the group's records as new as a renewal."""
    if said.status == protocol.Status.DISABLED:
        return not said.reason.startswith(protocol.ISOLATED_BECAUSE)
    return said.status in (protocol.Status.LEADER, protocol.Status.FOLLOWER)


def _is_disabled(key: str, said: protocol.GroupReport, *, before: bool) -> bool:
    """A member whose process is not there, or hears no majority, cannot tell: then what was known `before` stands."""
    if said.status == protocol.Status.DISABLED or key in said.disabled:
        return True
    return before and said.status != protocol.Status.SINGLE_NODE and not _hears_majority(said)


def _store_siblings(told: Collection[int], disabled: Mapping[uuid.UUID, Sequence[str]]) -> None:
    """Who hears the majority knows of all members who is disabled, also of those whose agent is silent. `told`: runtimes that spoke."""
    if not disabled:
        return
    others = GroupMember.objects.filter(group__in=list(disabled)).exclude(runtime__in=told)
    columns = ("pk", "group_id", "observed_disabled", "runtime__machine__name", "runtime__connector__name")
    for member, group, before, machine, connector in others.values_list(*columns):
        known = protocol.runtime_key(machine, connector) in disabled[group]
        if before != known:
            GroupMember.objects.filter(pk=member).update(observed_disabled=known)


def _store_outcomes(machine: Machine, outcomes: list[protocol.RequestOutcome], now: datetime) -> None:
    """A wish ends once. A machine's word that comes after the portal stopped waiting is still the fact."""
    for outcome in outcomes:
        try:
            request_id = uuid.UUID(outcome.id)
        except ValueError:
            logger.info("%s tells the outcome of request %r, which is no request: ignored.", machine, outcome.id)
            continue
        request = GroupRequest.objects.filter(pk=request_id, group__environment_id=machine.environment_id)
        if outcome.status == protocol.RequestStatus.RUNNING:
            request.filter(status=protocol.RequestStatus.PENDING).update(
                status=outcome.status, expires_at=now + timedelta(seconds=REQUEST_RUNNING_SECONDS)
            )
        elif outcome.status in (protocol.RequestStatus.SUCCEEDED, protocol.RequestStatus.FAILED, protocol.RequestStatus.EXPIRED):
            # An agent without a majority knows nothing of a wish that another one has carried, or has yet to tell of.
            gives_back = outcome.code == "no-majority"
            ended = (protocol.RequestStatus.PENDING,) if gives_back else LIVE_REQUESTS
            open_still = Q(status__in=(*ended, protocol.RequestStatus.EXPIRED))
            given_back = Q(status=protocol.RequestStatus.FAILED, code="no-majority")
            told = request.filter(open_still if gives_back else open_still | given_back).update(
                status=outcome.status, code=outcome.code[:40], reason=outcome.reason, ended_at=now
            )
            if told and outcome.status == protocol.RequestStatus.SUCCEEDED:
                _store_wish(request.get(), now)


def _store_wish(request: GroupRequest, now: datetime) -> None:
    """A member that was disabled or enabled is so from now on, also where none of the group's processes is there to say so."""
    if request.kind == protocol.RequestKind.SWITCH:
        _stands_after_all(request, now)
    if request.kind in (protocol.RequestKind.DISABLE, protocol.RequestKind.ENABLE):
        members = GroupMember.objects.filter(group_id=request.group_id, runtime__machine__name=request.machine)
        members.update(observed_disabled=request.kind == protocol.RequestKind.DISABLE)


def _stands_after_all(request: GroupRequest, now: datetime) -> None:
    """A switch for a time that was given up, because nobody had said in time how it ended, has happened: it ends when it was to end. Unless
    somebody has asked for another one since."""
    given_up = TimedSwitch.objects.filter(request=request, ending=SwitchEnding.FAILED)
    later = GroupRequest.objects.filter(group=request.group_id, kind=protocol.RequestKind.SWITCH, created_at__gt=request.created_at)
    if not given_up.exists() or later.exists():
        return
    standing = TimedSwitch.objects.filter(group=request.group_id, ended_at=None)
    standing.update(ended_at=now, ending=SwitchEnding.OVERTAKEN, reason=f"{request.actor} moved the group again.")
    given_up.update(ended_at=None, ending="", reason="")


def _store_answers(machine: Machine, runtimes: dict[str, Runtime], answers: list[protocol.InquiryAnswer], now: datetime) -> None:
    """An inquiry is answered once. It counts the flow's failed items too, for one whose process does not."""
    by_id = {runtime.pk: runtime for runtime in runtimes.values()}
    for answer in answers:
        try:
            key, content = uuid.UUID(answer.id), base64.b64decode(answer.content, validate=True)
        except ValueError:
            logger.info("%s answers %r, which is no inquiry, or not in base64: ignored.", machine, answer.id)
            continue
        asked = ItemInquiry.objects.filter(pk=key, runtime__machine=machine, answered_at=None)
        of = asked.values_list("runtime_id", "flow").first()
        asked.update(
            answered_at=now,
            problem=answer.problem[:2000],
            total=max(answer.total, 0),
            items=msgspec.to_builtins(answer.items[:ITEMS_PER_ANSWER]),
            content=content[:CONTENT_LIMIT],
            size=max(answer.size, 0),
            acted=None if answer.acted is None else max(answer.acted, 0),
            done=[{"key": item.key, "item": item.item, "name": item.name} for item in answer.done[:ITEMS_PER_ANSWER]],
        )
        if of and of[0] in by_id and (answer.acted is not None or not answer.problem):
            _count(by_id[of[0]], of[1], answer.total, now)


def _count(runtime: Runtime, flow: str, total: int, now: datetime) -> None:
    """So many failed items lie there, as the agent saw them: news of a flow whose process does not count."""
    for row in runtime.observed_flows:
        if row["flow"] == flow and (row["kept"] is None or row.get("kept_at")):
            row |= {"kept": max(total, 0), "kept_at": now.isoformat()}
            _write([runtime], ["observed_flows"])


def _store_commands(machine: Machine, reports: Sequence[protocol.CommandReport], now: datetime) -> bool:
    """Lines may come twice and are kept once; an end is told once. True: an order is done with."""
    if not reports:
        return False
    ended = False
    rows = {str(row.pk): row for row in CommandRun.objects.filter(machine=machine, status__in=LIVE_COMMANDS)}
    hidden = secrecy.pattern(machine.environment_id) if any(told.lines or told.reason for told in reports) else None
    for told in reports:
        row = rows.get(told.id)
        if row is None or told.first > len(row.output):
            continue
        done = told.status in (protocol.CommandStatus.SUCCEEDED, protocol.CommandStatus.FAILED)
        ended = ended or done
        CommandRun.objects.filter(pk=row.pk, status__in=LIVE_COMMANDS).update(
            status=told.status if done else protocol.CommandStatus.RUNNING,
            exit_status=told.exit_status,
            reason=secrecy.masked(told.reason, hidden),
            output=[*row.output[: told.first], *(secrecy.masked(line, hidden) for line in told.lines)][:COMMAND_LINES],
            ended_at=now if done else None,
        )
    return ended


def _store_logs(machine: Machine, runtimes: dict[str, Runtime], lines: list[protocol.LogLine], clock: Clock) -> None:
    """Keeps the newest lines of each source; tasks.forget_old_logs does the same for sources that fell silent."""
    sources = {*runtimes, "router", "agent"}
    kept = [line for line in lines[-LOG_LINES_PER_REPORT:] if line.runtime in sources]
    if not kept:
        return
    hidden = secrecy.pattern(machine.environment_id)
    RuntimeLog.objects.bulk_create(
        RuntimeLog(
            machine=machine,
            source=line.runtime,
            at=clock.moment(line.at),
            level=line.level,
            text=secrecy.masked(line.text, hidden).replace("\x00", "\N{REPLACEMENT CHARACTER}")[:LOG_TEXT_LENGTH],
        )
        for line in kept
    )
    for source in sorted({line.runtime for line in kept}):
        forget_logs(machine.pk, source)


def forget_logs(machine_id: int, source: str) -> int:
    """Delete all but the newest settings.LOG_LINES_KEPT_PER_RUNTIME lines; returns how many went."""
    lines = RuntimeLog.objects.filter(machine_id=machine_id, source=source)
    kept = settings.LOG_LINES_KEPT_PER_RUNTIME
    newest_to_go = next(iter(lines.order_by("-id").values_list("id", flat=True)[kept : kept + 1]), None)
    return lines.filter(id__lte=newest_to_go).delete()[0] if newest_to_go is not None else 0
