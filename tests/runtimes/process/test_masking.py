"""Secrets of a bundle never leave the process in readable form."""

import base64
import html
import io
import json
import random
import re
import timeit
from collections.abc import Callable, Iterator
from urllib.parse import quote, urlencode
from xml.sax import saxutils

import pytest

from runtimes import spellings
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


SECRETS = ["hunter2-of-erp", 'p"w\\d/é&<x>', "multi\nline secret\r\nthird-line", "Zm9v+Zm9v/=="]
FORMS: dict[str, Callable[[str], str]] = {
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "base64 for URLs": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "a Basic authorization": lambda s: base64.b64encode(f"erp:{s}".encode()).decode(),
    "a Basic authorization of another length": lambda s: base64.b64encode(f"us:{s}!".encode()).decode(),
    "a longer base64 text": lambda s: base64.b64encode(f'{{"password": "{s}", "x": 1}}'.encode()).decode(),
    "hexadecimal": lambda s: s.encode().hex(),
    "hexadecimal in capitals": lambda s: s.encode().hex().upper(),
    "a form": lambda s: urlencode({"password": s}),
    "a URL": lambda s: quote(s),
    "a URL in small letters": lambda s: re.sub("%..", lambda m: m[0].lower(), quote(s, safe="")),
    "a URL quoted twice": lambda s: quote(quote(s, safe=""), safe=""),
    "JSON": lambda s: json.dumps({"error": f"bad {s}"}),
    "JSON in UTF-8": lambda s: json.dumps(s, ensure_ascii=False),
    "JSON within JSON": lambda s: json.dumps({"body": json.dumps({"p": s})}),
    "JSON as PHP writes it": lambda s: json.dumps(s).replace("/", "\\/"),
    "Python": repr,
    "HTML": html.escape,
    "XML": saxutils.escape,
    "an attribute of XML": saxutils.quoteattr,
    "bytes": lambda s: repr(s.encode()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_no_form_of_a_secret_is_left_to_be_read(form: str, secret: str) -> None:
    masking.hide([secret])
    shown = masking.masked(f"502 Bad Gateway: the server said {FORMS[form](secret)} (in {form})")
    assert spellings.MASK in shown
    longest = max(secret.splitlines(), key=len)
    core = base64.b64encode(longest.encode()).decode()
    for readable in (longest, quote(longest, safe=""), longest.encode().hex(), core[4:-4], json.dumps(longest)[1:-1]):
        assert readable not in shown


def test_a_text_is_never_cut_within_a_secret() -> None:
    pattern = spellings.pattern_of(["hunter2"])
    text = "the password is hunter2 indeed"
    assert [spellings.where_to_cut(text, at, pattern) for at in (10, 16, 17, 22, 23, 25)] == [10, 16, 16, 16, 23, 25]
    assert spellings.where_to_cut(text, 20, None) == 20


def test_a_thousand_secrets_cost_a_text_little_more_than_one() -> None:
    """Bounded by a ratio that an alternative per spelling (some 30,000) misses by far."""
    text = "nothing of it is in this line, which is as long as lines are " * 30
    one, many = (spellings.pattern_of(f"secret-{random.Random(n).random()}" for n in range(count)) for count in (1, 1000))
    assert one is not None and many is not None
    took = [min(timeit.repeat(lambda pattern=pattern: pattern.sub("", text), number=5, repeat=3)) for pattern in (one, many)]
    assert took[1] < 60 * took[0]
