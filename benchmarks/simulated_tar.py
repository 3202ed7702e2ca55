"""Opens indexes of millions of examples in simulated tar shards.

The shards are sparse files, which take no space on the disk; their indexes are those of
10,000 examples each, of an image, a caption and metadata:

    python -m benchmarks.simulated_tar --examples 10000000

prints, for each split, the seconds to open it, the memory that it holds, and the
seconds of a filter and of the sizes of all images. Each is measured in its own process,
as memory freed earlier would be reused and not be counted.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from ldm_jax.data.sources import keep
from ldm_jax.data.tar import TarSource
from ldm_jax.data.tar.index_file import MEMBER, encode_index, write_index
from ldm_jax.data.tar.shards import find_shards

EACH = 10_000
SUFFIXES = ("jpg", "txt", "json")
_IMAGE, _TEXT = 51_200, 512


def write_simulated(folder: str, examples: int) -> None:
    """Writes shards without content, and their indexes.

    Args:
      folder: Folder to write to.
      examples: Number of examples in all.
    """
    os.makedirs(folder, exist_ok=True)
    for number, first in enumerate(range(0, examples, EACH)):
        count = min(EACH, examples - first)
        path = os.path.join(folder, f"{number:06d}.tar")
        with open(path, "wb") as file:
            file.truncate(count * (_IMAGE + 2 * _TEXT + 3 * 512) + 1024)
        (shard,) = find_shards(path)
        header, arrays = _simulate(first, count)
        header["shard"] = [shard.size, shard.stamp]
        write_index(f"{path}.index", encode_index(header, arrays))


def _simulate(first, count):
    """Makes the (header, arrays) of a shard's index."""
    rng = np.random.default_rng(first)
    members = np.zeros(3 * count, MEMBER)
    sizes = np.tile([_IMAGE, _TEXT, _TEXT], count)
    members["size"] = sizes
    members["offset"] = np.cumsum(sizes + 512) - sizes
    members["suffix"] = np.tile(np.arange(3), count)
    for side in ("height", "width"):
        members[side][::3] = rng.integers(256, 2048, count)
    keys = b"".join(b"%09d" % number for number in range(first, first + count))
    values = json.dumps(["en", "de", "fr"]).encode()
    arrays = {
        "starts": np.arange(0, 3 * count + 1, 3).astype("<u4"),
        "members": members,
        "places": rng.integers(0, 2**64, count, dtype=np.uint64),
        "key_starts": np.arange(0, 9 * count + 1, 9).astype("<u8"),
        "keys": np.frombuffer(keys, "|u1"),
        "numbers 0": rng.normal(5, 1, count),
        "codes 1": rng.integers(-1, 3, count).astype("<i4"),
        "values 1": np.frombuffer(values, "|u1"),
    }
    header = {
        "suffixes": SUFFIXES,
        "counts": [count] * 3,
        "problems": [],
        "fields": {"aesthetic": count, "language": count},
        "columns": {
            "aesthetic": {"kind": "numbers", "number": 0},
            "language": {"kind": "values", "number": 1},
        },
        "digest": hashlib.blake2b(keys, digest_size=16).hexdigest(),
    }
    return header, arrays


def memory() -> int:
    """Returns the memory of this process.

    Returns:
      Resident bytes.
    """
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(folder: str, split: str) -> str:
    """Opens a split, and measures it.

    Args:
      folder: Folder from `write_simulated`.
      split: The split.

    Returns:
      A line of results.
    """
    # Warm-up: allocates threads and the like, which do not grow with the set.
    with tempfile.TemporaryDirectory() as small:
        write_simulated(small, 100)
        TarSource(small, split, keys=["caption"])
    before, began = memory(), time.perf_counter()
    source = TarSource(folder, split, keys=["caption"])
    opened, held = time.perf_counter() - began, memory() - before
    began = time.perf_counter()
    kept = keep(source, "aesthetic > 5 and width >= 512 and language == 'en'")
    filtered = time.perf_counter() - began
    began = time.perf_counter()
    source.sizes()
    sized = time.perf_counter() - began
    return (
        f"{split}: {len(source):,} examples open in {opened:.2f} s, "
        f"{held / len(source):.1f} bytes each; a filter of three columns keeps "
        f"{len(kept):,} in {filtered:.2f} s; sizes in {sized:.2f} s"
    )


def measure_afresh(folder: str, split: str) -> str:
    """Opens and measures a split in a new process.

    Args:
      folder: Folder from `write_simulated`.
      split: The split.

    Returns:
      A line of results.
    """
    command = [sys.executable, "-m", "benchmarks.simulated_tar"]
    command += ["--folder", folder, "--split", split]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Simulates and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, nargs="+", default=[10**4, 10**6])
    parser.add_argument("--folder", help="measure what was written there before")
    parser.add_argument("--split", default="train")
    args = parser.parse_args()
    if args.folder:
        print(measure(args.folder, args.split), end="")
        return
    for examples in args.examples:
        with tempfile.TemporaryDirectory() as folder:
            write_simulated(folder, examples)
            for split in ("all", "train"):
                print(measure_afresh(folder, split), flush=True)


if __name__ == "__main__":
    main()
