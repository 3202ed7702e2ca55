"""Files of weights: reading them safely, and naming their tensors."""
