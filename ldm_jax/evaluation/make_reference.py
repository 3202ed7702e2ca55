r"""Makes reference statistics to compare samples with, in one file.

    ldm-reference --workdir=runs/class --outdir=references/class
    ldm-reference --config=unconditional:celebahq --outdir=references/celebahq
    ldm-reference --images=photos --image_size=256 --outdir=references/photos

writes `reference.npz` into that folder, of the training images of a run or a config,
cropped at the centre and not mirrored; or of a folder of images or an npz, unchanged or
resized to --image_size. The file records which images it is of, their preprocessing,
and the weights of the networks; an evaluation that does not match is refused. Run
again, the same command resumes where it was interrupted.
"""

from absl import flags

from ldm_jax import cli
from ldm_jax.evaluation.flag_groups import (
    check_used,
    define_measurement_flags,
    feature_weights,
    refuse,
)

with cli.group("which images"):
    _WORKDIR = cli.shared("workdir")
    _CONFIG = flags.DEFINE_string(
        "config", None, "Config of the training images, e.g. unconditional:ffhq."
    )
    _IMAGES = flags.DEFINE_string(
        "images", None, "Folder of images, with subfolders, or npz with arr_0."
    )
    _SPLIT = flags.DEFINE_string(
        "split", None, "Split of the data; that of training if unset."
    )
    _DATA_DIR = cli.shared("data_dir")
    _IMAGE_SIZE = cli.shared("image_size")
    _NUM_IMAGES = cli.shared("num_images")
    _BATCH_SIZE = cli.shared("batch_size")

with cli.group("how to measure"):
    _DISTANCES = flags.DEFINE_list(
        "distances",
        ["fid", "sfid", "precision_recall"],
        "Rows of SET_METRICS that will use the file, those with a reference.",
    )
    _WEIGHTS, _SKIP, _SAVE_EVERY = define_measurement_flags()

with cli.group("output"):
    _OUTDIR = cli.shared("outdir", required=True)
    _TAKE_OUTDIR = cli.shared("take_outdir")


def _main(argv: list[str]) -> None:
    """Makes the file."""
    del argv
    import jax

    from ldm_jax import sharding
    from ldm_jax.config import choose
    from ldm_jax.errors import ConfigError
    from ldm_jax.evaluation.references import measure_reference
    from ldm_jax.files import check_outdir
    from ldm_jax.lock import hold_outdir
    from ldm_jax.metrics.measurement import Measurement
    from ldm_jax.metrics.set_metrics import SET_METRICS
    from ldm_jax.store import as_path

    given = [h.name for h in (_WORKDIR, _CONFIG, _IMAGES) if h.value is not None]
    if len(given) != 1:
        raise ConfigError(
            "give one of --workdir, --config and --images, whose images are measured; "
            f"got {' and '.join(f'--{name}' for name in given) or 'none of them'}"
        )
    weights = feature_weights(_WEIGHTS.value)
    rows = {name: choose(SET_METRICS, name, "--distances") for name in _DISTANCES.value}
    idle = [name for name, row in rows.items() if not row.needs_reference]
    if idle:
        raise ConfigError(
            f"--distances={','.join(idle)} needs no reference and would read nothing "
            "of the file: leave it out"
        )
    check_used(_DISTANCES.value, weights)
    if _IMAGES.value is not None:
        refuse(("split", "data_dir"), "--images are taken as they are")
    check_outdir(_OUTDIR.value)
    mesh = sharding.make_mesh()
    images = _open(mesh)
    measurement = Measurement(_DISTANCES.value, mesh, weights)
    output = as_path(_OUTDIR.value) / "reference.npz"
    with hold_outdir(_OUTDIR.value, _TAKE_OUTDIR.value):
        found = measure_reference(images, measurement, output, _SAVE_EVERY.value)
    if not jax.process_index():
        count, taps = found.record["count"], ", ".join(found.taps)
        print(f"{output}: {count:,} images, features {taps}")


def _open(mesh):
    """The set of images that the flags name."""
    from ldm_jax.evaluation.image_sets import open_images, open_training_set

    size, count, skip = _IMAGE_SIZE.value, _NUM_IMAGES.value, _SKIP.value
    if _IMAGES.value is not None:
        return open_images(
            _IMAGES.value,
            mesh,
            _BATCH_SIZE.value,
            image_size=size,
            count=count,
            skip_unreadable=skip,
        )
    return open_training_set(
        _section(),
        mesh,
        _BATCH_SIZE.value,
        split=_SPLIT.value,
        count=count,
        image_size=size,
    )


def _section():
    """Config section `data` of the run or the config."""
    from ldm_jax.config import to_dict
    from ldm_jax.evaluation.subjects import config_of

    if _WORKDIR.value is not None:
        config = config_of(_WORKDIR.value)
    else:
        config = cli.load_config(_CONFIG.value)
    section = to_dict(config.data)
    section["on_error"] = "skip" if _SKIP.value else "raise"
    if _DATA_DIR.value is not None:
        section["data_dir"] = _DATA_DIR.value
    return section


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, lower="--batch_size or --image_size")


if __name__ == "__main__":
    main()
