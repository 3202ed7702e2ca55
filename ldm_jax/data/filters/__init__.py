"""Columns of numbers, truth values and text that say what examples are."""

from ldm_jax.data.filters.tables import make_columns, scalars_of

__all__ = ["make_columns", "scalars_of"]
