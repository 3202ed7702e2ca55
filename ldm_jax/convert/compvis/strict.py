"""Finds keys of written files that CompVis's own classes lack, and those they miss.

CompVis loads with `strict=False`, which also hides wrong files; users who load with
`strict=True` see here which keys prevent it.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ldm_jax.convert.compvis.buffers import BUFFERS
from ldm_jax.convert.compvis.names import COND_STAGE, EMA, FIRST_STAGE

_LOGITS = ("transformer.to_logits.weight", "transformer.to_logits.bias")
_LAYER = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.in_proj_weight",
    "attn.in_proj_bias",
    "attn.out_proj.weight",
    "attn.out_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)
# Class of a cond stage -> its keys that no output depends on.
_UNUSED = {
    "BERTEmbedder": _LOGITS,
    "FrozenOpenCLIPEmbedder": (
        "model.text_projection",
        "model.logit_scale",
        *(f"model.transformer.resblocks.23.{name}" for name in _LAYER),
    ),
}


def strict_loading(tensors: Collection[str], yaml: Mapping[str, Any]) -> Iterator[str]:
    """Describes how a file loads into the classes that its YAML names.

    Args:
      tensors: Keys of the file.
      yaml: The YAML's `model`, as returned by `write.write`.

    Yields:
      One line.
    """
    extra, missing = list(_extra(tensors, yaml)), list(_missing(tensors, yaml))
    parts = [
        f"{what} {len(keys)} keys: {', '.join(keys[:4])}"
        + (" ..." if len(keys) > 4 else "")
        for what, keys in (("they have no", extra), ("they miss", missing))
        if keys
    ]
    if parts:
        yield (
            "CompVis's own classes take it with strict=False, which changes no image; "
            f"{'; '.join(parts)}"
        )
    else:
        yield "CompVis's own classes take it with strict=True"


def _extra(tensors, yaml):
    """Keys of the file that the classes do not have."""
    params = yaml["params"]
    whole = "unet_config" in params
    first = params.get("first_stage_config", {}) if whole else yaml
    loss = (first.get("params") or {}).get("lossconfig", {}).get("target", "")
    prefix = FIRST_STAGE if whole else ""
    for key in tensors:
        if key.startswith(f"{prefix}loss.") and loss.endswith("Identity"):
            yield key
        elif whole and key == "scale_factor" and not params.get("scale_by_std"):
            yield key
        elif whole and key == "logvar" and not params.get("learn_logvar"):
            yield key
        elif whole and key.startswith(EMA) and not params.get("use_ema"):
            yield key


def _missing(tensors, yaml):
    """Keys of the classes that the file does not have."""
    params = yaml["params"]
    if "unet_config" not in params:
        return
    names = list(BUFFERS)
    cond = params.get("cond_stage_config")
    if isinstance(cond, Mapping):
        kind = cond["target"].rpartition(".")[2]
        names += [f"{COND_STAGE}{name}" for name in _UNUSED.get(kind, ())]
    elif cond == "__is_first_stage__":
        start = len(FIRST_STAGE)
        names += [
            COND_STAGE + key[start:] for key in tensors if key.startswith(FIRST_STAGE)
        ]
    if params.get("learn_logvar"):
        names.append("logvar")
    if params.get("use_ema"):
        names += [f"{EMA}decay", f"{EMA}num_updates"]
    yield from (name for name in names if name not in tensors)
