"""etcd's database: when it is compacted, defragmented and rescued, and a real one that was full."""

import base64
import time

import httpx
import pytest

from runtimes.agent.upkeep import MEGABYTE, Care, Size, care_for, presses, warning
from runtimes.process.tls import ClientTls
from runtimes.protocol import TlsFiles
from tests.runtimes.agent.conftest import Host, LittlePortal, cluster, eventually

QUOTA = 2048 * MEGABYTE


def size(file: int, in_use: int, full: bool = False) -> Size:
    """In MB."""
    return Size(file * MEGABYTE, in_use * MEGABYTE, 41, full)


@pytest.mark.parametrize(
    ("seen", "idle", "care"),
    [
        pytest.param(size(40, 39), {}, Care.NOTHING, id="small"),
        pytest.param(size(500, 40), {}, Care.NOTHING, id="free room below a quarter of the quota"),
        pytest.param(size(600, 40), {}, Care.DEFRAGMENT, id="a burst has passed: its room is given back"),
        pytest.param(size(600, 400), {}, Care.NOTHING, id="little would be gained"),
        pytest.param(size(600, 40), {Care.DEFRAGMENT: 599.0}, Care.NOTHING, id="it was done a moment ago"),
        pytest.param(size(1100, 1030), {}, Care.COMPACT, id="half full: history goes at once"),
        pytest.param(size(1100, 1030), {Care.COMPACT: 59.0}, Care.NOTHING, id="once a minute"),
        pytest.param(size(2100, 900, full=True), {Care.DEFRAGMENT: 1.0}, Care.RESCUE, id="full: at once, whatever was done before"),
        pytest.param(size(2100, 2000, full=True), {Care.RESCUE: 9.0}, Care.NOTHING, id="and again after some seconds"),
    ],
)
def test_what_a_database_needs(seen: Size, idle: dict[Care, float], care: Care) -> None:
    assert care_for(seen, quota=QUOTA, idle=idle) is care


def test_a_nearly_full_one_waits_for_nobody() -> None:
    assert not presses(size(1500, 40), quota=QUOTA) and presses(size(1536, 40), quota=QUOTA)


def test_people_are_told_from_half_of_the_quota_on() -> None:
    assert warning(size(1500, 1023), quota=QUOTA) == ""
    assert warning(size(1500, 1024), quota=QUOTA).startswith("its database holds 1024 of 2048 MB")


@pytest.mark.journey
def test_a_full_database_is_emptied_and_takes_writes_again(host: Host, portal: LittlePortal) -> None:
    portal.order("external01", router=cluster("external01")["external01"])
    host.start(before="from runtimes.agent import upkeep; upkeep.QUOTA_BYTES = 6 * 1024 ** 2; upkeep.RESCUE_AGAIN = 1.0")
    running = eventually(lambda: (last := portal.last("external01")) and last.router and last.router.state == "running" and last.router, 20)
    tls = ClientTls(TlsFiles(authority=str(host.home / "tls" / "authority.pem"), machine=str(host.home / "tls" / "machine.pem")))
    tls.refresh()
    client = httpx.Client(base_url=f"https://127.0.0.1:{running.client_port}/v3", verify=tls.context, trust_env=False, timeout=5)
    value = base64.b64encode(bytes(200_000)).decode()

    def written() -> bool:
        return client.post("/kv/put", json={"key": "YQ==", "value": value}).status_code == 200

    with client:
        full = 0
        for _ in range(60):  # the same small state, again and again
            full += not written()
            if full:
                break
        assert full, "etcd refuses writes"
        eventually(written, within=30)
        time.sleep(0.2)
        assert client.post("/maintenance/alarm", json={"action": "GET"}).json().get("alarms", []) == []
    eventually(lambda: portal.last("external01").router.state == "running")
