"""What a runtime gets: the most specific value of each key, and placeholders replaced by it."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from portal.models import Environment, Property
from portal.placeholders import placeholders, replaced


@dataclass(frozen=True)
class Missing:
    """A placeholder without a value: which key, for which runtime ("external01.erp") or router ("router on external01"), used by what."""

    key: str
    runtime: str
    used_by: str  # "flow erp-orders, Folder of the inbound; flow erp-returns, Folder of the inbound"

    @property
    def sentence(self) -> str:
        return f"{self.runtime} needs a value for {self.key} ({self.used_by})."


def once(found: Iterable[Missing]) -> list[Missing]:
    """One for each key and runtime, with all that use it there."""
    merged: dict[tuple[str, str], list[str]] = {}
    for item in found:
        users = merged.setdefault((item.runtime, item.key), [])
        if item.used_by not in users:
            users.append(item.used_by)
    return [Missing(key, runtime, "; ".join(users)) for (runtime, key), users in merged.items()]


@dataclass(frozen=True)
class Lacking:
    """A key without a value, once, with everything that lacks it: what is filled in for all of it."""

    key: str
    needs: Mapping[str, list[str]]  # what uses it -> the runtimes


def by_key(found: Iterable[Missing]) -> list[Lacking]:
    """For a list that people fill in: each key once, in the order in which it was found."""
    merged: dict[str, dict[str, list[str]]] = {}
    for item in found:
        merged.setdefault(item.key, {}).setdefault(item.used_by, []).append(item.runtime)
    return [Lacking(key, needs) for key, needs in merged.items()]


def scopes(machine: str, connector: str) -> list[tuple[str, str]]:
    """Where a runtime takes values from, the widest first: a narrower one wins, so runtime over machine over connector over global."""
    return list(dict.fromkeys((("", ""), ("", connector), (machine, ""), (machine, connector))))


def candidates(machine: str, connector: str) -> list[tuple[str, str]]:
    """The same, the narrowest first: the first of them that is filled in gives the value."""
    return scopes(machine, connector)[::-1]


class Values:
    """The values of an environment, read once by the caller and asked for many runtimes.

    The narrowest of the `scopes` wins; an empty value of a present property is a value.
    """

    def __init__(self, rows: Iterable[Property]) -> None:
        self._scopes: dict[tuple[str, str], dict[str, Property]] = {}
        for row in rows:
            self._scopes.setdefault((row.machine, row.connector), {})[row.key] = row

    def winners(self, machine: str = "", connector: str = "") -> dict[str, Property]:
        """Key -> the row that one runtime gets (without machine and connector: the one for everything)."""
        found: dict[str, Property] = {}
        for scope in scopes(machine, connector):
            found |= self._scopes.get(scope, {})
        return found


@dataclass(frozen=True)
class Resolved:
    settings: dict[str, str]
    missing: set[str]  # keys without a value
    secrets: set[str]  # values in the settings that nobody may read in a log


def resolve(settings: Mapping[str, str], known: Mapping[str, Property]) -> Resolved:
    """The settings with every placeholder replaced by what is `known` there (Values.winners).

    A value is taken as it is: "${" inside a value is text, not another placeholder. Raises vault.Unreadable.
    """
    named = placeholders(settings)
    rows = {key: known[key] for key in named if key in known}
    texts = {key: row.reveal() for key, row in rows.items()}
    return Resolved(
        settings={name: replaced(str(text), texts) for name, text in settings.items()},
        missing=named - texts.keys(),
        secrets={texts[key] for key, row in rows.items() if row.secret and texts[key]},
    )


@dataclass(frozen=True)
class Filled:
    """Where values stand, without the values: keys with a value for everything, (machine, connector) of the narrower ones by key, and which
    are empty."""

    everywhere: Set[str]
    narrower: Mapping[str, Set[tuple[str, str]]]
    empty: Set[tuple[str, str, str]]

    def __contains__(self, key: object) -> bool:
        return key in self.everywhere or key in self.narrower

    @property
    def keys(self) -> set[str]:
        return {*self.everywhere, *self.narrower}

    def source(self, key: str, machine: str, connector: str) -> tuple[str, str] | None:
        """The scope that gives it its value, as Values chooses; None: it is missing."""
        if present := self.narrower.get(key):
            for scope in candidates(machine, connector):
                if scope in present:
                    return scope
        return ("", "") if key in self.everywhere else None

    def lacks_address(self, key: str, machine: str) -> bool:
        """An Internal IP or Failover port must not be empty either."""
        scope = self.source(key, machine, "")
        return scope is None or (key, *scope) in self.empty


def filled(environment: Environment) -> Filled:
    """Three queries that read no value."""
    rows = Property.objects.filter(environment=environment).order_by()
    everywhere = set(rows.filter(machine="", connector="").values_list("key", flat=True))
    narrower: dict[str, set[tuple[str, str]]] = {}
    for key, machine, connector in rows.exclude(machine="", connector="").values_list("key", "machine", "connector"):
        narrower.setdefault(key, set()).add((machine, connector))
    addresses = rows.filter(key__contains=".failover.", value="", secret=False)
    return Filled(everywhere, narrower, set(addresses.values_list("key", "machine", "connector")))
