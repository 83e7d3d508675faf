"""Time zones by name, as people write them."""

from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from portal.errors import Invalid


def zone_of(name: str, *, field: str = "time_zone") -> ZoneInfo:
    """Raises Invalid, naming the field, for a zone that does not exist."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Invalid(f"There is no time zone {name}; say for instance Europe/Amsterdam or UTC.", field=field) from error
