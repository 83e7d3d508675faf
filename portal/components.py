"""What inbounds and outbounds can be set: one entry per kind. A new kind is one entry here and one connector in runtimes/process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from portal.errors import Invalid
from portal.models import InboundKind, OutboundKind, PropertyKind
from portal.placeholders import check_placeholders, placeholders

Side = Literal["inbound", "outbound"]


@dataclass(frozen=True)
class Setting:
    """One field. `default` is offered for a new flow; `least` and `most` bound a number; `kind` is what a placeholder that stands for the
    whole setting has to be: values of its key are checked against it unless another type is declared."""

    name: str
    label: str
    help: str
    required: bool = True
    default: str = ""
    least: float | None = None
    most: float | None = None
    kind: PropertyKind = PropertyKind.TEXT


_URL = Setting(
    "url",
    "Server",
    "Address of the queue server, as redis://… Usually a placeholder, for it differs by environment.",
    default="${queues.url}",
    kind=PropertyKind.URL,
)
_QUEUE = Setting("queue", "Queue", "Name of the queue. Producer and consumer name the same one.")
_PREFIX = Setting(
    "prefix", "Key prefix", "Goes before every key in a server that is shared with others.", required=False, default="${queues.prefix}"
)

INBOUNDS: dict[str, list[Setting]] = {
    InboundKind.FILE: [
        Setting(
            "folder",
            "Folder",
            "Polled for files. Only the folder itself; names starting with a dot or ending in .tmp or .part are left alone.",
            kind=PropertyKind.FILE,
        ),
        Setting(
            "error_folder",
            "Error folder",
            "Where a file goes, with the reason, that cannot be delivered. Empty: below the runtime's own folder.",
            required=False,
            kind=PropertyKind.FILE,
        ),
        Setting(
            "poll_seconds",
            "Poll every (seconds)",
            "From 0.05 to 3600. Empty: 0.1.",
            required=False,
            least=0.05,
            most=3600,
            kind=PropertyKind.DECIMAL,
        ),
    ],
    InboundKind.QUEUE: [_URL, _QUEUE, _PREFIX],
}
OUTBOUNDS: dict[str, list[Setting]] = {
    OutboundKind.FILE: [
        Setting("folder", "Folder", "Each item is written here as <id>-<original name>, byte for byte.", kind=PropertyKind.FILE),
        Setting("receipts", "Receipts file", "Gets one JSON line per delivery. Empty: none.", required=False, kind=PropertyKind.FILE),
    ],
    OutboundKind.QUEUE: [_URL, _QUEUE, _PREFIX],
    OutboundKind.LOG: [],
}
REGISTRY: dict[str, dict[str, list[Setting]]] = {"inbound": INBOUNDS, "outbound": OUTBOUNDS}


def settings_of(side: Side, kind: str) -> list[Setting]:
    """Raises Invalid for a kind that does not exist."""
    known = REGISTRY[side]
    if kind not in known:
        raise Invalid(f"There is no {side} of kind {kind}: choose {', '.join(known)}.", field=f"{side}_kind")
    return known[kind]


def checked(side: Side, kind: str, given: Mapping[str, str]) -> dict[str, str]:
    """The settings as they are kept: trimmed, empty optional ones left out.

    Raises:
        Invalid: a missing, unknown or malformed setting; `field` is "<side>_<name>".
    """
    fields = {setting.name: setting for setting in settings_of(side, kind)}
    for name in given:
        if name not in fields:
            raise Invalid(f"A {kind} {side} has no setting {name}; it has {', '.join(fields) or 'none'}.", field=f"{side}_{name}")
    kept: dict[str, str] = {}
    for name, setting in fields.items():
        value = str(given.get(name, "")).strip()
        where = f"{side}_{name}"
        if setting.required and not value:
            raise Invalid(f"{setting.label} of the {side} is empty: fill in a value, or a placeholder such as ${{my.{name}}}.", field=where)
        check_placeholders(value, field=where)
        if value and setting.least is not None and not placeholders(value):
            _check_number(value, setting, where)
        if value:
            kept[name] = value
    return kept


def _check_number(value: str, setting: Setting, where: str) -> None:
    try:
        within = (setting.least or 0) <= float(value) <= (setting.most or float("inf"))
    except ValueError:
        within = False
    if not within:
        raise Invalid(f"{setting.label}: {value} is not a number from {setting.least:g} to {setting.most:g}.", field=where)
