"""Throughput of a run: images, FLOPs, memory and time spent waiting for data."""

import contextlib
import resource
import time
from collections.abc import Iterator

import jax

from ldm_jax.chips import chip_of


class Stopwatch:
    """Times steps between two log lines; pauses do not count."""

    def __init__(self, batch_size: int, chips: int) -> None:
        """Starts the stopwatch.

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
        """Adds the FLOPs of a step, which may differ between batch shapes.

        Args:
          flops: Floating-point operations over all chips, or None.
        """
        self._flops += flops or 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time within the context.

        Yields:
          Nothing, once.
        """
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within the context as waiting for data.

        Yields:
          Nothing, once.
        """
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def lap(self, steps: int) -> dict[str, float]:
        """Measures the speed since the last lap and restarts.

        Args:
          steps: Number of steps since then.

        Returns:
          Dict: images per second, the same per chip, TFLOP/s per chip and utilisation
          (fraction of the bfloat16 peak) if they are known, milliseconds per step spent
          waiting for data, and peak memory in GB.
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
    """Measures the peak memory of the device, or of the process on a CPU.

    Returns:
      Dict of "device_memory_gb" or "host_memory_gb", in GB.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"device_memory_gb": stats["peak_bytes_in_use"] / 1e9}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"host_memory_gb": kilobytes / 1e6}


def peak_tflops(device: jax.Device | None = None) -> float | None:
    """Looks up the peak throughput of a device.

    Args:
      device: Device; the first one by default.

    Returns:
      Its peak TFLOP/s in bfloat16, None if unknown.
    """
    chip = chip_of((jax.devices()[0] if device is None else device).device_kind)
    return chip.tflops if chip else None
