"""Secret values never leave a runtime's process: not in a log line, a reason, a traceback or an error folder.

`hide` is told them once, when the bundle is read; everything that writes for people passes `masked`.
"""

import re
from collections.abc import Iterable
from typing import Any, TextIO

import msgspec

from runtimes.protocol import ProcessNews
from runtimes.spellings import MASK, pattern_of

_pattern: re.Pattern[str] | None = None


def hide(secrets: Iterable[str]) -> None:
    """From now on these values, and the password inside one that is a URL, are masked."""
    global _pattern
    _pattern = pattern_of(secrets)


def masked(text: str) -> str:
    return text if _pattern is None else _pattern.sub(MASK, text)


def mask_event(_: Any, __: str, event: Any) -> Any:
    """A structlog processor: every text of the line."""
    return event if _pattern is None else {name: _masked_value(value) for name, value in event.items()}


def _masked_value(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {name: _masked_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_value(item) for item in value]
    return masked(repr(value))


def masked_news(news: ProcessNews) -> ProcessNews:
    """What is said to the keeper, with every reason masked."""
    if _pattern is None:
        return news
    replace = msgspec.structs.replace
    return replace(
        news,
        reason=masked(news.reason),
        groups=[replace(group, reason=masked(group.reason)) for group in news.groups] if news.groups is not None else None,
        flows=[replace(flow, reason=masked(flow.reason)) for flow in news.flows] if news.flows is not None else None,
        alone=replace(news.alone, reason=masked(news.alone.reason)) if news.alone is not None else None,
        outcome=replace(news.outcome, reason=masked(news.outcome.reason)) if news.outcome is not None else None,
    )


class MaskedStream:
    """A text stream in front of another: what a library or the interpreter prints by itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
