"""Accelerators: their peak throughput and memory."""

from typing import NamedTuple

from ldm_jax.errors import ConfigError


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
      kinds: Prefixes of the name that JAX gives it (`Device.device_kind`).
      tflops: Peak dense bfloat16 TFLOP/s.
      memory: Bytes of memory that programs can use.
    """

    kinds: tuple[str, ...]
    tflops: float
    memory: int


_GIB = 2**30

# By the value of --chip. The memory of GPUs is without what the driver reserves
# (nvidia-smi), that of TPUs is all of it.
CHIPS = {
    "A100-40": Chip(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312, 39 * _GIB),
    "A100-80": Chip(("NVIDIA A100",), 312, 79 * _GIB),
    "H100": Chip(("NVIDIA H100",), 989, 79 * _GIB),
    "H200": Chip(("NVIDIA H200",), 989, 140 * _GIB),
    "B200": Chip(("NVIDIA B200",), 2250, 178 * _GIB),
    "v4": Chip(("TPU v4",), 275, 32 * _GIB),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197, 16 * _GIB),
    "v5p": Chip(("TPU v5p", "TPU v5"), 459, 95 * _GIB),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918, 32 * _GIB),
    # JAX sees each chip as two devices: half of 2,307 TFLOP/s and 192 GiB.
    "v7x": Chip(("TPU7x",), 1153.5, 96 * _GIB),
}


def chip_named(name: str) -> Chip:
    """Finds a chip by the value of --chip.

    Args:
      name: Key of CHIPS, in any case.

    Returns:
      Chip.

    Raises:
      ConfigError: If the name is unknown; the message lists the names.
    """
    known = {key.lower(): chip for key, chip in CHIPS.items()}
    if name.lower() not in known:
        raise ConfigError(f"--chip={name} is unknown; choose one of {', '.join(CHIPS)}")
    return known[name.lower()]


def chip_of(kind: str) -> Chip | None:
    """Finds a chip by the name that JAX gives a device.

    Args:
      kind: Its `device_kind`.

    Returns:
      The Chip with the longest prefix of `kind`; None if no chip matches.
    """
    matches = [
        (len(start), chip)
        for chip in CHIPS.values()
        for start in chip.kinds
        if kind.startswith(start)
    ]
    return max(matches, key=lambda match: match[0])[1] if matches else None
