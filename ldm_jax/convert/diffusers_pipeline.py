"""A pipeline of diffusers as a whole: its folders, and the rows of all its weights."""

from ldm_jax.convert import diffusers_rows, text_rows
from ldm_jax.convert.compvis_conditions import is_embedded
from ldm_jax.convert.state_dict import prefixed
from ldm_jax.models.text_encoder import TextEncoder
from ldm_jax.models.unet import UNet
from ldm_jax.training.autoencoder import make_first_stage


def pipeline_rows(model):
    """Rows of all networks of a pipeline, their keys behind the folder's name."""
    config, origin = model.config, model.origin
    fields = {k: v for k, v in config["unet"].items() if k != "out_channels"}
    unet = diffusers_rows.unet_rows(
        UNet(out_channels=1, **fields), origin.get("linear_projection", False)
    )
    rows = []
    embedded = any(is_embedded(*item) for item in config["conditions"].items())
    for row in unet:
        if row.theirs == _CLASSES and not embedded:
            continue
        inside = "params/conditioner/" if row.theirs == _CLASSES else "params/unet/"
        rows += prefixed([row], "unet/", inside)
    if model.first_stage:
        names = folder_names(model)
        first = model.first_stage.config
        rows += first_stage_rows(first, names["first_stage"], "first_stage/")
    for key, entry in config["conditions"].items():
        if entry["kind"] in ("text", "clip_text"):
            rows += _text_rows(model, key, entry)
    return rows


_CLASSES = "class_embedding.weight"


def _text_rows(model, key, entry):
    names = ("vocab_size", "features", "num_layers", "max_length", "num_heads")
    encoder = TextEncoder(**{name: entry[name] for name in names if name in entry})
    ours = f"params/conditioner/{key}/"
    if entry["kind"] == "text":
        return prefixed(text_rows.ldm_bert_rows(encoder), "bert/", ours)
    prefix = f"text_encoder/{model.origin.get('text_prefix', '')}"
    return prefixed(text_rows.clip_rows(encoder), prefix, ours)


def folder_names(model):
    """How a pipeline calls its class and its first stage's folder."""
    index = model.origin.get("model_index", {})
    kinds = {entry["kind"] for entry in model.config["conditions"].values()}
    stable = "clip_text" in kinds
    found = [name for name in ("vae", "vqvae") if name in index]
    pipeline = "LDMTextToImagePipeline" if "text" in kinds else "LDMPipeline"
    pipeline = "StableDiffusionPipeline" if stable else pipeline
    return dict(
        pipeline=index.get("_class_name", pipeline),
        first_stage=found[0] if found else ("vae" if stable else "vqvae"),
    )


def first_stage_rows(config, theirs, ours):
    """Rows of a first stage in the folder `theirs`; our paths begin with `ours`."""
    rows = diffusers_rows.autoencoder_rows(make_first_stage(config["first_stage"]))
    return prefixed(rows, f"{theirs}/", f"{ours}params/autoencoder/")
