"""Checkpoints of the original as a whole: first stages and latent diffusion models.

Every key of the file has a row, which says where in our parameters it goes; a key with
no place there (the schedule's tables, the networks of the perceptual loss, a count) has
a row too, and is carried along to be written back.
"""

import numpy as np

from ldm_jax.build import make_first_stage
from ldm_jax.convert.compvis import deduce, read_yaml
from ldm_jax.convert.compvis import names as compvis_names
from ldm_jax.convert.compvis.conditions import condition_rows, examples, is_embedded
from ldm_jax.convert.compvis.deduce import usual_guidance
from ldm_jax.convert.compvis.read_yaml import COND_STAGE, FIRST_STAGE, UNET
from ldm_jax.convert.model import (
    Model,
    autoencoder_config,
    diffusion_config,
    diffusion_shapes,
    discriminator_shapes,
    first_stage_row,
    first_stage_shapes,
    make_unet,
)
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import ConversionError
from ldm_jax.weights.state_dict import SAME, UNUSED, Row, prefixed, to_params

EMA = "model_ema."
COUNTERS = (f"{EMA}decay", f"{EMA}num_updates")


def recognise(tensors):
    """Whether keys are those of a checkpoint of the original."""
    return any(key.startswith((UNET, "encoder.down.0.block.")) for key in tensors)


def read(weights, params=None, options=None, log=print):
    """Reads a checkpoint of the original.

    Args:
      weights: Weights of the file.
      params: `model.params` of its YAML; None to deduce them.
      options: Options, see `formats.Options`.
      log: Called with lines worth knowing.

    Returns:
      Model.

    Raises:
      ConversionError: If the YAML is not of this file or an option is not supported.
      ValueError: If keys are unread or missing, or shapes wrong.
    """
    tensors = weights.tensors
    params = params or read_yaml.deduce_params(tensors, options.image_size)
    whole = any(key.startswith(UNET) for key in tensors)
    if whole != ("unet_config" in params):
        kinds = {True: "a whole model", False: "a first stage"}
        raise ConversionError(
            f"the file holds {kinds[whole]} but the YAML describes {kinds[not whole]}: "
            "give the YAML of this file"
        )
    if whole:
        return _read_diffusion(weights, params, options, log)
    section, resolution = read_yaml.first_stage_section({"params": params})
    model = _first_stage(tensors, "", section, options.image_size or resolution)
    rows = first_stage_rows(model.config, tensors, "", "")
    tree = to_params(rows, tensors, _first_stage_target(model.config))
    _fill_first_stage(model, tree)
    model.step = max(weights.step or 1, 1)
    return _remember(model, rows, tensors, log)


def _first_stage(tensors, prefix, section, image_size):
    """A first stage without weights."""
    discriminator = None
    if f"{prefix}loss.discriminator.main.0.weight" in tensors:
        start = f"{prefix}loss.discriminator."
        discriminator = deduce.discriminator_options(tensors, start)
    return Model(autoencoder_config(section, image_size, discriminator), {})


def _first_stage_target(config):
    target = {"params": {"autoencoder": first_stage_shapes(config)}}
    if "discriminator" in config:
        variables = discriminator_shapes(config)
        target["params"]["discriminator"] = variables["params"]
        target["stats"] = {"discriminator": variables["batch_stats"]}
    return target


def _fill_first_stage(model, tree):
    model.params = {"autoencoder": {}} | tree.get("params", {})
    model.stats = tree.get("stats", {})


def first_stage_rows(config, tensors, theirs, ours):
    """Rows of a first stage, its discriminator and the networks of its loss.

    Args:
      config: Its config.
      tensors: What a file holds; {} for writing one.
      theirs: What the file's keys begin with.
      ours: What our paths begin with.

    Returns:
      List of Rows.
    """
    section, table = config["first_stage"], compvis_names.FIRST_STAGE_ROWS
    rows = first_stage_row(section, table, "CompVis")[1](make_first_stage(section))
    rows = prefixed(rows, theirs, f"{ours}params/autoencoder/")
    if "discriminator" in config:
        layers = config["discriminator"]["num_layers"]
        for row in compvis_names.discriminator_rows(layers):
            paths = tuple(
                path.replace("params/", f"{ours}params/discriminator/").replace(
                    "batch_stats/", f"{ours}stats/discriminator/"
                )
                for path in row.ours
            )
            key = f"{theirs}loss.discriminator.{row.theirs}"
            rows.append(Row(key, paths, row.transform))
    rows.append(Row(f"{theirs}loss.logvar", (f"{ours}params/logvar",), SAME))
    lost = f"{theirs}loss.logvar", f"{theirs}loss.perceptual_loss."
    return rows + [Row(key, (), UNUSED) for key in tensors if key.startswith(lost)]


def _read_diffusion(weights, params, options, log):
    tensors = weights.tensors
    first = None
    if "first_stage_config" in params:
        config = params["first_stage_config"]
        section, _ = read_yaml.first_stage_section(config)
        first = _first_stage(tensors, FIRST_STAGE, section, None)
    unet = read_yaml.with_heads(
        params["unet_config"]["params"], options.num_heads, options.head_channels, log
    )
    identity = first and first.config["first_stage"]["kind"] == "identity"
    if identity and unet["out_channels"] != 3:
        raise ConversionError(
            f"a model of pixels with {unet['out_channels']} channels is not supported: "
            "only 3 are"
        )
    factor = _factor(first)
    sections = read_yaml.diffusion_sections(params, unet, tensors, factor)
    size = options.image_size or sections["image_size"]
    sections |= dict(
        image_size=size, factor=factor, guidance_scale=usual_guidance(unet)
    )
    if first is not None:
        first.config["data"]["image_size"] = size
    if options.prediction_type:
        sections["schedule"]["prediction_type"] = options.prediction_type
    model = Model(diffusion_config(**sections), {}, first_stage=first)
    model.origin = dict(
        head_major=not unet.get("use_new_attention_order", False),
        linear_projection=unet.get("use_linear_in_transformer", False),
        cond_is_first_stage=f"{COND_STAGE}encoder.conv_in.weight" in tensors,
    )
    _read_weights(model, weights, unet, options, log)
    _read_schedule(model, tensors, params, log)
    model.statistics = LatentStatistics(scale=_scaling_factor(params, tensors))
    return model


def _scaling_factor(params, tensors):
    if "scale_factor" in tensors:
        return float(np.asarray(tensors["scale_factor"], np.float32))
    if params.get("scale_by_std"):
        raise ConversionError(
            "scale_by_std is set but the file has no scale_factor: set scale_by_std to "
            "False and scale_factor to its value in the YAML"
        )
    return float(params.get("scale_factor", 1.0))


def _factor(first_stage):
    """Downsampling factor of a first stage; 1 without."""
    if first_stage is None:
        return 1
    return make_first_stage(first_stage.config["first_stage"]).downsampling_factor


def _read_weights(model, weights, unet, options, log):
    """Reads all networks of a latent diffusion model into it."""
    tensors, config = weights.tensors, model.config
    average = any(key.startswith(f"{EMA}diffusion_model") for key in tensors)
    first = model.first_stage
    size = config["data"]["image_size"]
    batch = examples(config["conditions"], unet, size, _factor(first))
    first_config, channels = first and first.config, unet["out_channels"]
    params = diffusion_shapes(config, first_config, channels, batch)
    target = {"params": params}
    if average:
        conditioner = {
            key: value
            for key, value in params["conditioner"].items()
            if is_embedded(key, config["conditions"][key])
        }
        target["ema_params"] = {
            "backbone": params["backbone"],
            "conditioner": conditioner,
        }
    if first:
        target["first_stage"] = _first_stage_target(first.config)
    rows = diffusion_rows(model, tensors)
    tree = to_params(rows, tensors, target)
    model.params = {"backbone": {}, "conditioner": {}} | tree["params"]
    if average and not options.raw:
        _fill_average(model, tree["ema_params"])
    if first:
        _fill_first_stage(first, tree.get("first_stage", {}))
        first.step = 1
    updates = int(np.asarray(tensors.get(f"{EMA}num_updates", 0)))
    model.step = max(weights.step or updates, 1)
    if average:
        decay = np.asarray(tensors.get(f"{EMA}decay", 0.9999))
        config["train"]["ema_decay"] = float(f"{float(decay):.6g}")
    _remember(model, rows, tensors, log)
    if options.raw:
        config["train"]["ema_decay"] = None
        for name in COUNTERS:
            model.carried.pop(name, None)


def _fill_average(model, average):
    """The original averages the U-Net alone; ours holds all of `params`."""
    conditioner = model.params["conditioner"] | average.get("conditioner", {})
    model.ema_params = model.params | {
        "backbone": average["backbone"],
        "conditioner": conditioner,
    }


def diffusion_rows(model, tensors=()):
    """Rows of a whole latent diffusion model of the original.

    Args:
      model: Model of a second stage; its weights do not matter.
      tensors: What a file holds; {} for writing one.

    Returns:
      List of Rows; ours are "params/...", "ema_params/..." and "first_stage/...".
    """
    config, origin = model.config, model.origin
    unet = compvis_names.unet_rows(
        make_unet(config["backbone"]),
        head_major=origin.get("head_major", True),
        linear_projection=origin.get("linear_projection", False),
    )
    if not any(is_embedded(*item) for item in config["conditions"].items()):
        unet = [row for row in unet if not row.theirs.startswith("label_emb.")]
    rows = [_inside(row, UNET, "params/") for row in unet]
    rows += [_averaged(row) for row in unet]
    conditions = condition_rows(config["conditions"])
    rows += prefixed(conditions, COND_STAGE, "params/conditioner/")
    rows.append(Row("logvar", ("params/logvar",), SAME))
    if model.first_stage:
        first = model.first_stage.config
        # Of two copies the last that is read counts.
        if origin.get("cond_is_first_stage"):
            rows += first_stage_rows(first, tensors, COND_STAGE, "first_stage/")
        rows += first_stage_rows(first, tensors, FIRST_STAGE, "first_stage/")
    names = (*NAMES, "scale_factor", *COUNTERS)
    return rows + [Row(name, (), UNUSED) for name in names]


def _inside(row, theirs, ours):
    """Where a row of the U-Net lies in a file and in a training state."""
    paths = tuple(
        ours + ("" if path.startswith("backbone/") else "conditioner/") + path
        for path in row.ours
    )
    return Row(theirs + row.theirs, paths, row.transform)


def _averaged(row):
    """The moving average's row: its key has no dots."""
    row = _inside(row, "", "ema_params/")
    return row._replace(theirs=f"{EMA}diffusion_model{row.theirs.replace('.', '')}")


def _read_schedule(model, tensors, params, log):
    """Compares the file's tables with the schedule; keeps those of an unknown one."""
    schedule = dict(model.config["schedule"])
    schedule.pop("prediction_type", None)
    tables = schedule_buffers(
        make_schedule(**schedule), model.config["loss"]["v_posterior"]
    )
    if "betas" not in tensors:
        return
    betas = np.asarray(tensors["betas"])
    if params.get("unknown_betas"):
        log(
            "warning: the file's betas are of no known schedule; they are carried "
            "along, not used: give the YAML with --config if samples look wrong"
        )
    elif betas.shape != tables["betas"].shape or not np.allclose(
        betas, tables["betas"], rtol=1e-4
    ):
        raise ConversionError(
            "the YAML's noise schedule is not that of the file's betas, which go from "
            f"{betas.flat[0]:.6g} to {betas.flat[-1]:.6g}: give the YAML of this file"
        )


def _remember(model, rows, tensors, log):
    """Notes what writing the same file again takes."""
    model.origin["format"] = "compvis"
    model.origin["dtypes"] = {
        key: str(tensor.dtype)
        for key, tensor in tensors.items()
        if tensor.dtype != np.float32 and np.dtype(tensor.dtype).kind != "i"
    }
    unused = {row.theirs for row in rows if not row.ours}
    unused |= _unequal_copies(model, tensors, log)
    model.carried = {key: tensors[key] for key in unused if key in tensors}
    lost = [key for key in model.carried if "loss.perceptual_loss." in key]
    if lost:
        log(
            f"perceptual loss: {len(lost)} tensors are carried along, in a file "
            "origin.safetensors that loss.lpips_weights of a config takes"
        )
    return model


def _unequal_copies(model, tensors, log):
    """Keys of a cond stage that should be the first stage and is not the same."""
    keys = set()
    if model.origin.get("cond_is_first_stage"):
        for key, tensor in tensors.items():
            twin = key.replace(COND_STAGE, FIRST_STAGE, 1)
            same = twin in tensors and np.array_equal(tensor, tensors[twin])
            if key.startswith(COND_STAGE) and not same:
                keys.add(key)
    if keys:
        log(
            f"warning: {len(keys)} weights of cond_stage_model differ from those of "
            "first_stage_model, which is used; they are carried along"
        )
    return keys


NAMES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


def schedule_buffers(schedule, v_posterior=0.0):
    """Computes the tables of DDPM.register_schedule in float64.

    Args:
      schedule: NoiseSchedule.
      v_posterior: Blend of the posterior variance.

    Returns:
      Dict of name -> float32 [T].
    """
    betas, signal = schedule.betas, schedule.alphas_cumprod
    before = np.append(1.0, signal[:-1])
    lower = betas * (1 - before) / (1 - signal)
    variance = (1 - v_posterior) * lower + v_posterior * betas
    tables = (
        betas,
        signal,
        before,
        np.sqrt(signal),
        np.sqrt(1 - signal),
        np.log(1 - signal),
        np.sqrt(1 / signal),
        np.sqrt(1 / signal - 1),
        variance,
        np.log(np.maximum(variance, 1e-20)),
        betas * np.sqrt(before) / (1 - signal),
        (1 - before) * np.sqrt(1 - betas) / (1 - signal),
    )
    return {
        name: table.astype(np.float32)
        for name, table in zip(NAMES, tables, strict=True)
    }
