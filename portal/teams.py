"""Teams: their members and projects."""

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from portal import access
from portal.errors import Invalid, NotAllowed
from portal.models import NAME, Environment, EnvironmentKind, Membership, Project, Role, Team


def add_member(team: Team, *, username: str, role: str) -> Membership:
    """Raises Invalid for an account that does not exist, or that is a member already."""
    user = User.objects.filter(username=username.strip(), is_active=True).first()
    if user is None:
        raise Invalid(f"There is no account {username}: have it made in the admin site first.", field="username")
    membership, added = Membership.objects.get_or_create(team=team, user=user, defaults={"role": Role(role)})
    if not added:
        raise Invalid(f"{user} is {membership.get_role_display()} already: change the role in the list.", field="username")
    return membership


def _keep_an_administrator(membership: Membership) -> None:
    # The team's row is locked, so that two administrators cannot remove each other in the same moment (SQLite: one writer anyway).
    Team.objects.select_for_update().get(pk=membership.team_id)
    others = access.entitled(membership.team_id, role=Role.ADMINISTRATOR).exclude(pk=membership.pk)
    if membership.role == Role.ADMINISTRATOR and not others.exists():
        raise NotAllowed(f"{membership.user} is the last administrator of {membership.team}: make somebody else one first.")


@transaction.atomic
def change_role(membership: Membership, role: str) -> Membership:
    """Raises NotAllowed for the last administrator."""
    if Role(role) != Role.ADMINISTRATOR:
        _keep_an_administrator(membership)
    membership.role = Role(role)
    membership.save(update_fields=["role"])
    return membership


@transaction.atomic
def remove_member(membership: Membership) -> None:
    """Raises NotAllowed for the last administrator."""
    _keep_an_administrator(membership)
    membership.delete()


@transaction.atomic
def create_project(team: Team, *, name: str, slug: str, description: str = "") -> Project:
    """A project with its environments Test, Acceptance and Production. Raises Invalid for a slug that is not allowed or taken."""
    try:
        NAME(slug)
    except ValidationError as error:
        raise Invalid(f'"{slug}" is no name for addresses. {error.messages[0]}', field="slug") from None
    try:
        with transaction.atomic():
            project = Project.objects.create(team=team, name=name, slug=slug, description=description)
    except IntegrityError:
        raise Invalid(f"{slug} is taken by another project, perhaps of another team: choose another one.", field="slug") from None
    Environment.objects.bulk_create(
        Environment(project=project, kind=kind, position=position) for position, kind in enumerate(EnvironmentKind)
    )
    return project
