"""Tests mirror the packages; `journeys/` and `browser/` run the real product."""

# Machines that run tests are shared and noisy: a wait that stands for a promise of the product in seconds is this many times as
# patient. The promises themselves are measured, with figures, where nothing else runs.
PATIENCE = 4.0
