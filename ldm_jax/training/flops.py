"""Floating-point operations of a compiled step, and what the chip could do at best."""

import jax

# Peak dense bfloat16 TFLOP/s per chip as jax names the device (vendors' data sheets).
PEAK_TFLOPS = {
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA B200": 2250.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5p": 459.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "TPU7x": 2307.0,
}


def peak_tflops(device=None):
    """Returns the device's peak TFLOP/s in bfloat16, None where it is not known."""
    kind = (jax.devices()[0] if device is None else device).device_kind
    matches = [name for name in PEAK_TFLOPS if kind.startswith(name)]
    return PEAK_TFLOPS[max(matches, key=len)] if matches else None


def count_flops(lowered):
    """Counts the operations of one call, over all devices, before optimisation.

    Args:
      lowered: A `jax.stages.Lowered`; its program has global shapes, so that custom
        kernels and partitioning chosen later hide nothing.

    Returns:
      Floating-point operations, or None where the backend does not say.
    """
    try:
        analysis = lowered.cost_analysis()
    except NotImplementedError:
        return None
    if isinstance(analysis, list | tuple):
        analysis = analysis[0] if analysis else {}
    return (analysis or {}).get("flops")
