"""Filters of lists: a misspelt one is refused, for a list that ignores it shows everything."""

from collections.abc import Iterable
from typing import Any

from django.db.models import QuerySet
from django_filters.rest_framework import DjangoFilterBackend
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request

from portal.models import Project

PAGING = ("limit", "offset")


def refuse_unknown(request: Request, known: Iterable[str]) -> None:
    """Raises ValidationError (400) naming each word of the query that neither filters nor pages."""
    names = [*known, *PAGING]
    if unknown := [name for name in request.query_params if name not in names]:
        raise ValidationError({name: [f"There is no such filter; known are: {', '.join(names)}."] for name in unknown})


class ExactFilterBackend(DjangoFilterBackend):  # type: ignore[misc]  # django-filter has no types
    """Rows that the query asks for. A list (not the rows below one address, whose query is its own) knows its filters and its project."""

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> QuerySet[Any]:
        if getattr(view, "action", "") != "list":
            found: QuerySet[Any] = super().filter_queryset(request, queryset, view)
            return found
        kind = self.get_filterset_class(view, queryset)
        known = kind.base_filters if kind else {}
        refuse_unknown(request, known)
        rows: QuerySet[Any] = super().filter_queryset(request, queryset, view)  # refuses what no database takes, first
        _refuse_foreign(request, known)
        return rows


def _refuse_foreign(request: Request, known: Iterable[str]) -> None:
    """An empty list would say that nothing is there, of a project that is not."""
    slug = request.query_params.get("project", "")
    if slug and "project" in known and not Project.objects.filter(slug=slug, team__memberships__user_id=request.user.pk or 0).exists():
        raise ValidationError({"project": [f"There is no project {slug}, or you are not in its team."]})
