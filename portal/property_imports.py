"""Many values at once, out of a text: first what would change, line by line, then all of it or nothing."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from portal import properties, property_sheets
from portal.errors import Invalid, Stale
from portal.models import EnvironmentKind, Project
from portal.properties import Edit, Planned
from portal.property_sheets import Line


@dataclass(frozen=True)
class Read:
    """A line and what it would do."""

    line: Line
    planned: Planned | None  # None: it cannot be understood, or changes nothing
    error: str = ""

    @property
    def environment(self) -> str:
        return str(EnvironmentKind(self.line.environment).label)

    @property
    def verb(self) -> str:
        """ "refused", "none", "add", "change" or "kept" (a secret that was left out)."""
        if self.error:
            return "refused"
        return "kept" if self.line.kept else self.planned.verb if self.planned else "none"


@dataclass(frozen=True)
class Preview:
    reads: list[Read]

    @property
    def errors(self) -> list[str]:
        return [f"Line {read.line.number}: {read.error}" for read in self.reads if read.error]

    def count(self, verb: str) -> int:
        return sum(read.verb == verb for read in self.reads)

    @property
    def seen(self) -> str:
        """Of the values as they stand before: whoever applies what was shown says by this what that was."""
        return hashlib.sha256(" ".join(properties.tag(read.planned.before) for read in self.reads if read.planned).encode()).hexdigest()

    @property
    def changes(self) -> int:
        return self.count("add") + self.count("change")


def preview(project: Project, text: str, *, environment: str, editable: Collection[str]) -> Preview:
    """What these lines would change. `environment` is where lines go that name none, `editable` the kinds the person may change."""
    lines = property_sheets.parse(text, environment=environment)
    environments = {found.kind: found for found in project.environments.all()}
    edits: dict[int, Edit] = {}
    errors: dict[int, str] = {}
    for index, line in enumerate(lines):
        if line.error:
            errors[index] = line.error
        elif line.environment not in editable:
            errors[index] = f"you may not change {EnvironmentKind(line.environment).label}."
        elif not line.kept:
            edits[index] = Edit(environments[line.environment], line.key, line.value, line.machine, line.connector, line.secret)
    planned = dict(zip(edits, properties.plan(list(edits.values())), strict=True))
    reads = []
    for index, line in enumerate(lines):
        item = planned.get(index)
        error = errors.get(index) or (item.refusal.sentence if item and item.refusal else "")
        reads.append(Read(line, item, error))
    return Preview(reads)


@transaction.atomic
def apply(project: Project, text: str, *, environment: str, editable: Collection[str], by: Any, seen: str = "") -> Preview:
    """Carry out all lines or none.

    Raises:
        Invalid: one reason per wrong line.
        Stale: a value of those that are changed is another than in the preview whose `seen` is given.
    """
    found = preview(project, text, environment=environment, editable=editable)
    if seen and seen != found.seen:
        raise Stale("Some of these values were changed since they were shown: look at what would change now.", field="text")
    if found.errors:
        count = len(found.errors)
        raise Invalid(f"Nothing is changed: {count} line{'s are' if count > 1 else ' is'} wrong.", reasons=found.errors, field="text")
    edits = [read.planned.edit for read in found.reads if read.planned and read.verb in ("add", "change")]
    properties.set_values(edits, by=by, cause="imported")
    return found
