"""Pages of Design, Create and teams: who sees what, how a form is refused, and that lists cost the same however long."""

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from portal import creation, design
from portal.models import Connector, Flow, Group, MachineKind, Membership, Project, Role, System, Team

READING = [
    "/projects/webshop/",
    "/projects/",
    "/teams/demo/",
    "/docs/",
    "/docs/design/",
    "/docs/create/",
    "/docs/decisions/0010-frame/",
] + [f"/projects/webshop/{page}/" for page in ("design/solution", "design/architecture", "create/flows", "create/flows/erp/erp-orders")]
EDITING = [
    f"/projects/webshop/{page}/"
    for page in (
        "design/solution/add",
        "design/solution/systems/erp",
        "design/solution/systems/erp/remove",
        "design/architecture/place",
        "design/architecture/apply",
        "design/architecture/machines/add",
        "design/architecture/machines/core01/rename",
        "create/transfer",
        "create/add-flow/erp",
        "create/flows/erp/erp-orders/group",
        "create/flows/erp/erp-orders/version",
        "create/flows/erp/erp-orders/remove",
        "create/flows/erp/groups/erp-orders/rename",
    )
]
HTMX = {"HX-Request": "true"}


@pytest.fixture
def as_developer(developer: User, client: Client) -> Client:
    client.force_login(developer)
    return client


@pytest.fixture
def as_viewer(viewer: User, client: Client) -> Client:
    client.force_login(viewer)
    return client


@pytest.mark.parametrize("page", READING)
def test_a_viewer_reads_every_page_and_finds_no_dead_button(as_viewer: Client, erp: Connector, page: str) -> None:
    answer = as_viewer.get(page)
    assert answer.status_code == 200
    main = answer.content.decode().partition("<main")[2]
    assert "<button" not in main.replace("data-dismiss", "")
    assert "hx-post" not in main


@pytest.mark.parametrize("page", EDITING)
def test_a_viewer_may_not_edit_and_is_told_why(as_viewer: Client, erp: Connector, page: str) -> None:
    for answer in (as_viewer.get(page), as_viewer.post(page)):
        assert answer.status_code == 403
        assert "This needs the role developer; yours in this team is viewer." in answer.content.decode()


@pytest.mark.parametrize("page", [page for page in READING + EDITING if "webshop" in page or "teams" in page])
def test_a_stranger_finds_nothing(stranger: User, client: Client, erp: Connector, page: str) -> None:
    client.force_login(stranger)
    assert client.get(page).status_code == 404


@pytest.mark.parametrize("page", EDITING)
def test_a_developer_gets_each_form_as_a_dialog_and_as_a_page(as_developer: Client, erp: Connector, page: str) -> None:
    whole = as_developer.get(page)
    assert whole.status_code == 200
    assert "<html" in whole.content.decode()
    part = as_developer.get(page, headers=HTMX)
    assert part.status_code == 200
    if "add-flow" not in page:
        assert "<html" not in part.content.decode()
        assert "dialog-content" in part.content.decode()


# ------------------------------------------------------------------------------------------------------------------ design


def test_a_developer_turns_failover_on_and_applies_it(as_developer: Client, webshop: Project) -> None:
    system = {"name": "ERP", "multiple_runtimes": "on", "number_of_runtimes": "2", "failover": "on"}
    as_developer.post("/projects/webshop/design/solution/add/", system)
    for name, kind in (("external01", "external"), ("external02", "external"), ("core01", "core")):
        as_developer.post("/projects/webshop/design/architecture/machines/add/", {"name": name, "kind": kind})
    connector = Connector.objects.get(name="erp")
    for machine in webshop.designed_machines.filter(kind=MachineKind.EXTERNAL):
        data = {"connector": connector.pk, "machine": machine.pk}
        answer = as_developer.post("/projects/webshop/design/architecture/place/", data, headers=HTMX)
        assert answer["HX-Redirect"] == "/projects/webshop/design/architecture/"
    dialog = as_developer.get("/projects/webshop/design/architecture/apply/", headers=HTMX).content.decode()
    for words in (
        "<strong>erp</strong> of ERP, on external01, external02",
        "external machine <strong>external02</strong>",
        "<strong>core01</strong>",
    ):
        assert words in dialog
    seen = design.pending_settings(webshop).fingerprint
    as_developer.post("/projects/webshop/design/architecture/apply/", {"seen": seen})
    assert System.objects.get().failover_applied


def test_a_refused_form_says_why_at_its_field_and_stays_open(as_developer: Client, webshop: Project) -> None:
    core = design.add_machine(webshop, name="core01", kind=MachineKind.CORE)
    system = design.create_system(webshop, name="ERP", multiple_runtimes=True, number_of_runtimes=2)
    design.place(system.connectors.get(), core)
    data = {"name": "ERP", "multiple_runtimes": "on", "number_of_runtimes": "2", "failover": "on"}
    answer = as_developer.post("/projects/webshop/design/solution/systems/erp/", data, headers=HTMX)
    assert answer.status_code == 200
    assert answer.context["form"].errors["failover"] == [
        "ERP cannot run in failover: erp is on the core machine core01. Move it to an external machine in Design › Architecture first."
    ]


def test_two_votes_without_a_witness_are_refused_in_the_dialog(as_developer: Client, webshop: Project, erp: Connector) -> None:
    webshop.designed_machines.filter(kind=MachineKind.CORE).delete()
    webshop.designed_machines.update(router=False)
    dialog = as_developer.get("/projects/webshop/design/architecture/apply/", headers=HTMX).content.decode()
    assert "Two votes without a witness" in dialog
    assert 'type="submit"' not in dialog
    seen = design.pending_settings(webshop).fingerprint
    answer = as_developer.post("/projects/webshop/design/architecture/apply/", {"seen": seen}, headers=HTMX)
    assert answer.status_code == 200
    assert "Two votes without a witness" in answer.content.decode()


def test_a_change_in_between_is_shown_instead_of_applied(as_developer: Client, webshop: Project, erp: Connector) -> None:
    webshop.designed_machines.update(router=False)
    answer = as_developer.post("/projects/webshop/design/architecture/apply/", {"seen": "something older"}, headers=HTMX)
    assert "The design changed since you looked" in answer.content.decode()
    assert not webshop.designed_machines.filter(router=True).exists()


def test_a_drop_answers_with_the_board_and_a_refused_one_with_words(as_developer: Client, webshop: Project, erp: Connector) -> None:
    first, second, core = (webshop.designed_machines.get(name=name) for name in ("external01", "external02", "core01"))
    drop = reverse("design-architecture-drop", args=["webshop"])
    answer = as_developer.post(drop, {"connector": erp.pk, "origin": first.pk, "machine": core.pk}, headers=HTMX)
    assert answer["HX-Reswap"] == "none"
    assert "belongs on external machines" in answer.content.decode()
    assert erp.placements.filter(machine=first).exists()
    third = design.add_machine(webshop, name="external03", kind=MachineKind.EXTERNAL)
    answer = as_developer.post(drop, {"connector": erp.pk, "origin": second.pk, "machine": third.pk}, headers=HTMX)
    assert "Machine external03" in answer.content.decode()
    assert set(erp.placements.values_list("machine__name", flat=True)) == {"external01", "external03"}


def test_an_element_of_another_project_is_not_touched(as_developer: Client, team: Team, erp: Connector) -> None:
    from tests import factories

    other = factories.project(team, "returns")
    machine = design.add_machine(other, name="external09", kind=MachineKind.EXTERNAL)
    data = {"connector": erp.pk, "machine": machine.pk}
    answer = as_developer.post(reverse("design-architecture-unplace", args=["webshop"]), data, headers=HTMX)
    assert "not there any more" in answer.content.decode()


# ------------------------------------------------------------------------------------------------------------------ create


def flow_data(**changes: str) -> dict[str, str]:
    return {
        "name": "erp-orders",
        "auto_start": "on",
        "inbound_kind": "file",
        "inbound_file_folder": "${erp.outbox}",
        "outbound_kind": "queue",
        "outbound_queue_url": "${queues.url}",
        "outbound_queue_queue": "orders",
    } | changes


def test_a_bad_placeholder_is_refused_at_the_field_it_stands_in(as_developer: Client, erp: Connector) -> None:
    answer = as_developer.post("/projects/webshop/create/flows/erp/erp-orders/", flow_data(inbound_file_folder="${erp.outbox"))
    assert answer.status_code == 200
    assert "does not end" in answer.context["form"].errors["inbound_file_folder"][0]
    assert Flow.objects.get().inbound_settings == {"folder": "${erp.outbox}"}


def test_a_new_flow_names_no_key_of_another_system_unless_somebody_types_it(as_developer: Client, erp: Connector) -> None:
    html = as_developer.get("/projects/webshop/create/add-flow/erp/").content.decode()
    assert html.count('placeholder="${erp.feed}"') == 1 and 'value="${erp.feed}"' not in html
    assert 'placeholder="${partner.sftp.host}"' in html and ">\n${partner.sftp.host-key}" not in html
    data = {"name": "pay", "inbound_kind": "http", "inbound_http_url": "", "outbound_kind": "log"}
    answer = as_developer.post("/projects/webshop/create/add-flow/erp/", data)
    assert list(answer.context["form"].errors) == ["inbound_http_url"] and not Flow.objects.filter(name="pay").exists()


def test_every_wrong_field_of_a_flow_says_so_at_once(as_developer: Client, erp: Connector) -> None:
    data = flow_data(name="", inbound_file_folder="", inbound_file_poll_seconds="often", outbound_queue_transform="{% if %}")
    answer = as_developer.post("/projects/webshop/create/flows/erp/erp-orders/", data)
    wrong = ["name", "inbound_file_folder", "inbound_file_poll_seconds", "outbound_queue_transform"]
    assert list(answer.context["form"].errors) == wrong
    html = answer.content.decode()
    assert html.count('class="field-error"') == 4 and "4 fields are to be corrected" in html
    for name in wrong:
        assert f'href="#id_{name}"' in html and f'id="id_{name}_error"' in html
    assert ">Folder of the inbound</a>" in html


def test_a_refused_name_does_not_break_the_page(as_developer: Client, erp: Connector) -> None:
    creation.save_flow(
        Flow(connector=erp),
        name="returns",
        inbound_kind="file",
        inbound_settings={"folder": "/x"},
        outbound_kind="log",
        outbound_settings={},
    )
    answer = as_developer.post("/projects/webshop/create/flows/erp/erp-orders/", flow_data(name="returns"))
    assert answer.status_code == 200
    assert "has a flow returns already" in answer.content.decode()


def test_a_developer_edits_a_flow_and_saves_a_version(as_developer: Client, erp: Connector) -> None:
    page = "/projects/webshop/create/flows/erp/erp-orders/"
    assert as_developer.post(page, flow_data(inbound_file_folder="/data/erp")).status_code == 302
    assert "none saved yet" in as_developer.get(page).content.decode()
    as_developer.post(f"{page}version/", {"bump": "minor", "description": "From the new share"})
    as_developer.post(page, flow_data(inbound_file_folder="/data/erp2"))
    assert "unsaved changes" in as_developer.get(page).content.decode()
    as_developer.post(f"{page}version/", {"bump": "patch", "description": ""})
    assert [version.number for version in Flow.objects.get().versions.all()] == ["1.0.1", "1.0.0"]
    kept = as_developer.get(f"{page}versions/1.0.0/").content.decode()
    assert "/data/erp<" in kept
    assert "From the new share" in kept
    assert as_developer.get(f"{page}versions/9.9.9/").status_code == 404


def test_a_new_version_holds_what_the_form_shows(as_developer: Client, erp: Connector) -> None:
    page = "/projects/webshop/create/flows/erp/erp-orders/"
    assert 'form="flow-form" name="then" value="version"' in as_developer.get(page).content.decode()
    refused = as_developer.post(page, flow_data(inbound_file_folder="", then="version"))
    assert "Nothing was saved" in refused.content.decode()
    asked = as_developer.post(page, flow_data(inbound_file_folder="/data/typed", then="version"))
    assert (asked.status_code, asked["Location"]) == (302, f"{page}version/")
    as_developer.post(asked["Location"], {"bump": "minor", "description": ""})
    assert Flow.objects.get().versions.get().definition["inbound"]["settings"]["folder"] == "/data/typed"


def test_a_group_is_picked_by_list_or_named_once(as_developer: Client, erp: Connector) -> None:
    page = "/projects/webshop/create/flows/erp/erp-orders/group/"
    as_developer.post(page, {"group": "new", "new_name": "night"})
    assert Flow.objects.get().group == Group.objects.get(name="night")
    old = Group.objects.get(name="erp-orders")
    as_developer.post(page, {"group": str(old.pk), "new_name": ""})
    assert Flow.objects.get().group == old
    answer = as_developer.post(page, {"group": "new", "new_name": "night"})
    assert answer.context["form"].errors["new_name"] == ["erp has a group night already: pick it from the list."]
    answer = as_developer.post(page, {"group": "new", "new_name": ""})
    assert answer.context["form"].errors["new_name"] == ["Name the new group."]


def test_failover_is_transferred_with_the_offered_groups(as_developer: Client, erp: Connector) -> None:
    Connector.objects.update(failover=False)
    flow = Flow.objects.get()
    creation.pick_group(flow, None)
    Group.objects.all().delete()
    dialog = as_developer.get("/projects/webshop/create/transfer/", headers=HTMX).content.decode()
    assert '<option value="erp-orders" selected>' in dialog
    answer = as_developer.post("/projects/webshop/create/transfer/", {f"transfer-{erp.pk}": "on", f"group-{flow.pk}": "erp-orders"})
    assert answer.status_code == 302
    assert Connector.objects.get().failover
    assert Flow.objects.get().group == Group.objects.get(name="erp-orders")


# ------------------------------------------------------------------------------------------------------------------- teams


def test_an_administrator_manages_members(admin: User, viewer: User, stranger: User, client: Client) -> None:
    client.force_login(admin)
    client.post("/teams/demo/members/add/", {"username": "stranger", "role": "operator"})
    assert Membership.objects.get(team__slug="demo", user=stranger).role == Role.OPERATOR
    client.post("/teams/demo/members/viewer/role/", {"role": "developer"})
    assert Membership.objects.get(team__slug="demo", user=viewer).role == Role.DEVELOPER
    client.post("/teams/demo/members/viewer/remove/")
    assert not Membership.objects.filter(team__slug="demo", user=viewer).exists()
    answer = client.post("/teams/demo/members/add/", {"username": "nobody", "role": "viewer"})
    assert "There is no account nobody" in answer.content.decode()


@pytest.mark.parametrize(("act", "data"), [("role", {"role": "viewer"}), ("remove", {})])
def test_the_last_administrator_stays(admin: User, client: Client, act: str, data: dict[str, str]) -> None:
    client.force_login(admin)
    answer = client.post(f"/teams/demo/members/admin/{act}/", data, headers={"referer": "http://testserver/teams/demo/"}, follow=True)
    assert "last administrator" in answer.content.decode()
    assert Membership.objects.get(user=admin).role == Role.ADMINISTRATOR


def test_an_operator_does_not_manage_members(operator: User, viewer: User, client: Client) -> None:
    client.force_login(operator)
    assert client.post("/teams/demo/members/viewer/remove/").status_code == 403
    assert client.get("/teams/demo/projects/add/").status_code == 403
    assert Membership.objects.filter(user=viewer).exists()


def test_a_project_comes_with_its_three_environments(admin: User, client: Client) -> None:
    client.force_login(admin)
    answer = client.post("/teams/demo/projects/add/", {"name": "Returns", "slug": "returns"})
    assert answer["Location"] == "/projects/returns/"
    assert [environment.kind for environment in Project.objects.get(slug="returns").environments.all()] == [
        "test",
        "acceptance",
        "production",
    ]
    answer = client.post("/teams/demo/projects/add/", {"name": "Again", "slug": "returns"})
    assert "is taken by another project" in answer.content.decode()


# ------------------------------------------------------------------------------------------------------- the rest of the frame


def grown(project: Project, number: int) -> None:
    for index in range(number):
        system = design.create_system(project, name=f"System {index}", multiple_runtimes=True, number_of_runtimes=2)
        connector = system.connectors.get()
        flow = creation.save_flow(
            Flow(connector=connector),
            name="flow",
            inbound_kind="file",
            inbound_settings={"folder": "/x"},
            outbound_kind="log",
            outbound_settings={},
        )
        creation.pick_group(flow, None, new_name="orders")
        creation.save_version(flow, "minor", by=None)
        design.place(connector, design.add_machine(project, name=f"external1{index}", kind=MachineKind.EXTERNAL))


@pytest.mark.parametrize("page", [page for page in READING if "docs" not in page])
def test_a_page_costs_the_same_number_of_queries_however_long(as_developer: Client, webshop: Project, erp: Connector, page: str) -> None:
    as_developer.get(page)
    with CaptureQueriesContext(
        connection,
    ) as few:
        as_developer.get(page)
    grown(webshop, 4)
    with CaptureQueriesContext(connection) as many:
        as_developer.get(page)
    assert len(many) == len(few), [query["sql"][:150] for query in many.captured_queries]
    assert len(many) < 25


def test_docs_are_read_inside_the_portal_and_nothing_else_is(as_viewer: Client, webshop: Project) -> None:
    assert 'id="statuses"' in as_viewer.get("/docs/failover/").content.decode()
    for chapter in ("nothing", "../pyproject", "%2e%2e/README"):
        assert as_viewer.get(f"/docs/{chapter}/").status_code == 404


@pytest.mark.parametrize("address", ["/projects/webshop/test/timeline/?group=%00", "/projects/web%00shop/", "/api/v1/groups/?project=%00"])
def test_a_nul_in_an_address_is_refused_with_its_reason(client: Client, viewer: User, address: str) -> None:
    client.force_login(viewer)
    answer = client.get(address)
    assert answer.status_code == 400
    assert "NUL character" in answer.content.decode()
