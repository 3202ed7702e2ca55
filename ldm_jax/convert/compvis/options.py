"""Networks of CompVis/latent-diffusion: their configs and weights, read as ours.

Here live the original's names and its rules for the number of attention heads; our
modules are told heads explicitly.
"""

import jax
import jax.numpy as jnp

from ldm_jax.convert.compvis.names import (
    autoencoder_rows,
    class_embedder_rows,
    classifier_rows,
    discriminator_rows,
    unet_rows,
)
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.classifier import Classifier
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.unet import UNet
from ldm_jax.weights.state_dict import to_params

# Options of the original's UNetModel; those it leaves out have these values.
UNET_DEFAULTS = dict(
    image_size=None,
    in_channels=None,
    model_channels=None,
    out_channels=None,
    num_res_blocks=None,
    attention_resolutions=None,
    dropout=0,
    channel_mult=(1, 2, 4, 8),
    conv_resample=True,
    dims=2,
    num_classes=None,
    use_checkpoint=False,
    use_fp16=False,
    num_heads=-1,
    num_head_channels=-1,
    num_heads_upsample=-1,
    use_scale_shift_norm=False,
    resblock_updown=False,
    use_new_attention_order=False,
    use_spatial_transformer=False,
    transformer_depth=1,
    context_dim=None,
    n_embed=None,
    legacy=True,
    use_linear_in_transformer=False,
)
AUTOENCODER_DEFAULTS = dict(
    double_z=True,
    z_channels=None,
    resolution=None,
    in_channels=None,
    out_ch=None,
    ch=None,
    ch_mult=(1, 2, 4, 8),
    num_res_blocks=None,
    attn_resolutions=None,
    dropout=0.0,
    resamp_with_conv=True,
    attn_type="vanilla",
    use_linear_attn=False,
    tanh_out=False,
    give_pre_end=False,
)


def unet_kwargs(original_config):
    """Reads the original's UNetModel options.

    Args:
      original_config: Dict of the options, as under `unet_config.params`.

    Returns:
      Dict of arguments for UNet.

    Raises:
      ValueError: If an option is unknown, or asks for what UNet does not have.
    """
    config = _options(original_config, UNET_DEFAULTS, "unet")
    _refuse(config["dims"] != 2, "dims", config["dims"], "only 2 is supported")
    _refuse(config["n_embed"] is not None, "n_embed", config["n_embed"], "leave it out")
    transformer = config["use_spatial_transformer"]
    if transformer != (config["context_dim"] is not None):
        raise ValueError("set use_spatial_transformer and context_dim both or neither")
    mult = tuple(config["channel_mult"])
    widths = [config["model_channels"] * m for m in mult]
    heads = [_heads(config, width) for width in widths]
    kwargs = dict(
        out_channels=config["out_channels"],
        channels=config["model_channels"],
        channel_mult=mult,
        num_res_blocks=_scalar_or_tuple(config["num_res_blocks"]),
        attention_factors=tuple(config["attention_resolutions"]),
        transformer_depth=(
            _scalar_or_tuple(config["transformer_depth"]) if transformer else 0
        ),
        scale_shift_norm=config["use_scale_shift_norm"],
        resblock_updown=config["resblock_updown"],
        conv_resample=config["conv_resample"],
        dropout=float(config["dropout"]),
        **_shortest(heads, widths),
    )
    up = [_heads(config, width, up=True) for width in widths]
    if not transformer and up != heads:
        kwargs["up_num_heads"] = tuple(n for n, _ in up)
    return kwargs


def _heads(config, width, up=False):
    """(heads, channels of one head) at a width, by the rules of the original's head."""
    num_heads, head_channels = config["num_heads"], config["num_head_channels"]
    if num_heads == -1 and head_channels == -1:
        raise ValueError("set num_heads or num_head_channels")
    if not config["use_spatial_transformer"]:
        if head_channels != -1:
            num_heads = width // head_channels
        elif up and config["legacy"] and config["num_heads_upsample"] != -1:
            num_heads = config["num_heads_upsample"]
        return num_heads, width // num_heads
    if head_channels != -1:
        num_heads = width // head_channels
        if not config["legacy"]:
            return num_heads, head_channels
    return num_heads, width // num_heads


def _shortest(heads, widths):
    """The shortest arguments that say these (heads, channels of one head) per level."""
    counts, sizes = zip(*heads, strict=True)
    exact = all(n * d == w for (n, d), w in zip(heads, widths, strict=True))
    if exact and len(set(counts)) == 1:
        return dict(num_heads=counts[0])
    if exact and len(set(sizes)) == 1:
        return dict(head_channels=sizes[0])
    return dict(num_heads=counts) | ({} if exact else dict(head_channels=sizes))


def autoencoder_kwargs(ddconfig, embed_dim):
    """Reads the options of the original's encoder and decoder.

    Args:
      ddconfig: Dict of the options.
      embed_dim: Channels of the latents.

    Returns:
      Dict of arguments for an Autoencoder.

    Raises:
      ValueError: If an option is unknown, or asks for what Autoencoder does not have.
    """
    config = _options(ddconfig, AUTOENCODER_DEFAULTS, "ddconfig")
    kind = "linear" if config["use_linear_attn"] else config["attn_type"]
    _refuse(kind not in ("vanilla", "none"), "attn_type", kind, "use vanilla or none")
    pre_end = config["give_pre_end"]
    _refuse(pre_end, "give_pre_end", pre_end, "only False is supported")
    sizes = [config["resolution"] // 2**i for i in range(len(config["ch_mult"]))]
    factors = [2**i for i, s in enumerate(sizes) if s in config["attn_resolutions"]]
    return dict(
        channels=config["ch"],
        channel_mult=tuple(config["ch_mult"]),
        num_res_blocks=config["num_res_blocks"],
        z_channels=config["z_channels"],
        embed_dim=embed_dim,
        attention_factors=tuple(factors) if kind == "vanilla" else (),
        mid_attention=kind == "vanilla",
        image_channels=config["out_ch"],
        conv_resample=config["resamp_with_conv"],
        tanh_output=config["tanh_out"],
        dropout=float(config["dropout"]),
    )


def convert_unet(state_dict, original_config):
    """Reads the weights of a UNetModel.

    Args:
      state_dict: Dict of its keys, without prefix -> arrays.
      original_config: Its options.

    Returns:
      (params, label): the parameters of UNet, and those of the ClassLabel that fills
      its `vector` ({"embed": {"embedding": [num_classes, 4 * channels]}}), {} where
      the original has none.

    Raises:
      ValueError: If keys, shapes or options do not fit.
    """
    config = _options(original_config, UNET_DEFAULTS, "unet")
    target = {"backbone": unet_shapes(config)}
    if config["num_classes"] is not None:
        width = 4 * config["model_channels"]
        target["label"] = _embedding_shapes(config["num_classes"], width)
    rows = unet_rows(
        UNet(**unet_kwargs(config)),
        head_major=not config["use_new_attention_order"],
        linear_projection=config["use_linear_in_transformer"],
    )
    params = to_params(rows, state_dict, target)
    return params["backbone"], params.get("label", {})


def unet_shapes(original_config):
    """Returns the shapes of the parameters of the UNet with the original's options."""
    config = _options(original_config, UNET_DEFAULTS, "unet")
    size = 2 ** (len(config["channel_mult"]) - 1)
    context = config["context_dim"]
    arguments = [
        _float32(1, size, size, config["in_channels"]),
        _float32(1),
        context and _float32(1, 1, context),
    ]
    unet = UNet(**unet_kwargs(config))
    return jax.eval_shape(unet.init, jax.random.key(0), *arguments)["params"]


def classifier_kwargs(original_config):
    """Reads the original's EncoderUNetModel options.

    Args:
      original_config: Dict of the options.

    Returns:
      Dict of arguments for Classifier.

    Raises:
      ValueError: If an option is unknown, or asks for what Classifier does not have.
    """
    config = dict(num_heads=1, pool="adaptive") | dict(original_config)
    pool = config.pop("pool")
    kwargs = unet_kwargs(config) | dict(pool=pool)
    # There is no way up.
    kwargs.pop("up_num_heads", None)
    return kwargs


def convert_classifier(state_dict, original_config):
    """Reads the weights of an EncoderUNetModel.

    Args:
      state_dict: Dict of its keys, without prefix -> arrays.
      original_config: Its options.

    Returns:
      The parameters of Classifier.

    Raises:
      ValueError: If keys, shapes or options do not fit.
    """
    model = Classifier(**classifier_kwargs(original_config))
    size = original_config["image_size"]
    latents = _float32(1, size, size, original_config["in_channels"])
    target = jax.eval_shape(model.init, jax.random.key(0), latents, _float32(1))
    rows = classifier_rows(
        model, head_major=not original_config.get("use_new_attention_order", False)
    )
    return to_params(rows, state_dict, {"backbone": target["params"]})["backbone"]


def convert_autoencoder(state_dict, ddconfig, embed_dim):
    """Reads the weights of an AutoencoderKL.

    Args:
      state_dict: Dict of its keys, without prefix and loss networks -> arrays.
      ddconfig: Options of encoder and decoder.
      embed_dim: Channels of the latents.

    Returns:
      The parameters of KLAutoencoder.

    Raises:
      ValueError: If keys, shapes or options do not fit.
    """
    double_z = ddconfig.get("double_z", True)
    _refuse(not double_z, "double_z", double_z, "KL needs mean and variance")
    model = KLAutoencoder(**autoencoder_kwargs(ddconfig, embed_dim))
    target = autoencoder_shapes(model, ddconfig["in_channels"])
    return to_params(autoencoder_rows(model), state_dict, target)


def autoencoder_shapes(model, in_channels=3):
    """Returns the shapes of an Autoencoder's parameters."""
    size = model.downsampling_factor
    images = _float32(1, size, size, in_channels)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def convert_class_embedder(state_dict):
    """Reads the weights of a ClassEmbedder.

    Args:
      state_dict: {"embedding.weight": [num_classes, features]}.

    Returns:
      The parameters of ClassLabel, {"embed": {"embedding": ...}}.
    """
    target = _embedding_shapes(*state_dict["embedding.weight"].shape)
    return to_params(class_embedder_rows(), state_dict, target)


def convert_discriminator(state_dict, input_nc=3, ndf=64, n_layers=3):
    """Reads the weights of an NLayerDiscriminator with batch norm.

    Args:
      state_dict: Dict of its keys, without prefix -> arrays.
      input_nc: Channels of the images.
      ndf: Width of the first layer.
      n_layers: Convolutions of stride 2.

    Returns:
      The variables {"params", "batch_stats"} of PatchDiscriminator.

    Raises:
      ValueError: If keys or shapes do not fit.
    """
    model = PatchDiscriminator(channels=ndf, num_layers=n_layers)
    images = _float32(1, 64, 64, input_nc)
    target = jax.eval_shape(model.init, jax.random.key(0), images)
    return to_params(discriminator_rows(n_layers), state_dict, target)


def _float32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _embedding_shapes(rows, features):
    return {"embed": {"embedding": _float32(rows, features)}}


def _options(given, defaults, name):
    """Fills in the defaults; an option that they do not know is an error."""
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(f"{name} options that are not supported: {', '.join(unknown)}")
    return defaults | dict(given)


def _refuse(condition, option, value, fix):
    if condition:
        raise ValueError(f"{option}={value!r} is not supported: {fix}")


def _scalar_or_tuple(value):
    return value if isinstance(value, int) else tuple(value)
