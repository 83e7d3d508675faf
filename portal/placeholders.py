"""Placeholders in texts: `${external01.failover.internal-ip}`. What they stand for is portal.properties' business."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.core.exceptions import ValidationError

from portal.errors import Invalid
from portal.models import PROPERTY_KEY

_PLACEHOLDER = re.compile(r"\$\{([^{}]*)\}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for item in value:
            yield from _texts(item)


def placeholders(value: Any) -> set[str]:
    """Keys named as ${key} anywhere in a text, list or mapping."""
    return {key.strip() for text in _texts(value) for key in _PLACEHOLDER.findall(text) if key.strip()}


def only_placeholder(text: str) -> str | None:
    """The key of a text that is one placeholder and nothing else."""
    found = _PLACEHOLDER.fullmatch(text.strip())
    return found[1].strip() if found else None


def without_placeholders(text: str) -> str:
    """What of a text is written out."""
    return _PLACEHOLDER.sub("", text)


def replaced(text: str, known: Mapping[str, str]) -> str:
    """The text with every placeholder that is known replaced; a value is taken as it is, "${" inside it is text."""
    return _PLACEHOLDER.sub(lambda match: known.get(match[1].strip(), match[0]), text)


def check_placeholders(value: Any, *, field: str = "") -> None:
    """Refuse what could never be replaced, in a text, list or mapping.

    Raises:
        Invalid: an unterminated "${", an empty "${}", or a key of forbidden characters; `field` names the form's field.
    """
    for text in _texts(value):
        for key in _PLACEHOLDER.findall(text):
            if not key.strip():
                raise Invalid(f'"{text}" has an empty placeholder: write a key between the braces, as in ${{erp.outbox}}.', field=field)
            try:
                PROPERTY_KEY(key.strip())
            except ValidationError as error:
                raise Invalid(f'The placeholder ${{{key}}} in "{text}" is no valid key. {error.messages[0]}', field=field) from None
        if "${" in _PLACEHOLDER.sub("", text):
            raise Invalid(f'"{text}" has a placeholder that does not end: close it with "}}".', field=field)
