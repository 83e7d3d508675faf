"""The `baton` command against the portal over HTTP. Deployments that tests look at are those of tests/deployments."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.authtoken.models import Token

from cli import app as command_line
from cli import settings as kept
from tests.deployments.conftest import active, engine, filled, flow, group, release

__all__ = ["active", "engine", "filled", "flow", "group", "release"]


class Said:
    """What one command did: exit status, standard output and standard error."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Baton = Callable[..., Said]


@pytest.fixture
def baton(live_server: Any, developer: User, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Baton:
    """The command line, logged in as the developer unless the file of logins is removed."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("URL", "TOKEN", "PROJECT", "ENVIRONMENT"):
        monkeypatch.delenv(f"BATON_{name}", raising=False)
    token = Token.objects.create(user=developer)
    kept.save(kept.Settings(live_server.url, token.key, "webshop", "test"))

    def run(*arguments: str) -> Said:
        monkeypatch.setattr("sys.argv", ["baton", *arguments])
        status = 0
        try:
            command_line.main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0
        return Said(status, *capsys.readouterr())

    return run
