"""Time on the device by kind of kernel, from a trace of JAX's profiler."""

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax

# Kind -> pattern of kernel names; the first match counts.
KINDS = {
    "convolution": r"conv|cudnn.*(fprop|dgrad|wgrad)|implicit_gemm|xmma_(f|d|w)prop",
    "attention": r"flash|fmha|attention|softmax",
    "transpose": r"transpose|nchwToNhwc|nhwcToNchw|permut",
    "matrix product": r"gemm|cutlass|cublas|nvjet|dot|triton_gemm",
    "reduction": r"reduce|reduction|norm",
    "copy": r"copy|memcpy|memset|slice|concat|pad|gather|scatter",
    "elementwise": r"fusion|loop|elementwise|add|multiply|convert|select|exp|broadcast",
}


# Number of profiled calls, and of listed kernels.
_CALLS, _SLOWEST = 3, 200


def profile(call: Callable[[], Any], wait: Callable[[], Any]) -> dict[str, Any]:
    """Profiles some calls.

    Args:
      call: Runs a step.
      wait: Waits for all steps.

    Returns:
      "kernels", kind -> fraction of the time of all kernels, largest first; "busy_ms",
      this time, and "launches", the number of kernels, per call; "slowest", the slowest
      kernels: (name, milliseconds, launches). Empty if the profiler finds no device, as
      on a CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_CALLS):
                call()
            wait()
        times, launches = collections.Counter(), collections.Counter()
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            for name, nanoseconds in _events(path):
                times[name] += nanoseconds / 1e6 / _CALLS
                launches[name] += 1 / _CALLS
    busy, kinds = sum(times.values()), collections.Counter()
    if not busy:
        return {}
    for name, milliseconds in times.items():
        kinds[kind_of(name)] += milliseconds / busy
    return {
        "kernels": dict(kinds.most_common()),
        "busy_ms": busy,
        "launches": round(sum(launches.values())),
        "slowest": [
            (name[:200], round(milliseconds, 4), round(launches[name], 1))
            for name, milliseconds in times.most_common(_SLOWEST)
        ],
    }


def _events(path):
    """(name, nanoseconds) of all kernels."""
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if not re.search(r"/device:(GPU|TPU)", plane.name):
            continue
        for line in plane.lines:
            # Lines of GPUs are streams; a TPU has one line of operations.
            if re.search(r"Stream|XLA Ops", line.name):
                for event in line.events:
                    yield event.name, event.duration_ns


def kind_of(name: str) -> str:
    """Returns the kind of a kernel.

    Args:
      name: Name of a kernel.

    Returns:
      Key of KINDS, or "other".
    """
    for kind, pattern in KINDS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "other"
