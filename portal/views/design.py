"""Design: systems around the project, connectors on machines, Apply settings."""

from dataclasses import dataclass
from math import cos, pi, sin

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from portal import design
from portal.access import get_project
from portal.errors import NotAllowed, Stale
from portal.forms import MachineForm, NameForm, PlaceForm, SystemForm, carried_out
from portal.htmx import UserRequest, dialog, redirect, render
from portal.models import MachineKind, Project, Role, System

WIDTH, BOX, LINE = 960, (190, 66), 84  # of the drawing, in its own units


@dataclass(frozen=True)
class Node:
    """A system in the drawing: the box's corner and centre."""

    system: System
    x: float
    y: float

    @property
    def left(self) -> float:
        return self.x - BOX[0] / 2

    @property
    def top(self) -> float:
        return self.y - BOX[1] / 2


def drawing(systems: list[System]) -> dict[str, object]:
    """Systems on an ellipse around the project; it grows with their number so that boxes do not overlap."""
    height = max(340, LINE * (len(systems) // 2 + 2))
    centre = (WIDTH / 2, height / 2)
    radius = (WIDTH / 2 - BOX[0] / 2 - 8, height / 2 - BOX[1] / 2 - 8)
    nodes = []
    for index, system in enumerate(systems):
        angle = 2 * pi * index / len(systems) + pi  # the first one on the left
        nodes.append(Node(system, round(centre[0] + radius[0] * cos(angle), 1), round(centre[1] + radius[1] * sin(angle), 1)))
    return {"width": WIDTH, "height": height, "box": BOX, "centre": centre, "hub": (centre[0] - 100, centre[1] - 38), "nodes": nodes}


@require_GET
def solution(request: UserRequest, slug: str) -> HttpResponse:
    project = get_project(request.user, slug)
    systems = list(design.systems_of(project))
    return render(request, "portal/solution.html", {"project": project, "systems": systems, "drawing": drawing(systems)})


@require_http_methods(["GET", "POST"])
def add_system(request: UserRequest, slug: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    form = SystemForm(request.POST or None)
    if request.method == "POST" and carried_out(form, lambda data: design.create_system(project, **data)):
        messages.success(request, f"{form.cleaned_data['name']} was added. Next: place its connector in Architecture.")
        return redirect(request, "solution", slug)
    return dialog(request, "portal/system_dialog.html", {"project": project, "form": form}, back=reverse("solution", args=[slug]))


@require_http_methods(["GET", "POST"])
def edit_system(request: UserRequest, slug: str, system: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    row = get_object_or_404(design.systems_of(project), slug=system)
    fields = ("name", "description", "multiple_runtimes", "number_of_runtimes", "failover")
    form = SystemForm(request.POST or None, initial={name: getattr(row, name) for name in fields})
    if request.method == "POST" and carried_out(form, lambda data: design.change_system(row, **data)):
        messages.success(request, f"{row.name} was changed.")
        return redirect(request, "solution", slug)
    context = {"project": project, "form": form, "system": row}
    return dialog(request, "portal/system_dialog.html", context, back=reverse("solution", args=[slug]))


@require_http_methods(["GET", "POST"])
def remove_system(request: UserRequest, slug: str, system: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    row = get_object_or_404(design.systems_of(project), slug=system)
    if request.method == "POST":
        design.remove_system(row)
        messages.success(request, f"{row.name} was removed.")
        return redirect(request, "solution", slug)
    return dialog(request, "portal/system_remove_dialog.html", {"project": project, "system": row}, back=reverse("solution", args=[slug]))


# ------------------------------------------------------------------------------------------------------------ architecture


def _board(project: Project) -> dict[str, object]:
    """What the board shows, in a fixed number of queries."""
    settings = design.pending_settings(project)
    systems = list(design.systems_of(project))
    connectors = [connector for system in systems for connector in system.connectors.all()]
    for system in systems:
        for connector in system.connectors.all():
            connector.system = system
    machines = list(project.designed_machines.all())
    machines.sort(key=lambda machine: (machine.kind != MachineKind.EXTERNAL, machine.name))
    placed: dict[int, list[object]] = {machine.pk: [] for machine in machines}
    tray = []
    for connector in connectors:
        placements = list(connector.placements.all())
        taken = {placement.machine_id for placement in placements}
        targets = [
            machine
            for machine in machines
            if machine.pk not in taken and not (connector.system.failover and machine.kind == MachineKind.CORE)
        ]
        for placement in placements:
            placed[placement.machine_id].append({"connector": connector, "targets": targets})
        if missing := connector.system.number_of_runtimes - len(placements):
            tray.append((connector, missing))
    coming = {machine.pk for machine in settings.routers_on + settings.witness_on}
    going = {machine.pk for machine in settings.routers_off + settings.witness_off}
    return {
        "project": project,
        "settings": settings,
        "connectors": connectors,
        "tray": tray,
        "machines": [
            {
                "machine": machine,
                "parts": placed[machine.pk],
                "router": "coming" if machine.pk in coming else "going" if machine.pk in going else "applied" if machine.router else "",
            }
            for machine in machines
        ],
    }


@require_GET
def architecture(request: UserRequest, slug: str) -> HttpResponse:
    project = get_project(request.user, slug)
    return render(request, "portal/design_architecture.html", _board(project), part="portal/_design_board.html")


@require_http_methods(["GET", "POST"])
def add_machine(request: UserRequest, slug: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    form = MachineForm(request.POST or None, initial={"kind": "external"})
    if request.method == "POST" and carried_out(form, lambda data: design.add_machine(project, **data)):
        return redirect(request, "design-architecture", slug)
    context = {"project": project, "form": form, "title": "Add a machine", "submit": "Add"}
    return dialog(request, "portal/form_dialog.html", context, back=reverse("design-architecture", args=[slug]))


@require_http_methods(["GET", "POST"])
def rename_machine(request: UserRequest, slug: str, name: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    machine = get_object_or_404(project.designed_machines, name=name)
    form = NameForm(request.POST or None, initial={"name": machine.name})
    if request.method == "POST" and carried_out(form, lambda data: design.rename_machine(machine, data["name"])):
        return redirect(request, "design-architecture", slug)
    note = "Where it was applied already, the next Apply to environment removes the old machine and adds one of the new name."
    context = {"project": project, "form": form, "title": f"Rename {name}", "submit": "Rename", "note": note}
    return dialog(request, "portal/form_dialog.html", context, back=reverse("design-architecture", args=[slug]))


@require_POST
def remove_machine(request: UserRequest, slug: str, name: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    design.remove_machine(get_object_or_404(project.designed_machines, name=name))
    return _changed_board(request, project)


@require_http_methods(["GET", "POST"])
def place(request: UserRequest, slug: str) -> HttpResponse:
    """The form way. Also what the menu and drag and drop post to, with `origin` for a move."""
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    given = {key: request.GET[key] for key in ("connector", "machine") if request.GET.get(key, "").isdigit()}
    form = PlaceForm(request.POST or None, project=project, initial=given)
    if request.method == "POST" and carried_out(form, lambda data: _placed(**data)):
        return redirect(request, "design-architecture", slug)
    context = {"project": project, "form": form, "title": "Place a connector", "submit": "Place"}
    return dialog(request, "portal/form_dialog.html", context, back=reverse("design-architecture", args=[slug]))


def _placed(connector, machine, origin=None) -> None:  # type: ignore[no-untyped-def]
    if origin and origin != machine:
        design.move(connector, origin, machine)
    elif not origin:
        design.place(connector, machine)


@require_POST
def drop(request: UserRequest, slug: str) -> HttpResponse:
    """Drag and drop, and the menu: a move or a placement, answered with the board."""
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    form = PlaceForm(request.POST, project=project)
    if not form.is_valid():
        raise NotAllowed("That connector or machine is not there any more; load the page again.")
    _placed(**form.cleaned_data)
    return _changed_board(request, project)


@require_POST
def unplace(request: UserRequest, slug: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    form = PlaceForm(request.POST, project=project)
    if not form.is_valid():
        raise NotAllowed("That connector or machine is not there any more; load the page again.")
    design.unplace(form.cleaned_data["connector"], form.cleaned_data["machine"])
    return _changed_board(request, project)


def _changed_board(request: UserRequest, project: Project) -> HttpResponse:
    if not request.htmx:
        return redirect(request, "design-architecture", project.slug)
    return render(request, "portal/_design_board.html", _board(project))


@require_http_methods(["GET", "POST"])
def apply_settings(request: UserRequest, slug: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    context: dict[str, object] = {"project": project}
    if request.method == "POST":
        try:
            applied = design.apply_settings(project, seen=request.POST.get("seen", ""))
        except (Stale, NotAllowed) as refusal:
            context["refusal"] = refusal
        else:
            more = "Next: Create › Flows › Transfer from design." if applied.failover_on or applied.failover_off else ""
            messages.success(request, f"Settings applied. {more}")
            return redirect(request, "design-architecture", slug)
    context["settings"] = design.pending_settings(project)
    return dialog(request, "portal/apply_settings_dialog.html", context, back=reverse("design-architecture", args=[slug]))
