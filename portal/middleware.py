"""What stands before every view. One synchronous middleware makes Django run every asynchronous view below it from a blocked thread, and
agents wait in such a view for most of their life; so these can do both."""

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseBase
from django.urls import resolve
from django.utils.deprecation import MiddlewareMixin
from whitenoise.middleware import WhiteNoiseMiddleware

from portal import threads


class NoNulInAddress(MiddlewareMixin):
    """A NUL is in no name and in no word that a database can look for (PostgreSQL refuses the query): 400, and no view is troubled."""

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        if "\0" not in request.path_info and "%00" not in request.META.get("QUERY_STRING", ""):
            return None
        return HttpResponseBadRequest("A NUL character (%00) stands in the address: leave it out.", content_type="text/plain")

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Without the thread that Django would begin for the look above."""
        refused = self.process_request(request)
        if refused is not None:
            return refused
        answer: HttpResponseBase = await self.get_response(request)  # type: ignore[misc]
        return answer


class AgentsPassBy:
    """Agents have no session, no cookie and no person, and there may be many: their views are called at once, past all that stands
    below for people's pages (under ASGI each such layer costs two changes of thread, together as much as storing a report)."""

    sync_capable = True
    async_capable = True
    prefix = "/agent/v1/"

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._asynchronous: bool = iscoroutinefunction(get_response)
        if self._asynchronous:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._asynchronous:
            return self._without_a_thread(request)
        view, arguments = self._view(request)
        answer: HttpResponseBase = (async_to_sync(view) if iscoroutinefunction(view) else view)(request, **arguments)
        return answer

    async def _without_a_thread(self, request: HttpRequest) -> HttpResponseBase:
        view, arguments = self._view(request)
        answer: HttpResponseBase = await (
            view(request, **arguments) if iscoroutinefunction(view) else threads.run(view, request, **arguments)
        )
        return answer

    def _view(self, request: HttpRequest) -> tuple[Callable[..., Any], dict[str, Any]]:
        """What answers: everything below, or an agent's view. Raises Http404, which becomes an answer above."""
        if not request.path_info.startswith(self.prefix):
            return self.get_response, {}
        request.resolver_match = found = resolve(request.path_info)
        return found.func, found.kwargs


class StaticFiles(WhiteNoiseMiddleware):  # type: ignore[misc]
    """WhiteNoise without a thread."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> None:
        super().__init__(get_response)
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if iscoroutinefunction(self):
            return self._without_a_thread(request)
        answer: HttpResponseBase = super().__call__(request)
        return answer

    async def _without_a_thread(self, request: HttpRequest) -> HttpResponseBase:
        if not request.path_info.startswith(self.static_prefix):
            answer: HttpResponseBase = await self.get_response(request)
            return answer
        return await sync_to_async(self._file)(request) or await self.get_response(request)

    def _file(self, request: HttpRequest) -> HttpResponse | None:
        """The file as one piece: ASGI would read a stream of a synchronous file all at once anyway, with a warning. They are small."""
        found = self.find_file(request.path_info) if self.autorefresh else self.files.get(request.path_info)
        if found is None:
            return None
        response = found.get_response(request.method, request.META)
        content = b""
        if response.file is not None:
            with response.file:
                content = response.file.read()
        answer = HttpResponse(content, status=int(response.status))
        del answer["Content-Type"]
        for name, value in response.headers:
            answer[name] = value
        return answer
