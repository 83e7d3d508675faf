"""What a person does about a router that has lost its data, and about a cluster that has lost its majority for good."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods

from portal.access import get_environment
from portal.errors import NotAllowed
from portal.htmx import UserRequest, dialog, redirect
from portal.models import Environment, Role
from runtimes import membership
from runtimes.models import Machine


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


def _page_of(environment: Environment, machine: str) -> str:
    return reverse("machine", args=[environment.project.slug, environment.kind, machine])
