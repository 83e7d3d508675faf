"""Failed items, asked for by the portal: listed, looked at, tried again, discarded. They live on the machine or in its queue.

The agent works on them by itself, without the runtime's process: also when that is stopped, follows or hangs.
"""

import asyncio
import base64
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog

from runtimes.protocol import UPGRADE, BundleContent, FailedItem, FlowSpec, Inquiry, InquiryAnswer, ItemAct

log = structlog.get_logger()
SHOWN_BYTES = 64 * 1024  # of one item
HELD_BACK = 16 * 1024  # bytes beyond, in which a secret may end that begins before
TOLD_OF = 200  # items that an act was done on
ACT_SECONDS = 10.0

Where = tuple[BundleContent, Path]  # what the runtime runs or last ran, and its data folder


class Clerk:
    """Answers inquiries; `where` finds a runtime's bundle and data folder (None: nothing was deployed here)."""

    def __init__(self, where: Callable[[str], Where | None], changed: Callable[[], None]) -> None:
        self._where = where
        self._changed = changed
        self._begun: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[str, asyncio.Lock] = {}  # by runtime: one inquiry at a time
        self._hanging: set[str] = set()  # runtimes of which one has not been answered in time, and still is not
        self.answers: list[InquiryAnswer] = []

    def take(self, inquiries: list[Inquiry]) -> None:
        """The open inquiries of the latest orders. What is no longer asked needs no answer."""
        asked = {inquiry.id for inquiry in inquiries}
        self._begun &= asked
        self.answers = [answer for answer in self.answers if answer.id in asked]
        for inquiry in inquiries:
            if inquiry.id not in self._begun:
                self._begun.add(inquiry.id)
                task = asyncio.create_task(self._answer(inquiry))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def stored(self, answers: list[InquiryAnswer]) -> None:
        """The portal has these."""
        known = {answer.id for answer in answers}
        self.answers = [answer for answer in self.answers if answer.id not in known]

    async def _answer(self, inquiry: Inquiry) -> None:
        try:
            async with self._turns.setdefault(inquiry.runtime, asyncio.Lock()):
                answer = await self._ask(inquiry)
        except TimeoutError:
            problem = f"Where the items of {inquiry.runtime} are, nobody answered within {ACT_SECONDS:g} s."
            answer = InquiryAnswer(id=inquiry.id, problem=problem)
        except Exception as error:
            log.exception("inquiry_failed", text=f"An inquiry about failed items of {inquiry.runtime} failed.")
            answer = InquiryAnswer(id=inquiry.id, problem=f"{type(error).__name__} on the machine: see the agent's log.")
        if inquiry.act in (ItemAct.RETRY, ItemAct.DISCARD):
            what = "every failed item" if not inquiry.keys else f"{len(inquiry.keys)} failed items"
            log.info("items", text=f"{inquiry.actor}: {inquiry.act} {what} of {inquiry.runtime}. {answer.problem}".strip())
        self.answers.append(answer)
        self._changed()

    async def _ask(self, inquiry: Inquiry) -> InquiryAnswer:
        """In a thread of its own, which a dead mount may hold for ever: nothing else waits for it, and no second one joins it.

        Raises: TimeoutError.
        """
        if inquiry.runtime in self._hanging:
            problem = f"Where the items of {inquiry.runtime} are, nobody has answered an earlier question yet: is a mount dead?"
            return InquiryAnswer(id=inquiry.id, problem=problem)
        loop, where = asyncio.get_running_loop(), self._where(inquiry.runtime)
        done: asyncio.Future[InquiryAnswer] = loop.create_future()

        def tell(answer: InquiryAnswer | Exception) -> None:
            self._hanging.discard(inquiry.runtime)
            if done.done():  # too late
                return
            done.set_exception(answer) if isinstance(answer, Exception) else done.set_result(answer)

        def work() -> None:
            answer: InquiryAnswer | Exception
            try:
                answer = answered(inquiry, where)
            except Exception as error:
                answer = error
            with contextlib.suppress(RuntimeError):  # the agent has ended
                loop.call_soon_threadsafe(tell, answer)

        threading.Thread(target=work, name=f"items of {inquiry.runtime}", daemon=True).start()
        try:
            async with asyncio.timeout(ACT_SECONDS):
                return await done
        except TimeoutError:
            self._hanging.add(inquiry.runtime)
            raise


def answered(inquiry: Inquiry, where: Where | None) -> InquiryAnswer:
    """Do it. Blocks."""
    from runtimes.process.connectors import INBOUNDS  # here: an agent that nobody asks need not load them
    from runtimes.process.connectors.base import ConfigError, Setting, Unavailable
    from runtimes.spellings import MASK, pattern_of, where_to_cut

    if where is None:
        return InquiryAnswer(id=inquiry.id, problem=f"Nothing was deployed to {inquiry.runtime} yet.")
    content, data = where
    flow: FlowSpec | None = next((each for each in content.flows if each.id == inquiry.flow), None)
    if flow is None:
        return InquiryAnswer(id=inquiry.id, problem=f"{inquiry.runtime} has no flow {inquiry.flow} in what it runs.")
    if inquiry.act is ItemAct.OTHER or flow.inbound.kind not in INBOUNDS:
        return InquiryAnswer(id=inquiry.id, problem=f"{UPGRADE[0].upper()}{UPGRADE[1:]}.")
    pattern = pattern_of(content.secrets)

    def masked(text: str) -> str:
        return (pattern.sub(MASK, text) if pattern is not None else text).replace("\0", "\N{REPLACEMENT CHARACTER}")

    problem, shown, size, acted = "", b"", 0, None
    done: list[FailedItem] = []
    setting = Setting(flow.id, flow.name, flow.inbound, "inbound", inquiry.runtime, content.machine, data, log)
    try:
        failures = INBOUNDS[flow.inbound.kind](setting).failures
        if inquiry.act is ItemAct.VIEW and inquiry.keys:
            shown, size = failures.content(inquiry.keys[0], SHOWN_BYTES + HELD_BACK)
        elif inquiry.act in (ItemAct.RETRY, ItemAct.DISCARD):
            problem, acted, done = _act(failures, inquiry)
        total, items = failures.listed()
    except KeyError:
        return InquiryAnswer(id=inquiry.id, problem="This item is gone: it was tried again, discarded, or removed by retention.")
    except (ConfigError, Unavailable, OSError) as error:
        return InquiryAnswer(id=inquiry.id, problem=masked(f"{error}"))
    text = shown.decode("utf-8", "surrogateescape")
    if len(shown) > SHOWN_BYTES:  # cut where no half of a secret is left
        text = text[: where_to_cut(text, len(shown[:SHOWN_BYTES].decode("utf-8", "surrogateescape")), pattern)]
    shown = (pattern.sub(MASK, text) if pattern is not None else text).encode("utf-8", "surrogateescape")
    items, done = (
        [msgspec.structs.replace(item, name=masked(item.name), reason=masked(item.reason)) for item in some]
        for some in (items, done[:TOLD_OF])
    )
    told = base64.b64encode(shown).decode()
    return InquiryAnswer(id=inquiry.id, problem=problem, total=total, items=items, content=told, size=size, acted=acted, done=done)


def _act(failures: Any, inquiry: Inquiry) -> tuple[str, int, list[FailedItem]]:
    """Retry or discard; a sentence about those that are gone, on how many it was done, and on which."""
    act = failures.retry if inquiry.act is ItemAct.RETRY else failures.discard
    known: dict[str, FailedItem] = {item.key: item for item in failures.listed()[1]} if inquiry.keys else {}
    wanted: Iterable[tuple[str, FailedItem | None]] = ((key, known.get(key)) for key in inquiry.keys) if inquiry.keys else _every(failures)
    asked, done = 0, []
    for key, item in wanted:
        asked += 1
        try:
            act(key)
        except KeyError:
            continue
        done.append(item or FailedItem(key=key, item="", name="", size=0, reason="", tries=0, at=""))
    gone = asked - len(done)
    return (f"{gone} of {asked} {'was' if gone == 1 else 'were'} gone already." if gone else ""), len(done), done


def _every(failures: Any) -> Iterator[tuple[str, FailedItem]]:
    """All that are there now, though a list names the newest only; each is expected to have gone before the next list."""
    left, named = failures.count(), set()
    while left > 0 and (page := [item for item in failures.listed()[1] if item.key not in named]):
        for item in page[:left]:
            named.add(item.key)
            yield item.key, item
        left -= len(page)
