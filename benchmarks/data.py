"""Speed of each data source, compared with WebDataset and PyTorch's DataLoader.

    python -m benchmarks.data [--only sources,reading] [--json data.json]

The same JPEG files are stored as a folder, array_record, tar shards, Parquet, and as
`datasets.save_to_disk` writes them; there is a separate set of latents. The parts are
printed as they are measured:

- sources: images/s of batches of `--size` pixels squared, cropped at the centre, by
  worker processes, for each source and, if they are installed, for `webdataset` and
  PyTorch's DataLoader over the folder. All sides take turns; medians over the rounds.
- reading: records/s without decoding, in one thread: each source in random order,
  WebDataset in the order of its shards.
- index: memory and seconds to open simulated tar indexes of up to `--entries`, each in
  its own process.
- needs: images/s that training of the published configs consumes, and their origin.

Other processes on the machine disturb all measurements.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from absl import logging
from array_record.python import array_record_module
from PIL import Image

from benchmarks.simulated_tar import measure_afresh, write_simulated
from ldm_jax.data.encoded import Header, RecordFormat
from ldm_jax.data.encoded.header import FILE, VERSION
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source

BATCH = 32

# Batches of the warm-up, and the least number of measured batches.
WARM, LEAST = 6, 16

# Number of different images; drawing one takes as long as reading twenty.
PICTURES = 200

# Images/s of training on one H100, in bfloat16 and without the first stage: measured
# for LDM-4 on ImageNet, for the others computed from its speed and their FLOPs.
NEEDS = {
    "imagenet_class (LDM-4)": 470,
    "unconditional (FFHQ, CelebA-HQ, bedrooms)": 484,
    "unconditional (churches)": 2331,
    "text_to_image (256 px)": 538,
    "Stable Diffusion (512 px)": 122,
}
MEASURED = "imagenet_class (LDM-4)"


def write_sets(folder: pathlib.Path, count: int, rows: int) -> dict[str, str]:
    """Writes the same images in every format.

    Args:
      folder: Folder to write to.
      count: Number of images.
      rows: Rows of a row group of Parquet; `datasets` writes 100.

    Returns:
      Source -> name.
    """
    drawn = [_jpeg(number) for number in range(min(count, PICTURES))]
    images = [drawn[number % PICTURES] for number in range(count)]
    (folder / "folder").mkdir()
    for number, data in enumerate(images):
        (folder / "folder" / f"{number:06d}.jpg").write_bytes(data)
    (folder / "tar").mkdir()
    for shard, first in enumerate(range(0, count, 500)):
        with tarfile.open(folder / "tar" / f"{shard:05d}.tar", "w") as file:
            for number in range(first, min(first + 500, count)):
                for suffix, data in (("jpg", images[number]), ("txt", b"an image")):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))
    _write_tables(folder, images, rows)
    _write_records(folder, images)
    _write_latents(folder / "latents" / "train", count)
    names = {name: str(folder / name) for name in ("folder", "tar", "parquet")}
    return names | {
        "huggingface": str(folder / "saved"),
        "tfds": "pictures",
        "latents": str(folder / "latents"),
    }


def _jpeg(number, width=500, height=375):
    """Draws an image similar to ImageNet's: large shapes, and detail at all scales."""
    rng, image = np.random.default_rng(number), np.zeros((height, width, 3))
    for side, weight in ((4, 90), (24, 40), (120, 15), (375, 6)):
        noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.BICUBIC)
        image += weight / 127 * (np.asarray(layer, np.float32) - 127)
    buffer = io.BytesIO()
    image = np.clip(image + 127, 0, 255).astype(np.uint8)
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _write_tables(folder, images, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(
        {"image": pa.array([{"bytes": d, "path": None} for d in images], kind)}
    )
    (folder / "parquet").mkdir()
    pq.write_table(
        table,
        folder / "parquet" / "0.parquet",
        row_group_size=rows,
        use_dictionary=False,
        compression="none",
    )
    (folder / "saved").mkdir()
    with pa.ipc.new_stream(str(folder / "saved" / "0.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=1000)
    state = {"_data_files": [{"filename": "0.arrow"}]}
    (folder / "saved" / "state.json").write_text(json.dumps(state))


def _write_records(folder, images):
    """Writes the images as a prepared TensorFlow data set."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder):
        name = "pictures"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image": image})
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, data in enumerate(images):
                yield number, {"image": io.BytesIO(data)}

    builder = Pictures(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()


def _write_latents(folder, count, side=64, channels=3):
    """Writes random latents of LDM-4's shape: 64 x 64 x 3, for images of 256 pixels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((16, side, side, channels)).astype(ml_dtypes.bfloat16)
    form = RecordFormat.of({"latent_mean": mean[0], "latent_std": mean[0]})
    path = folder / "0.array_record"
    # The options of ldm-encode.
    writer = array_record_module.ArrayRecordWriter(
        str(path), "group_size:1,uncompressed"
    )
    for number in range(count):
        example = {"latent_mean": mean[number % 16], "latent_std": mean[0]}
        writer.write(form.pack(example, f"{number}.jpg"))
    writer.close()
    shard = {"file": path.name, "records": count, "bytes": path.stat().st_size}
    header = Header(
        version=VERSION,
        count=count,
        mirrored=False,
        fields=form.to_json(),
        shards=[shard | {"crc32": "00000000"}],
        num_classes=None,
        class_names=None,
        first_stage={},
        statistics={},
        data={"image_size": 256},
        inputs={},
        source={},
        skipped={},
        shortened=0,
        cut={},
        written_by="benchmarks/data.py",
    )
    (folder / FILE).write_text(json.dumps(header.to_json()))


def ours(source: str, name: str, folder: str, size: int, workers: int) -> Iterator:
    """Loads batches of one of our sources.

    Args:
      source: Row of SOURCES.
      name: Name of the set.
      folder: Folder of prepared sets.
      size: Side of the images in pixels.
      workers: Worker processes.

    Returns:
      Loader.
    """
    split = "train" if source in ("tfds", "latents") else "all"
    section = dict(source=source, name=name, image_size=size, workers=workers)
    if source == "tfds":
        section["data_dir"] = folder
    opened = open_source(section, split)
    return make_loader(opened, section, batch_size=BATCH, seed=0)


class Pictures:
    """The images of a folder for PyTorch's DataLoader."""

    def __init__(self, folder: str, size: int) -> None:
        """Lists the images.

        Args:
          folder: Folder of the images.
          size: Side of the images in pixels.
        """
        self._paths = sorted(str(path) for path in pathlib.Path(folder).glob("*.jpg"))
        self._size = size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns uint8 [size, size, 3]."""
        with Image.open(self._paths[index]) as image:
            return cut(image, self._size)


def cut(image: Image.Image, size: int) -> np.ndarray:
    """Crops the largest square at the centre, and resizes it.

    Args:
      image: The image.
      size: Side of the result in pixels.

    Returns:
      uint8 [size, size, 3].
    """
    # As in our loader: JPEG is decoded at the smallest sufficient scale.
    image.draft("RGB", (size, size))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    image = image.convert("RGB").resize((size, size), Image.BICUBIC, box)
    return np.array(image)


def pytorch(folder: str, size: int, workers: int) -> Iterator:
    """Loads batches by PyTorch's DataLoader over the files of a folder.

    Args:
      folder: Folder of the images.
      size: Side of the images in pixels.
      workers: Worker processes.

    Yields:
      Batches, epoch after epoch.
    """
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Pictures(folder, size),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


class Cut:
    """`cut` with its size, for worker processes."""

    def __init__(self, size: int) -> None:
        """Keeps the size.

        Args:
          size: Side of the images in pixels.
        """
        self._size = size

    def __call__(self, data: bytes) -> np.ndarray:
        """Returns uint8 [size, size, 3]."""
        with Image.open(io.BytesIO(data)) as image:
            return cut(image, self._size)


def webdataset(folder: str, size: int, workers: int) -> Iterator:
    """Loads batches by WebDataset from tar shards, shuffled in a buffer of 1,000.

    Args:
      folder: Folder of the shards.
      size: Side of the images in pixels.
      workers: Worker processes.

    Yields:
      Batches without end.
    """
    import webdataset as wds

    shards = sorted(str(path) for path in pathlib.Path(folder).glob("*.tar"))
    images = wds.WebDataset(shards, resampled=True, shardshuffle=False)
    images = images.shuffle(1000).to_tuple("jpg").map_tuple(Cut(size))
    loader = wds.WebLoader(
        images.batched(BATCH, partial=False), batch_size=None, num_workers=workers
    )
    yield from loader


def rate(batches: Iterator, seconds: float) -> float:
    """Measures images/s after the first batches.

    Args:
      batches: Iterator over batches.
      seconds: Least duration of the measurement.

    Returns:
      Images per second.
    """
    # Batches that were prefetched while the workers started do not count.
    for _ in range(WARM):
        next(batches)
    began, count = time.perf_counter(), 0
    # Threads may deliver several batches at once.
    while count < LEAST * BATCH or time.perf_counter() - began < seconds:
        next(batches)
        count += BATCH
    took = time.perf_counter() - began
    getattr(batches, "close", lambda: None)()
    return count / took


def sources(names: Mapping[str, str], args: Any) -> Iterator[dict[str, Any]]:
    """The part "sources"; yields a row for each number of workers and side."""
    for workers in args.workers:
        sides: dict[str, Callable[[], Iterator]] = {
            source: lambda s=source, n=name, w=workers: ours(
                s, n, os.path.dirname(names["tar"]), args.size, w
            )
            for source, name in names.items()
        }
        if _there("torch"):
            sides["PyTorch, folder"] = lambda w=workers: pytorch(
                names["folder"], args.size, w
            )
        if _there("webdataset") and _there("torch"):
            sides["webdataset, tar"] = lambda w=workers: webdataset(
                names["tar"], args.size, w
            )
        found = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, start in sides.items():
                found[side].append(rate(start(), args.seconds))
        for side, rates in found.items():
            yield {
                "workers": workers,
                "side": side,
                "images_per_s": round(statistics.median(rates), 1),
                "lowest": round(min(rates), 1),
                "highest": round(max(rates), 1),
            }


def reading(names: Mapping[str, str], args: Any) -> Iterator[dict[str, Any]]:
    """The part "reading"; yields a row for each side."""
    found = {}
    for _ in range(args.rounds):
        for source, name in names.items():
            split = "train" if source in ("tfds", "latents") else "all"
            section = dict(source=source, name=name)
            if source == "tfds":
                section["data_dir"] = os.path.dirname(names["tar"])
            # In a set that is larger than the cache, each row costs its row group.
            sides = {source: {}}
            if source == "parquet":
                sides["parquet, nothing cached"] = {"cache_gb": 1e-9}
            for side, options in sides.items():
                opened = open_source(section | options, split)
                order = np.random.default_rng(0).permutation(len(opened)).tolist()
                records = map(opened.__getitem__, order)
                found.setdefault(side, []).append(_records(records, args.seconds))
        if _there("webdataset"):
            import webdataset as wds

            shards = sorted(str(p) for p in pathlib.Path(names["tar"]).glob("*.tar"))
            records = iter(wds.WebDataset(shards, shardshuffle=False))
            found.setdefault("webdataset, tar, in order", []).append(
                _records(records, args.seconds)
            )
    for side, rates in found.items():
        yield {"side": side, "records_per_s": round(statistics.median(rates), 1)}


def _records(records, seconds):
    began, count = time.perf_counter(), 0
    for _ in records:
        count += 1
        if count % 16 == 0 and time.perf_counter() - began > seconds:
            break
    return count / (time.perf_counter() - began)


def index(names: Mapping[str, str], args: Any) -> Iterator[dict[str, Any]]:
    """The part "index"; yields a row for each number of entries."""
    del names
    entries = 10**4
    while entries <= args.entries:
        with tempfile.TemporaryDirectory() as folder:
            write_simulated(folder, entries)
            yield {"entries": entries, "what": measure_afresh(folder, "train")}
        entries *= 10


def needs(names: Mapping[str, str], args: Any) -> Iterator[dict[str, Any]]:
    """The part "needs"; yields a row for each config."""
    del names, args
    for config, images in NEEDS.items():
        how = "measured" if config == MEASURED else "extrapolated"
        yield {"config": config, "images_per_s_of_an_H100": images, "how": how}


PARTS = {"needs": needs, "index": index, "reading": reading, "sources": sources}


def _there(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


def main() -> None:
    """Measures the parts that --only names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--row_group", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--entries", type=int, default=10**7)
    parser.add_argument("--json", default="", help="file to save the rows in")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"--only={args.only}: no {unknown.pop()}; there are {[*PARTS]}")
    logging.set_verbosity(logging.ERROR)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        names = {}
        if {"sources", "reading"} & {*parts}:
            names = write_sets(pathlib.Path(folder), args.images, args.row_group)
        for part in PARTS:
            for row in PARTS[part](names, args) if part in parts else ():
                print(
                    part, *(f"{key}={value}" for key, value in row.items()), flush=True
                )
                rows.append({"part": part} | row)
                if args.json:
                    pathlib.Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
