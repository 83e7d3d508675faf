"""What a process remembers of its groups' isolation policy: one that starts without contact to a majority goes by the last word it heard.

Only groups whose policy is to run alone are remembered, with whether this member was disabled in them; all others stop.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from runtimes.process.files import write_whole
from runtimes.process.records import ControlRecord
from runtimes.protocol import IsolationPolicy


class Remembered(msgspec.Struct, frozen=True):
    """One group's last word."""

    disabled: bool  # was this member, so that it does not run alone either
    unread: bool = False  # what stands there now was written by a newer program, and may say that it is disabled


class Memory:
    """`isolation.json` in the runtime's data folder, kept across launches; written beside the election, never in its way."""

    def __init__(self, path: Path, log: Any) -> None:
        self._path, self._log = path, log
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="isolation")  # starts no thread before the first write
        try:
            self._groups = msgspec.json.decode(path.read_bytes(), type=dict[str, Remembered])
        except FileNotFoundError:
            self._groups = {}
        except (OSError, msgspec.MsgspecError) as error:
            log.error(f"what is remembered of isolation policies cannot be read, so without a majority every group stops: {error}")
            self._groups = {}

    def recall(self, group: str) -> tuple[IsolationPolicy, Remembered]:
        """The policy and what else was heard last."""
        known = self._groups.get(group)
        return (IsolationPolicy.STOP, Remembered(False)) if known is None else (IsolationPolicy.RUN_ALONE, known)

    def learn(self, group: str, control: ControlRecord | None, me: str) -> None:
        """Keep what `control/<group>` says; None: it stands and cannot be read here. A read of it is the last word until the next."""
        known = self._groups.get(group)
        if control is None:
            word = Remembered(known.disabled, unread=True) if known is not None else None
        else:
            word = Remembered(me in control.disabled) if control.isolation == IsolationPolicy.RUN_ALONE else None
        if word == known:
            return
        self._groups = {key: value for key, value in self._groups.items() if key != group} | ({group: word} if word else {})
        self._writer.submit(write_whole, self._path, msgspec.json.encode(self._groups)).add_done_callback(self._written)

    def close(self) -> None:
        """Wait for what is being written."""
        self._writer.shutdown()

    def _written(self, future: "Future[None]") -> None:
        if (error := future.exception()) is not None:
            self._log.error(f"an isolation policy could not be remembered; a restart without a majority goes by the one before: {error}")
