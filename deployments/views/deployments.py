"""Deploy › Deployments: the list, and one deployment as it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count, Q
from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.shortcuts import render as render_part
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from deployments import decisions, logs, promotion, results, rollout
from deployments.models import BROKEN, DONE, LIVE, Choice, Deployment, RunStatus, StepKind, StepRun
from deployments.stages import stages_of
from deployments.views.releases import verdicts
from portal import exports
from portal.access import Person, get_environment, may, require, role_to_deploy
from portal.errors import Invalid
from portal.htmx import UserRequest, redirect, render
from portal.models import Environment
from runtimes.models import Machine

DEPLOYMENTS_PER_PAGE = 50


def _rights(request: UserRequest, environment: Environment) -> dict[str, Any]:
    role = role_to_deploy(environment)
    return {
        "project": environment.project,
        "environment": environment,
        "may_edit": may(request.user, environment.project.team_id, role),
        "role_to_edit": role.label,
        "may_override": may(request.user, environment.project.team_id, promotion.MAY_OVERRIDE),
    }


@require_GET
def deployment_list(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """Newest first; the filter `?status=` lives in the URL, `?format=csv` exports the list."""
    environment = get_environment(request.user, slug, kind)
    found = Deployment.objects.filter(environment=environment).select_related("release", "created_by", "environment__project")
    found = found.prefetch_related("begun_by", "rolled_back_by")
    found = found.annotate(step_count=Count("steps"), done_count=Count("steps", filter=Q(steps__status__in=DONE)))
    status = request.GET.get("status", "")
    if status in RunStatus.values:
        found = found.filter(status=status)
    if exports.wanted(request.GET):
        columns = [
            "number",
            "release",
            "name",
            "status",
            "steps_done",
            "steps",
            "by",
            "started_at",
            "ended_at",
            "rollback_of",
            "scheduled_for",
        ]
        fields = ("pk", "release__number", "release__name", "status", "done_count", "step_count", "created_by__username")
        rows = (
            found.prefetch_related(None).order_by("-id").values_list(*fields, "started_at", "ended_at", "rollback_of", "begun_by__due_at")
        )
        return exports.as_csv(f"deployments-{slug}-{kind}", columns, rows.iterator())
    page = Paginator(found.order_by("-id"), DEPLOYMENTS_PER_PAGE).get_page(request.GET.get("page", 1))
    context = _rights(request, environment) | {"page": page, "status": status, "statuses": RunStatus.choices, "now": timezone.now()}
    return render(request, "deployments/deployments.html", context)


def _deployment(environment: Environment, pk: int) -> Deployment:
    found = Deployment.objects.select_related("release", "created_by", "environment__project")
    return get_object_or_404(found, environment=environment, pk=pk)


@require_GET
def deployment_page(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    """The whole page; its part, which asks again each second until the deployment has ended, with htmx."""
    environment = get_environment(request.user, slug, kind)
    deployment = _deployment(environment, pk)
    context = _rights(request, environment) | _picture(deployment, request.user)
    for step in context["stop"].waiting:
        step.deployment = deployment
        step.role = rollout.confirmed_by(step)
        step.may_confirm = may(request.user, environment.project.team_id, step.role)
    if not request.htmx:
        context |= _log(deployment, _wanted(request), logs.Place())
    return render(request, "deployments/deployment.html", context, part="deployments/_deployment.html")


# ------------------------------------------------------------------------------------------------------------- the picture


@dataclass(frozen=True)
class Stop:
    """Where a deployment stands still for a person, and what he can do about it."""

    broken: Sequence[StepRun] = ()  # several where several lanes stopped
    superseded: str = ""  # why it cannot go on any more
    offers: Sequence[decisions.Offer] = ()
    waiting: Sequence[StepRun] = ()
    cancellable: bool = False


def _stop(deployment: Deployment, steps: list[StepRun], person: Person) -> Stop:
    broken = [step for step in steps if step.status in BROKEN] if deployment.status in BROKEN else []
    return Stop(
        broken=broken,
        superseded=rollout.superseded(deployment) if broken else "",
        offers=decisions.offers(deployment, by=person, now=timezone.now()) if broken else (),
        waiting=[step for step in steps if step.status == RunStatus.WAITING] if deployment.status in LIVE else (),
        cancellable=deployment.status in LIVE,
    )


def _seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return ((end or timezone.now()) - begin).total_seconds() if begin else None


def _picture(deployment: Deployment, person: Person) -> dict[str, Any]:
    """Header, steps and landscape in a fixed number of queries."""
    steps = list(deployment.steps.prefetch_related("attempts"))
    for step in steps:
        step.seconds = _seconds(step.started_at, step.ended_at)  # type: ignore[attr-defined]
    machines = Machine.objects.filter(environment=deployment.environment).select_related("router")
    machines = machines.prefetch_related("runtimes__connector", "runtimes__machine", "runtimes__desired_bundle")
    for machine in machines:
        machine.silent = machine.is_silent(now=timezone.now())  # type: ignore[attr-defined]
    done = sum(1 for step in steps if step.status in DONE)
    return {
        "deployment": deployment,
        "live": deployment.status in LIVE,
        "scheduled": deployment.scheduled,
        "rolled_back_by": list(deployment.rolled_back_by.select_related("release").defer("release__content")),
        "elapsed": _seconds(deployment.started_at or deployment.created_at, deployment.ended_at),
        "steps": steps,
        "stages": stages_of(steps),
        "balances": [step for step in steps if step.kind == StepKind.BALANCE_FAILOVER and step.memory.get("groups")],
        "past_decisions": list(deployment.decisions.select_related("by", "step")),
        "exclusions": list(deployment.exclusions.select_related("deployment__release", "caught_up_by")),
        "results": results.results(steps),
        "past": Deployment.objects.filter(environment=deployment.environment, pk__gt=deployment.pk, started_at__isnull=False).exists(),
        "done": done,
        "percent": round(100 * done / len(steps)) if steps else 0,
        "stop": _stop(deployment, steps, person),
        "cancel_seconds": int(rollout.CANCEL_ENDS_WITHIN.total_seconds()),
        "machines": list(machines),
        "verdicts": verdicts(deployment.environment),
        "now": timezone.now(),
    }


# -------------------------------------------------------------------------------------------------------------------- log


def _wanted(request: UserRequest) -> logs.Wanted:
    """Which lines the address of the page asks for."""
    level, step = request.GET.get("level", ""), request.GET.get("of", "")
    return logs.Wanted(
        level=level if level in logs.LEVELS else logs.Wanted.level,
        step=int(step) if step.isdecimal() and len(step) < 6 else None,
        machine=request.GET.get("machine", "")[:40],
        search=request.GET.get("q", "").strip()[:100],
    )


def _log(deployment: Deployment, wanted: logs.Wanted, after: logs.Place) -> dict[str, Any]:
    piece = logs.read(deployment, wanted, after)
    asked = {"level": wanted.level, "of": wanted.step or "", "machine": wanted.machine, "q": wanted.search}
    place = {"step": piece.place.step, "machines": piece.place.machines_text}
    return {
        "lines": piece.lines,
        "wanted": wanted,
        "levels": logs.LEVELS,
        "log_query": urlencode({name: value for name, value in asked.items() if value}),
        "next_query": urlencode({**asked, **place}),
        "log_more": not piece.complete,
        "log_empty": not (piece.lines or piece.place.step or piece.place.machines),
        "log_live": logs.may_say_more(deployment),
    }


@require_GET
def deployment_log(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    """The lines since the ones a page has; asks again until the deployment has ended."""
    environment = get_environment(request.user, slug, kind)
    deployment = _deployment(environment, pk)
    after = logs.Place.parse(request.GET.get("step", ""), request.GET.get("machines", ""))
    context = _rights(request, environment) | _log(deployment, _wanted(request), after) | {"deployment": deployment}
    return render_part(request, "deployments/_deployment_log.html", context)


@require_GET
def deployment_log_file(request: UserRequest, slug: str, kind: str, pk: int) -> StreamingHttpResponse:
    """The whole log (or what the page's filters leave of it) as a text file."""
    environment = get_environment(request.user, slug, kind)
    deployment = _deployment(environment, pk)
    name = f"{slug}-{kind}-deployment-{deployment.pk}.log"
    lines = logs.whole(deployment, _wanted(request))
    return StreamingHttpResponse(
        lines, content_type="text/plain; charset=utf-8", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


# ------------------------------------------------------------------------------------------------------------------- acts


@require_POST
def deployment_cancel(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, to_edit=True)
    deployment = _deployment(environment, pk)
    rollout.cancel(deployment, by=request.user, now=timezone.now())
    messages.info(request, "The deployment is cancelled. What it changed so far stays as it is.")
    return redirect(request, deployment)


@require_POST
def deployment_decide(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    """What a person decides after a failure: `choice`, with `reason`, `machine` and `override` where it needs them."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    deployment = _deployment(environment, pk)
    choice = request.POST.get("choice", "")
    if choice not in Choice.values:
        raise Invalid(f"Choose one of {', '.join(Choice.values)}.", field="choice")
    name = environment.project.slug
    typed = not environment.is_production or choice not in decisions.TYPED_ON_PRODUCTION or request.POST.get("confirm", "").strip() == name
    if not typed:
        raise Invalid(f"Type {name}, the name of the project, to decide that on Production.", field="confirm")
    after = decisions.decide(
        deployment,
        Choice(choice),
        by=request.user,
        now=timezone.now(),
        reason=request.POST.get("reason", ""),
        machine=request.POST.get("machine", ""),
        step=int(step) if (step := request.POST.get("step", "")).isdecimal() and len(step) < 7 else None,
        override=request.POST.get("override", ""),
    )
    return redirect(request, after)


@require_POST
def step_confirm(request: UserRequest, slug: str, kind: str, pk: int, number: int) -> HttpResponse:
    """By whoever has the role that the step names, else by whoever may deploy here."""
    deployment = _deployment(get_environment(request.user, slug, kind), pk)
    step = get_object_or_404(StepRun.objects.select_related("deployment__environment__project"), deployment=deployment, number=number)
    require(request.user, deployment.environment.project.team_id, rollout.confirmed_by(step))
    rollout.confirm(step, by=request.user, now=timezone.now())
    return redirect(request, deployment)
