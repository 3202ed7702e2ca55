"""Reads tables by position: Parquet files, and data sets of Hugging Face's `datasets`.

`row_groups.py` and `arrow_files.py` read the rows of the two kinds of files,
`fields.py` converts columns to the values of an example, and `table_source.py` is the
common base of both sources.
"""

from ldm_jax.data.tables.huggingface import HuggingFaceSource
from ldm_jax.data.tables.parquet import ParquetSource

__all__ = ["HuggingFaceSource", "ParquetSource"]
