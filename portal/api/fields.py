"""What the endpoints of all apps share: the filters by project and environment, and lookups that go through the gates."""

from typing import Any, TypeVar

from django import forms
from django.contrib.auth.models import User
from django.db.models import Model
from django_filters import rest_framework as filters
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.viewsets import GenericViewSet

from portal import access
from portal.models import Environment, EnvironmentKind, Role

M = TypeVar("M", bound=Model)


class IdFilter(filters.Filter):  # type: ignore[misc]
    """`?release=7`: an id that a database can hold; anything else is a bad request."""

    field_class = forms.IntegerField

    def __init__(self, **options: Any) -> None:
        super().__init__(min_value=0, max_value=2**63 - 1, **options)


class EnvironmentFilter(filters.FilterSet):  # type: ignore[misc]  # django-filter has no types
    """`?project=webshop&environment=test` on rows that have an environment."""

    project = filters.CharFilter(field_name="environment__project__slug")
    environment = filters.ChoiceFilter(field_name="environment__kind", choices=EnvironmentKind.choices)


def signed_in(request: Request) -> User:
    """The person behind a request that passed IsAuthenticated."""
    assert isinstance(request.user, User)
    return request.user


class ExactInput(serializers.Serializer[Any]):
    """Body of an act. An unknown field is refused, lest a misspelt one change what the act does; every body derives from this."""

    def get_fields(self) -> dict[str, Any]:
        """A refused choice names those that are."""
        found = super().get_fields()
        for field in found.values():
            if isinstance(field, serializers.ChoiceField):
                field.error_messages["invalid_choice"] = f'"{{input}}" is none of: {", ".join(map(str, field.choices))}.'
        return found

    def to_internal_value(self, data: Any) -> Any:
        found = super().to_internal_value(data)
        if unknown := [str(name) for name in data if name not in self.fields]:
            known = ", ".join(self.fields)
            raise serializers.ValidationError({name: [f"There is no such field; known are: {known}."] for name in unknown})
        return found


def body_of(kind: type[serializers.Serializer[Any]], request: Request) -> dict[str, Any]:
    """The body of an act, in the shape of `kind`; raises ValidationError (400) naming the fields."""
    body = kind(data=request.data)
    body.is_valid(raise_exception=True)
    given: dict[str, Any] = body.validated_data
    return given


def if_match(request: Request) -> str:
    """The digest of `If-Match: "…"`: what the caller saw of the thing that is to be changed; empty: whatever it is now."""
    given = str(request.headers.get("If-Match", "")).strip().removeprefix("W/").strip('"')
    return "" if given == "*" else given


class EnvironmentChoice(ExactInput):
    """Body that names an environment of a project known from elsewhere."""

    environment = serializers.ChoiceField(choices=EnvironmentKind.choices, help_text="test, acceptance or production")


class Nothing(serializers.Serializer[Any]):
    """An empty body."""


class Gated(GenericViewSet[M]):
    """Endpoints whose rows hang on an environment: reading is for members (others find nothing: 404), acts name their role."""

    lookup_value_regex = "[0-9a-f-]+"

    def environment_of(self, row: M) -> Environment:
        environment: Environment = row.environment  # type: ignore[attr-defined]
        return environment

    def row_for(self, request: Request, role: Role | None = None) -> M:
        """The row of this address. `role` None asks for the right to change and deploy its environment.

        Raises Http404 for non-members and PermissionDenied naming the role that is needed.
        """
        row: M = self.get_object()
        environment = self.environment_of(row)
        access.require(request.user, environment.project.team_id, role or access.role_to_deploy(environment))
        return row
