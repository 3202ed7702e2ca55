"""Reads tables by position: Parquet files, and data sets of Hugging Face's `datasets`.

`row_groups.py` and `arrow_files.py` find the rows of the two kinds of files,
`fields.py` says which columns make an example and what their values become, and
`table_source.py` is what both sources share.
"""

from ldm_jax.data.tables.huggingface import HuggingFaceSource
from ldm_jax.data.tables.parquet import ParquetSource

__all__ = ["HuggingFaceSource", "ParquetSource"]
