"""Deploy › Plan: the ordered steps of an environment."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from deployments import plans
from deployments.forms import PICKERS, StepForm, show_refusal, step_initial
from deployments.models import Plan, Step, StepKind
from deployments.stages import stages_of
from portal.access import get_environment, may, role_to_deploy
from portal.errors import NotAllowed, Stale
from portal.htmx import UserRequest, dialog, redirect, render, whole_number
from portal.models import Environment


def _context(
    request: UserRequest, environment: Environment, plan: Plan, *, said: str = "", refusal: NotAllowed | None = None
) -> dict[str, Any]:
    project = environment.project
    others = [other for other in project.environments.all() if other.pk != environment.pk]
    copies = [(other, may(request.user, project.team_id, role_to_deploy(other))) for other in others]
    return {
        "project": project,
        "environment": environment,
        "environments": project.environments.all(),
        "may_edit": may(request.user, project.team_id, role_to_deploy(environment)),
        "role_to_edit": role_to_deploy(environment).label,
        "others": copies,
        "may_copy_any": any(allowed for _, allowed in copies),
        "plan": plan,
        "steps": (steps := list(plan.steps.all())),
        "stages": stages_of(steps),
        "findings": plans.lint(plan),
        "said": said,
        "refusal": refusal,
    }


@require_GET
def plan_page(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind)
    return render(request, "deployments/plan.html", _context(request, environment, plans.plan_of(environment)))


def _answer(request: UserRequest, environment: Environment, said: str, refusal: NotAllowed | None = None) -> HttpResponse:
    """The plan as it is now: its part with htmx, else the page again with the sentence."""
    if request.htmx:
        context = _context(request, environment, plans.plan_of(environment), said=said, refusal=refusal)
        return render(request, "deployments/_plan.html", context)
    if refusal:
        messages.error(request, " ".join([refusal.sentence, *refusal.reasons]))
    else:
        messages.success(request, said)
    return redirect(request, "plan", environment.project.slug, environment.kind)


def step_new(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, to_edit=True)
    form = StepForm(request.POST or None, environment=environment, initial={"kind": StepKind.DEPLOY_RUNTIME})
    if request.method == "POST" and form.is_valid():
        try:
            step = plans.add_step(plans.plan_of(environment), form.step_kind, position=None, **form.step_fields)
        except NotAllowed as refusal:
            show_refusal(form, refusal)
        else:
            messages.success(request, f"Step {step.position} is added: {step.title}.")
            return redirect(request, "plan", slug, kind)
    return _show_form(request, environment, form, None)


def step_edit(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, to_edit=True)
    step = get_object_or_404(Step, plan__environment=environment, pk=pk)
    initial = step_initial(step)
    form = StepForm(request.POST or None, environment=environment, initial=initial, changes=True)
    seen = request.POST.get("seen", "") or plans.digest_of([step])
    if request.method == "POST" and form.is_valid():
        try:
            plans.change_step(step, seen=seen, **form.step_fields)
        except Stale as refusal:
            show_refusal(form, refusal)
            step.refresh_from_db()
            seen = plans.digest_of([step])  # what is saved next replaces what he was told of
        except NotAllowed as refusal:
            show_refusal(form, refusal)
        else:
            messages.success(request, f"Step {step.position} is changed.")
            return redirect(request, "plan", slug, kind)
    return _show_form(request, environment, form, step, seen=seen)


def _kinds_by_picker() -> dict[str, str]:
    """ "runtime" -> the kinds of step that need that picker, separated by blanks."""
    names = {name for needed in PICKERS.values() for name in needed}
    return {name: " ".join(kind for kind, needed in PICKERS.items() if name in needed) for name in names}


def _show_form(request: UserRequest, environment: Environment, form: StepForm, step: Step | None, *, seen: str = "") -> HttpResponse:
    plan = plans.plan_of(environment)
    context = _context(request, environment, plan) | {"form": form, "step": step, "seen": seen, "pickers": _kinds_by_picker()}
    back = reverse("plan", args=[environment.project.slug, environment.kind])
    return dialog(request, "deployments/plan_step.html", context, back=back)


@require_POST
def step_move(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    """To the `position` (counted from 1) that the buttons, the keyboard or a drop says; a drop also says into which `stage` and `lane`."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    step = get_object_or_404(Step, plan__environment=environment, pk=pk)
    title, position = step.title, whole_number(request.POST.get("position", ""))
    if position is None:
        return _answer(request, environment, "", NotAllowed("Say the new position as a number, counted from 1."))
    try:
        plans.move_step(step, position, stage=request.POST.get("stage"), lane=request.POST.get("lane"))
    except NotAllowed as refusal:
        return _answer(request, environment, "", refusal)
    return _answer(request, environment, f"{title} is step {position} now.")


@require_POST
def step_remove(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, to_edit=True)
    step = get_object_or_404(Step, plan__environment=environment, pk=pk)
    title = step.title
    try:
        plans.remove_step(step)
    except NotAllowed as refusal:
        return _answer(request, environment, "", refusal)
    return _answer(request, environment, f"{title} is removed from the plan.")


@require_POST
def plan_default(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """The default or (`order` followers) the followers-first plan. Steps that exist are only replaced when the person said so."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    if plans.plan_of(environment).steps.exists() and not request.POST.get("replace"):
        return _answer(
            request, environment, "", NotAllowed("The plan has steps already: confirm that the default plan shall replace them.")
        )
    followers = request.POST.get("order") == "followers"
    try:
        plan = plans.followers_first_plan(environment, now=timezone.now()) if followers else plans.default_plan(environment)
    except NotAllowed as refusal:
        return _answer(request, environment, "", refusal)
    word = "followers-first" if followers else "default"
    return _answer(request, environment, f"The {word} plan has {plan.steps.count()} steps. Read them through before the next deployment.")


@require_POST
def plan_copy(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """Replaces the plan of the environment `to`, where the person needs the right to edit."""
    environment = get_environment(request.user, slug, kind)
    target = get_environment(request.user, slug, request.POST.get("to", ""), to_edit=True)
    if plans.plan_of(target).steps.exists() and not request.POST.get("replace"):
        sentence = f"{target.name} has a plan with steps already: confirm that this one shall replace it."
        return _answer(request, environment, "", NotAllowed(sentence))
    try:
        plans.copy_to(plans.plan_of(environment), target)
    except NotAllowed as refusal:
        return _answer(request, environment, "", refusal)
    messages.success(request, f"This is the plan of {target.name} now, copied from {environment.name}.")
    return redirect(request, "plan", slug, target.kind)
