# ruff: noqa: E501, DTZ001 - tables read better in one line each, and wall clocks have no zone
"""Windows, freezes and the clock of a zone, as tables."""

from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest

from deployments.windows import Calendar, Freeze, Window, in_zone, instant, verdict
from portal.errors import Invalid
from portal.time_zones import zone_of

AMSTERDAM = ZoneInfo("Europe/Amsterdam")
WEEK = frozenset({0, 1, 2, 3, 4})
OFFICE = Window(WEEK, time(9), time(17))
NIGHT = Window(frozenset({4}), time(22), time(2))  # Friday night
CHRISTMAS = Freeze(datetime(2026, 12, 20, 23, tzinfo=UTC), datetime(2027, 1, 3, 23, tzinfo=UTC), "Christmas.")


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("calendar", "at", "open_", "next_at", "says"),
    [
        pytest.param(Calendar(AMSTERDAM), utc(2026, 11, 22, 3), True, None, "", id="without windows always"),
        pytest.param(Calendar(AMSTERDAM, [OFFICE]), utc(2026, 11, 23, 8), True, None, "", id="Monday 09:00 there: just open"),
        pytest.param(Calendar(AMSTERDAM, [OFFICE]), utc(2026, 11, 23, 7, 59), False, utc(2026, 11, 23, 8), "Mon–Fri 09:00–17:00", id="a minute early"),
        pytest.param(Calendar(AMSTERDAM, [OFFICE]), utc(2026, 11, 23, 16), False, utc(2026, 11, 24, 8), "Tue 24 Nov 2026 09:00", id="17:00 is too late"),
        pytest.param(Calendar(AMSTERDAM, [OFFICE]), utc(2026, 11, 21, 12), False, utc(2026, 11, 23, 8), "Mon 23 Nov", id="Saturday waits for Monday"),
        pytest.param(Calendar(AMSTERDAM, [OFFICE]), utc(2027, 3, 29, 7, 0), True, None, "", id="the Monday after the clocks went forward"),
        pytest.param(Calendar(AMSTERDAM, [NIGHT]), utc(2026, 11, 28, 0, 30), True, None, "", id="Saturday 01:30 belongs to Friday night"),
        pytest.param(Calendar(AMSTERDAM, [NIGHT]), utc(2026, 11, 27, 0, 30), False, utc(2026, 11, 27, 21), "Fri 22:00–02:00", id="Friday 01:30 does not"),
        pytest.param(Calendar(AMSTERDAM, [], [CHRISTMAS]), utc(2026, 12, 24, 12), False, utc(2027, 1, 3, 23), "frozen until Mon 4 Jan 2027 00:00", id="frozen"),
        pytest.param(Calendar(AMSTERDAM, [], [CHRISTMAS]), utc(2027, 1, 3, 23), True, None, "", id="the end of a freeze is open"),
        pytest.param(Calendar(AMSTERDAM, [OFFICE], [CHRISTMAS]), utc(2026, 12, 24, 12), False, utc(2027, 1, 4, 8), "Mon 4 Jan 2027 09:00", id="frozen, then the window"),
        pytest.param(
            Calendar(AMSTERDAM, [OFFICE], [CHRISTMAS, Freeze(utc(2027, 1, 4), utc(2027, 1, 6), "Audit")]),
            utc(2026, 12, 24, 12), False, utc(2027, 1, 6, 8), "Wed 6 Jan", id="two freezes in a row",
        ),
        pytest.param(
            Calendar(AMSTERDAM, [Window(frozenset({6}), time(2, 30), time(4))]), utc(2027, 3, 27, 12), False, utc(2027, 3, 28, 1, 30),
            "03:30", id="a window that opens in the hour that does not exist opens right after it",
        ),
        pytest.param(Calendar(AMSTERDAM, [Window(frozenset(range(7)), time(0), time(0))]), utc(2026, 11, 22, 3), True, None, "", id="round the clock"),
    ],
)  # fmt: skip
def test_when_an_environment_may_be_changed(calendar: Calendar, at: datetime, open_: bool, next_at: datetime | None, says: str) -> None:
    found = verdict(calendar, at)
    assert found.open is open_
    assert says in found.sentence
    if not open_:
        assert found.next_at == next_at
        assert next_at is None or verdict(calendar, next_at).open


def test_a_window_that_never_opens_again_is_said_so() -> None:
    for_ever = Freeze(utc(2026, 1, 1), datetime(9000, 1, 1, tzinfo=UTC), "Retired")
    found = verdict(Calendar(AMSTERDAM, [Window(frozenset(), time(9), time(10))], [for_ever]), utc(2026, 11, 22))
    assert not found.open and found.next_at is None and "No window opens" in found.sentence


@pytest.mark.parametrize(
    ("wall", "zone", "second", "moment"),
    [
        pytest.param(datetime(2027, 7, 1, 12), "Europe/Amsterdam", None, utc(2027, 7, 1, 10), id="summer"),
        pytest.param(datetime(2027, 12, 1, 12), "Europe/Amsterdam", None, utc(2027, 12, 1, 11), id="winter"),
        pytest.param(datetime(2026, 10, 25, 2, 30), "Europe/Amsterdam", False, utc(2026, 10, 25, 0, 30), id="the first 02:30"),
        pytest.param(datetime(2026, 10, 25, 2, 30), "Europe/Amsterdam", True, utc(2026, 10, 25, 1, 30), id="the second 02:30"),
        pytest.param(datetime(2027, 7, 1, 12), "UTC", True, utc(2027, 7, 1, 12), id="the second does not matter where there is one"),
        pytest.param(datetime(2027, 4, 4, 1, 45), "Australia/Lord_Howe", False, utc(2027, 4, 3, 14, 45), id="half an hour twice"),
    ],
)
def test_a_wall_clock_of_a_zone(wall: datetime, zone: str, second: bool | None, moment: datetime) -> None:
    assert instant(wall, ZoneInfo(zone), second=second) == moment


@pytest.mark.parametrize(
    ("wall", "sentence"),
    [
        pytest.param(datetime(2027, 3, 28, 2, 30), "02:30 does not exist on Sun 28 Mar 2027 in Europe/Amsterdam: the clocks are set forward. Choose 01:30 or 03:30.", id="gap"),
        pytest.param(datetime(2026, 10, 25, 2, 30), "02:30 happens twice on Sun 25 Oct 2026 in Europe/Amsterdam, because the clocks are set back: choose the first (00:30 UTC) or the second (01:30 UTC).", id="overlap"),
    ],
)  # fmt: skip
def test_a_time_that_is_no_moment_is_refused_with_what_to_choose(wall: datetime, sentence: str) -> None:
    with pytest.raises(Invalid) as refusal:
        instant(wall, AMSTERDAM)
    assert refusal.value.sentence == sentence and refusal.value.field == "at"


def test_zones_are_known_by_name() -> None:
    assert in_zone(utc(2027, 1, 3, 23), zone_of("Europe/Amsterdam")) == "Mon 4 Jan 2027 00:00 Europe/Amsterdam"
    with pytest.raises(Invalid, match="no time zone Mars/Base; say for instance Europe/Amsterdam"):
        zone_of("Mars/Base")
