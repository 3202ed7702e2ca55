"""Sets of latents precomputed with a first stage by `ldm-encode`.

| module | what |
| --- | --- |
| `record` | one example as bytes, and back |
| `header` | the JSON file of a set |
| `latent_source` | a set as a data source |

A set is a folder with a header, `latents.json`, and shards in array_record's format.
It contains no executable code: no pickles.
"""

from ldm_jax.data.encoded.header import Header
from ldm_jax.data.encoded.latent_source import LatentSource
from ldm_jax.data.encoded.record import MEAN, STD, RecordFormat

__all__ = ["MEAN", "STD", "Header", "LatentSource", "RecordFormat"]
