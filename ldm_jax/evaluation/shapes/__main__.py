"""Measures how well samples adhere to their conditions, on the data set `shapes`.

    python -m ldm_jax.evaluation.shapes --workdir=runs/text --outdir=runs/text/adherence

It draws images conditioned on held-out scenes, and a small network, the probe
classifier, predicts what they show: the class and colour of the main shape, the ground,
and the kind and colour of every pixel. The probe is trained once per first stage, in a
minute or two on two CPU cores, and kept beside the workdir. The table gives its
accuracy with the scenes as labels, and its bounds:

    real           the scenes themselves: the accuracy of the probe
    reconstructed  the scenes through the first stage: an upper bound of samples
    samples        drawn under the conditions
    unconditional  drawn from the same noise without the conditions
    chance         the samples, with the scenes shuffled among them

Samples are near chance in what the model is not conditioned on. In inpainting the known
part is kept in all columns, so that even "unconditional" shows much of the scene. For
models that restore images (`low_res`, `masked_image`) PSNR, SSIM and L1 to the scenes
follow, beside those of bicubic enlargement, or of a masked part filled with the mean
colour. It writes `metrics.json` and `images.png`: the scene, the baseline of the
restoration if there is one, the sample, and the unconditional sample.
"""

from typing import Any

from absl import flags

from ldm_jax import cli, ranges
from ldm_jax.files import check_outdir, write_json
from ldm_jax.store import Place, as_path

with cli.group("what to evaluate"):
    _WORKDIR = cli.shared("workdir", required=True)
    _STEP = cli.shared("step")
    _EMA = cli.shared("ema")
    _FIRST_STAGE = cli.shared("first_stage")
    _PROBE = flags.DEFINE_string(
        "probe",
        None,
        "Folder of probe classifiers; `probe` beside the workdir if unset.",
    )

with cli.group("data", num_samples=ranges.whole(2, 10**7)):
    _DATA_DIR = cli.shared("data_dir")
    _NUM_SAMPLES = flags.DEFINE_integer(
        "num_samples",
        256,
        "Number of samples, conditioned on the first held-out scenes.",
    )

with cli.group("sampler"):
    _SAMPLER = cli.shared("sampler")
    _NUM_STEPS = cli.shared("num_steps")
    _GUIDANCE_SCALE = cli.shared("guidance_scale")
    _SEED = cli.shared("seed")

with cli.group("output"):
    _OUTDIR = cli.shared("outdir", required=True)
    _BATCH_SIZE = cli.shared("batch_size", default=64)

cli.renamed("judge", "probe")


def _main(argv: list[str]) -> None:
    """Measures."""
    del argv
    from ldm_jax.evaluation.shapes.measure import measure
    from ldm_jax.evaluation.shapes.probe import load_probe
    from ldm_jax.images import write_png
    from ldm_jax.sampling.options import check_given, complete, parse_scale
    from ldm_jax.trained import load_model

    # Before the model is loaded, so that a misspelt flag fails at once.
    check_outdir(_OUTDIR.value)
    options = {
        "sampler": _SAMPLER.value,
        "num_steps": _NUM_STEPS.value,
        "guidance_scale": parse_scale(_GUIDANCE_SCALE.value),
    }
    check_given(options)
    trained = load_model(
        _WORKDIR.value,
        _STEP.value,
        average=_EMA.value,
        first_stage=_FIRST_STAGE.value,
        data_dir=_DATA_DIR.value,
    )
    probe = load_probe(
        _PROBE.value or _probe_folder(),
        trained.model.first_stage,
        trained.frozen["first_stage"],
        trained.config.data.image_size,
    )
    record, grid = measure(
        trained,
        probe,
        _NUM_SAMPLES.value,
        complete(trained, options),
        seed=_SEED.value,
        batch_size=_BATCH_SIZE.value,
    )
    outdir = as_path(_OUTDIR.value)
    record = {"checkpoint": trained.source, "weights": trained.weights} | record
    write_json(outdir / "metrics.json", record)
    write_png(outdir / "images.png", grid)
    _print_record(record)
    print(f"numbers: {outdir / 'metrics.json'}")
    print(f"images: {outdir / 'images.png'}")


def _probe_folder() -> Place:
    """Where probes are kept; in 0.1.0 the folder had another name."""
    beside = as_path(_WORKDIR.value).absolute().parent
    old = beside / "judge"
    return old if old.is_dir() else beside / "probe"


def _print_record(record: dict[str, Any]) -> None:
    print(f"{record['checkpoint']}: {record['num_samples']} scenes of {record['data']}")
    for name in ("adherence", "restoration"):
        columns = record.get(name, {})
        if columns:
            rows = next(iter(columns.values()))
            print(f"  {'':<16}" + "".join(f"{column:>15}" for column in columns))
            for row in rows:
                numbers = "".join(f"{c[row]:>15.3f}" for c in columns.values())
                print(f"  {row:<16}{numbers}")


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, lower="--batch_size")


if __name__ == "__main__":
    main()
