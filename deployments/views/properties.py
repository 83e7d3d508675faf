"""Deploy › Properties: every key that is used or filled in, and what each runtime gets of it. The grid has views of its own."""

import csv
from collections import defaultdict
from datetime import UTC
from typing import Any

from django.contrib import messages
from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.views.decorators.http import require_GET, require_POST

from deployments import sheet
from deployments.forms import PropertyForm, show_refusal
from portal import properties
from portal.access import get_environment, may, role_to_deploy
from portal.errors import Invalid, NotAllowed, Stale
from portal.htmx import UserRequest, redirect, render
from portal.models import Environment, Property, scope_name
from portal.property_sheets import as_text


def _asked(query: QueryDict) -> dict[str, Any]:
    """The filter of the list as its URL says it."""
    return {"search": query.get("q", ""), "only": [name for name in query.getlist("only") if name in sheet.FILTERS]}


def _context(request: UserRequest, environment: Environment) -> dict[str, Any]:
    return {
        "project": environment.project,
        "environment": environment,
        "environments": environment.project.environments.all(),
        "may_edit": may(request.user, environment.project.team_id, role_to_deploy(environment)),
        "role_to_edit": role_to_deploy(environment).label,
    }


@require_GET
def property_list(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind)
    asked = _asked(request.GET)
    found = sheet.read(environment, **asked, page=request.GET.get("page", 1))
    context = _context(request, environment) | {
        "sheet": found,
        "q": asked["search"],
        "only": asked["only"],
        "filters": [(name, label, found.counts[name]) for name, label in sheet.FILTERS.items()],
        "here": request.get_full_path(),
    }
    return render(request, "deployments/properties.html", context, part="deployments/_properties.html")


def property_edit(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """A form for one value; with htmx it opens inside its row, which the answer then replaces."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    if request.method == "POST":
        return _save(request, environment)
    scope = f"{request.GET.get('machine', '')}|{request.GET.get('connector', '')}"
    initial: dict[str, Any] = {"key": request.GET.get("key", ""), "scope": scope, "next": request.GET.get("next", "")}
    value = None if request.GET.get("add") else _stored(environment, initial["key"], scope)
    if value:
        initial |= {"value": "" if value.secret else value.value, "secret": value.secret}
    else:  # the box says what the value will be: a secret, as the key is elsewhere
        initial["secret"] = initial["key"] in properties.secret_keys(environment.project_id)
    form = PropertyForm(environment=environment, initial=initial | {"add": value is None})
    return _show_form(request, environment, form, value, seen=properties.tag(value))


def _stored(environment: Environment, key: str, scope: str) -> Property | None:
    machine, _, connector = scope.partition("|")
    return Property.objects.filter(environment=environment, key=key, machine=machine, connector=connector).first()


def _save(request: UserRequest, environment: Environment) -> HttpResponse:
    form = PropertyForm(request.POST, environment=environment)
    value = None if request.POST.get("add") == "True" else _stored(environment, request.POST.get("key", ""), request.POST.get("scope", ""))
    if form.is_valid():
        key, (machine, connector), scope = form.cleaned_data["key"], form.scope_of_value, scope_name(*form.scope_of_value)
        try:
            if value is None and _stored(environment, key, form.cleaned_data["scope"]):
                raise Invalid(f"{key} has a value for this scope already ({scope}): edit that one, or pick another scope.", field="scope")
            new, secret, seen = form.cleaned_data["value"], form.cleaned_data["secret"], form.cleaned_data["seen"] or "none"
            kept = properties.change_seen(
                environment, key, new, machine=machine, connector=connector, secret=secret, seen=seen, by=request.user
            )
        except Stale as refusal:
            show_refusal(form, refusal)
            # What is saved next replaces what the person was told of.
            value = _stored(environment, key, form.cleaned_data["scope"])
            form.forget_secret(known=_secret(environment, key, value))
            return _show_form(request, environment, form, value, seen=properties.tag(value))
        except NotAllowed as refusal:
            show_refusal(form, refusal)
        else:
            said = f"{key} is saved ({scope}){', as a secret' if kept and kept.secret and not secret else ''}."
            return _saved(request, environment, key, said, form.cleaned_data["next"])
    key = form.cleaned_data.get("key", request.POST.get("key", ""))
    form.forget_secret(known=_secret(environment, key, value))
    return _show_form(request, environment, form, value, seen=request.POST.get("seen", ""))


def _secret(environment: Environment, key: str, value: Property | None) -> bool:
    return bool(value and value.secret) or key in properties.secret_keys(environment.project_id)


def _show_form(request: UserRequest, environment: Environment, form: PropertyForm, value: Property | None, *, seen: str) -> HttpResponse:
    key = form["key"].value() or ""
    context = _context(request, environment) | {
        "form": form,
        "value": value,
        "seen": seen,
        "key": key,
        "row": sheet.row(environment, key) if key else None,
        "here": form["next"].value() or _address(environment, key),
    }
    return render(request, "deployments/properties_form.html", context, part="deployments/_properties_form.html")


def _address(environment: Environment, key: str) -> str:
    return f"{reverse('properties', args=[environment.project.slug, environment.kind])}?{urlencode({'q': key})}"


def _saved(request: UserRequest, environment: Environment, key: str, sentence: str, back: str, *, refused: bool = False) -> HttpResponse:
    """Back to the list as it was; with htmx only the row and the counts are replaced."""
    if request.htmx:
        context = _context(request, environment) | {
            "row": sheet.row(environment, key),
            "sheet": sheet.read(environment, per_page=1),
            "here": back or _address(environment, key),
            "said": sentence,
            "refused": refused,
        }
        return render(request, "deployments/_properties_saved.html", context)
    (messages.error if refused else messages.success)(request, sentence)
    listing = reverse("properties", args=[environment.project.slug, environment.kind])
    # Only ever back to this very list: an address from a form may lead anywhere.
    return redirect(request, back if back.split("?")[0] == listing else _address(environment, key))


@require_GET
def property_row(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """The row as it is, when its form is closed without saving."""
    environment = get_environment(request.user, slug, kind)
    key = request.GET.get("key", "")
    context = _context(request, environment) | {
        "row": sheet.row(environment, key),
        "here": request.GET.get("next") or _address(environment, key),
    }
    return render(request, "deployments/_properties_row.html", context)


@require_POST
def property_delete(request: UserRequest, slug: str, kind: str, pk: int) -> HttpResponse:
    environment = get_environment(request.user, slug, kind, to_edit=True)
    value = get_object_or_404(Property, environment=environment, pk=pk)
    said, back = f"The value of {value.key} ({value.scope}) is deleted.", request.POST.get("next", "")
    try:
        seen, machine, connector = request.POST.get("seen", "none"), value.machine, value.connector
        properties.change_seen(environment, value.key, None, machine=machine, connector=connector, seen=seen, by=request.user)
    except Stale as refusal:  # the row as it is now, with what was said
        return _saved(request, environment, value.key, refusal.sentence, back, refused=True)
    return _saved(request, environment, value.key, said, back)


@require_GET
def properties_csv(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """The list as filtered, one line per value and one per missing value. Secrets are left out:
    of them it says that they are set. The import reads this very shape."""
    environment = get_environment(request.user, slug, kind)
    found = sheet.find(environment, **_asked(request.GET))
    lacking: dict[str, list[str]] = defaultdict(list)
    for place, keys in found.missing_by_place.items():
        for key in keys:
            lacking[key].append(place)
    name = f"{environment.project.slug}-{environment.kind}-properties-{timezone.now():%Y-%m-%d}.csv"
    response = HttpResponse(content_type="text/csv; charset=utf-8", headers={"Content-Disposition": f'attachment; filename="{name}"'})
    out = csv.writer(response)
    out.writerow(["environment", "key", "scope", "value", "secret", "updated at", "used by", "missing for"])
    for (key, machine, connector, value, secret, at), need in sheet.exported(found):
        scope, moment = (scope_name(machine, connector), at.astimezone(UTC).isoformat(timespec="seconds")) if at else ("", "")
        marked = "yes" if secret else ""
        told = "; ".join(need.used_by), "; ".join(lacking.get(key, ()))
        out.writerow(map(as_text, [environment.kind, key, scope, value, marked, moment, *told]))
    return response
