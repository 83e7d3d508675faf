"""Measurements that print their figures and leave nothing behind. They use the lab of the tests (`tests/lab`), no harness of their own."""
