"""A small data set of each source, as the config section `data` describes it."""

import pathlib

from tests.data.common import encode, make_image
from tests.data.tables import make_rows, save_to_disk, write_parquet
from tests.data.tar_shards import write_shards
from tests.data.test_encoded import write_set

# Examples that each of them has; of "tfds" those of the tiny `shapes/32`.
COUNT = 24

BUCKETS = dict(step=8, sizes=(16, 24), max_ratio=2.0)

# Sources with images whose sizes are known.
WITH_SIZES = ("folder", "tar", "parquet", "huggingface", "tfds", "mixture")
SOURCES = (*WITH_SIZES, "latents")


def write(source, folder, shapes_dir):
    """Writes a data set.

    Args:
      source: One of SOURCES.
      folder: Where to.
      shapes_dir: Root of the tiny `shapes/32`.

    Returns:
      Section `data`, of plain values.
    """
    path = pathlib.Path(folder, source)
    section = dict(source=source, name=str(path), image_size=16, split="all")
    section |= dict(crop="random", min_crop=0.6, flip=True)
    if source == "folder":
        path.mkdir(parents=True)
        for k in range(COUNT):
            image = encode(make_image(20 + k, 44 - k, k))
            (path / f"{k}.png").write_bytes(image)
    elif source == "tar":
        write_shards(path, shards=3, each=COUNT // 3)
    elif source == "parquet":
        write_parquet(path / "0.parquet", make_rows(COUNT // 2))
        write_parquet(path / "1.parquet", make_rows(COUNT // 2, COUNT // 2))
        # Room for two row groups of six.
        section["cache_gb"] = 1e-5
    elif source == "huggingface":
        save_to_disk(path, make_rows(COUNT))
    elif source == "latents":
        write_set(path, COUNT, copies=2, per_shard=7)
        section |= dict(split="train", image_size=8)
    elif source == "tfds":
        section |= dict(name="shapes/32", split="train", data_dir=shapes_dir)
    else:
        parts = {
            part: write(part, path, shapes_dir) for part in ("folder", "tar", "parquet")
        }
        own = ("source", "name", "cache_gb")
        parts = {n: {k: p[k] for k in own if k in p} for n, p in parts.items()}
        for part, weight in zip(parts.values(), (0.5, 0.3, 0.2), strict=True):
            part["weight"] = weight
        section["parts"] = parts
        del section["name"]
    return section
