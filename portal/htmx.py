"""One view answers with the whole page or with its part, and a refusal is shown where the person is."""

from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from django.contrib import messages
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect as django_redirect
from django.shortcuts import render as django_render
from django.template.loader import render_to_string
from django.utils.deprecation import MiddlewareMixin
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from portal import problems
from portal.errors import NotAllowed


class UserRequest(HttpRequest):
    """A request of a signed-in person, as LoginRequiredMiddleware lets it through."""

    user: User
    htmx: HtmxDetails


def whole_number(text: str, *, digits: int = 9) -> int | None:
    """What a person or a program put into a field or an address: a number of at most so many digits, or None."""
    return int(text) if text.isdecimal() and len(text) <= digits else None


def render(request: HttpRequest, template: str, context: dict[str, Any] | None = None, *, part: str | None = None) -> HttpResponse:
    """The page, or only its `part` (a template "_name.html") when htmx asks. A refused form answers 200 too: htmx swaps nothing else."""
    htmx: HtmxDetails = request.htmx  # type: ignore[attr-defined]
    wanted = part if part and htmx and not htmx.boosted and not htmx.history_restore_request else template
    response = django_render(request, wanted, context)
    if part:
        response["Vary"] = "HX-Request"
    return response


def dialog(request: HttpRequest, template: str, context: dict[str, Any] | None = None, *, back: str) -> HttpResponse:
    """A template that extends `dialog_base`: a dialog for htmx, a page of its own without it. Cancel goes `back`."""
    base = "components/_dialog.html" if request.htmx else "dialog.html"  # type: ignore[attr-defined]
    response = django_render(request, template, {**(context or {}), "dialog_base": base, "back": back})
    response["Vary"] = "HX-Request"
    return response


def redirect(request: HttpRequest, to: Any, *args: Any) -> HttpResponse:
    """Go to another page: a plain redirect, or htmx's own (from a dialog the whole page goes, not only the part)."""
    answer = django_redirect(to, *args)
    if request.htmx:  # type: ignore[attr-defined]
        return HttpResponseClientRedirect(answer["Location"])
    return answer


def refused(request: HttpRequest, refusal: NotAllowed) -> HttpResponse:
    """The answer of a view whose act was refused and which has no form to show it in: an alert on the page the person came from."""
    if request.htmx:  # type: ignore[attr-defined]
        response = HttpResponse(render_to_string("components/_refusal.html", {"refusal": refusal}, request))
        response["HX-Reswap"] = "none"  # the alert comes out of band, the rest of the page stays
        return response
    messages.error(request, " ".join([refusal.sentence, *(reason for reason in refusal.reasons if reason != refusal.sentence)]))
    origin = urlsplit(request.headers.get("Referer", ""))
    if origin.netloc == request.get_host() and request.method == "POST":
        return django_redirect(origin.path + (f"?{origin.query}" if origin.query else ""))
    return django_render(request, "refused.html", {"refusal": refusal}, status=refusal.status)


class RefusalMiddleware(MiddlewareMixin):
    """Turns a NotAllowed that a page's view did not catch into words (the API has its own: portal.problems); and the address of an act
    that somebody opened, from the history or a bookmark, into a page that says where the act is."""

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return refused(request, exception) if isinstance(exception, NotAllowed) else None

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """The address of an act, looked at (a reloaded page, a copied link): Django's answer has no words."""
        if response.status_code != HTTPStatus.METHOD_NOT_ALLOWED or response.streaming or response.content:
            return response
        allowed = {"Allow": response["Allow"]}
        if request.path.startswith(("/api/", "/agent/")):
            words = problems.body(405, "method-not-allowed", f'Method "{request.method}" not allowed.')
            return JsonResponse(words, status=405, content_type=problems.CONTENT_TYPE, headers=allowed)
        page = django_render(request, "405.html", status=HTTPStatus.METHOD_NOT_ALLOWED)
        page["Allow"] = response["Allow"]
        return page
