"""What an inbound and an outbound are to the loop, and the registry of their kinds.

All their methods but `abort` run in the flow's own worker thread and may block; `abort` is called by the election loop and must not.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from runtimes.process.permits import Duty
from runtimes.protocol import Component, ComponentKind, FailedItem

CHUNK = 1024 * 1024  # bytes; items of any size pass in constant memory


class ConfigError(Exception):
    """The bundle cannot be run: names the flow, the setting and the remedy."""


class NotReady(Exception):  # noqa: N818 - says what happened
    """A connector cannot work yet, or not any more (a folder that cannot be made, or is gone); it is tried again."""


class ItemError(Exception):
    """This very item cannot be delivered: counted, and after bounded tries moved aside with this reason."""


class ItemChanged(Exception):  # noqa: N818 - says what happened
    """The item changed or went away while it was read: this attempt is dropped, nothing is counted."""


class Unavailable(Exception):  # noqa: N818 - says what happened
    """Source or target cannot be reached: not the item's fault, so items wait in the source."""


class Refusing(Unavailable):
    """The target answers but does not take this now (no space left): items wait, and this one lets the others go first."""


class Fenced(Unavailable):
    """The target has seen a higher epoch of this group: this leadership is over."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who took an item from its source; travels with it."""

    flow: str
    group: str  # name; "" for an ungrouped flow
    epoch: int
    machine: str


@dataclass(frozen=True, slots=True)
class Item:
    """One message. `open` gives its bytes in chunks and raises ItemChanged before the end if they are not what they were."""

    id: str
    name: bytes  # as the source wrote it, decodable or not
    size: int
    origin: Origin
    open: Callable[[], AbstractContextManager[Iterator[bytes]]] = field(repr=False)
    handle: Any = field(repr=False, default=None)  # the inbound's own
    sha256: str | None = None  # when the source vouches for it
    properties: Mapping[str, str] = field(default_factory=dict)  # what else the source says of it, for a template


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a connector finds itself: for messages, ids and default places."""

    flow_id: str
    flow: str
    component: Component
    side: str  # "inbound" or "outbound"
    key: str  # the runtime's
    machine: str
    data: Path
    log: Any
    shared: "State | None" = None  # what the flow remembers, where the next leader finds it

    @property
    def state(self) -> "FlowState":
        """What the flow remembers across a change of leader, or, on a single node, across its own end."""
        from runtimes.process.state import FileState  # not above: it speaks of what this module defines

        return FlowState(self.shared, FileState(self.data / "state" / f"{self.flow_id}.json"))

    def text(self, name: str, default: str | None = None) -> str:
        """A setting's text.

        Raises:
            ConfigError: it is missing or empty and has no default.
        """
        value = self.component.settings.get(name, "")
        if value:
            return value
        if default is None:
            raise self.error(name, "is missing", "fill it in on the flow's page")
        return default

    def folder(self, name: str, default: Path | None = None) -> Path:
        value = self.component.settings.get(name, "")
        if not value and default is not None:
            return default
        path = Path(self.text(name))
        if not path.is_absolute():
            raise self.error(name, f"is not an absolute path: {path}", "begin it with /")
        return path

    def seconds(self, name: str, default: float) -> float:
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            raise self.error(name, f"is not a number of seconds: {value}", f"write it as {default:g}") from None
        if not 0.01 <= number <= 3600:
            raise self.error(name, f"is out of range: {value}", "choose between 0.01 and 3600 seconds")
        return number

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.text(name, f"{default:g}")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not least <= number <= most:
            raise self.error(name, f"is not a number from {least:g} to {most:g}: {value}", f"write it as {default:g}")
        return number

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of several words; the first is the default."""
        value = self.text(name, choices[0])
        if value not in choices:
            raise self.error(name, f"is none of {', '.join(choices)}: {value}", "choose one of them")
        return value

    def rows(self, name: str) -> list[str]:
        """The lines of a setting that holds several, without empty ones."""
        return [row.strip() for row in self.text(name, "\n").splitlines() if row.strip()]

    def pairs(self, name: str, sign: str) -> dict[str, str]:
        """Lines of the form `name<sign>value`."""
        found = {}
        for row in self.rows(name):
            key, separator, value = row.partition(sign)
            if not separator or not key.strip():
                raise self.error(name, f"has a line without {sign!r}", f"write each as name{sign}value, one per line")
            found[key.strip()] = value.strip()
        return found

    def error(self, name: str, what: str, remedy: str) -> ConfigError:
        return ConfigError(f"flow {self.flow}: setting {name} of its {self.component.kind} {self.side} {what}; {remedy}")


class State(Protocol):
    """What an inbound must remember: a cursor, the last instant of a timer. Called by worker threads; may block."""

    def read(self, duty: Duty) -> dict[str, Any]:
        """What was last written, by whomever; empty: nothing yet. Raises Unavailable."""

    def write(self, duty: Duty, value: dict[str, Any]) -> None:
        """Keep it. Raises Fenced when another leads, Unavailable when it may not have been kept."""


@dataclass(frozen=True, slots=True)
class FlowState:
    """Under an epoch what the group shares, without one (a single node, run alone) a file of this machine. The file keeps up with the
    group, so that who runs alone goes on from there instead of from the beginning."""

    shared: State | None
    alone: State

    def of(self, duty: Duty) -> State:
        return self.shared if self.shared is not None and duty.epoch > 0 else self.alone

    def read(self, duty: Duty) -> dict[str, Any]:
        return self.of(duty).read(duty)

    def write(self, duty: Duty, value: dict[str, Any]) -> None:
        self.of(duty).write(duty, value)
        self._take_along(duty, value)

    def keep_up(self) -> None:
        """Also where another leads; nothing happens while there is no majority. Called now and then, from a thread of its own."""
        if self.shared is not None:
            nobody = Duty(None, "", 1, float("-inf"))
            with suppress(Unavailable):
                self._take_along(nobody, self.shared.read(nobody))

    def _take_along(self, duty: Duty, value: dict[str, Any]) -> None:
        if value and self.of(duty) is not self.alone:
            with suppress(Unavailable):  # a full disk: what is there is older
                if self.alone.read(duty) != value:
                    self.alone.write(duty, value)


class Failures(Protocol):
    """The items of one flow that were moved aside. Keys are ours, for names may be anything. Called from a thread of their own."""

    def count(self) -> int: ...

    def ordered(self) -> int:
        """How many shall be tried again, and wait for that here."""

    def listed(self) -> tuple[int, list[FailedItem]]:
        """How many there are, and the newest of them."""

    def content(self, key: str, limit: int) -> tuple[bytes, int]:
        """The first bytes of one, and its whole size. Raises KeyError: it is gone."""

    def retry(self, key: str) -> None:
        """Offer it again. Raises KeyError."""

    def discard(self, key: str) -> None:
        """Remove it for good. Raises KeyError."""

    def sweep(self) -> None:
        """Remove what is older, or more, than is kept."""


class Inbound(Protocol):
    """Takes items from a source. An item leaves the source only by `remove` (delivered) or `reject` (moved aside)."""

    failures: Failures

    def __init__(self, setting: Setting) -> None: ...

    def prepare(self) -> None:
        """Make ready to lead, before any duty. Raises NotReady."""

    def begin(self, duty: Duty) -> None:
        """Start under this duty: fence, claim what a former leader left unfinished. Raises Unavailable."""

    def poll(self, duty: Duty) -> Sequence[Item]:
        """What may be taken now, in order; cheap, takes nothing irrevocably. Raises Unavailable."""

    def remove(self, item: Item, duty: Duty) -> None:
        """The target has it. Raises Unavailable."""

    def reject(self, item: Item, reason: str, duty: Duty, tries: int) -> None:
        """Move it aside with the reason and how often it was tried. Raises Unavailable when there is no room for it: it then stays and
        is skipped for a while."""

    def wait_seconds(self) -> float:
        """How long to wait after a poll that brought nothing."""

    def interval_seconds(self) -> float:
        """How often its source is asked: one that has not answered for several of these is silent."""
        return self.wait_seconds()

    def abort(self) -> None:
        """Cut what is in flight: the permit has ended."""

    def answered_at(self) -> float:
        """When its source last answered (wall clock), asked after a poll that went well; 0: not yet."""
        return time.time()

    def ailing(self) -> str:
        """Why what `begin` started does not run at present, a sentence; empty while it runs. Asked after each poll."""
        return ""

    def depth(self) -> tuple[int | None, int | None]:
        """Items that wait in the source, and those that were taken but not yet delivered, as far as they can be counted. Called from a
        thread of its own. Raises Unavailable."""
        return None, None

    def check(self) -> None:
        """Could it work here now, whether it leads or not: cheap, changes nothing, asks nothing of a system that allows only one
        connection. Called from a thread of its own. Raises NotReady or Unavailable; kinds that can tell nothing return."""
        return

    def keep_up(self) -> None:
        """Note down on this machine what the group remembers. Called now and then, from a thread of its own."""
        return

    def rest(self) -> float:
        """The target has taken nothing for a long time. An inbound whose source does not like to wait for an answer that long gives back
        what it holds, takes nothing until it is begun again, and says for how many seconds the target is to be left alone; 0: it holds
        nothing that minds."""
        return 0.0

    def stop(self, duty: Duty) -> None:
        """Nothing more is taken under this duty: begin to stop what `begin` started. Does not wait."""
        return

    def stopped(self) -> bool:
        """Does nothing run any more, and is everything that was taken delivered or aside? Until then `poll` is asked for what was
        taken before, for as long as the duty lasts."""
        return True


class Outbound(Protocol):
    """Gives items to a target."""

    def __init__(self, setting: Setting) -> None: ...

    def prepare(self) -> None: ...

    def check(self) -> None:
        """As an inbound's."""
        return

    def begin(self, duty: Duty) -> None:
        """Fence the target before anything is taken. Raises Unavailable."""

    def deliver(self, item: Item, duty: Duty) -> None:
        """Return only when the target has the item; `duty.check()` immediately before the commit.

        Raises:
            ItemError, ItemChanged, Unavailable, PermitEnded
        """

    def abort(self) -> None: ...


INBOUNDS: dict[ComponentKind, type[Inbound]] = {}
OUTBOUNDS: dict[ComponentKind, type[Outbound]] = {}

I = TypeVar("I", bound=type[Inbound])  # noqa: E741
O = TypeVar("O", bound=type[Outbound])  # noqa: E741


def inbound(kind: ComponentKind) -> Callable[[I], I]:
    """Register an inbound kind."""

    def register(made: I) -> I:
        INBOUNDS[kind] = made
        return made

    return register


def outbound(kind: ComponentKind) -> Callable[[O], O]:
    """Register an outbound kind."""

    def register(made: O) -> O:
        OUTBOUNDS[kind] = made
        return made

    return register


def make_folder(path: Path, what: str) -> bool:
    """Create a folder with its parents where it is missing. Returns: was it.

    Raises:
        NotReady: naming the folder and the remedy.
    """
    try:
        missing = not path.is_dir()
        path.mkdir(parents=True, exist_ok=True)
        return missing
    except OSError as error:
        raise NotReady(f"{what} {path} cannot be made: {error.strerror}; create it, or choose another in the properties") from error


def logger() -> Any:
    return structlog.get_logger()
