"""Deploy › Releases: new ones from Create, activation now or at a time, and the page of one release."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import OuterRef, Subquery
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET

from deployments import approvals, looks, plans, preview, promotion, releases, rollout, schedules, sheet, windows
from deployments.forms import DeployForm, ReleaseForm, show_refusal
from deployments.models import LIVE, Activation, ActivationStatus, ApprovalRequest, Deployment, Release, StepKind
from deployments.rule_forms import ActivateForm
from portal import components, exports, property_values
from portal.access import get_environment, get_project, may, role_to_deploy
from portal.errors import NotAllowed
from portal.htmx import UserRequest, dialog, redirect, render
from portal.models import Environment, Project, Property, Role, scope_name
from portal.property_uses import router_name, router_uses, uses
from runtimes import failover, reach
from runtimes.models import FailoverGroup, Machine

RELEASES_PER_PAGE = 50
TABS = {
    "contents": "Contents",
    "promotion": "Promotion",
    "properties": "Properties",
    "preflight": "Preflight",
    "deployments": "Deployments",
}


# -------------------------------------------------------------------------------------------------------------------- list


@dataclass
class Pill:
    """What a release is in one environment: chosen, going to be chosen, deployed."""

    environment: Environment
    active: bool = False
    scheduled: list[Activation] = field(default_factory=list)
    deployed: Deployment | None = None  # the last that succeeded there, when it was of this release


def _pills(project: Project) -> dict[int, list[Pill]]:
    """By release id, in the order of promotion. Two queries."""
    found: dict[int, dict[int, Pill]] = defaultdict(dict)
    chosen = Activation.objects.filter(release__project=project, status__in=(ActivationStatus.ACTIVE, *schedules.WAITING))
    for activation in chosen.select_related("environment__project", "created_by").order_by("due_at"):
        pill = found[activation.release_id].setdefault(activation.environment_id, Pill(activation.environment))
        if activation.status == ActivationStatus.ACTIVE:
            pill.active = True
        else:
            pill.scheduled.append(activation)
    last = Deployment.objects.that_ran().filter(environment=OuterRef("pk")).order_by("-id").values("pk")[:1]
    newest = Deployment.objects.filter(pk__in=project.environments.values(last=Subquery(last)))
    for deployment in newest.select_related("environment__project"):
        found[deployment.release_id].setdefault(deployment.environment_id, Pill(deployment.environment)).deployed = deployment
    return {release: sorted(pills.values(), key=lambda pill: pill.environment.position) for release, pills in found.items()}


def _is_active(pills: list[Pill], environment: Environment) -> bool:
    return any(pill.active and pill.environment.pk == environment.pk for pill in pills)


def _rights(request: UserRequest, environment: Environment) -> dict[str, Any]:
    team_id = environment.project.team_id
    return {
        "project": environment.project,
        "environment": environment,
        "may_edit": may(request.user, team_id, role_to_deploy(environment)),
        "role_to_edit": role_to_deploy(environment).label,
        "may_release": may(request.user, team_id, Role.DEVELOPER),
    }


@require_GET
def release_list(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    environment = get_environment(request.user, slug, kind)
    if exports.wanted(request.GET):
        return _as_csv(environment.project)
    found = Paginator(environment.project.releases.select_related("created_by").defer("content").order_by("-number"), RELEASES_PER_PAGE)
    page, pills = found.get_page(request.GET.get("page", 1)), _pills(environment.project)
    context = _rights(request, environment) | {
        "page": page,
        "rows": [(release, pills.get(release.pk, []), _is_active(pills.get(release.pk, []), environment)) for release in page],
        "environments": environment.project.environments.all(),
        "live": _live(environment),
        "failed_activations": _failed_activations(environment),
    }
    return render(request, "deployments/releases.html", context)


def _as_csv(project: Project) -> HttpResponse:
    """Every release, newest first, with the environments where it is active and where it was deployed last."""
    pills = _pills(project)
    rows = [
        (
            release.number,
            release.name,
            release.note,
            release.digest,
            release.created_by.get_username() if release.created_by else "",
            release.created_at,
            ", ".join(pill.environment.name for pill in pills.get(release.pk, []) if pill.active),
            ", ".join(pill.environment.name for pill in pills.get(release.pk, []) if pill.deployed),
        )
        for release in project.releases.select_related("created_by").defer("content").order_by("-number")
    ]
    columns = ["number", "name", "note", "digest", "made_by", "made_at", "active_on", "deployed_on"]
    return exports.as_csv(f"releases-{project.slug}", columns, rows)


def _live(environment: Environment) -> Deployment | None:
    live = Deployment.objects.filter(environment=environment, status__in=LIVE)
    return live.select_related("release", "environment__project", "created_by").first()


def _failed_activations(environment: Environment) -> list[Activation]:
    """Scheduled activations that were refused when they were due, since the last that succeeded: nobody was there to read the reason."""
    recent = Activation.objects.filter(environment=environment).select_related("release").order_by("-id")[:20]
    failed = []
    for activation in recent:
        if activation.status in (ActivationStatus.ACTIVE, ActivationStatus.REPLACED):
            break
        if activation.status in (ActivationStatus.FAILED, ActivationStatus.EXPIRED):
            failed.append(activation)
    return failed


# --------------------------------------------------------------------------------------------------------------------- new


def release_new(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    get_project(request.user, slug, role=Role.DEVELOPER)
    environment = get_environment(request.user, slug, kind)
    form = ReleaseForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            release = releases.build(environment.project, **form.cleaned_data, by=request.user)
        except NotAllowed as refusal:
            show_refusal(form, refusal)
        else:
            messages.success(request, f"Release {release.number} is made. Activate it where it shall run next.")
            for sentence in release.omissions:
                messages.warning(request, sentence)
            return redirect(request, _address(release, environment))
    context = _rights(request, environment) | {"form": form, "drafts": releases.drafts(environment.project)}
    return dialog(request, "deployments/release_new.html", context, back=reverse("releases", args=[slug, kind]))


# ---------------------------------------------------------------------------------------------------------------- activate


def _address(release: Release, environment: Environment) -> str:
    return f"{release.get_absolute_url()}?environment={environment.kind}"


def _release(environment: Environment, number: int) -> Release:
    return get_object_or_404(Release.objects.select_related("project", "created_by"), project=environment.project, number=number)


def rule_findings(request: UserRequest, release: Release, environment: Environment, *, returning: bool = False) -> dict[str, Any]:
    """What the environment's rules forbid now, and whether this person may set it aside."""
    found = promotion.findings(release, environment, at=timezone.now(), returning=returning)
    may_override = may(request.user, environment.project.team_id, promotion.MAY_OVERRIDE)
    return {
        "rule_findings": found,
        "may_override": may_override,
        "can_override": bool(found) and may_override and all(finding.overridable for finding in found),
    }


@dataclass(frozen=True)
class Absent:
    """A machine that could be left out; `left_out` is the person's choice so far."""

    name: str
    sentence: str
    left_out: bool


def release_activate(request: UserRequest, slug: str, kind: str, number: int) -> HttpResponse:
    """Choose the release for the environment, now or at a time. Activating changes no machine."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    release = _release(environment, number)
    rules = promotion.rules_of(environment)
    calendar = promotion.calendar_of(environment, rules)
    initial = {"when": "now", "expires_after_minutes": rules.expires_after_minutes}
    machines = rollout.touched(environment)
    form = ActivateForm(request.POST or None, initial=initial, zone=calendar.zone, machines=[machine.name for machine in machines])
    if request.method == "POST" and form.is_valid():
        try:
            said = _activate(request, form, release, environment)
        except NotAllowed as refusal:
            # Missing values and rules are listed below, each with its link: they are not said twice.
            sentence = refusal.sentence
            if releases.missing(release, environment):
                sentence = f"Release {number} cannot be activated on {environment.name} while values are missing."
            at = refusal.field if refusal.field == "leaving_out" else "at"
            form.add_error(at if form.due_at else refusal.field if refusal.field in form.fields else None, sentence)
        else:
            messages.success(request, said)
            return redirect(request, _address(release, environment))
    context = (
        _rights(request, environment)
        | rule_findings(request, release, environment)
        | {
            "release": release,
            "form": form,
            "missing": releases.missing(release, environment),
            "warnings": releases.warnings(release, environment),
            "active": releases.active(environment),
            "calendar": calendar,
            "zone": calendar.zone.key,
            "leavable": _leavable(form, machines),
        }
    )
    return dialog(request, "deployments/release_activate.html", context, back=_address(release, environment))


def _leavable(form: ActivateForm, machines: Sequence[Machine]) -> list[Absent]:
    """Machines that a scheduled deployment may go without, each with how it is now."""
    chosen, now = form["leaving_out"].value() or [], timezone.now()
    said = {one.name: looks.silence(one, now) if one.is_silent(now=now) else "It reports now." for one in machines}
    return [Absent(name, sentence, name in chosen) for name, sentence in said.items()]


def _activate(request: UserRequest, form: ActivateForm, release: Release, environment: Environment) -> str:
    given, now = form.cleaned_data, timezone.now()
    if form.due_at:
        schedules.schedule(
            release,
            environment,
            due_at=form.due_at,
            by=request.user,
            now=now,
            deploys=given["deploys"],
            leaving_out=given["leaving_out"],
            expires_after_minutes=given["expires_after_minutes"],
            override=given["override"],
        )
        what = "activated and deployed" if given["deploys"] else "activated"
        return f"Release {release.number} will be {what} on {environment.name} on {windows.in_zone(form.due_at, form.zone)}."
    releases.activate(release, environment, by=request.user, now=now, override=given["override"])
    return f"Release {release.number} is active on {environment.name}. Deploy it to change the machines."


# ------------------------------------------------------------------------------------------------------------------ deploy


def verdicts(environment: Environment) -> list[failover.Verdict]:
    """Who leads each group now. Five queries."""
    groups = FailoverGroup.objects.filter(environment=environment, failover=True, members__isnull=False).distinct()
    groups = groups.select_related("group__connector")
    groups = groups.prefetch_related("members__runtime__machine", "members__runtime__connector")
    return [failover.verdict(group, now=timezone.now()) for group in groups]


def release_deploy(request: UserRequest, slug: str, kind: str, number: int) -> HttpResponse:
    """What deploying would do and what forbids it; and, posted, the deployment."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    release, absent = _release(environment, number), absent_machines(request, environment)
    form = DeployForm(request.POST if request.method == "POST" else None, environment=environment, offline=[one.name for one in absent])
    if request.method == "POST" and form.is_valid():
        given = form.cleaned_data
        try:
            deployment = rollout.prepare(
                release,
                on=environment,
                by=request.user,
                now=timezone.now(),
                override=given["override"],
                leaving_out=given["leaving_out"],
            )
        except NotAllowed as refusal:
            form.add_error(None, refusal.sentence)
        else:
            return redirect(request, deployment)
    out = [one.name for one in absent if one.left_out]
    context = _rights(request, environment) | preflight(release, environment, leaving_out=out) | {"release": release, "form": form}
    context |= rule_findings(request, release, environment) | {"absent": absent}
    return dialog(request, "deployments/release_deploy.html", context, back=_address(release, environment))


def absent_machines(request: UserRequest, environment: Environment) -> list[Absent]:
    """For the boxes of the Deploy and Roll back dialogs, which say it in the address until the form is sent."""
    now = timezone.now()
    chosen = (request.POST if request.method == "POST" else request.GET).getlist("leaving_out")
    return [Absent(one.name, looks.silence(one, now), one.name in chosen) for one in rollout.offline(environment, now=now)]


def preflight(release: Release, environment: Environment, *, leaving_out: Collection[str] = ()) -> dict[str, Any]:
    """Steps, findings and leaders. Obstacles that only repeat a missing property are left to the list of missing properties, whose
    entries are linked to their cell."""
    run = preview.preview(release, environment, now=timezone.now(), leaving_out=leaving_out)
    tried = reach.findings(environment, now=timezone.now())
    said = {entry.sentence for entry in run.missing}
    plan = plans.plan_of(environment)
    obstacles = [sentence for sentence in run.obstacles if sentence not in said]
    warnings = dict.fromkeys([*releases.warnings(release, environment), *plans.lint(plan)])
    return {
        "missing": run.missing,
        "tried": [entry for entry in tried if entry.blocks],
        "untried": [entry for entry in tried if not entry.blocks],
        "tried_sentences": {entry.sentence for entry in tried},
        "obstacles": obstacles,
        "warnings": [sentence for sentence in warnings if sentence not in obstacles],
        "balances": plan.steps.filter(kind=StepKind.BALANCE_FAILOVER).exists(),
        "run": run,
        "verdicts": verdicts(environment),
        "live": _live(environment),
        "active": releases.active(environment),
    }


# ------------------------------------------------------------------------------------------------------------- one release


@require_GET
def release_page(request: UserRequest, slug: str, number: int) -> HttpResponse:
    """`?environment=` says for which environment properties, preflight and the primary button are shown, `?tab=` which part."""
    project = get_project(request.user, slug)
    environments = list(project.environments.select_related("project__team"))
    asked = request.GET.get("environment", "")
    environment = next((one for one in environments if one.kind == asked), environments[0] if environments else None)
    if environment is None:
        raise Http404("The project has no environments.")
    release = _release(environment, number)
    tab = request.GET.get("tab", "") if request.GET.get("tab", "") in TABS else "contents"
    active = releases.active(environment)
    deployed = _last_deployed(environment)
    context = _rights(request, environment) | {
        "release": release,
        "environments": environments,
        "tab": tab,
        "tabs": TABS,
        "pills": _pills(project).get(release.pk, []),
        "active": active,
        "live": _live(environment),
        "is_active": active is not None and active.pk == release.pk,
        "is_deployed": deployed is not None and deployed.release_id == release.pk,
        "deployed": deployed,
    }
    context |= {"stops": promotion_stops(request, release, environments)} if tab == "promotion" else _tab(tab, release, environment)
    if tab == "preflight":
        context |= rule_findings(request, release, environment)
    return render(request, "deployments/release.html", context)


@dataclass(frozen=True)
class Stop:
    """One environment on a release's way through them."""

    environment: Environment
    deployed: Deployment | None  # the last success of this release there
    active: bool
    needed: int
    state: approvals.State
    asked: ApprovalRequest | None  # the open request that still holds
    findings: list[promotion.Finding]
    may_edit: bool
    may_approve: bool
    may_withdraw: bool

    @property
    def approved(self) -> bool:
        return not self.state.lacking(self.needed)


def promotion_stops(request: UserRequest, release: Release, environments: list[Environment]) -> list[Stop]:
    """Where the release is on its way, and what each environment asks. A fixed number of queries per environment."""
    now, person = timezone.now(), request.user
    found = []
    for environment in environments:
        rules = promotion.rules_of(environment)
        state = approvals.state(release, environment, now=now)
        asked = approvals.open_request(release, environment) if state.requested or state.suspended else None
        mine = asked is not None and asked.created_by_id == person.pk
        said_yes = asked is not None and any(row.person_id == person.pk and not row.withdrawn_at for row in asked.approvals.all())
        may_edit = may(person, environment.project.team_id, role_to_deploy(environment))
        active = releases.active(environment)
        found.append(
            Stop(
                environment=environment,
                deployed=promotion.passed(release, environment),
                active=active is not None and active.pk == release.pk,
                needed=rules.approvals,
                state=state,
                asked=asked,
                findings=promotion.findings(release, environment, at=now),
                may_edit=may_edit,
                may_approve=may_edit and not mine and not said_yes and not state.suspended,
                may_withdraw=mine or said_yes,
            )
        )
    return found


def _last_deployed(environment: Environment) -> Deployment | None:
    done = Deployment.objects.that_ran().filter(environment=environment).order_by("-pk")
    return done.select_related("release", "environment__project").first()


def _tab(tab: str, release: Release, environment: Environment) -> dict[str, Any]:
    if tab == "contents":
        return {"content": _content(release)}
    if tab == "properties":
        return {"resolved": resolved(release, environment), "missing": releases.missing(release, environment)}
    if tab == "preflight":
        return preflight(release, environment)
    runs = Deployment.objects.filter(release=release).select_related("environment__project", "created_by")
    runs = runs.prefetch_related("begun_by", "rolled_back_by")
    return {"deployments": runs[:100]}


def _content(release: Release) -> dict[str, Any]:
    """The snapshot, with names beside the keys that it stores."""
    content: dict[str, Any] = release.content
    names = {group.get("id"): group.get("name") for group in content.get("groups", [])}
    return content | {
        "flows": [
            flow | {"group_name": names.get(flow.get("group"), "")} | {side: _endpoint(side, flow[side]) for side in components.SIDES}
            for flow in content.get("flows", [])
        ]
    }


def _endpoint(side: components.Side, told: dict[str, Any]) -> dict[str, Any]:
    """Its settings as the form calls them, without those that are empty."""
    kind = told["kind"]
    return {"kind": kind, "settings": {components.label(side, kind, name): text for name, text in told["settings"].items() if text != ""}}


@dataclass(frozen=True)
class Resolved:
    """What one runtime or router gets for one key."""

    place: sheet.Place
    key: str
    used_by: str
    value: Property | None  # None: missing
    source: str


def resolved(release: Release, environment: Environment) -> list[tuple[str, list[Resolved]]]:
    """Every placeholder of the release with its value, by runtime and router. One query."""
    values = {(value.key, value.machine, value.connector): value for value in Property.objects.filter(environment=environment)}
    found: dict[str, list[Resolved]] = defaultdict(list)
    for place, key, used_by in _placeholders(release):
        scopes = [scope for scope in property_values.candidates(place.machine, place.connector) if (key, *scope) in values]
        value = values[(key, *scopes[0])] if scopes else None
        found[place.name].append(Resolved(place, key, used_by, value, scope_name(*scopes[0]) if scopes else ""))
    return sorted(found.items())


def _placeholders(release: Release) -> list[tuple[sheet.Place, str, str]]:
    """Place, key and everything there that uses it, once for each place and key."""
    machines_of = {connector["name"]: connector.get("machines", []) for connector in release.content.get("connectors", [])}
    found: dict[tuple[sheet.Place, str], list[str]] = defaultdict(list)
    for flow in release.content.get("flows", []):
        for machine in machines_of.get(flow["connector"], []):
            place = sheet.Place(f"{machine}.{flow['connector']}", machine, flow["connector"])
            for use in uses(flow["name"], flow):
                found[(place, use.key)].append(use.used_by)
    for machine in release.content.get("machines", []):
        if machine.get("router"):
            place = sheet.Place(router_name(machine["name"], machine["kind"]), machine["name"], "")
            for use in router_uses(machine["name"]):
                found[(place, use.key)].append(use.used_by)
    return [(place, key, "; ".join(dict.fromkeys(used_by))) for (place, key), used_by in found.items()]
