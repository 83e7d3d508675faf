"""Nothing that a person types is lost or saved as something else: the grid of properties, and the form of a flow.

And nothing is called so that nobody knows, when the portal hangs; nor is the keyboard's place lost when a page renews itself."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.journeys.baton import Baton

pytestmark = pytest.mark.browser

TEST = "/projects/webshop/test/"
FLOW = "/projects/webshop/create/flows/erp/erp-orders/"


def cell(page: Page, key: str) -> Locator:
    """The value of a key for Test, in the grid of environments."""
    return page.locator(f"table.property-grid tbody tr[data-key='{key}'] td").first


def kept(baton: Baton, key: str) -> list[str]:
    """Its values in Test, of every scope."""
    return [
        row["value"]
        for row in baton.api.get("properties/", params={"project": "webshop", "environment": "test", "key": key}).json()["results"]
    ]


@pytest.mark.parametrize("between", [0, 40])
def test_what_is_typed_into_a_cell_replaces_its_value_however_fast(baton: Baton, sits_down: Callable[[str], Page], between: int) -> None:
    page = sits_down("operator")
    page.goto(f"{TEST}properties/grid/")
    cell(page, "erp.outbox").click()
    page.keyboard.type(f"/srv/typed-{between}", delay=between)
    page.keyboard.press("Enter")
    expect(cell(page, "erp.outbox")).to_contain_text(f"/srv/typed-{between}")
    assert kept(baton, "erp.outbox") == [f"/srv/typed-{between}"]


def test_a_value_that_is_only_looked_at_is_not_saved_and_escape_leaves_it(baton: Baton, sits_down: Callable[[str], Page]) -> None:
    page = sits_down("operator")
    before = kept(baton, "erp.outbox")
    page.goto(f"{TEST}properties/grid/?by=machines")
    inherited = page.locator("table.property-grid tbody tr[data-key='erp.outbox'] td").last
    inherited.click()
    page.keyboard.press("Enter")
    expect(inherited.locator("[name=value]")).to_be_focused()
    page.keyboard.press("Enter")
    expect(inherited.locator("[name=value]")).to_have_count(0)
    inherited.click()
    page.keyboard.type("abc")
    page.keyboard.press("Escape")
    expect(inherited.locator("[name=value]")).to_have_count(0)
    expect(inherited).to_be_focused()
    assert kept(baton, "erp.outbox") == before


def test_a_new_version_holds_what_the_form_shows_and_leaving_asks_first(sits_down: Callable[[str], Page]) -> None:
    page = sits_down("developer")
    page.goto(FLOW)
    queue = page.get_by_role("group", name="Outbound").get_by_label("Queue", exact=True)
    queue.fill("orders-two")
    asked: list[str] = []

    def stay(dialog: object) -> None:
        asked.append(dialog.type)  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", stay)
    page.get_by_role("link", name="Solution", exact=True).click(no_wait_after=True)
    page.wait_for_timeout(500)
    assert asked == ["beforeunload"]
    expect(queue).to_have_value("orders-two")
    page.get_by_role("button", name="Save as new version").click()
    page.get_by_label("Description").fill("Into the second queue")
    page.get_by_role("button", name="Save version").click()
    expect(page.locator("#messages")).to_contain_text("was saved. The next release takes it.")
    page.get_by_role("link", name="Into the second queue").click()
    expect(page.get_by_role("main")).to_contain_text("orders-two")
    assert len(asked) == 1


def test_a_portal_that_hangs_is_told_and_nothing_stays_green(sits_down: Callable[[str], Page]) -> None:
    page = sits_down("operator")
    page.goto(f"{TEST}groups/")
    expect(page.locator("[data-member]").first).to_be_visible()
    page.locator("a[id^='disable-']:not([aria-disabled])").first.click()
    page.route("**/disable/**", lambda route: route.abort())
    page.get_by_role("dialog").get_by_role("button", name="Disable").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("may have been done: look before you repeat it")
    expect(page.locator("#stale")).to_be_hidden()
    page.get_by_role("dialog").get_by_role("link", name="Cancel").click()
    page.route("**/groups/", lambda route: None)  # as a process that stands still, or a line that drops what is sent
    expect(page.locator("#stale")).to_be_visible(timeout=12_000)
    well = '<b class="status-badge tone-green" id=well>On</b>'
    page.evaluate(f"document.querySelector('.members td').insertAdjacentHTML('beforeend', '{well}')")
    as_grey = "document.documentElement.style.cssText += 'color: var(--tone-gray)', getComputedStyle(document.documentElement).color"
    expect(page.locator("#well")).to_have_css("color", page.evaluate(as_grey))
    page.unroute("**/groups/")
    expect(page.locator("#stale")).to_be_hidden()


def renewed(page: Page, part: str) -> None:
    """Waits until the part was put in anew by its own asking."""
    page.evaluate(f"document.querySelector('{part}').dataset.former = ''")
    expect(page.locator(f"{part}[data-former]")).to_have_count(0)


def test_the_keyboards_place_outlives_renewals_dialogs_and_deeds(sits_down: Callable[[str], Page]) -> None:
    page = sits_down("operator")
    page.goto(f"{TEST}groups/")
    profile = page.locator("#timing-profile a")
    profile.focus()
    renewed(page, "#groups")
    expect(profile).to_be_focused()

    disable = page.locator("a[id^='disable-']").first
    name = disable.get_attribute("id") or ""
    disable.focus()
    page.keyboard.press("Space")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("link", name="Cancel")).to_be_focused()
    renewed(page, "#groups")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator(f"#{name}")).to_be_focused()

    enable = page.locator(f"a#{name.replace('disable-', 'enable-')}")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("link", name="Cancel")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#messages")).to_contain_text("was asked for")
    expect(enable).to_be_focused()


def test_a_dialog_from_a_menu_gives_the_focus_back_to_the_menus_button(sits_down: Callable[[str], Page]) -> None:
    page = sits_down("operator")
    page.goto(f"{TEST}architecture/")
    button = page.locator("#architecture details.menu summary").first
    button.focus()
    page.keyboard.press("Enter")
    item = page.locator("#architecture details.menu[open] [hx-target='#dialog']").first
    item.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    renewed(page, "#architecture")
    page.keyboard.press("Escape")
    expect(button).to_be_focused()
    renewed(page, "#architecture")
    expect(button).to_be_focused()
