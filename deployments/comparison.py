"""What differs between two releases, or between a release and what runs: pure, in words, and line by line inside a flow.

A `Side` is all that one end of a comparison knows; `compare` says what the second changes against the first. Values of secrets never
enter: of a secret only a digest is known, and the difference says "changed".
"""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

How = Literal["new", "gone", "changed", "same"]
CONTEXT_LINES = 3


@dataclass(frozen=True)
class Value:
    """One property value of one scope; `text` is None for a secret, which is known by its digest only."""

    text: str | None
    digest: str
    secret: bool = False


@dataclass(frozen=True)
class Side:
    """One end of a comparison. `plan`, `values` and `preferences` are None where they are not known, and are then left out."""

    label: str  # "release 3", "what runs on Test (release 3)"
    content: Mapping[str, Any]
    plan: Sequence[str] | None = None  # one line per step
    values: Mapping[tuple[str, str], Value] | None = None  # by key and scope
    preferences: Mapping[str, str] | None = None  # runtime -> preference
    uses: Collection[str] | None = None  # keys of properties that it needs; None: not known
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """One line of a text: only in the first ("-"), only in the second ("+"), in both (" "); "…" stands for equal lines left out."""

    sign: Literal[" ", "+", "-", "…"]
    text: str
    within: str = ""  # label of the line above it that is not indented: "inbound"


@dataclass(frozen=True)
class Item:
    how: How
    name: str
    sentence: str
    lines: Sequence[Line] = ()

    @property
    def shown(self) -> list[Line]:
        """The lines with equal ones far from any change left out."""
        return _trimmed(self.lines) if self.how == "changed" else list(self.lines)


@dataclass(frozen=True)
class Section:
    key: str
    title: str
    items: Sequence[Item]

    @property
    def changes(self) -> list[Item]:
        return [item for item in self.items if item.how != "same"]

    @property
    def same(self) -> int:
        return len(self.items) - len(self.changes)


@dataclass(frozen=True)
class Difference:
    before: str
    after: str
    sections: Sequence[Section]
    notes: Sequence[str] = field(default=())

    @property
    def equal(self) -> bool:
        return not any(section.changes for section in self.sections)

    @property
    def sentences(self) -> list[str]:
        """Every change, one sentence each; empty when both hold the same."""
        return [item.sentence for section in self.sections for item in section.changes]


def compare(before: Side, after: Side) -> Difference:
    """What `after` changes against `before`. Pure."""
    old, new = before.content, after.content
    sections = [
        _section("flows", "Flows", "Flow", _flows(old), _flows(new)),
        _section("groups", "Groups", "Group", _groups(old), _groups(new)),
        _section("connectors", "Connectors", "Connector", _connectors(old), _connectors(new)),
        _placement(old, new),
        _section("machines", "Machines", "Machine", _machines(old), _machines(new)),
    ]
    notes = [*before.notes, *after.notes]
    if before.plan is not None and after.plan is not None:
        sections.append(_plan(before.plan, after.plan))
    else:
        lacking = " and ".join(side.label for side in (before, after) if side.plan is None)
        notes.append(f"Plans are not compared: there is none in {lacking}.")
    if before.values is not None and after.values is not None:
        sections.append(_properties(before.values, after.values, before.uses, after.uses))
    if before.preferences is not None and after.preferences is not None:
        sections.append(_preferences(before.preferences, after.preferences))
    return Difference(before.label, after.label, sections, list(dict.fromkeys(notes)))


# -------------------------------------------------------------------------------------------------------------------- texts

Texts = dict[str, tuple[str, list[str]]]  # key -> name and lines


def _flows(content: Mapping[str, Any]) -> Texts:
    groups = {group["id"]: group["name"] for group in content["groups"]}
    found: Texts = {}
    for flow in content["flows"]:
        shown = {name: value for name, value in flow.items() if name not in ("id", "name")}
        shown["group"] = groups.get(flow["group"], flow["group"])
        if flow["group"] is not None and "auto_start" in shown:  # what a person once chose for it counts only without a group
            shown["auto_start"] = "with the leadership of its group"
        found[flow["id"]] = (flow["name"], [f"name: {flow['name']}", *lines_of(shown)])
    return found


def _groups(content: Mapping[str, Any]) -> Texts:
    return {
        group["id"]: (
            group["name"],
            [
                f"name: {group['name']}",
                f"connector: {group['connector']}",
                f"flows: {', '.join(flow['name'] for flow in content['flows'] if flow['group'] == group['id'])}",
            ],
        )
        for group in content["groups"]
    }


def _connectors(content: Mapping[str, Any]) -> Texts:
    return {
        item["name"]: (item["name"], lines_of({name: value for name, value in item.items() if name not in ("name", "machines")}))
        for item in content["connectors"]
    }


def _machines(content: Mapping[str, Any]) -> Texts:
    return {
        item["name"]: (item["name"], lines_of({name: value for name, value in item.items() if name != "name"}))
        for item in content["machines"]
    }


def lines_of(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """A mapping as lines to read and compare: "folder: ${erp.outbox}", nested ones indented, long texts line by line."""
    found = []
    for name, item in value.items():
        label = f"{indent}{name.replace('_', ' ')}:"
        if isinstance(item, Mapping) and set(item) == {"kind", "settings"}:
            found += [f"{label} {item['kind']}", *lines_of(dict(sorted(item["settings"].items())), indent + "  ")]
        elif isinstance(item, Mapping):
            found += [label, *lines_of(dict(sorted(item.items())), indent + "  ")]
        elif isinstance(item, list) and any(isinstance(part, Mapping) for part in item):
            found.append(label)
            for number, part in enumerate(item, start=1):
                inner = part if isinstance(part, Mapping) else {"value": part}
                found += [f"{indent}  {number}.", *lines_of(inner, indent + "    ")]
        elif isinstance(item, str) and "\n" in item:
            found += [label, *(f"{indent}  {line}" for line in item.splitlines())]
        else:
            found.append(f"{label} {_word(item)}")
    return found


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return "none" if value is None else str(value)


# --------------------------------------------------------------------------------------------------------------------- items


def difference_of_lines(before: Sequence[str], after: Sequence[str]) -> list[Line]:
    """Both texts as one: what went, what came, what stayed, in order. No changed line means that they are equal."""
    return _difference([("", text) for text in before], [("", text) for text in after])


def _difference(before: Sequence[tuple[str, str]], after: Sequence[tuple[str, str]]) -> list[Line]:
    """As difference_of_lines, of lines with what each is within: equal ones within others are not the same."""
    found: list[Line] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            found += [Line(" ", text, within) for within, text in before[a:b]]
        else:
            found += [Line("-", text, within) for within, text in before[a:b]] + [Line("+", text, within) for within, text in after[c:d]]
    return found


def _within(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Each line with the label of the one above it that is not indented: of two folders, which is the inbound's."""
    found, above = [], ""
    for text in lines:
        indented = text[:1] == " "
        above = above if indented else text.partition(":")[0]
        found.append((above if indented else "", text))
    return found


def _trimmed(lines: Sequence[Line]) -> list[Line]:
    near = {
        place
        for number, line in enumerate(lines)
        if line.sign != " "
        for place in range(number - CONTEXT_LINES, number + CONTEXT_LINES + 1)
    }
    found: list[Line] = []
    left_out = 0
    for number, line in enumerate(lines):
        if number in near:
            if left_out:
                found.append(Line("…", _left_out(left_out)))
            found.append(line)
            left_out = 0
        else:
            left_out += 1
    return [*found, Line("…", _left_out(left_out))] if left_out else found


def _left_out(count: int) -> str:
    return "1 equal line" if count == 1 else f"{count} equal lines"


def _section(key: str, title: str, kind: str, old: Texts, new: Texts) -> Section:
    items = []
    for place in [*new, *(place for place in old if place not in new)]:
        name, lines = new.get(place) or old[place]
        if place not in old:
            items.append(Item("new", name, f"{kind} {name} is new.", [Line("+", text) for text in lines]))
        elif place not in new:
            items.append(Item("gone", name, f"{kind} {name} is gone.", [Line("-", text) for text in lines]))
        else:
            both = _difference(_within(old[place][1]), _within(lines))
            changed = any(line.sign != " " for line in both)
            items.append(Item("changed", name, _changed(kind, name, both), both) if changed else Item("same", name, "", both))
    return Section(key, title, items)


def _changed(kind: str, name: str, lines: Sequence[Line]) -> str:
    """ "Flow orders changed: version 1.0.0 → 1.1.0, inbound folder /a → /b, “url: …” is new." """
    places: dict[str, set[str]] = {}
    for line in lines:
        places.setdefault(_label(line), set()).add(line.within)

    def told(line: Line, text: str) -> str:
        return f"{line.within} {text}" if len(places[_label(line)]) > 1 and line.within else text

    old = {(line.within, _label(line)): line for line in lines if line.sign == "-" and ":" in line.text}
    parts = []
    for line in lines:
        former = old.pop((line.within, _label(line)), None) if line.sign == "+" and ":" in line.text else None
        if former is not None:
            parts.append(f"{told(line, _label(line))} {_said(former) or 'nothing'} → {_said(line) or 'nothing'}")
        elif line.sign == "+":
            parts.append(f"“{told(line, line.text.strip())}” is new")
    left = list(old.values())
    parts += [f"“{told(line, line.text.strip())}” is gone" for line in lines if line.sign == "-" and (":" not in line.text or line in left)]
    return f"{kind} {name} changed: {', '.join(parts)}."


def _label(line: Line) -> str:
    return line.text.strip().partition(":")[0]


def _said(line: Line) -> str:
    return line.text.partition(":")[2].strip()


def _placement(old: Mapping[str, Any], new: Mapping[str, Any]) -> Section:
    def placed(content: Mapping[str, Any]) -> dict[str, None]:
        return dict.fromkeys(f"{item['name']} on {machine}" for item in content["connectors"] for machine in item["machines"])

    before, after = placed(old), placed(new)
    items = []
    for name in {**before, **after}:
        how: How = "same" if name in before and name in after else "new" if name in after else "gone"
        sentence = {"same": "", "new": f"{name} is a new placement.", "gone": f"{name} is no longer placed."}[how]
        items.append(Item(how, name, sentence))
    return Section("placement", "Placement", sorted(items, key=lambda item: item.name))


def _plan(old: Sequence[str], new: Sequence[str]) -> Section:
    lines = difference_of_lines(old, new)
    gone = sum(line.sign == "-" for line in lines)
    come = sum(line.sign == "+" for line in lines)
    if not gone and not come:
        return Section("plan", "Plan", [Item("same", "Plan", "", lines)])
    return Section("plan", "Plan", [Item("changed", "Plan", f"The plan changed: {_steps(come)} new, {_steps(gone)} gone.", lines)])


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _properties(
    old: Mapping[tuple[str, str], Value],
    new: Mapping[tuple[str, str], Value],
    used_before: Collection[str] | None,
    used_after: Collection[str] | None,
) -> Section:
    """A side holds the values of the keys that it uses: one that it lacks and does not use has not come or gone."""
    items = []
    for place in sorted({*old, *new}):
        before, after = old.get(place), new.get(place)
        name = f"{place[0]} ({place[1]})"
        secret = any(value is not None and value.secret for value in (before, after))
        kind = "Secret" if secret else "Property"
        if before is None:
            how: How = "new"
            unused = used_before is not None and place[0] not in used_before
            sentence = f"{kind} {name} is used for the first time." if unused else f"{kind} {name} is new."
        elif after is None and used_after is not None and place[0] not in used_after:
            items.append(Item("changed", name, f"{kind} {name} is no longer used; its value stays."))
            continue
        elif after is None:
            how, sentence = "gone", f"{kind} {name} is gone."
        elif before.digest == after.digest and before.secret == after.secret:
            how, sentence = "same", ""
        elif secret:
            how, sentence = "changed", f"Secret {name} changed; its value is never shown."
        else:
            how, sentence = "changed", f"Property {name} changed: {_quoted(before.text)} → {_quoted(after.text)}."
        lines = [] if secret else difference_of_lines(_text_lines(before), _text_lines(after))
        items.append(Item(how, name, sentence, lines))
    return Section("properties", "Properties", items)


def _text_lines(value: Value | None) -> list[str]:
    return [] if value is None else (value.text or "").splitlines() or [""]


def _quoted(text: str | None) -> str:
    first, *more = (text or "").splitlines() or [""]
    return (first if len(first) <= 80 else f"{first[:80]}…") + (" …" if more else "") or "empty"


def _preferences(old: Mapping[str, str], new: Mapping[str, str]) -> Section:
    items = []
    for runtime in sorted({*old, *new}):
        before, after = old.get(runtime, "none"), new.get(runtime, "none")
        if before == after:
            items.append(Item("same", runtime, "", [Line(" ", after)]))
        else:
            sentence = f"The preference of {runtime} changed: {before} → {after}."
            items.append(Item("changed", runtime, sentence, [Line("-", before), Line("+", after)]))
    return Section("preferences", "Preferred leaders", items)
