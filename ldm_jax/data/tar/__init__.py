"""Reads tar shards in the layout of WebDataset by position; nothing is unpacked.

`shards.py` finds the shards, `members.py` reads their headers, `scan.py` makes an index
of one shard, `index_file.py` is its form on disk and `index_store.py` where it lies;
`tar_source.py` gives examples by their number.
"""

from ldm_jax.data.tar.tar_source import TarSource

__all__ = ["TarSource"]
