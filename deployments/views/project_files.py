"""A project as a file: export, and import as plan, then apply."""

from typing import Any

from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_GET

from deployments import project_file
from deployments.forms import ProjectFileForm
from portal.access import get_project, role_in, role_to_deploy
from portal.errors import NotAllowed
from portal.htmx import UserRequest, render
from portal.models import Project, Role


def editable(request: Any, project: Project) -> set[str]:
    """Kinds of the environments that the person may change."""
    role = role_in(project.team_id, request.user)
    return {row.kind for row in project.environments.all() if role and role in Role.at_least(role_to_deploy(row))}


@require_GET
def project_export(request: UserRequest, slug: str) -> HttpResponse:
    project = get_project(request.user, slug)
    headers = {"Content-Disposition": f'attachment; filename="{project.slug}.yaml"'}
    return HttpResponse(project_file.export(project), content_type="application/yaml; charset=utf-8", headers=headers)


def project_import(request: UserRequest, slug: str) -> HttpResponse:
    """POST without `seen` shows the plan; with it, the plan is applied if the project is still what the plan began with."""
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    form = ProjectFileForm(request.POST or None, request.FILES or None)
    context: dict[str, Any] = {"project": project, "form": form, "found": None, "done": None}
    if form.is_bound and form.is_valid():
        text, seen = form.cleaned_data["text"], form.cleaned_data["seen"]
        try:
            if seen and request.POST.get("act") == "apply":
                done = project_file.apply(project, text, by=request.user, editable=editable(request, project), seen=seen)
                context |= {"done": done, "form": ProjectFileForm()}
            else:
                found = project_file.plan(project, text, by=request.user, editable=editable(request, project))
                shown = ProjectFileForm(initial={"text": text, "seen": found.before})
                context |= {"found": found, "text": text, "form": shown}
        except NotAllowed as refusal:
            form.add_error("text", [refusal.sentence, *(reason for reason in refusal.reasons if reason not in refusal.sentence)])
    return render(request, "deployments/project_import.html", context | {"back": reverse("project", args=[slug])})
