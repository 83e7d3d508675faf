"""A release renames a group, and the next moves its inbound to another one, while it leads and files keep coming. (`make test-long`)"""

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.journeys.baton import Baton, until

pytestmark = [pytest.mark.journey, pytest.mark.long]

FLOWS = "projects/webshop/create/flows/erp/"


class Pages:
    """The portal's pages, as a browser without JavaScript uses them."""

    def __init__(self, baton: Baton) -> None:
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{baton.port}/", timeout=20, trust_env=False, follow_redirects=True)
        self.fill("login/", username="admin", password="baton")

    def fill(self, path: str, **fields: str) -> str:
        """Open the form at this address and send it."""
        form = self.client.get(path)
        assert form.status_code == 200, (path, form.status_code)
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form.text)
        assert token is not None, path
        answer = self.client.post(path, data={"csrfmiddlewaretoken": token[1], **fields}, headers={"Referer": str(form.url)})
        assert answer.status_code == 200 and "field-error" not in answer.text, (path, answer.text[-3000:])
        return answer.text


@pytest.fixture(scope="module")
def pages(baton: Baton) -> Iterator[Pages]:
    made = Pages(baton)
    yield made
    made.client.close()


class Drops:
    """Files that keep coming, from a thread of their own."""

    def __init__(self, baton: Baton, word: str) -> None:
        self.baton, self.word, self.digests, self.ended = baton, word, [], threading.Event()  # type: ignore[var-annotated]
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.ended.wait(0.1):
            name = f"{self.word}-{len(self.digests)}"
            self.digests.append(self.baton.drop(name.encode(), name))

    def __enter__(self) -> "Drops":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def release(baton: Baton, name: str) -> dict[str, Any]:
    """Made, activated and deployed on Test."""
    made = baton.post("releases/", project="webshop", name=name)
    assert made.status_code == 201, made.text
    activated = baton.post(f"releases/{made.json()['id']}/activate/", environment="test")
    assert activated.status_code in (200, 201, 202), activated.text
    return baton.deploy()


def groups(baton: Baton) -> dict[str, dict[str, Any]]:
    found = baton.api.get("groups/", params={"environment": "test", "project": "webshop"}).json()["results"]
    return {group["name"]: group for group in found}


def test_a_group_is_renamed_while_it_leads(baton: Baton, pages: Pages) -> None:
    before = baton.group("erp-orders")
    with Drops(baton, "renamed") as drops:
        pages.fill(f"{FLOWS}groups/erp-orders/rename/", name="orders")
        pages.fill(f"{FLOWS}erp-orders/version/", bump="minor", description="the group has another name")
        deployment = release(baton, "another name")
        assert deployment["status"] == "succeeded", deployment
        time.sleep(0.5)
    for digest in drops.digests:
        baton.received(digest, within=30)
    after = groups(baton)
    assert "erp-orders" not in after and after["orders"]["id"] == before["id"], "the same group"
    assert after["orders"]["epoch"] >= before["epoch"]
    until(lambda: baton.settled("orders") == ("external01", "external02"), 15, "it leads where it is preferred")
    history = baton.api.get(f"groups/{before['id']}/changes/").json()["results"]
    assert history[-1]["cause"] == "first", "its history goes on"


def test_an_inbound_moves_to_another_group_while_it_leads(baton: Baton, pages: Pages) -> None:
    with Drops(baton, "moved") as drops:
        pages.fill(f"{FLOWS}erp-orders/group/", group="new", new_name="elsewhere")
        pages.fill(f"{FLOWS}erp-orders/version/", bump="major", description="in another group")
        deployment = release(baton, "another group")
        assert deployment["status"] == "succeeded", deployment
        time.sleep(0.5)
    seen = [baton.received(digest, within=30) for digest in drops.digests]
    until(lambda: baton.settled("elsewhere") == ("external01", "external02"), 15, "the new group leads where it is preferred")
    assert {item["group"] for item in seen} == {"orders", "elsewhere"}, "taken under the one, then under the other"
    at = sorted(seen, key=lambda item: str(item["received_at"]))
    kinds = [item["group"] for item in at]
    assert kinds == sorted(kinds, key=["orders", "elsewhere"].index), "never under both at once"
    left = groups(baton).get("orders")
    assert left is None or not left["members"], "nobody is a member of the former one any more"
    changes = baton.api.get(f"groups/{groups(baton)['elsewhere']['id']}/changes/").json()["results"]
    assert changes[-1]["cause"] == "first"
