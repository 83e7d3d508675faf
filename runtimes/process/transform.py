"""The transform step of a flow: each item goes through a template before it goes out. The work is done by `transformer.py`, apart.

Settings of the outbound: transform (the template; empty: no step), transform_from (text, json, xml), transform_to (text, json, xml),
transform_empty (deliver, skip), transform_name.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from runtimes.process.connectors.base import Item, ItemError, NotReady, Setting, Unavailable

ITEM_LIMIT = 8 * 1024 * 1024  # bytes of an item to transform, and of what is made of it
ITEM_SECONDS = 2.0
START_SECONDS = 15.0
MEGABYTES = 512
ROOT = str(Path(__file__).resolve().parents[2])


class Transform:
    """One flow's step. `prepare` and `apply` are called by the flow's worker thread, `close` by anyone."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.template = setting.text("transform", "\n").strip("\n")
        kinds = ("text", "json", "xml")
        self._from = setting.choice("transform_from", kinds)
        self._to = setting.choice("transform_to", kinds)
        self._skip = setting.choice("transform_empty", ("deliver", "skip")) == "skip"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def wanted(self) -> bool:
        return bool(self.template.strip())

    def prepare(self) -> None:
        """Start the child, so that a template with a mistake makes a follower not ready. Raises NotReady."""
        if not self.wanted or self._process is not None:
            return
        try:
            self._start()
        except Unavailable as error:
            raise NotReady(f"{error}") from error

    def apply(self, item: Item) -> Item | None:
        """The item as it goes out, under the same id; None: nothing was made of it, and nothing shall go out.

        Raises:
            ItemError: it cannot be read, or the template fails with it.
        """
        if not self.wanted:
            return item
        if item.size > ITEM_LIMIT:
            raise ItemError(f"it has {item.size} bytes: an item to transform may have {ITEM_LIMIT}")
        with item.open() as chunks:
            content = b"".join(chunks)
        facts = {
            "id": item.id,
            "name": item.name.decode("utf-8", "replace"),
            "size": len(content),
            "flow": item.origin.flow,
            "group": item.origin.group,
            "epoch": item.origin.epoch,
            "machine": item.origin.machine,
            "properties": dict(item.properties),
        }
        if self._process is None:
            self._start()
        head, made = self._ask({"item": facts, "from": self._from, "size": len(content)}, content, ITEM_SECONDS)
        if "error" in head:
            raise ItemError(f"the transformation failed: {head['error']}")
        if self._skip and not made.strip():
            return None
        return replace(item, size=len(made), open=partial(_opened, made), sha256=None)

    def close(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.wait()

    def _start(self) -> None:
        """Raises Unavailable with the template's mistake."""
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "BATON_KEEPER_FOLDER") if name in os.environ} | {
            "PYTHONPATH": ROOT
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "runtimes.process.transformer", str(MEGABYTES)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise Unavailable(f"the program that transforms cannot be started: {error}") from error
        try:
            head, _ = self._ask({"template": self.template, "to": self._to}, b"", START_SECONDS)
        except ItemError as error:
            raise Unavailable(f"the program that transforms does not start: {error}") from error
        if "error" in head:
            self.close()
            raise Unavailable(f"the template of flow {self._setting.flow} is wrong: {head['error']}; correct it on the flow's page")

    def _ask(self, facts: dict[str, Any], content: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Raises ItemError when it takes too long or ends; the next item starts it anew."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + seconds
        try:
            _write(process.stdin.fileno(), json.dumps(facts).encode() + b"\n" + content, deadline)
            received = b""
            while b"\n" not in received:
                received += _read(process.stdout.fileno(), deadline)
            line, _, made = received.partition(b"\n")
            head = json.loads(line)
            size = int(head.get("size", 0))
            if size > ITEM_LIMIT:
                raise _TooMuchError(f"the template made {size} bytes: it may make {ITEM_LIMIT}")
            parts = bytearray(made)
            while len(parts) < size:
                parts += _read(process.stdout.fileno(), deadline)
            return head, bytes(parts)
        except TimeoutError:
            self.close()
            raise ItemError(f"the transformation took longer than {seconds:g} s and was ended") from None
        except (OSError, ValueError, _TooMuchError) as error:
            self.close()
            raise ItemError(f"the transformation ended: {error}") from error


class _TooMuchError(Exception):
    pass


def _write(descriptor: int, data: bytes, deadline: float) -> None:
    view = memoryview(data)
    os.set_blocking(descriptor, False)
    while view:
        if not select.select([], [descriptor], [], max(deadline - time.monotonic(), 0))[1]:
            raise TimeoutError
        with contextlib.suppress(BlockingIOError):
            view = view[os.write(descriptor, view[:65536]) :]


def _read(descriptor: int, deadline: float) -> bytes:
    if not select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
        raise TimeoutError
    data = os.read(descriptor, 1024 * 1024)
    if not data:
        raise OSError("its program ended")
    return data


@contextmanager
def _opened(content: bytes) -> Iterator[Iterator[bytes]]:
    yield iter([content] if content else [])
