"""Measures how well a second stage obeys its conditions, on the data set `shapes`.

    python -m ldm_jax.evaluation.shapes --workdir=runs/text --outdir=runs/text/obeys

It draws pictures under the conditions of held-out scenes, and a small network, the
judge, says what they show: the class and colour of the main shape, the ground, and the
kind and colour of every pixel. The judge is trained once per first stage, in a minute
or two on two CPU cores, and kept beside the workdir. The table says how often it agrees
with the scenes, and what bounds that:

    real           the scenes themselves: what the judge can see at all
    reconstructed  the scenes through the first stage: what samples could reach
    samples        drawn under the conditions
    dropped        from the same noise, told nothing
    chance         the samples, with the scenes shuffled among them

What a model is not told it cannot obey: those rows are near chance. Around a hole that
is filled, what is known is kept in all of them, so that even "dropped" shows much of
the scene. Where pictures are restored (`low_res`, `masked_image`), PSNR, SSIM and L1 to
the scenes follow, beside those of bicubic enlargement, or of a hole filled with the
mean colour. It writes `metrics.json` and `pictures.png`: the scene, what was restored
without a model if anything, the sample, and the sample that was told nothing.
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
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data sets lie.")
_JUDGE = flags.DEFINE_string(
    "judge", None, "Folder of judges; `judge` beside the workdir by default."
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 256, "So many of the first held-out scenes.", lower_bound=2
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Samples at a time, over all devices.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of noise, and of inputs drawn at random.")
_SAMPLER = flags.DEFINE_string("sampler", None, "Sampler; the config's by default.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampling steps.")
_GUIDANCE_SCALE = flags.DEFINE_string(
    "guidance_scale", None, "A number, or one per condition: caption=5,depth=1.5."
)
flags.mark_flags_as_required(["workdir", "outdir"])


def main(argv):
    """Starts JAX and measures."""
    del argv
    cli.start_jax()
    from ldm_jax.evaluation.shapes.measure import measure
    from ldm_jax.evaluation.shapes.probe import load_judge
    from ldm_jax.images import write_png
    from ldm_jax.sampling.options import complete, parse_scale
    from ldm_jax.trained import load_model

    trained = load_model(_WORKDIR.value, _STEP.value, first_stage=_FIRST_STAGE.value)
    if _DATA_DIR.value:
        trained.config.data.data_dir = _DATA_DIR.value
    folder = _JUDGE.value or pathlib.Path(_WORKDIR.value).absolute().parent / "judge"
    judge = load_judge(
        folder,
        trained.model.first_stage,
        trained.frozen["first_stage"],
        trained.config.data.image_size,
    )
    options = {
        "sampler": _SAMPLER.value,
        "num_steps": _NUM_STEPS.value,
        "guidance_scale": parse_scale(_GUIDANCE_SCALE.value),
    }
    record, grid = measure(
        trained,
        judge,
        _NUM_SAMPLES.value,
        complete(trained, options),
        seed=_SEED.value,
        batch_size=_BATCH_SIZE.value,
    )
    outdir = pathlib.Path(_OUTDIR.value)
    outdir.mkdir(parents=True, exist_ok=True)
    record = {"checkpoint": trained.source, "weights": trained.weights} | record
    temporary = outdir / "metrics.tmp"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, outdir / "metrics.json")
    write_png(outdir / "pictures.png", grid)
    _print_record(record)
    print(f"numbers: {outdir / 'metrics.json'}")
    print(f"pictures: {outdir / 'pictures.png'}")


def _print_record(record):
    print(f"{record['checkpoint']}: {record['num_samples']} scenes of {record['data']}")
    for name in ("agreement", "restoration"):
        columns = record.get(name, {})
        if columns:
            rows = next(iter(columns.values()))
            print(f"  {'':<16}" + "".join(f"{column:>15}" for column in columns))
            for row in rows:
                numbers = "".join(f"{c[row]:>15.3f}" for c in columns.values())
                print(f"  {row:<16}{numbers}")


if __name__ == "__main__":
    app.run(cli.one_line_errors(main), flags_parser=cli.parse_flags)
