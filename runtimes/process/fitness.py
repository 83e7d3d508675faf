"""Can a flow of a failover group still work here? Looked at all the time, where it leads and where it follows (docs/failover.md).

One failing look means nothing. Readiness is withdrawn when no look went well for a while, a look that hangs included, and comes back with
the first that does. A follower's while is shorter: where the same share or broker is away for both, the follower has said so before the
leader looks for somebody to take over, and leadership stays where it is.
"""

LEADS_SECONDS = 30.0  # as long as an inbound may be silent before that is an alarm (flows.SILENT_SECONDS)
FOLLOWS_SECONDS = 15.0
LOOK_SECONDS = 5.0  # between two looks that go well …
LOOK_AGAIN_SECONDS = 1.0  # … and after one that does not, so that readiness is back at once
LONGEST_TURN = 2.0  # the loop turns once a second: what is longer it stood still, and nobody looked


class Fitness:
    """`passed` and `failed` come from the thread that looks, the rest from the election loop."""

    def __init__(self) -> None:
        self.reason = ""  # why it cannot work here; empty while it can, as far as is known
        self._without = 0.0  # seconds awake since a look went well
        self._turned_at: float | None = None
        self._failed = ""
        self._passed = False

    def passed(self) -> None:
        self._failed, self._passed = "", True

    def failed(self, reason: str) -> None:
        self._failed = reason

    def turn(self, now: float, *, leads: bool) -> None:
        """Time has passed. `now`: seconds on any steady clock."""
        if self._passed:
            self._passed, self._without, self.reason = False, 0.0, ""
        elif self._turned_at is not None:
            self._without += min(now - self._turned_at, LONGEST_TURN)
        self._turned_at = now
        if self._without > (LEADS_SECONDS if leads else FOLLOWS_SECONDS):
            self.reason = self._failed or "nobody can say whether its source and target are there: a look at them does not come back"
