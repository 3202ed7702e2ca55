"""What diffusers makes of our exports; needs PyTorch and diffusers."""

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel, VQModel
from diffusers.utils.torch_utils import randn_tensor

from tests.convert.exported import LABELS, PROMPT, SCALE, SIDE, STEPS, low_res


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
        pipeline = DiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        channels = pipeline.unet.config.out_channels
        noise = randn_tensor((1, channels, SIDE, SIDE), generator=_generator())
        image = _DRAW[kind](pipeline, noise)
    return np.moveaxis(noise.numpy(), 1, -1), image


def _common(**more):
    return dict(num_inference_steps=STEPS, output_type="np", **more)


def _prompted(pipeline, noise):
    more = dict(guidance_scale=SCALE, latents=noise)
    return pipeline(PROMPT, **_common(**more)).images


_DRAW = {
    "unconditional": lambda pipeline, noise: (
        pipeline(generator=_generator(), **_common()).images
    ),
    "text": _prompted,
    "stable": _prompted,
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
