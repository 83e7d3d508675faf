"""Failed items of flows: asked for on the machine that has them, shown, tried again, discarded; and what waits in each flow.

The items never live here: an ItemInquiry is a question with its answer, and is forgotten after settings.ITEM_ANSWERS_KEPT_SECONDS; of what
was tried again or discarded stays who did it, and to which items.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from portal.errors import Invalid, NotAllowed
from portal.models import Environment
from runtimes import clocks, fleet, protocol
from runtimes.models import ItemInquiry, Runtime

ACTS = (protocol.ItemAct.RETRY, protocol.ItemAct.DISCARD)
NAMED = 5  # items, in a sentence
ANSWER_SECONDS = 15.0  # how long an agent may take to answer
OPEN_AT_ONCE = 20  # questions to one machine


@dataclass(frozen=True)
class FlowItems:
    """What waits and what failed in one flow of one runtime, as last reported."""

    runtime: Runtime
    flow: protocol.FlowReport
    silent: bool  # the machine: its figures are what was last heard

    @property
    def name(self) -> str:
        return self.flow.name

    @property
    def kept_at(self) -> datetime | None:
        """Of when the count of failed items is, where that is not now."""
        return kept_at(self.flow, self.runtime, silent=self.silent)

    @property
    def may_have_failed(self) -> bool:
        """Failed items lie there, or nobody knows."""
        return self.flow.kept is None or self.flow.kept > 0


def kept_at(flow: protocol.FlowReport, runtime: Runtime, *, silent: bool) -> datetime | None:
    """Of when the count of failed items is; None: of now."""
    return clocks.read(flow.kept_at) or (runtime.observed_at if silent else None)


def by_flow(environment: Environment, *, now: datetime) -> list[FlowItems]:
    """Every flow on every machine of an environment, in one query."""
    runtimes = Runtime.objects.filter(environment=environment).select_related("machine", "connector")
    found = [
        FlowItems(runtime, msgspec.convert(row, protocol.FlowReport), runtime.machine.is_silent(now=now))
        for runtime in runtimes
        for row in runtime.observed_flows
    ]
    return sorted(found, key=lambda each: (each.name, each.runtime.machine.name))


def flow_of(runtime: Runtime, key: str) -> protocol.FlowReport | None:
    """The flow as last reported; None: it runs no such flow."""
    return next((msgspec.convert(row, protocol.FlowReport) for row in runtime.observed_flows if row.get("flow") == key), None)


@transaction.atomic
def ask(runtime: Runtime, flow: str, act: protocol.ItemAct, *, keys: Sequence[str] = (), actor: str, now: datetime) -> ItemInquiry:
    """Ask the machine's agent. Retry and discard without keys mean every item.

    Raises:
        Invalid: a flow that this runtime does not run, or a view of none or several items.
        NotAllowed: the machine is silent, so nobody would answer; or too many questions are open.
    """
    reported = flow_of(runtime, flow)
    if reported is None:
        raise Invalid(f"{runtime.key} does not report a flow {flow}.", field="flow")
    if act is protocol.ItemAct.VIEW and len(keys) != 1:
        raise Invalid("Name the one item to look at.", field="keys")
    if runtime.machine.is_silent(now=now):
        raise NotAllowed(f"{runtime.machine.name} is silent: its failed items can be seen once its agent reports again.")
    if ItemInquiry.objects.filter(runtime__machine=runtime.machine, answered_at=None, expires_at__gt=now).count() >= OPEN_AT_ONCE:
        raise NotAllowed(f"{runtime.machine.name} has {OPEN_AT_ONCE} questions to answer already: wait a moment, then ask again.")
    expires = now + timedelta(seconds=ANSWER_SECONDS)
    inquiry = ItemInquiry.objects.create(
        runtime=runtime, flow=flow, flow_name=reported.name[:80], act=act, keys=list(keys), actor=actor[:150], expires_at=expires
    )
    fleet.touch(runtime.machine)
    return inquiry


def forget(*, now: datetime) -> int:
    """Delete old questions with their answers; how many. Acts stay, without what they showed."""
    before = now - timedelta(seconds=settings.ITEM_ANSWERS_KEPT_SECONDS)
    old = ItemInquiry.objects.filter(created_at__lt=before)
    old.filter(act__in=ACTS).exclude(items=[]).update(items=[])
    return old.exclude(act__in=ACTS).delete()[0]


def acts(runtimes: Iterable[Runtime], flow: str = "") -> QuerySet[ItemInquiry]:
    """What people did to failed items of these runtimes (of one flow): tried again or discarded, the latest first."""
    found = ItemInquiry.objects.filter(runtime__in=runtimes, act__in=ACTS).select_related("runtime__machine", "runtime__connector")
    return found.filter(flow=flow) if flow else found


def sentence(inquiry: ItemInquiry) -> str:
    """What an act did: "2 items discarded: a.json, b.json"."""
    word = "to be tried again" if inquiry.act == protocol.ItemAct.RETRY else "discarded"
    named = many(len(inquiry.keys)) if inquiry.keys else "every failed item"
    if inquiry.answered_at is None:
        return f"{named} {word}: asked for, and the machine did not answer"
    if inquiry.acted is None:  # an older agent
        return f"{named} {word}{f' ({inquiry.problem})' if inquiry.problem else ''}"
    names = [item["name"] or item["item"] for item in inquiry.done]
    told = ", ".join(names[:NAMED])
    more = inquiry.acted - len(names[:NAMED])
    return f"{many(inquiry.acted)} {word}{f': {told}' if told else ''}{f' and {more} more' if told and more > 0 else ''}"


def many(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def content_of(inquiry: ItemInquiry) -> str:
    """The shown bytes as text where they are UTF-8 (up to a character cut in half), else as a hexadecimal dump."""
    data = bytes(inquiry.content)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if error.start >= len(data) - 3 and len(data) < inquiry.size:
            return data[: error.start].decode()
    lines = []
    for start in range(0, min(len(data), 4096), 16):
        row = data[start : start + 16]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {row.hex(' '):<47}  {letters}")
    return "\n".join(lines)
