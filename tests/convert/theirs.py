"""What diffusers makes of our exports; needs PyTorch and diffusers."""

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel, VQModel
from diffusers.utils.torch_utils import randn_tensor

from tests.convert.exported import (
    IMAGE_SCALE,
    LABELS,
    PROMPT,
    SCALE,
    SIDE,
    STEPS,
    STRENGTH,
    example,
    low_res,
)


def _generator():
    return torch.Generator().manual_seed(0)


def draw(folder, kind):
    """Opens an export and draws from it.

    Args:
      folder: Folder of a pipeline that we wrote.
      kind: Row of `exported.KINDS`.

    Returns:
      (noise [1, h, w, c], image [1, H, W, 3] in [0, 1]).
    """
    if kind == "class":
        noise, image = _class(folder)
    else:
        # What guesses depth is no part of a model.
        absent = dict.fromkeys(("depth_estimator", "feature_extractor"))
        more = absent if kind == "depth" else {}
        pipeline = DiffusionPipeline.from_pretrained(folder, **more)
        pipeline.set_progress_bar_config(disable=True)
        channels = pipeline.unet.config.out_channels
        shape, generator = (1, channels, SIDE, SIDE), _generator()
        if kind == "depth":
            # The first noise is that of the posterior, which is hardly any.
            randn_tensor(shape, generator=generator)
        noise = randn_tensor(shape, generator=generator)
        image = _DRAW[kind](pipeline, noise)
    return np.moveaxis(noise.numpy(), 1, -1), image


def _common(**more):
    return dict(num_inference_steps=STEPS, output_type="np", **more)


def _prompted(pipeline, noise):
    more = dict(guidance_scale=SCALE, latents=noise)
    return pipeline(PROMPT, **_common(**more)).images


def _image():
    return torch.tensor(np.moveaxis(example()["image"], -1, 0)[None] / 255).float()


def _inpainting(pipeline, noise):
    mask = torch.tensor(example()["mask"][None, None]).float()
    more = dict(guidance_scale=SCALE, latents=noise, image=_image(), mask_image=mask)
    return pipeline(PROMPT, **_common(**more)).images


def _depth(pipeline, noise):
    del noise
    depth = torch.tensor(np.moveaxis(example()["depth"], -1, 0))
    more = dict(guidance_scale=SCALE, strength=STRENGTH, depth_map=depth)
    more |= dict(generator=_generator(), image=_image())
    return pipeline(PROMPT, **_common(**more)).images


def _edit(pipeline, noise):
    more = dict(guidance_scale=SCALE, image_guidance_scale=IMAGE_SCALE, latents=noise)
    return pipeline(PROMPT, image=_image(), **_common(**more)).images


_DRAW = {
    "unconditional": lambda pipeline, noise: (
        pipeline(generator=_generator(), **_common()).images
    ),
    "text": _prompted,
    "stable": _prompted,
    "inpainting": _inpainting,
    "depth": _depth,
    "edit": _edit,
    "super_resolution": lambda pipeline, noise: (
        pipeline(torch.tensor(low_res()), generator=_generator(), **_common()).images
    ),
}


@torch.no_grad()
def _class(folder):
    """Its parts one by one, as no pipeline of diffusers takes labels."""
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
    vqvae = VQModel.from_pretrained(folder, subfolder="vqvae")
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    shape = (1, unet.config.out_channels, SIDE, SIDE)
    noise = latents = randn_tensor(shape, generator=_generator())
    scheduler.set_timesteps(STEPS)
    for timestep in scheduler.timesteps:
        labels = torch.tensor(LABELS[:1])
        output = unet(latents, timestep, class_labels=labels).sample
        latents = scheduler.step(output, timestep, latents).prev_sample
    image = vqvae.decode(latents / vqvae.config.scaling_factor).sample
    image = (image / 2 + 0.5).clamp(0, 1)
    return noise, image.permute(0, 2, 3, 1).numpy()
