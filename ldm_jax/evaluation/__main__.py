r"""Measures a trained model, or images, by the metrics of the field.

    ldm-evaluate --workdir=runs/class --outdir=runs/eval --num_samples=50000 \
        --feature_weights=inception=pt_inception-2015-12-05-6726825d.pth
    ldm-evaluate --images=samples --reference=photos --outdir=runs/eval
    ldm-evaluate --images=samples.npz --reference=reference.npz --protocol=adm \
        --outdir=runs/eval
    ldm-evaluate --workdir=runs/autoencoder --outdir=runs/eval
    ldm-evaluate --workdir=runs/autoencoder --outdir=runs/eval --image=large.jpg

The first draws samples of a second stage on all devices and compares them with its
training images, or with --reference; the next two compare existing images, a folder or
an npz. All write `metrics.json` and `metrics.md`; run again, the same command resumes
an interrupted evaluation and gives the same numbers to the last digit.

For a first stage PSNR, SSIM, L1, with --lpips_weights LPIPS, the metrics of its kind,
and --distances are measured between the run's held-out images, or those of --data, and
their reconstructions, which `reconstructions.png` shows. With --image it writes the
reconstructions of image files of any size.
"""

from absl import flags

from ldm_jax import cli
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.flag_groups import (
    check_used,
    comparison_of,
    define_comparison_flags,
    define_drawing_flags,
    define_measurement_flags,
    load_second_stage,
    plan_of,
    refuse,
    sampling_of,
)
from ldm_jax.files import check_outdir

with cli.group("what to evaluate"):
    _WORKDIR = cli.shared("workdir")
    _STEP = cli.shared("step")
    _EMA = cli.shared("ema")
    cli.shared("first_stage")
    _IMAGES = flags.DEFINE_string(
        "images", None, "Folder of images, with subfolders, or npz with arr_0."
    )

with cli.group("how to measure"):
    _PROTOCOL = flags.DEFINE_string(
        "protocol",
        None,
        "Row of PROTOCOLS, e.g. paper, adm, coco30k, layout2048: sets the number of "
        "samples, the metrics and the label mode if no flag does.",
    )
    _DISTANCES, _REFERENCE, _TOKENIZER = define_comparison_flags()
    _PUBLISHED = flags.DEFINE_string(
        "published",
        None,
        "Compare with a config's published numbers, e.g. imagenet_class:f4.",
    )
    _, _SKIP, _ = define_measurement_flags()
    _PROMPTS_FILE = flags.DEFINE_string(
        "prompts_file",
        None,
        "Captions, one per line: those of --images in order, for clip_score, or the "
        "conditions of samples, instead of the held-out examples' captions.",
    )
    _LPIPS_WEIGHTS = cli.shared("lpips_weights")

with cli.group("samples"):
    _NUM_SAMPLES = flags.DEFINE_integer(
        "num_samples",
        None,
        "Number of samples; the protocol's if unset, or one per caption or held-out "
        "example if these give the conditions.",
    )
    _LABEL_MODE, _ = define_drawing_flags()
    cli.shared("sampler")
    cli.shared("num_steps")
    cli.shared("guidance_scale")
    _SEED = cli.shared("seed")

with cli.group("data"):
    _DATA = flags.DEFINE_string(
        "data",
        None,
        "Folder of images or name of a TensorFlow data set; the run's if unset.",
    )
    _DATA_DIR = cli.shared("data_dir")
    _MAX_IMAGE_GB = cli.shared("max_image_gb")
    _SPLIT = cli.shared("split")
    _IMAGE_SIZE = cli.shared("image_size")
    _NUM_IMAGES = cli.shared("num_images")
    _BATCH_SIZE = cli.shared("batch_size")

with cli.group("images of any size"):
    _IMAGE = flags.DEFINE_list("image", None, "Image files to reconstruct.")
    _TILE = flags.DEFINE_integer("tile", 512, "Side of a tile in pixels.")
    _OVERLAP = flags.DEFINE_integer(
        "overlap", 128, "Pixels by which neighbouring tiles overlap."
    )

with cli.group("output"):
    _OUTDIR = cli.shared("outdir", required=True)
    _TAKE_OUTDIR = cli.shared("take_outdir")
    _NPZ = flags.DEFINE_bool(
        "npz",
        False,
        "Also write samples.npz (arr_0 [N, H, W, C], and the conditions).",
    )

cli.renamed("raw", "ema", use="--noema", translate=lambda raw: not raw)


def _main(argv: list[str]) -> None:
    """Evaluates."""
    del argv
    from ldm_jax.evaluation import subjects

    # Before the model is loaded, so that a misspelt flag fails at once.
    check_outdir(_OUTDIR.value)
    how, plan, sampling = _comparison(), _plan(), sampling_of()
    check_used(how.metrics or ["fid"], how.weights)
    if _OVERLAP.value > _TILE.value // 2:
        raise ConfigError(
            f"--overlap={_OVERLAP.value} is more than half of --tile={_TILE.value}"
        )
    if (_WORKDIR.value is None) == (_IMAGES.value is None):
        raise ConfigError(
            "give --workdir, whose model is evaluated, or --images, which are measured "
            "as they are; one of them"
        )
    if _IMAGES.value is not None:
        others = ("step", "ema", "first_stage", "data", "data_dir", "split", "image")
        words = "--images are measured as they are"
        refuse((*_SAMPLE_FLAGS, *others, "npz", "lpips_weights"), words)
        _of_images(how._replace(metrics=how.metrics or ["fid"]))
        return
    stage = "autoencoder"
    if _WORKDIR.value != "identity":
        stage = subjects.config_of(_WORKDIR.value, _STEP.value).stage
    if stage == "diffusion":
        words = f"--workdir={_WORKDIR.value} is a second stage"
        refuse(("image", "data", "num_images", "lpips_weights"), words)
        how = how._replace(metrics=how.metrics or ["fid"])
        _of_samples(how, plan, sampling)
    else:
        words = f"--workdir={_WORKDIR.value} is no second stage, samples are not drawn"
        others = ("npz", "reference", "protocol", "prompts_file", "save_every")
        refuse((*_SAMPLE_FLAGS, *others), words)
        _of_first_stage(how)


_SAMPLE_FLAGS = (
    *("num_samples", "label_mode", "sampler", "num_steps", "guidance_scale", "eta"),
    "seed",
)


def _comparison():
    """The `Comparison` that the flags give, checked before anything is read."""
    from ldm_jax.config import choose
    from ldm_jax.evaluation.published_numbers import PUBLISHED
    from ldm_jax.metrics.protocols import PROTOCOLS

    metrics = _DISTANCES.value or []
    if _PROTOCOL.value is not None:
        protocol = choose(PROTOCOLS, _PROTOCOL.value, "--protocol")
        metrics = metrics or list(protocol.metrics)
    if _PUBLISHED.value is not None:
        choose(PUBLISHED, _PUBLISHED.value, "--published")
    return comparison_of(metrics)._replace(
        protocol=_PROTOCOL.value, published=_PUBLISHED.value, npz=_NPZ.value
    )


def _of_images(how):
    """Measures existing images, those of --images."""
    from ldm_jax import sharding
    from ldm_jax.evaluation.compare import compare
    from ldm_jax.evaluation.image_sets import open_images
    from ldm_jax.metrics.set_metrics import SET_METRICS

    if not any(SET_METRICS[name].needs_captions for name in how.metrics):
        words = ",".join(how.metrics)
        refuse(("prompts_file",), f"no metric of --distances={words} is of captions")
    mesh = sharding.make_mesh()
    images = open_images(
        _IMAGES.value,
        mesh,
        _BATCH_SIZE.value,
        image_size=_IMAGE_SIZE.value,
        count=_NUM_IMAGES.value,
        skip_unreadable=_SKIP.value,
    )
    if _PROMPTS_FILE.value is not None:
        _add_captions(images, mesh)
    with _held():
        compare(images, how, mesh)


def _add_captions(images, mesh):
    """Adds the captions of --prompts_file to a set of images."""
    from ldm_jax.evaluation.captions import Prompts, add_captions

    prompts = Prompts(_PROMPTS_FILE.value)
    if len(prompts) != images.count:
        raise ConfigError(
            f"--prompts_file={_PROMPTS_FILE.value} has {len(prompts)} captions and "
            f"there are {images.count} images: give a line for each, in their order"
        )
    add_captions(images, prompts, _TOKENIZER.value, mesh)


def _of_samples(how, plan, sampling):
    """Draws samples of a second stage and measures them."""
    from ldm_jax import sharding
    from ldm_jax.config import to_dict
    from ldm_jax.evaluation.compare import compare
    from ldm_jax.evaluation.drawn import Drawing, draw_set
    from ldm_jax.metrics.set_metrics import SET_METRICS
    from ldm_jax.sampling import options

    trained = load_second_stage()
    mesh = sharding.make_mesh()
    sample_options = options.complete(trained, sampling)
    if any(SET_METRICS[name].needs_captions for name in how.metrics):
        plan = plan._replace(tokenizer=_TOKENIZER.value)
    images, labels = draw_set(Drawing(trained, mesh), sample_options, plan)
    training = to_dict(trained.config.data)
    training["on_error"] = "skip" if _SKIP.value else "raise"
    with _held():
        compare(images, how._replace(training=training), mesh, labels)


def _held():
    """Keeps other commands out of the folder of the results."""
    from ldm_jax.lock import hold_outdir

    return hold_outdir(_OUTDIR.value, _TAKE_OUTDIR.value)


def _plan():
    """The `Plan` of the samples to draw."""
    from ldm_jax.metrics.protocols import PROTOCOLS

    count, mode = _NUM_SAMPLES.value, _LABEL_MODE.value
    if _PROTOCOL.value is not None:
        protocol = PROTOCOLS[_PROTOCOL.value]
        count = protocol.num_samples if count is None else count
        mode = mode or protocol.label_mode
    return plan_of(count, mode)._replace(prompts_file=_PROMPTS_FILE.value)


def _of_first_stage(how):
    """Measures a first stage, or reconstructs the files of --image."""
    from ldm_jax.evaluation import first_stage_command
    from ldm_jax.trained import check_same_everywhere, load_first_stage

    check_used(how.metrics, how.weights)
    first = load_first_stage(
        _WORKDIR.value, _STEP.value, average=_EMA.value, key="--workdir"
    )
    check_same_everywhere(first)
    if first.config is None:
        raise ConfigError("--workdir=identity: it gives images back as they are")
    if _SKIP.present:
        first.config.data.on_error = "skip" if _SKIP.value else "raise"
    if _MAX_IMAGE_GB.value is not None:
        first.config.data.max_image_gb = _MAX_IMAGE_GB.value
    if _IMAGE.value:
        tiles = _TILE.value, _OVERLAP.value
        with _held():
            first_stage_command.reconstruct(first, how.outdir, _IMAGE.value, *tiles)
        return
    images = {
        "name": _DATA.value,
        "data_dir": _DATA_DIR.value,
        "split": _SPLIT.value,
        "image_size": _IMAGE_SIZE.value,
        "num_images": _NUM_IMAGES.value,
    }
    on_images = first_stage_command.OnImages(
        images,
        _BATCH_SIZE.value,
        _LPIPS_WEIGHTS.value,
        how.metrics,
        how.weights,
        how.published,
    )
    with _held():
        first_stage_command.measure_first_stage(first, how.outdir, on_images)


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, lower="--batch_size, --image_size or --tile")


if __name__ == "__main__":
    main()
