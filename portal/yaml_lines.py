"""YAML that remembers its lines: plain mappings, lists, texts, numbers and flags; no tags, anchors, repeated keys or depth without end.

Built on PyYAML's composer (safe: it makes nodes, never objects).
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

import yaml

from portal.errors import Invalid

CHARACTERS_AT_MOST = 5_000_000
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
DEEPEST = 12


class Map(dict[str, Any]):
    """A mapping with its own line and that of each key."""

    line: int
    lines: dict[str, int]


class Items(list[Any]):
    """A list with its own line and that of each item."""

    line: int
    lines: list[int]

    def each(self) -> Iterator[tuple[int, Any]]:
        return zip(self.lines, self, strict=True)


def load(text: str) -> Any:
    """The document as Map, Items, str, int, bool and None.

    Raises:
        Invalid: naming the line; `field` is "text".
    """
    if len(text) > CHARACTERS_AT_MOST:
        raise Invalid("The file is larger than 5 MB.", field="text")
    loader = yaml.SafeLoader(text)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise wrong(
                    event.start_mark.line + 1 if event.start_mark else 1, "anchors and aliases (& and *) are not read: write it out."
                )
        node = loader.get_single_node()
        return _made(loader, node, 0) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise wrong(mark.line + 1 if mark else 1, f"this is no YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Invalid(f"The file cannot be read: {error}", field="text") from None
    finally:
        loader.dispose()


def wrong(line: int, what: str) -> Invalid:
    return Invalid(f"Line {line}: {what}", field="text")


def refuse_unknown(item: Map, names: Collection[str]) -> None:
    """Raises: Invalid, naming the line of a field that is none of `names`."""
    for name in item:
        if name not in names:
            raise wrong(item.lines[name], f"there is no field {name}; known are {', '.join(sorted(names))}.")


def dump(value: Any) -> str:
    """The same value gives the same bytes: keys stay in the order given, lines are not folded."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1_000_000)


def _made(loader: yaml.SafeLoader, node: yaml.Node, depth: int) -> Any:
    line = node.start_mark.line + 1
    if depth > DEEPEST:
        raise wrong(line, "nested too deeply.")
    if isinstance(node, yaml.MappingNode):
        made = Map()
        made.line, made.lines = line, {}
        for name, value in node.value:
            at = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                raise wrong(at, "a key is a plain text.")
            key = str(name.value)
            if key in made:
                raise wrong(at, f"{key} occurs twice.")
            made[key] = _made(loader, value, depth + 1)
            made.lines[key] = at
        return made
    if isinstance(node, yaml.SequenceNode):
        items = Items(_made(loader, item, depth + 1) for item in node.value)
        items.line, items.lines = line, [item.start_mark.line + 1 for item in node.value]
        return items
    text = str(node.value)
    if node.tag == "tag:yaml.org,2002:null":
        return None
    if node.tag == "tag:yaml.org,2002:int" and _WHOLE.fullmatch(text):
        return int(text)
    if node.tag == "tag:yaml.org,2002:bool" and text in ("true", "false"):
        return text == "true"
    return text  # 22:30, 0123, 0x1f, on, 1.0 or a date: YAML would make something else of it, here it is what was written
