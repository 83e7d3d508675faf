"""After a cluster was built anew: what is written into its groups' control records, and what is left alone. Whose turn it is to restart."""

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from runtimes.agent.members import NotMade, give_turn, settle, take_turn
from runtimes.process.records import ControlRecord, Disabled, plain


class Etcd:
    """One control record, as it stands."""

    def __init__(self, value: Any) -> None:
        self.value, self.written = value, ""

    async def call(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        if path == "/v3/kv/range":
            encoded = base64.b64encode(json.dumps(self.value).encode()).decode()
            return {"kvs": [{"value": encoded, "mod_revision": "7"}]} if self.value is not None else {}
        self.written = base64.b64decode(body["success"][0]["request_put"]["value"]).decode()
        return {"succeeded": True}


def settled(value: Any) -> str:
    etcd = Etcd(value)
    asyncio.run(settle(etcd.call, "/baton/1/", {"g1": ["external01.erp"]}))
    return etcd.written


def test_a_member_known_as_disabled_is_so_beside_those_that_the_record_has() -> None:
    written = json.loads(settled(plain(ControlRecord({"external02.erp": Disabled("r", "ann")}))))
    assert sorted(written["disabled"]) == ["external01.erp", "external02.erp"]
    assert json.loads(settled(None))["disabled"].keys() == {"external01.erp"}


@pytest.mark.parametrize("value", [{"disabled": ["of another shape"]}, "no record"])
def test_a_record_of_a_newer_program_is_not_written_over(value: Any) -> None:
    etcd = Etcd(value)
    with pytest.raises(NotMade, match="newer program"):
        asyncio.run(settle(etcd.call, "/baton/1/", {"g1": ["external01.erp"]}))
    assert not etcd.written


class Turn:
    """The one key that says whose turn it is; transactions on it as etcd makes them."""

    def __init__(self) -> None:
        self.value: str | None = None
        self.away = False

    async def call(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.away:
            raise NotMade("timed out")
        if path == "/v3/lease/grant":
            return {"ID": "7"}
        (compare,) = body["compare"]
        if (self.value is None) if compare["target"] == "VERSION" else (self.value == compare["value"]):
            (act,) = body["success"]
            self.value = act["request_put"]["value"] if "request_put" in act else None
            return {"succeeded": True}
        return {}


def test_a_turn_that_could_not_be_given_back_is_still_ones_own() -> None:
    """The router did not answer in that moment: it would have waited for itself until the lease ended."""
    turn = Turn()

    async def story() -> list[bool]:
        taken = [await take_turn(turn.call, "/baton/1/", "external01"), await take_turn(turn.call, "/baton/1/", "external02")]
        turn.away = True
        with pytest.raises(NotMade):
            await give_turn(turn.call, "/baton/1/", "external01")
        turn.away = False
        taken.append(await take_turn(turn.call, "/baton/1/", "external01"))
        await give_turn(turn.call, "/baton/1/", "external02")
        taken.append(await take_turn(turn.call, "/baton/1/", "external02"))
        await give_turn(turn.call, "/baton/1/", "external01")
        return [*taken, await take_turn(turn.call, "/baton/1/", "external02")]

    assert asyncio.run(story()) == [True, False, True, False, True]
