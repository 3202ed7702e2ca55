"""How fast a run is: images, operations, memory and time spent waiting for data."""

import contextlib
import resource
import time

import jax

from ldm_jax.training.flops import peak_tflops


class Stopwatch:
    """Times steps between two log lines; pauses do not count."""

    def __init__(self, batch_size, flops, chips):
        """Starts it.

        Args:
          batch_size: Images per step, over all chips.
          flops: Floating-point operations per step over all chips, or None.
          chips: Number of chips.
        """
        self._batch_size = batch_size
        self._flops = flops
        self._chips = chips
        self._peak = peak_tflops()
        self._restart()

    def _restart(self):
        self._start = time.perf_counter()
        self._paused = 0.0
        self._waited = 0.0

    @contextlib.contextmanager
    def paused(self):
        """Leaves what is done inside out of the measure."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self):
        """Counts what is done inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def lap(self, steps):
        """Returns the speed over the last `steps` steps and starts anew.

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
            tflops = self._flops * steps / seconds / self._chips / 1e12
            speed["tflops_per_s_per_chip"] = tflops
            if self._peak:
                speed["utilisation"] = tflops / self._peak
        speed["data_wait_ms"] = 1000 * self._waited / steps
        speed |= memory()
        self._restart()
        return speed


def memory():
    """Returns the peak memory in GB: of the device, or of the process on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"device_memory_gb": stats["peak_bytes_in_use"] / 1e9}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"host_memory_gb": kilobytes / 1e6}
