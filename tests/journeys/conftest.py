"""A running Baton for every journey (tests/journeys/baton.py)."""

from tests.journeys.baton import baton

__all__ = ["baton"]
