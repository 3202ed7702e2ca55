r"""Measures a second stage over guidance scales, numbers of steps and samplers.

    ldm-sweep --workdir=runs/class --outdir=runs/sweep --num_samples=10000 \
        --guidance_scale=1,1.5,2,3 --num_steps=25,50 --sampler=ddim,unipc \
        --feature_weights=inception=pt_inception-2015-12-05-6726825d.pth

draws samples with all combinations, from the same noise and conditions, and compares
them with the training images of the run, or with --reference. It writes `sweep.md`, a
table that names the best row, `sweep.json`, and the plot `sweep.png`, where matplotlib
is installed. Finished rows are kept in the folder: run again, the same command resumes
where it was interrupted, and with more values measures only the new ones.
"""

from absl import flags

from ldm_jax import cli, ranges
from ldm_jax.evaluation.flag_groups import (
    check_used,
    comparison_of,
    define_comparison_flags,
    define_drawing_flags,
    define_measurement_flags,
    load_second_stage,
    plan_of,
)
from ldm_jax.files import check_outdir, write_bytes, write_json

with cli.group("what to evaluate"):
    _WORKDIR = cli.shared("workdir", required=True)
    _STEP = cli.shared("step")
    cli.shared("ema")
    cli.shared("first_stage")

# `combinations` checks the single numbers of a list.
_LISTED = ranges.several(ranges.text(empty=True))
with cli.group("what is tried", num_steps=_LISTED):
    _SCALES = flags.DEFINE_list(
        "guidance_scale",
        None,
        "Classifier-free guidance scales, e.g. 1,1.5,2,3; 1 is off. The config's if "
        "unset.",
    )
    _NUM_STEPS = flags.DEFINE_list(
        "num_steps", None, "Numbers of steps, e.g. 25,50; the config's if unset."
    )
    _SAMPLERS = flags.DEFINE_list(
        "sampler", None, "Rows of SAMPLERS, as ddim,unipc; the config's if unset."
    )

with cli.group("samples"):
    _NUM_SAMPLES = cli.shared("num_samples")
    _LABEL_MODE, _ETA = define_drawing_flags()
    _PROMPTS_FILE = flags.DEFINE_string(
        "prompts_file",
        None,
        "Captions to draw from, one per line, instead of the held-out examples'.",
    )
    _SPLIT = cli.shared("split")
    _SEED = cli.shared("seed")
    _BATCH_SIZE = cli.shared("batch_size")
    cli.shared("data_dir")

with cli.group("how to measure"):
    _DISTANCES, _REFERENCE, _TOKENIZER = define_comparison_flags()
    _IMAGE_SIZE = cli.shared("image_size")
    _, _SKIP, _ = define_measurement_flags()

with cli.group("output"):
    _OUTDIR = cli.shared("outdir", required=True)
    _TAKE_OUTDIR = cli.shared("take_outdir")


def _main(argv: list[str]) -> None:
    """Measures all rows."""
    del argv
    import jax

    from ldm_jax import sharding
    from ldm_jax.config import to_dict
    from ldm_jax.evaluation import subjects
    from ldm_jax.evaluation.drawn import Drawing
    from ldm_jax.evaluation.sweep.grid import combinations
    from ldm_jax.evaluation.sweep.rows import measure_rows
    from ldm_jax.lock import hold_outdir
    from ldm_jax.sampling import options

    # Before the model is loaded, so that a misspelt flag fails at once.
    check_outdir(_OUTDIR.value)
    how = comparison_of(_DISTANCES.value or ["fid"])
    check_used(how.metrics, how.weights)
    plan = _plan(how.metrics)
    lists = (holder.value or [] for holder in (_SAMPLERS, _NUM_STEPS, _SCALES))
    given = combinations(*lists, _ETA.value)
    subjects.require_second_stage(_WORKDIR.value, _STEP.value)
    trained = load_second_stage()
    settings = [options.complete(trained, each) for each in given]
    training = to_dict(trained.config.data)
    training["on_error"] = "skip" if _SKIP.value else "raise"
    drawing = Drawing(trained, sharding.make_mesh())
    with hold_outdir(how.outdir, _TAKE_OUTDIR.value):
        rows = measure_rows(drawing, settings, plan, how._replace(training=training))
        if not jax.process_index():
            count = next(iter(rows[0].results.values())).count
            title = f"{count:,} samples each of {trained.source} ({trained.weights})"
            _write(how.outdir, title, rows)


def _plan(metrics):
    """The `Plan` of the samples to draw."""
    from ldm_jax.metrics.set_metrics import SET_METRICS

    plan = plan_of(_NUM_SAMPLES.value, _LABEL_MODE.value)
    plan = plan._replace(prompts_file=_PROMPTS_FILE.value)
    if any(SET_METRICS[name].needs_captions for name in metrics):
        plan = plan._replace(tokenizer=_TOKENIZER.value)
    return plan


def _write(outdir, title, rows):
    """Writes and prints the table, the file and the plot."""
    from ldm_jax.evaluation.sweep import plot, tables

    write_json(outdir / "sweep.json", tables.record_of_rows(rows))
    text = tables.markdown_of(title, rows)
    write_bytes(outdir / "sweep.md", text.encode())
    print(text, end="")
    print(f"table: {outdir / 'sweep.md'}")
    if plot.write_plot(outdir / "sweep.png", title, rows):
        print(f"plot: {outdir / 'sweep.png'}")
    else:
        print(plot.LEFT_OUT)


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, lower="--batch_size")


if __name__ == "__main__":
    main()
