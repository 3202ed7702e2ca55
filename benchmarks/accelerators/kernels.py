"""Time on the device by kind of kernel, from a trace of JAX's profiler."""

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax

# The first that fits the name of a kernel holds.
KINDS = {
    "convolution": r"conv|cudnn.*(fprop|dgrad|wgrad)|implicit_gemm|xmma_(f|d|w)prop",
    "attention": r"flash|fmha|attention|softmax",
    "transpose": r"transpose|nchwToNhwc|nhwcToNchw|permut",
    "matrix product": r"gemm|cutlass|cublas|nvjet|dot|triton_gemm",
    "reduction": r"reduce|reduction|norm",
    "copy": r"copy|memcpy|memset|slice|concat|pad|gather|scatter",
    "elementwise": r"fusion|loop|elementwise|add|multiply|convert|select|exp|broadcast",
}


def by_kind(call: Callable[[], Any], wait: Callable[[], Any]) -> dict[str, float]:
    """Profiles three calls.

    Args:
      call: Does a step.
      wait: Waits for all steps.

    Returns:
      Kind -> fraction of the time of all kernels, largest first; empty where the
      profiler sees no device, as on a CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(3):
                call()
            wait()
        times = collections.Counter()
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            times += _read(path)
    total = sum(times.values())
    return {kind: time / total for kind, time in times.most_common()}


def _read(path):
    times = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if not re.search(r"/device:(GPU|TPU)", plane.name):
            continue
        for line in plane.lines:
            # Those of GPUs are streams; a TPU has one line of operations.
            if re.search(r"Stream|XLA Ops", line.name):
                for event in line.events:
                    times[kind_of(event.name)] += event.duration_ns
    return times


def kind_of(name: str) -> str:
    """Says what kind of kernel a name is of.

    Args:
      name: Name of a kernel.

    Returns:
      Key of KINDS, or "other".
    """
    for kind, pattern in KINDS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "other"
