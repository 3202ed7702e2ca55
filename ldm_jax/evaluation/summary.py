"""Prints the metrics of runs: `python -m ldm_jax.evaluation.summary WORKDIR ...`."""

import json
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


def summarise(workdir):
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


def main(workdirs):
    """Prints a line per run, and its newest pictures."""
    for workdir in workdirs:
        step, metrics = summarise(workdir)
        numbers = [f"{k} {metrics[k]:.4g}" for k in SHOWN if k in metrics]
        print(f"{workdir}: {step} steps, " + ", ".join(numbers))
        for name in ("reconstructions", "samples"):
            pictures = sorted(pathlib.Path(workdir).glob(f"previews/{name}_*.png"))
            if pictures:
                print(f"  {name}: {pictures[-1]}")


if __name__ == "__main__":
    main(sys.argv[1:])
