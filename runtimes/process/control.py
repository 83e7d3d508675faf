"""The process's end of the channel to its keeper: JSON lines both ways, on an inherited socket."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from runtimes.process.masking import masked_news
from runtimes.protocol import CONTROL_FD_ENV, ProcessCommand, ProcessNews, decode, encode

BUFFER = 1024 * 1024  # bytes the keeper may leave unread before status news (which later news replaces) are left out


class Control:
    """Writes never wait: a keeper that stands still must not stop the election."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def inherited(cls) -> "Control | None":
        """The channel named by the environment, or None when there is no keeper."""
        number = os.environ.get(CONTROL_FD_ENV, "")
        if not number:
            return None
        end = socket.socket(fileno=int(number))
        end.set_inheritable(False)
        end.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=BUFFER)
        return cls(reader, writer)

    def send(self, news: ProcessNews) -> bool:
        """False when the keeper has left too much unread: send the status again later. Events, ends and outcomes are always written."""
        transport = self._writer.transport
        lasting = any(said is not None for said in (news.event, news.ended, news.alone, news.outcome))
        if transport.is_closing() or (not lasting and transport.get_write_buffer_size() > BUFFER):
            return False
        self._writer.write(encode(masked_news(news)) + b"\n")
        return True

    async def listen(self, command: Callable[[ProcessCommand], None], log: Any) -> None:
        """Commands until the channel ends."""
        try:
            while line := await self._reader.readline():
                try:
                    command(decode(ProcessCommand, line))
                except msgspec.MsgspecError as error:
                    log.error(f"a command of the keeper is not valid: {error}")
        except ConnectionError:  # a broken pipe, or a reset: its other end was closed, as when it was killed
            log.warning("the keeper has ended, and so does this process")
        except (OSError, ValueError) as error:
            log.error(f"the channel to the keeper broke: {error}")

    async def close(self) -> None:
        """Give what was written a moment to leave."""
        try:
            async with asyncio.timeout(0.5):
                await self._writer.drain()
            self._writer.close()
        except (OSError, TimeoutError):
            pass
