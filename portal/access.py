"""The only permission gates: every view and every API endpoint enters through one of these.

A non-member gets 404 (he learns nothing), a member without the right 403, in words.
"""

from typing import TypeVar

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.core.exceptions import PermissionDenied
from django.db import models
from django.db.models import QuerySet
from django.http import Http404
from django.shortcuts import get_object_or_404

from portal.models import Environment, EnvironmentKind, Membership, Project, Role, Team

Person = AbstractBaseUser | AnonymousUser
M = TypeVar("M", bound=models.Model)


def entitled(team: Team | int, *, role: Role = Role.VIEWER) -> QuerySet[Membership]:
    """The members whose role in the team includes `role`: the one place that says who may do what, in person or by what he asked for before
    (a schedule, an approval, a promise to a machine). Whose account was closed may nothing."""
    team_id = team.pk if isinstance(team, Team) else team
    return Membership.objects.filter(team_id=team_id, role__in=Role.at_least(role), user__is_active=True)


def role_in(team: Team | int, person: Person) -> Role | None:
    """The person's role in the team, or None for a non-member."""
    role = entitled(team).filter(user_id=person.pk or 0).values_list("role", flat=True).first()
    return Role(role) if role else None


def may(person: Person, team_id: int, role: Role) -> bool:
    """Does the person's role in the team include `role`?"""
    held = role_in(team_id, person)
    return held is not None and held in Role.at_least(role)


def require(person: Person, team_id: int, role: Role) -> None:
    """Raises Http404 for a non-member and PermissionDenied, naming the role that is needed, for a member without it."""
    held = role_in(team_id, person)
    if held is None:
        raise Http404("There is no such page, or it is not yours.")
    if held not in Role.at_least(role):
        raise PermissionDenied(f"This needs the role {role.label.lower()}; yours in this team is {held.label.lower()}.")


def get_team(person: Person, slug: str, *, role: Role = Role.VIEWER) -> Team:
    team = get_object_or_404(Team, slug=slug)
    require(person, team.pk, role)
    return team


def get_project(person: Person, slug: str, *, role: Role = Role.VIEWER) -> Project:
    """The project, for a person whose role in its team includes `role`."""
    project = get_object_or_404(Project.objects.select_related("team"), slug=slug)
    require(person, project.team_id, role)
    return project


def role_to_deploy(environment: Environment) -> Role:
    """Plan, Deploy › Architecture and deploying: a developer in Test, an operator everywhere."""
    return Role.DEVELOPER if environment.kind == EnvironmentKind.TEST else Role.OPERATOR


def get_environment(person: Person, slug: str, kind: str, *, role: Role = Role.VIEWER, to_edit: bool = False) -> Environment:
    """An environment of a project. `to_edit` asks for the right to change and deploy it, which depends on the environment."""
    environment = get_object_or_404(Environment.objects.select_related("project__team"), project__slug=slug, kind=kind)
    require(person, environment.project.team_id, role_to_deploy(environment) if to_edit else role)
    return environment
