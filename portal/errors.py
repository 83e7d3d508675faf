"""The refusals of Baton's acts. Views show the sentence; the API turns each into problem+json with its `code` and HTTP status.

NotAllowed            an act that the present state forbids (409)
├── Invalid           an input that can never be right; `field` names it (400)
├── Busy              somebody else's act is under way (409)
├── Stale             the world moved since the asker looked (412)
├── NotReady          no member can take over now (503)
└── DatabaseAway      the portal's own database is full, locked or away (503)
"""

from collections.abc import Mapping
from typing import ClassVar


class NotAllowed(Exception):  # noqa: N818 - a refusal, said by name
    """One sentence with the reason and, where there is one, the remedy. `reasons` holds one sentence per finding, `faults` the sentence of
    each field that is wrong: more than `field` where several are."""

    code: ClassVar[str] = "not-allowed"
    status: ClassVar[int] = 409

    def __init__(
        self, sentence: str, *, reasons: list[str] | None = None, field: str = "", faults: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.reasons = reasons or []
        self.field = field
        self.faults = dict(faults or ({field: sentence} if field else {}))


class Invalid(NotAllowed):
    code = "invalid"
    status = 400


class Busy(NotAllowed):
    code = "busy"


class Stale(NotAllowed):
    code = "stale"
    status = 412


class NotReady(NotAllowed):
    code = "not-ready"
    status = 503


class DatabaseAway(NotAllowed):
    code = "database-away"
    status = 503
