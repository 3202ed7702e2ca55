"""Loads batches of a data set, and writes a line for each: what is killed in tests.

    python -m tests.faults.sources SECTION.json OUT STEPS

It continues after the lines that OUT has, as a run continues at its step.
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source


def digest_of(batch):
    """A hash of all that a batch holds.

    Args:
      batch: Key -> array.

    Returns:
      Text.
    """
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(batch):
        value = np.ascontiguousarray(batch[key])
        digest.update(f"{key} {value.dtype} {value.shape} ".encode() + value.tobytes())
    return digest.hexdigest()


def main(section, out, steps):
    """Appends the lines that are missing.

    Args:
      section: Path of the section `data`, as JSON.
      out: Path of the lines.
      steps: How many there are to be.
    """
    section, out = json.loads(pathlib.Path(section).read_text()), pathlib.Path(out)
    lines = out.read_bytes().split(b"\n")[:-1] if out.exists() else []
    # A line that was cut off is written again.
    out.write_bytes(b"".join(line + b"\n" for line in lines))
    source = open_source(section, section["split"])
    options = dict(batch_size=8, seed=7, start_step=len(lines))
    batches = make_loader(source, section, **options)
    with open(out, "ab", buffering=0) as file:
        for _ in range(len(lines), int(steps)):
            file.write(digest_of(next(batches)).encode() + b"\n")
    batches.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
