"""Bytes that kernels of a training or sampling step move on an H100, without a GPU.

The step is compiled by XLA's compiler for that device, as in `planner.py`, which lists
the packages.  Counted are the bytes that each kernel reads and writes, by the part of
the network, the number of kernels, and how many differ; for sampling, those of one of
the sampler's steps; and for several devices, what one sends to the others:

    python -m benchmarks.moved_bytes [--full] [--largest=20] [--save=FILE] [NAME ...]
    python -m benchmarks.moved_bytes --data=2 --fsdp=4 [--full] [NAME ...]
    python -m benchmarks.moved_bytes --text=FILE

Nothing is timed: at 3,350 GB/s the bytes give a lower bound of a step's time beside its
arithmetic.  Without autotuning, matrix products are cuBLAS's, and the bytes that
libraries move internally are not counted.
"""

import argparse
import json
import os
import pathlib
import time

# Before jax is imported, as in planner.py, which sets the flag for jax 0.11 and later.
os.environ["JAX_PLATFORMS"] = "cpu"
_FLAGS = "--xla_gpu_enable_triton_gemm=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

import jax  # noqa: E402
from jax._src.cudnn import fused_attention_stablehlo as cudnn  # noqa: E402

from benchmarks.accelerators.jax_side import plan_sampling  # noqa: E402
from benchmarks.accelerators.moved import (  # noqa: E402
    body_of_loop,
    read_kernels,
    summarise,
)
from benchmarks.accelerators.parts import PARTS  # noqa: E402
from benchmarks.planner import CASES, check_cases, h100_mesh, plan_case  # noqa: E402
from ldm_jax import sharding  # noqa: E402
from ldm_jax.models.operations import kernels  # noqa: E402
from ldm_jax.planning.ahead import lower_step  # noqa: E402

SAMPLING = {name: part for name, part in PARTS.items() if part.task == "sample"}


def compile_text(
    name: str, full: bool, data: int = 1, fsdp: int = 1
) -> tuple[str, float, int]:
    """Compiles a training step, or sampling, for H100s.

    Args:
      name: Key of `planner.CASES`, or of SAMPLING.
      full: Whether the network is the published one.
      data: Devices along `data`.
      fsdp: Devices along `fsdp`.

    Returns:
      (text of the program, seconds of compiling, bytes of its temporaries).
    """
    # The values of an H100, which is not there to be queried.
    kernels.this_device = lambda: kernels.Device("cuda", (9, 0))
    cudnn.check_cudnn_version = lambda: 91000
    cudnn.check_compute_capability = lambda capability: capability == "9.0"
    mesh = h100_mesh(data, fsdp)
    if name in SAMPLING:
        draw, shapes = plan_sampling(SAMPLING[name], not full)
        whole = jax.tree.map(lambda leaf: sharding.replicated(mesh), shapes)
        lowered = sharding.jit(draw, mesh).lower(*sharding.abstract_like(shapes, whole))
    else:
        part, planned = plan_case(name, full)
        lowered = lower_step(planned, mesh, part.batch_size)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    text = program.as_text()
    if name in SAMPLING:
        text = body_of_loop(text)
    return text, seconds, program.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Prints a row for each case that the command line names, or for all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = CASES | SAMPLING
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--full", action="store_true", help="The published networks.")
    parser.add_argument("--data", type=int, default=1, help="Devices along data.")
    parser.add_argument("--fsdp", type=int, default=1, help="Devices along fsdp.")
    parser.add_argument("--largest", type=int, default=0, help="Kernels to list.")
    parser.add_argument("--save", help="File for the text of the last program.")
    parser.add_argument("--text", help="Such a file, in place of compiling.")
    options = parser.parse_args()
    check_cases(options.names, known)
    for name in [options.text] if options.text else options.names or known:
        row = {"name": name}
        if options.text:
            text = pathlib.Path(name).read_text()
        else:
            mesh = options.data, options.fsdp
            text, seconds, temporary = compile_text(name, options.full, *mesh)
            row |= {"full": options.full, "seconds_compiling": round(seconds, 1)}
            row["temporary_gb"] = round(temporary / 1e9, 2)
        if options.save:
            pathlib.Path(options.save).write_text(text)
        found = read_kernels(text)
        print(json.dumps(row | summarise(found)), flush=True)
        for kernel in sorted(found, key=lambda k: -k.moved)[: options.largest]:
            print(f"{kernel.moved / 1e6:9.1f} MB  {kernel.name}  {kernel.source}")


if __name__ == "__main__":
    main()
