"""Experiments, checks and the command that trains: a room for each, and `common` for all."""
