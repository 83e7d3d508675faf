"""Deploy › Releases › Retention: the rule, what it would remove, and what it removed."""

from django.contrib import messages
from django.http import HttpResponse
from django.utils import timezone

from deployments import retention
from deployments.forms import show_refusal
from deployments.models import ReleaseRemoval
from deployments.rule_forms import RetentionForm
from portal.access import get_environment, may
from portal.errors import NotAllowed, Stale
from portal.htmx import UserRequest, redirect, render
from portal.models import Role

SHOWN = 200


def release_retention(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, role=retention.MAY_SET_RULE if request.method == "POST" else Role.VIEWER)
    project, now = environment.project, timezone.now()
    rule = retention.rule_of(project)
    initial = {name: getattr(rule, name) for name in RetentionForm.base_fields}
    form = RetentionForm(request.POST or None, initial=initial)
    seen = request.POST.get("seen", "") or retention.tag(rule)
    if request.method == "POST" and form.is_valid():
        try:
            retention.set_rule(project, by=request.user, seen=seen, **form.cleaned_data)
        except Stale as refusal:
            form.add_error(None, refusal.sentence)
            rule = retention.rule_of(project)
            seen = retention.tag(rule)  # what is saved next replaces what he was told of
        except NotAllowed as refusal:
            show_refusal(form, refusal)
        else:
            messages.success(request, "The retention rule is saved. Below is what it would do now.")
            return redirect(request, "release-retention", slug, kind)
    found = retention.verdicts(project, now=now)
    context = {
        "project": project,
        "environment": environment,
        "rule": rule,
        "form": form,
        "seen": seen,
        "may_set": may(request.user, project.team_id, retention.MAY_SET_RULE),
        "going": sum(verdict.goes for _, verdict in found),
        "verdicts": sorted(found, key=lambda pair: (not pair[1].goes, -pair[0].number))[:SHOWN],
        "removals": ReleaseRemoval.objects.filter(project=project).select_related("by")[:SHOWN],
    }
    return render(request, "deployments/retention.html", context)
