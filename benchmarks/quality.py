r"""Does a change make learning worse? Both stages on `shapes`, with several seeds.

    python -m benchmarks.quality --workdir=runs/quality

trains `configs/shapes_autoencoder.py` and `configs/shapes_class.py` for a fixed number
of steps with each seed, and prints the results: reconstruction on held-out images, the
loss on held-out images, condition adherence by a probe classifier, and random-features
distances of samples to held-out images; each as its mean over the seeds with the
standard deviation between them. About twenty minutes on two CPU cores.

    python -m benchmarks.quality --workdir=runs/changed --against=runs/quality

also prints how far the means are from those of another workdir, in standard errors of
the difference: more than about 3 is not chance. Finished seeds are kept in the workdir,
and a second call resumes an interrupted one.
"""

import argparse
import json
import pathlib
import time

import numpy as np

from configs import shapes_autoencoder, shapes_class
from ldm_jax import sharding
from ldm_jax.batches import Images
from ldm_jax.data.shapes.prepare import prepare
from ldm_jax.eval_samples import condition_batches, make_draw
from ldm_jax.evaluation.first_stage import evaluate
from ldm_jax.evaluation.shapes.probe import load_probe
from ldm_jax.files import write_json
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.models.autoencoder import IdentityAutoencoder
from ldm_jax.sampling.options import complete
from ldm_jax.trained import load_first_stage, load_model
from ldm_jax.training import loop

# Row -> its title, and whether higher is better.
ROWS = {
    "psnr": ("reconstruction: PSNR in dB", True),
    "ssim": ("reconstruction: SSIM", True),
    "l1": ("reconstruction: L1", False),
    "reconstruction_distance": ("reconstruction: random-features distance", False),
    "loss": ("denoiser: loss on held-out images", False),
    "adherence": ("samples: class seen, unguided", True),
    "adherence_guided": ("samples: class seen, guided", True),
    "distance": ("samples: random-features distance, unguided", False),
    "distance_guided": ("samples: random-features distance, guided", False),
}


SEEDS = (0, 1, 2)
# A third of the demo's steps: enough to notice that training got worse.
FIRST_STEPS, SECOND_STEPS = 400, 700
SAMPLES, BATCH = 512, 64


def make_config(module, seed, steps, data_dir):
    """The demo's config, trained for fewer steps, evaluated once, without previews."""
    config = module.get_config()
    config.seed = seed
    config.data.data_dir = data_dir
    every = dict.fromkeys(("eval_every", "checkpoint_every"), steps)
    config.train.update(num_steps=steps, preview_every=0, log_every=100, **every)
    return config


def train(workdir, data_dir, seed):
    """Trains both stages of a seed, unless they are trained; returns their workdirs."""
    first, second = workdir / "autoencoder", workdir / "class"
    config = make_config(shapes_autoencoder, seed, FIRST_STEPS, data_dir)
    config.loss.disc_start = FIRST_STEPS * 4 // 5
    loop.run(config, first)
    config = make_config(shapes_class, seed, SECOND_STEPS, data_dir)
    config.first_stage.workdir = str(first)
    loop.run(config, second)
    return first, second


def measure_first_stage(first, mesh):
    """Measures the reconstructions of the held-out images."""
    first = load_first_stage(first)
    images = Images(first.config.data, mesh, BATCH)
    measurement = Measurement(["frechet"], mesh)
    found, _ = evaluate(first, images.batches(), mesh, measurement=measurement)
    distance = found["random-features distance (frechet)"].value
    means = {name: found[name].value for name in ("psnr", "ssim", "l1")}
    return means | {"reconstruction_distance": distance}


def add_real(trained, mesh, measurement):
    """Adds the held-out images to a measurement."""
    for batch in Images(trained.config.data, mesh, BATCH).batches():
        measurement.add(batch["image"], batch["mask"])
    return measurement


def measure_samples(trained, guidance_scale, mesh, probe):
    """Draws samples of all classes; returns (accuracy of the probe, distance)."""
    measurement = Measurement(["frechet"], mesh)
    real = add_real(trained, mesh, measurement.twin())
    measurement.compare_with(real.as_reference())
    options = complete(trained, {"guidance_scale": guidance_scale})
    draw = make_draw(trained.model, options, mesh, seed=0)
    weights, right = (trained.params, trained.frozen), []
    for conditions in condition_batches(
        trained.model, mesh, SAMPLES, BATCH, label_mode="balanced"
    ):
        images, finite = draw(*weights, conditions.inputs, conditions.index)
        if not np.all(finite):
            raise SystemExit("samples are not finite")
        measurement.add(images, conditions.mask)
        labels = np.asarray(conditions.inputs["label"])
        right.append(probe(np.asarray(images))["label"] == labels)
    (result,) = measurement.results().values()
    return float(np.mean(right)), result.value


def measure_second_stage(second, mesh, probe):
    """Loss, and metrics of samples without guidance and with the config's."""
    lines = (second / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("eval/loss_simple") for line in lines]
    found = {"loss": [loss for loss in losses if loss is not None][-1]}
    trained = load_model(second)
    scales = {"": 1.0, "_guided": trained.config.sample.guidance_scale}
    for name, scale in scales.items():
        measured = measure_samples(trained, scale, mesh, probe)
        found[f"adherence{name}"], found[f"distance{name}"] = measured
    return found


def run(workdir, seed, data_dir):
    """Trains and measures a seed, unless that is done already; returns its numbers."""
    path = workdir / f"seed_{seed}.json"
    if not path.exists():
        first, second = train(workdir / f"seed_{seed}", data_dir, seed)
        mesh = sharding.make_mesh()
        # Trained on the scenes themselves, so that one probe serves all first stages.
        size = shapes_class.get_config().data.image_size
        probe = load_probe(workdir / "probe", IdentityAutoencoder(), {}, size)
        found = measure_first_stage(first, mesh)
        write_json(path, found | measure_second_stage(second, mesh, probe))
    return json.loads(path.read_text())


def table(found, others=None):
    """Yields lines of the table, from the numbers of each seed here and elsewhere."""
    columns = ["", "mean", "deviation"] + (["against", "errors"] if others else [])
    yield f"| {' | '.join(columns)} |"
    yield "| --- " * len(columns) + "|"
    for name, (title, more) in ROWS.items():
        values = np.array([row[name] for row in found])
        cells = [title, f"{values.mean():.4f}", f"{values.std(ddof=1):.4f}"]
        if others:
            theirs = np.array([row[name] for row in others])
            error = np.sqrt(
                values.var(ddof=1) / len(values) + theirs.var(ddof=1) / len(theirs)
            )
            worse = (theirs.mean() - values.mean()) * (1 if more else -1) / error
            verdict = "worse" if worse > 0 else "better"
            cells += [f"{theirs.mean():.4f}", f"{abs(worse):.1f} {verdict}"]
        yield f"| {' | '.join(cells)} |"


def read(workdir):
    """The numbers of all seeds in a workdir."""
    paths = sorted(pathlib.Path(workdir).glob("seed_*.json"))
    return [json.loads(path.read_text()) for path in paths]


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, help="folder of the runs")
    parser.add_argument("--against", help="folder of other runs to compare with")
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    others = read(args.against) if args.against else None
    if len(seeds) < 2 or (others is not None and len(others) < 2):
        parser.error("a spread needs two seeds or more, here and in --against")
    workdir, start = pathlib.Path(args.workdir), time.perf_counter()
    data_dir = str(workdir / "data")
    prepare(data_dir, image_size=32, max_shapes=1, num_train=20_000, num_validation=512)
    found = []
    for seed in seeds:
        found.append(run(workdir, seed, data_dir))
        print(f"seed {seed}: {json.dumps(found[-1])}", flush=True)
    print(f"\n{len(seeds)} seeds in {time.perf_counter() - start:.0f} s\n")
    print("\n".join(table(found, others)))


if __name__ == "__main__":
    main()
