"""Deploy › Properties as a grid, and what the form in a cell holds."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser, Page, expect

from portal import properties
from portal.models import Connector, Environment, Property
from tests.browser.conftest import chromium

__all__ = ["chromium"]
pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture(scope="module", autouse=True)
def database_beside_the_browser() -> Iterator[None]:
    """The browser's event loop runs in the thread of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield


@pytest.fixture
def page(
    chromium: Browser, live_server: Any, client: Client, developer: User, erp: Connector, test_environment: Environment
) -> Iterator[Page]:
    """erp.outbox stands in the grid by machines: inherited everywhere."""
    properties.set_value(test_environment, "erp.outbox", "/srv/old", by=developer)
    client.force_login(developer)
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    signed_in = settings.SESSION_COOKIE_NAME
    context.add_cookies([{"name": signed_in, "value": client.cookies[signed_in].value, "url": live_server.url}])

    made = context.new_page()
    made.goto(f"{live_server.url}/projects/webshop/test/properties/grid/?by=machines")
    yield made
    context.close()


def test_a_secret_that_is_typed_into_a_cell_is_kept(page: Page, test_environment: Environment, developer: User) -> None:
    properties.set_value(test_environment, "erp.outbox", "/hush", secret=True, by=developer)
    page.reload()
    cell = page.locator("tr[data-key='erp.outbox'] td").nth(1)
    cell.click()
    page.keyboard.press("Enter")
    expect(page.locator(".cell-form [name=value]")).to_have_attribute("type", "password")
    page.keyboard.type("/quiet")
    page.keyboard.press("Enter")
    expect(cell.locator(".cell-form")).to_have_count(0)
    assert sorted(row.reveal() for row in Property.objects.filter(key="erp.outbox")) == ["/hush", "/quiet"]


def test_a_value_of_several_lines_keeps_them(page: Page, test_environment: Environment, developer: User) -> None:
    properties.set_value(test_environment, "other", "one\ntwo", by=developer)
    page.reload()
    cell = page.locator("tr[data-key='other'] td").nth(1)
    cell.click()
    page.keyboard.press("Enter")
    field = page.locator("textarea[name=value]")
    expect(field).to_have_value("one\ntwo")
    field.fill("one\nthree")
    cell.get_by_role("button", name="Save").click()
    expect(cell.locator(".cell-form")).to_have_count(0)
    assert {row.value for row in Property.objects.filter(key="other")} == {"one\ntwo", "one\nthree"}
