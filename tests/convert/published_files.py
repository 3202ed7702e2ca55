"""Files as CompVis and diffusers write them, made of the reference cases."""

import json

import numpy as np
import yaml

from ldm_jax.weights.files import write_weights

COND_STAGES = {"class": "ClassEmbedder", "rescale": "SpatialRescaler"}
COND_STAGES["text"] = "BERTEmbedder"


def compvis_yaml(config):
    """CompVis's YAML of a `checkpoint_*` case."""
    params = dict(
        linear_start=config["linear_start"],
        linear_end=config["linear_end"],
        timesteps=1000,
        scale_by_std=config["scale_by_std"],
        unet_config=_part("diffusionmodules.openaimodel.UNetModel", config["unet"]),
        first_stage_config=_part("autoencoder.X", first_stage_params(config)),
        cond_stage_config=_part(
            f"encoders.modules.{COND_STAGES[config['cond']]}", config["cond_config"]
        ),
    )
    return {"model": _part("ddpm.LatentDiffusion", params)}


def first_stage_params(config):
    """What a YAML says of the first stage of a case."""
    params = {"embed_dim": config["embed_dim"], "ddconfig": config["ddconfig"]}
    return params | ({"n_embed": config["n_embed"]} if config.get("n_embed") else {})


def _part(target, params):
    return {"target": f"ldm.modules.{target}", "params": params}


def write_compvis(folder, case, suffix=".ckpt", model=None):
    """Writes a case as a file of weights and its YAML; returns both paths."""
    paths = folder / f"model{suffix}", folder / "model.yaml"
    write_weights(paths[0], case.state_dict)
    model = model or compvis_yaml(case.meta["config"])
    paths[1].write_text(yaml.safe_dump(model))
    return paths


def write_diffusers(folder, state_dict, config, name="diffusion_pytorch_model"):
    """Writes one network as diffusers does."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / f"{name}.safetensors", state_dict)
    (folder / "config.json").write_text(json.dumps(config))


def zeros(manifest):
    """Weights of these shapes that take no memory."""
    return {k: np.broadcast_to(np.float32(0), tuple(s)) for k, s in manifest.items()}


def assert_same(found, expected):
    """Checks keys, shapes, types and bytes of two dicts of arrays."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype, key
        assert tuple(found[key].shape) == array.shape, key
        assert np.asarray(found[key]).tobytes() == array.tobytes(), key
