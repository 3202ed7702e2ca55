"""Maps the keys of a whole CompVis checkpoint to our parameters, for all its networks.

Every key of the file has a row with its paths in our parameters. Keys that have none
there (the schedule's tables, the networks of the perceptual loss, counters) have a row
too, and are kept to be written back. Reading and writing use the same rows.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ldm_jax.build import make_first_stage
from ldm_jax.convert.compvis import names as compvis_names
from ldm_jax.convert.compvis.buffers import BUFFERS
from ldm_jax.convert.compvis.conditions import condition_rows, is_embedded
from ldm_jax.convert.compvis.names import COND_STAGE, COUNTERS, EMA, FIRST_STAGE, UNET
from ldm_jax.convert.model import Model, first_stage_row, make_unet
from ldm_jax.weights.state_dict import SAME, UNUSED, Row, prefixed


def first_stage_rows(
    config: Mapping[str, Any], tensors: Collection[str], theirs: str, ours: str
) -> list[Row]:
    """Maps a first stage, its discriminator and the networks of its loss.

    Args:
      config: Its config.
      tensors: Keys of the file; () for writing one.
      theirs: Prefix of the file's keys.
      ours: Prefix of our paths.

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
    rows += [Row(key, (), UNUSED) for key in tensors if key.startswith(lost)]
    return rows + _first_stage_average_rows(section, tensors, theirs, ours)


def _first_stage_average_rows(section, tensors, theirs, ours):
    """Maps the moving average of a first stage, whose keys have no dots.

    A second stage is trained with the weights themselves, so averages of its first
    stage in its file are only kept.
    """
    start = f"{theirs}{EMA}"
    others = [Row(key, (), UNUSED) for key in tensors if key.startswith(start)]
    if ours:
        return others
    make_rows = first_stage_row(section, compvis_names.FIRST_STAGE_ROWS, "CompVis")[1]
    rows = make_rows(make_first_stage(section))
    rows = [
        row._replace(theirs=start + row.theirs.replace(".", ""))
        for row in prefixed(rows, "", "ema_params/autoencoder/")
    ]
    known = {row.theirs for row in rows}
    # The averages of the loss's networks, and the counters.
    return rows + [row for row in others if row.theirs not in known]


def diffusion_rows(model: Model, tensors: Collection[str] = ()) -> list[Row]:
    """Maps a whole latent diffusion model.

    Args:
      model: Model of a second stage; its weights are not used.
      tensors: Keys of the file; () for writing one.

    Returns:
      List of Rows; our paths are "params/...", "ema_params/..." and "first_stage/...".
    """
    config, origin = model.config, model.origin
    unet = compvis_names.unet_rows(
        make_unet(config["backbone"]),
        head_major=origin.get("head_major", True),
        linear_projection=origin.get("linear_projection", False),
    )
    if not any(map(is_embedded, config["conditions"].values())):
        unet = [row for row in unet if not row.theirs.startswith("label_emb.")]
    rows = [_inside(row, UNET, "params/") for row in unet]
    rows += [_averaged(row) for row in unet]
    conditions = condition_rows(config["conditions"])
    rows += prefixed(conditions, COND_STAGE, "params/conditioner/")
    rows.append(Row("logvar", ("params/logvar",), SAME))
    if model.first_stage:
        first = model.first_stage.config
        # If there are two copies, the one read last is used.
        if origin.get("cond_is_first_stage"):
            rows += first_stage_rows(first, tensors, COND_STAGE, "first_stage/")
        rows += first_stage_rows(first, tensors, FIRST_STAGE, "first_stage/")
    names = (*BUFFERS, "scale_factor", *COUNTERS)
    return rows + [Row(name, (), UNUSED) for name in names]


def _inside(row, theirs, ours):
    """Adds the prefixes of a file and of a training state to a row of the U-Net."""
    paths = tuple(
        ours + ("" if path.startswith("backbone/") else "conditioner/") + path
        for path in row.ours
    )
    return Row(theirs + row.theirs, paths, row.transform)


def _averaged(row):
    """The row of the moving average, whose keys have no dots."""
    row = _inside(row, "", "ema_params/")
    return row._replace(theirs=f"{EMA}diffusion_model{row.theirs.replace('.', '')}")
