"""A sampling run: from a workdir to PNG files, resumable, the same on any devices.

Sample k is a function of the weights, the settings, the seed and k.  Every process of a
job draws its own share on its own devices; nothing is communicated.
"""

import json
import math
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax import checkpoint, latent_diffusion, sharding
from ldm_jax.config import ConfigError, suggest
from ldm_jax.diffusion import samplers
from ldm_jax.images import make_grid, read_image, to_uint8, write_png
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.training.diffusion import make_model, sample_options
from ldm_jax.training.pretrained import check_same_latents, load_first_stage
from ldm_jax.training.writer import Console

_SETTINGS = "settings.json"
_MAX_GRID = 64


class Trained(NamedTuple):
    """A trained second stage with everything that sampling needs.

    Attributes:
      model: The LatentDiffusion.
      params: Its weights, NumPy.
      frozen: Weights and scaling factor of the first stage, NumPy.
      config: The config it was trained with.
      class_names: Names of the classes, an empty list where there are none.
      source: The checkpoint folder, for the record.
      weights: The item of it that holds the weights: "params" or "ema_params".
      first_stage: What first stage decodes, in words.
      decoder: What decoder is in place of the first stage's own, or None.
    """

    model: LatentDiffusion
    params: Any
    frozen: Any
    config: Any
    class_names: list
    source: str
    weights: str
    first_stage: str
    decoder: str | None = None


def load_model(workdir, step=None, average=True, first_stage=None, decoder=None):
    """Loads a trained second stage and the first stage it was trained on.

    Args:
      workdir: Workdir of the second stage.
      step: Checkpoint to take; the newest by default.
      average: Take the moving average of the weights where one was kept.
      first_stage: Workdir of the first stage; as recorded by default.
      decoder: Workdir of a first stage of the same latents whose decoder is used
        instead.

    Returns:
      A Trained.

    Raises:
      CheckpointError: If a checkpoint is missing or unreadable.
      ConfigError: If the workdir is not that of a second stage, or the decoder's
        latents are others.
    """
    config, params, meta = checkpoint.load_weights(workdir, step, average)
    if config.stage != "diffusion":
        raise ConfigError(
            f"--workdir={workdir} holds a run of the stage '{config.stage}'; sample.py "
            "needs a diffusion run"
        )
    recorded = meta["first_stage"]
    folder = _first_stage_folder(first_stage, recorded, workdir)
    first = load_first_stage(folder, recorded and recorded["step"])
    where = _in_words(first.record)
    if decoder:
        swapped = load_first_stage(decoder, key="--decoder")
        check_same_latents(first, swapped)
        first = swapped
        decoder = _in_words(first.record)
    factor = np.float32(meta["scaling_factor"])
    return Trained(
        model=make_model(config, first.module, meta["num_classes"]),
        params=params,
        frozen={"first_stage": first.params, "scaling_factor": factor},
        config=config,
        class_names=list(meta["class_names"] or []),
        source=meta["folder"],
        weights=meta["item"],
        first_stage=where,
        decoder=decoder,
    )


def _in_words(record):
    return f"step {record['step']} of {record['workdir']}"


def _first_stage_folder(given, recorded, workdir):
    """Where the first stage lies: as given, or as the checkpoint records it."""
    if given:
        return given
    if recorded is None:
        raise ConfigError(
            f"{workdir} came without a first stage; say where one is with "
            "--first_stage=ITS_WORKDIR"
        )
    return checkpoint.first_stage_folder(recorded["workdir"], workdir)


def run(
    trained,
    outdir,
    *,
    num_samples,
    labels=None,
    seed=0,
    batch_size=16,
    npz=False,
    **options,
):
    """Draws samples 0 to `num_samples` - 1, those that `outdir` does not hold yet.

    Args:
      trained: A Trained.
      outdir: Folder of the pictures.
      num_samples: How many samples the folder shall hold.
      labels: Class names or numbers, repeated in turn; all classes by default.
      seed: Seed of the run.
      batch_size: Samples at a time over all devices of a process; rounded up to a
        multiple of their number.
      npz: Also write `samples.npz`: arr_0 uint8 [N, H, W, 3], arr_1 labels.
      **options: `sampler`, `num_steps`, `guidance_scale`, `eta`, `spacing`; what is
        None is taken from the config.

    Returns:
      Path of the grid.

    Raises:
      ConfigError: If an option is wrong or the folder holds samples of other settings.
    """
    outdir = pathlib.Path(outdir)
    options = _options(trained, options)
    labels = _labels(trained, labels)
    _claim(outdir, trained, seed, labels, options)
    mine = range(jax.process_index(), num_samples, jax.process_count())
    missing = [k for k in mine if not _path(outdir, k).exists()]
    if len(missing) < len(mine):
        print(f"{len(mine) - len(missing)} of {len(mine)} samples are there already")
    if missing:
        _draw(trained, outdir, missing, labels, seed, batch_size, options)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all samples are written")
    if jax.process_index() == 0:
        return _collect(outdir, num_samples, labels, npz, trained.class_names)
    return outdir / "grid.png"


def _options(trained, given):
    """Completes the options from the config and checks them before anything runs."""
    options = sample_options(trained.config, trained.model)
    if given.get("sampler") not in (None, options.get("sampler")):
        # Another sampler does not inherit the options of the config's.
        options["eta"] = None
    options |= {key: value for key, value in given.items() if value is not None}
    entries = trained.model.conditioner.entries
    others = sorted(entries.keys() - {"label"})
    if others:
        raise ConfigError(
            f"this model is told {', '.join(others)}; sample.py can tell a class label "
            "alone so far, use ldm_jax.latent_diffusion for others"
        )
    if options["guidance_scale"] != 1 and not entries.get("label", {}).get(
        "null_class", bool(entries)
    ):
        raise ConfigError(
            f"--guidance_scale={options['guidance_scale']:g} needs a model that knows "
            "what no condition is; this one has none: use --guidance_scale=1"
        )
    try:
        samplers.make_sampler(options["sampler"], eta=options.get("eta"))
        samplers.make_points(
            trained.model.schedule, options["num_steps"], options["spacing"]
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return options


def _labels(trained, labels):
    """Resolves class names and numbers; None where the model takes no label."""
    entry = trained.model.conditioner.entries.get("label")
    if entry is None:
        if labels:
            raise ConfigError("--labels: this model was trained without class labels")
        return None
    if not labels:
        return list(range(entry["num_classes"]))
    return [_label(trained, str(label), entry["num_classes"]) for label in labels]


def _label(trained, label, num_classes):
    names = trained.class_names
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < num_classes:
        return int(label)
    known = names or [f"0 to {num_classes - 1}"]
    raise ConfigError(f"--labels: there is no class '{label}'; {suggest(label, known)}")


def _claim(outdir, trained, seed, labels, options):
    """Records the settings in a new folder, compares them in one that has some."""
    settings = {
        "checkpoint": trained.source,
        "weights": trained.weights,
        "first_stage": trained.first_stage,
        "decoder": trained.decoder,
        "seed": seed,
        "labels": labels,
        "options": options,
    }
    path = outdir / _SETTINGS
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for key, value in settings.items():
            if found.get(key) != value:
                raise ConfigError(
                    f"{outdir} holds samples of other settings ({key}: "
                    f"{found.get(key)} there, {value} here); use another --outdir"
                )
        return
    outdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{jax.process_index()}.tmp")
    temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _path(outdir, k):
    return outdir / f"{k:06d}.png"


def _draw(trained, outdir, missing, labels, seed, batch_size, options):
    """Draws the missing samples batch by batch and writes each as it comes."""
    devices = jax.local_devices()
    mesh = sharding.make_mesh(devices=devices)
    size = -(-min(batch_size, len(missing)) // len(devices)) * len(devices)
    draw = make_draw(trained, mesh, labels, seed, options)
    console = Console(len(missing), 0)
    start = time.perf_counter()
    for first in range(0, len(missing), size):
        indices = missing[first : first + size]
        # The last batch is filled up, so that one program serves all.
        padded = np.resize(np.asarray(indices, np.int32), size)
        images = np.asarray(draw(padded))
        if first == 0:
            console.line(
                f"first batch of {size}, with compilation: "
                f"{time.perf_counter() - start:.1f} s"
            )
        for k, image in zip(indices, images, strict=False):
            write_png(_path(outdir, k), image)
            console.advance()
        console.line(f"{first + len(indices)}/{len(missing)} samples")
    console.close()
    seconds = time.perf_counter() - start
    print(f"{len(missing)} samples in {seconds:.1f} s ({len(missing) / seconds:.2f}/s)")


def make_draw(trained, mesh, labels, seed, options):
    """Compiles the function that draws samples.

    Args:
      trained: A Trained.
      mesh: Mesh over the devices of this process.
      labels: Class numbers, repeated in turn; None for a model without.
      seed: Seed of the run.
      options: Options of `latent_diffusion.sample_latents`.

    Returns:
      Function of the indices, int32 [B] -> images, uint8 [B, H, W, C].
    """
    model, size = trained.model, trained.config.data.image_size
    shape = latent_diffusion.shape_of_latents(model, (size, size))
    weights = {"params": trained.params, "frozen": trained.frozen}
    weights = sharding.put_tree(weights, sharding.tree_shardings(weights, mesh))

    def generate(weights, indices, inputs):
        rng = jax.random.key(seed)
        rngs = jax.vmap(lambda index: jax.random.fold_in(rng, index))(indices)
        images = latent_diffusion.generate(
            model,
            weights["params"],
            weights["frozen"],
            inputs,
            rngs,
            latent_shape=shape,
            **options,
        )
        return to_uint8(images)

    generate = jax.jit(generate)
    split = sharding.batch_sharding(mesh)

    def draw(indices):
        inputs = {}
        if labels is not None:
            inputs["label"] = np.asarray(labels, np.int32)[indices % len(labels)]
            model.conditioner.check(inputs)
        return generate(weights, *jax.device_put((indices, inputs), split))

    return draw


def _collect(outdir, num_samples, labels, npz, class_names):
    """Writes the grid, and the array for evaluators, from the files."""
    shown = range(min(num_samples, _MAX_GRID))
    columns = math.ceil(math.sqrt(len(shown)))
    if labels is not None and 1 < len(labels) <= 16:
        columns = min(len(labels), len(shown))
        names = [class_names[i] if class_names else str(i) for i in labels]
        print("columns: " + ", ".join(names[:columns]))
    grid = outdir / "grid.png"
    pictures = np.stack([read_image(_path(outdir, k)) for k in shown])
    write_png(grid, make_grid(pictures, columns))
    print(f"grid: {grid}")
    if npz:
        images = np.stack([read_image(_path(outdir, k)) for k in range(num_samples)])
        arrays = {"arr_0": images}
        if labels is not None:
            arrays["arr_1"] = np.asarray(labels)[np.arange(num_samples) % len(labels)]
        temporary = outdir / "samples.tmp.npz"
        np.savez(temporary, **arrays)
        os.replace(temporary, outdir / "samples.npz")
        print(f"array: {outdir / 'samples.npz'} {images.shape} uint8")
    return grid
