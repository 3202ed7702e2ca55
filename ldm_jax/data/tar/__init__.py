"""Reads tar shards in the layout of WebDataset by position; nothing is unpacked.

`shards.py` finds the shards, `members.py` reads their headers, `scan.py` makes an index
of one shard, `index_file.py` defines its file, `index_store.py` finds or makes it, and
`tar_source.py` reads examples by number.
"""

from ldm_jax.data.tar.tar_source import TarSource

__all__ = ["TarSource"]
