"""Draws images from a trained latent diffusion model.

    python sample.py --workdir=runs/class --outdir=samples --labels=star,heart

Writes one PNG per sample, a grid, and with --npz the array that evaluators of the field
take.  Sample k depends on the seed and k alone.  A run that was cut goes on where it
stopped: the same command draws only what is missing.
"""

from absl import app, flags

from ldm_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trained second stage.")
_OUTDIR = flags.DEFINE_string("outdir", None, "Where the pictures go.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 16, "How many.", lower_bound=1)
_LABELS = flags.DEFINE_list(
    "labels",
    None,
    "Classes by name or number, repeated in turn; all classes by default.",
)
_GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "Classifier-free guidance; 1 is off. The config's if unset."
)
_SAMPLER = flags.DEFINE_string("sampler", None, "ddpm, ddim or plms.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampling steps.")
_ETA = flags.DEFINE_float("eta", None, "DDIM's share of fresh noise, 0 to 1.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all samples.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 16, "Samples at a time, over all devices.", lower_bound=1
)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; the newest by default.")
_EMA = flags.DEFINE_bool("ema", True, "Use the moving average of the weights.")
_NPZ = flags.DEFINE_bool("npz", False, "Also write samples.npz (uint8 [N, H, W, 3]).")
_FIRST_STAGE = flags.DEFINE_string(
    "first_stage", None, "Workdir of the first stage, if it has moved."
)
_DECODER = flags.DEFINE_string(
    "decoder", None, "Workdir of a decoder to use instead, fine-tuned on its latents."
)
flags.mark_flags_as_required(["workdir", "outdir"])


def main(argv):
    """Starts JAX and draws."""
    del argv
    cli.start_jax()
    from ldm_jax import sampling

    model = sampling.load_model(
        _WORKDIR.value,
        step=_STEP.value,
        average=_EMA.value,
        first_stage=_FIRST_STAGE.value,
        decoder=_DECODER.value,
    )
    sampling.run(
        model,
        _OUTDIR.value,
        num_samples=_NUM_SAMPLES.value,
        labels=_LABELS.value,
        seed=_SEED.value,
        batch_size=_BATCH_SIZE.value,
        npz=_NPZ.value,
        sampler=_SAMPLER.value,
        num_steps=_NUM_STEPS.value,
        guidance_scale=_GUIDANCE_SCALE.value,
        eta=_ETA.value,
    )


if __name__ == "__main__":
    app.run(cli.one_line_errors(main), flags_parser=cli.parse_flags)
