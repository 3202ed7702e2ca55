"""Draws images from a trained latent diffusion model.

    python sample.py --workdir=runs/class --outdir=samples --labels=star,heart
    python sample.py --workdir=runs/text --outdir=samples --prompt="a red star"
    python sample.py --workdir=runs/any --outdir=samples --image=in.png --strength=0.6
    python sample.py --workdir=runs/any --outdir=samples --image=in.png --mask=hole.png

Writes one PNG per sample, a grid, a sheet that shows what was told beside what came of
it, and with --npz the array that evaluators of the field take.  Flags of files take
folders as well, and several of either; sample k takes the k-th in turn.  Sample k
depends on the seed and k alone.  A run that was cut goes on where it stopped: the same
command draws only what is missing.
"""

from absl import app, flags

from ldm_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trained second stage.")
_OUTDIR = flags.DEFINE_string("outdir", None, "Where the pictures go.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples",
    None,
    "How many; 16, or one for each of what is given if that is more, if unset.",
    lower_bound=1,
)

# What tells the conditions. Which of them a model takes depends on the model.
_GIVEN = {
    holder.name: holder
    for holder in (
        flags.DEFINE_list(
            "labels", None, "Classes by name or number; all of them by default."
        ),
        flags.DEFINE_multi_string("prompt", None, "A caption; may be repeated."),
        flags.DEFINE_list("prompts_file", None, "Text files, one caption per line."),
        flags.DEFINE_multi_string(
            "negative_prompt", None, "What guidance pushes away from; may be repeated."
        ),
        flags.DEFINE_list(
            "layout",
            None,
            'JSON files of boxes: [{"label": 3, "box": [ymin, xmin, ymax, xmax]}, ...] '
            "in [0, 1], a label as number or name; or lists of such lists.",
        ),
        flags.DEFINE_list(
            "segmentation", None, "Maps of one channel, the class of each pixel."
        ),
        flags.DEFINE_list("depth", None, "Maps of one channel, of any depth of bits."),
        flags.DEFINE_list("low_res", None, "Small pictures to enlarge."),
        flags.DEFINE_list("style", None, "Pictures that say what it looks like."),
        flags.DEFINE_list(
            "image",
            None,
            "Pictures to start from (--strength, --invert), to fill (--mask), or to be "
            "told, where the model takes one.",
        ),
        flags.DEFINE_list("mask", None, "White where --image is to be filled."),
        flags.DEFINE_list(
            "guide_image", None, "Pictures that samples shall resemble from afar."
        ),
        flags.DEFINE_list(
            "features", None, "NumPy files [samples, ...] of what else the model takes."
        ),
    )
}
_FROM_DATA = flags.DEFINE_bool(
    "from_data",
    False,
    "Take what no flag gives from the held-out data of the run, for sample k from "
    "example k, and keep its picture in reference/.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where prepared data sets lie, for --from_data."
)

_STRENGTH = flags.DEFINE_float(
    "strength", None, "Image to image: share of the steps, 0 gives --image back."
)
_INVERT = flags.DEFINE_bool(
    "invert", False, "Start from the noise that DDIM finds for --image."
)
_INTERPOLATE = flags.DEFINE_string(
    "interpolate",
    None,
    "A,B: all told what sample A is, from its noise to that of sample B.",
)
_HEIGHT = flags.DEFINE_integer("height", None, "In pixels; as in training if unset.")
_WIDTH = flags.DEFINE_integer("width", None, "In pixels; as in training if unset.")
_TILE = flags.DEFINE_integer(
    "tile",
    None,
    "For sizes beyond training: side of the overlapping tiles, in pixels, in which the "
    "U-Net works; best the size of training.",
)
_DECODE_TILE = flags.DEFINE_integer(
    "decode_tile", None, "The same for the first stage, to save memory."
)

_GUIDANCE_SCALE = flags.DEFINE_string(
    "guidance_scale",
    None,
    "Classifier-free guidance, 1 is off; or one per condition, as caption=5,depth=1.5. "
    "The config's if unset.",
)
_GUIDANCE_INTERVAL = flags.DEFINE_string(
    "guidance_interval", None, "Least and most noise that is guided, as 0.2,0.8."
)
_GUIDANCE_RESCALE = flags.DEFINE_float(
    "guidance_rescale", None, "Share in [0, 1] of the correction of guided contrast."
)
_CLASSIFIER = flags.DEFINE_string(
    "classifier", None, "Workdir of a classifier that steers towards --labels."
)
_CLASSIFIER_SCALE = flags.DEFINE_float(
    "classifier_scale", None, "How strongly, 10 if unset."
)
_GUIDE_SCALE = flags.DEFINE_float(
    "guide_scale", None, "How strongly --guide_image steers, 40 if unset."
)
_GUIDE_LPIPS = flags.DEFINE_string(
    "guide_lpips",
    None,
    "File of LPIPS' weights: resemble by it, not by low resolution.",
)
_SAMPLER = flags.DEFINE_string(
    "sampler", None, "A row of SAMPLERS, as ddim, plms, dpmpp_2m, unipc."
)
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampling steps.")
_SPACING = flags.DEFINE_string(
    "spacing", None, "A row of SPACINGS, as uniform, trailing, karras."
)
_ETA = flags.DEFINE_float("eta", None, "DDIM's share of fresh noise, 0 to 1.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all samples.")

_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 16, "Samples at a time, over all devices.", lower_bound=1
)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; the newest by default.")
_EMA = flags.DEFINE_bool("ema", True, "Use the moving average of the weights.")
_NPZ = flags.DEFINE_bool(
    "npz", False, "Also write samples.npz (uint8 [N, H, W, 3], and the conditions)."
)
_FIRST_STAGE = flags.DEFINE_string(
    "first_stage", None, "Workdir of the first stage, if it has moved."
)
_DECODER = flags.DEFINE_string(
    "decoder", None, "Workdir of a decoder to use instead, fine-tuned on its latents."
)
flags.mark_flags_as_required(["workdir", "outdir"])


def _main(argv):
    """Starts JAX and draws."""
    del argv
    cli.start_jax()
    from ldm_jax import sampling
    from ldm_jax.sampling import options

    # Read before the model: what is misspelt shall not wait for it.
    scale = options.parse_scale(_GUIDANCE_SCALE.value)
    interval = options.parse_interval(_GUIDANCE_INTERVAL.value)
    ends = options.parse_pair(_INTERPOLATE.value)
    model = sampling.load_model(
        _WORKDIR.value,
        step=_STEP.value,
        average=_EMA.value,
        first_stage=_FIRST_STAGE.value,
        decoder=_DECODER.value,
        classifier=_CLASSIFIER.value,
        lpips=_GUIDE_LPIPS.value,
    )
    if _DATA_DIR.value:
        model.config.data.data_dir = _DATA_DIR.value
    sampling.run(
        model,
        _OUTDIR.value,
        {flag: holder.value for flag, holder in _GIVEN.items()},
        num_samples=_NUM_SAMPLES.value,
        size=(_HEIGHT.value, _WIDTH.value),
        from_data=_FROM_DATA.value,
        strength=_STRENGTH.value,
        invert=_INVERT.value,
        interpolate=ends,
        classifier_scale=_CLASSIFIER_SCALE.value,
        guide_scale=_GUIDE_SCALE.value,
        seed=_SEED.value,
        batch_size=_BATCH_SIZE.value,
        npz=_NPZ.value,
        sampler=_SAMPLER.value,
        num_steps=_NUM_STEPS.value,
        spacing=_SPACING.value,
        eta=_ETA.value,
        guidance_scale=scale,
        guidance_interval=interval,
        guidance_rescale=_GUIDANCE_RESCALE.value,
        tile=_TILE.value,
        decode_tile=_DECODE_TILE.value,
    )


def main():
    """The command."""
    app.run(cli.one_line_errors(_main), flags_parser=cli.parse_flags)


if __name__ == "__main__":
    main()
