"""Checks of the library that are too long for the tests, each with a page in `results/`."""
