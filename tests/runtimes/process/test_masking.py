"""Secrets of a bundle never leave the process in readable form."""

import io
import json
from collections.abc import Iterator

import pytest

from runtimes.process import masking
from runtimes.protocol import FlowReport, GroupReport, ProcessNews, State, Status


@pytest.fixture(autouse=True)
def nothing_hidden_afterwards() -> Iterator[None]:
    yield
    masking.hide([])


@pytest.mark.parametrize(
    ("secrets", "text", "shown"),
    [
        pytest.param(["hunter2"], "login with hunter2 failed", "login with ••• failed", id="as it is"),
        pytest.param(["hunter2"], "xhunter2x", "x•••x", id="inside a word"),
        pytest.param(["abc", "abcdef"], "abcdef abc", "••• •••", id="the longest first"),
        pytest.param(["x"], "axe x box", "axe ••• box", id="a short one only by itself"),
        pytest.param(
            ["redis://:p%40ss-word@h:1/0"], "connect to h:1 as p@ss-word", "connect to h:1 as •••", id="the password inside a URL"
        ),
        pytest.param(["redis://:p%40ss-word@h:1/0"], "redis://:p%40ss-word@h:1/0", "•••", id="a URL whole"),
        pytest.param(['sl\\ash"quote'], 'sl\\\\ash\\"quote', "•••", id="as JSON escapes it"),
        pytest.param(["p ss/wörd"], "p%20ss%2Fw%C3%B6rd", "•••", id="as URLs quote it"),
        pytest.param(["-----BEGIN KEY-----\nline-of-key\n"], "bad line: line-of-key", "bad line: •••", id="a line of a secret of many"),
        pytest.param([], "nothing hidden", "nothing hidden", id="no secrets"),
        pytest.param(["", "  "], "a  b", "a  b", id="an empty secret hides nothing"),
    ],
)
def test_a_secret_is_masked_however_it_is_spelled(secrets: list[str], text: str, shown: str) -> None:
    masking.hide(secrets)
    assert masking.masked(text) == shown


def test_log_lines_are_masked_in_every_field() -> None:
    masking.hide(["hunter2"])
    event = {"event": "a hunter2", "error": ValueError("hunter2"), "seconds": 0.2, "parts": ["hunter2", {"deep": "hunter2"}]}
    shown = masking.mask_event(None, "info", event)
    assert "hunter2" not in json.dumps(shown)
    assert shown["seconds"] == 0.2


def test_what_is_told_to_the_keeper_is_masked() -> None:
    masking.hide(["hunter2"])
    flow = FlowReport(flow="f1", name="orders", on=False, reason="no login with hunter2")
    group = GroupReport(group="g1", status=Status.FOLLOWER, state=State.OFF, reason="hunter2")
    news = masking.masked_news(ProcessNews(reason="hunter2", flows=[flow], groups=[group]))
    assert news.flows is not None
    assert (news.reason, news.flows[0].reason, news.flows[0].name) == ("•••", "no login with •••", "orders")
    assert "hunter2" not in str(news)


def test_what_a_library_prints_by_itself_is_masked() -> None:
    masking.hide(["hunter2"])
    under = io.StringIO()
    print("Traceback: hunter2", file=masking.MaskedStream(under))
    assert under.getvalue() == "Traceback: •••\n"
