"""CompVis's options of a U-Net and of an autoencoder, as arguments of our modules.

This module has the names of these options and the rules for the number of attention
heads, which CompVis derives from several options and our modules take directly.
"""

from collections.abc import Mapping
from typing import Any


def unet_kwargs(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the options of a UNetModel.

    Args:
      config: The options, as under `unet_config.params` in a YAML.

    Returns:
      Dict of arguments for UNet.

    Raises:
      ValueError: If an option is unknown, or not supported by UNet.
    """
    config = _options(config, UNET_DEFAULTS, "unet")
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
    """(heads, channels of one head) at a width, by CompVis's rules."""
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
    """The shortest arguments for these (heads, channels of one head) of the levels."""
    counts, sizes = zip(*heads, strict=True)
    exact = all(n * d == w for (n, d), w in zip(heads, widths, strict=True))
    if exact and len(set(counts)) == 1:
        return dict(num_heads=counts[0])
    if exact and len(set(sizes)) == 1:
        return dict(head_channels=sizes[0])
    return dict(num_heads=counts) | ({} if exact else dict(head_channels=sizes))


def autoencoder_kwargs(
    ddconfig: Mapping[str, Any], embed_dim: int | None
) -> dict[str, Any]:
    """Reads the options of an Encoder and a Decoder.

    Args:
      ddconfig: The options, as under `ddconfig` in a YAML.
      embed_dim: Channels of the latents; None without quant convolutions.

    Returns:
      Dict of arguments for an Autoencoder.

    Raises:
      ValueError: If an option is unknown, or not supported by Autoencoder.
    """
    config = _options(ddconfig, AUTOENCODER_DEFAULTS, "ddconfig")
    kind = "linear" if config["use_linear_attn"] else config["attn_type"]
    # The same attention, computed by the xformers library.
    kind = "vanilla" if kind == "vanilla-xformers" else kind
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
        embed_dim=config["z_channels"] if embed_dim is None else embed_dim,
        quant_conv=embed_dim is not None,
        attention_factors=tuple(factors) if kind == "vanilla" else (),
        mid_attention=kind == "vanilla",
        image_channels=config["out_ch"],
        conv_resample=config["resamp_with_conv"],
        tanh_output=config["tanh_out"],
        dropout=float(config["dropout"]),
    )


def _options(given, defaults, name):
    """Fills in the defaults; other options raise an error."""
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(f"{name} options that are not supported: {', '.join(unknown)}")
    return defaults | dict(given)


def _refuse(condition, option, value, fix):
    """Raises ValueError, with what to change, if a condition is true."""
    if condition:
        raise ValueError(f"{option}={value!r} is not supported: {fix}")


def _scalar_or_tuple(value):
    return value if isinstance(value, int) else tuple(value)


# Options of CompVis's UNetModel, and of its Encoder and Decoder (`ddconfig`), with the
# defaults of those that a YAML leaves out. Any other option is an error.
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

# CompVis's defaults for those options of LatentDiffusion that we read.
DIFFUSION_DEFAULTS = dict(
    timesteps=1000,
    beta_schedule="linear",
    linear_start=1e-4,
    linear_end=2e-2,
    cosine_s=8e-3,
    parameterization="eps",
    loss_type="l2",
    l_simple_weight=1.0,
    original_elbo_weight=0.0,
    v_posterior=0.0,
    logvar_init=0.0,
    learn_logvar=False,
    scale_factor=1.0,
    scale_by_std=False,
    use_ema=True,
)

# CompVis's names of noise schedules (its "linear" is linear in sqrt(beta)) and of
# prediction types -> ours.
SCHEDULE_NAMES = {
    "linear": "scaled_linear",
    "sqrt_linear": "linear",
    "cosine": "cosine",
    "sqrt": "sqrt",
}
PREDICTION_NAMES = {"eps": "noise", "x0": "x0", "v": "v"}
