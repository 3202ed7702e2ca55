"""Properties of published U-Nets that weights do not show, looked up by their shape.

The weights do not show the number of attention heads, and the configs of some models
have another number than they were trained with.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ldm_jax.errors import ConversionError


class Published(NamedTuple):
    """A published U-Net by its shape, and its heads.

    Attributes:
      channels: Width of the finest level.
      channel_mult: Width of every level, as a multiple of `channels`.
      context_dim: Width of the context; None without transformers.
      heads: {"num_heads": n} or {"num_head_channels": n}.
      always: Whether `heads` overrides the config.
      image_size: Side of the images that it was trained on.
      guidance_scale: The scale that its authors sample with; 1 is off.
    """

    channels: int
    channel_mult: tuple[int, ...]
    context_dim: int | None
    heads: dict[str, int]
    always: bool = False
    image_size: int = 256
    guidance_scale: float = 1.0


def find_published(options: Mapping[str, Any]) -> Published | None:
    """Looks up the published U-Net with these options.

    Args:
      options: UNetModel options.

    Returns:
      Its row of PUBLISHED, or None.
    """
    shape = (
        options["model_channels"],
        tuple(options["channel_mult"]),
        options.get("context_dim"),
    )
    return PUBLISHED_BY_SHAPE.get(shape)


def usual_guidance(
    options: Mapping[str, Any], conditions: Collection[str] = ()
) -> float | tuple[tuple[str, float], ...]:
    """Looks up the default guidance scale of a model.

    Args:
      options: UNetModel options.
      conditions: Batch keys of its conditions.

    Returns:
      The scale that the authors of a published U-Net use; 1, which is off, for others.
      Pairs of batch key and scale for InstructPix2Pix, which guides by the image first,
      and for a caption combined with a mask, depth or a small image, which are kept
      when the caption is dropped.
    """
    if {"source_image", "caption"} <= set(conditions):
        return (("source_image", 1.5), ("caption", 7.5))
    known = find_published(options)
    scale = known.guidance_scale if known else 1.0
    alone = len(conditions) == 1 or "caption" not in conditions or scale == 1
    return scale if alone else (("caption", scale),)


def with_heads(
    unet: Mapping[str, Any],
    num_heads: int | None = None,
    head_channels: int | None = None,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Decides the number of heads: as requested, as published, or as configured.

    Args:
      unet: UNetModel options.
      num_heads: Number of heads everywhere, if requested.
      head_channels: Channels of a head everywhere, if requested.
      log: Called with a line if the published heads override the options.

    Returns:
      The options with "num_heads" or "num_head_channels".

    Raises:
      ConversionError: If the number of heads is unknown.
    """
    given = {
        key: unet[key] for key in ("num_heads", "num_head_channels") if key in unet
    }
    given = {key: value for key, value in given.items() if value not in (None, -1)}
    known = find_published(unet)
    if num_heads or head_channels:
        chosen = {"num_heads": num_heads} if num_heads else {}
        chosen |= {"num_head_channels": head_channels} if head_channels else {}
    elif known and (known.always or not given):
        chosen = known.heads
        if given and given != chosen:
            log(
                f"heads: {_words(chosen)}, as the published model of this shape was "
                f"trained, not {_words(given)} as its config says; --num_heads and "
                "--head_channels override this"
            )
    elif given:
        return dict(unet)
    else:
        raise ConversionError(
            "the weights do not say the number of attention heads: give the YAML with "
            "--config, or --num_heads or --head_channels"
        )
    rest = {
        k: v for k, v in unet.items() if k not in ("num_heads", "num_head_channels")
    }
    return rest | chosen


def _words(heads):
    names = {"num_heads": "number", "num_head_channels": "channels of each"}
    return ", ".join(f"{names[key]} {value}" for key, value in heads.items())


PUBLISHED = {
    "celeba256, ffhq256, lsun_beds256": Published(
        224, (1, 2, 3, 4), None, {"num_head_channels": 32}
    ),
    "lsun_churches256": Published(192, (1, 2, 2, 4, 4), None, {"num_heads": 8}),
    "bsr_sr": Published(160, (1, 2, 2, 4), None, {"num_head_channels": 32}),
    "inpainting_big": Published(256, (1, 2, 3, 4), None, {"num_heads": 8}),
    "semantic_synthesis": Published(128, (1, 4, 8), None, {"num_heads": 8}),
    "cin256": Published(256, (1, 2, 4), 512, {"num_heads": 1}, always=True),
    "text2img256": Published(192, (1, 2, 3, 5), 640, {"num_heads": 1}, always=True),
    "layout2img": Published(128, (1, 2, 3, 4), 512, {"num_heads": 1}, always=True),
    "cin256-v2": Published(
        192, (1, 2, 3, 5), 512, {"num_heads": 1}, guidance_scale=3.0
    ),
    "txt2img-1p4B": Published(
        320, (1, 2, 4, 4), 1280, {"num_heads": 8}, guidance_scale=5.0
    ),
    "RDM": Published(
        448,
        (1, 2, 3, 4),
        768,
        {"num_head_channels": 32},
        image_size=768,
        guidance_scale=5.0,
    ),
    "Stable Diffusion 1": Published(
        320,
        (1, 2, 4, 4),
        768,
        {"num_heads": 8},
        image_size=512,
        guidance_scale=7.5,
    ),
    "Stable Diffusion 2": Published(
        320,
        (1, 2, 4, 4),
        1024,
        {"num_head_channels": 64},
        image_size=512,
        guidance_scale=9.0,
    ),
}

PUBLISHED_BY_SHAPE = {row[:3]: row for row in PUBLISHED.values()}
