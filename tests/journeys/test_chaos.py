"""Ten workers and three beats killed at random during 100 scheduled activations and deployments (tests/journeys/chaos.py)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.journeys.chaos import ROOT


@pytest.mark.long
def test_each_scheduled_activation_is_carried_out_once_however_many_workers_and_beats_are_killed(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.journeys.chaos", str(tmp_path / "home")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert run.stdout, run.stderr[-4000:]
    figures = json.loads(run.stdout.splitlines()[-1])
    print(run.stdout)
    assert figures["violations"] == []
    assert figures["activations"] == figures["deployments"] == 100
    assert figures["killed"]["worker"] >= 10 and figures["killed"]["beat"] >= 1
