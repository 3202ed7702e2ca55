"""Makes the image files and data sets that the tests of the data code need."""

import io
import json
import pathlib
import shutil
import struct

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ldm_jax.data.shapes import examples, prepare

TRAIN, VALIDATION, SIZE = 40, 12, 32


def make_image(width, height, seed=0):
    """A smooth random image, uint8 [height, width, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def always_mirrors():
    """A generator that mirrors every image."""

    class Always(np.random.Generator):
        def random(self):
            return 0.0

    return Always(np.random.PCG64())


def encode(image, format="PNG", **options):
    """Encodes a PIL image or an array."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def write_images(folder, names, size=(40, 30)):
    """Writes one image per name; its seed is its place in `names`."""
    for seed, name in enumerate(names):
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image(*size, seed)).save(path)


def prepare_shapes(folder):
    """Prepares a tiny `shapes/32`; returns the root of the data sets."""
    prepare.prepare(folder, SIZE, num_train=TRAIN, num_validation=VALIDATION)
    return str(folder)


def as_tfrecord(data_dir, target, shards=2):
    """Rewrites the tiny `shapes/32` as TFRecord files, as TFDS lays them out."""
    source = pathlib.Path(data_dir, "shapes", str(SIZE), examples.VERSION)
    folder = pathlib.Path(target, "shapes", str(SIZE), examples.VERSION)
    shutil.copytree(source, folder)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        records = tfds.data_source(
            f"shapes/{SIZE}",
            split=split["name"],
            data_dir=data_dir,
            deserialize_method=raw,
        )
        cuts = np.linspace(0, len(records), shards + 1).astype(int)
        split["shardLengths"] = [str(n) for n in np.diff(cuts)]
        for shard in range(shards):
            name = f"shapes-{split['name']}.tfrecord-{shard:05d}-of-{shards:05d}"
            with open(folder / name, "wb") as file:
                for index in range(cuts[shard], cuts[shard + 1]):
                    file.write(frame(records[index]))
    for file in folder.glob("*.array_record*"):
        file.unlink()
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return str(target)


def frame(record):
    """One TFRecord; the checksums are left empty."""
    return struct.pack("<QI", len(record), 0) + record + bytes(4)
