"""Precomputes latents: the command `ldm-encode` and its parts.

| module | what |
| --- | --- |
| `__main__` | the command |
| `write_set` | one split: from images to shards and a header |
| `stream` | batches of encoded examples, on the devices of this process |
| `shard_files` | shards on disk: which exist, their records and statistics |
"""
