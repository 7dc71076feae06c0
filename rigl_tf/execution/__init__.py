"""CSR kernels: only active values are stored, and products cost as much as there are values."""
