"""Deploy › Deployments: the list, and one deployment as it runs."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.shortcuts import render as render_part
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from deployments import releases, rollout
from deployments.models import BROKEN, DONE, LIVE, Deployment, RunStatus, StepLog, StepRun
from deployments.views.releases import verdicts
from portal.access import get_environment, may, role_to_deploy
from portal.htmx import UserRequest, redirect, render
from portal.models import Environment
from runtimes.models import Machine, RuntimeLog
from runtimes.protocol import LogLevel

DEPLOYMENTS_PER_PAGE = 50
FIRST_LINES = 300  # of each source, when the page is opened
LEVELS = [level.value for level in LogLevel]
AFTERWARDS = timedelta(seconds=5)  # runtimes' lines that tell how a deployment ended may come a little later


def _rights(request: UserRequest, environment: Environment) -> dict[str, Any]:
    role = role_to_deploy(environment)
    return {
        "project": environment.project,
        "environment": environment,
        "may_edit": may(request.user, environment.project.team_id, role),
        "role_to_edit": role.label,
    }


@require_GET
def deployment_list(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind)
    found = Deployment.objects.filter(environment=environment).select_related("release", "created_by", "environment__project")
    found = found.annotate(step_count=Count("steps"), done_count=Count("steps", filter=Q(steps__status__in=DONE)))
    status = request.GET.get("status", "")
    if status in RunStatus.values:
        found = found.filter(status=status)
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
    context = _rights(request, environment) | _picture(deployment)
    if not request.htmx:
        context |= _log(deployment, _level(request), after=(0, 0)) | {"log_live": _may_say_more(deployment)}
    return render(request, "deployments/deployment.html", context, part="deployments/_deployment.html")


# ------------------------------------------------------------------------------------------------------------- the picture


@dataclass(frozen=True)
class Decision:
    """What can be done now, and what it does."""

    broken: StepRun | None = None
    superseded: str = ""  # why the broken deployment cannot be resumed any more
    waiting: StepRun | None = None
    cancellable: bool = False
    left: int = 0  # steps after the one that broke


def _decision(deployment: Deployment, steps: list[StepRun]) -> Decision:
    broken = next((step for step in steps if step.status in BROKEN), None) if deployment.status in BROKEN else None
    waiting = next((step for step in steps if step.status == RunStatus.WAITING), None)
    return Decision(
        broken=broken,
        superseded=_superseded(deployment) if broken else "",
        waiting=waiting if deployment.status in LIVE else None,
        cancellable=deployment.status in LIVE,
        left=sum(1 for step in steps if broken and step.number > broken.number),
    )


def _superseded(deployment: Deployment) -> str:
    """What rollout.resume would refuse, said before the person tries. Two queries."""
    environment = deployment.environment
    newer = Deployment.objects.filter(environment=environment, pk__gt=deployment.pk).order_by("-pk").first()
    if newer:
        return f"Deployment {newer.pk} ran since: this one cannot be resumed any more."
    active = releases.active(environment)
    if active is None or active.pk != deployment.release_id:
        return f"Release {deployment.release.number} is no longer active on {environment.name}: deploy the active release instead."
    return ""


def _seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return ((end or timezone.now()) - begin).total_seconds() if begin else None


def _picture(deployment: Deployment) -> dict[str, Any]:
    """Header, steps and landscape in a fixed number of queries."""
    steps = list(deployment.steps.all())
    machines = Machine.objects.filter(environment=deployment.environment).select_related("router")
    machines = machines.prefetch_related("runtimes__connector", "runtimes__machine", "runtimes__desired_bundle")
    done = sum(1 for step in steps if step.status in DONE)
    return {
        "deployment": deployment,
        "live": deployment.status in LIVE,
        "elapsed": _seconds(deployment.started_at or deployment.created_at, deployment.ended_at),
        "steps": [(step, _seconds(step.started_at, step.ended_at)) for step in steps],
        "done": done,
        "percent": round(100 * done / len(steps)) if steps else 0,
        "decision": _decision(deployment, steps),
        "machines": list(machines),
        "verdicts": verdicts(deployment.environment),
        "now": timezone.now(),
    }


# -------------------------------------------------------------------------------------------------------------------- log


@dataclass(frozen=True)
class Line:
    at: datetime
    level: str
    source: str
    text: str
    step: int | None = None


def _level(request: UserRequest) -> str:
    level = request.GET.get("level", "")
    return level if level in LEVELS else LogLevel.INFO.value


def _log(deployment: Deployment, level: str, *, after: tuple[int, int]) -> dict[str, Any]:
    """Lines of the steps and of the machines' logs during the deployment, after the two given ids, at `level` or above. Two queries."""
    after_step, after_runtime = after
    levels = LEVELS[LEVELS.index(level) :]
    told = (
        StepLog.objects.filter(step__deployment=deployment, id__gt=after_step, level__in=levels)
        .select_related("step")
        .order_by("-id")[:FIRST_LINES]
    )
    lines = [Line(line.at, line.level, line.machine, line.text, line.step.number) for line in told]
    heard: list[RuntimeLog] = []
    if deployment.started_at:
        end = (deployment.ended_at or timezone.now()) + AFTERWARDS
        during = RuntimeLog.objects.filter(machine__environment=deployment.environment_id, at__gte=deployment.started_at, at__lte=end)
        during = during.filter(id__gt=after_runtime, level__in=levels).select_related("machine").order_by("-id")
        heard = list(during[:FIRST_LINES])
        lines += [Line(line.at, line.level, _source(line), line.text) for line in heard]
    return {
        "lines": sorted(lines, key=lambda line: line.at),
        "level": level,
        "levels": LEVELS,
        "after_step": max([after_step, *(line.pk for line in told)]),
        "after_runtime": max([after_runtime, *(line.pk for line in heard)]),
    }


def _may_say_more(deployment: Deployment) -> bool:
    return deployment.ended_at is None or timezone.now() <= deployment.ended_at + AFTERWARDS


def _source(line: RuntimeLog) -> str:
    """A runtime's key tells its machine; "router" and "agent" do not."""
    return line.source if line.source.startswith(f"{line.machine.name}.") else f"{line.source} on {line.machine.name}"


@require_GET
def deployment_log(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    """The lines since the ones a page has; asks again until the deployment has ended."""
    environment = get_environment(request.user, slug, kind)
    deployment = _deployment(environment, pk)
    after = tuple(int(request.GET[name]) if request.GET.get(name, "").isdigit() else 0 for name in ("step", "runtime"))
    context = _rights(request, environment) | _log(deployment, _level(request), after=(after[0], after[1]))
    context |= {"deployment": deployment, "live": _may_say_more(deployment)}
    return render_part(request, "deployments/_deployment_log.html", context)


# ------------------------------------------------------------------------------------------------------------------- acts


@require_POST
def deployment_cancel(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, to_edit=True)
    deployment = _deployment(environment, pk)
    rollout.cancel(deployment, by=request.user, now=timezone.now())
    messages.info(request, "The deployment is cancelled. What it changed so far stays as it is.")
    return redirect(request, deployment)


@require_POST
def deployment_resume(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, to_edit=True)
    deployment = _deployment(environment, pk)
    rollout.resume(deployment, by=request.user, now=timezone.now())
    return redirect(request, deployment)


@require_POST
def step_confirm(request: UserRequest, slug: str, kind: str, pk: int, number: int) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, to_edit=True)
    deployment = _deployment(environment, pk)
    rollout.confirm(get_object_or_404(StepRun, deployment=deployment, number=number), by=request.user, now=timezone.now())
    return redirect(request, deployment)
