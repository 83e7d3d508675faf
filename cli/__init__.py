"""The `baton` command: what the pages do, from a terminal or a pipeline. It speaks the public API only and imports nothing of
the portal."""
