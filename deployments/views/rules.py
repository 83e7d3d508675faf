"""Deploy › Rules: what an environment asks before a release is activated or deployed there; and approvals."""

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST

from deployments import approvals, promotion, windows
from deployments.forms import show_refusal
from deployments.models import ApprovalRequest, DeploymentFreeze, DeploymentWindow, Release, RuleChange, RuleOverride
from deployments.rule_forms import ApprovalRequestForm, CommentForm, FreezeForm, RulesForm, WindowForm, WindowForms
from portal.access import get_environment, may
from portal.errors import NotAllowed, Stale
from portal.htmx import UserRequest, dialog, redirect, render
from portal.models import Environment, EnvironmentKind, Role

SHOWN = 50  # changes and overrides on the page


def environment_rules(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, role=promotion.MAY_SET_RULES if request.method == "POST" else Role.VIEWER)
    rules = promotion.rules_of(environment)
    present = [WindowForm.of(row) for row in DeploymentWindow.objects.filter(environment=environment)]
    form = RulesForm(request.POST or None, initial=RulesForm.of(rules))
    lines = WindowForms(request.POST or None, initial=present, prefix="windows")
    seen = request.POST.get("seen", "") or promotion.tag(environment)
    if request.method == "POST" and form.is_valid() and lines.is_valid():
        wanted = [line.wanted for line in lines if line.wanted is not None]
        try:
            promotion.set_rules(environment, by=request.user, now=timezone.now(), windows_=wanted, seen=seen, **form.cleaned_data)
        except Stale as refusal:
            form.add_error(None, refusal.sentence)
            seen = promotion.tag(environment)  # what is saved next replaces what he was told of
        except NotAllowed as refusal:
            show_refusal(form, refusal)
        else:
            messages.success(request, f"The rules of {environment.name} are saved.")
            return redirect(request, "environment-rules", slug, kind)
    return render(request, "deployments/rules.html", _rules_context(request, environment) | {"form": form, "lines": lines, "seen": seen})


def _rules_context(request: UserRequest, environment: Environment) -> dict[str, Any]:
    now, calendar = timezone.now(), promotion.calendar_of(environment)
    team = environment.project.team_id
    return {
        "project": environment.project,
        "environment": environment,
        "environments": list(environment.project.environments.all()),
        "may_set": may(request.user, team, promotion.MAY_SET_RULES),
        "may_freeze": may(request.user, team, promotion.MAY_FREEZE),
        "zone": calendar.zone.key,
        "verdict": windows.verdict(calendar, now),
        "now": now,
        "freezes": DeploymentFreeze.objects.filter(environment=environment, ends_at__gt=now).select_related("created_by"),
        "changes": RuleChange.objects.filter(environment=environment).select_related("by")[:SHOWN],
        "overrides": RuleOverride.objects.filter(environment=environment).select_related("by", "release__project")[:SHOWN],
    }


@require_POST
def environment_move(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """`direction`: earlier or later in the order of promotion."""
    environment = get_environment(request.user, slug, kind, role=promotion.MAY_SET_RULES)
    promotion.move(environment, earlier=request.POST.get("direction") == "earlier", by=request.user, now=timezone.now())
    back = request.POST.get("back", "")
    return redirect(request, "environment-rules", slug, back if back in EnvironmentKind.values else kind)


def freeze_new(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, role=promotion.MAY_FREEZE)
    zone = promotion.calendar_of(environment).zone
    form = FreezeForm(request.POST or None, zone=zone)
    back = reverse("environment-rules", args=[slug, kind])
    if request.method == "POST" and form.is_valid():
        given = form.cleaned_data
        try:
            promotion.freeze(
                environment,
                starts_at=given["starts_at"],
                ends_at=given["ends_at"],
                reason=given["reason"],
                by=request.user,
                now=timezone.now(),
            )
        except NotAllowed as refusal:
            form.add_error({"ends_at": "ends", "reason": "reason"}.get(refusal.field), refusal.sentence)
        else:
            messages.success(request, f"{environment.name} is frozen for that time.")
            return redirect(request, back)
    context = {"project": environment.project, "environment": environment, "form": form, "zone": zone.key}
    return dialog(request, "deployments/freeze_new.html", context, back=back)


@require_POST
def freeze_lift(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, role=promotion.MAY_FREEZE)
    promotion.lift(get_object_or_404(DeploymentFreeze, environment=environment, pk=pk), by=request.user, now=timezone.now())
    messages.success(request, "The freeze is lifted.")
    return redirect(request, "environment-rules", slug, kind)


# ---------------------------------------------------------------------------------------------------------------- approvals


def _promotion_tab(release: Release, environment: Environment) -> str:
    return f"{release.get_absolute_url()}?environment={environment.kind}&tab=promotion"


def approval_request(request: UserRequest, slug: str, kind: str, number: int) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, role=Role.DEVELOPER)
    release = get_object_or_404(Release.objects.select_related("project"), project=environment.project, number=number)
    form = ApprovalRequestForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            approvals.request(release, environment, note=form.cleaned_data["note"], by=request.user, now=timezone.now())
        except NotAllowed as refusal:
            show_refusal(form, refusal)
        else:
            messages.success(request, f"Approval of release {number} on {environment.name} is requested.")
            return redirect(request, _promotion_tab(release, environment))
    context = {"project": environment.project, "environment": environment, "release": release, "form": form, "act": "request"}
    return dialog(request, "deployments/approval_act.html", context, back=_promotion_tab(release, environment))


ACTS = {"approve": "Approved.", "reject": "Rejected.", "withdraw": "Withdrawn."}


def approval_act(request: UserRequest, slug: str, kind: str, pk: int, act: str) -> HttpResponse:
    """Approve, reject or withdraw, with a comment."""
    if act not in ACTS:
        raise Http404("There is no such act.")
    to_edit = act != "withdraw"
    environment = get_environment(request.user, slug, kind, role=Role.DEVELOPER, to_edit=to_edit)
    asked = get_object_or_404(ApprovalRequest.objects.select_related("release__project", "created_by"), environment=environment, pk=pk)
    asked.environment = environment
    form = CommentForm(request.POST if request.method == "POST" else None)
    back = _promotion_tab(asked.release, environment)
    if request.method == "POST" and form.is_valid():
        try:
            said = _act(act, asked, form.cleaned_data["comment"], request)
        except NotAllowed as refusal:
            show_refusal(form, refusal)
        else:
            messages.success(request, said)
            return redirect(request, back)
    context = {
        "project": environment.project,
        "environment": environment,
        "release": asked.release,
        "asked": asked,
        "form": form,
        "act": act,
    }
    return dialog(request, "deployments/approval_act.html", context, back=back)


def _act(act: str, asked: ApprovalRequest, comment: str, request: UserRequest) -> str:
    now = timezone.now()
    if act == "withdraw":
        return approvals.withdraw(asked, by=request.user, now=now)
    if act == "approve":
        approvals.approve(asked, comment=comment, by=request.user, now=now)
    else:
        approvals.reject(asked, comment=comment, by=request.user, now=now)
    return ACTS[act]
