"""Compares initialisations: the demo's second stage trained from each of them.

    make demo
    python -m benchmarks.initialisation --first_stage=runs/demo/autoencoder \
        --data_dir=runs/demo/data --workdir=runs/initialisation

trains `configs/shapes_class.py` on latents that are encoded once, from weights that a
row of INITIALISATIONS redraws, with several seeds. It prints the loss on held-out
latents after 100, 200 and 300 steps of each trial, and finally means and standard
errors. `--config=shapes_text` is for the encoder of captions; `--steps`, `--width` and
`--learning_rate` change the training. Trials are kept in `trials.jsonl` and not run
again.
"""

import argparse
import json
import pathlib
import re
import time

import jax
import numpy as np

from ldm_jax import latent_diffusion, sharding
from ldm_jax.build import make_model
from ldm_jax.cli.configs import load_config
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.models.autoencoder import IdentityAutoencoder
from ldm_jax.sharding import named_leaves
from ldm_jax.trained import load_first_stage
from ldm_jax.training.step import make_loss_steps


def uniform(scale):
    """Uniform values of variance scale / fan_in."""

    def draw(rng, shape, fan_in):
        bound = np.sqrt(3 * scale / fan_in)
        return rng.uniform(-bound, bound, shape)

    return draw


def truncated(scale):
    """Normal values of variance scale / fan_in, truncated at two deviations."""

    def draw(rng, shape, fan_in):
        values = rng.standard_normal(shape)
        while (outside := np.abs(values) > 2).any():
            values[outside] = rng.standard_normal(outside.sum())
        return values * np.sqrt(scale / fan_in) / 0.87962566103423978

    return draw


def normal(std):
    """Normal values."""
    return lambda rng, shape, fan_in: std * rng.standard_normal(shape)


def zeros(rng, shape, fan_in):
    """Zeros."""
    del rng, fan_in
    return np.zeros(shape)


KERNELS = r"kernel$"
# Layers at the end of a residual branch, and the last layer of all.
BRANCHES = r"backbone/.*(conv_out|attention/out|proj_out)/kernel$"
LAST = r"backbone/conv_out/kernel$"
# Layers that map the timestep embedding to scales and shifts of the norms.
MODULATIONS = r"backbone/.*/embedding/kernel$"
LABEL = r"conditioner/label/embed/embedding$"
TOKENS = r"conditioner/.*(tokens/embedding|positions)$"
ENCODER = r"conditioner/.*kernel$"

# (pattern of the parameter's name, initialiser): the last match counts. Layers that
# start at zero stay zero unless a row names BRANCHES or LAST.
THIRD = [(KERNELS, uniform(1 / 3))]
ONE = [(KERNELS, truncated(1))]
BIASES = [(r"bias$", uniform(1 / 3))]
INITIALISATIONS = {
    "one": ONE,
    "third": THIRD,
    "third, biases": THIRD + BIASES,
    "third, no zero layers": [*THIRD, (BRANCHES, uniform(1 / 3))],
    "third, last layer alone zero": [*THIRD, (BRANCHES, uniform(1 / 3)), (LAST, zeros)],
    "third, modulations zero": [*THIRD, (MODULATIONS, zeros)],
    "one, modulations third": [*ONE, (MODULATIONS, uniform(1 / 3))],
    "third, normal": [(KERNELS, truncated(1 / 3))],
    "tenth": [(KERNELS, uniform(0.1))],
    "third, label 0.02": [*THIRD, (LABEL, normal(0.02))],
    "third, encoder one": [*THIRD, (ENCODER, truncated(1))],
    "third, tokens 0.2": [*THIRD, (TOKENS, normal(0.2))],
}


def redraw(params, rules, seed):
    """Redraws parameters.

    Args:
      params: Nested dict of arrays, as initialised by the networks.
      rules: Row of INITIALISATIONS.
      seed: Seed.

    Returns:
      Nested dict of NumPy arrays.
    """
    rng = np.random.default_rng(seed)
    leaves = named_leaves(params)

    def draw(path, value):
        name = "/".join(key.key for key in path)
        old = np.asarray(value)
        rule = None
        for pattern, candidate in rules:
            if re.search(pattern, name):
                # Layers that start at zero stay zero unless they are named.
                keep = pattern in (KERNELS, ENCODER) and not old.any()
                rule = rule if keep else candidate
        kernel = leaves.get(re.sub(r"[^/]+$", "kernel", name))
        if rule is None or (name.endswith("bias") and kernel is None):
            return old
        fan_in = np.prod(kernel.shape[:-1]) if kernel is not None else 1
        return rule(rng, old.shape, fan_in).astype(old.dtype)

    return jax.tree_util.tree_map_with_path(draw, params)


def encode_split(config, first, split):
    """Encodes a split; returns a dict of NumPy arrays, the latents under "image"."""
    source = open_source(config.data, split)
    loader = make_loader(source, config.data, batch_size=128, seed=0, train=False)

    @sharding.jit
    def encode(images, rng):
        images = images.astype(np.float32) / 127.5 - 1
        variables = {"params": first.params}
        return first.module.apply(variables, images, method="encode").sample(rng)

    rows = []
    for index, batch in enumerate(loader):
        batch = {key: np.asarray(value) for key, value in batch.items()}
        batch["image"] = np.asarray(encode(batch["image"], jax.random.key(index)))
        whole = batch.pop("mask").astype(bool)
        rows.append({key: value[whole] for key, value in batch.items()})
    loader.close()
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


def load_latents(config, first_stage, folder):
    """Latents of both splits, scaled to unit variance; encoded the first time."""
    path = folder / f"latents_{'_'.join(config.conditions)}.npz"
    if not path.exists():
        first = load_first_stage(first_stage)
        arrays = {}
        for split in (config.data.split, config.data.eval_split):
            for key, value in encode_split(config, first, split).items():
                arrays[f"{split}/{key}"] = value
        std = arrays[f"{config.data.split}/image"].std()
        for split in (config.data.split, config.data.eval_split):
            arrays[f"{split}/image"] /= std
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    with np.load(path) as arrays:
        return [
            {
                key.removeprefix(f"{split}/"): arrays[key]
                for key in arrays
                if key.startswith(f"{split}/")
            }
            for split in (config.data.split, config.data.eval_split)
        ]


class Trainer:
    """A training loop that is compiled once; each trial starts from other weights."""

    def __init__(self, config, data):
        """Makes the steps.

        Args:
          config: ConfigDict of a second stage.
          data: (training, held-out) examples, see `load_latents`.
        """
        self.config, (self.train, self.held_out) = config, data
        config.data.image_size = self.train["image"].shape[1]
        # The images of the batches are the latents.
        stage = IdentityAutoencoder(self.train["image"].shape[-1])
        classes = int(self.train["label"].max()) + 1
        model = make_model(config, stage, classes)
        self.frozen = {"first_stage": {}, "statistics": LatentStatistics().arrays()}

        def draw(rng):
            example = {key: value[:1] for key, value in self.train.items()}
            return latent_diffusion.init(model, rng, example)

        def loss(*args, **kwargs):
            return latent_diffusion.loss(model, *args, **kwargs)

        self.init, step, evaluate = make_loss_steps(config, (), draw, loss)
        self.init = sharding.jit(self.init)
        self.step = sharding.jit(step, donate_argnums=0)
        self.eval_step = sharding.jit(evaluate)

    def run(self, rules, seed, marks):
        """Trains once.

        Args:
          rules: Row of INITIALISATIONS; None keeps the weights of the library.
          seed: Seed of the weights and of the data.
          marks: Numbers of steps after which to evaluate.

        Returns:
          Dict of step -> loss on held-out latents.
        """
        state = self.init(jax.random.key(seed))
        if rules is not None:
            params = redraw(state.params, rules, seed)
            average = jax.tree.map(np.copy, params)
            state = state.replace(params=params, ema_params=average)
        # Keys of a step follow from its number: other seeds start far from each other.
        rng = np.random.default_rng(seed)
        size, count = self.config.train.batch_size, len(self.train["image"])
        losses, order = {}, np.arange(0)
        for done in range(1, self.config.train.num_steps + 1):
            if len(order) < size:
                order = rng.permutation(count)
            rows, order = order[:size], order[size:]
            batch = {key: value[rows] for key, value in self.train.items()}
            state, _ = self.step(state, self.frozen, batch)
            if done in marks:
                losses[done] = self.evaluate(state)
        return losses

    def evaluate(self, state):
        """Mean loss over the held-out latents, each at four noise levels."""
        size, losses = 64, []
        for repeat in range(4):
            for first in range(0, len(self.held_out["image"]) - size + 1, size):
                rows = slice(first, first + size)
                batch = {key: value[rows] for key, value in self.held_out.items()}
                batch["mask"] = np.ones(size, bool)
                key = jax.random.fold_in(jax.random.key(repeat), first)
                metrics = self.eval_step(state, self.frozen, batch, key)
                losses.append(metrics["loss_simple"])
        return float(np.mean(losses))


def make_config(args):
    """The config of the trials."""
    config = load_config(args.config)
    config.data.update(data_dir=args.data_dir, name="shapes/32_single")
    config.train.update(num_steps=args.steps, warmup_steps=50)
    if args.width:
        config.backbone.channels = args.width
    if args.learning_rate:
        config.train.learning_rate = args.learning_rate
    return config


def summarise(trials, marks):
    """Prints a table of means and standard errors."""
    print(f"\n| initialisation | seeds | {' | '.join(map(str, marks))} |")
    print("| --- | --- |" + " --- |" * len(marks))
    for name in dict.fromkeys(trial["name"] for trial in trials):
        rows = [t["losses"] for t in trials if t["name"] == name]
        cells = []
        for mark in marks:
            values = [row[str(mark)] for row in rows]
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if values[1:] else 0
            cells.append(f"{np.mean(values):.4f} ± {error:.4f}")
        print(f"| {name} | {len(rows)} | {' | '.join(cells)} |", flush=True)


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first_stage", required=True, help="workdir of one")
    parser.add_argument("--data_dir", help="where the data set shapes/32_single lies")
    parser.add_argument("--workdir", required=True, help="folder of the results")
    parser.add_argument("--config", default="shapes_class")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--marks", default="100,200,300", help="steps to evaluate at")
    parser.add_argument("--width", type=int, help="channels of the U-Net")
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", help="rows, separated by semicolons")
    args = parser.parse_args()
    names = args.only.split(";") if args.only else list(INITIALISATIONS)
    unknown = set(names) - INITIALISATIONS.keys() - {"library"}
    if unknown:
        parser.error(f"--only takes library, {'; '.join(INITIALISATIONS)}")
    marks = [int(mark) for mark in args.marks.split(",")]
    folder = pathlib.Path(args.workdir)
    config = make_config(args)
    trainer = Trainer(config, load_latents(config, args.first_stage, folder))
    setting = {
        "config": args.config,
        "steps": args.steps,
        "width": config.backbone.channels,
        "learning_rate": config.train.learning_rate,
    }
    path = folder / "trials.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    trials = [json.loads(line) for line in lines]
    for seed in map(int, args.seeds.split(",")):
        for name in names:
            trial = setting | {"name": name, "seed": seed}
            if any(trial.items() <= done.items() for done in trials):
                continue
            start = time.perf_counter()
            losses = trainer.run(INITIALISATIONS.get(name), seed, marks)
            trial["losses"] = {str(mark): loss for mark, loss in losses.items()}
            trials.append(trial)
            with path.open("a") as file:
                file.write(json.dumps(trial) + "\n")
            shown = "  ".join(f"{loss:.4f}" for loss in losses.values())
            seconds = time.perf_counter() - start
            print(f"{name:40} seed {seed}  {shown}  {seconds:.0f} s", flush=True)
    summarise([t for t in trials if setting.items() <= t.items()], marks)


if __name__ == "__main__":
    main()
