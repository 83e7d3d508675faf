"""What a runtime gets: the most specific value of each key, and placeholders replaced by it."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from django.db.models import Q

from portal.models import Environment, Property
from portal.placeholders import placeholders, replaced


@dataclass(frozen=True)
class Missing:
    """A placeholder without a value: which key, for which runtime ("external01.erp") or router ("router on external01"), used by what."""

    key: str
    runtime: str
    used_by: str  # "flow erp-orders, inbound folder"

    @property
    def sentence(self) -> str:
        return f"{self.runtime} needs a value for {self.key} ({self.used_by})."


def winners(values: Iterable[Property], *, machine: str, connector: str) -> dict[str, Property]:
    """Key -> the row that one runtime gets: runtime scope wins over machine, machine over connector, connector over global."""
    ranked = sorted(
        (row for row in values if row.machine in ("", machine) and row.connector in ("", connector)),
        key=lambda row: (bool(row.machine), bool(row.connector)),
    )
    return {row.key: row for row in ranked}


def lookup(values: Iterable[Property], *, machine: str, connector: str) -> dict[str, str]:
    """Key -> value as one runtime sees it, secrets readable: for what goes to that runtime, never for a page."""
    return {key: row.reveal() for key, row in winners(values, machine=machine, connector=connector).items()}


@dataclass(frozen=True)
class Resolved:
    settings: dict[str, str]
    missing: set[str]  # keys without a value
    secrets: set[str]  # values in the settings that nobody may read in a log


def resolve(settings: Mapping[str, str], values: Iterable[Property], *, machine: str, connector: str) -> Resolved:
    """The settings with every placeholder replaced. Most specific scope wins; an empty value of a present property counts as a value.
    `values` are the environment's properties, read once by the caller.

    A value is taken as it is: "${" inside a value is text, not another placeholder. Raises vault.Unreadable.
    """
    named = placeholders(settings)
    rows = winners((row for row in values if row.key in named), machine=machine, connector=connector)
    known = {key: row.reveal() for key, row in rows.items()}
    return Resolved(
        settings={name: replaced(str(text), known) for name, text in settings.items()},
        missing=named - known.keys(),
        secrets={known[key] for key, row in rows.items() if row.secret and known[key]},
    )


@dataclass(frozen=True)
class Filled:
    """Where values stand, without the values: key -> (machine, connector) of each, and which of them are empty."""

    scopes: Mapping[str, set[tuple[str, str]]]
    empty: Set[tuple[str, str, str]]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, str, bool]]) -> "Filled":
        """From (key, machine, connector, is empty)."""
        scopes: dict[str, set[tuple[str, str]]] = {}
        empty = set()
        for key, machine, connector, is_empty in rows:
            scopes.setdefault(key, set()).add((machine, connector))
            if is_empty:
                empty.add((key, machine, connector))
        return cls(scopes, empty)

    def source(self, key: str, machine: str, connector: str) -> tuple[str, str] | None:
        """The scope that gives it its value, as `winners` chooses; None: it is missing."""
        present = self.scopes.get(key)
        if not present:
            return None
        for scope in ((machine, connector), (machine, ""), ("", connector), ("", "")):
            if scope in present:
                return scope
        return None

    def lacks_address(self, key: str, machine: str) -> bool:
        """An Internal IP or Failover port must not be empty either."""
        scope = self.source(key, machine, "")
        return scope is None or (key, *scope) in self.empty


def filled(environment: Environment) -> Filled:
    """One query that reads no value."""
    rows = Property.objects.filter(environment=environment)
    return Filled.of(rows.annotate(is_empty=Q(value="") & Q(secret=False)).values_list("key", "machine", "connector", "is_empty"))
