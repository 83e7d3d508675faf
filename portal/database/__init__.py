"""What the portal says when its database does not do its part."""

from django.db import InterfaceError, OperationalError

from portal.errors import DatabaseAway

REST = "Nothing of this was done. Runtimes and their failover on the machines go on."


def away(error: BaseException | None) -> DatabaseAway | None:
    """The words for an error that is the database's and nobody's fault here; None for any other, a mistake of ours for instance."""
    if not isinstance(error, (OperationalError, InterfaceError)):
        return None
    said = str(error)
    if "disk is full" in said or "No space left" in said:
        return DatabaseAway(f"The portal's database cannot be written: its disk is full. {REST} Make room on that disk and try again.")
    if "database is locked" in said:
        return DatabaseAway(f"Too many write into the portal's database at this moment. {REST} Try again.")
    return DatabaseAway(f"The portal's database does not answer as it should. {REST} Try again in a moment; the portal's log says more.")
