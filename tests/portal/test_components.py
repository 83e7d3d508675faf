"""What a flow's page offers is what the connectors know: the registries of both sides agree."""

from pathlib import Path
from typing import Any

import asyncssh
import pytest
import structlog

from portal import components
from portal.components import Side
from portal.errors import Invalid
from runtimes.process.connectors import INBOUNDS, OUTBOUNDS
from runtimes.process.connectors.aside import ErrorFolder
from runtimes.process.connectors.base import Setting
from runtimes.process.transform import Transform
from runtimes.protocol import Component, ComponentKind
from tests.certified import Authority

KINDS: list[tuple[Side, str]] = [("inbound", kind) for kind in components.INBOUNDS] + [("outbound", kind) for kind in components.OUTBOUNDS]


class Noted(dict[str, str]):
    """Settings that remember which of them were read."""

    def __init__(self, given: dict[str, str]) -> None:
        super().__init__(given)
        self.noted: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.noted.add(key)
        return super().get(key, default)


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Something that each field takes, where its default is not enough."""
    files = Authority(tmp_path_factory.mktemp("tls")).files("machine")
    key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    return {
        "url": "https://erp.example/{cursor}", "cursor_path": "next", "host": "erp.example", "host_key": key, "user": "erp",
        "password": "p", "folder": "/in", "error_folder": "/errors", "outbox": "/out", "receipts": "/receipts",
        "program": "true", "schedule": "0 * * * *",
        "statement": "INSERT INTO orders VALUES (:id)", "tls": "yes", "ca_file": files.authority, "certificate_file": files.machine,
        "key_file": files.machine, "queue": "orders", "routing_key": "orders",
    }  # fmt: skip


def test_both_sides_know_the_same_kinds() -> None:
    assert set(components.INBOUNDS) == set(INBOUNDS) and set(components.OUTBOUNDS) == set(OUTBOUNDS)


@pytest.mark.parametrize(("side", "kind"), KINDS)
def test_every_field_of_a_flow_is_read_by_its_connector_and_no_other(side: Side, kind: str, values: dict[str, str], tmp_path: Path) -> None:
    own = {"queue": {"url": "redis://erp.example/0"}, "sql": {"url": "sqlite:////tmp/orders.db"}}.get(kind, {})
    offered = components.settings_of(side, kind)
    given = {each.name: (values | own).get(each.name, "" if "${" in each.default else each.default) for each in offered}
    settings = Noted({name: value for name, value in given.items() if value})
    component = Component(kind=ComponentKind(kind), settings=settings)
    setting = Setting("f", "erp-orders", component, side, "external01.erp", "external01", tmp_path, structlog.get_logger())
    (INBOUNDS if side == "inbound" else OUTBOUNDS)[component.kind](setting)
    if side == "inbound":
        ErrorFolder(tmp_path, setting).sweep()
    else:
        Transform(setting)
    assert settings.noted == {each.name for each in offered}


@pytest.mark.parametrize(
    ("side", "kind", "name", "value", "refusal"),
    [
        pytest.param("inbound", "timer", "schedule", "99 * * * *", "has a wrong minute", id="a minute that never comes"),
        pytest.param("inbound", "timer", "schedule", "every minute", "instead of five", id="words for a schedule"),
        pytest.param("inbound", "timer", "time_zone", "Mars/Base", "is no time zone: write it as Europe/Amsterdam", id="no zone"),
        pytest.param("inbound", "timer", "time_zone", "../etc/passwd", "is no time zone", id="a path for a zone"),
        pytest.param("inbound", "file", "folder", "outbox", "is no absolute path", id="a relative folder"),
        pytest.param("inbound", "http", "url", "erp.example/api", "does not begin with a scheme", id="a URL without scheme"),
        pytest.param("outbound", "sftp", "host", "no host", "fill in an IP address such as 10.0.0.11, or a host name", id="no host"),
    ],
)
def test_what_is_written_into_a_flow_is_checked_as_a_property_would_be(side: Side, kind: str, name: str, value: str, refusal: str) -> None:
    with pytest.raises(Invalid) as refused:
        components.checked(side, kind, {name: value})
    assert refusal in dict(refused.value.faults or {})[f"{side}_{name}"]


@pytest.mark.parametrize(("name", "value"), [("schedule", "30 2 * * mon-fri"), ("schedule", "${tick}"), ("time_zone", "Europe/Amsterdam")])
def test_what_is_right_or_left_to_a_placeholder_is_kept(name: str, value: str) -> None:
    assert components.checked("inbound", "timer", {"schedule": "* * * * *", name: value})[name] == value
