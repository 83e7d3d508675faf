"""A plan of 200 steps over 40 machines fails at step 150, is mended and resumed. Real portal, worker, beat and broker; light machines.
(`make test-long`)"""

import subprocess
import sys

import pytest

from tests.journeys.baton import ROOT

pytestmark = [pytest.mark.journey, pytest.mark.long]


def test_a_failure_at_step_150_is_mended_and_the_steps_before_are_not_touched() -> None:
    line = [sys.executable, "-m", "benchmarks.rollout", "--steps", "200", "--machines", "40", "--fail-at", "150"]
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=900)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    assert "step 150 of 200: failed: " in ran.stdout and "failed: no memory." in ran.stdout
    assert "failed, then succeeded; steps 1-149 untouched, step 150 in attempt 2 (1 kept)" in ran.stdout
