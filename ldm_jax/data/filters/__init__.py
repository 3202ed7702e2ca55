"""Metadata of examples as columns, and conditions on them.

`tables.py` makes columns from the fields of JSON, `expressions.py` parses a filter such
as `aesthetic > 5 and width >= 512`, and `values.py` evaluates its parts.
"""

from ldm_jax.data.filters.expressions import Filter
from ldm_jax.data.filters.tables import make_table, scalars_of

__all__ = ["Filter", "make_table", "scalars_of"]
