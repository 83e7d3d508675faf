"""Operate › Groups: who leads, what was wished, and the buttons that move leadership."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from portal import exports
from portal.access import get_environment, may, role_to_deploy
from portal.errors import NotAllowed, Stale
from portal.htmx import UserRequest, dialog, redirect, render
from portal.models import Environment, Role
from runtimes import boards, failback, failover, profiles
from runtimes.forms import STAYS, FailbackForm, GroupActForm, IsolationForm, ProfileForm
from runtimes.models import FailoverGroup, GroupMember, GroupRequest
from runtimes.protocol import Preference


@require_GET
def groups(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """The table of groups; its part asks for itself every 2 s, `?format=csv` exports it."""
    environment = get_environment(request.user, slug, kind)
    context = groups_context(request, environment)
    if exports.wanted(request.GET):
        return _as_csv(environment, context["boards"])
    return render(request, "runtimes/groups.html", context, part="runtimes/_groups.html")


def _as_csv(environment: Environment, found: Sequence[boards.Board]) -> HttpResponse:
    """One row per member, as the page tells it now."""
    columns = ["group", "connector", "system", "machine", "status", "state", "preference", "reason", "epoch", "since", "last_activity"]
    rows = [
        (
            board.group.name,
            board.group.group.connector.name,
            board.system,
            line.machine.name,
            line.said.status,
            line.said.state,
            line.said.member.runtime.preference,
            line.said.reason,
            board.group.epoch,
            line.since,
            line.last_activity,
            line.said.member.observed_at,
            board.group.last_gap_seconds,
        )
        for board in found
        for line in board.lines
    ]
    return exports.as_csv(f"groups-{environment.project.slug}-{environment.kind}", [*columns, "reported", "last_gap_seconds"], rows)


def groups_context(request: UserRequest, environment: Environment) -> dict[str, Any]:
    """What the table needs; the filter (problems only) lives in the URL."""
    every = boards.boards([environment], now=timezone.now())
    only_problems = request.GET.get("show") == "problems"
    return {
        "environment": environment,
        "boards": boards.troubled(every) if only_problems else every,
        "number_of_groups": len(every),
        "number_troubled": len(boards.troubled(every)),
        "only_problems": only_problems,
        "may_operate": may(request.user, environment.project.team_id, Role.OPERATOR),
        "profile": profiles.in_use(environment),
        "may_deploy": may(request.user, environment.project.team_id, role_to_deploy(environment)),
        "here": request.get_full_path(),
    }


@require_http_methods(["GET", "POST"])
def group_act(request: UserRequest, slug: str, kind: str, pk: UUID, machine: str, act: str) -> HttpResponse:
    """Play, Stop, Disable or Enable one member: first the consequence in words, then the deed."""
    environment = get_environment(request.user, slug, kind, role=Role.OPERATOR)
    group = get_object_or_404(boards.with_members(FailoverGroup.objects.filter(environment=environment)), pk=pk)
    member = member_on(group, machine)
    context = act_context(request, group, member, act)
    form, back = context["form"], context["back"]
    if form.is_valid():
        try:
            asked = ask(group, machine, act, form, actor=request.user.get_username())
            messages.info(request, f"{boards.wish_of(asked)} was asked for; the group {group} shows how it goes.")
            return redirect(request, back)
        except Stale as refusal:  # what the person was told is not so any more: he is told what is, and asked again
            context = act_context(request, group, member, act, anew=True) | {"refusal": refusal}
        except NotAllowed as refusal:
            context["refusal"] = refusal
    return dialog(request, "runtimes/group_act.html", context, back=back)


@require_http_methods(["GET", "POST"])
def isolation(request: UserRequest, slug: str, kind: str, pk: UUID) -> HttpResponse:
    """What the group's members do without a majority: the risk of each choice in words, then the wish."""
    environment = get_environment(request.user, slug, kind, role=Role.OPERATOR)
    group = get_object_or_404(boards.with_members(FailoverGroup.objects.filter(environment=environment)), pk=pk)
    back = way_back(request, environment)
    form = IsolationForm(
        request.POST if request.method == "POST" else None,
        environment=environment,
        name=group.name,
        initial={"policy": group.isolation_policy, "next": back},
    )
    context: dict[str, Any] = {"environment": environment, "group": group, "form": form, "back": back}
    if form.is_valid():
        try:
            asked = failover.set_isolation_policy(group, form.chosen(), actor=request.user.get_username(), now=timezone.now())
            messages.info(request, f"{boards.wish_of(asked)} was asked for; the group {group} shows how it goes.")
            return redirect(request, back)
        except NotAllowed as refusal:
            context["refusal"] = refusal
    return dialog(request, "runtimes/isolation.html", context, back=back)


@require_http_methods(["GET", "POST"])
def timing_profile(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """How fast the environment fails over. A wish: what runs takes it over with the next deployment."""
    environment = get_environment(request.user, slug, kind, to_edit=True)
    back = way_back(request, environment)
    form = ProfileForm(
        request.POST if request.method == "POST" else None,
        environment=environment,
        name=environment.name,
        initial={"profile": environment.timing_profile, "next": back},
    )
    if form.is_valid():
        profiles.choose(environment, form.cleaned_data["profile"])
        messages.success(request, f"{environment.name} has the profile {profiles.in_use(environment).label}; deploy to make it so.")
        return redirect(request, back)
    context = {"environment": environment, "form": form, "used": profiles.in_use(environment), "back": back}
    return dialog(request, "runtimes/timing_profile.html", context, back=back)


@require_http_methods(["GET", "POST"])
def group_failback(request: UserRequest, slug: str, kind: str, pk: UUID) -> HttpResponse:
    """How leadership returns to the preferred leader: each choice with its consequence."""
    environment = get_environment(request.user, slug, kind, role=Role.OPERATOR)
    group = get_object_or_404(FailoverGroup.objects.select_related("environment"), environment=environment, pk=pk)
    back = way_back(request, environment)
    initial = {
        "policy": group.failback,
        "stable_minutes": f"{group.failback_stable_seconds / 60:g}",
        "window_start": group.failback_window_start,
        "window_end": group.failback_window_end,
        "zone": group.failback_zone,
        "next": back,
    }
    form = FailbackForm(request.POST if request.method == "POST" else None, environment=environment, name=group.name, initial=initial)
    context: dict[str, Any] = {"environment": environment, "group": group, "form": form}
    if form.is_valid():
        try:
            zone = form.cleaned_data["zone"]
            failback.set_policy(group, form.chosen(), stable_seconds=form.stable_seconds(), window=form.window(), zone=zone)
            messages.success(request, f"Failback of {group.name}: {failback.WORDS[form.chosen()].lower()}.")
            return redirect(request, back)
        except NotAllowed as refusal:
            context["refusal"] = refusal
    return dialog(request, "runtimes/failback.html", context, back=back)


@require_POST
def group_return(request: UserRequest, slug: str, kind: str, pk: UUID, act: str) -> HttpResponse:
    """Hold or let go a return by policy; extend a switch for a time, or let it stand."""
    environment = get_environment(request.user, slug, kind, role=Role.OPERATOR)
    group = get_object_or_404(FailoverGroup, environment=environment, pk=pk)
    actor, now = request.user.get_username(), timezone.now()
    if act in ("hold", "release"):
        failback.hold(group, held=act == "hold", actor=actor)
    elif act == "extend":
        failback.extend(group, timedelta(hours=1), now=now)
    elif act == "cancel":
        failback.cancel(group, actor=actor, now=now)
    else:
        raise Http404("There is no such act.")
    return redirect(request, way_back(request, environment))


def way_back(request: UserRequest, environment: Environment) -> str:
    """Where the person came from, if it is a page of this portal; else the groups."""
    came_from = request.POST.get("next") or request.GET.get("next", "")
    known = url_has_allowed_host_and_scheme(came_from, {request.get_host()}, require_https=request.is_secure())
    return came_from if known else reverse("groups", args=[environment.project.slug, environment.kind])


def act_context(request: UserRequest, group: FailoverGroup, member: GroupMember, act: str, *, anew: bool = False) -> dict[str, Any]:
    """What the dialog says. Where the person came from is where he goes back to, if it is a page of this portal."""
    if act not in boards.ACTS:
        raise Http404("There is no such act.")
    now = timezone.now()
    found = failover.verdict(group, now=now)
    said = next(one for one in found.members if one.member.pk == member.pk)
    leader = found.leader
    led_by = leader.member.runtime.machine.name if leader else ""
    back = way_back(request, group.environment)
    initial = {"expected_leader": led_by, "next": back}
    preferred = next((one.runtime.machine.name for one in group.members.all() if one.runtime.preference == Preference.LEADER), "")
    return {
        "environment": group.environment,
        "group": group,
        "member": member,
        "act": act,
        "label": boards.ACTS[act],
        "consequence": failover.consequence(group, member, act, now=now),
        "no_use": boards.refusal_of(act, said, found),
        "form": GroupActForm(
            request.POST if request.method == "POST" and not anew else None,
            environment=group.environment,
            name=group.name,
            initial=initial,
        ),
        "back": back,
        # A switch away from the preferred leader may be for a time only.
        "stays": STAYS if preferred and act == ("stop" if machine_name(member) == preferred else "play") else [],
        "preferred": preferred,
    }


def machine_name(member: GroupMember) -> str:
    return member.runtime.machine.name


def member_on(group: FailoverGroup, machine: str) -> GroupMember:
    """The group's member on a machine; 404 when there is none."""
    member = next((member for member in group.members.all() if member.runtime.machine.name == machine), None)
    if member is None:
        raise Http404(f"No member of {group} is on {machine}.")
    return member


def ask(group: FailoverGroup, machine: str, act: str, form: GroupActForm, *, actor: str) -> GroupRequest:
    """The deed of a button. Stop on a leader is a hand-over to any ready follower."""
    now = timezone.now()
    if act in ("play", "stop"):
        leader = (form.cleaned_data["expected_leader"] or None) if act == "play" else machine
        candidate = machine if act == "play" else None
        return failback.switch(group, candidate=candidate, expected_leader=leader, actor=actor, now=now, returns_after=form.returns())
    if act == "disable":
        return failover.disable(group, machine, actor=actor, now=now, expected_leader=form.cleaned_data["expected_leader"])
    return failover.enable(group, machine, actor=actor, now=now)
