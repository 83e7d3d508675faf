"""`make test` runs every test."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_journeys_stand_where_make_test_looks_for_them() -> None:
    """It names folders, for reading all other tests once more takes a quarter of a minute."""
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "(journey or browser)" in line)
    looks = [ROOT / folder for folder in re.findall(r"tests/\w+", line)]
    marked = [path for path in (ROOT / "tests").rglob("*.py") if re.search(r"pytest\.mark\.(journey|browser)\b", path.read_text())]
    elsewhere = [path for path in marked if not any(path.is_relative_to(folder) for folder in (*looks, ROOT / "tests" / "lab"))]
    assert marked and elsewhere == []
