"""Settings that follow from the environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = "from portal import settings as s; print(s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE, bool(s.SECURE_PROXY_SSL_HEADER))"


def shown(code: str, variables: dict[str, str]) -> list[str]:
    """The words that a process with these variables prints."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    ended = subprocess.run([sys.executable, "-c", code], env=plain | variables, capture_output=True, text=True, check=True)
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("variables", "secure"),
    [
        pytest.param({}, False, id="plain http, as in a demonstration"),
        pytest.param({"BATON_ORIGINS": "https://baton.example.com"}, True, id="an origin with TLS"),
        pytest.param({"BATON_ORIGINS": "http://baton.example.com"}, False, id="an origin without"),
        pytest.param({"BATON_TLS": "1"}, True, id="said so"),
        pytest.param({"BATON_ORIGINS": "https://baton.example.com", "BATON_TLS": "0"}, False, id="said not"),
    ],
)
def test_behind_tls_cookies_never_go_without(variables: dict[str, str], secure: bool, tmp_path: Path) -> None:
    assert shown(SHOW, variables | {"BATON_HOME": str(tmp_path)}) == [str(secure)] * 3


def test_what_was_kept_under_former_secret_keys_can_be_told_to_be_opened_still(tmp_path: Path) -> None:
    said = shown("from portal import settings as s; print(*s.SECRET_KEY_FALLBACKS)", {"BATON_HOME": str(tmp_path)})
    assert said == []
    variables = {"BATON_HOME": str(tmp_path), "BATON_FORMER_SECRET_KEYS": "last-years, the-one-before"}
    assert shown("from portal import settings as s; print(*s.SECRET_KEY_FALLBACKS)", variables) == ["last-years", "the-one-before"]
