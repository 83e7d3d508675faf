"""etcd's member API through this machine's router: what the cluster lists, one change of it, and its facts after it was built anew.

Every function takes `call`, which posts to the router and raises `NotMade` with etcd's own words. Retried by whoever asks, for each change
is refused or has no effect when it was made already.
"""

import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from runtimes.process.records import ControlRecord, Disabled, control_key, parse, plain
from runtimes.protocol import UPGRADE, ClusterMember, MemberAct, MemberChange

Call = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]

# etcd refuses to add a member until all others have been connected for 5 s, and to promote one that has not caught up: both pass.
PASSING = ("unhealthy cluster", "in sync with leader", "too many learner")


class NotMade(Exception):  # noqa: N818 - said by name
    """etcd did not do it; the message is its own."""


async def members_of(call: Call) -> list[ClusterMember]:
    """As this router lists them, by id. Raises: NotMade (a learner lists nothing)."""
    found = (await call("/v3/cluster/member/list", {})).get("members", [])
    return sorted((_member(row) for row in found), key=lambda member: member.id)


def _member(row: Mapping[str, Any]) -> ClusterMember:
    urls = row.get("peerURLs") or [""]
    return ClusterMember(id=f"{int(row['ID']):x}", name=str(row.get("name", "")), url=str(urls[0]), learner=bool(row.get("isLearner")))


def why_stale(change: MemberChange, listed: Sequence[ClusterMember]) -> str:
    """Why a change that was planned from another list must not be made; empty when the cluster is still as it was then."""

    def essence(members: Sequence[ClusterMember]) -> set[tuple[str, str, bool]]:
        return {(member.id, member.url, member.learner) for member in members}

    return "" if essence(change.listed) == essence(listed) else "the cluster's members have changed since this was planned"


async def make(call: Call, change: MemberChange) -> None:
    """One change. Raises: NotMade."""
    if change.act is MemberAct.OTHER:
        raise NotMade(UPGRADE)
    member = {"ID": str(int(change.member, 16))} if change.member else {}
    if change.act is MemberAct.ADD:
        await call("/v3/cluster/member/add", {"peerURLs": [change.url], "isLearner": True})
    elif change.act is MemberAct.PROMOTE:
        await call("/v3/cluster/member/promote", member)
    elif change.act is MemberAct.REMOVE:
        await call("/v3/cluster/member/remove", member)
    else:
        await call("/v3/cluster/member/update", {**member, "peerURLs": [change.url]})


async def settle(call: Call, namespace: str, disabled: Mapping[str, Sequence[str]]) -> None:
    """After the cluster was built anew, before any runtime reaches this router: open hand-overs of the former one end, and members that
    the portal knows as disabled are so, though the survivor may have missed the last writes before the majority went. Raises: NotMade."""
    for group, members in disabled.items():
        key = control_key(namespace, group)
        control, revision = await _control(call, key)
        anew = {member: control.disabled.get(member, Disabled(request="", actor="rebuild")) for member in members}
        wanted = ControlRecord({**control.disabled, **anew}, None, control.done, control.isolation)
        if wanted != control:
            compare = {"key": _b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
            write = {"request_put": {"key": _b64(key), "value": _b64(json.dumps(plain(wanted), separators=(",", ":")))}}
            answer = await call("/v3/kv/txn", {"compare": [compare], "success": [write]})
            if not answer.get("succeeded"):
                raise NotMade(f"{key} was changed meanwhile")


async def _control(call: Call, key: str) -> tuple[ControlRecord, int]:
    rows = (await call("/v3/kv/range", {"key": _b64(key)})).get("kvs", [])
    if not rows:
        return ControlRecord(), 0
    try:
        value = json.loads(base64.b64decode(rows[0].get("value", "")))
    except ValueError:
        value = None
    control = parse(ControlRecord, value)
    if control is None:
        raise NotMade(f"{key} was written by a newer program and cannot be read here: upgrade this machine's agent")
    return control, int(rows[0]["mod_revision"])


TURN_SECONDS = 30  # within which a router whose turn it is runs again, or the next one goes


async def take_turn(call: Call, namespace: str, machine: str) -> bool:
    """Routers that run well and must restart do so one after another. False: it is another one's turn. One's own, which could not be given
    back, is taken again. Raises: NotMade."""
    lease = (await call("/v3/lease/grant", {"TTL": str(TURN_SECONDS)}))["ID"]
    key = _b64(f"{namespace}restarting")
    absent = {"key": key, "target": "VERSION", "result": "EQUAL", "version": "0"}
    put = {"request_put": {"key": key, "value": _b64(machine), "lease": lease}}
    for compare in (absent, _own_turn(key, machine)):
        if (await call("/v3/kv/txn", {"compare": [compare], "success": [put]})).get("succeeded"):
            return True
    return False


async def give_turn(call: Call, namespace: str, machine: str) -> None:
    """It runs again: the next one may go. Nothing when it was not its turn. Raises: NotMade."""
    key = _b64(f"{namespace}restarting")
    await call("/v3/kv/txn", {"compare": [_own_turn(key, machine)], "success": [{"request_delete_range": {"key": key}}]})


def _own_turn(key: str, machine: str) -> dict[str, str]:
    return {"key": key, "target": "VALUE", "result": "EQUAL", "value": _b64(machine)}


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
