r"""Training, first stages and sampling on an accelerator, compared with PyTorch.

    python -m benchmarks.accelerator --json=accelerator.json
    python -m benchmarks.accelerator --parts=ldm4,sd1 --peers=compiled --minutes=13

Each part of `accelerators/parts.py` is measured by separate processes, one for our side
and one for each of PyTorch's (`torch.compile`, and eager; diffusers' modules of the
same shape). All compile at the same time and take turns to measure, which needs memory
for all of them; see `--apart`. Each row is printed and saved at once, the most valuable
parts come first, and with `--minutes` a part gets only the time that is left. No
internet connection is needed: weights and inputs are random.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.accelerators.parts import PARTS

ROOT = pathlib.Path(__file__).parent.parent


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="names, in order")
    parser.add_argument("--peers", default="compiled,eager", help="of PyTorch; or none")
    parser.add_argument("--json", default="accelerator.json", help="rows, appended")
    parser.add_argument("--minutes", type=float, default=1e9, help="for all parts")
    parser.add_argument("--seconds", type=float, default=12.0, help="to time a side")
    parser.add_argument("--tiny", action="store_true", help="toys, as on a CPU")
    parser.add_argument("--apart", action="store_true", help="one side after the other")
    options = parser.parse_args()
    peers = [name for name in options.peers.split(",") if name and name != "none"]
    for name in options.parts.split(","):
        if name not in PARTS:
            parser.error(f"--parts: {name} is unknown; choose from {', '.join(PARTS)}")
    end = time.monotonic() + 60 * options.minutes
    commit = _commit()
    for name in options.parts.split(","):
        left = end - time.monotonic()
        if left < 60:
            print(f"{name}: left out, {left:.0f} s are left", flush=True)
            continue
        for side, row in _measure(name, peers, options, left):
            row |= {"part": name, "side": side, "commit": commit}
            with open(options.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(_say(row), flush=True)


def _measure(name, peers, options, seconds):
    """Yields (side, row) of a part, each as soon as it is measured."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        waiting = {"jax": None, **dict.fromkeys(peers)}
        groups = [[side] for side in waiting] if options.apart else [list(waiting)]
        for group in groups:
            jobs = {side: _start(name, side, folder, options) for side in group}
            end = time.monotonic() + seconds
            while jobs:
                time.sleep(0.5)
                for side, job in list(jobs.items()):
                    if job.poll() is None and time.monotonic() < end:
                        continue
                    job.kill()
                    job.wait()
                    del jobs[side]
                    yield side, _read(folder, side, job.returncode)


def _start(name, side, folder, options):
    size = "tiny" if options.tiny else "full"
    turn, target = folder / "turn", folder / f"{side}.json"
    if side == "jax":
        module, words = "jax_side", [name, size, turn, target]
    else:
        _write_spec(name, size, folder / "spec.json")
        module, words = "torch_side", [side, folder / "spec.json", turn, target]
    environment = os.environ | {
        "PYTHONPATH": _search_path(),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "BENCHMARK_SECONDS": str(options.seconds),
    }
    log = open(folder / f"{side}.log", "w")
    program = [sys.executable, "-m", f"benchmarks.accelerators.{module}"]
    return subprocess.Popen(
        [*program, *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def _write_spec(name, size, path):
    """Writes the shapes of a part for PyTorch, in a process without an accelerator."""
    if not path.exists():
        words = [name, size, str(path)]
        module = "benchmarks.accelerators.spec"
        paths = {"PYTHONPATH": _search_path(), "JAX_PLATFORMS": "cpu"}
        subprocess.run(
            [sys.executable, "-m", module, *words],
            check=True,
            cwd=ROOT,
            env=os.environ | paths,
        )


def _search_path():
    """This repository and the PYTHONPATH, which may hold some of the packages."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _read(folder, side, status):
    path = folder / f"{side}.json"
    if path.exists():
        return json.loads(path.read_text())
    lines = (folder / f"{side}.log").read_text(errors="replace").strip().splitlines()
    return {"failed": f"exit {status}: {lines[-1] if lines else 'nothing was said'}"}


def _say(row):
    start = f"{row['part']:<16} {row['side']:<9}"
    if "failed" in row:
        return f"{start} {row['failed'][:300]}"
    text = f"{start} {row['ms']:10.1f} ms {row['images_per_s']:9.2f} images/s"
    if row.get("utilisation"):
        text += f"  {row['utilisation']:.1%} of peak"
    text += f"  {row['peak_gb']:.1f} GB  first call {row['first_call_s']:.0f} s"
    if "compile_s" in row:
        text += f" after compiling {row['compile_s']:.0f} s"
    kernels = row.get("kernels") or {}
    shares = ", ".join(f"{kind} {part:.0%}" for kind, part in kernels.items())
    if not shares:
        return text
    busy = f"{row['launches']} kernels, {row['busy_ms']:.1f} ms in all"
    return f"{text}\n{'':27}{busy}: {shares}"


def _commit():
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
