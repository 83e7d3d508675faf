"""The documentation, inside the portal."""
