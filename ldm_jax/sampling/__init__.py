"""Sampling: from a workdir and flags to images.

    flags --flag_values--> values --conditions--> example, batch --program--> images

`task.py` says which flags go together, `run.py` is the run, and `output.py` writes the
samples and shows them beside their conditions.
"""

from ldm_jax.sampling.run import run
from ldm_jax.trained import Trained, load_model

__all__ = ["Trained", "load_model", "run"]
