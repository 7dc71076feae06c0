"""Benchmarks: the cost of sparse training."""
