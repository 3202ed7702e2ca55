"""A probe classifier: a small network that recognises scenes of the set `shapes`.

It is trained in a minute or two on two CPU cores, on scenes drawn for it, to predict
the class and the colour of the main shape, the ground, and for every pixel the kind and
the colour of its shape. Half of its images are reconstructions of a first stage, as
blurred as generated ones are, so that blur does not count as an error.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from ldm_jax import peers, sharding
from ldm_jax.annotations import Array, Float, Shaped, UInt8
from ldm_jax.checkpoint import tree_checksum
from ldm_jax.data.shapes import examples
from ldm_jax.data.shapes.drawing import PATTERNS
from ldm_jax.data.shapes.scenes import CLASS_NAMES, COLORS, GROUNDS
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.shapes.labels import NUM_KINDS, stack, truth
from ldm_jax.images import to_float, to_uint8
from ldm_jax.models.layers import GroupNorm, conv, dense, upsample_nearest
from ldm_jax.seeds import make_key
from ldm_jax.store import as_path
from ldm_jax.weights.files import read_weights, write_weights

# Predictions for an image as a whole: name -> number of classes.
_WHOLE = {
    "label": len(CLASS_NAMES),
    "color": len(COLORS),
    "ground": len(GROUNDS),
    "pattern": len(PATTERNS),
}
# And for each pixel.
_PIXELS = {"segmentation": NUM_KINDS, "colors": len(COLORS)}

_SCENES, _STEPS, _BATCH_SIZE = 12_000, 2400, 32
_LEARNING_RATE = 3e-3


class Probe(nn.Module):
    """A small U-Net-like classifier at a half, a quarter and an eighth of the size.

    Attributes:
      channels: Channels at each of these sizes, multiples of 8.
    """

    channels: tuple[int, ...] = (32, 64, 96)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch side side 3"]
    ) -> dict[str, Float[Array, "batch ..."]]:
        """Predicts what images show.

        Args:
          images: Floats [B, S, S, 3] in [-1, 1], S a multiple of 8.

        Returns:
          Dict of logits: [B, choices] for the image as a whole, [B, S, S, choices]
          for each pixel.
        """
        batch, side = images.shape[:2]
        # Space to depth, 2 x 2 pixels to one: narrow layers are slow on a CPU.
        h = images.reshape(batch, side // 2, 2, side // 2, 2, 3)
        h = h.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side // 2, side // 2, 12)
        skips = []
        for level, channels in enumerate(self.channels):
            h = _layer(conv(channels, stride=2 if level else 1)(h))
            h = h + _layer(conv(channels)(h))
            skips.append(h)
        pooled = [pool(s, (1, 2)) for s in skips for pool in (jnp.mean, jnp.max)]
        whole = jnp.concatenate(pooled, axis=-1)
        whole = nn.silu(dense(self.channels[-1])(whole))
        logits = {name: dense(count)(whole) for name, count in _WHOLE.items()}
        h = h + dense(h.shape[-1])(whole)[:, None, None]
        for skip in skips[-2::-1]:
            h = jnp.concatenate([upsample_nearest(h), skip], axis=-1)
            h = _layer(conv(skip.shape[-1])(h))
        for name, count in _PIXELS.items():
            pixels = dense(4 * count)(h).reshape(batch, side // 2, side // 2, 2, 2, -1)
            pixels = pixels.transpose(0, 1, 3, 2, 4, 5)
            logits[name] = pixels.reshape(batch, side, side, count)
        return logits


def _layer(x):
    return GroupNorm(8, silu=True)(x)


PROBE = Probe()


def make_probe(
    module: Probe, params: Any
) -> Callable[[UInt8[Array, "images side side 3"]], dict[str, Any]]:
    """Makes a function that classifies images with a probe.

    Args:
      module: Probe.
      params: Its weights.

    Returns:
      Function of images, uint8 [N, S, S, 3] -> dict of int arrays: "label", "color",
      "ground" and "pattern" [N], "segmentation" and "colors" [N, S, S], numbered as in
      `labels.truth`; the colours are those of shapes, wherever there is one.
    """

    @sharding.jit
    def apply(params, images):
        logits = module.apply({"params": params}, to_float(images))
        return {name: scores.argmax(-1) for name, scores in logits.items()}

    apply = functools.partial(apply, params)
    return lambda images: in_batches(apply, images, batch_size=128)


def load_probe(
    folder: str | os.PathLike[str],
    first_stage: nn.Module,
    params: Any,
    image_size: int,
    module: Probe = PROBE,
    num_steps: int = _STEPS,
    num_scenes: int = _SCENES,
) -> Callable[[UInt8[Array, "images side side 3"]], dict[str, Any]]:
    """Reads the probe for a first stage from a folder, or trains it and saves it there.

    Args:
      folder: Where probes are kept.
      first_stage: Autoencoder module.
      params: Its weights.
      image_size: Side of the images in pixels, a multiple of 8.
      module: Probe.
      num_steps: Steps of the training.
      num_scenes: Number of scenes to train on.

    Returns:
      Function of images, uint8 [N, S, S, 3]; see `make_probe`.

    Raises:
      ConfigError: If the probe cannot take images of that size.
    """
    if image_size % 8:
        raise ConfigError(
            f"the probe classifier cannot take images of {image_size} px: give a "
            "multiple of 8"
        )
    # A probe is trained on the blur of one first stage.
    name = f"{image_size}px_{tree_checksum(params):08x}_{num_steps}.safetensors"
    path = as_path(folder) / f"probe_{name}"
    # The name of the file in version 0.1.0.
    old = path.with_name(f"judge_{name}")
    if old.is_file():
        path = old
    if not path.is_file():
        start = time.perf_counter()
        print(
            "there is no probe for this first stage yet: training one ...", flush=True
        )
        scenes = draw_scenes(num_scenes, image_size)
        again = reconstruct(first_stage, params, scenes["image"])
        trained = jax.device_get(train(module, scenes, again, num_steps))
        write_weights(path, flatten_dict(trained, sep="/"))
        print(f"probe: {path} ({time.perf_counter() - start:.0f} s)")
    tensors = {k: np.asarray(v) for k, v in read_weights(path).tensors.items()}
    return make_probe(module, unflatten_dict(tensors, sep="/"))


def draw_scenes(count: int, image_size: int, seed: int = 1) -> dict[str, Any]:
    """Draws scenes that are in no split of the data set `shapes`.

    Args:
      count: Number of scenes.
      image_size: Side S in pixels.
      seed: Seed of the scenes.

    Returns:
      Dict of "image" uint8 [N, S, S, 3] and the labels of `labels.truth`, stacked.
    """
    rows = []
    for index in range(count):
        # A split of its own: its name is part of the seed.
        example = examples.draw_example(seed, "judge", index, image_size)
        rows.append(truth(example) | {"image": example["image"]})
    return stack(rows)


def reconstruct(
    first_stage: nn.Module,
    params: Any,
    images: UInt8[Array, "images height width 3"],
    batch_size: int = 64,
) -> UInt8[Array, "images height width 3"]:
    """Encodes and decodes images with a first stage.

    Args:
      first_stage: Autoencoder module.
      params: Its weights.
      images: uint8 [N, S, S, 3].
      batch_size: Images at a time.

    Returns:
      uint8 [N, S, S, 3].
    """

    @sharding.jit
    def apply(params, batch):
        call = functools.partial(first_stage.apply, {"params": params})
        latents = call(to_float(batch), method="encode").mode()
        return to_uint8(call(latents, method="decode"))

    return in_batches(lambda batch: apply(params, batch), images, batch_size)


def in_batches(
    function: Callable[[Any], Any],
    images: Shaped[Array, "images ..."],
    batch_size: int,
) -> Any:
    """Applies a compiled function batch by batch; the last batch is padded.

    Args:
      function: images [batch_size, ...] -> pytree of arrays [batch_size, ...].
      images: Array [N, ...], N >= 1.
      batch_size: Rows of each batch, so that one compiled program serves all.

    Returns:
      The pytree, NumPy arrays [N, ...].
    """
    parts = []
    for start in range(0, len(images), batch_size):
        rows = np.arange(start, start + batch_size) % len(images)
        parts.append(jax.device_get(function(images[rows])))
        peers.progress()
    return jax.tree.map(lambda *a: np.concatenate(a)[: len(images)], *parts)


def train(
    module: Probe,
    scenes: dict[str, Any],
    again: UInt8[Array, "images side side 3"],
    num_steps: int,
    batch_size: int = _BATCH_SIZE,
    seed: int = 0,
) -> Any:
    """Trains a probe.

    Args:
      module: Probe.
      scenes: Dict from `draw_scenes`.
      again: The reconstructions of the same images, uint8 [N, S, S, 3].
      num_steps: Number of steps.
      batch_size: Images in a step.
      seed: Seed of weights and order.

    Returns:
      Its weights.
    """
    rate = optax.warmup_cosine_decay_schedule(
        0, _LEARNING_RATE, min(50, num_steps // 4), num_steps
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def objective(params, batch):
        return loss(module.apply({"params": params}, batch["image"]), batch)

    @functools.partial(sharding.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        grads = jax.grad(objective)(params, batch)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    key = make_key(seed)
    example = to_float(scenes["image"][:1])
    params = sharding.jit(module.init)(key, example)["params"]
    state = optimizer.init(params)
    rng, count = np.random.default_rng(seed), len(again)
    for _ in range(num_steps):
        rows = rng.integers(count, size=batch_size)
        batch = {name: array[rows] for name, array in scenes.items()}
        blurred = rng.random((batch_size, 1, 1, 1)) < 0.5
        batch["image"] = to_float(np.where(blurred, again[rows], batch["image"]))
        params, state = step(params, state, batch)
        peers.progress()
    return params


def loss(logits: dict[str, Any], true: dict[str, Any]) -> Float[Array, ""]:
    """Sums the cross-entropies of all predictions of a probe.

    Args:
      logits: Dict of logits; see Probe.
      true: Dict from `draw_scenes`, batched.

    Returns:
      A scalar.
    """
    segmentation = true["segmentation"]
    # If the ground has two colours, either is a right answer.
    grounds = true["grounds"] / true["grounds"].sum(-1, keepdims=True)
    total = jnp.mean(optax.softmax_cross_entropy(logits["ground"], grounds))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    for name in ("label", "color", "pattern"):
        total += jnp.mean(cross_entropy(logits[name], true[name]))
    # Small shapes have few pixels and are the hardest, so their pixels weigh more.
    small = (segmentation > 0) & (segmentation != true["label"][:, None, None] + 1)
    of_pixels = cross_entropy(logits["segmentation"], segmentation)
    total += 4 * jnp.mean((1 + 4 * small) * of_pixels)
    colors = jnp.take_along_axis(
        true["colors"], segmentation.reshape(len(grounds), -1), 1
    )
    colors = colors.reshape(segmentation.shape)
    shape = colors >= 0
    of_pixels = cross_entropy(logits["colors"], jnp.maximum(colors, 0))
    return total + jnp.sum(of_pixels * shape) / jnp.maximum(shape.sum(), 1)
