"""XLA's flags for tests, in this process and in those that it starts."""

from importlib import metadata


def xla_flags(devices):
    """Flags for so many simulated devices, and for quick compilation."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    if metadata.version("jaxlib").startswith("0.10."):
        # Halves the time to compile a training step; later versions end at the flags.
        flags += " --xla_cpu_use_fusion_emitters=false"
        # Nor is it worth to share one program out to several compilers ...
        flags += " --xla_cpu_parallel_codegen_split_count=1"
        # ... and to plan each product of matrices before its first run.
        flags += " --xla_cpu_experimental_ynn_fusion_type="
    return flags
