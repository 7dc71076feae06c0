"""How a layer computes with a sparse kernel: CSR kernels, and the engine that multiplies them."""
