"""PyTorch's side of a part: diffusers' modules of the same shape, tuned as usual.

Autocast to bfloat16, channels last, fused optimisers, the EMA in one fused call, with
`torch.compile` or eager. The losses are those of our side.
"""

import json
import pathlib
import sys
import time

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from torch.nn import functional as F

from benchmarks.accelerators.parts import GUIDANCE_SCALE, NUM_STEPS
from benchmarks.accelerators.timing import Turn, measure

CLASSES = {
    "UNet2DConditionModel": UNet2DConditionModel,
    "UNet2DModel": UNet2DModel,
    "AutoencoderKL": AutoencoderKL,
    "VQModel": VQModel,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Type of frozen networks and their inputs; CPUs are slow in shorter types.
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


def make(config):
    """Makes a module of diffusers, channels last, on the device."""
    config = {key: value for key, value in config.items() if value is not None}
    module = CLASSES[config["_class_name"]].from_config(config)
    return module.to(DEVICE, memory_format=torch.channels_last)


def images_of(shape, dtype=torch.float32):
    """Standard normal numbers [B, C, H, W], channels last."""
    batch, height, width, channels = shape
    drawn = torch.randn(batch, channels, height, width, device=DEVICE, dtype=dtype)
    return drawn.to(memory_format=torch.channels_last)


def autocast():
    """Autocast to bfloat16, on a GPU."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")


class Average:
    """An exponential moving average of a module's parameters."""

    def __init__(self, module, decay=0.9999):
        self.params = list(module.parameters())
        self.means = [p.detach().clone() for p in self.params]
        self.decay = decay

    def update(self):
        """Updates the average with the current parameters."""
        with torch.no_grad():
            torch._foreach_lerp_(self.means, self.params, 1 - self.decay)


class Denoiser(torch.nn.Module):
    """A U-Net called as a function of (latents, timesteps, context)."""

    def __init__(self, unet, width):
        super().__init__()
        self.unet = unet
        # A class condition is embedded as one token; text states are passed unchanged.
        self.classes = torch.nn.Embedding(1001, width) if width else None

    def forward(self, latents, timesteps, condition):
        """Predicts the noise."""
        if self.classes is not None:
            condition = self.classes(condition)[:, None]
        rest = () if condition is None else (condition,)
        return self.unet(latents, timesteps, *rest, return_dict=False)[0]


def denoiser(spec, compiled):
    """The U-Net of a part, its forward function, latents and condition."""
    module = Denoiser(make(spec["unet"]), spec["class_width"]).to(DEVICE)
    latents = images_of(spec["latents"])
    batch = latents.shape[0]
    if spec["class_width"]:
        condition = torch.randint(0, 1000, (batch,), device=DEVICE)
    elif spec["tokens"]:
        condition = torch.randn(batch, *spec["tokens"], device=DEVICE)
    else:
        condition = None
    return module, torch.compile(module) if compiled else module, latents, condition


def train_denoiser(spec, compiled):
    """Makes the training step on latents, a function without arguments."""
    module, forward, latents, condition = denoiser(spec, compiled)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    average = Average(module)
    signal = torch.linspace(0.99, 0.01, 1000, device=DEVICE).sqrt()
    encoder = None
    if spec["images"]:
        first = make(spec["first_stage"]).requires_grad_(False).to(DTYPE)
        encoder = torch.compile(first.encode) if compiled else first.encode
        images = images_of(spec["images"], DTYPE)

    def call():
        start = latents
        if encoder is not None:
            with torch.no_grad():
                found = encoder(images)
            found = getattr(found, "latents", None)
            start = latents if found is None else found.float()
        timesteps = torch.randint(0, 1000, (start.shape[0],), device=DEVICE)
        noise = torch.randn_like(start)
        scale = signal[timesteps].view(-1, 1, 1, 1)
        noisy = scale * start + (1 - scale**2).sqrt() * noise
        with autocast():
            predicted = forward(noisy, timesteps, condition)
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()

    return call


def vgg():
    """VGG-16's convolutions with random weights, in five parts."""
    parts, channels = torch.nn.ModuleList(), 3
    for index, (width, depth) in enumerate(
        [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
    ):
        layers = [torch.nn.MaxPool2d(2)] if index else []
        for _ in range(depth):
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1)]
            layers += [torch.nn.ReLU()]
            channels = width
        parts.append(torch.nn.Sequential(*layers))
    parts = parts.requires_grad_(False)
    return parts.to(DEVICE, memory_format=torch.channels_last)


def perceptual(network, one, other):
    """LPIPS without its linear layers: distances of normalised features."""
    total = 0.0
    for part in network:
        one, other = part(one), part(other)
        normed = [F.normalize(x.float(), dim=1, eps=1e-10) for x in (one, other)]
        total = total + (normed[0] - normed[1]).square().sum(1).mean((1, 2))
    return total


def patch_discriminator(channels, layers):
    """PatchGAN's discriminator with batch norms."""
    made = [torch.nn.Conv2d(3, channels, 4, 2, 1), torch.nn.LeakyReLU(0.2)]
    width = channels
    for index in range(1, layers + 1):
        wider = channels * min(2**index, 8)
        stride = 2 if index < layers else 1
        made += [torch.nn.Conv2d(width, wider, 4, stride, 1, bias=False)]
        made += [torch.nn.BatchNorm2d(wider), torch.nn.LeakyReLU(0.2)]
        width = wider
    made += [torch.nn.Conv2d(width, 1, 4, 1, 1)]
    network = torch.nn.Sequential(*made)
    return network.to(DEVICE, memory_format=torch.channels_last)


def train_first_stage(spec, compiled):
    """Makes the step of an autoencoder and its discriminator, with adaptive weight."""
    module, network = make(spec["first_stage"]), vgg()
    critic = patch_discriminator(spec["critic"]["channels"], spec["critic"]["layers"])
    images = images_of(spec["images"]).tanh()
    adam = dict(lr=1e-5, betas=(0.5, 0.9), fused=True)
    optimizers = [torch.optim.Adam(m.parameters(), **adam) for m in (module, critic)]
    average = Average(module)
    vq = spec["first_stage"]["_class_name"] == "VQModel"
    last = module.decoder.conv_out.weight

    def reconstruct(images):
        if vq:
            latents = module.encode(images).latents
            decoded, regulariser = module.decode(latents, return_dict=False)
            return decoded, regulariser.mean()
        posterior = module.encode(images).latent_dist
        decoded = module.decode(posterior.sample()).sample
        return decoded, 1e-6 * posterior.kl().mean()

    def features(one, other):
        return perceptual(network, one, other)

    if compiled:
        reconstruct, features = torch.compile(reconstruct), torch.compile(features)
    discriminate = torch.compile(critic) if compiled else critic

    def call():
        with autocast():
            decoded, regulariser = reconstruct(images)
            distance = features(images, decoded)
            decoded = decoded.float()
            pixels = (images - decoded).abs().mean((1, 2, 3)) + distance
            fooled = -discriminate(decoded).float().mean()
        nll = pixels.mean()
        (by_nll,) = torch.autograd.grad(nll, last, retain_graph=True)
        (by_critic,) = torch.autograd.grad(fooled, last, retain_graph=True)
        weight = (by_nll.norm() / (by_critic.norm() + 1e-4)).clamp(0, 1e4).detach()
        (nll + 0.5 * weight * fooled + regulariser).backward()
        optimizers[0].step()
        optimizers[0].zero_grad(set_to_none=True)
        critic.zero_grad(set_to_none=True)
        with autocast():
            real = discriminate(images).float()
            fake = discriminate(decoded.detach()).float()
        loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        loss.backward()
        optimizers[1].step()
        optimizers[1].zero_grad(set_to_none=True)
        average.update()

    return call


def sample(spec, compiled):
    """Makes the function that runs fifty guided DDIM steps and the decoder."""
    module, forward, latents, condition = denoiser(spec, compiled)
    module.requires_grad_(False).to(DTYPE)
    first = make(spec["first_stage"]).requires_grad_(False).to(DTYPE)
    decode = torch.compile(first.decode) if compiled else first.decode
    noise = latents.to(DTYPE)
    if condition.is_floating_point():
        both = torch.cat([torch.zeros_like(condition), condition]).to(DTYPE)
    else:
        both = torch.cat([torch.full_like(condition, 1000), condition])
    alphas = torch.linspace(0.99, 0.01, 1000, device=DEVICE)
    steps = torch.linspace(999, 0, NUM_STEPS, device=DEVICE).long()

    @torch.no_grad()
    def call():
        x = noise
        for index, now in enumerate(steps):
            pair, at = torch.cat([x, x]), now.expand(2 * x.shape[0])
            null, conditional = forward(pair, at, both).chunk(2)
            predicted = null + GUIDANCE_SCALE * (conditional - null)
            alpha = alphas[now]
            start = (x - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
            after = alphas[steps[index + 1]] if index + 1 < NUM_STEPS else 1.0
            after = torch.as_tensor(after, device=DEVICE)
            x = after.sqrt() * start + (1 - after).sqrt() * predicted
            x = x.to(noise.dtype)
        return decode(x, return_dict=False)[0]

    return call


MAKE = {"denoiser": train_denoiser, "first_stage": train_first_stage, "sample": sample}


def main():
    """Measures a part; arguments: eager or compiled, spec, lock file, row's file."""
    how, spec, turn, target = sys.argv[1:]
    spec, turn = json.loads(pathlib.Path(spec).read_text()), Turn(turn)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    call = MAKE[spec["kind"]](spec, how == "compiled")
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    start = time.perf_counter()
    call()
    wait()
    compiled = time.perf_counter() - start
    timed = measure(call, wait, turn)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else float("nan")
    row = {
        "ms": 1e3 * timed.seconds,
        "spread": timed.spread,
        "images_per_s": spec["batch_size"] / timed.seconds,
        "peak_gb": peak / 1e9,
        "first_call_s": compiled,
        "versions": f"torch {torch.__version__}",
    }
    pathlib.Path(target).write_text(json.dumps(row))


if __name__ == "__main__":
    main()
