"""One lab for all tests of a run; at its end the judge speaks."""

import signal
import threading
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab
from tests.lab.network import NoLab


@pytest.fixture(scope="session", autouse=True)
def _taken_down_when_told_to_end(request: pytest.FixtureRequest) -> None:
    """A run of the lab that gets SIGTERM takes its hosts down first."""
    if any(item.get_closest_marker("lab") for item in request.session.items) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: pytest.exit("told to end", returncode=143))


@pytest.fixture(scope="module")
def running_lab() -> Iterator[Lab]:
    try:
        lab = Lab()
    except NoLab as reason:
        pytest.skip(str(reason))
    try:
        lab.deploy()
        yield lab
        lab.heal()
        verdict = lab.verdict()
        gaps = ", ".join(f"{gap:.3f}" for gap in lab.gaps)
        print("\n".join([*verdict.lines(), f"seconds from each fault to On at the other host: {gaps}"]))
        assert not (broken := verdict.broken()), broken
    finally:
        lab.close()


@pytest.fixture
def lab(running_lab: Lab) -> Lab:
    """No fault anywhere; external01 (A) leads every group, external02 (B) follows, and A's router leads etcd's cluster."""
    running_lab.begin()
    return running_lab
