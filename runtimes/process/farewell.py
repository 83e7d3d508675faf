"""Proven death: the keeper ends a dead process's session, so that a follower takes over at once.

Standard library only: every keeper imports this.
"""

import base64
import http.client
import json
import ssl
import time
from typing import Any
from urllib.parse import urlsplit


def end_session(etcd: str, namespace: str, runtime: str, launch: str, timeout: float, context: ssl.SSLContext | None = None) -> str:
    """Delete `sessions/<runtime>` if its session id begins with `launch:`, comparing the revision just read.

    To be called only once the launch's whole process tree is empty: its followers take over on this evidence.
    Tries again, within `timeout` seconds in all, when the record moved meanwhile (a last write still on its way) or the router did not
    answer. Blocking.

    Returns:
        What became of it, as a sentence; never raises.
    """
    key = base64.b64encode(f"{namespace}sessions/{runtime}".encode()).decode()
    deadline = time.monotonic() + timeout
    trouble = f"the router at {etcd} was not asked"
    while (left := deadline - time.monotonic()) > 0:
        try:
            found = _post(etcd, "/v3/kv/range", {"key": key}, min(left, 1.0), context).get("kvs", [])
            if not found:
                return f"the session of {runtime} is gone already"
            session = _session_of(found[0])
            if not session.startswith(f"{launch}:"):
                return f"the session of {runtime} belongs to another process ({session or 'unreadable'}) and stays"
            left = max(deadline - time.monotonic(), 0.05)
            if _post(etcd, "/v3/kv/txn", _deletion(key, found[0]["mod_revision"]), min(left, 1.0), context).get("succeeded"):
                return f"the session {session} of {runtime} is ended"
            trouble = "the record moved while it was read"
        except (OSError, http.client.HTTPException, ValueError) as error:
            trouble = f"the router at {etcd} did not answer: {error}"
            time.sleep(max(0.0, min(0.05, deadline - time.monotonic())))
    return f"the session of {runtime} could not be ended within {timeout:g} s: {trouble}; its followers wait until it has stood still"


def _deletion(key: str, revision: str) -> dict[str, Any]:
    return {
        "compare": [{"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision}],
        "success": [{"request_delete_range": {"key": key}}],
    }


def _session_of(kv: dict[str, Any]) -> str:
    try:
        return str(json.loads(base64.b64decode(kv.get("value", "")))["session"])
    except (ValueError, KeyError, TypeError):
        return ""


def _post(etcd: str, path: str, body: dict[str, Any], timeout: float, context: ssl.SSLContext | None) -> dict[str, Any]:
    address = urlsplit(etcd)
    host, port = address.hostname or "127.0.0.1", address.port or 2379
    connection: http.client.HTTPConnection = (
        http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        if address.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout)
    )
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise ValueError(f"status {response.status}: {data[:200].decode(errors='replace')}")
    answer: dict[str, Any] = json.loads(data)
    return answer
