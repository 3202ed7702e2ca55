"""Single networks of CompVis, as the reference cases have them, read as ours."""

import jax
import jax.numpy as jnp

from ldm_jax.convert.compvis import names
from ldm_jax.convert.compvis.options import autoencoder_kwargs, unet_kwargs
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.classifier import Classifier
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.unet import UNet
from ldm_jax.weights.state_dict import (
    DENSE,
    POINTWISE_1D,
    POINTWISE_2D,
    Row,
    layer_rows,
    norm_rows,
    to_params,
)


def unet_shapes(config):
    """Returns the shapes of the parameters of the UNet with a UNetModel's options."""
    size = 2 ** (len(config["channel_mult"]) - 1)
    context = config.get("context_dim")
    unet = UNet(**unet_kwargs(config))
    return _shapes(
        unet,
        _float32(1, size, size, config["in_channels"]),
        _float32(1),
        context and _float32(1, 1, context),
    )["params"]


def convert_unet(state_dict, config):
    """Reads the weights of a UNetModel.

    Args:
      state_dict: Dict of its keys, without prefix -> arrays.
      config: Its options.

    Returns:
      (params, label): the parameters of UNet, and those of the ClassLabel that fills
      its `vector` ({"embed": {"embedding": [num_classes, 4 * channels]}}), {} where
      the model has no classes.
    """
    target = {"backbone": unet_shapes(config)}
    if config.get("num_classes") is not None:
        width = 4 * config["model_channels"]
        target["label"] = _embedding_shapes(config["num_classes"], width)
    rows = names.unet_rows(
        UNet(**unet_kwargs(config)),
        head_major=not config.get("use_new_attention_order", False),
        linear_projection=config.get("use_linear_in_transformer", False),
    )
    params = to_params(rows, state_dict, target)
    return params["backbone"], params.get("label", {})


def autoencoder_shapes(model, in_channels=3):
    """Returns the shapes of an Autoencoder's parameters."""
    size = model.downsampling_factor
    return _shapes(model, _float32(1, size, size, in_channels))["params"]


def convert_autoencoder(state_dict, ddconfig, embed_dim):
    """Reads the weights of an AutoencoderKL, without prefix and loss networks."""
    model = KLAutoencoder(**autoencoder_kwargs(ddconfig, embed_dim))
    target = autoencoder_shapes(model, ddconfig["in_channels"])
    return to_params(names.autoencoder_rows(model), state_dict, target)


def convert_class_embedder(state_dict):
    """Reads the weights of a ClassEmbedder: {"embed": {"embedding": ...}}."""
    target = _embedding_shapes(*state_dict["embedding.weight"].shape)
    return to_params(names.class_embedder_rows(), state_dict, target)


def convert_discriminator(state_dict, input_nc=3, ndf=64, n_layers=3):
    """Reads the {"params", "batch_stats"} of an NLayerDiscriminator with batch norm."""
    model = PatchDiscriminator(channels=ndf, num_layers=n_layers)
    target = _shapes(model, _float32(1, 64, 64, input_nc))
    return to_params(names.discriminator_rows(n_layers), state_dict, target)


def classifier_kwargs(config):
    """Reads an EncoderUNetModel's options as arguments for Classifier."""
    config = dict(num_heads=1, pool="adaptive") | dict(config)
    pool = config.pop("pool")
    kwargs = unet_kwargs(config) | dict(pool=pool)
    # There is no way up.
    kwargs.pop("up_num_heads", None)
    return kwargs


def classifier_rows(classifier, head_major=True):
    """Maps an EncoderUNetModel with any pooling; ours lies under "backbone/".

    Args:
      classifier: Classifier module.
      head_major: See `names.unet_rows`; the pooling itself is always the other way.

    Returns:
      List of Rows.
    """
    rows = names.down_rows(classifier, names.AttentionLayout(head_major, None))
    if classifier.pool.startswith("spatial"):
        rows += layer_rows("out.0", "backbone/pool_in", DENSE)
        rows += norm_rows("out.1", "backbone/norm_out")
        last = {"spatial": "out.2", "spatial_v2": "out.3"}[classifier.pool]
        return rows + layer_rows(last, "backbone/pool_out", DENSE)
    rows += norm_rows("out.0", "backbone/norm_out")
    rows += layer_rows("out.3", "backbone/pool_out", POINTWISE_2D)
    pool = "backbone/pool/attention"
    rows += [Row("out.2.positional_embedding", ("backbone/pool/position",), DENSE)]
    num_heads, _ = classifier.heads_at(len(classifier.channel_mult) - 1)
    rows += names.qkv_rows("out.2.qkv_proj", pool, num_heads, head_major=False)
    return rows + layer_rows("out.2.c_proj", f"{pool}/out", POINTWISE_1D)


def convert_classifier(state_dict, config):
    """Reads the weights of an EncoderUNetModel into the parameters of Classifier."""
    model = Classifier(**classifier_kwargs(config))
    size = config["image_size"]
    latents = _float32(1, size, size, config["in_channels"])
    rows = classifier_rows(
        model, head_major=not config.get("use_new_attention_order", False)
    )
    target = {"backbone": _shapes(model, latents, _float32(1))["params"]}
    return to_params(rows, state_dict, target)["backbone"]


def _float32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _shapes(model, *arguments):
    return jax.eval_shape(model.init, jax.random.key(0), *arguments)


def _embedding_shapes(rows, features):
    return {"embed": {"embedding": _float32(rows, features)}}
