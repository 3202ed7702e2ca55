"""The computations of layers, as functions with custom gradients and no parameters.

Each stores less for the backward pass, or computes it faster, than automatic
differentiation of the plain form; the plain forms are in the tests.
"""
