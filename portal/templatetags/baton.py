"""Components of the pages: {% load baton %}. State is always word + icon + colour; a fact carries its age."""

from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Any

from django import template
from django.conf import settings
from django.templatetags.static import static
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html
from django.utils.safestring import SafeString

from portal.ages import in_words

register = template.Library()


@register.simple_tag
def icon(name: str, classes: str = "", label: str = "") -> SafeString:
    """An icon of static/portal/icons.svg; decoration unless `label` says what it means."""
    role = format_html('role="img" aria-label="{}"', label) if label else SafeString('aria-hidden="true"')
    return format_html('<svg class="icon {}" {}><use href="{}#{}"></use></svg>', classes, role, static("portal/icons.svg"), name)


# ------------------------------------------------------------------------------------------------------------------ status


@dataclass(frozen=True)
class Look:
    word: str
    icon: str
    tone: str  # green, blue, yellow, orange, red, gray: portal.css .tone-*


STATUSES = {
    # failover status
    "leader": Look("Leader", "crown", "green"),
    "follower": Look("Follower", "player-pause", "blue"),
    "disabled": Look("Disabled", "ban", "gray"),
    "single-node": Look("Leader (single node)", "crown", "yellow"),
    "isolated": Look("Isolated", "unlink", "red"),
    "unknown": Look("Unknown", "question-mark", "gray"),
    # a group
    "healthy": Look("Healthy", "circle-check", "green"),
    "no-standby": Look("No standby", "shield-half", "orange"),
    "not-healthy": Look("Not healthy", "alert-triangle", "red"),
    # state of a group's or flow's inbounds
    "on": Look("On", "player-play", "green"),
    "off": Look("Off", "player-stop", "gray"),
    "partly": Look("Partly", "alert-triangle", "orange"),
    # runtimes
    "stopped": Look("Stopped", "player-stop", "gray"),
    "starting": Look("Starting", "loader", "blue"),
    "stopping": Look("Stopping", "loader", "blue"),
    "ready": Look("Ready", "circle-check", "green"),
    "hanging": Look("Not answering", "hourglass", "red"),
    "backoff": Look("Restarting later", "clock-pause", "orange"),
    "failed": Look("Failed", "circle-x", "red"),
    "other": Look("Not known to this version", "question-mark", "gray"),
    # routers
    "absent": Look("Not running", "circle-dashed", "gray"),
    "no-majority": Look("No majority", "unlink", "red"),
    # deployments, steps, requests
    "pending": Look("Pending", "clock", "gray"),
    "running": Look("Running", "loader", "blue"),
    "waiting": Look("Waiting for a person", "hand-stop", "yellow"),
    "succeeded": Look("Succeeded", "circle-check", "green"),
    "timed-out": Look("Timed out", "clock-x", "red"),
    "skipped": Look("Skipped", "player-skip-forward", "gray"),
    "cancelled": Look("Cancelled", "ban", "gray"),
    "expired": Look("Expired", "hourglass", "orange"),
    # activations
    "scheduled": Look("Scheduled", "calendar-time", "blue"),
    "active": Look("Active", "flag-check", "green"),
    "replaced": Look("Replaced", "history", "gray"),
    "held": Look("Held", "player-pause", "orange"),
    # agents
    "joined": Look("Connected", "plug-connected", "green"),
    "silent": Look("Silent", "wifi-off", "red"),
    "no-agent": Look("No agent yet", "plug-connected-x", "gray"),
    # design
    "pending-change": Look("Pending", "clock", "yellow"),
    "applied": Look("Applied", "checks", "green"),
}
# Where the same word means something else.
BY_KIND = {
    ("router", "running"): Look("Running", "circle-check", "green"),
    ("preference", "leader"): Look("Prefers to lead", "star-filled", "yellow"),
    ("preference", "backup"): Look("Backup", "star", "gray"),
    ("preference", "none"): Look("No preference", "minus", "gray"),
}


@register.inclusion_tag("components/_status_badge.html")
def status_badge(status: Any, kind: str = "", title: str = "", note: str = "") -> dict[str, Any]:
    """A failover status, state, runtime or router state, run status, activation, agent ("joined", "silent", "no-agent") or preference.

    `kind`: "router" or "preference" where the word alone is ambiguous. `title`: the reason, as a tooltip. `note`: words after the status.
    """
    value = str(status)
    look = (
        BY_KIND.get((kind, value)) or STATUSES.get(value) or Look(value.replace("-", " ").capitalize() or "Unknown", "circle-dot", "gray")
    )
    return {"look": look, "status": value, "title": title, "note": note}


@register.inclusion_tag("components/_production.html")
def environment_badge(environment: Any) -> dict[str, Any]:
    return {"environment": environment}


# -------------------------------------------------------------------------------------------------------------------- time


def _moment(value: Any) -> datetime | None:
    """A datetime, or RFC 3339 text as agents send it; None for nothing or nonsense."""
    moment = value
    if isinstance(value, str):
        try:
            moment = parse_datetime(value)
        except ValueError:
            return None
    if not isinstance(moment, datetime) or not 1 < moment.year < 9999:  # at the ends of time no other zone has a word for it
        return None
    return moment if timezone.is_aware(moment) else moment.replace(tzinfo=UTC)


def _time(value: Any, *, stale_after: float | None, never: str) -> dict[str, Any]:
    moment = _moment(value)
    if moment is None:
        return {"moment": None, "never": never, "stale": stale_after is not None}
    age = (timezone.now() - moment).total_seconds()
    return {
        "moment": moment.astimezone(UTC),
        "words": f"{in_words(age)} ago",  # of what has happened: a clock that is a little ahead makes no future of it
        "stale_after": stale_after,
        "stale": stale_after is not None and age > stale_after,
    }


@register.inclusion_tag("components/_age.html")
def age(value: Any, stale_after: float | None = None, never: str = "never heard of") -> dict[str, Any]:
    """How old a reported fact is, ticking; marked as stale past `stale_after` seconds (default: settings.AGENT_SILENT_AFTER_SECONDS)."""
    return _time(value, stale_after=settings.AGENT_SILENT_AFTER_SECONDS if stale_after is None else stale_after, never=never)


@register.inclusion_tag("components/_age.html")
def ago(value: Any, never: str = "–") -> dict[str, Any]:
    """How long ago something happened; never stale."""
    return _time(value, stale_after=None, never=never)


@register.inclusion_tag("components/_when.html")
def when(value: Any, never: str = "–", seconds: bool = False) -> dict[str, Any]:
    """A moment, local time with UTC on hover (UTC without JavaScript); to the second where that matters."""
    moment = _moment(value)
    return {"moment": moment.astimezone(UTC) if moment else None, "never": never, "seconds": seconds}


@register.filter
def epoch(number: int | None) -> SafeString:
    """A leadership's number as generation·revision, the whole number on hover: 1000000000039 → "1·39"."""
    if not number:
        return SafeString("–")
    generation, revision = divmod(number, 10**12)
    return format_html('<span class="epoch" title="{}">{}·{}</span>', number, generation, revision)


@register.filter
def duration(seconds: Any) -> str:
    """0.0132 → "13 ms", 1.53 → "1.5 s", 75 → "1 min 15 s"."""
    if seconds in (None, ""):
        return "–"
    value = float(seconds)
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


@register.filter
def seconds_since(end: datetime | None, begin: datetime | None) -> float | None:
    """From one moment to another; None while either is not known."""
    return (end - begin).total_seconds() if end and begin else None


@register.filter
def countdown(seconds: float) -> str:
    """200.4 → "3 min 20 s", 7300 → "2 h 1 min": rounded up, so that it ends with 1 s."""
    left = ceil(seconds)
    if left < 60:
        return f"{left} s"
    return f"{left // 60} min {left % 60} s" if left < 3600 else f"{left // 3600} h {left % 3600 // 60} min"


# ------------------------------------------------------------------------------------------------------------- page pieces


@register.inclusion_tag("components/_empty.html")
def empty(title: str, text: str = "", url: str = "", label: str = "", icon: str = "plus", dialog: bool = False) -> dict[str, Any]:
    """An empty state that names the next step and links to it. `dialog`: the address opens in the dialog."""
    return {"title": title, "text": text, "url": url, "label": label, "icon": icon, "dialog": dialog}


@register.simple_block_tag
def capture(content: SafeString) -> SafeString:
    """{% capture as name %}…{% endcapture %}: render once, show twice (a page's title and its heading)."""
    return content


@register.simple_tag
def help_url(chapter: str) -> str:
    """Address of a docs chapter: "failover#statuses"."""
    page, _, anchor = chapter.partition("#")
    try:
        return reverse("docs", args=[page]) + (f"#{anchor}" if anchor else "")
    except NoReverseMatch:
        return ""


@register.inclusion_tag("components/_help.html")
def help(chapter: str, text: str = "Read more") -> dict[str, Any]:  # noqa: A001 - the tag's name
    """Link to a chapter of the docs inside the portal: {% help "failover#statuses" %}."""
    return {"url": help_url(chapter), "text": text}


@register.inclusion_tag("components/_form_field.html")
def field(bound: Any, label: str = "", help_text: str = "", required: bool = False) -> dict[str, Any]:
    """A form field with its label, help and errors."""
    kind = getattr(getattr(bound.field, "widget", None), "input_type", "") or bound.field.widget.__class__.__name__.lower()
    return {
        "field": bound,
        "label": label or bound.label,
        "help_text": help_text or bound.help_text,
        "kind": kind,
        "required": required or bound.field.required,
    }


@register.filter
def get(mapping: Any, key: Any) -> Any:
    """mapping[key], or None."""
    return mapping.get(key) if hasattr(mapping, "get") else None
