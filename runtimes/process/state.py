"""What an inbound must remember across a change of leader: a cursor, the last instant of a timer.

In failover it stands in etcd, `state/<flow id>`, where the group's next leader finds it. A write compares `leaders/<group>` with the epoch
that it is made under, in the same transaction: whoever no longer leads writes nothing. A single node keeps a file.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtimes.process.connectors.base import Fenced, Unavailable
from runtimes.process.etcd import Etcd, OutcomeUnknown, put, read, unchanged
from runtimes.process.files import write_whole
from runtimes.process.permits import Duty
from runtimes.process.records import leader_key
from runtimes.protocol import GENERATION_STEP

ASK_SECONDS = 2.0  # one question to the router
LARGEST = 256 * 1024  # bytes of one state
_WRITES = threading.Lock()  # a flow's worker, and what keeps its file up, write the same one


class FileState:
    """For a single node, and for a flow without a group."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, duty: Duty) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            words = f"what the flow remembers cannot be read from {self._path}: {error}; without that file it begins anew"
            raise Unavailable(words) from error
        return found if isinstance(found, dict) else {}

    def write(self, duty: Duty, value: dict[str, Any]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _WRITES:
                write_whole(self._path, json.dumps(value).encode())
        except OSError as error:
            raise Unavailable(f"what the flow remembers cannot be written to {self._path}: {error.strerror}") from error


class GroupState:
    """For a flow of a failover group: in etcd, through this machine's router. The calls are made in the election's loop."""

    def __init__(self, etcd: Callable[[], Etcd], loop: asyncio.AbstractEventLoop, namespace: str, group: str, flow: str) -> None:
        self._etcd = etcd
        self._loop = loop
        self._key = f"{namespace}state/{flow}"
        self._leader = leader_key(namespace, group)

    def read(self, duty: Duty) -> dict[str, Any]:
        async def ask() -> Any:
            answer = await self._etcd().transact([], [read(self._key)], [], timeout=ASK_SECONDS)
            return answer.entries[self._key].value

        found = self._run(ask())
        return found if isinstance(found, dict) else {}

    def write(self, duty: Duty, value: dict[str, Any]) -> None:
        if len(json.dumps(value)) > LARGEST:
            raise Unavailable(f"what the flow remembers is larger than {LARGEST} bytes")
        revision = duty.epoch % GENERATION_STEP

        async def ask() -> bool:
            compare = [unchanged(self._leader, revision)]
            answer = await self._etcd().transact(compare, [put(self._key, value)], [], timeout=ASK_SECONDS)
            return answer.succeeded

        duty.check()
        if not self._run(ask()):
            raise Fenced("another leads: what this flow remembers is not written any more")

    def _run(self, work: Any) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(ASK_SECONDS * 2)
        except (OutcomeUnknown, TimeoutError) as error:
            raise Unavailable(f"what the flow remembers cannot be reached: {error or 'no answer'}") from error
        except RuntimeError as error:
            work.close()
            raise Unavailable("the runtime ends") from error
