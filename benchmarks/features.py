"""Speed of FID's Inception-v3 compared with torch-fidelity's, in one process.

    python benchmarks/features.py [--batch 16] [--size 256] [--rounds 7]

Both have the same weights, the same 8-bit images and all cores, and return the pooled
features and the logits; the outputs are compared first. Times are medians over
alternating rounds, and memory is the peak of a call beyond weights and images. Needs
torch-fidelity beside the extra `parity`.
"""

import argparse
import functools
import tempfile

import jax
import numpy as np
import torch
from peers import compare, measure, peak_memory, set_up
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ldm_jax import sharding
from ldm_jax.metrics.features import load_network
from ldm_jax.metrics.features.inception_weights import draw_inception

NAMES = ("ldm_jax", "torch-fidelity")
TAPS = {"2048": "2048", "logits": "logits_unbiased"}


def their_network():
    """torch-fidelity's network with our seeded weights."""
    weights = {key: torch.from_numpy(a) for key, a in draw_inception().items()}
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(weights, file.name)
        return FeatureExtractorInceptionV3(
            "inception-v3-compat",
            list(TAPS.values()),
            feature_extractor_weights_path=file.name,
        )


def sides(images):
    """Two functions () -> features of the images."""
    network, theirs = load_network("inception"), their_network()
    apply = sharding.jit(network.row.apply, static_argnums=2)
    params, taps = jax.device_put(network.params), tuple(TAPS)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def ours():
        features = apply(params, images, taps)
        return [features[tap] for tap in taps]

    def other():
        with torch.no_grad():
            return theirs(tensor)

    return ours, other


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    set_up(options.rounds)
    shape = (options.batch, options.size, options.size, 3)
    pair = sides(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    for outputs in zip(*(side() for side in pair), strict=True):
        compare(*(functools.partial(lambda x: x, output) for output in outputs))
    *seconds, spoilt = measure(pair, options.rounds)
    for name, side, taken in zip(NAMES, pair, seconds, strict=True):
        rate, memory = options.batch / taken, peak_memory(side)
        print(f"{name:16}{rate:8.2f} images per second{memory:9.0f} MB")
    print(f"ratio of times {seconds[0] / seconds[1]:.2f}, {spoilt} rounds spoilt")


if __name__ == "__main__":
    main()
