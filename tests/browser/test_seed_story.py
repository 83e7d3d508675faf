"""The seed's story as people live it: designed, created, released, deployed, failed over; with clicks and typing, in a real browser.

A new system *CRM* joins the running demonstration. What a runner, agents and processes do meanwhile is real.
"""

import os
import re
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.journeys.baton import Baton, until

pytestmark = pytest.mark.browser

TEST = "/projects/webshop/test/"
GROUP = "crm-contacts"


# ------------------------------------------------------------------------------------------------------- a person's hand


def open_page(page: Page, name: str) -> None:
    """By the menu on the left; two pages are called Architecture: "Design Architecture" and "Deploy Architecture"."""
    section, _, rest = name.partition(" ")
    heading = page.locator(".sidebar-section").filter(has=page.get_by_role("heading", name=section, exact=True))
    heading.get_by_role("link", name=rest, exact=True).click()


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog")


def press(where: Page | Locator, name: str) -> None:
    where.get_by_role("button", name=name).click()


def follow(where: Page | Locator, name: str) -> None:
    where.get_by_role("link", name=name).click()


def is_told(page: Page, sentence: str) -> None:
    expect(page.locator("#messages")).to_contain_text(sentence)


def machine_on_board(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=re.compile(rf"^(Machine )?{name}$"))


# ---------------------------------------------------------------------------------------------------------------- design


def adds_a_system_with_two_runtimes(page: Page) -> None:
    open_page(page, "Design Solution")
    follow(page, "Add system")
    dialog(page).get_by_label("Name").fill("CRM")
    dialog(page).get_by_label("Multiple runtimes").check()
    dialog(page).get_by_label("Number of runtimes").fill("2")
    press(dialog(page), "Add")
    is_told(page, "CRM was added")
    expect(page.get_by_role("row", name="CRM")).to_contain_text("not placed yet")


def places_it_by_form(page: Page, machine: str) -> None:
    tray = page.get_by_role("region", name="Connectors to be placed")
    follow(tray, "Place…")
    dialog(page).get_by_label("Machine").select_option(label=machine)
    press(dialog(page), "Place")
    expect(machine_on_board(page, machine).get_by_text("crm", exact=True)).to_be_visible()


def asks_for_failover(page: Page) -> None:
    open_page(page, "Design Solution")
    page.get_by_role("row", name="CRM").get_by_role("link", name="CRM").click()
    dialog(page).get_by_label("Run in failover").check()
    press(dialog(page), "Save")


def drags_it(page: Page, origin: str, target: str) -> None:
    part = machine_on_board(page, origin).locator("[data-drag-connector]").filter(has_text="crm")
    part.drag_to(machine_on_board(page, target).get_by_role("heading"))
    expect(machine_on_board(page, target).get_by_text("crm", exact=True)).to_be_visible()
    expect(machine_on_board(page, origin).get_by_text("crm", exact=True)).to_have_count(0)


def failover_is_designed(page: Page) -> None:
    """Refused while a runtime stands on the core machine, and in the way of Apply settings until both are on external ones."""
    adds_a_system_with_two_runtimes(page)
    open_page(page, "Design Architecture")
    places_it_by_form(page, "core01")
    asks_for_failover(page)
    expect(dialog(page)).to_contain_text("CRM cannot run in failover: crm is on the core machine core01.")
    follow(dialog(page), "Cancel")
    open_page(page, "Design Architecture")
    drags_it(page, "core01", "external01")
    asks_for_failover(page)
    is_told(page, "CRM was changed.")
    open_page(page, "Design Architecture")
    page.get_by_role("link", name="Apply settings", exact=True).click()
    expect(dialog(page)).to_contain_text("This is in the way")
    expect(dialog(page).get_by_role("button", name="Apply settings")).to_have_count(0)
    dialog(page).get_by_role("link", name="Close").last.click()
    places_it_by_form(page, "external02")
    page.get_by_role("link", name="Apply settings", exact=True).click()
    expect(dialog(page)).to_contain_text("These connectors get failover")
    expect(dialog(page)).to_contain_text("crm of CRM, on external01, external02")
    press(dialog(page), "Apply settings")
    is_told(page, "Settings applied.")


# ---------------------------------------------------------------------------------------------------------------- create


def a_flow_is_created(page: Page) -> None:
    open_page(page, "Create Flows")
    connector = page.get_by_role("region", name="crm of CRM")
    connector.get_by_role("link", name="Add flow").click()
    page.get_by_label("Name").fill(GROUP)
    inbound, outbound = page.get_by_role("group", name="Inbound"), page.get_by_role("group", name="Outbound")
    inbound.get_by_label("Kind").select_option("file")
    inbound.get_by_label("Folder", exact=True).fill("${crm.outbox}")
    outbound.get_by_label("Kind").select_option("queue")
    outbound.get_by_label("Queue", exact=True).fill("orders")
    press(page, "Add flow")
    is_told(page, f"{GROUP} was added.")


def failover_is_transferred_and_a_version_saved(page: Page) -> None:
    open_page(page, "Create Flows")
    follow(page, "Transfer from design")
    dialog(page).get_by_label(GROUP).select_option(label=f"{GROUP} (new)")
    press(dialog(page), "Transfer failover")
    is_told(page, "Transferred: crm.")
    page.get_by_role("link", name=GROUP).first.click()
    expect(page.get_by_role("region", name="Group")).to_contain_text("One runtime leads it and consumes")
    follow(page, "Pick a group")
    expect(dialog(page).get_by_role("radio", name=GROUP)).to_be_checked()
    follow(dialog(page), "Cancel")
    press(page, "Save as new version")
    page.get_by_label("Description").fill("Contacts of the CRM reach the warehouse")
    press(page, "Save version")
    is_told(page, f"{GROUP} 1.0.0 was saved.")


# ---------------------------------------------------------------------------------------------------------------- deploy


def the_architecture_is_applied(page: Page) -> None:
    page.goto(TEST + "architecture/")
    expect(page.get_by_text("changes of the design are not in Test yet")).to_be_visible()
    follow(page, "Start editing")
    expect(page.get_by_role("link", name="Stop editing")).to_be_visible()
    follow(page, "Apply to environment")
    for machine in ("external01", "external02"):
        expect(dialog(page).get_by_role("listitem").filter(has_text=f"{machine}.crm")).to_have_attribute("data-act", "create")
    press(dialog(page), "Apply 2 changes")
    is_told(page, "Test is as designed now: 2 changes made.")


def a_fresh_environment_gets_routers(page: Page) -> None:
    """Looked at only: the pop-up of Acceptance, to which nothing is applied, names every router."""
    page.goto("/projects/webshop/acceptance/architecture/?edit=1")
    page.get_by_role("link", name="Apply to environment").first.click()
    expect(dialog(page)).to_contain_text("Routers that will be created")
    routers = dialog(page).get_by_role("list").first
    for machine in ("core01", "external01", "external02"):
        expect(routers).to_contain_text(machine)
    follow(dialog(page), "Cancel")


def external02_is_preferred(page: Page) -> None:
    page.goto(TEST + "architecture/")
    machine_on_board(page, "external02").get_by_role("heading").click(button="right")
    follow(machine_on_board(page, "external02"), "Details")
    follow(page, "Failover")
    row = page.locator("[data-runtime='external02.crm']")
    row.get_by_role("combobox").select_option(label="Leader")
    press(row, "Save")
    expect(page.locator("[data-runtime='external02.crm']")).to_contain_text(re.compile(r"external01\s+Backup"))
    follow(page, "${external02.failover.internal-ip}")
    expect(page.get_by_label("Search keys")).to_have_value("external02.failover.internal-ip")


def properties_are_searched(page: Page) -> None:
    page.goto(TEST + "properties/")
    page.get_by_label("Search keys").press_sequentially("external01.failover.internal-ip")
    expect(page.locator("[data-key]")).to_have_count(1)
    expect(page.locator("[data-key='external01.failover.internal-ip']")).to_contain_text("127.0.0.1")
    page.get_by_label("Search keys").fill("crm")
    row = page.locator("[data-key='crm.outbox']")
    expect(row).to_contain_text("for external01.crm, external02.crm")


def balance_comes_last_in_the_plan(page: Page) -> None:
    open_page(page, "Deploy Plan")
    page.get_by_label(re.compile("Replace the .* steps of now")).check()
    press(page, "Make the default plan")
    steps = page.get_by_role("list", name="Steps of the plan").get_by_role("listitem")
    expect(steps.filter(has_text="external02.crm")).to_have_count(1)
    expect(steps.last).to_contain_text("Balance failover")
    press(steps.last, "Remove step")
    expect(steps.last).not_to_contain_text("Balance failover")
    expect(page.get_by_role("status").filter(has_text="Balance failover").first).to_be_visible()  # the check misses it
    follow(page, "Add step")
    dialog(page).get_by_label("Kind").select_option(label="Balance failover")
    press(dialog(page), "Add")
    expect(steps.last).to_contain_text("Balance failover")
    press(steps.last, "up: Balance failover")
    expect(page.get_by_role("alert")).to_contain_text("Balance failover comes last, after the deployment of all runtimes")
    expect(steps.last).to_contain_text("Balance failover")


def a_release_is_made(page: Page) -> None:
    open_page(page, "Deploy Releases")
    follow(page, "New release")
    expect(dialog(page)).to_contain_text("Contacts of the CRM reach the warehouse")
    dialog(page).get_by_label("Name").fill("With the CRM")
    press(dialog(page), "Make release")
    is_told(page, "Release 2 is made.")


def activation_is_refused_until_the_property_is_filled_in(page: Page, folder: str) -> None:
    follow(page, "Activate on Test")
    press(dialog(page), "Activate")
    expect(dialog(page).get_by_role("alert")).to_contain_text("cannot be activated on Test while values are missing")
    expect(dialog(page)).to_contain_text("Folder of the inbound: external01.crm, external02.crm")
    dialog(page).get_by_role("link", name="crm.outbox").first.click()
    follow(page, "Fill in crm.outbox")
    row = page.locator("[data-key='crm.outbox']")
    row.get_by_label("Value").fill(folder)
    press(row, "Save")
    expect(row).to_contain_text(folder)
    expect(row).not_to_contain_text("Missing")
    open_page(page, "Deploy Releases")
    follow(page, "With the CRM")
    follow(page, "Activate on Test")
    press(dialog(page), "Activate")
    is_told(page, "Release 2 is active on Test.")


def it_is_deployed(page: Page) -> None:
    follow(page, "Deploy on Test")
    expect(dialog(page)).to_contain_text("Who leads now")
    press(dialog(page), "Deploy")
    expect(page.locator("#deployment")).to_have_attribute("data-status", "succeeded", timeout=90_000)
    last = page.get_by_role("region", name="Steps").get_by_role("listitem").last
    expect(last).to_contain_text("Balance failover")
    expect(last).to_contain_text("Succeeded")


# --------------------------------------------------------------------------------------------------------------- operate


def member(page: Page, machine: str) -> Locator:
    """The line of a machine in the card of the group on Operate › Groups."""
    return page.locator(f"[data-group='{GROUP}'] [data-member='{machine}']")


def own_line(page: Page) -> Locator:
    """The line of the group in the Groups tab of one machine."""
    return page.locator(f"#machine [data-group='{GROUP}']")


def shows(line: Locator, status: str, state: str) -> None:
    expect(line).to_contain_text(re.compile(rf"\b{status}\b[\s\S]*\b{state}\b"))


def asks(page: Page, line: Locator, act: str) -> None:
    """Presses the act, and again in the dialog that says its consequence."""
    line.get_by_role("button", name=act, exact=True).click()
    press(dialog(page), act)
    expect(dialog(page)).to_have_count(0)


def groups_are_found_by_right_click(page: Page, machine: str) -> None:
    page.goto(TEST + "architecture/")
    machine_on_board(page, machine).get_by_role("heading").click(button="right")
    page.locator(f"#menu-{machine}").get_by_role("link", name="Start/Stop flows").click()
    page.get_by_role("link", name=re.compile(r"^Groups \d")).click()


def leadership_moves_by_play_and_stop(page: Page) -> None:
    groups_are_found_by_right_click(page, "external02")
    shows(own_line(page), "Leader", "On")
    groups_are_found_by_right_click(page, "external01")
    shows(own_line(page), "Follower", "Off")
    asks(page, own_line(page), "Play")
    shows(own_line(page), "Leader", "On")
    asks(page, own_line(page), "Stop")
    shows(own_line(page), "Follower", "Off")


def a_member_is_disabled_and_enabled(page: Page) -> None:
    asks(page, own_line(page), "Disable")
    shows(own_line(page), "Disabled", "Off")
    page.goto(TEST + "architecture/")
    machine_on_board(page, "external01").get_by_label("Menu of external01.crm").click()
    follow(machine_on_board(page, "external01"), f"Enable {GROUP}")
    press(dialog(page), "Enable")
    open_page(page, "Operate Groups")
    shows(member(page, "external01"), "Follower", "Off")


def an_earlier_release_is_activated_by_the_clock(page: Page) -> Callable[[], None]:
    """Asked for a few seconds ahead; returns what to look at later."""
    page.goto("/projects/webshop/releases/1/?environment=test")
    follow(page, "Activate on Test")
    due = datetime.now(UTC) + timedelta(seconds=8)  # the time zone of Test, until somebody sets another
    due += timedelta(seconds=1 if due.second == 0 else 0)  # the browser writes a full minute without seconds
    dialog(page).get_by_label("At a time").check()
    expect(dialog(page)).to_contain_text("Times are in UTC, the time zone of Test.")
    dialog(page).get_by_label("Date and time").fill(f"{due:%Y-%m-%dT%H:%M:%S}")
    press(dialog(page), "Activate")
    is_told(page, "Release 1 will be activated on Test on")
    open_page(page, "Deploy Releases")
    row = page.get_by_role("row", name="First release")
    expect(row).to_contain_text("Scheduled")

    def it_is_active() -> None:
        until(lambda: page.reload() and "Active" in row.inner_text(), 30, "beat has activated release 1")
        expect(row).not_to_contain_text("Scheduled")

    return it_is_active


def the_page_tells_of_a_killed_leader(page: Page, baton: Baton) -> str:
    """Whoever leads by now: on an overloaded computer leadership may have moved by itself. Returns the machine that took over."""
    leader, follower = until(lambda: baton.settled(GROUP), 60, "one leads and the other follows")
    page.goto(TEST + "groups/")
    shows(member(page, leader), "Leader", "On")
    os.kill(baton.member(GROUP, leader)["pid"], signal.SIGKILL)
    shows(member(page, follower), "Leader", "On")
    shows(member(page, leader), "Follower", "Off")
    card = page.locator(f"section[data-group='{GROUP}']")
    expect(card).to_contain_text(f"{follower} took over from {leader}")
    expect(card).to_contain_text(re.compile(r"nobody led for [\d.,]+ m?s"))
    return follower


def a_viewer_sees_and_may_not(page: Page, baton: Baton) -> None:
    leader, follower = until(lambda: baton.settled(GROUP), 60, "one leads and the other follows")
    page.goto(TEST + "groups/")
    shows(member(page, leader), "Leader", "On")
    expect(page.locator(f"[data-group='{GROUP}']").get_by_role("button")).to_have_count(0)
    expect(page.get_by_text("Play, Stop, Disable and Enable need the role operator.")).to_be_visible()
    token = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "csrftoken")
    address = f"{TEST}groups/{baton.group(GROUP)['id']}/{follower}/play/"
    answer = page.request.post(address, headers={"X-CSRFToken": token}, form={"expected_leader": leader})
    assert answer.status == 403
    assert "This needs the role operator; yours in this team is viewer." in answer.text()
    shows(member(page, leader), "Leader", "On")


# ------------------------------------------------------------------------------------------------------------- the story


def test_a_new_system_is_designed_released_and_fails_over(baton: Baton, sits_down: Callable[[str], Page]) -> None:
    outbox = baton.home / "demo" / "crm" / "outbox"
    outbox.mkdir(parents=True)

    developer = sits_down("developer")
    failover_is_designed(developer)
    a_flow_is_created(developer)
    failover_is_transferred_and_a_version_saved(developer)
    the_architecture_is_applied(developer)
    external02_is_preferred(developer)
    properties_are_searched(developer)
    balance_comes_last_in_the_plan(developer)
    a_release_is_made(developer)
    activation_is_refused_until_the_property_is_filled_in(developer, str(outbox))
    it_is_deployed(developer)
    assert baton.received(baton.drop(b"a contact", "c1.json", system="crm"))["machine"] == "external02"

    operator = sits_down("operator")
    a_fresh_environment_gets_routers(operator)
    leadership_moves_by_play_and_stop(operator)
    a_member_is_disabled_and_enabled(operator)
    it_is_active = an_earlier_release_is_activated_by_the_clock(operator)
    it_is_active()
    took_over = the_page_tells_of_a_killed_leader(operator, baton)
    assert baton.received(baton.drop(b"another contact", "c2.json", system="crm"))["machine"] == took_over

    a_viewer_sees_and_may_not(sits_down("viewer"), baton)


def test_the_keyboard_finds_its_way_and_every_page_fits_a_phone(sits_down: Callable[[str], Page]) -> None:
    page = sits_down("operator")
    page.keyboard.press("/")
    page.keyboard.type("external01.erp")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Search: external01.erp")
    page.get_by_role("link", name="external01.erp").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("external01")

    pages = [str(link.get_attribute("href")) for link in page.locator(".sidebar a").all()]
    pages += [f"{TEST}machines/external01/?tab={tab}" for tab in ("runtimes", "failover", "start-stop", "log", "history")]
    pages += [f"{TEST}deployments/1/", f"{TEST}releases/1/deploy/", f"{TEST}releases/compare/?from=running&to=1"]
    page.set_viewport_size({"width": 360, "height": 780})
    wide = []
    for address in pages:
        page.goto(address)
        if page.evaluate("document.documentElement.scrollWidth") > 360:
            wide.append(address)
    assert wide == []
