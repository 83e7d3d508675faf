"""Projects and teams."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import NoReverseMatch, reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from portal import creation, design, exports, teams
from portal.access import get_project, get_team, role_in
from portal.forms import MemberForm, ProjectForm, RoleForm, carried_out
from portal.htmx import UserRequest, dialog, redirect, render
from portal.models import Membership, Role, Team


@require_GET
def projects(request: UserRequest) -> HttpResponse:
    """The person's teams with their projects."""
    memberships = Membership.objects.filter(user=request.user).select_related("team").prefetch_related("team__projects")
    return render(request, "portal/projects.html", {"memberships": memberships, "administrator": Role.ADMINISTRATOR})


def _step(text: str, name: str, slug: str, *, done: bool) -> dict[str, object]:
    try:
        url = reverse(name, args=[slug])
    except NoReverseMatch:
        url = ""
    return {"text": text, "url": url, "done": done}


@require_GET
def project(request: UserRequest, slug: str) -> HttpResponse:
    """Where the project stands: what is drawn, what is pending, what comes next."""
    row = get_project(request.user, slug)
    systems = list(design.systems_of(row))
    settings = design.pending_settings(row)
    flows = [flow for connector in creation.connectors_of(row) for flow in connector.flows.all()]
    transfers = creation.pending_transfers(row)
    unsaved = [flow for flow in flows if creation.has_unsaved_changes(flow)]
    steps = [
        _step(f"Systems drawn: {len(systems)}", "solution", slug, done=bool(systems)),
        _step("Connectors placed on machines", "design-architecture", slug, done=bool(systems) and not _unplaced(systems)),
        _step("Settings applied", "design-architecture", slug, done=bool(systems) and not settings.anything),
        _step("Failover transferred from design", "flows", slug, done=bool(systems) and not transfers),
        _step(f"Flows saved as versions: {len(flows) - len(unsaved)} of {len(flows)}", "flows", slug, done=bool(flows) and not unsaved),
    ]
    return render(request, "portal/project.html", {"project": row, "steps": steps})


def _unplaced(systems: list) -> bool:  # type: ignore[type-arg]
    return any(len(connector.placements.all()) != system.number_of_runtimes for system in systems for connector in system.connectors.all())


@require_http_methods(["GET", "POST"])
def add_project(request: UserRequest, slug: str) -> HttpResponse:
    row = get_team(request.user, slug, role=Role.ADMINISTRATOR)
    form = ProjectForm(request.POST or None)
    if request.method == "POST" and carried_out(form, lambda data: teams.create_project(row, **data)):
        messages.success(request, f"{form.cleaned_data['name']} was made, with Test, Acceptance and Production. Next: draw its systems.")
        return redirect(request, "project", form.cleaned_data["slug"])
    context = {"form": form, "title": f"New project of {row}", "submit": "Create"}
    return dialog(request, "portal/form_dialog.html", context, back=reverse("projects"))


# ----------------------------------------------------------------------------------------------------------------- members


@require_GET
def team(request: UserRequest, slug: str) -> HttpResponse:
    """Its members and projects; `?format=csv` exports the members."""
    row = get_team(request.user, slug)
    memberships = row.memberships.select_related("user").order_by("user__username")
    if exports.wanted(request.GET):
        rows = [(one.user.get_username(), one.user.get_full_name(), one.role) for one in memberships]
        return exports.as_csv(f"members-{slug}", ["person", "name", "role"], rows)
    context = {
        "team": row,
        "memberships": memberships,
        "projects": row.projects.all(),
        "administers": role_in(row, request.user) == Role.ADMINISTRATOR,
        "roles": Role.choices,
    }
    return render(request, "portal/team.html", context)


@require_http_methods(["GET", "POST"])
def add_member(request: UserRequest, slug: str) -> HttpResponse:
    row = get_team(request.user, slug, role=Role.ADMINISTRATOR)
    form = MemberForm(request.POST or None)
    if request.method == "POST" and carried_out(form, lambda data: teams.add_member(row, **data)):
        messages.success(request, f"{form.cleaned_data['username']} is a member now.")
        return redirect(request, "team", slug)
    context = {"form": form, "title": f"Add a member to {row}", "submit": "Add"}
    return dialog(request, "portal/form_dialog.html", context, back=reverse("team", args=[slug]))


def _membership(team: Team, username: str) -> Membership:
    return get_object_or_404(team.memberships.select_related("user", "team"), user__username=username)


@require_POST
def change_role(request: UserRequest, slug: str, username: str) -> HttpResponse:
    membership = _membership(get_team(request.user, slug, role=Role.ADMINISTRATOR), username)
    form = RoleForm(request.POST)
    if form.is_valid():
        teams.change_role(membership, form.cleaned_data["role"])
        messages.success(request, f"{username} is {membership.get_role_display()} now.")
    return redirect(request, "team", slug)


@require_POST
def remove_member(request: UserRequest, slug: str, username: str) -> HttpResponse:
    teams.remove_member(_membership(get_team(request.user, slug, role=Role.ADMINISTRATOR), username))
    messages.success(request, f"{username} is no longer a member.")
    return redirect(
        request,
        "projects" if username == request.user.get_username() else "team",
        *([] if username == request.user.get_username() else [slug]),
    )
