"""The cells of the grid of properties. A page has thousands of them: written here, because a template costs ten times as much per cell."""

from collections.abc import Iterable
from html import escape

from django import template
from django.utils.safestring import SafeString, mark_safe

from deployments.grid import Cell
from portal.property_values import by_key

register = template.Library()
register.filter(by_key)
LONGEST = 120  # characters of a value


@register.simple_tag
def property_cells(cells: Iterable[Cell]) -> SafeString:
    """One `td` per cell: the value that applies, where it comes from when inherited, what is missing, narrower or newer."""
    return mark_safe("".join(map(_cell, cells)))  # noqa: S308 - every text is escaped below


def _cell(cell: Cell) -> str:
    kind = "is-missing" if cell.missing else "" if cell.own else "is-inherited"
    title = f"Missing for {escape(', '.join(cell.missing))}" if cell.missing else "Newer than what runs" if cell.changed else ""
    told = f' title="{title}"' if title else ""
    return f'<td tabindex="-1" class="{kind}{" is-changed" if cell.changed else ""}"{told}>{_content(cell)}</td>'


def _content(cell: Cell) -> str:
    value = cell.value
    if value is None:
        text = '<span class="lacks">missing</span>' if cell.missing else ""
    else:
        if value.secret:
            text = '<span class="is-secret">••• <small>set</small></span>'
        elif not value.value:
            text = "<em>empty</em>"
        else:
            shown = value.value if len(value.value) <= LONGEST else f"{value.value[: LONGEST - 1]}…"
            text = f'<span class="v">{escape(shown)}</span>'
        if not cell.own:
            text += f'<small class="from">{escape(cell.source)}</small>'
    if cell.more:
        text += f'<small class="more" title="{escape(", ".join(other.scope for other in cell.more))}">+{len(cell.more)} narrower</small>'
    if cell.tested:
        told = escape("; ".join(cell.tested.sentences))
        text += f'<small class="reach tone-{cell.tested.tone}" title="{told}">{told}</small>'
    return text + ('<span class="newer" aria-label="newer than what runs"></span>' if cell.changed else "")
