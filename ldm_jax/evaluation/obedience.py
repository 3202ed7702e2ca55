"""Measures how well a second stage obeys its conditions, on the data set `shapes`.

    python -m ldm_jax.evaluation.obedience --workdir=runs/text --outdir=runs/text/obeys

It draws pictures under the conditions of held-out scenes, and has a small network, the
judge, say what they show: the class and colour of the main shape, the ground, and the
kind and colour of every pixel. The judge is trained once per first stage and kept in
its workdir. The table sets how often it agrees with the scenes beside what bounds that:

    real            the scenes themselves: what the judge can see at all
    reconstructed   the scenes through the first stage: what samples could reach
    samples         under the conditions
    dropped         from the same noise, told nothing
    chance          the samples, with the scenes shuffled among them

What a model is not told it cannot obey: those rows are near chance. Where pictures are
restored (`low_res`, `masked_image`), PSNR, SSIM and L1 to the scenes follow, beside
bicubic enlargement or a hole filled with the mean colour. It writes `metrics.json` and
`pictures.png`: scenes, what was restored without a model, samples.
"""

import json
import os
import pathlib

from absl import app, flags

from ldm_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trained second stage.")
_OUTDIR = flags.DEFINE_string("outdir", None, "Where numbers and pictures go.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; the newest by default.")
_FIRST_STAGE = flags.DEFINE_string(
    "first_stage", None, "Workdir of the first stage, if it has moved."
)
_JUDGE = flags.DEFINE_string(
    "judge", None, "Folder that keeps the judge; the first stage's workdir by default."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data sets lie.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 256, "Held-out scenes to draw, one picture each.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Samples at a time, over all devices.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of samples, and of inputs drawn at random.")
_SAMPLER = flags.DEFINE_string("sampler", None, "The config's by default.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampling steps.")
_GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", None, "1 is off.")
flags.mark_flags_as_required(["workdir", "outdir"])


def main(argv):
    """Starts JAX and measures."""
    del argv
    cli.start_jax()
    from ldm_jax.evaluation.conditions import HeldOut, measure
    from ldm_jax.evaluation.judge import load_judge
    from ldm_jax.images import write_png
    from ldm_jax.sampling import load_model
    from ldm_jax.training.pretrained import load_first_stage

    trained = load_model(_WORKDIR.value, _STEP.value, first_stage=_FIRST_STAGE.value)
