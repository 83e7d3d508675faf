"""A machine of an environment: its tabs, its registration, and what can be done with its runtimes and flows."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.db.models import Q
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from deployments import landscape, machines
from deployments.landscape import MachineBox, RuntimeBox
from portal import access
from portal.access import get_environment, may
from portal.errors import Invalid, NotAllowed
from portal.htmx import UserRequest, dialog, redirect, render
from portal.models import Environment, Property, Role
from runtimes import boards, clocks, failover, fleet, items, joining, membership, protocol, reach, secrecy
from runtimes.forms import ConfirmForm, PreferenceForm
from runtimes.models import LeadershipChange, Machine, Router, Runtime, RuntimeLog

TABS = {
    "overview": "Overview",
    "runtimes": "Runtimes",
    "failover": "Failover",
    "start-stop": "Start/Stop flows",
    "properties": "Properties",
    "log": "Log",
    "history": "History",
}
LIVE_TABS = ("overview", "runtimes", "start-stop", "log")  # a form that a person fills in is never replaced under the hands
LOG_LINES_SHOWN = 300
CHANGES_SHOWN = 100
LEVELS = [level.value for level in protocol.LogLevel]


@require_GET
def machine(request: UserRequest, slug: str, kind: str, name: str) -> HttpResponse:
    """The machine's details, one tab at a time (`?tab=`)."""
    environment = get_environment(request.user, slug, kind)
    tab = request.GET.get("tab", "overview")
    tab = tab if tab in TABS else "overview"
    context = machine_context(request, environment, name, tab)
    context |= TAB_CONTEXTS[tab](request, context["box"])
    return render(request, "deployments/machine.html", context, part="deployments/_machine.html")


def machine_context(request: UserRequest, environment: Environment, name: str, tab: str) -> dict[str, Any]:
    """What every tab needs."""
    person, team = request.user, environment.project.team_id
    box = get_box(environment, name)
    return {
        "environment": environment,
        "box": box,
        "machine": box.machine,
        "tab": tab,
        "tabs": TABS,
        "tab_template": f"deployments/_machine_{tab.replace('-', '_')}.html",
        "is_live": tab in LIVE_TABS,
        "may_operate": may(person, team, Role.OPERATOR),
        "may_deploy": may(person, team, access.role_to_deploy(environment)),
        "may_administer": may(person, team, Role.ADMINISTRATOR),
        "role_to_deploy": access.role_to_deploy(environment).label.lower(),
        "here": request.get_full_path(),
    }


def get_box(environment: Environment, name: str) -> MachineBox:
    """One machine as the landscape draws it; 404 when the environment has none of that name."""
    found = Machine.objects.select_related("router", "environment").prefetch_related(
        "runtimes__connector", "runtimes__desired_bundle", "runtimes__machine"
    )
    machine = get_object_or_404(found, environment=environment, name=name)
    now = timezone.now()
    active = landscape.active_releases([environment]).get(environment.pk)
    return landscape.machine_box(machine, active, boards.boards([environment], now=now, machine=name), now=now)


# -------------------------------------------------------------------------------------------------------------------- tabs


def overview_tab(request: UserRequest, box: MachineBox) -> dict[str, Any]:
    now = timezone.now()
    routers = Router.objects.filter(machine__environment=box.machine.environment).select_related("machine")
    seen = machines.reach(routers, now=now)
    name = box.machine.name
    return {
        "sees": [entry for entry in seen if entry.said_by.name == name],
        "seen_by": [entry for entry in seen if entry.peer.machine == name and entry.said_by.name != name],
        "clock": clocks.in_words(box.machine.clock_ahead_seconds),
        "clock_is_off": abs(box.machine.clock_ahead_seconds or 0.0) > clocks.TOLERATED_SECONDS,
        "change": membership.unfinished(box.machine.environment),
        "going": membership.going(box.machine.environment, list(routers)) if box.router and box.router.router.leaving else "",
        "agent_started_at": clocks.read(box.machine.agent_started_at),
        "orders_pending": box.machine.has_agent and box.machine.orders_taken < box.machine.orders_version,
    }


def runtimes_tab(request: UserRequest, box: MachineBox) -> dict[str, Any]:
    return {}


def failover_tab(request: UserRequest, box: MachineBox) -> dict[str, Any]:
    environment = box.machine.environment
    values = list(Property.objects.filter(environment=environment))
    siblings = Runtime.objects.filter(environment=environment, failover=True).exclude(machine=box.machine)
    routers = Router.objects.filter(machine__environment=environment).select_related("machine")
    seen = machines.reach(routers, now=timezone.now())
    return {
        "settings": machines.settings_of(box.machine, values),
        "suggested": machines.suggested(box.machine, values),
        "preferring": machines.preferring(box, siblings.select_related("machine", "connector")),
        "seen_by": [entry for entry in seen if entry.peer.machine == box.machine.name and entry.said_by.pk != box.machine.pk],
        "preferences": [("leader", "Leader"), ("backup", "Backup"), ("none", "None")],
        "tested": reach.tested([environment], now=timezone.now()).get((environment.pk, box.machine.name)),
    }


def start_stop_tab(request: UserRequest, box: MachineBox) -> dict[str, Any]:
    """Sub-tabs Flows and Groups, of the machine or of one of its runtimes (`?runtime=`)."""
    connector = request.GET.get("runtime", "")
    parts = [part for runtime in box.runtimes if connector in ("", runtime.runtime.connector.name) for part in runtime.parts]
    return {
        "runtime_chosen": connector,
        "view": "groups" if request.GET.get("view") == "groups" else "flows",
        "flows": machines.flow_lines(box, connector),
        "parts": sorted(parts, key=lambda part: (part.board.healthy, part.board.group.name)),
    }


def properties_tab(request: UserRequest, box: MachineBox) -> dict[str, Any]:
    """The values that apply here: global ones, this machine's, its connectors', its runtimes'."""
    connectors = [runtime.runtime.connector.name for runtime in box.runtimes]
    values = Property.objects.filter(environment=box.machine.environment, machine__in=["", box.machine.name])
    return {"values": values.filter(connector__in=["", *connectors])}


def log_tab(request: UserRequest, box: MachineBox) -> dict[str, Any]:
    """The last lines, newest first; filters `?level=` (at least) and `?source=` live in the URL."""
    level, source = request.GET.get("level", ""), request.GET.get("source", "")
    lines = RuntimeLog.objects.filter(machine=box.machine).order_by("-id")
    if level in LEVELS:
        lines = lines.filter(level__in=LEVELS[LEVELS.index(level) :])
    if source:
        lines = lines.filter(source=source)
    sources = [runtime.runtime.key for runtime in box.runtimes]
    shown, hidden = list(lines[:LOG_LINES_SHOWN]), secrecy.pattern(box.machine.environment_id)
    for line in shown:  # of what became a secret since it was written down
        line.text = secrecy.masked(line.text, hidden)
    return {
        "lines": shown,
        "lines_shown": LOG_LINES_SHOWN,
        "levels": LEVELS,
        "sources": [*sources, "router", "agent"],
        "chosen_level": level,
        "chosen_source": source,
    }


def history_tab(request: UserRequest, box: MachineBox) -> dict[str, Any]:
    """Changes of leadership that this machine won or lost, and what people did to its failed items."""
    prefix = box.machine.name + "."
    changes = LeadershipChange.objects.filter(
        Q(runtime__startswith=prefix) | Q(previous__startswith=prefix), group__environment=box.machine.environment
    ).select_related("group")
    done = items.acts(runtime.runtime for runtime in box.runtimes)
    return {
        "changes": [boards.in_words(change) for change in changes.order_by("-at")[:CHANGES_SHOWN]],
        "acts": [(each, items.sentence(each)) for each in done[:CHANGES_SHOWN]],
    }


TAB_CONTEXTS = {
    "overview": overview_tab,
    "runtimes": runtimes_tab,
    "failover": failover_tab,
    "start-stop": start_stop_tab,
    "properties": properties_tab,
    "log": log_tab,
    "history": history_tab,
}


# ------------------------------------------------------------------------------------------------------------ registration


@never_cache
@require_http_methods(["GET", "POST"])
def register_machine(request: UserRequest, slug: str, kind: str, name: str) -> HttpResponse:
    """The command that registers an agent: its one-time token is made by the button, shown once and kept nowhere in clear."""
    environment = get_environment(request.user, slug, kind, role=Role.ADMINISTRATOR)
    machine = get_object_or_404(Machine, environment=environment, name=name)
    token = joining.register(machine, by=request.user) if request.method == "POST" else ""
    context = {
        "environment": environment,
        "machine": machine,
        "token": token,
        "origin": request.build_absolute_uri("/").rstrip("/"),
        "token_minutes": settings.JOIN_TOKEN_VALID_SECONDS // 60,
        **contact_context(machine, since=timezone.now()),
    }
    return render(request, "deployments/register_machine.html", context)


@require_GET
def machine_contact(request: UserRequest, slug: str, kind: str, name: str) -> HttpResponse:
    """The part that waits for the first contact; it stops asking once the agent reported."""
    environment = get_environment(request.user, slug, kind)
    machine = get_object_or_404(Machine, environment=environment, name=name)
    since = clocks.read(request.GET.get("since", ""))
    return render(request, "deployments/_contact.html", {"environment": environment, "machine": machine, **contact_context(machine, since)})


def contact_context(machine: Machine, since: datetime | None) -> dict[str, Any]:
    """Has an agent joined (since the token was made) and reported?"""
    joined, heard = machine.joined_at, machine.last_report_at
    has_joined = joined is not None and (since is None or joined >= since)
    reported = has_joined and joined is not None and heard is not None and heard >= joined
    return {"joined": has_joined, "reported": reported, "since": since}


# -------------------------------------------------------------------------------------------------------------------- acts


@require_http_methods(["GET", "POST"])
def runtime_act(request: UserRequest, slug: str, kind: str, name: str, connector: str, act: str) -> HttpResponse:
    """Start, stop or restart one runtime: first the consequence, then the deed."""
    environment = get_environment(request.user, slug, kind, role=Role.OPERATOR)
    if act not in RUNTIME_ACTS:
        raise Http404("There is no such act.")
    box = runtime_on(get_box(environment, name), connector)
    asked = {"act": act, "label": act.capitalize(), "target": box.runtime.key, "consequences": machines.consequences([box], act)}
    return confirmed(request, environment, [box.runtime], asked)


@require_http_methods(["GET", "POST"])
def restart_runtimes(request: UserRequest, slug: str, kind: str, name: str) -> HttpResponse:
    """Restart every runtime of a machine that should run now."""
    environment = get_environment(request.user, slug, kind, role=Role.OPERATOR)
    running = [box for box in get_box(environment, name).runtimes if box.runtime.desired_running and not box.runtime.held]
    asked = {"act": "restart", "label": "Restart", "target": name, "consequences": machines.consequences(running, "restart")}
    return confirmed(request, environment, [box.runtime for box in running], asked)


RUNTIME_ACTS = {"start": fleet.start, "stop": fleet.stop, "restart": fleet.restart}


def confirmed(request: UserRequest, environment: Environment, runtimes: list[Runtime], asked: dict[str, Any]) -> HttpResponse:
    """The dialog of an act on runtimes, and the act once it is confirmed (on Production by typing the target's name)."""
    back = came_from(request, reverse("architecture", args=[environment.project.slug, environment.kind]))
    form = ConfirmForm(
        request.POST if request.method == "POST" else None, environment=environment, name=asked["target"], initial={"next": back}
    )
    if form.is_valid():
        try:
            with transaction.atomic():  # all or none: one of them may be stopped or held since the dialog was opened
                for runtime in runtimes:
                    RUNTIME_ACTS[asked["act"]](runtime)
            messages.info(request, f"{asked['label']} of {asked['target']} was ordered; its state shows when it is done.")
            return redirect(request, back)
        except NotAllowed as refusal:
            asked["refusal"] = refusal
    return dialog(request, "deployments/runtime_act.html", {"environment": environment, "form": form, **asked}, back=back)


@require_POST
def runtime_preference(request: UserRequest, slug: str, kind: str, name: str, connector: str) -> HttpResponse:
    """Preferred Leader, Backup or None: where Balance failover puts the leadership of the runtime's groups."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    runtime = get_runtime(environment, name, connector)
    form = PreferenceForm(request.POST)
    if not form.is_valid():
        raise Invalid("A preference is leader, backup or none.", field="preference")
    before = preferences_of(environment, runtime)
    failover.prefer(runtime, form.chosen())
    messages.success(request, preference_sentence(runtime, form.chosen(), before, preferences_of(environment, runtime)))
    return redirect(request, came_from(request, reverse("machine", args=[slug, kind, name]) + "?tab=failover"))


def preferences_of(environment: Environment, runtime: Runtime) -> dict[str, str]:
    """Machine name -> preference of the runtime and its siblings."""
    siblings = Runtime.objects.filter(environment=environment, connector=runtime.connector)
    return dict(siblings.values_list("machine__name", "preference"))


def preference_sentence(runtime: Runtime, chosen: protocol.Preference, before: dict[str, str], after: dict[str, str]) -> str:
    """What saving changed, the siblings included."""
    words = {"leader": "preferred Leader", "backup": "Backup", "none": "without preference"}
    parts = [f"{runtime.key} is {words[chosen]} now"]
    siblings = {name: preference for name, preference in after.items() if name != runtime.machine.name}
    for name, preference in siblings.items():
        verb = "is" if before.get(name) == preference else "became"
        parts.append(f"its sibling on {name} {verb} {words[preference]}")
    return "; ".join(parts) + ". Leadership moves with the next Balance failover, or as the group's failback policy says."


@require_POST
def flow_act(request: UserRequest, slug: str, kind: str, name: str, connector: str, flow: str, act: str) -> HttpResponse:
    """Start or stop the inbound of an ungrouped flow."""
    environment = get_environment(request.user, slug, kind, role=Role.OPERATOR)
    if act not in FLOW_ACTS:
        raise Http404("There is no such act.")
    FLOW_ACTS[act](get_runtime(environment, name, connector), flow)
    messages.info(request, f"{act.capitalize()} of the flow was ordered; its state shows when it is done.")
    return redirect(request, came_from(request, reverse("machine", args=[slug, kind, name]) + "?tab=start-stop"))


FLOW_ACTS = {"start": fleet.start_flow, "stop": fleet.stop_flow}


def get_runtime(environment: Environment, name: str, connector: str) -> Runtime:
    found = Runtime.objects.select_related("machine", "connector", "environment")
    return get_object_or_404(found, environment=environment, machine__name=name, connector__name=connector)


def runtime_on(box: MachineBox, connector: str) -> RuntimeBox:
    found = next((runtime for runtime in box.runtimes if runtime.runtime.connector.name == connector), None)
    if found is None:
        raise Http404(f"{box.machine.name} has no runtime of {connector}.")
    return found


def came_from(request: UserRequest, otherwise: str) -> str:
    """The page of this portal that the person came from, as the form or link says."""
    address = request.POST.get("next") or request.GET.get("next", "")
    known = url_has_allowed_host_and_scheme(address, {request.get_host()}, require_https=request.is_secure())
    return address if known else otherwise


@require_http_methods(["GET", "POST"])
def machine_reach(request: UserRequest, slug: str, kind: str, name: str) -> HttpResponse:
    """POST: have the other machines try its address. GET: how that goes."""
    environment = get_environment(request.user, slug, kind, to_edit=request.method == "POST")
    machine = get_object_or_404(Machine.objects.select_related("environment__project"), environment=environment, name=name)
    context: dict[str, Any] = {"environment": environment, "machine": machine}
    if request.method == "POST":
        try:
            reach.ask(machine, actor=request.user.get_username(), now=timezone.now())
        except NotAllowed as refusal:
            if not request.htmx:
                raise
            context["refusal"] = refusal
    if not request.htmx:
        return redirect(request, reverse("machine", args=[slug, kind, name]) + "?tab=failover")
    context["may_deploy"] = may(request.user, environment.project.team_id, access.role_to_deploy(environment))
    context["tested"] = reach.tested([environment], now=timezone.now()).get((environment.pk, name))
    return render(request, "deployments/_reach.html", context)
