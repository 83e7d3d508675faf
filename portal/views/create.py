"""Create: flows per connector, groups, versions, and the transfer of failover from Design."""

from django.contrib import messages
from django.db import transaction
from django.db.models import Prefetch
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods

from portal import components, creation, exports
from portal.access import get_project
from portal.errors import NotAllowed
from portal.forms import FlowForm, GroupForm, NameForm, VersionForm, carried_out
from portal.htmx import UserRequest, dialog, redirect, render
from portal.models import Connector, Flow, FlowVersion, Group, Project, Role


def _flow(project: Project, connector: str, flow: str) -> Flow:
    versions = Prefetch("versions", FlowVersion.objects.select_related("created_by"))
    rows = Flow.objects.select_related("connector__system", "group").prefetch_related(versions)
    return get_object_or_404(rows, connector__project=project, connector__name=connector, name=flow)


def _address(flow: Flow, name: str = "flow") -> str:
    return reverse(name, args=[flow.connector.project.slug, flow.connector.name, flow.name])


@require_GET
def flows(request: UserRequest, slug: str) -> HttpResponse:
    project = get_project(request.user, slug)
    connectors = list(creation.connectors_of(project))
    for connector in connectors:
        for flow in connector.flows.all():
            flow.latest = creation.latest_version(flow)  # type: ignore[attr-defined]
            flow.unsaved = creation.has_unsaved_changes(flow)  # type: ignore[attr-defined]
            flow.doubled = connector.failover and flow.group is None  # type: ignore[attr-defined]
    if exports.wanted(request.GET):
        return _flows_csv(project, connectors)
    pending = [connector for connector in connectors if connector.failover != connector.system.failover_applied]
    return render(request, "portal/flows.html", {"project": project, "connectors": connectors, "pending": pending})


def _flows_csv(project: Project, connectors: list[Connector]) -> HttpResponse:
    columns = ["connector", "flow", "inbound", "outbound", "group", "version", "edited_since", "saved_at", "saved_by", "description"]
    rows = []
    for connector in connectors:
        for flow in connector.flows.all():
            latest = creation.latest_version(flow)
            told = (
                [latest.number, latest.created_at, latest.created_by and latest.created_by.get_username(), latest.description]
                if latest
                else [""] * 4
            )
            edited = "yes" if latest and creation.has_unsaved_changes(flow) else ""
            named = [connector.name, flow.name, flow.inbound_kind, flow.outbound_kind, flow.group.name if flow.group else ""]
            rows.append([*named, told[0], edited, *told[1:]])
    return exports.as_csv(f"flows-{project.slug}", columns, rows)


def _save(form: FlowForm) -> Flow:
    data = form.cleaned_data
    return creation.save_flow(
        form.flow,
        name=data["name"],
        auto_start=data["auto_start"],
        inbound_kind=data["inbound_kind"],
        inbound_settings=form.settings("inbound"),
        outbound_kind=data["outbound_kind"],
        outbound_settings=form.settings("outbound"),
    )


@require_http_methods(["GET", "POST"])
def add_flow(request: UserRequest, slug: str, connector: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    home = get_object_or_404(Connector.objects.select_related("system"), project=project, name=connector)
    form = FlowForm(request.POST or None, flow=Flow(connector=home))
    if request.method == "POST" and carried_out(form, lambda data: _save(form)):
        messages.success(request, f"{form.flow} was added. Pick its group, then save a version: releases take saved versions only.")
        return redirect(request, "flow", slug, connector, form.flow.name)
    return render(request, "portal/flow.html", {"project": project, "connector": home, "form": form, "flow": None})


@require_http_methods(["GET", "POST"])
def flow(request: UserRequest, slug: str, connector: str, flow: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.VIEWER if request.method == "GET" else Role.DEVELOPER)
    row = _flow(project, connector, flow)
    form = FlowForm(request.POST or None, flow=row)
    if request.method == "POST" and carried_out(form, lambda data: _save(form)):
        if request.POST.get("then") == "version":  # what is on the screen, not what was saved before
            return redirect(request, "flow-version-save", slug, connector, row.name)
        messages.success(request, "Saved as the working copy. Releases take the newest saved version.")
        return redirect(request, "flow", slug, connector, row.name)
    shown = _flow(project, connector, flow)  # as kept: a refused form has left its marks on `row`
    context = {
        "project": project,
        "connector": shown.connector,
        "flow": shown,
        "form": form,
        "latest": creation.latest_version(shown),
        "unsaved": creation.has_unsaved_changes(shown),
        "parts": _described(shown.definition()),
    }
    return render(request, "portal/flow.html", context)


def _described(definition: dict) -> list[dict[str, object]]:  # type: ignore[type-arg]
    """A definition for reading: kinds and settings with their labels."""
    described = []
    for side in ("inbound", "outbound"):
        kind = definition[side]["kind"]
        labels = {setting.name: setting.label for setting in components.REGISTRY[side].get(kind, [])}
        settings = [(labels.get(name, name), value) for name, value in definition[side]["settings"].items()]
        described.append({"side": side.capitalize(), "kind": kind, "settings": settings})
    return described


@require_http_methods(["GET", "POST"])
def remove_flow(request: UserRequest, slug: str, connector: str, flow: str) -> HttpResponse:
    row = _flow(get_project(request.user, slug, role=Role.DEVELOPER), connector, flow)
    if request.method == "POST":
        creation.remove_flow(row)
        messages.success(request, f"{flow} was removed. Releases that hold it keep it; the next one will not have it.")
        return redirect(request, "flows", slug)
    return dialog(request, "portal/flow_remove_dialog.html", {"flow": row}, back=_address(row))


def _tell_namesakes(request: UserRequest, group: Group | None) -> None:
    """Two groups of one name are easily taken for one."""
    if group is not None and (others := creation.namesakes(group)):
        messages.warning(
            request,
            f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'} a group {group.name}, too. They share nothing but the name: "
            f"the group of {group.connector.name} is led by runtimes of {group.connector.name} only. Another name would tell them apart.",
        )


@require_http_methods(["GET", "POST"])
def group(request: UserRequest, slug: str, connector: str, flow: str) -> HttpResponse:
    row = _flow(get_project(request.user, slug, role=Role.DEVELOPER), connector, flow)
    form = GroupForm(request.POST or None, flow=row)

    def pick(data: dict[str, str]) -> None:
        existing = get_object_or_404(row.connector.groups, pk=data["group"]) if data["group"].isdigit() else None
        creation.pick_group(row, existing, new_name=data["new_name"] if data["group"] == form.NEW else "")

    if request.method == "POST" and carried_out(form, pick):
        _tell_namesakes(request, row.group)
        return redirect(request, _address(row))
    return dialog(request, "portal/group_dialog.html", {"flow": row, "form": form}, back=_address(row))


@require_http_methods(["GET", "POST"])
def rename_group(request: UserRequest, slug: str, connector: str, group: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    row = get_object_or_404(Group.objects.select_related("connector"), connector__project=project, connector__name=connector, name=group)
    form = NameForm(request.POST or None, initial={"name": row.name})
    if request.method == "POST" and carried_out(form, lambda data: creation.rename_group(row, data["name"])):
        _tell_namesakes(request, row)
        return redirect(request, "flows", slug)
    note = "Leadership is not disturbed: machines know the group by a key that stays. Its flows need a new version."
    context = {"project": project, "form": form, "title": f"Rename group {group}", "submit": "Rename", "note": note}
    return dialog(request, "portal/form_dialog.html", context, back=reverse("flows", args=[slug]))


@require_http_methods(["GET", "POST"])
def save_version(request: UserRequest, slug: str, connector: str, flow: str) -> HttpResponse:
    row = _flow(get_project(request.user, slug, role=Role.DEVELOPER), connector, flow)
    form = VersionForm(request.POST or None)
    if request.method == "POST" and carried_out(form, lambda data: creation.save_version(row, **data, by=request.user)):
        latest = row.versions.order_by("-major", "-minor", "-patch").first()
        messages.success(request, f"{row} {latest.number if latest else ''} was saved. The next release takes it.")
        return redirect(request, _address(row))
    latest = creation.latest_version(row)
    bumps: tuple[creation.Bump, ...] = ("patch", "minor", "major")
    numbers = {bump: ".".join(str(part) for part in creation.next_number(latest, bump)) for bump in bumps}
    context = {"flow": row, "form": form, "latest": latest, "numbers": numbers}
    return dialog(request, "portal/version_dialog.html", context, back=_address(row))


@require_GET
def version(request: UserRequest, slug: str, connector: str, flow: str, number: str) -> HttpResponse:
    row = _flow(get_project(request.user, slug), connector, flow)
    versions = {version.number: version for version in row.versions.all()}
    shown = versions.get(number) or get_object_or_404(FlowVersion, flow=row, pk=0)
    context = {"project": row.connector.project, "flow": row, "version": shown, "parts": _described(shown.definition)}
    return render(request, "portal/flow_version.html", context)


@require_http_methods(["GET", "POST"])
def transfer(request: UserRequest, slug: str) -> HttpResponse:
    project = get_project(request.user, slug, role=Role.DEVELOPER)
    offers = creation.pending_transfers(project)
    context: dict[str, object] = {"project": project, "offers": offers}
    if request.method == "POST":
        chosen = [offer for offer in offers if f"transfer-{offer.connector.pk}" in request.POST]
        try:
            if not chosen:
                raise NotAllowed("Tick at least one connector.")
            with transaction.atomic():
                for offer in chosen:
                    grouping = {flow.name: request.POST.get(f"group-{flow.pk}", group) for flow, group in offer.flows}
                    creation.transfer_failover(offer.connector, grouping if offer.wanted else None)
        except NotAllowed as refusal:
            context["refusal"] = refusal
        else:
            messages.success(request, f"Transferred: {', '.join(offer.connector.name for offer in chosen)}. Next: save new versions.")
            return redirect(request, "flows", slug)
    return dialog(request, "portal/transfer_dialog.html", context, back=reverse("flows", args=[slug]))
