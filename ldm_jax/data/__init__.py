"""Loads files and data sets as NumPy batches; JAX is never imported here."""
