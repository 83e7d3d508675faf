"""Settings that follow from the environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = "from portal import settings as s; print(s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE, bool(s.SECURE_PROXY_SSL_HEADER))"


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
    plain = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    shown = subprocess.run(
        [sys.executable, "-c", SHOW], env=plain | {"BATON_HOME": str(tmp_path)} | variables, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [str(secure)] * 3
