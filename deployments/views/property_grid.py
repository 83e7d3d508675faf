"""Deploy › Properties as a grid: keys × environments, machines or runtimes; inline and bulk edit, paste, types, history, undo."""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_GET, require_POST

from deployments import grid, machines, releases, sheet
from deployments.forms import BulkForm, CellForm, PasteForm, TypeForm, show_refusal
from deployments.models import Release
from portal import access, properties, property_imports, property_uses, router_addresses, vault
from portal.access import get_environment, may, role_to_deploy
from portal.errors import NotAllowed, Stale
from portal.htmx import UserRequest, dialog, redirect, render, whole_number
from portal.models import Environment, Project, Property, PropertyChange, PropertyType, Role
from runtimes.models import Machine

HISTORY_PER_PAGE = 100
PREVIEW_KEPT_SECONDS = 3600  # of pasted lines, until they are applied


def _context(request: UserRequest, environment: Environment) -> dict[str, Any]:
    return {
        "project": environment.project,
        "environment": environment,
        "may_edit": may(request.user, environment.project.team_id, role_to_deploy(environment)),
        "role_to_edit": role_to_deploy(environment).label,
    }


def _editable(request: UserRequest, project: Project) -> set[str]:
    """Kinds of the environments whose values the person may change."""
    role = access.role_in(project.team_id, request.user)
    return {row.kind for row in project.environments.all() if role and role in Role.at_least(role_to_deploy(row))}


def _listing(environment: Environment) -> str:
    return reverse("property-grid", args=[environment.project.slug, environment.kind])


@require_GET
def grid_page(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind)
    by = request.GET.get("by", "environments")
    by = by if by in grid.VIEWS else "environments"
    only = [name for name in request.GET.getlist("only") if name in sheet.FILTERS]
    search = request.GET.get("q", "")
    found = grid.read(environment, by=by, search=search, only=only, page=request.GET.get("page", 1))
    context = _context(request, environment) | {
        "grid": found,
        "sheet": found,
        "editable": _editable(request, environment.project),
        "q": search,
        "only": only,
        "by": by,
        "views": grid.VIEWS.items(),
        "filters": [(name, label, found.counts[name]) for name, label in sheet.FILTERS.items()],
    }
    return render(request, "deployments/property_grid.html", context, part="deployments/_property_grid.html")


def cell(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """GET: the form in a cell. POST: keep or delete its value, and answer with the row."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    form = CellForm(request.POST if request.method == "POST" else {"act": "set", **request.GET.dict()})
    if not form.is_valid():
        raise Http404("There is no such cell.")
    given = form.cleaned_data
    key, scope = given["key"], (given["machine"], given["connector"])
    row = grid.row(environment, key, given["by"])
    place = next((some for some in row.cells if some.column.environment.pk == environment.pk and some.column.scope == scope), None)
    if place is None:
        raise Http404("There is no such cell.")
    context = _context(request, environment) | {"row": row, "cell": place, "by": given["by"], "newline": "\n"}
    kept = place.value if place.own else None
    if request.method != "POST":
        shown = place.value.value if place.value else ""
        return render(
            request, "deployments/_property_cell_form.html", context | {"value": shown, "kept": kept, "seen": properties.tag(kept)}
        )
    wished = given["value"] if given["act"] == "set" else None
    try:
        if not (kept and kept.secret and wished == ""):
            machine, connector = scope
            properties.change_seen(
                environment, key, wished, machine=machine, connector=connector, seen=given["seen"] or "none", by=request.user
            )
    except NotAllowed as refusal:
        hidden = row.secret or row.expectation.kind == "secret"
        more = {"value": "" if hidden else given["value"], "kept": kept, "refusal": refusal}
        # Whoever reads that somebody else changed it may decide: what he saves next replaces what he was told of.
        more |= {"seen": properties.tag(kept), "stale": True} if isinstance(refusal, Stale) else {"seen": given["seen"]}
        return render(request, "deployments/_property_cell_form.html", context | more)
    row = grid.row(environment, key, given["by"])
    editable = _editable(request, environment.project)
    whole = sheet.find(environment)
    answer = render(request, "deployments/_property_cell_saved.html", context | {"row": row, "sheet": whole, "editable": editable})
    answer["HX-Retarget"], answer["HX-Reswap"] = "closest tr", "outerHTML"
    return answer


def _columns(request: UserRequest, environment: Environment, by: str) -> list[grid.Column]:
    editable = _editable(request, environment.project)
    return [column for column in grid.columns_of(environment, by) if column.environment.kind in editable]


def bulk(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """The same value for many keys: a dialog that was opened with the chosen keys."""
    environment = get_environment(request.user, slug, kind)
    given = request.POST if request.method == "POST" else request.GET
    by = given.get("by", "environments")
    columns = {
        f"{column.environment.kind}|{column.machine}|{column.connector}": column
        for column in _columns(request, environment, by if by in grid.VIEWS else "environments")
    }
    if not columns:
        raise PermissionDenied("You may not change values here.")
    choices = [(name, column.name) for name, column in columns.items()]
    form = BulkForm(request.POST if "columns" in request.POST or "act" in request.POST else None, columns=choices)
    keys, newest = given.getlist("keys"), properties.newest_change(environment.project)
    seen = whole_number(request.POST.get("seen", ""), digits=18)
    seen = newest if seen is None else seen
    if form.is_bound and form.is_valid():
        value = form.cleaned_data["value"] if form.cleaned_data["act"] == "set" else None
        chosen = [columns[name] for name in form.cleaned_data["columns"]]
        edits = [properties.Edit(column.environment, key, value, *column.scope) for key in form.cleaned_data["keys"] for column in chosen]
        try:
            done = properties.set_together(edits, seen=seen, by=request.user)
        except Stale as refusal:
            show_refusal(form, refusal)
            seen = newest  # what is set next replaces what he was told of
        except NotAllowed as refusal:
            show_refusal(form, refusal)
        else:
            count = sum(item.verb != "none" for item in done)
            messages.success(request, f"{count} value{'s' if count != 1 else ''} changed. They work from the next deployment on.")
            return redirect(request, f"{_listing(environment)}?{urlencode({'by': by})}")
    context = _context(request, environment) | {"form": form, "keys": keys, "by": by, "seen": seen}
    return dialog(request, "deployments/property_bulk.html", context, back=_listing(environment))


def paste(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """Lines of a spreadsheet or a file: first what they would change, then all of it or nothing."""
    environment = get_environment(request.user, slug, kind)
    editable = _editable(request, environment.project)
    if not editable:
        raise PermissionDenied("You may not change values here.")
    given = request.POST.copy() if request.method == "POST" else None
    purpose = f"paste {request.user.pk} {environment.pk}"
    if given and given.get("sealed"):  # the previewed lines, which may hold secrets
        given["text"] = vault.unseal_for(purpose, str(given["sealed"]), seconds=PREVIEW_KEPT_SECONDS)
    form = PasteForm(given, request.FILES or None)
    context = _context(request, environment) | {"form": form}
    if form.is_bound and form.is_valid():
        text = form.cleaned_data["text"]
        if request.POST.get("act") == "apply":
            try:
                seen = request.POST.get("seen", "")
                done = property_imports.apply(environment.project, text, environment=kind, editable=editable, by=request.user, seen=seen)
            except Stale as refusal:
                messages.error(request, refusal.sentence)
            except NotAllowed:
                pass  # the preview below says it line by line
            else:
                messages.success(request, f"{done.changes} values were imported. They work from the next deployment on.")
                return redirect(request, _listing(environment))
        found = property_imports.preview(environment.project, text, environment=kind, editable=editable)
        counts = [(verb, found.count(verb)) for verb in ("refused", "add", "change", "none", "kept")]
        secret = any(read.planned and read.planned.secret for read in found.reads)
        shown = PasteForm(initial={"text": "" if secret else text})  # a secret that was typed does not come back
        context |= {"preview": found, "counts": counts, "sealed": vault.seal_for(purpose, text), "form": shown}
    return render(request, "deployments/property_paste.html", context)


@require_GET
def key_page(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """All of one key: its type, where it is used, its values in every environment, its history."""
    environment = get_environment(request.user, slug, kind)
    return _show_key(request, environment, request.GET.get("key", ""))


def _show_key(request: UserRequest, environment: Environment, key: str, form: TypeForm | None = None) -> HttpResponse:
    project = environment.project
    declared = PropertyType.objects.filter(project=project, key=key).select_related("updated_by").first()
    definitions = property_uses.Mentions(project.pk, naming=[key]).definitions({key})
    guess = properties.failover_expectation(key) or properties.guessed(definitions, {key}).get(key)
    initial = {"key": key, "kind": declared.kind if declared else ""}
    context = _context(request, environment) | {
        "key": key,
        "row": sheet.row(environment, key),
        "declared": declared,
        "guess": guess,
        "fixed": router_addresses.is_failover_key(key),
        "form": form or TypeForm(initial=initial, guess=f"{guess.label}, for {guess.because}" if guess else ""),
        "may_declare": may(request.user, project.team_id, Role.DEVELOPER),
        "values": Property.objects.filter(environment__project=project, key=key)
        .select_related("environment", "updated_by")
        .order_by("environment__position", "machine", "connector"),
        "changes": PropertyChange.objects.filter(environment__project=project, key=key).select_related("environment", "by")[:50],
        "here": reverse("properties", args=[project.slug, environment.kind]) + f"?{urlencode({'q': key})}",
    }
    return render(request, "deployments/property_key.html", context)


@require_POST
def declare_type(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, role=Role.DEVELOPER)
    form = TypeForm(request.POST)
    if form.is_valid():
        key = form.cleaned_data["key"]
        try:
            properties.declare_type(environment.project, key, form.cleaned_data["kind"], by=request.user)
        except NotAllowed as refusal:
            show_refusal(form, refusal)
            return _show_key(request, environment, key, form)
        messages.success(request, f"The type of {key} is kept.")
    address = reverse("property-key", args=[slug, kind])
    return redirect(request, f"{address}?{urlencode({'key': request.POST.get('key', '')})}")


@require_GET
def history(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind)
    changes = PropertyChange.objects.filter(environment=environment).select_related("by")
    if key := request.GET.get("q", "").strip().lower():
        changes = changes.filter(key__contains=key)
    page = Paginator(changes, HISTORY_PER_PAGE).get_page(request.GET.get("page", 1))
    last = properties.last_act(environment)
    context = _context(request, environment) | {"page": page, "q": key, "last": last, "may_undo": _may_undo(request, last)}
    return render(request, "deployments/property_history.html", context)


def _may_undo(request: UserRequest, last: properties.LastAct | None) -> bool:
    if last is None:
        return False
    editable = _editable(request, last.environments[0].project)
    return {environment.kind for environment in last.environments} <= editable


@require_POST
def undo(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, to_edit=True)
    if not _may_undo(request, last := properties.last_act(environment)) and last:
        raise PermissionDenied("The last change touched environments that you may not change.")
    try:
        seen = UUID(request.POST.get("act", ""))
    except ValueError:
        raise Http404("There is no such change.") from None
    done = properties.undo_last(environment, by=request.user, act=seen)
    count = sum(item.verb != "none" for item in done)
    messages.success(request, f"Undone: {count} value{'s are' if count != 1 else ' is'} what {'they were' if count != 1 else 'it was'}.")
    return redirect(request, reverse("property-history", args=[slug, kind]))


@require_POST
def fill(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """Repair on the spot: a missing value, filled in where it is missed, for everything in the environment."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    release = get_object_or_404(Release, project=environment.project, number=whole_number(request.POST.get("release", "")))
    key = request.POST.get("fill", "")
    value = next((text for text in request.POST.getlist(f"value:{key}") if text), "")
    context = _context(request, environment) | {"release": release, "filled_in": True}
    try:
        properties.change_seen(environment, key, value, seen="none", by=request.user)
    except NotAllowed as refusal:
        context["refusal_of_fill"] = refusal
    return render(request, "deployments/_missing.html", context | {"missing": releases.missing(release, environment)})


# ------------------------------------------------------------------------------------------------------- addresses of routers


def _failover_tab(environment: Environment, machine: str) -> str:
    return reverse("machine", args=[environment.project.slug, environment.kind, machine]) + "?tab=failover"


@require_POST
def one_host(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """All machines of the environment stand on one host on purpose, or no longer."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    marked = request.POST.get("one_host") == "yes"
    router_addresses.mark_one_host(environment, marked, by=request.user)
    messages.success(request, f"All machines of {environment.name} {'stand on one host' if marked else 'stand on hosts of their own'}.")
    return redirect(request, _failover_tab(environment, request.POST.get("machine", "")))


@require_POST
def accept_suggestion(request: UserRequest, slug: str, kind: str, name: str) -> HttpResponse:
    """Take the address and the free port that the machine's agent measured, where no value stands yet or that port is taken."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    machine = get_object_or_404(Machine, environment=environment, name=name)
    wished = machines.suggested(machine, list(Property.objects.filter(environment=environment, key__contains=".failover.")))
    if not wished:
        raise NotAllowed(f"The agent of {name} suggests nothing that is not filled in already.")
    properties.set_values([properties.Edit(environment, key, value) for key, value in wished.items()], by=request.user, cause="suggested")
    said = " and ".join(f"{key} = {value}" for key, value in wished.items())
    messages.success(request, f"Filled in as the agent measured: {said}. It works from the next deployment on.")
    return redirect(request, _failover_tab(environment, name))
