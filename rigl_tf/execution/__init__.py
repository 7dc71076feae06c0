"""Kernels whose zeros do not exist: what holds them, and products that cost what is active."""
