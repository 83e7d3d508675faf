"""The program that transforms items: `python -m runtimes.process.transformer <megabytes>`, a child of its runtime process.

A template is a program that somebody wrote: so it runs apart, in Jinja2's sandbox, in limited memory, and its parent kills it when an item
takes too long. One request after another on standard input, each a line of JSON and the item's bytes; answers alike on standard output.

    {"template": …, "to": "text"}   once                        ->  {"ok": true}, or {"error": …}
    {"item": {id, name, …}, "from": "json", "size": 12}, 12 bytes  ->  {"ok": true, "size": 7} and 7 bytes, or {"error": …}
"""

import ctypes
import json
import resource
import signal
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any
from xml.parsers import expat

from jinja2 import StrictUndefined, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

PR_SET_PDEATHSIG = 1
XML_DEPTH = 200  # elements within each other


class UnreadableError(Exception):
    """The item is not what `from` says; the message says why."""


def parse_xml(content: bytes) -> ElementTree.Element:
    """An element tree of a document without a document type: so there are no entities to expand and nothing to fetch.

    Raises:
        UnreadableError
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")
    depth = 0

    def refuse(*_: Any) -> None:
        raise UnreadableError("the XML has a document type declaration, which is not read: it could hold entities without end")

    def name_of(text: str) -> str:
        return f"{{{text}" if "}" in text else text

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > XML_DEPTH:
            raise UnreadableError(f"the XML is nested deeper than {XML_DEPTH} elements")
        builder.start(name_of(tag), {name_of(name): value for name, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name_of(tag))

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.buffer_text = True
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise UnreadableError(f"it is no XML: {error}") from error
    return builder.close()


def read(content: bytes, kind: str) -> dict[str, Any]:
    """What a template finds as `text` and `data`."""
    if kind == "xml":
        return {"data": parse_xml(content), "text": content.decode("utf-8", "replace")}
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(f"it is no UTF-8 text: {error}") from error
    if kind == "json":
        try:
            return {"data": json.loads(text.removeprefix("\ufeff")), "text": text}  # some put a byte order mark before it
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"it is no JSON: {error}") from error
    return {"data": None, "text": text}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no value of JSON")  # though Python's parser would take it


class Transformer:
    """One template."""

    def __init__(self, template: str, to: str) -> None:
        # For XML every inserted value is escaped; for JSON the author writes `| tojson`, and the result is checked.
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=to == "xml", keep_trailing_newline=True)
        environment.globals = {name: environment.globals[name] for name in ("range", "dict", "namespace")}
        self._template = environment.from_string(template)
        self._to = to

    def __call__(self, content: bytes, kind: str, item: dict[str, Any]) -> bytes:
        """Raises UnreadableError, or whatever the template did wrong."""
        made = self._template.render(item=item, **read(content, kind))
        data = made.encode("utf-8", "surrogatepass")
        if self._to == "json" and made.strip():
            try:
                json.loads(made, parse_constant=_refuse_constant)
            except ValueError as error:
                raise UnreadableError(f"the template made no JSON: {error}; insert values as {{{{ value | tojson }}}}") from error
        if self._to == "xml" and made.strip():
            try:
                parse_xml(data)
            except UnreadableError as error:
                raise UnreadableError(f"the template made no XML: {error}") from error
        return data


def answer(facts: dict[str, Any], content: bytes = b"") -> None:
    sys.stdout.buffer.write(json.dumps(facts).encode() + b"\n" + content)
    sys.stdout.buffer.flush()


def why(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    if isinstance(error, MemoryError):
        return "it needs more memory than a transformation may have"
    if isinstance(error, SecurityError):
        return f"the template does what it may not: {error}"
    where = f" (line {line} of the template)" if line else ""
    return f"{error}{where}" if isinstance(error, (UnreadableError, TemplateError)) else f"{type(error).__name__}: {error}{where}"


def main() -> int:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    megabytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    transformer: Transformer | None = None
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        try:
            if "template" in request:
                transformer = Transformer(request["template"], request["to"])
                answer({"ok": True})
                continue
            assert transformer is not None
            made = transformer(sys.stdin.buffer.read(request["size"]), request["from"], request["item"])
        except Exception as error:  # whatever a template does wrong is the item's reason, never this program's end
            answer({"error": why(error)[:2000]})
        else:
            answer({"ok": True, "size": len(made)}, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
