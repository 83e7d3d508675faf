"""Deploy › Releases › Schedule: activations that wait, are held, or did not happen; and rolling back."""

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from deployments import promotion, rollback, schedules, sides, windows
from deployments.forms import DeployForm
from deployments.models import Activation, ActivationStatus
from deployments.rule_forms import ScheduleForm
from deployments.views.releases import absent_machines, preflight, rule_findings
from portal import exports
from portal.access import get_environment, may, role_to_deploy
from portal.errors import NotAllowed
from portal.htmx import UserRequest, dialog, redirect, render
from portal.models import Environment

SHOWN = 100


def _activation(environment: Environment, pk: int) -> Activation:
    rows = Activation.objects.select_related("release__project", "environment__project")
    return get_object_or_404(rows, environment=environment, pk=pk)


def _listed(row: Activation) -> list[Any]:
    author = row.created_by.get_username() if row.created_by else None
    told = [row.release.number, row.release.name, row.due_at, row.expires_at, "yes" if row.deploys else "", row.status, row.reason]
    return [*told, author, row.deployment.pk if row.deployment else None]


@require_GET
def schedule_page(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """What waits for its time, and what became of the rest; `?format=csv` exports the list."""
    environment = get_environment(request.user, slug, kind)
    rows = Activation.objects.filter(environment=environment, due_at__isnull=False)
    rows = rows.select_related("release__project", "environment__project", "created_by", "deployment__environment__project")
    if exports.wanted(request.GET):
        columns = ["release", "name", "due_at", "expires_at", "deploys", "state", "reason", "by", "deployment"]
        return exports.as_csv(f"schedule-{slug}-{kind}", columns, map(_listed, rows.order_by("-due_at")))
    context = {
        "project": environment.project,
        "environment": environment,
        "zone": promotion.calendar_of(environment).zone.key,
        "waiting": rows.filter(status__in=schedules.WAITING).order_by("due_at"),
        "past": rows.exclude(status__in=schedules.WAITING).order_by("-due_at")[:SHOWN],
        "may_edit": may(request.user, environment.project.team_id, role_to_deploy(environment)),
    }
    return render(request, "deployments/schedule.html", context)


@require_POST
def activation_act(request: UserRequest, slug: str, kind: str, pk: int, act: str) -> HttpResponse:
    """Cancel, hold or resume."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    activation = _activation(environment, pk)
    number = activation.release.number
    if act == "cancel":
        schedules.cancel(activation, by=request.user)
        messages.success(request, f"Release {number} will not be activated on {environment.name}.")
    elif act == "hold":
        schedules.hold(activation, reason=request.POST.get("reason", ""), by=request.user)
        messages.success(request, f"The activation of release {number} is held.")
    elif act == "resume":
        schedules.resume(activation, by=request.user, now=timezone.now())
        messages.success(request, f"The activation of release {number} goes on at its time. {activation.reason}".strip())
    else:
        raise Http404("There is no such act.")
    return redirect(request, "schedule", slug, kind)


def activation_reschedule(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, to_edit=True)
    activation = _activation(environment, pk)
    zone = promotion.calendar_of(environment).zone
    wall = activation.due_at.astimezone(zone).replace(tzinfo=None) if activation.due_at else None
    form = ScheduleForm(request.POST or None, initial={"at": wall}, zone=zone)
    if request.method == "POST" and form.is_valid():
        assert form.due_at is not None
        try:
            schedules.reschedule(
                activation, due_at=form.due_at, by=request.user, now=timezone.now(), override=form.cleaned_data["override"]
            )
        except NotAllowed as refusal:
            form.add_error("override" if refusal.field == "override" else "at", refusal.sentence)
        else:
            said = windows.in_zone(form.due_at, zone)
            told = f"Release {activation.release.number} will be activated on {environment.name} on {said}. {activation.reason}"
            messages.success(request, told.strip())
            return redirect(request, "schedule", slug, kind)
    context = {
        "project": environment.project,
        "environment": environment,
        "activation": activation,
        "form": form,
        "zone": zone.key,
        "may_override": may(request.user, environment.project.team_id, promotion.MAY_OVERRIDE),
        "scheduled": activation.status == ActivationStatus.SCHEDULED,
    }
    return dialog(request, "deployments/activation_reschedule.html", context, back=reverse("schedule", args=[slug, kind]))


def release_rollback(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """What rolling back would change and do; and, posted, the deployment of the earlier release."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    target = rollback.target(environment)
    absent = absent_machines(request, environment)
    form = DeployForm(request.POST if request.method == "POST" else None, environment=environment, offline=[one.name for one in absent])
    if request.method == "POST" and form.is_valid():
        expected = request.POST.get("back_to", "")
        try:
            begun = rollback.start(
                environment,
                expected=int(expected) if expected.isdecimal() else None,
                by=request.user,
                now=timezone.now(),
                override=form.cleaned_data["override"],
                leaving_out=form.cleaned_data["leaving_out"],
            )
        except NotAllowed as refusal:
            form.add_error(None, refusal.sentence)
        else:
            return redirect(request, begun)
    context: dict[str, Any] = {"project": environment.project, "environment": environment, "form": form, "target": target}
    if target is not None:
        release = target.back_to.release
        context |= preflight(release, environment, leaving_out=[one.name for one in absent if one.left_out])
        context |= {"absent": absent} | rule_findings(request, release, environment, returning=True)
        # Rolling back activates the release itself.
        context["obstacles"] = [sentence for sentence in context["obstacles"] if "is not active on" not in sentence]
        context |= {
            "release": release,
            "difference": sides.running_and(release, environment),
            "held": Activation.objects.filter(environment=environment, status=ActivationStatus.SCHEDULED).count(),
        }
    return dialog(request, "deployments/release_rollback.html", context, back=reverse("releases", args=[slug, kind]))
