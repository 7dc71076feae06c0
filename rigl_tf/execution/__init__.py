"""Products that cost what the active connections cost: kernels whose zeros do not exist."""
