"""A message as it arrives over AMQP, read so that no publisher can stop or fill this process.

The library decodes property texts strictly, and joins every body in memory. Here any byte of a property is kept (as \\udcXX), headers that
cannot be read at all are named as the message's own trouble, and a larger body goes into a file while it comes.
"""

import hashlib
import struct
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amqp import spec
from amqp.basic_message import Message
from amqp.exceptions import UnexpectedFrame
from amqp.serialization import loads

IN_MEMORY = 64 * 1024  # bytes of a body that is held in memory: with the largest prefetch 64 MB
TEXT_LIMIT = 255  # bytes of a short text
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8  # types of frames
WITH_CONTENT = (spec.Basic.Deliver, spec.Basic.Return, spec.Basic.GetOk)
Place = Callable[[int], Path | None]  # a new file's path for a body of so many bytes; None: memory. Refuses by raising NotHeld


class NotHeld(OSError):  # noqa: N818 - says what happened
    """What arrives cannot be held here: the connection is given up, and everything it brought stays in the queue."""


class Arrived(Message):
    """`trouble`: why it cannot be an ordinary item; empty: it can. `file`: where its body is, instead of in `body`."""

    def __init__(self, place: Place, **frame: Any) -> None:
        super().__init__(**frame)
        self.trouble = ""
        self.file: Path | None = None
        self.digest = hashlib.sha256()  # of its body
        self._place = place

    def inbound_header(self, buf: bytes, offset: int = 0) -> int:
        made: int = super().inbound_header(buf, offset)  # type: ignore[misc]
        if self.body_size > IN_MEMORY:
            self.file = self._place(self.body_size)
        return made

    def inbound_body(self, buf: bytes) -> None:
        self.digest.update(buf)
        if self.file is None:
            super().inbound_body(buf)  # type: ignore[misc]
            return
        try:
            with self.file.open("ab") as file:
                file.write(buf)
        except OSError as error:
            raise NotHeld(f"a message of {self.body_size} bytes cannot be held in {self.file.parent}: {error.strerror}") from error
        self.body_received += len(buf)
        self.ready = self.body_received >= self.body_size

    def _load_properties(self, class_id: int, buf: bytes, offset: int) -> int:
        """As the library does it, but any byte is a text's, and headers that it cannot read stand in nobody's way."""
        (flags,) = struct.unpack_from(">H", buf, offset)
        offset += 2
        found: dict[str, Any] = {}
        for index, (name, kind) in enumerate(self.PROPERTIES):
            if not flags & 1 << 15 - index:
                continue
            if kind == "s":
                found[name], offset = _text(buf, offset)
            elif kind == "F":
                (length,) = struct.unpack_from(">I", buf, offset)
                try:
                    ((found[name],), _) = loads("F", buf, offset)
                except Exception as error:  # whatever a publisher wrote there: a time that is none, a type nobody knows
                    self.trouble = f"its headers cannot be read: {error}"
                offset += 4 + length
            else:
                layout = ">B" if kind == "o" else ">Q"
                (found[name],) = struct.unpack_from(layout, buf, offset)
                offset += struct.calcsize(layout)
        self.properties = found
        return offset


def _text(buf: bytes, offset: int) -> tuple[str, int]:
    end = offset + 1 + buf[offset]
    return bytes(buf[offset + 1 : end]).decode("utf-8", "surrogateescape"), end


def _readable(method: bytes) -> bytes:
    """The arguments of a delivery, with names that the library can decode: it takes \\udcXX in UTF-8, but not the bare byte."""
    tag_end = 5 + method[4]
    fixed = tag_end + 9  # the delivery tag, and whether it was redelivered
    exchange, offset = _text(method, fixed)
    key, _ = _text(method, offset)
    made = bytes(method[:fixed])
    for text in (exchange, key):
        data = text.encode("utf-8", "surrogatepass")
        if len(data) > TEXT_LIMIT:
            data = data[:TEXT_LIMIT].decode("utf-8", "ignore").encode()
        made += bytes([len(data)]) + data
    return made


def frames(place: Place) -> Callable[[Any, Callable[..., Any]], Callable[[Any], bool]]:
    """What a connection of the library takes as its `frame_handler`; its messages with content are `Arrived`."""

    def handler(connection: Any, callback: Callable[..., Any]) -> Callable[[Any], bool]:
        expected: dict[int, int] = defaultdict(lambda: METHOD)
        partly: dict[int, Arrived] = {}

        def on_frame(frame: tuple[int, int, bytes]) -> bool:
            kind, channel, buf = frame
            connection.bytes_recv += 1
            if kind == HEARTBEAT:
                return False
            if kind != expected[channel]:
                raise UnexpectedFrame(f"received a frame of type {kind} while expecting {expected[channel]}")
            if kind == METHOD:
                method = struct.unpack_from(">HH", buf, 0)
                if method not in WITH_CONTENT:
                    callback(channel, method, buf, None)
                    return True
                partly[channel] = Arrived(place, frame_method=method, frame_args=_readable(buf) if method == spec.Basic.Deliver else buf)
                expected[channel] = HEADER
                return False
            message = partly[channel]
            message.inbound_header(buf) if kind == HEADER else message.inbound_body(buf)
            if not message.ready:
                expected[channel] = BODY
                return False
            expected[channel] = METHOD
            del partly[channel]
            callback(channel, message.frame_method, message.frame_args, message)
            return True

        return on_frame

    return handler
