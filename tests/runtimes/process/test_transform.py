"""The transform step: real templates in the real program apart, and in a flow."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from runtimes.process import transform
from runtimes.process.connectors.base import Item, ItemError, NotReady, Origin, Setting
from runtimes.process.flows import Flow
from runtimes.process.permits import Duty
from runtimes.process.transform import ITEM_LIMIT, Transform
from runtimes.protocol import Component, ComponentKind, FlowSpec
from tests.runtimes.process.lab import folder, until


@pytest.fixture
def step(tmp_path: Path) -> Iterator[Callable[..., Transform]]:
    made: list[Transform] = []

    def make(template: str, kind: str = "text", to: str = "text", **settings: str) -> Transform:
        given = {"transform": template, "transform_from": kind, "transform_to": to, **settings}
        component = Component(kind=ComponentKind.LOG, settings=given)
        log = structlog.get_logger()
        made.append(Transform(Setting("f", "erp-orders", component, "outbound", "external01.erp", "external01", tmp_path, log)))
        made[-1].prepare()
        return made[-1]

    yield make
    for each in made:
        each.close()


def item(content: bytes) -> Item:
    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        yield iter([content])

    return Item("m1", b"order.xml", len(content), Origin("erp-orders", "orders", 5, "external01"), opened, sha256="of what came in")


def out(made: Item | None) -> bytes:
    assert made is not None
    with made.open() as chunks:
        data = b"".join(chunks)
    assert made.size == len(data) and made.id == "m1" and made.sha256 is None
    return data


@pytest.mark.parametrize(
    ("template", "kind", "to", "content", "made"),
    [
        pytest.param("{{ text | upper }}!", "text", "text", "prijs €".encode(), "PRIJS €!".encode(), id="text"),
        pytest.param("{{ data.lines[0].article }}", "json", "text", b'{"lines": [{"article": 7}]}', b"7", id="from JSON"),
        pytest.param("{{ data.n }}", "json", "text", b'\xef\xbb\xbf{"n": 7}', b"7", id="from JSON behind a byte order mark"),
        pytest.param('{"n": {{ data.n | tojson }}}', "json", "json", b'{"n": "a\\"b"}', b'{"n": "a\\"b"}', id="to JSON"),
        pytest.param("{{ data.find('n').text }}", "xml", "text", b"<o><n>7</n></o>", b"7", id="from XML"),
        pytest.param("{{ data.find('{urn:x}n').text }}", "xml", "text", b"<o xmlns='urn:x'><n>7</n></o>", b"7", id="a namespace"),
        pytest.param("<o>{{ text }}</o>", "text", "xml", b"a < b & c", b"<o>a &lt; b &amp; c</o>", id="to XML: escaped"),
        pytest.param("{{ item.id }} {{ item.name }} {{ item.epoch }}", "text", "text", b"x", b"m1 order.xml 5", id="what is known of it"),
    ],
)
def test_what_a_template_makes(step: Callable[..., Transform], template: str, kind: str, to: str, content: bytes, made: bytes) -> None:
    assert out(step(template, kind, to).apply(item(content))) == made


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><x>&b;</x>'
FETCH = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'


@pytest.mark.parametrize(
    ("template", "kind", "to", "content", "reason"),
    [
        pytest.param("{{ data.nothing.there }}", "json", "text", b"{}", "'dict object' has no attribute 'nothing'", id="a value not there"),
        pytest.param("{{ text.__class__.__mro__ }}", "text", "text", b"x", "unsafe", id="out of the sandbox"),
        pytest.param("{{ ''.join.__globals__ }}", "text", "text", b"x", "unsafe|no attribute", id="out of the sandbox by a method"),
        pytest.param("{{ cycler }}", "text", "text", b"x", "'cycler' is undefined", id="by what Jinja2 offers"),
        pytest.param("{{ data.append(1) }}", "json", "text", b"[]", "what it may not", id="changing what it was given"),
        pytest.param("x", "json", "text", b"{", "it is no JSON", id="no JSON comes in"),
        pytest.param("x", "text", "text", b"\xff", "no UTF-8 text", id="no text comes in"),
        pytest.param("x", "xml", "text", b"<o>", "it is no XML", id="no XML comes in"),
        pytest.param("x", "xml", "text", BOMB, "document type", id="XML that grows"),
        pytest.param("x", "xml", "text", FETCH, "document type", id="XML that fetches"),
        pytest.param("x", "xml", "text", b"<a>" * 500 + b"</a>" * 500, "nested deeper", id="XML without a bottom"),
        pytest.param('{"n": {{ text }}}', "text", "json", b"a", "made no JSON", id="no JSON goes out"),
        pytest.param("{{ data | tojson }}", "json", "json", b"[NaN]", "NaN is no value of JSON", id="what only Python calls JSON"),
        pytest.param("{{ '{0.__class__}'.format(text) }}", "text", "text", b"x", "what it may not", id="out of the sandbox by a format"),
        pytest.param("<o>{{ text | safe }}</o>", "text", "xml", b"a < b", "made no XML", id="no XML goes out"),
        pytest.param("{% include '/etc/passwd' %}", "text", "text", b"x", "no loader", id="a file of the machine"),
        pytest.param("{{ 'x' * 3000000000 }}", "text", "text", b"x", "more memory", id="too much memory"),
        pytest.param("{% for i in range(9999999) %}{% endfor %}", "text", "text", b"x", "Range too big", id="a range without end"),
    ],
)
def test_what_makes_an_item_fail(step: Callable[..., Transform], template: str, kind: str, to: str, content: bytes, reason: str) -> None:
    made = step(template, kind, to)
    with pytest.raises(ItemError, match=reason):
        made.apply(item(content))
    assert made._process is not None and made._process.poll() is None, "it goes on with the next item"


def test_an_item_that_takes_too_long_is_given_up_and_the_next_one_works(
    step: Callable[..., Transform], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transform, "ITEM_SECONDS", 0.5)
    slow = "{% if text == 'slow' %}{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}{% endif %}{{ text }}"
    made, began = step(slow), time.monotonic()
    process = made._process
    with pytest.raises(ItemError, match=r"longer than 0.5 s"):
        made.apply(item(b"slow"))
    assert time.monotonic() - began < 5 and process is not None and process.poll() is not None
    monkeypatch.setattr(transform, "ITEM_SECONDS", 5)
    assert out(made.apply(item(b"quick"))) == b"quick"


def test_an_item_or_a_result_that_is_too_large_is_refused(step: Callable[..., Transform]) -> None:
    with pytest.raises(ItemError, match=f"may have {ITEM_LIMIT}"):
        step("x").apply(item(bytes(ITEM_LIMIT + 1)))
    with pytest.raises(ItemError, match="the template made"):
        step("{{ 'x' * 20000000 }}").apply(item(b""))


def test_nothing_made_is_left_out_or_goes_out_empty(step: Callable[..., Transform]) -> None:
    only_big = "{% if data.total > 5 %}{{ text }}{% endif %}"
    assert step(only_big, "json", transform_empty="skip").apply(item(b'{"total": 3}')) is None
    assert out(step(only_big, "json").apply(item(b'{"total": 3}'))) == b""


def test_a_template_with_a_mistake_makes_a_follower_not_ready(step: Callable[..., Transform]) -> None:
    with pytest.raises(NotReady, match=r"the template of flow erp-orders is wrong: .*line 2 of the template"):
        step("a\n{% if %}")


def test_in_a_flow_good_items_go_out_transformed_and_bad_ones_aside(tmp_path: Path) -> None:
    target = folder(tmp_path / "inbox", transform="{{ data.n + 1 }}", transform_from="json")
    spec = FlowSpec(id="f", name="erp-orders", version="1", inbound=folder(tmp_path / "outbox"), outbound=target)
    flow = Flow(spec, key="e.erp", machine="e", data=tmp_path / "data", changed=lambda: None, log=structlog.get_logger())
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "good").write_bytes(b'{"n": 1}')
    (tmp_path / "outbox" / "bad").write_bytes(b"{")
    flow.open()
    flow.start(Duty(None, "", 0, float("inf")))
    try:
        until(lambda: [path.read_bytes() for path in (tmp_path / "inbox").glob("*-good")] == [b"2"], 10)
        until(lambda: flow.report().failed == 1, 10)
        process = flow._transform._process
    finally:
        flow.stop()
        flow.close()
    assert "it is no JSON" in (tmp_path / "data" / "errors" / "f" / "bad.reason.json").read_text()
    until(lambda: process is not None and process.poll() is not None, 5, "its program ends with it")
    assert (tmp_path / "data" / "errors" / "f" / "bad").exists()
