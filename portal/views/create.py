"""Create: flows, groups, versions."""
