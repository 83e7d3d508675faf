"""A running Baton and people before it, each in a browser of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.journeys.baton import Baton, baton

__all__ = ["baton"]

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 60_000  # milliseconds; a busy machine is slow, not wrong


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Ours rather than the plugin's session-wide one: its event loop ends with this file and meets no other test's database."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def sits_down(chromium: Browser, baton: Baton, tmp_path: Path) -> Iterator[Callable[[str], Page]]:
    """A person opens a browser and signs in through the login page. Afterwards: no script may have failed on any of their pages."""
    pages: dict[str, Page] = {}
    errors: list[str] = []

    def sign_in(name: str) -> Page:
        context = chromium.new_context(
            base_url=f"http://127.0.0.1:{baton.port}", viewport={"width": 1440, "height": 900}, timezone_id="Europe/Amsterdam"
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(f"{name} on {page.url}: {error}"))
        page.goto("/projects/webshop/")
        page.get_by_label("User name").fill(name)
        page.get_by_label("Password").fill("baton")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Webshop")
        pages[name] = page
        return page

    yield sign_in
    for name, page in pages.items():
        page.screenshot(path=tmp_path / f"{name}.png")  # kept by pytest beside the other leavings of a failed test
        page.context.close()
    assert errors == []
