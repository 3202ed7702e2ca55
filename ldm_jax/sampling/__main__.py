"""Draws images from a trained latent diffusion model.

    python sample.py --workdir=runs/class --outdir=samples --labels=star,heart
    python sample.py --workdir=runs/text --outdir=samples --prompt="a red star"
    python sample.py --workdir=runs/any --outdir=samples --image=in.png --strength=0.6
    python sample.py --workdir=runs/any --outdir=samples --image=in.png --mask=mask.png

Writes one PNG per sample into samples/ of the outdir, or shards of many (--output);
beside it a grid, a contact sheet of conditions and samples, and with --npz the array
that common evaluators read.  Flags of files also accept folders, and several of either;
sample k uses the k-th in turn.  Sample k depends only on the seed and k.  To resume an
interrupted run, give the same command again: it draws only the missing samples.
"""

import dataclasses

from absl import flags

from ldm_jax import cli
from ldm_jax.sampling.flag_values import OTHER_FLAGS, define_flag, define_flags

with cli.group("what to draw"):
    _WORKDIR = cli.shared("workdir", required=True)
    _STEP = cli.shared("step")
    _EMA = cli.shared("ema")
    _FIRST_STAGE = cli.shared("first_stage")
    _DECODER = flags.DEFINE_string(
        "decoder",
        None,
        "Workdir of a decoder to use instead, fine-tuned on the latents of the first "
        "stage.",
    )
    flags.DEFINE_integer(
        "num_samples",
        None,
        "Number of samples; if unset 16, or as many as there are conditions if that is "
        "more.",
    )
    flags.DEFINE_float(
        "strength",
        None,
        "Image to image: fraction of the steps to run on --image; 0 returns it.",
    )
    flags.DEFINE_bool(
        "invert", False, "Start from the noise to which DDIM inverts --image."
    )
    _INTERPOLATE = flags.DEFINE_string(
        "interpolate",
        None,
        "A,B: from the noise of sample A to that of B, with the conditions of A.",
    )
    _HEIGHT = flags.DEFINE_integer(
        "height", None, "In pixels; as in training if unset."
    )
    _WIDTH = flags.DEFINE_integer("width", None, "In pixels; as in training if unset.")
    flags.DEFINE_integer(
        "tile",
        None,
        "For sizes beyond training: side in pixels of the overlapping tiles of the "
        "denoiser; best the size of training.",
    )
    flags.DEFINE_integer(
        "decode_tile", None, "The same for the first stage, to save memory."
    )

# A model uses only some of these conditions.
with cli.group("conditions"):
    _GIVEN = define_flags()
    flags.DEFINE_bool(
        "from_data",
        False,
        "Take conditions without a flag from the held-out data of the run, for sample "
        "k from example k, and write its image to reference/.",
    )
    _DATA_DIR = cli.shared("data_dir")
    _MAX_IMAGE_GB = cli.shared("max_image_gb")

with cli.group("guidance"):
    _GUIDANCE_SCALE = cli.shared("guidance_scale")
    _GUIDANCE_INTERVAL = flags.DEFINE_string(
        "guidance_interval",
        None,
        "Range of noise levels with guidance, e.g. 0.2,0.8.",
    )
    flags.DEFINE_float(
        "guidance_rescale",
        None,
        "Strength in [0, 1] of correcting the contrast that guidance adds.",
    )
    flags.DEFINE_bool(
        "show_unguided",
        False,
        "Also draw the contact sheet's samples without guidance and show both: what "
        "guidance costs in variety.",
    )
    _NEGATIVE = define_flag(OTHER_FLAGS["negative_prompt"])
    _CLASSIFIER = flags.DEFINE_string(
        "classifier",
        None,
        "Workdir of a classifier whose gradient guides towards --labels.",
    )
    flags.DEFINE_float(
        "classifier_scale", None, "Scale of the guidance by --classifier; 10 if unset."
    )
    _GUIDE_IMAGE = define_flag(OTHER_FLAGS["guide_image"])
    flags.DEFINE_float(
        "guide_scale", None, "Scale of the guidance by --guide_image; 40 if unset."
    )
    _LPIPS_WEIGHTS = cli.shared("lpips_weights")

with cli.group("sampler"):
    cli.shared("sampler")
    cli.shared("num_steps")
    flags.DEFINE_string(
        "spacing",
        None,
        "Row of SPACINGS, e.g. uniform, trailing, karras; the config's if unset.",
    )
    flags.DEFINE_string(
        "final_level",
        None,
        "Level after the last step: clean, or first, the least noisy of training; the "
        "config's if unset.",
    )
    flags.DEFINE_float(
        "shift",
        None,
        "Factor on the noise levels; more than 1 spends more steps at high noise, for "
        "sizes beyond training. The config's if unset.",
    )
    cli.shared("eta")
    flags.DEFINE_float(
        "temperature", None, "Factor on the noise of stochastic samplers; 1 if unset."
    )
    cli.shared("seed")

with cli.group("output"):
    _OUTDIR = cli.shared("outdir", required=True)
    cli.shared("take_outdir")
    cli.shared("batch_size")
    flags.DEFINE_enum(
        "output",
        "png",
        ["png", "npz", "tar"],
        "Format of the samples: a PNG file each, or shards of npz or tar.",
    )
    flags.DEFINE_integer("shard_size", 1024, "Samples per shard of npz or tar.")
    flags.DEFINE_bool(
        "npz", False, "Also write samples.npz (arr_0 [N, H, W, C], and the conditions)."
    )

_GIVEN |= {"negative_prompt": _NEGATIVE, "guide_image": _GUIDE_IMAGE}
cli.renamed("guide_lpips", "lpips_weights")

_MEMORY = "--batch_size, --height or --width, or give --tile and --decode_tile"


def _main(argv: list[str]) -> None:
    """Draws samples."""
    del argv
    from ldm_jax import sampling
    from ldm_jax.diffusion.sample_options import NAMES
    from ldm_jax.files import check_outdir
    from ldm_jax.sampling import options

    # Before the model is loaded, so that wrong flags fail at once.
    check_outdir(_OUTDIR.value)
    scale = options.parse_scale(_GUIDANCE_SCALE.value)
    interval = options.parse_interval(_GUIDANCE_INTERVAL.value)
    ends = options.parse_pair(_INTERPOLATE.value)
    # Fields of RunOptions are flags of the same name.
    values = flags.FLAGS.flag_values_dict()
    fields = {field.name for field in dataclasses.fields(options.RunOptions)}
    run_options = options.RunOptions(
        **{name: values[name] for name in fields} | {"interpolate": ends}
    )
    given = {name: values[name] for name in NAMES if name in values}
    given |= {"guidance_scale": scale, "guidance_interval": interval}
    options.check_given(given)
    model = sampling.load_model(
        _WORKDIR.value,
        step=_STEP.value,
        average=_EMA.value,
        first_stage=_FIRST_STAGE.value,
        decoder=_DECODER.value,
        classifier=_CLASSIFIER.value,
        lpips=_LPIPS_WEIGHTS.value,
        data_dir=_DATA_DIR.value,
    )
    if _MAX_IMAGE_GB.value is not None:
        model.config.data.max_image_gb = _MAX_IMAGE_GB.value
    size = _HEIGHT.value, _WIDTH.value
    sampling.run(
        model,
        _OUTDIR.value,
        {flag: holder.value for flag, holder in _GIVEN.items()},
        run_options,
        options.complete(model, given, size, run_options.invert),
    )


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, lower=_MEMORY)


if __name__ == "__main__":
    main()
