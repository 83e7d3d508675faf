"""Can the other machines reach this one on a proposed Internal IP : Failover port, tried before any router runs there.

The machine that owns the address listens there for some seconds, the others connect. Both prove with a secret that only this test's orders
bear that they are who the portal asked: a firewall, or another program behind the address, does not pass for the machine. Where the
machine's router runs there already, it answers itself, by mutual TLS as always.
"""

import asyncio
import errno
import hashlib
import hmac
import os
import secrets
import socket
import time
from collections.abc import Callable

import structlog

from runtimes.agent import linux
from runtimes.agent.peers import probe
from runtimes.process.tls import ClientTls
from runtimes.protocol import ReachAnswer, ReachOrder, ReachOutcome, RouterOrder, TlsFiles

log = structlog.get_logger()
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 2.0
RESOLVE_SECONDS = 3.0
CALLERS = 8  # served at once; more are hung up on
LINE = 256


def proof(order: ReachOrder, side: str, challenge: str) -> str:
    """Of one side ("peer" or "owner") of one test, for this challenge."""
    text = f"{order.id} {order.machine} {order.port} {side} {challenge}"
    return hmac.new(order.secret.encode(), text.encode(), hashlib.sha256).hexdigest()


Result = tuple[ReachOutcome, str, float | None]  # outcome, reason, seconds to connect


class Reach:
    """`take` the latest orders; `answers` are repeated in reports until acknowledged, and forgotten with their order."""

    def __init__(self, machine: str, tls: TlsFiles, changed: Callable[[], None]) -> None:
        self.machine = machine
        self.tls = ClientTls(tls)
        self.changed = changed
        self.begun: dict[str, asyncio.Task[None]] = {}
        self.answers: list[ReachAnswer] = []
        self.router: RouterOrder | None = None
        self.give_way = asyncio.Event()  # another router is ordered here: its port is not to be held

    def take(self, orders: list[ReachOrder], router: RouterOrder | None) -> None:
        """Begin what is new, end what is ordered no more."""
        if router != self.router:
            self.router = router
            self.give_way.set()
            self.give_way = asyncio.Event()
        asked = {order.id for order in orders}
        for key in [key for key in self.begun if key not in asked]:
            self.begun.pop(key).cancel()
        self.answers = [answer for answer in self.answers if answer.id in asked]
        for order in orders:
            if order.id not in self.begun:
                self.begun[order.id] = asyncio.create_task(self._take_part(order))

    def stored(self, answers: list[ReachAnswer]) -> None:
        """The portal has these."""
        self.answers = [answer for answer in self.answers if answer not in answers]

    async def close(self) -> None:
        for task in self.begun.values():
            task.cancel()
        await asyncio.gather(*self.begun.values(), return_exceptions=True)

    async def _take_part(self, order: ReachOrder) -> None:
        try:
            result = await (self._own(order) if order.machine == self.machine else self._call(order))
        except OSError as error:
            result = ReachOutcome.FAILED, _why(error), None
        except Exception as error:  # a fault of the test must not stay without an answer
            log.exception("reach_failed", text=f"The test of {order.machine}'s address failed.")
            result = ReachOutcome.FAILED, type(error).__name__, None
        if result is not None:
            self._say(order, *result)

    def _say(self, order: ReachOrder, outcome: ReachOutcome, reason: str = "", seconds: float | None = None) -> None:
        self.answers.append(ReachAnswer(id=order.id, outcome=outcome, reason=reason[:500], seconds=seconds, at=linux.utc_now()))
        self.changed()

    # ---- the owner of the address

    async def _own(self, order: ReachOrder) -> Result | None:
        """Listen while the test lasts. Returns: why not; None once it is over."""
        try:
            found = await asyncio.wait_for(
                asyncio.get_running_loop().getaddrinfo(order.host, None, type=socket.SOCK_STREAM), RESOLVE_SECONDS
            )
        except TimeoutError:
            return ReachOutcome.NOT_HERE, f"the name {order.host} is not answered for within {RESOLVE_SECONDS:g} s", None
        except OSError as error:
            return ReachOutcome.NOT_HERE, f"the name {order.host} is not known here ({error.strerror})", None
        open_now = asyncio.Semaphore(CALLERS)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                if not open_now.locked():
                    async with open_now, asyncio.timeout(ANSWER_SECONDS):
                        await _answer(order, reader, writer)
            except (TimeoutError, OSError, ValueError):
                pass
            finally:
                writer.close()

        give_way = self.give_way
        try:
            server = await asyncio.start_server(serve, str(found[0][4][0]), order.port, limit=LINE)
        except OSError as error:
            return await self._not_listening(order, error)
        try:
            self._say(order, ReachOutcome.LISTENING)
            await asyncio.wait_for(give_way.wait(), order.valid_seconds)
        except TimeoutError:
            pass
        finally:
            server.close()
        return None

    async def _not_listening(self, order: ReachOrder, error: OSError) -> Result:
        if error.errno == errno.EADDRINUSE:
            if not await probe(order.host, order.port, self.tls):
                return ReachOutcome.ROUTER, "its router runs there", None
            return ReachOutcome.TAKEN, f"another program listens on {order.host}:{order.port}", None
        if error.errno == errno.EADDRNOTAVAIL:
            return ReachOutcome.NOT_HERE, f"{order.host} is no address of this machine", None
        if error.errno == errno.EACCES:
            return ReachOutcome.NOT_HERE, f"its agent may not listen on port {order.port}", None
        return ReachOutcome.FAILED, _why(error), None

    # ---- the others

    async def _call(self, order: ReachOrder) -> Result:
        began = time.monotonic()
        if order.router:
            trouble = await probe(order.host, order.port, self.tls)
            took = time.monotonic() - began
            return (ReachOutcome.WRONG_ANSWER, trouble, None) if trouble else (ReachOutcome.REACHABLE, "its router answered", took)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(order.host, order.port, limit=LINE)
        except TimeoutError:
            return ReachOutcome.TIMED_OUT, f"no answer within {CONNECT_SECONDS:g} s, as behind a firewall or without a way there", None
        except ConnectionRefusedError:
            return (
                ReachOutcome.REFUSED,
                "nobody takes the connection though the machine listens: a firewall, or another host",
                None,
            )
        except socket.gaierror as error:
            return ReachOutcome.NO_WAY, f"the name {order.host} is not known there ({error.strerror})", None
        except OSError as error:
            return ReachOutcome.NO_WAY, _why(error), None
        took = time.monotonic() - began
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                trouble = await _ask(order, reader, writer)
        except (TimeoutError, OSError, ValueError):
            trouble = "the connection was taken and not answered"
        finally:
            writer.transport.abort()
        return (ReachOutcome.WRONG_ANSWER, trouble, None) if trouble else (ReachOutcome.REACHABLE, "", took)


async def _answer(order: ReachOrder, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Only a peer that knows the secret gets an answer."""
    word, challenge, proven = (await reader.readline()).decode("ascii").split()
    if word != "baton-reach" or not hmac.compare_digest(proven, proof(order, "peer", challenge)):
        return
    writer.write(f"{proof(order, 'owner', challenge)}\n".encode())
    await writer.drain()


async def _ask(order: ReachOrder, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Empty when the machine itself answered, else what is wrong."""
    challenge = secrets.token_hex(16)
    writer.write(f"baton-reach {challenge} {proof(order, 'peer', challenge)}\n".encode())
    await writer.drain()
    said = (await reader.readline()).strip()
    if not said:
        return "somebody else answers there: it hung up"
    ours = hmac.compare_digest(said, proof(order, "owner", challenge).encode())
    return "" if ours else "somebody else answers there, not the agent of this machine"


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
