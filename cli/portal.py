"""The public API as the commands use it: one client, every call with a time-out, refusals as exceptions with the portal's sentence."""

from collections.abc import Iterator
from typing import Any

import httpx

from cli.settings import Settings

SECONDS = httpx.Timeout(30, connect=5)


class Failed(Exception):  # noqa: N818 - said by name
    """The command cannot do what it was asked for. `status` is the exit status (cli/app.py lists them)."""

    status = 2

    def __init__(self, sentence: str, reasons: list[str] | None = None) -> None:
        super().__init__(sentence)
        self.sentence, self.reasons = sentence, reasons or []


class Usage(Failed):
    """Something is missing or wrong in what was typed."""


class Refused(Failed):
    """The portal says no; its own words."""

    status = 3

    def __init__(self, sentence: str, reasons: list[str] | None = None, http_status: int = 0, code: str = "") -> None:
        super().__init__(sentence, reasons)
        self.http_status, self.code = http_status, code


class Unreachable(Failed):
    """No answer, or none that is the portal's."""

    status = 4


class Portal:
    """Answers are the API's own documents. Raises Refused or Unreachable."""

    def __init__(self, settings: Settings) -> None:
        if not settings.url:
            raise Usage("No portal is known: run `baton login URL`, or set BATON_URL and BATON_TOKEN.")
        self.url = settings.url.rstrip("/")
        headers = {"Accept": "application/json"} | ({"Authorization": f"Token {settings.token}"} if settings.token else {})
        try:
            self._client = httpx.Client(base_url=f"{self.url}/api/v1/", headers=headers, timeout=SECONDS)
        except httpx.InvalidURL as error:
            raise Usage(f"{settings.url} is no address of a portal: {error}.") from None

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        return self.ask("GET", path, params={name: value for name, value in query.items() if value not in (None, "")})

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self.ask("POST", path, json={} if body is None else body, params=query)

    def text(self, path: str) -> str:
        """A document that is no JSON, such as a project's YAML."""
        return str(self.ask("GET", path, headers={"Accept": "*/*"}) or "")

    def every(self, path: str, **query: Any) -> Iterator[Any]:
        """The rows of a list, page by page."""
        answer = self.get(path, **query)
        while True:
            yield from answer["results"]
            if not answer["next"]:
                return
            answer = self.ask("GET", answer["next"])

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """One call. Returns: the document, text for other media types, None for no content."""
        try:
            answer = self._client.request(method, path, **more)
        except httpx.TimeoutException:
            raise Unreachable(
                f"{self.url} did not answer in time. What was asked for may have been done: look before you repeat it."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"{self.url} cannot be reached: {error}.") from None
        if answer.is_success:
            return _content(answer, self.url)
        raise _refusal(answer, self.url)


def _content(answer: httpx.Response, url: str) -> Any:
    if answer.status_code == 204 or not answer.content:
        return None
    if "json" not in answer.headers.get("Content-Type", ""):
        if "html" in answer.headers.get("Content-Type", ""):
            raise Unreachable(f"{url} answers with a page instead of the API: is it Baton's address?")
        return answer.text
    return answer.json()


def _refusal(answer: httpx.Response, url: str) -> Failed:
    if "problem+json" in answer.headers.get("Content-Type", ""):
        said = answer.json()
        sentence = said["detail"]
        if answer.status_code == 401:
            sentence = f"{sentence} Run `baton login {url}`."
        return Refused(
            sentence,
            [reason for reason in said.get("reasons", []) if reason not in said["detail"]],
            answer.status_code,
            said.get("code", ""),
        )
    if answer.status_code < 500:
        return Refused(
            f"{url} says {answer.status_code} {answer.reason_phrase} to {answer.request.url.path}.", http_status=answer.status_code
        )
    return Unreachable(f"{url} says {answer.status_code} {answer.reason_phrase}: look into the portal's log.")
