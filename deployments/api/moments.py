"""Moments in the API: RFC 3339 with an offset, or a wall clock's time in the environment's own zone."""

from datetime import datetime
from typing import Any

from django.utils import timezone
from django.utils.dateparse import parse_datetime
from rest_framework import serializers

from deployments import promotion, windows
from portal.models import Environment


class ZonedDateTimeField(serializers.DateTimeField):
    """Keeps a time without an offset as it is; `due_moment` then reads it in the environment's zone."""

    def __init__(self, **options: Any) -> None:
        said = "RFC 3339. Without an offset it is the environment's local time, refused when the clocks skip it or show it twice."
        super().__init__(help_text=said, **options)

    def to_internal_value(self, value: Any) -> datetime:
        try:
            found = parse_datetime(value) if isinstance(value, str) else None
        except ValueError:
            found = None
        if found is None:
            raise serializers.ValidationError("Say a date and time such as 2027-01-04T02:00:00+01:00.")
        return found


def due_moment(given: datetime, environment: Environment, *, field: str = "due_at") -> datetime:
    """The moment meant; raises Invalid for a local time that is no single moment."""
    if timezone.is_aware(given):
        return given
    return windows.instant(given, promotion.calendar_of(environment).zone, field=field)
