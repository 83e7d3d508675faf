"""{% load moments %}: a moment in an environment's own time zone."""

from datetime import datetime
from zoneinfo import ZoneInfo

from django import template

from deployments import windows

register = template.Library()


@register.filter
def in_zone(moment: datetime | None, zone: str) -> str:
    """ "Mon 4 Jan 2027 08:00 Europe/Amsterdam" """
    return windows.in_zone(moment, ZoneInfo(zone)) if moment else "–"
