"""What a person does about a router that has lost its data, and about a cluster that has lost its majority for good."""

from collections.abc import Mapping
from typing import Any, TypeVar

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods

from portal.access import get_environment
from portal.errors import Invalid, NotAllowed
from portal.htmx import UserRequest, dialog, redirect
from portal.models import Environment, Role
from runtimes import authority, fleet, membership
from runtimes.models import Machine

T = TypeVar("T")


@require_http_methods(["GET", "POST"])
def rebuild_router(request: UserRequest, slug: str, kind: str, name: str) -> HttpResponse:
    """Remove the member whose data are gone and add the machine again."""
    environment = get_environment(request.user, slug, kind, role=Role.OPERATOR)
    machine = get_object_or_404(Machine, environment=environment, name=name)
    context: dict[str, Any] = {"environment": environment, "machine": machine}
    if request.method == "POST":
        try:
            membership.rebuild_router(machine, actor=request.user.get_username(), now=timezone.now())
            messages.info(request, f"The router on {name} is removed and added again; this page says how far it is.")
            return redirect(request, "machine", slug, kind, name)
        except NotAllowed as refusal:
            context["refusal"] = refusal
    return dialog(request, "deployments/rebuild_router.html", context, back=_page_of(environment, name))


@require_http_methods(["GET", "POST"])
def rebuild_cluster(request: UserRequest, slug: str, kind: str, name: str) -> HttpResponse:
    """Build the cluster anew from this machine's data, once the person has typed the environment's name."""
    environment = get_environment(request.user, slug, kind, role=Role.ADMINISTRATOR)
    machine = get_object_or_404(Machine.objects.select_related("environment"), environment=environment, name=name)
    context: dict[str, Any] = {"environment": environment, "machine": machine, "consequences": membership.lost_with(machine)}
    if request.method == "POST":
        typed = request.POST.get("confirm", "")
        try:
            membership.rebuild(machine, confirm=typed, actor=request.user.get_username(), now=timezone.now())
            messages.warning(request, f"The cluster of {environment.name} is built anew from {name}. Deploy to take the other routers in.")
            return redirect(request, "machine", slug, kind, name)
        except NotAllowed as refusal:
            context["refusal"] = refusal
    return dialog(request, "deployments/rebuild_cluster.html", context, back=_page_of(environment, name))


@require_http_methods(["GET", "POST"])
def router_change(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """A change of the routers that was stopped halfway or refused: resume it, or roll it back."""
    environment = get_environment(request.user, slug, kind, role=Role.OPERATOR)
    change, refusal = membership.unfinished(environment), None
    if request.method == "POST" and change is not None:
        try:
            chosen(CHANGE_ACTS, request)(change, actor=request.user.get_username(), now=timezone.now())
            messages.info(request, "The routers are being changed; this page says how far it is.")
            return redirect(request, "architecture", slug, kind)
        except NotAllowed as said:
            refusal = said
    context: dict[str, Any] = {"environment": environment, "change": change, "refusal": refusal}
    if change is not None:
        context |= {"wished": _addresses(change.wished), "before": _addresses(change.before)}
    return dialog(request, "deployments/router_change.html", context, back=reverse("architecture", args=[slug, kind]))


CHANGE_ACTS = {"resume": membership.resume, "roll-back": membership.roll_back}
AUTHORITY_ACTS = {
    "renew": (fleet.renew_authority, "The authority is renewed. Machines get new certificates by themselves; nothing restarts."),
    "retire": (
        fleet.retire_authority,
        "The former authority is trusted no more; routers that read only that one restart one by one.",
    ),
}


def chosen(acts: Mapping[str, T], request: UserRequest) -> T:
    """What the person asked for. Raises Invalid: nothing is done in place of an act that does not exist."""
    asked = request.POST.get("act", "")
    if asked not in acts:
        raise Invalid(f'There is no act "{asked}"; say {" or ".join(acts)}.', field="act")
    return acts[asked]


def _addresses(listed: Mapping[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} on {host}:{port}" for name, (host, port) in sorted(listed.items()))


@require_http_methods(["GET", "POST"])
def certificate_authority(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """How the environment's certificate authority is; renew it, and retire the former one when nobody needs it."""
    environment = get_environment(request.user, slug, kind, role=Role.ADMINISTRATOR)
    refusal: NotAllowed | None = None
    if request.method == "POST":
        try:
            act, done = chosen(AUTHORITY_ACTS, request)
            act(environment, now=timezone.now())
            messages.success(request, done)
            return redirect(request, "architecture", slug, kind)
        except NotAllowed as said:
            refusal = said
    standing = authority.standing(environment, now=timezone.now())
    context = {"environment": environment, "standing": standing, "refusal": refusal}
    return dialog(request, "deployments/authority.html", context, back=reverse("architecture", args=[slug, kind]))


def _page_of(environment: Environment, machine: str) -> str:
    return reverse("machine", args=[environment.project.slug, environment.kind, machine])
