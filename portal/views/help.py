"""The documentation, inside the portal: the Markdown files of docs/, rendered without raw HTML."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from django.conf import settings
from django.http import Http404, HttpResponse
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import slugify
from django.views.decorators.http import require_GET
from markdown_it import MarkdownIt

from portal.htmx import UserRequest, render


@cache
def chapters() -> dict[str, Path]:
    """ "failover" -> docs/failover.md, "decisions/0010-frame" -> docs/decisions/0010-frame.md. Only these can be read."""
    root = Path(settings.BASE_DIR) / "docs"
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.md"))}


def _title(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() or path.stem


@cache
def _rendered(path: Path, changed: float) -> tuple[str, SafeString]:
    """Title and HTML of a chapter; `changed` is the file's time, so that an edited one is read again."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(path.read_text(encoding="utf-8"))
    title = path.stem
    for token, content in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", slugify(content.content))
            if token.tag == "h1":
                title = re.sub(r"[`*]", "", content.content)
        for child in token.children or []:
            href = str(child.attrGet("href") or "")
            if child.type == "link_open" and (found := re.fullmatch(r"(?:\./|docs/)?([\w./-]+)\.md(#.*)?", href)):
                name = str(Path(found[1])) if path.parent.name == "docs" else f"{path.parent.name}/{found[1]}".replace("decisions/../", "")
                child.attrSet("href", reverse("docs", args=[name]) + (found[2] or ""))
    # The chapter's own title is the page's heading already.
    first = next((index for index, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h1"), None)
    body = tokens if first is None else tokens[:first] + tokens[first + 3 :]
    return title, mark_safe(markdown.renderer.render(body, markdown.options, {}))  # noqa: S308 - raw HTML is off


@require_GET
def chapter(request: UserRequest, chapter: str = "index") -> HttpResponse:
    known = chapters()
    contents = [(name, _title(path)) for name, path in known.items() if "/" not in name]
    decisions = [(name, _title(path)) for name, path in known.items() if name.startswith("decisions/")]
    context: dict[str, object] = {"contents": contents, "decisions": decisions, "chapter": chapter}
    if chapter != "index":
        if chapter not in known:
            raise Http404("There is no such chapter.")
        context["heading"], context["body"] = _rendered(known[chapter], known[chapter].stat().st_mtime)
    return render(request, "portal/docs.html", context)
