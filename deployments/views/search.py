"""Search within a project."""

from django.http import HttpResponse
from django.views.decorators.http import require_GET

from deployments.search import find
from portal.access import get_project
from portal.context import SESSION_KEY
from portal.htmx import UserRequest, render
from portal.models import EnvironmentKind


@require_GET
def search(request: UserRequest, slug: str) -> HttpResponse:
    """Everything of the project whose name bears `?q=`."""
    project = get_project(request.user, slug)
    text = request.GET.get("q", "").strip()[:100]
    kind = request.session.get(SESSION_KEY, "")
    kind = kind if kind in EnvironmentKind.values else EnvironmentKind.TEST
    return render(request, "deployments/search.html", {"project": project, "text": text, "sections": find(project, text, kind=kind)})
