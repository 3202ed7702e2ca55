"""Compares ways to condition: the same small model on `shapes` with each of them.

    make demo
    python -m benchmarks.conditioning --first_stage=runs/demo/autoencoder \
        --data_dir=runs/demo/data --workdir=runs/conditioning

trains `configs/shapes_class.py` with the changes of each row of WAYS, and prints a
table: the loss on held-out scenes, images per second in training, parameters, and
condition adherence: how often a probe classifier finds in a sample the class it is
conditioned on, without and with guidance. About a quarter of an hour on two CPU cores;
`--steps` and `--only` change that. A second run with the same --workdir resumes an
interrupted one.
"""

import argparse
import functools
import json
import pathlib
import statistics

import jax
import numpy as np

from configs import shapes_class
from ldm_jax import generate, sampling, sharding
from ldm_jax.evaluation.shapes.probe import load_probe
from ldm_jax.images import to_uint8
from ldm_jax.trained import load_first_stage
from ldm_jax.training import loop

# Changes of the config by each way, beside BASE.
WAYS = {
    "no condition": {"conditions.label.kind": "none"},
    "cross-attention": {
        "conditions.label.slot": "context",
        "conditions.label.features": 64,
    },
    "concatenation": {
        "conditions.label.slot": "concat",
        "conditions.label.features": 8,
    },
    "added to the timestep": {"conditions.label.slot": "vector"},
    "AdaGN": {"conditions.label.slot": "vector", "backbone.scale_shift_norm": True},
    "AdaLN-Zero": {"conditions.label.slot": "vector", "backbone.adaln_zero": True},
}
BASE = {
    # A quarter of the demo's work, so that six runs take a quarter of an hour.
    "backbone.channels": 32,
    "backbone.norm_groups": 8,
    "backbone.head_channels": 16,
    "sample.num_steps": 20,
    "backbone.transformer_depth": 1,
    "backbone.scale_shift_norm": False,
    "backbone.adaln_zero": False,
    "train.log_every": 50,
    "train.eval_batches": 4,
    "train.preview_images": 0,
}
COLUMNS = "| way | loss | images/s | parameters | adherence | with guidance |"


def make_config(way, steps, first_stage, data_dir):
    """Makes the config of a row of WAYS, for a number of steps."""
    config = shapes_class.get_config()
    changes = BASE | WAYS[way]
    changes |= {f"train.{name}_every": steps for name in ("eval", "checkpoint")}
    changes |= {"train.num_steps": steps, "train.preview_every": steps}
    changes |= {"first_stage.workdir": first_stage, "data.data_dir": data_dir}
    for key, value in changes.items():
        *path, last = key.split(".")
        section = functools.reduce(getattr, path, config)
        section[last] = value
    return config


def make_probe(folder, first_stage, image_size):
    """Makes a function that classifies images; the probe is trained the first time.

    Args:
      folder: Folder of the probe.
      first_stage: Workdir of the first stage.
      image_size: Side of the images in pixels.

    Returns:
      Function uint8 [N, S, S, 3] -> class labels, int [N].
    """
    first = load_first_stage(first_stage)
    probe = load_probe(folder, first.module, first.params, image_size)
    return lambda images: probe(images)["label"]


def draw(trained, labels, guidance_scale, batch_size=64):
    """Draws one image per label; image k has key k in all rows.

    Args:
      trained: `sampling.Trained`.
      labels: int32 [N], N a multiple of `batch_size`.
      guidance_scale: Scale of classifier-free guidance.
      batch_size: Images per batch.

    Returns:
      uint8 [N, S, S, 3].
    """
    size = trained.config.data.image_size
    options = generate.SampleOptions(
        sampler=trained.config.sample.sampler,
        num_steps=trained.config.sample.num_steps,
        size=(size, size),
        guidance=generate.GuidanceOptions(scale=guidance_scale),
    )

    @sharding.jit
    def draw(params, frozen, labels, indices):
        rngs = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))
        inputs = {"label": labels}
        images = generate.sample_images(
            trained.model, params, frozen, inputs, rngs(indices), options
        )
        return to_uint8(images)

    batches = np.arange(len(labels)).reshape(-1, batch_size)
    weights = trained.params, trained.frozen
    return np.concatenate([draw(*weights, labels[rows], rows) for rows in batches])


def measure(workdir, probe, count):
    """Measures a trained row of the table.

    Args:
      workdir: Workdir of the run.
      probe: See `make_probe`; None leaves adherence out.
      count: Samples to classify, a multiple of 64.

    Returns:
      Dict of column -> number.
    """
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    trained = sampling.load_model(workdir)
    row = {
        "loss": [m["eval/loss_simple"] for m in metrics if "eval/loss_simple" in m][-1],
        "speed": statistics.median(
            m["images_per_s"] for m in metrics if "images_per_s" in m
        ),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
    }
    if probe is None:
        return row
    labels = np.arange(count, dtype=np.int32) % len(trained.class_names)
    row["adherence"] = np.mean(probe(draw(trained, labels, 1.0)) == labels)
    if trained.model.conditioner.entries:
        scale = trained.config.sample.guidance_scale
        row["guided"] = np.mean(probe(draw(trained, labels, scale)) == labels)
    return row


def format_row(way, row):
    """Formats a line of the table."""
    found = (f"{row[k]:.0%}" if k in row else "" for k in ("adherence", "guided"))
    return (
        f"| {way} | {row['loss']:.4f} | {row['speed']:.0f} | "
        f"{row['parameters'] / 1e6:.2f} M | {' | '.join(found)} |"
    )


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first_stage", required=True, help="workdir of one")
    parser.add_argument("--workdir", required=True, help="folder of the runs")
    parser.add_argument("--data_dir", help="where the data set shapes/32_single lies")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--images", type=int, default=256, help="0 leaves them out")
    parser.add_argument("--only", default=",".join(WAYS), help="rows, joined by commas")
    args = parser.parse_args()
    ways = args.only.split(",")
    unknown = set(ways) - WAYS.keys()
    if unknown or args.images % 64:
        parser.error(f"--only takes {', '.join(WAYS)}; --images a multiple of 64")
    probe = None
    if args.images:
        size = shapes_class.get_config().data.image_size
        folder = pathlib.Path(args.workdir, "probe")
        probe = make_probe(folder, args.first_stage, size)
    rows = {}
    for way in ways:
        print(f"== {way}", flush=True)
        config = make_config(way, args.steps, args.first_stage, args.data_dir)
        workdir = pathlib.Path(args.workdir, way.replace(" ", "_"))
        loop.run(config, str(workdir))
        rows[way] = measure(workdir, probe, args.images)
    print(f"\n{COLUMNS}\n" + "| --- " * COLUMNS.count(" | ") + "| --- |")
    for way, row in rows.items():
        print(format_row(way, row))


if __name__ == "__main__":
    main()
