"""What waits for the portal: events and outcomes on disk until they are stored there, log lines in memory within bounds."""

from collections import deque

import structlog

from runtimes.agent.home import Home
from runtimes.agent.linux import utc_now
from runtimes.protocol import (
    MOST_KEPT,
    LeadershipEnd,
    LeadershipEvent,
    LogLevel,
    LogLine,
    ProcessNews,
    RanAlone,
    Report,
    RequestOutcome,
    RequestStatus,
    Wire,
)

log = structlog.get_logger()
PER_REPORT = 100  # of each, the oldest: a report is stored by one transaction, within the time that its agent waits for the answer
LOG_LINES = 5_000
LOG_LINES_PER_REPORT = 500
OPEN = (RequestStatus.PENDING, RequestStatus.RUNNING)


class Spooled(Wire, frozen=True):
    events: list[LeadershipEvent] = []
    ends: list[LeadershipEnd] = []
    alone: list[RanAlone] = []
    outcomes: list[RequestOutcome] = []


class Spool:
    """What is added is reported in any case; it is on disk when the call returns without an error."""

    def __init__(self, home: Home) -> None:
        self.home = home
        kept = home.read("spool.json", Spooled) or Spooled()
        self.events = list(kept.events)
        self.ends = list(kept.ends)
        self.alone = list(kept.alone)
        self.outcomes = list(kept.outcomes)

    def store(self, news: ProcessNews) -> None:
        """Raises: OSError when it is in memory only; whoever has it shall keep it."""
        if news.event is not None and news.event not in self.events:
            self.events.append(news.event)
        if news.ended is not None and news.ended not in self.ends:
            self.ends.append(news.ended)
        if news.alone is not None and news.alone not in self.alone:
            self.alone.append(news.alone)
        if news.outcome is not None:
            self._add_outcome(news.outcome)
        self.home.write("spool.json", self._spooled())

    def add_outcome(self, outcome: RequestOutcome) -> None:
        self._add_outcome(outcome)
        self.home.remember("spool.json", self._spooled())

    def _add_outcome(self, outcome: RequestOutcome) -> None:
        """One outcome per request waits: an end replaces `running`, never the other way round."""
        known = next((item for item in self.outcomes if item.id == outcome.id), None)
        if known is not None and (known == outcome or known.status not in OPEN):
            return
        if known is not None:
            self.outcomes.remove(known)
        self.outcomes.append(outcome)

    def is_long(self) -> bool:
        """More waits than one report carries."""
        return max(len(self.events), len(self.ends), len(self.alone), len(self.outcomes)) > PER_REPORT

    def next(self) -> Spooled:
        """What the next report carries. Ends go before events: a change is put down to what is known of its former leader then."""
        return Spooled(
            events=self.events[:PER_REPORT] if len(self.ends) <= PER_REPORT else [],
            ends=self.ends[:PER_REPORT],
            alone=self.alone[:PER_REPORT],
            outcomes=self.outcomes[:PER_REPORT],
        )

    def stored(self, report: Report) -> None:
        """The portal has what this report told."""
        if not (report.events or report.ends or report.alone or report.outcomes):
            return
        self.events = [event for event in self.events if event not in report.events]
        self.ends = [end for end in self.ends if end not in report.ends]
        self.alone = [ran for ran in self.alone if ran not in report.alone]
        self.outcomes = [outcome for outcome in self.outcomes if outcome not in report.outcomes]
        self.home.remember("spool.json", self._spooled())

    def _spooled(self) -> Spooled:
        if max(len(self.events), len(self.ends), len(self.alone), len(self.outcomes)) > MOST_KEPT:
            log.warning("spool_full", text=f"More than {MOST_KEPT} events wait for the portal; the oldest are dropped.")
            self.events, self.ends = self.events[-MOST_KEPT:], self.ends[-MOST_KEPT:]
            self.alone, self.outcomes = self.alone[-MOST_KEPT:], self.outcomes[-MOST_KEPT:]
        return Spooled(events=self.events, ends=self.ends, alone=self.alone, outcomes=self.outcomes)


class LogBuffer:
    """Log lines on their way to the portal: the oldest go first when it is away, and their number is told."""

    def __init__(self) -> None:
        self.lines: deque[LogLine] = deque()
        self.dropped = 0
        self.sending = 0

    def add(self, line: LogLine) -> None:
        self.lines.append(line)
        if len(self.lines) > LOG_LINES:
            self.lines.popleft()
            self.dropped += 1
            self.sending = max(0, self.sending - 1)

    def is_long(self) -> bool:
        """More lines wait than one report carries."""
        return len(self.lines) > LOG_LINES_PER_REPORT

    def take(self) -> list[LogLine]:
        """The next lines to send; they stay until `stored()`."""
        if self.dropped:
            text = f"{self.dropped} log lines were dropped while the portal was away"
            self.lines.appendleft(LogLine(runtime="agent", at=utc_now(), level=LogLevel.WARNING, text=text))
            self.dropped = 0
        self.sending = min(len(self.lines), LOG_LINES_PER_REPORT)
        return [self.lines[index] for index in range(self.sending)]

    def stored(self) -> None:
        for _ in range(self.sending):
            self.lines.popleft()
        self.sending = 0
