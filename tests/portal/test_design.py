"""The Design phase: who may run in failover, where, and what Apply settings makes of it."""

import pytest

from portal import design
from portal.errors import Invalid, NotAllowed, Stale
from portal.models import Connector, DesignedMachine, MachineKind, Project, System


def drawn(project: Project, *, externals: int = 2, cores: int = 1, runtimes: int = 2, placed: int | None = None) -> Connector:
    """ERP wished in failover, its connector on the first external machines, nothing applied."""
    system = design.create_system(project, name="ERP", multiple_runtimes=True, number_of_runtimes=runtimes, failover=True)
    connector = system.connectors.get()
    machines = [design.add_machine(project, name=f"external{number:02}", kind=MachineKind.EXTERNAL) for number in range(1, externals + 1)]
    for number in range(1, cores + 1):
        design.add_machine(project, name=f"core{number:02}", kind=MachineKind.CORE)
    for machine in machines[: runtimes if placed is None else placed]:
        design.place(connector, machine)
    return connector


def test_a_system_brings_its_connector(webshop: Project) -> None:
    system = design.create_system(webshop, name="Web shop Till")
    assert [connector.name for connector in system.connectors.all()] == ["web-shop-till"]
    assert system.number_of_runtimes == 1


@pytest.mark.parametrize(
    ("given", "field"),
    [
        pytest.param({"name": "ERP", "failover": True}, "failover", id="failover with one runtime"),
        pytest.param({"name": "ERP", "multiple_runtimes": True, "number_of_runtimes": 1}, "number_of_runtimes", id="several, but one"),
        pytest.param({"name": "1 2 3"}, "name", id="no connector name"),
        pytest.param({"name": "Tills"}, "name", id="a name that is taken"),
    ],
)
def test_a_system_that_cannot_be_right_is_refused(webshop: Project, given: dict[str, object], field: str) -> None:
    design.create_system(webshop, name="Tills")
    with pytest.raises(Invalid) as refusal:
        design.create_system(webshop, **given)  # type: ignore[arg-type]
    assert refusal.value.field == field
    assert webshop.systems.count() == 1


def test_failover_is_refused_on_a_core_machine_with_the_remedy(webshop: Project) -> None:
    system = design.create_system(webshop, name="ERP", multiple_runtimes=True, number_of_runtimes=2)
    core = design.add_machine(webshop, name="core01", kind=MachineKind.CORE)
    design.place(system.connectors.get(), core)
    with pytest.raises(Invalid, match=r"on the core machine core01\. Move it to an external machine"):
        design.change_system(system, name="ERP", description="", multiple_runtimes=True, number_of_runtimes=2, failover=True)
    assert not System.objects.get().failover


def test_a_failover_connector_is_not_placed_on_a_core_machine(webshop: Project) -> None:
    connector = drawn(webshop, placed=1)
    with pytest.raises(NotAllowed, match="belongs on external machines"):
        design.place(connector, DesignedMachine.objects.get(name="core01"))


def test_a_connector_is_placed_as_often_as_it_has_runtimes(webshop: Project) -> None:
    connector = design.create_system(webshop, name="ERP").connectors.get()
    first, second = (design.add_machine(webshop, name=name, kind=MachineKind.EXTERNAL) for name in ("external01", "external02"))
    design.place(connector, first)
    with pytest.raises(NotAllowed, match="turn on its Multiple runtimes"):
        design.place(connector, second)
    design.move(connector, first, second)
    assert [placement.machine.name for placement in connector.placements.all()] == ["external02"]


def test_a_refused_move_leaves_the_connector_where_it_is(webshop: Project) -> None:
    connector = drawn(webshop)
    first, second = webshop.designed_machines.filter(kind=MachineKind.EXTERNAL)
    with pytest.raises(NotAllowed, match="is on external02 already"):
        design.move(connector, first, second)
    assert connector.placements.count() == 2


def test_apply_settings_brings_failover_routers_and_the_witness(webshop: Project) -> None:
    drawn(webshop)
    pending = design.pending_settings(webshop)
    assert pending.sentences == [
        "ERP gets failover (connector erp).",
        "A router comes on the external machine external01.",
        "A router comes on the external machine external02.",
        "The witness comes on the core machine core01: a third vote, nothing else.",
    ]
    design.apply_settings(webshop, seen=pending.fingerprint)
    assert System.objects.get().failover_applied
    assert [machine.router for machine in webshop.designed_machines.all()] == [True, True, True]
    assert webshop.designed_machines.get(name="core01").is_witness
    assert not design.pending_settings(webshop).anything


def test_turning_failover_off_takes_routers_and_witness_away(webshop: Project) -> None:
    drawn(webshop)
    design.apply_settings(webshop)
    system = System.objects.get()
    design.change_system(system, name="ERP", description="", multiple_runtimes=True, number_of_runtimes=2, failover=False)
    design.apply_settings(webshop)
    assert not webshop.designed_machines.filter(router=True).exists()
    assert not System.objects.get().failover_applied


@pytest.mark.parametrize(
    ("externals", "cores", "witness", "refused"),
    [
        pytest.param(2, 1, True, None, id="two and the witness: three votes"),
        pytest.param(2, 0, False, "Two votes without a witness", id="two votes without a witness"),
        pytest.param(3, 1, False, None, id="three vote by themselves"),
        pytest.param(4, 1, True, None, id="four and the witness: five votes"),
        pytest.param(4, 0, False, "Four votes without a witness", id="four votes without a witness"),
        pytest.param(6, 1, False, None, id="beyond five, five vote"),
    ],
)
def test_votes_are_odd(webshop: Project, externals: int, cores: int, witness: bool, refused: str | None) -> None:
    drawn(webshop, externals=externals, cores=cores)
    if refused:
        with pytest.raises(NotAllowed) as refusal:
            design.apply_settings(webshop)
        assert refused in refusal.value.reasons[0]
        assert "add a core machine" in refusal.value.reasons[0]
        assert not System.objects.get().failover_applied
    else:
        design.apply_settings(webshop)
        assert webshop.designed_machines.filter(kind=MachineKind.CORE, router=True).exists() is witness


def test_apply_settings_wants_every_runtime_placed(webshop: Project) -> None:
    drawn(webshop, placed=1)
    with pytest.raises(NotAllowed) as refusal:
        design.apply_settings(webshop)
    assert refusal.value.reasons == ["erp has 2 runtimes and is placed on external01: place it on 1 more."]
    assert not webshop.designed_machines.filter(router=True).exists()


def test_a_colleagues_change_is_not_settled_unseen(webshop: Project) -> None:
    drawn(webshop)
    seen = design.pending_settings(webshop).fingerprint
    design.add_machine(webshop, name="external03", kind=MachineKind.EXTERNAL)
    with pytest.raises(Stale):
        design.apply_settings(webshop, seen=seen)
    assert not System.objects.get().failover_applied


def test_nothing_pending_is_said(webshop: Project) -> None:
    with pytest.raises(NotAllowed, match="nothing to apply"):
        design.apply_settings(webshop)


def test_a_machine_that_carries_connectors_stays(webshop: Project) -> None:
    drawn(webshop)
    with pytest.raises(NotAllowed, match="still carries erp"):
        design.remove_machine(DesignedMachine.objects.get(name="external01"))
    design.remove_machine(DesignedMachine.objects.get(name="core01"))
    with pytest.raises(Invalid, match="has a machine external02 already"):
        design.rename_machine(DesignedMachine.objects.get(name="external01"), "external02")


def test_a_system_that_runs_somewhere_is_kept(webshop: Project, erp: Connector) -> None:
    from tests import factories

    factories.applied(webshop.environments.get(kind="test"), erp)
    with pytest.raises(NotAllowed, match="was applied to an environment"):
        design.remove_system(erp.system)
    assert System.objects.filter(pk=erp.system_id).exists()
