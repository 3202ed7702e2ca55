"""What the weights of published checkpoints do not tell, above all their heads.

One head of 512 channels and 16 of 32 have the same shapes, and
the wrong number gives wrong pictures without an error.  The cross-attention models of
December 2021 are the trap: the code that trained them gave every transformer one head,
although their configs say `num_head_channels: 32`, which later code follows.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A published U-Net by its shape, and its heads.

    Attributes:
      channels: Width of the finest level.
      channel_mult: Width of every level over `channels`.
      context_dim: Width of the context; None without transformers.
      heads: {"num_heads": n} or {"num_head_channels": n}.
      always: Whether that holds whatever the config says.
      image_size: Side of the images that it was trained on.
      guidance_scale: What its authors sample it with; 1 is off.
    """

    channels: int
    channel_mult: tuple
    context_dim: int | None
    heads: dict
    always: bool = False
    image_size: int = 256
    guidance_scale: float = 1.0


def published_heads(options):
    """Looks up the U-Net that the original's options describe.

    Args:
      options: The original's UNetModel options.

    Returns:
      Its row of PUBLISHED, or None.
    """
    shape = (
        options["model_channels"],
        tuple(options["channel_mult"]),
        options.get("context_dim"),
    )
    return PUBLISHED_BY_SHAPE.get(shape)


def usual_guidance(options):
    """The guidance scale of a published U-Net, 1 of others; options as above."""
    known = published_heads(options)
    return known.guidance_scale if known else 1.0


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
