r"""Finds the training images that are nearest to samples: has a model memorised?

    ldm-nearest --workdir=runs/class --outdir=runs/nearest --num_samples=256 \
        --feature_weights=dinov2=dinov2_vitl14_pretrain.pth
    ldm-nearest --images=samples --reference=photos --network=inception \
        --feature_weights=inception=pt_inception.pth --outdir=runs/nearest

The first draws samples, the second uses existing ones; both read the training images of
the run, or --reference, once. `neighbours.png` shows the samples that are nearest to a
training image, each to the left of its neighbours; `neighbours.json` lists the
distances of all. It also prints the fraction of samples that are nearer to a training
image than nearly all training images are to one another.
"""

from absl import flags

from ldm_jax import cli, ranges
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.flag_groups import (
    define_drawing_flags,
    define_measurement_flags,
    feature_weights,
    load_second_stage,
    plan_of,
    refuse,
    sampling_of,
)
from ldm_jax.files import check_outdir, write_json
from ldm_jax.store import as_path

with cli.group("which samples", num_samples=ranges.whole(2, 10**5)):
    _WORKDIR = cli.shared("workdir")
    _STEP = cli.shared("step")
    cli.shared("ema")
    cli.shared("first_stage")
    _IMAGES = flags.DEFINE_string(
        "images",
        None,
        "Existing samples, a folder or an npz with arr_0; drawn if unset.",
    )
    _NUM_SAMPLES = flags.DEFINE_integer(
        "num_samples",
        None,
        "Number of samples, the first ones of --images; if unset 64 are drawn, or all "
        "of --images used.",
    )
    _LABEL_MODE, _ = define_drawing_flags()
    cli.shared("sampler")
    cli.shared("num_steps")
    cli.shared("guidance_scale")
    _SPLIT = cli.shared("split")
    _SEED = cli.shared("seed")

with cli.group("which training images"):
    _REFERENCE = flags.DEFINE_string(
        "reference",
        None,
        "Folder of images or npz of them; the training images of the run if unset.",
    )
    _DATA_DIR = cli.shared("data_dir")
    _IMAGE_SIZE = cli.shared("image_size")
    _BATCH_SIZE = cli.shared("batch_size")

with cli.group("how to compare"):
    _NETWORK = flags.DEFINE_string(
        "network", "dinov2", "Row of FEATURES: dinov2, inception, clip or random."
    )
    _WEIGHTS, _SKIP = define_measurement_flags()[:2]
    _NUM_NEIGHBOURS = flags.DEFINE_integer(
        "num_neighbours", 7, "Training images to find for each sample."
    )

with cli.group("output"):
    _OUTDIR = cli.shared("outdir", required=True)
    _NUM_SHOWN = flags.DEFINE_integer(
        "num_shown", 8, "Samples in the image grid, those nearest to a training image."
    )

# Number of samples to draw if --num_samples is not given.
_NUM_DRAWN = 64

_DRAWN = ("label_mode", "eta", "sampler", "num_steps", "guidance_scale", "seed")


def _main(argv: list[str]) -> None:
    """Searches."""
    del argv
    import jax

    from ldm_jax import sharding
    from ldm_jax.evaluation.compare import check_sizes
    from ldm_jax.evaluation.nearest.findings import grid_of
    from ldm_jax.evaluation.nearest.streams import TAPS, find_nearest
    from ldm_jax.metrics.programs import FeatureProgram

    # Before the model is loaded, so that a misspelt flag fails at once.
    check_outdir(_OUTDIR.value)
    path, given = _weights(), sampling_of()
    plan = plan_of(_NUM_SAMPLES.value or _NUM_DRAWN, _LABEL_MODE.value)
    _check_places()
    _check_file(path)
    mesh, network = sharding.make_mesh(), _NETWORK.value
    training = _training(mesh)
    # Before the samples are drawn, so that a missing file fails at once.
    program = FeatureProgram(network, path, (TAPS[network],), mesh)
    samples = _samples(mesh, plan, given)
    check_sizes(samples, training)
    found = find_nearest(samples, training, program, _NUM_NEIGHBOURS.value)
    grid = grid_of(found, _NUM_SHOWN.value)
    if not jax.process_index():
        _write(found, grid, samples, training, program.network)


def _weights():
    """Path of the network's file of weights, or None."""
    from ldm_jax.config import choose
    from ldm_jax.evaluation.nearest.streams import TAPS

    network = _NETWORK.value
    choose(TAPS, network, "--network")
    weights = feature_weights(_WEIGHTS.value)
    for name in weights.keys() - {network}:
        raise ConfigError(
            f"--feature_weights={name}=...: the network is {network}; give "
            f"--network={name}, or its own weights"
        )
    return weights.get(network)


def _check_file(path):
    """Checks that weights are given, if the network needs them."""
    from ldm_jax.evaluation.nearest.streams import TAPS
    from ldm_jax.metrics.features import FEATURES, missing_file

    row = FEATURES[_NETWORK.value]
    if path is None and row.needs_file:
        others = [name for name in TAPS if not FEATURES[name].needs_file]
        raise ConfigError(
            f"{missing_file(_NETWORK.value, row.where)}; none is needed with --network="
            f"{' or '.join(others)}"
        )


def _check_places():
    if _IMAGES.value is not None:
        refuse((*_DRAWN, "split", "step", "ema", "first_stage"), "--images are there")
    elif _WORKDIR.value is None:
        raise ConfigError(
            "give --workdir, whose samples are drawn, or --images, samples that are "
            "there"
        )
    if _REFERENCE.value is None and _WORKDIR.value is None:
        raise ConfigError(
            "give --reference, the training images, or --workdir, the run that was "
            "trained on them"
        )


def _training(mesh):
    """The set of training images."""
    from ldm_jax.config import to_dict
    from ldm_jax.evaluation import image_sets, subjects

    if _REFERENCE.value is not None:
        return image_sets.open_images(
            _REFERENCE.value,
            mesh,
            _BATCH_SIZE.value,
            image_size=_IMAGE_SIZE.value,
            skip_unreadable=_SKIP.value,
            flag="--reference",
        )
    section = to_dict(subjects.config_of(_WORKDIR.value, _STEP.value).data)
    section["on_error"] = "skip" if _SKIP.value else "raise"
    if _DATA_DIR.value is not None:
        section["data_dir"] = _DATA_DIR.value
    return image_sets.open_training_set(
        section, mesh, _BATCH_SIZE.value, image_size=_IMAGE_SIZE.value
    )


def _samples(mesh, plan, given):
    """The set of samples."""
    from ldm_jax.evaluation import image_sets, subjects
    from ldm_jax.evaluation.drawn import Drawing, draw_set
    from ldm_jax.sampling import options

    if _IMAGES.value is not None:
        return image_sets.open_images(
            _IMAGES.value,
            mesh,
            _BATCH_SIZE.value,
            image_size=_IMAGE_SIZE.value,
            count=_NUM_SAMPLES.value,
            skip_unreadable=_SKIP.value,
        )
    subjects.require_second_stage(_WORKDIR.value, _STEP.value)
    trained = load_second_stage()
    return draw_set(Drawing(trained, mesh), options.complete(trained, given), plan)[0]


def _write(found, grid, samples, training, network):
    """Writes the files and prints a summary."""
    from ldm_jax.evaluation.nearest import findings
    from ldm_jax.images import write_png

    outdir, size = as_path(_OUTDIR.value), len(found.numbers)
    record = findings.record_of_neighbours(found, samples.describe, training.describe)
    sets = {"samples_of": samples.record, "training": training.record}
    write_json(outdir / "neighbours.json", sets | {"network": network.record} | record)
    write_png(outdir / "neighbours.png", grid)
    of_what = f"random-features ({network.name})" if network.is_random else network.name
    print(
        f"{size} samples, {training.count:,} training images of {training.name}, by "
        f"distances of {of_what}"
    )
    first = record["samples"][record["shown"][0]]
    nearest = first["neighbours"][0]
    print(
        f"  nearest: {first['name']} to {nearest['name']}, distance "
        f"{nearest['distance']:.4f}"
    )
    print(
        f"  {record['fraction_nearer']:.1%} of the samples are nearer to a training "
        f"image than {1 - record['quantile']:.0%} of {record['controls']} training "
        f"images are to any other (closer than {record['threshold']:.4f}); of fresh "
        f"images about {record['quantile']:.0%} would be"
    )
    print(f"images: {outdir / 'neighbours.png'}")
    print(f"numbers: {outdir / 'neighbours.json'}")


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, lower="--batch_size")


if __name__ == "__main__":
    main()
