"""Speed and memory compared with PyTorch: the same networks and weights, one process.

    python benchmarks/peers.py [--only "unet small,decode"] [--rounds 15]

PyTorch runs diffusers' modules eagerly, channels last. Pairs of outputs are compared
first. A ratio is JAX's median time over alternating rounds divided by PyTorch's: below
1, JAX is faster. Memory is the peak of a call beyond the memory before it: weights,
optimiser and inputs. Needs the extra `parity`.
"""

import argparse
import ctypes
import os
import platform
import re
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from flax.traverse_util import flatten_dict, unflatten_dict

from ldm_jax import sharding
from ldm_jax.convert.diffusers import names as layout
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.unet import UNet
from ldm_jax.training.first_stage_losses import reconstruction_loss
from ldm_jax.weights.state_dict import to_state_dict

UNETS = {  # size: (batch, height of the latents, tokens)
    "small": (4, 32, 0),
    "medium": (4, 32, 77),
}
AUTOENCODERS = {  # size: (batch, height of the images, channels)
    "small": (4, 64, 64),
    "wide": (2, 128, 64),
    "medium": (4, 64, 128),
    "large": (1, 256, 64),
}
CONTEXT_WIDTH = 768


def tune_malloc(keep):
    """Keeps freed memory in the process, which helps both sides, or returns it."""
    if platform.system() != "Linux":
        return
    libc = ctypes.CDLL("libc.so.6")
    limits = (0, 2**31 - 1, 64 << 20) if keep else (65536, 0, 0)
    # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    for option, value in zip((-4, -1, -2), limits, strict=True):
        libc.mallopt(option, value)
    if not keep:
        libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
        libc.malloc_trim(0)


def random_params(module, *inputs):
    """Draws parameters, none of them zero, so that outputs of networks differ."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    params = {}
    for path, leaf in flatten_dict(shapes).items():
        draw = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim == 1:
            params[path] = 0.1 * draw + (path[-1] == "scale")
        else:
            params[path] = draw / np.sqrt(np.prod(leaf.shape[:-1]))
    return unflatten_dict(params)


def to_torch(array):
    """Converts an NHWC array to a channels-last tensor, others to a plain one."""
    tensor = torch.from_numpy(np.array(array))
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def load(module, rows, params):
    """Loads our parameters into a PyTorch module, laid out channels last."""
    state_dict = to_state_dict(rows, params)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in state_dict.items()})
    return module.to(memory_format=torch.channels_last)


def trainers(loss, params, optimizer, torch_loss, torch_optimizer):
    """Makes the training steps of both sides: two functions () -> loss."""

    @partial(sharding.jit, donate_argnums=(0, 1))
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    carry = [jax.tree.map(jnp.array, params)]
    carry.append(optimizer.init(carry[0]))

    def ours():
        *carry[:], value = step(*carry)
        return value

    def theirs():
        torch_optimizer.zero_grad(set_to_none=True)
        value = torch_loss()
        value.backward()
        torch_optimizer.step()
        return value.detach()

    return ours, theirs


def unet_modules(height, channels=128, cross_attention=True):
    """Makes a U-Net for each side, with attention at two of three levels.

    Args:
      height: Height of the latents.
      channels: Width of the finest level.
      cross_attention: Whether it attends to tokens, with eight heads.

    Returns:
      (UNet, diffusers' module).
    """
    unet = UNet(
        out_channels=4,
        channels=channels,
        channel_mult=(1, 2, 4),
        num_res_blocks=2,
        attention_factors=(4, 2),
        num_heads=8 if cross_attention else None,
        head_channels=None if cross_attention else 32,
        transformer_depth=int(cross_attention),
    )
    names = ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]
    shared = dict(
        sample_size=height,
        in_channels=4,
        out_channels=4,
        block_out_channels=(channels, 2 * channels, 4 * channels),
    )
    if cross_attention:
        names = [name.replace("Attn", "CrossAttn") for name in names]
        make = partial(
            UNet2DConditionModel,
            cross_attention_dim=CONTEXT_WIDTH,
            attention_head_dim=unet.num_heads,
        )
    else:
        make = partial(
            UNet2DModel,
            attention_head_dim=unet.head_channels,
            flip_sin_to_cos=True,
            freq_shift=0,
            downsample_padding=1,
            norm_eps=1e-5,
        )
    ups = [name.replace("Down", "Up") for name in reversed(names)]
    return unet, make(**shared, down_block_types=names, up_block_types=ups)


def autoencoder_modules(channels, channel_mult=(1, 2, 4), latent_channels=3):
    """Makes a KL autoencoder for each side: (KLAutoencoder, diffusers' module)."""
    model = KLAutoencoder(
        channels=channels,
        channel_mult=channel_mult,
        num_res_blocks=2,
        z_channels=latent_channels,
        embed_dim=latent_channels,
    )
    levels = len(channel_mult)
    peer = AutoencoderKL(
        block_out_channels=[channels * mult for mult in channel_mult],
        layers_per_block=2,
        latent_channels=latent_channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    return model, peer


def unet_pair(size):
    """Yields (name, ours, theirs) for a U-Net."""
    batch, height, tokens = UNETS[size]
    unet, peer = unet_modules(height, cross_attention=bool(tokens))
    rng = np.random.default_rng(1)
    latents, noise = rng.standard_normal((2, batch, height, height, 4), np.float32)
    timesteps = rng.integers(0, 1000, batch)
    inputs = [latents, timesteps]
    if tokens:
        inputs.append(rng.standard_normal((batch, tokens, CONTEXT_WIDTH), np.float32))
    inputs = [jnp.asarray(x) for x in inputs]
    params = random_params(unet, *inputs)
    load(peer, layout.unet_rows(unet), params)
    torch_inputs = [to_torch(x) for x in inputs]
    forward = sharding.jit(lambda params: unet.apply({"params": params}, *inputs))
    on_device = jax.tree.map(jnp.asarray, params)

    def torch_forward():
        with torch.no_grad():
            return peer(*torch_inputs).sample

    yield "forward", lambda: forward(on_device), torch_forward

    def loss(params):
        return jnp.mean(jnp.square(unet.apply({"params": params}, *inputs) - noise))

    def torch_loss():
        return (peer(*torch_inputs).sample - to_torch(noise)).square().mean()

    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, fused=True)
    adamw = optax.adamw(1e-4, weight_decay=0.01)
    yield "train step", *trainers(loss, params, adamw, torch_loss, optimizer)


def autoencoder_pair(size):
    """Yields (name, ours, theirs) for a KL autoencoder of factor 4."""
    batch, height, channels = AUTOENCODERS[size]
    model, peer = autoencoder_modules(channels)
    rng = np.random.default_rng(1)
    images = np.tanh(rng.standard_normal((batch, height, height, 3), np.float32))
    noise = rng.standard_normal((batch, height // 4, height // 4, 3), np.float32)
    params = random_params(model, jnp.asarray(images))
    load(peer, layout.autoencoder_rows(model), params)
    on_device = jax.tree.map(jnp.asarray, params)
    x, z = to_torch(images), to_torch(noise)

    def apply(params, given, method):
        return model.apply({"params": params}, given, method=method)

    encode = sharding.jit(lambda params, x: apply(params, x, "encode").mode())
    decode = sharding.jit(lambda params, z: apply(params, z, "decode"))

    def without_gradient(function):
        def run():
            with torch.no_grad():
                return function()

        return run

    torch_encode = without_gradient(lambda: peer.encode(x).latent_dist.mode())
    torch_decode = without_gradient(lambda: peer.decode(z).sample)
    yield "encode", lambda: encode(on_device, images), torch_encode
    yield "decode", lambda: decode(on_device, noise), torch_decode

    def loss(params, model=model):
        variables = {"params": params}
        posterior = model.apply(variables, images, method="encode")
        latents = posterior.sample(noise=noise)
        decoded = model.apply(variables, latents, method="decode")
        return reconstruction_loss(images, decoded)[0] + 1e-6 * posterior.kl().mean()

    def torch_loss():
        posterior = peer.encode(x).latent_dist
        decoded = peer.decode(posterior.mean + posterior.std * z).sample
        nll = (decoded - x).abs().sum() / batch
        return nll + 1e-6 * posterior.kl().mean()

    options = dict(lr=1e-4, betas=(0.5, 0.9), fused=True)
    start = {key: value.clone() for key, value in peer.state_dict().items()}
    optimizer = torch.optim.Adam(peer.parameters(), **options)
    adam = optax.adam(1e-4, b1=0.5, b2=0.9)
    yield "train step", *trainers(loss, params, adam, torch_loss, optimizer)
    peer.load_state_dict(start)
    optimizer = torch.optim.Adam(peer.parameters(), **options)
    with_remat = partial(loss, model=model.clone(remat=True))
    sides = trainers(with_remat, params, adam, torch_loss, optimizer)
    yield "train step remat", *sides


def compare(ours, theirs):
    """Asserts that both sides give the same outputs; also warms them up."""
    for _ in range(2):  # of a training step, the second loss tests the update, too
        ours_output, output = np.asarray(ours()), theirs()
        output = output.permute(0, 2, 3, 1) if output.ndim == 4 else output
        output = output.numpy()
        difference = np.max(np.abs(ours_output - output))
        limit = 1e-3 * np.max(np.abs(output))
        assert difference <= limit, f"outputs differ by {difference:.3g} > {limit:.3g}"


def measure(sides, rounds):
    """Returns the median seconds of each side, in alternation, and the calls left out.

    A call during which other processes used more than a twentieth of the machine means
    little, above all for PyTorch's spinning threads: it is left out and repeated, at
    most as many times as there are calls.
    """
    times, spoilt = [[] for _ in sides], 0
    while min(map(len, times)) < rounds:
        for function, record in zip(sides, times, strict=True):
            others, start = others_seconds(), time.perf_counter()
            jax.block_until_ready(function())
            seconds = time.perf_counter() - start
            taken = (others_seconds() - others) / (seconds * os.cpu_count())
            if taken > 0.05 and spoilt < len(sides) * rounds:
                spoilt += 1
            else:
                record.append(seconds)
    return *(statistics.median(record) for record in times), spoilt


def peak_memory(function):
    """Peak memory of a call in MB, NaN if the system does not report it."""
    try:
        tune_malloc(keep=False)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # Resets the high-water mark.
        before = _resident("VmRSS")
        jax.block_until_ready(function())
        return (_resident("VmHWM") - before) / 1e3
    except OSError:
        return float("nan")
    finally:
        tune_malloc(keep=True)


def _resident(name):
    """Memory of this process in kB, by the name of the entry in /proc."""
    with open("/proc/self/status", encoding="ascii") as file:
        return int(re.search(rf"{name}:\s*(\d+) kB", file.read()).group(1))


def others_seconds():
    """Processor time used by other processes, 0 if the system does not report it."""
    try:
        with open("/proc/stat", encoding="utf-8") as file:
            user, nice, system, _, _, *rest = map(int, file.readline().split()[1:9])
    except OSError:
        return 0.0
    busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return busy - time.process_time()


def processor():
    """Name of the processor, if the system has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return re.search(r"model name\s*: (.*)", file.read()).group(1)
    except (OSError, AttributeError):
        return platform.processor() or "unknown processor"


def set_up(rounds):
    """Sets malloc and threads alike for both sides, and prints the setup."""
    tune_malloc(keep=True)
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    versions = f"jax {jax.__version__}, torch {torch.__version__}"
    print(f"{processor()}, {threads} threads, {versions}, {rounds} rounds")
    flags = os.environ.get("XLA_FLAGS")
    print(f"XLA_FLAGS={flags}" if flags else "no XLA_FLAGS")


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="words of lines' names")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    chosen = [set(line.split()) for line in options.only.split(",")]
    set_up(options.rounds)
    print(
        f"{'':36}{'jax ms':>9}{'torch ms':>9}{'ratio':>7}{'jax MB':>9}{'torch MB':>9}"
        f"{'spoilt':>8}"
    )
    pairs = [("unet", size, unet_pair) for size in UNETS]
    pairs += [("autoencoder", size, autoencoder_pair) for size in AUTOENCODERS]
    for kind, size, pair in pairs:
        for name, ours, theirs in pair(size):
            line = f"{kind} {size} {name}"
            if not any(set(line.split()) >= words for words in chosen):
                continue
            compare(ours, theirs)
            a, b, spoilt = measure((ours, theirs), options.rounds)
            memory = "".join(f"{peak_memory(side):9.0f}" for side in (ours, theirs))
            times = f"{a * 1e3:9.1f}{b * 1e3:9.1f}{a / b:7.2f}"
            print(f"{line:36}{times}{memory}{spoilt:8}", flush=True)


if __name__ == "__main__":
    main()
