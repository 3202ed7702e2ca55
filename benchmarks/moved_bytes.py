"""What the kernels of a training step move on an H100; no GPU is needed.

The step is compiled by XLA's compiler for that device, as in `planner.py`, whose head
has the packages.  Counted are the bytes that each kernel reads and writes, by the part
of the network that it is of, how many kernels there are, and how many differ:

    python -m benchmarks.moved_bytes [--full] [--largest=20] [--save=FILE] [NAME ...]
    python -m benchmarks.moved_bytes --text=FILE

Nothing is timed: at 3,350 GB/s the bytes say what a step takes at least beside its
arithmetic.  Algorithms are not tried out, so matrix products are cuBLAS's, and what
libraries move inside of them is not counted.
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

from jax._src.cudnn import fused_attention_stablehlo as cudnn  # noqa: E402

from benchmarks.accelerators.moved import read_kernels, summarise  # noqa: E402
from benchmarks.planner import CASES, check_cases, h100_mesh, plan_case  # noqa: E402
from ldm_jax.models.operations import kernels  # noqa: E402
from ldm_jax.planning.ahead import lower_step  # noqa: E402


def compile_text(name: str, full: bool) -> tuple[str, float, int]:
    """Compiles a training step for an H100.

    Args:
      name: Key of `planner.CASES`.
      full: Whether the network is the published one.

    Returns:
      (text of the program, seconds of compiling, bytes of its temporaries).
    """
    # As on the device, which is not there to be asked.
    kernels.this_device = lambda: kernels.Device("cuda", (9, 0))
    cudnn.check_cudnn_version = lambda: 91000
    cudnn.check_compute_capability = lambda capability: capability == "9.0"
    part, planned = plan_case(name, full)
    lowered = lower_step(planned, h100_mesh(), part.batch_size)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    return program.as_text(), seconds, program.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Prints a row of what the command line names, or of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--full", action="store_true", help="The published networks.")
    parser.add_argument("--largest", type=int, default=0, help="Kernels to list.")
    parser.add_argument("--save", help="File for the text of the last program.")
    parser.add_argument("--text", help="Such a file, in place of compiling.")
    options = parser.parse_args()
    check_cases(options.names)
    for name in [options.text] if options.text else options.names or CASES:
        row = {"name": name}
        if options.text:
            text = pathlib.Path(name).read_text()
        else:
            text, seconds, temporary = compile_text(name, options.full)
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
