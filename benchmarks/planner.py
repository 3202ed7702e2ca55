"""The planner's bytes compared with XLA's compiler for an H100; no GPU is needed.

    pip install jax-cuda12-pjrt==$JAX jax-cuda12-plugin==$JAX nvidia-cuda-nvcc-cu12
    python -m benchmarks.planner [--full] [NAME ...]

$JAX is the version of jax.  The compiler only needs a description of the device, and
the plugin runs without a driver.  The networks are small, a minute each, or with --full
the published ones (ten minutes and 10 GB each on slow cores).  Nothing is autotuned, as
that needs a device: the workspaces of the libraries' convolutions are in neither
number.  docs/planning.md has the results.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

# Before jax is imported: this process runs on a CPU and compiles for another device.
os.environ["JAX_PLATFORMS"] = "cpu"
_FLAGS = "--xla_gpu_autotune_level=0"
# Without autotuning the compiler of jax 0.11 and later cannot choose Triton's tiles.
if tuple(map(int, version("jax").split(".")[:2])) >= (0, 11):
    _FLAGS += " --xla_gpu_enable_triton_gemm=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from benchmarks.accelerators.jax_side import load  # noqa: E402
from benchmarks.accelerators.parts import FEATURES, PARTS, Part  # noqa: E402
from ldm_jax import sharding  # noqa: E402
from ldm_jax.planning.abstract import Given, Planned, make_planned  # noqa: E402
from ldm_jax.planning.ahead import compile_step  # noqa: E402
from ldm_jax.planning.memory import MemoryOf  # noqa: E402

_BACKBONE = {
    "backbone.channels": 64,
    "backbone.channel_mult": (1, 2),
    "backbone.num_res_blocks": 1,
}
_AUTOENCODER = {
    "first_stage.channels": 32,
    "first_stage.channel_mult": (1, 2, 4),
    "first_stage.num_res_blocks": 1,
    "discriminator.channels": 32,
    "discriminator.num_layers": 2,
}
# Name -> part, and the changes of its config that make the network small.
CASES: dict[str, tuple[Part, dict[str, Any]]] = {
    "unconditional": (
        Part("train", "unconditional:celebahq", "autoencoder_vq:f4", 48),
        _BACKBONE | {"backbone.attention_factors": (2,)},
    ),
    "ldm4": (PARTS["ldm4"], _BACKBONE | {"backbone.attention_factors": (2,)}),
    "ldm8": (PARTS["ldm8"], _BACKBONE | {"backbone.attention_factors": (1, 2)}),
    "sd1": (
        PARTS["sd1"],
        _BACKBONE | {"backbone.channels": 128, "backbone.attention_factors": (1, 2)},
    ),
    "kl_f8": (PARTS["kl_f8"], _AUTOENCODER),
}

# In XLA's format, with the numbers of data sheets and of the CUDA programming guide.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  device_memory_size: 84929347584
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def h100_mesh(data: int = 1, fsdp: int = 1) -> Mesh:
    """Makes a mesh of H100s to compile for.

    Args:
      data: Devices along `data`.
      fsdp: Devices along `fsdp`.

    Returns:
      Mesh of devices that exist only as a description.
    """
    shape = f"1x1x{data * fsdp}"
    topology = topologies.get_topology_desc(
        "", "cuda", target_config=_H100, topology=shape
    )
    return sharding.make_mesh(data, fsdp, topology.devices)


def plan_case(name: str, full: bool) -> tuple[Part, Planned]:
    """Plans a case.

    Args:
      name: Key of CASES.
      full: Whether the network is the published one.

    Returns:
      (Part, Planned).
    """
    part, small = CASES[name]
    if not full:
        part = part._replace(changes=part.changes | small)
    config = load(part, tiny=False)
    return part, make_planned(config, Given(part.first_stage, None, FEATURES))


def check_cases(names: Sequence[str], known: Iterable[str] = CASES) -> None:
    """Ends the program if a name is unknown.

    Args:
      names: Names on the command line.
      known: Known names.
    """
    unknown = set(names) - set(known)
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; choose of {', '.join(known)}")


def compare(name: str, full: bool, data: int = 1, fsdp: int = 1) -> dict[str, Any]:
    """Counts a step's bytes and compiles it.

    Args:
      name: Key of CASES.
      full: Whether the network is the published one.
      data: Devices along `data`.
      fsdp: Devices along `fsdp`.

    Returns:
      Row: bytes per device, counted and of the compiled step, and their ratios.
      Arguments that the step does not read, such as a decoder, are left out of the
      ratio: the compiler drops them, although a run holds them.
    """
    part, planned = plan_case(name, full)
    mesh, start = h100_mesh(data, fsdp), time.perf_counter()
    memory = MemoryOf(planned).on(
        mesh, part.batch_size, planned.config.train.accumulate_steps
    )
    counting = time.perf_counter() - start
    program = compile_step(planned, mesh, part.batch_size)
    unread = memory.arguments - program.arguments
    return {
        "name": name,
        "full": full,
        "mesh": [data, fsdp],
        "batch_size": part.batch_size,
        "arguments": program.arguments,
        "arguments_unread": unread,
        "temporary": program.temporary,
        "temporary_counted": memory.temporary,
        "ratio_temporary": memory.temporary / program.temporary,
        "ratio": (memory.peak - unread) / program.total,
        "seconds_counting": counting,
        "seconds_compiling": program.seconds,
    }


def main() -> None:
    """Compares the cases that the command line names, or all, and prints their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--full", action="store_true", help="The published networks.")
    parser.add_argument("--data", type=int, default=1)
    parser.add_argument("--fsdp", type=int, default=1)
    options = parser.parse_args()
    check_cases(options.names)
    for name in options.names or CASES:
        row = compare(name, options.full, options.data, options.fsdp)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
