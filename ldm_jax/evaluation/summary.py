"""Prints the last metrics of runs.

    python -m ldm_jax.evaluation.summary runs/autoencoder runs/class

One line per run, and the files of its newest previews.
"""

import json
import os

from ldm_jax import cli
from ldm_jax.errors import ConfigError
from ldm_jax.store import as_path, is_file

SHOWN = (
    "loss",
    "eval/psnr",
    "eval/loss_simple",
    "images_per_s",
    "tflops_per_s_per_chip",
    "utilisation",
)


def summarise(workdir: str | os.PathLike[str]) -> tuple[int, dict[str, float]]:
    """Collects the last value of each metric of a run.

    Args:
      workdir: Folder with `metrics.jsonl`.

    Returns:
      (steps done, dict of name -> last value).

    Raises:
      ConfigError: If there is no `metrics.jsonl`, or a line of it is not a run's.
    """
    step, last = 0, {}
    path = as_path(workdir) / "metrics.jsonl"
    if not is_file(path):
        raise ConfigError(f"{workdir} holds no metrics.jsonl: name the folder of a run")
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            metrics = json.loads(line)
            step = metrics.pop("step")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            if number == len(lines):
                # The line is being written, or was truncated when the run was killed.
                break
            raise ConfigError(
                f"{path}, line {number}, is none of a run's: remove it"
            ) from error
        last |= metrics
    return step, last


def _main(argv: list[str]) -> None:
    """Prints one line per run, and the files of its newest previews."""
    for workdir in argv[1:]:
        step, metrics = summarise(workdir)
        numbers = [f"{k} {metrics[k]:.4g}" for k in SHOWN if k in metrics]
        print(f"{workdir}: {step} steps, " + ", ".join(numbers))
        for name in ("reconstructions", "samples"):
            previews = sorted(as_path(workdir).glob(f"previews/{name}_*.png"))
            if previews:
                print(f"  {name}: {previews[-1]}")


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, arguments="WORKDIR ...", uses_jax=False)


if __name__ == "__main__":
    main()
