"""Operate › Items: what waits in each flow, and the failed items, which the machine shows on demand."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.views.decorators.http import require_GET, require_POST

from portal import exports
from portal.access import get_environment, may, role_to_deploy
from portal.errors import NotAllowed
from portal.htmx import UserRequest, redirect, render
from portal.models import Environment
from runtimes import protocol
from runtimes.items import ACTS as ACTS_KEPT
from runtimes.items import FlowItems, acts, ask, by_flow, content_of, flow_of, sentence
from runtimes.models import ItemInquiry, Runtime

ACTS = {"view": protocol.ItemAct.VIEW, "retry": protocol.ItemAct.RETRY, "discard": protocol.ItemAct.DISCARD}
ACTS_SHOWN = 20
TICKS_KEPT = 100  # while one looks at an item: they travel in the address


@require_GET
def items(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """Every flow on every machine with what waits and what failed; its part asks for itself."""
    environment = get_environment(request.user, slug, kind)
    lines = by_flow(environment, now=timezone.now())
    only_failed = request.GET.get("show") == "failed"
    if exports.wanted(request.GET):
        return _as_csv(environment, [line for line in lines if line.may_have_failed or not only_failed])
    context = {
        "environment": environment,
        "lines": [line for line in lines if line.may_have_failed] if only_failed else lines,
        "number": len(lines),
        "number_failed": sum(bool(line.flow.kept) for line in lines),
        "number_unknown": sum(line.flow.kept is None for line in lines),
        "only_failed": only_failed,
        "here": request.get_full_path(),
    }
    return render(request, "runtimes/items.html", context, part="runtimes/_items.html")


def _as_csv(environment: Environment, lines: Sequence[FlowItems]) -> HttpResponse:
    columns = ["flow", "runtime", "on", "waiting", "in_flight", "taken", "delivered", "failed", "kept", "counted"]
    columns += ["last_item", "reported", "silent"]
    rows = [
        (
            line.flow.name,
            line.runtime.key,
            line.flow.on,
            line.flow.waiting,
            line.flow.pending,
            line.flow.taken,
            line.flow.delivered,
            line.flow.failed,
            line.flow.kept,
            line.kept_at or line.runtime.observed_at,
            line.flow.last_activity,
            line.runtime.observed_at,
            line.silent,
        )
        for line in lines
    ]
    return exports.as_csv(f"items-{environment.project.slug}-{environment.kind}", columns, rows)


@require_GET
def failed(request: UserRequest, slug: str, kind: str, machine: str, connector: str, flow: str) -> HttpResponse:
    """The failed items of one flow on one machine: asked for now, or the answer to `?inquiry=`."""
    environment = get_environment(request.user, slug, kind)
    runtime = _runtime(environment, machine, connector)
    refusal: NotAllowed | None = None
    inquiry = _inquiry(runtime, flow, request.GET.get("inquiry", ""))
    if inquiry is None:
        try:
            inquiry = ask(runtime, flow, protocol.ItemAct.LIST, actor=request.user.get_username(), now=timezone.now())
        except NotAllowed as refused:
            refusal = refused
    may_act = may(request.user, environment.project.team_id, role_to_deploy(environment))
    ticks = request.GET.getlist("tick")
    context: dict[str, Any] = {
        "environment": environment,
        "runtime": runtime,
        "flow": flow_of(runtime, flow),
        "inquiry": inquiry,
        "refusal": refusal,
        "waiting": inquiry is not None and inquiry.answered_at is None and inquiry.expires_at > timezone.now(),
        "done": sentence(inquiry) if inquiry is not None and inquiry.act in ACTS_KEPT and inquiry.answered_at else "",
        "acts": [(each, sentence(each)) for each in acts([runtime], flow)[:ACTS_SHOWN] if each != inquiry or each.answered_at],
        "ticks": ticks,
        "query": urlencode([("inquiry", str(inquiry.pk)), *(("tick", key) for key in ticks)]) if inquiry is not None else "",
        "shown": _shown(inquiry),
        "may_act": may_act,
        "role": role_to_deploy(environment).label.lower(),
        "content": content_of(inquiry) if inquiry is not None and inquiry.act == protocol.ItemAct.VIEW and may_act else "",
        "here": _address(environment, runtime, flow),
    }
    return render(request, "runtimes/items_failed.html", context, part="runtimes/_items_failed.html")


@require_POST
def act(request: UserRequest, slug: str, kind: str, machine: str, connector: str, flow: str) -> HttpResponse:
    """Look at one, try again or discard the ticked ones (`keys`), or every one (`every`)."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    runtime = _runtime(environment, machine, connector)
    here = _address(environment, runtime, flow)
    wanted, _, key = request.POST.get("act", "").partition(":")
    if wanted not in ACTS:
        raise Http404("There is no such act.")
    keys = [key] if key else [] if "every" in request.POST and "confirmed" not in request.POST else request.POST.getlist("keys")
    if not keys and "every" not in request.POST:
        messages.warning(request, "Tick at least one item.")
        return redirect(request, here)
    if wanted == "discard" and "confirmed" not in request.POST:
        return _confirm(request, environment, runtime, flow, keys)
    inquiry = ask(runtime, flow, ACTS[wanted], keys=keys, actor=request.user.get_username(), now=timezone.now())
    ticks = request.POST.getlist("keys")[:TICKS_KEPT] if wanted == "view" else []
    return redirect(request, f"{here}?{urlencode([('inquiry', str(inquiry.pk)), *(('tick', tick) for tick in ticks)])}")


def _confirm(request: UserRequest, environment: Environment, runtime: Runtime, flow: str, keys: list[str]) -> HttpResponse:
    """Discarding destroys: which items, and how many, is said before. All means all that were listed, where all of them were."""
    try:
        listed = _inquiry(runtime, flow, request.POST.get("inquiry", ""))
    except Http404:  # forgotten by now
        listed = None
    known = {item["key"]: item for item in listed.items} if listed is not None else {}
    every = "every" in request.POST
    if every and listed is not None and listed.total == len(known):
        keys, every = list(known), False
    context = {
        "environment": environment,
        "runtime": runtime,
        "flow": flow_of(runtime, flow),
        "keys": [] if every else keys,
        "number": (listed.total if listed is not None else None) if every else len(keys),
        "every": every,
        "named": list(known.values()) if every else [known.get(key, {"key": key}) for key in keys],
        "here": _address(environment, runtime, flow),
        "back": f"{_address(environment, runtime, flow)}{f'?inquiry={listed.pk}' if listed is not None else ''}",
    }
    return render(request, "runtimes/items_discard.html", context)


def _shown(inquiry: ItemInquiry | None) -> dict[str, Any] | None:
    """The item that was looked at, as the list names it."""
    if inquiry is None or inquiry.act != protocol.ItemAct.VIEW or not inquiry.keys:
        return None
    return next((item for item in inquiry.items if item["key"] == inquiry.keys[0]), {"key": inquiry.keys[0]})


def _runtime(environment: Environment, machine: str, connector: str) -> Runtime:
    found = Runtime.objects.select_related("machine", "connector", "environment__project")
    return get_object_or_404(found, environment=environment, machine__name=machine, connector__name=connector)


def _inquiry(runtime: Runtime, flow: str, text: str) -> ItemInquiry | None:
    if not text:
        return None
    try:
        return get_object_or_404(ItemInquiry, pk=UUID(text), runtime=runtime, flow=flow)
    except ValueError:
        raise Http404("There is no such question.") from None


def _address(environment: Environment, runtime: Runtime, flow: str) -> str:
    return reverse("items-failed", args=[environment.project.slug, environment.kind, runtime.machine.name, runtime.connector.name, flow])
