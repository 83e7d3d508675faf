"""etcd's documented JSON gateway (`/v3/kv/txn`, `/v3/watch`), as much of it as an election needs.

Values are JSON; keys and values travel as base64, 64-bit integers as strings, and zero values are left out of answers.
Nothing here is ever retried: a retried transaction can report a failed comparison though its first copy committed.
"""

import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from runtimes.process.tls import ClientTls
from runtimes.protocol import TlsFiles


class OutcomeUnknown(Exception):  # noqa: N818 - says what happened
    """The request may or may not have been carried out, now or later: a time-out, a broken connection, an error of the server."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as etcd last had it; revision 0 means that it is absent."""

    key: str
    revision: int
    value: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A transaction's answer: did its comparisons hold, the store's revision, and every key that the branch taken has read."""

    succeeded: bool
    revision: int
    entries: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Event:
    """A watched change; `entry.value` is None and `deleted` true when the key went away at `entry.revision`."""

    entry: Entry
    deleted: bool


def _to_b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _from_b64(data: str) -> str:
    return base64.b64decode(data).decode()


def _value_of(kv: Mapping[str, Any]) -> Any:
    try:
        return json.loads(_from_b64(kv.get("value", "")))
    except ValueError:
        return None


def values_of(answer: Mapping[str, Any]) -> list[Any]:
    """The values of a plain range's answer."""
    return [_value_of(kv) for kv in answer.get("kvs", ())]


def unchanged(key: str, revision: int) -> dict[str, Any]:
    """Comparison: the key's last write is this one; 0: the key is absent."""
    return {"key": _to_b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def put(key: str, value: Any) -> dict[str, Any]:
    return {"request_put": {"key": _to_b64(key), "value": _to_b64(json.dumps(value, separators=(",", ":")))}}


def delete(key: str) -> dict[str, Any]:
    return {"request_delete_range": {"key": _to_b64(key)}}


def read(key: str) -> dict[str, Any]:
    return {"request_range": {"key": _to_b64(key)}}


def read_prefix(prefix: str) -> dict[str, Any]:
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    return {"request_range": {"key": _to_b64(prefix), "range_end": _to_b64(end)}}


class Etcd:
    """One router's client address. `transact` is bounded as a whole; `watch` lasts until it breaks."""

    def __init__(self, url: str, tls: TlsFiles, *, connections: int = 2) -> None:
        self.url = url.rstrip("/")
        self._tls = ClientTls(tls)
        # No retries, no proxies from the environment; of a runtime's two kept connections one is for transactions and one for the watch.
        limits = httpx.Limits(max_keepalive_connections=connections, keepalive_expiry=60)
        transport = httpx.AsyncHTTPTransport(verify=self._tls.context, retries=0, limits=limits)
        self._client = httpx.AsyncClient(transport=transport, base_url=self.url, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def transact(
        self,
        compare: Sequence[dict[str, Any]],
        success: Sequence[dict[str, Any]],
        failure: Sequence[dict[str, Any]],
        *,
        timeout: float,
    ) -> Answer:
        """One transaction, at most `timeout` seconds; an answer after that is thrown away with its connection.

        Raises:
            OutcomeUnknown: whatever was not a clear answer.
        """
        body = {"compare": list(compare), "success": list(success), "failure": list(failure)}
        data = await self.ask("/v3/kv/txn", body, timeout=timeout)
        return _answer(data, success if data.get("succeeded") else failure)

    async def ask(self, path: str, body: Mapping[str, Any], *, timeout: float) -> Mapping[str, Any]:
        """One call of the gateway ("/v3/maintenance/status"), at most `timeout` seconds.

        Raises:
            OutcomeUnknown: whatever was not a clear answer.
        """
        self._refresh()
        try:
            response = await self._client.post(path, json=body, timeout=timeout)
        except httpx.TimeoutException as error:
            raise OutcomeUnknown(f"the router at {self.url} did not answer within {timeout:g} s") from error
        except (httpx.HTTPError, OSError) as error:  # a certificate refused after the handshake comes as the latter
            raise OutcomeUnknown(f"the router at {self.url} cannot be reached: {error}") from error
        try:
            data = response.json()
        except ValueError as error:
            raise OutcomeUnknown(f"the router at {self.url} answered {response.status_code} without JSON") from error
        if response.status_code != 200:
            raise OutcomeUnknown(f"the router at {self.url} refused: {data.get('message') or data.get('error') or response.status_code}")
        found: Mapping[str, Any] = data
        return found

    async def watch(self, keys: Sequence[str]) -> AsyncIterator[Event]:
        """Changes of these keys from now on, while the router knows a leader of its cluster.

        Raises:
            OutcomeUnknown: the stream broke; what changed meanwhile must be read anew.
        """
        self._refresh()
        body = "\n".join(json.dumps({"create_request": {"key": _to_b64(key)}}) for key in keys)
        timeout = httpx.Timeout(connect=1.0, read=None, write=1.0, pool=1.0)
        headers = {"Grpc-Metadata-hasleader": "true"}
        try:
            async with self._client.stream("POST", "/v3/watch", content=body, headers=headers, timeout=timeout) as response:
                async for line in response.aiter_lines():
                    message = json.loads(line)
                    result = message.get("result")
                    if result is None or result.get("canceled"):
                        raise OutcomeUnknown(f"the watch was ended: {message}")
                    for event in result.get("events", ()):
                        yield _event(event)
        except (httpx.HTTPError, OSError, ValueError) as error:
            raise OutcomeUnknown(f"the watch broke: {error}") from error
        raise OutcomeUnknown("the watch was closed by the router")

    def _refresh(self) -> None:
        try:
            self._tls.refresh()
        except OSError as error:
            raise OutcomeUnknown(f"this machine's certificate cannot be read: {error}") from error


def _event(event: Mapping[str, Any]) -> Event:
    kv = event["kv"]
    deleted = event.get("type") == "DELETE"
    return Event(Entry(_from_b64(kv["key"]), int(kv["mod_revision"]), None if deleted else _value_of(kv)), deleted)


def _answer(data: Mapping[str, Any], requests: Sequence[dict[str, Any]]) -> Answer:
    entries: dict[str, Entry] = {}
    for request, response in zip(requests, data.get("responses", ()), strict=False):
        wanted = request.get("request_range")
        if wanted is None:
            continue
        if "range_end" not in wanted:
            key = _from_b64(wanted["key"])
            entries[key] = Entry(key, 0)
        for kv in response.get("response_range", {}).get("kvs", ()):
            key = _from_b64(kv["key"])
            entries[key] = Entry(key, int(kv["mod_revision"]), _value_of(kv))
    return Answer(bool(data.get("succeeded")), int(data["header"]["revision"]), entries)
