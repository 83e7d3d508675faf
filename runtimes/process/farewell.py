"""Proven death: the keeper ends a dead process's session, so that a follower takes over at once.

Standard library and the wire only: every keeper imports this.
"""

import base64
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

from runtimes.process.tls import ClientTls


def end_session(etcd: str, namespace: str, runtime: str, launch: str, tls: ClientTls, timeout: float) -> str:
    """Delete `sessions/<runtime>` if its session id begins with `launch:`, comparing the revision just read.

    To be called only once the launch's whole process tree is empty: its followers take over on this evidence.
    Tries again, within `timeout` seconds in all, when the record moved meanwhile (a last write still on its way) or the router did not
    answer. Both calls of a try share one connection. Blocking.

    Returns:
        What became of it, as a sentence; never raises.
    """
    key = base64.b64encode(f"{namespace}sessions/{runtime}".encode()).decode()
    deadline = time.monotonic() + timeout
    trouble = f"the router at {etcd} was not asked"
    while (left := deadline - time.monotonic()) > 0:
        connection = _connection(etcd, tls, min(left, 1.0))
        try:
            tls.refresh()
            found = _post(connection, "/v3/kv/range", {"key": key}).get("kvs", [])
            if not found:
                return f"the session of {runtime} is gone already"
            session = _session_of(found[0])
            if not session.startswith(f"{launch}:"):
                return f"the session of {runtime} belongs to another process ({session or 'unreadable'}) and stays"
            if connection.sock is not None:
                connection.sock.settimeout(min(max(deadline - time.monotonic(), 0.05), 1.0))
            if _post(connection, "/v3/kv/txn", _deletion(key, found[0]["mod_revision"])).get("succeeded"):
                return f"the session {session} of {runtime} is ended"
            trouble = "the record moved while it was read"
        except (OSError, http.client.HTTPException, ValueError) as error:
            trouble = f"the router at {etcd} did not answer: {error}"
            time.sleep(max(0.0, min(0.05, deadline - time.monotonic())))
        finally:
            connection.close()
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


def _connection(etcd: str, tls: ClientTls, timeout: float) -> http.client.HTTPConnection:
    address = urlsplit(etcd)
    return http.client.HTTPSConnection(address.hostname or "127.0.0.1", address.port or 2379, timeout=timeout, context=tls.context)


def _post(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    data = response.read()
    if response.status != 200:
        raise ValueError(f"status {response.status}: {data[:200].decode(errors='replace')}")
    answer: dict[str, Any] = json.loads(data)
    return answer
