r"""Prepares the embedded data set `shapes`, of any size, without TensorFlow.

    python -m ldm_jax.data.shapes --data_dir=~/tensorflow_datasets --image_size=64 \
        --num_train=10000 --num_validation=500

writes `shapes/64`, a TFDS data set in array_record files. Example i of a split depends
on (seed, split, i) alone: a larger copy begins with the smaller one, and another
image size shows the same scenes.
"""

import time

from absl import flags

from ldm_jax import cli
from ldm_jax.data.shapes.examples import config_name
from ldm_jax.data.shapes.prepare import prepare

with cli.group("what to draw"):
    _IMAGE_SIZE = cli.shared("image_size", default=64)
    _MAX_SHAPES = cli.shared("max_shapes")
    _NUM_TRAIN = flags.DEFINE_integer(
        "num_train", 10_000, "Number of training examples."
    )
    _NUM_VALIDATION = flags.DEFINE_integer(
        "num_validation", 500, "Number of validation examples; 0 leaves them out."
    )
    _SEED = cli.shared("seed")

with cli.group("output"):
    _DATA_DIR = cli.shared("data_dir")
    _OVERWRITE = flags.DEFINE_bool(
        "overwrite", False, "Replace a copy that differs, instead of refusing to."
    )


def _main(argv: list[str]) -> None:
    """Prepares the data set."""
    del argv
    start = time.perf_counter()
    path, written = prepare(
        _DATA_DIR.value,
        _IMAGE_SIZE.value,
        num_train=_NUM_TRAIN.value,
        num_validation=_NUM_VALIDATION.value,
        max_shapes=_MAX_SHAPES.value,
        seed=_SEED.value,
        overwrite=_OVERWRITE.value,
    )
    name = f"shapes/{config_name(_IMAGE_SIZE.value, _MAX_SHAPES.value)}"
    size = f"{_NUM_TRAIN.value:,} + {_NUM_VALIDATION.value:,} images"
    if written:
        seconds = time.perf_counter() - start
        print(f"{name}: wrote {size} to {path} in {seconds:.0f} s")
    else:
        print(f"{name}: {size} already prepared in {path}")


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, uses_jax=False, lower="--image_size")


if __name__ == "__main__":
    main()
