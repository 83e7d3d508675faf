"""Projects and teams."""

from django.http import HttpResponse
from django.views.decorators.http import require_GET

from portal.access import get_project
from portal.htmx import UserRequest, render


@require_GET
def project(request: UserRequest, slug: str) -> HttpResponse:
    return render(request, "portal/project.html", {"project": get_project(request.user, slug)})
