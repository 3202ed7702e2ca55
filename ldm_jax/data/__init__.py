"""From files and data sets to NumPy batches; JAX is never imported here."""
