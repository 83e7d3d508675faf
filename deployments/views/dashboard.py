"""The first page: all my projects at a glance, exceptions first."""

from django.http import HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from deployments import overview
from portal.htmx import UserRequest, render
from portal.models import Project


@require_GET
def dashboard(request: UserRequest) -> HttpResponse:
    """Which release is where, and what is not well. The part asks for itself every 2 s."""
    projects = list(Project.objects.visible_to(request.user).select_related("team").prefetch_related("environments"))
    glances = overview.glances(projects, now=timezone.now())
    context = {"glances": sorted(glances, key=lambda glance: not glance.troubles)}
    return render(request, "deployments/dashboard.html", context, part="deployments/_dashboard.html")
