"""Writes the built-in data set `shapes` as a TFDS data set, without TensorFlow."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import tempfile

from ldm_jax.data.shapes.examples import MAX_SHAPES, check_ranges, config_name, metadata
from ldm_jax.errors import ConfigError
from ldm_jax.files import writing
from ldm_jax.store import exists, local_only


def prepare(
    data_dir: str | os.PathLike | None = None,
    image_size: int = 64,
    num_train: int = 10_000,
    num_validation: int = 500,
    max_shapes: int = MAX_SHAPES,
    seed: int = 0,
    overwrite: bool = False,
) -> tuple[pathlib.Path, bool]:
    """Writes the data set, unless it already exists.

    It is written to a temporary folder and then moved into place as a whole, so that an
    interrupted call leaves nothing that could be mistaken for a data set.

    Args:
      data_dir: Root of the TFDS data sets; None for TFDS's default.
      image_size: Side in pixels, >= 16.
      num_train: Number of training examples, >= 1.
      num_validation: Number of validation examples; 0 leaves the split out.
      max_shapes: Largest number of shapes in a scene, 1 to 4.
      seed: Seed of the scenes, >= 0.
      overwrite: Whether to replace a copy that differs, instead of raising an error.

    Returns:
      (path, written): folder of the data set, and whether it was written now.

    Raises:
      ConfigError: If an argument is out of range, or a copy exists that differs.
      DiskError: If it cannot be written; an existing copy is kept.
    """
    check_ranges(
        image_size=image_size,
        num_train=num_train,
        num_validation=num_validation,
        max_shapes=max_shapes,
        seed=seed,
    )
    import tensorflow_datasets as tfds

    from ldm_jax.data.shapes import builder

    config = builder.ShapesConfig(
        name=config_name(image_size, max_shapes),
        image_size=image_size,
        num_train=num_train,
        num_validation=num_validation,
        max_shapes=max_shapes,
        seed=seed,
    )
    data_dir = data_dir and str(local_only(data_dir, "--data_dir", "copy it then"))
    with _quiet():
        builder = builder.Shapes(
            config=config, data_dir=data_dir, file_format="array_record"
        )
    path = pathlib.Path(builder.data_dir)
    if exists(path):
        found = _found(path)
        if found == metadata(config):
            return path, False
        if not overwrite:
            raise ConfigError(_explain(path, found, metadata(config)))
    tfds.disable_progress_bar()
    with writing(path), _replaced(path), _quiet():
        with tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(download_dir=downloads)
    return path, True


@contextlib.contextmanager
def _quiet():
    """Silences TFDS, which logs about downloads and an unknown config."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _found(path):
    """Reads the metadata of a prepared copy; {} if it has none."""
    try:
        return json.loads((path / "metadata.json").read_text())
    except (OSError, ValueError):
        return {}


def _explain(path, found, wanted):
    changes = ", ".join(
        f"{name}={found.get(name, 'unknown')} instead of {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    )
    return (
        f"{path} was prepared with {changes}; give --overwrite to replace it, or "
        "another --data_dir"
    )


@contextlib.contextmanager
def _replaced(path):
    """Moves an existing copy out of the way, and back if it is not replaced."""
    old = path.with_name(f"incomplete.{os.getpid()}_{path.name}")
    if not exists(path):
        yield
        return
    path.rename(old)
    try:
        yield
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)
