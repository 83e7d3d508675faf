"""Deployments that tests of the command look at are those of tests/deployments."""

from tests.deployments.conftest import active, engine, filled, flow, group, release

__all__ = ["active", "engine", "filled", "flow", "group", "release"]
