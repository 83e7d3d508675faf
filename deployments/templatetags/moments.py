"""{% load moments %}: a moment in an environment's own time zone."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from django import template
from django.utils.html import format_html

from deployments import windows

register = template.Library()


@register.filter
def in_zone(moment: datetime | None, zone: str) -> str:
    """ "Mon 4 Jan 2027 08:00 Europe/Amsterdam", with UTC on hover."""
    if moment is None:
        return "–"
    utc = moment.astimezone(UTC)
    said = windows.in_zone(moment, ZoneInfo(zone))
    return format_html('<time datetime="{}" title="{} UTC">{}</time>', f"{utc:%Y-%m-%dT%H:%M:%SZ}", f"{utc:%Y-%m-%d %H:%M}", said)
