"""In which spellings a secret may stand in a text, and where such a text may be cut. Pure: for processes, agents and the portal alike."""

import base64
import html
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote, urlsplit
from xml.sax import saxutils

MASK = "•••"
SHORT = 4  # characters; a shorter secret is masked only where it stands by itself, lest every text is riddled


def where_to_cut(text: str, at: int, pattern: re.Pattern[str] | None) -> int:
    """The place nearest before `at` that cuts no secret in two, so that no half of one is left to be read."""
    spans = () if pattern is None else pattern.finditer(text)
    return next((found.start() for found in spans if found.start() < at < found.end()), at)


def pattern_of(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """Matches the secrets in every spelling in which a program may print them, the longest first; None when there is nothing to mask."""
    spellings = {spelling for secret in secrets for part in _parts(secret) for spelling in _spellings(part)}
    if not spellings:
        return None
    by_length = sorted(spellings, key=lambda text: (-len(text), text))
    long, short = [text for text in by_length if len(text) >= SHORT], [text for text in by_length if len(text) < SHORT]
    return re.compile("|".join([*_branches(long, 2), *(rf"(?<!\w){re.escape(text)}(?!\w)" for text in short)]))


def _branches(texts: list[str], depth: int) -> list[str]:
    """Alternatives, shared beginnings once, the longer first: a thousand secrets cost a text little more than one."""
    if not depth:
        return [re.escape(text) for text in texts]
    by_first: dict[str, list[str]] = {}
    for text in texts:
        by_first.setdefault(text[0], []).append(text[1:])
    return [f"{re.escape(first)}(?:{'|'.join(_branches(rest, depth - 1))})" for first, rest in by_first.items()]


def _parts(secret: str) -> set[str]:
    parts = {secret, *(line for line in secret.splitlines() if len(line) >= SHORT)}
    try:
        password = urlsplit(secret).password
    except ValueError:
        password = None
    if password:
        parts |= {password, unquote(password)}
    return {part for part in parts if part.strip()}


def _spellings(secret: str) -> set[str]:
    """As it is, trimmed, as Python and JSON escape it, as URLs, HTML and XML quote it, as hexadecimal and base64 write it: also inside
    a longer base64 text, such as a Basic authorization."""
    escaped = secret.encode("unicode_escape").decode("ascii")
    in_json = [json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)]
    quoted = [quote(secret, safe=""), quote(secret), quote_plus(secret)]
    found = {
        secret,
        secret.strip(),
        escaped,
        escaped.replace('"', '\\"'),
        escaped.replace("'", "\\'"),
        secret.replace("\\", "\\\\").replace('"', '\\"'),
        *in_json,
        *(text.replace("/", "\\/") for text in in_json),
        *(json.dumps(text)[1:-1] for text in in_json),  # JSON within JSON
        *quoted,
        *(re.sub(r"%[0-9A-F]{2}", lambda hexadecimal: hexadecimal[0].lower(), text) for text in quoted),
        *(quote(text, safe="") for text in quoted),  # quoted twice
        repr(secret)[1:-1],
        repr(secret.encode("utf-8", "surrogatepass"))[2:-1],
        html.escape(secret),
        html.escape(secret, quote=False),
        saxutils.escape(secret),
    }
    data = secret.encode("utf-8", "surrogatepass")
    if len(data) >= SHORT:
        found |= {data.hex(), data.hex().upper(), *_within_base64(data)}
    return {text for text in found if text.strip()}


def _within_base64(data: bytes) -> set[str]:
    """What of its base64 is the same whatever stands before and after it, for each of the three alignments; and the whole of it."""
    found = {base64.b64encode(data).decode().rstrip("=")}
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data).decode()
        first, last = -(-before * 8 // 6), (before + len(data)) * 8 // 6  # characters made of its bits alone
        core = whole[first:last]
        if len(core) >= 2 * SHORT - 2:
            found.add(core)
    return found | {text.replace("+", "-").replace("/", "_") for text in found}
