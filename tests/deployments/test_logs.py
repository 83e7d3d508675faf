"""Reading the log of a deployment from a place on."""

import pytest

from deployments import logs


@pytest.mark.parametrize(
    ("machines", "known"),
    [
        pytest.param("3:7,4:9", {3: 7, 4: 9}, id="two machines"),
        pytest.param(f"{'9' * 30}:1,4:{'9' * 30},x:1,4:²", {}, id="what no database holds"),
        pytest.param(",".join(f"{number}:1" for number in range(5000)), dict.fromkeys(range(200), 1), id="more than a query takes"),
    ],
)
def test_a_place_in_the_log_is_read_within_bounds(machines: str, known: dict[int, int]) -> None:
    assert logs.Place.parse("1", machines) == logs.Place(1, known)
