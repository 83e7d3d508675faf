"""After a cluster was built anew: what is written into its groups' control records, and what is left alone."""

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from runtimes.agent.members import NotMade, settle
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
