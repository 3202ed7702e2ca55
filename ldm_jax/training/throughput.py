"""How fast a run is: images, operations, memory and time spent waiting for data.

CHIPS has how fast it could be, and how much memory there is.
"""

import contextlib
import resource
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

from ldm_jax.errors import ConfigError


class Stopwatch:
    """Times steps between two log lines; pauses do not count."""

    def __init__(self, batch_size: int, chips: int) -> None:
        """Starts it.

        Args:
          batch_size: Images per step, over all chips.
          chips: Number of chips.
        """
        self._batch_size = batch_size
        self._chips = chips
        self._peak = peak_tflops()
        self._restart()

    def _restart(self):
        self._start = time.perf_counter()
        self._paused = 0.0
        self._waited = 0.0
        self._flops = 0.0

    def step(self, flops: float | None) -> None:
        """Counts the operations of a step, which may differ between shapes.

        Args:
          flops: Floating-point operations over all chips, or None.
        """
        self._flops += flops or 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what is done inside out of the measure.

        Yields:
          Nothing, once.
        """
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts what is done inside as waiting for data.

        Yields:
          Nothing, once.
        """
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def lap(self, steps: int) -> dict[str, float]:
        """Measures the speed since the last lap and starts anew.

        Args:
          steps: Number of steps since then.

        Returns:
          Dict: images per second, the same per chip, TFLOP/s per chip and utilisation
          (fraction of the bfloat16 peak) where they are known, milliseconds per step
          spent waiting for data, and peak memory in GB.
        """
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        rate = steps * self._batch_size / seconds
        speed = {
            "images_per_s": rate,
            "images_per_s_per_chip": rate / self._chips,
        }
        if self._flops:
            tflops = self._flops / seconds / self._chips / 1e12
            speed["tflops_per_s_per_chip"] = tflops
            if self._peak:
                speed["utilisation"] = tflops / self._peak
        speed["data_wait_ms"] = 1000 * self._waited / steps
        speed |= memory()
        self._restart()
        return speed


def memory() -> dict[str, float]:
    """Measures the peak memory: of the device, or of the process on a CPU.

    Returns:
      Dict of "device_memory_gb" or "host_memory_gb", in GB.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"device_memory_gb": stats["peak_bytes_in_use"] / 1e9}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"host_memory_gb": kilobytes / 1e6}


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
      kinds: How jax names it begins with one of these (`Device.device_kind`).
      tflops: Peak dense bfloat16 TFLOP/s.
      memory: Bytes of its memory, as much as programs may have.
    """

    kinds: tuple[str, ...]
    tflops: float
    memory: int


_GIB = 2**30

# By the name of --chip. GPUs give their memory less what the driver keeps (nvidia-smi),
# TPUs all of it.
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
    # For JAX each of its chips is two devices: half of 2,307 TFLOP/s and 192 GiB.
    "v7x": Chip(("TPU7x",), 1153.5, 96 * _GIB),
}


def chip_named(name: str) -> Chip:
    """Finds a chip by the name that commands take.

    Args:
      name: Key of CHIPS, in any case.

    Returns:
      Chip.

    Raises:
      ConfigError: If there is none; the message lists the names.
    """
    known = {key.lower(): chip for key, chip in CHIPS.items()}
    if name.lower() not in known:
        raise ConfigError(f"--chip={name} is unknown; choose one of {', '.join(CHIPS)}")
    return known[name.lower()]


def chip_of(kind: str) -> Chip | None:
    """Finds a chip by the name that jax gives a device.

    Args:
      kind: Its `device_kind`.

    Returns:
      Chip, that of the longest name which `kind` begins with; None if none is known.
    """
    matches = [
        (len(start), chip)
        for chip in CHIPS.values()
        for start in chip.kinds
        if kind.startswith(start)
    ]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def peak_tflops(device: jax.Device | None = None) -> float | None:
    """Looks up how fast a device is at best.

    Args:
      device: Device; the first one by default.

    Returns:
      Its peak TFLOP/s in bfloat16, None where it is not known.
    """
    chip = chip_of((jax.devices()[0] if device is None else device).device_kind)
    return chip.tflops if chip else None
