"""Deploy › Architecture: the environment's machines, what runs on them, and Apply to environment."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods

from deployments import landscape, rollout
from deployments.models import BROKEN, LIVE, Deployment
from portal.access import get_environment, may, role_to_deploy
from portal.errors import NotAllowed
from portal.htmx import UserRequest, dialog, redirect, render
from portal.models import Environment, Role
from runtimes import architecture as architecture_acts
from runtimes import authority, membership, profiles
from runtimes.architecture import Change


@require_GET
def architecture(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """Machines as boxes with live status; `?edit=1` shows what the design would change. The part asks for itself every 2 s."""
    environment = get_environment(request.user, slug, kind)
    context = landscape_context(request, environment)
    return render(request, "deployments/architecture.html", context, part="deployments/_architecture.html")


def landscape_context(request: UserRequest, environment: Environment) -> dict[str, Any]:
    active = landscape.active_releases([environment]).get(environment.pk)
    boxes = landscape.machine_boxes(environment, active, now=timezone.now())
    may_deploy = may(request.user, environment.project.team_id, role_to_deploy(environment))
    editing = may_deploy and request.GET.get("edit") == "1"
    return {
        "environment": environment,
        "boxes": boxes,
        "active": active,
        "editing": editing,
        # The whole page says when the design is ahead; what asks for itself every 2 s only where it lists the changes.
        "pending": architecture_acts.diff(environment) if editing or not boxes or not request.htmx else [],
        "change": membership.unfinished(environment),
        "going": membership.going(environment, [box.router.router for box in boxes if box.router]),
        "deployment": _standing(environment),
        "differing": sum(1 for box in boxes for runtime in box.runtimes if runtime.differs),
        "unregistered": [box.machine for box in boxes if not box.machine.has_agent],
        "profile": profiles.in_use(environment),
        "authority": authority.standing(environment, now=timezone.now()),
        "may_deploy": may_deploy,
        "may_operate": may(request.user, environment.project.team_id, Role.OPERATOR),
        "may_administer": may(request.user, environment.project.team_id, Role.ADMINISTRATOR),
        "role_to_deploy": role_to_deploy(environment).label.lower(),
        "here": request.get_full_path(),
    }


def _standing(environment: Environment) -> Deployment | None:
    """The newest deployment, while it is under way or waits for a decision."""
    newest = Deployment.objects.filter(environment=environment).select_related("release", "environment").order_by("-pk").first()
    if newest is None or newest.status in LIVE:
        return newest
    return newest if newest.status in BROKEN and not rollout.superseded(newest) else None


@require_http_methods(["GET", "POST"])
def apply_architecture(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """Apply to environment: the whole difference, routers first; what is confirmed is the difference that was seen."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    changes = architecture_acts.diff(environment)
    refusal: NotAllowed | None = None
    if request.method == "POST":
        try:
            architecture_acts.apply_agreed(environment, request.POST.get("seen", ""), by=request.user)
            messages.success(request, f"{environment.name} is as designed now: {number_of(changes)} made.")
            return redirect(request, "architecture", slug, kind)
        except NotAllowed as said:
            refusal, changes = said, architecture_acts.diff(environment)
    context = {
        "environment": environment,
        "changes": changes,
        "new_routers": [change for change in changes if is_new_router(change)],
        "other_changes": [change for change in changes if not is_new_router(change)],
        "digest": architecture_acts.digest_of(changes),
        "refusal": refusal,
    }
    return dialog(request, "deployments/apply.html", context, back=reverse("architecture", args=[slug, kind]) + "?edit=1")


def is_new_router(change: Change) -> bool:
    return change.act == "create" and change.kind in ("router", "witness")


def number_of(changes: list[Change]) -> str:
    return f"{len(changes)} change{'' if len(changes) == 1 else 's'}"
