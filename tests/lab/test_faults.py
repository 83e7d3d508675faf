"""A bounded random fault sequence; `make lab` runs longer ones."""

import os
import secrets

import pytest

from tests.lab.faults import sequence
from tests.lab.lab import Lab


@pytest.mark.lab
def test_random_faults_break_no_invariant(lab: Lab) -> None:
    seed = int(os.environ.get("SEED", "0")) or secrets.randbelow(10**6)
    print(f"SEED={seed}")
    figures = sequence(lab, faults=int(os.environ.get("FAULTS", "20")), seed=seed, say=print)
    assert not figures.broken, f"SEED={seed}: {figures.lines()}"
