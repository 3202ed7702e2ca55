"""What layers compute, as functions with gradients of their own and no parameters.

Each keeps less for the backward pass, or computes it faster, than differentiation of
the plain form would; the plain forms stand in the tests.
"""
