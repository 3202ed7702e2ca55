"""Prints the metrics of runs: `python -m ldm_jax.evaluation.summary WORKDIR ...`."""

import json
import os
import pathlib
import sys

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
      FileNotFoundError: If the run has logged nothing.
    """
    step, last = 0, {}
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        metrics = json.loads(line)
        step = metrics.pop("step")
        last |= metrics
    return step, last


def main(workdirs: list[str]) -> None:
    """Prints a line per run, and the files of its newest previews.

    Args:
      workdirs: Folders of the runs.
    """
    for workdir in workdirs:
        step, metrics = summarise(workdir)
        numbers = [f"{k} {metrics[k]:.4g}" for k in SHOWN if k in metrics]
        print(f"{workdir}: {step} steps, " + ", ".join(numbers))
        for name in ("reconstructions", "samples"):
            previews = sorted(pathlib.Path(workdir).glob(f"previews/{name}_*.png"))
            if previews:
                print(f"  {name}: {previews[-1]}")


if __name__ == "__main__":
    main(sys.argv[1:])
