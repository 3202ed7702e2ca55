"""Sampling: from a workdir and flags to pictures.

    flags --columns--> values --examples--> example, then batch --program--> images

`request.py` says which flags go together, `run.py` is the run, `sheet.py` shows what
was told beside what came of it.
"""

from ldm_jax.sampling.run import run
from ldm_jax.trained import Trained, load_model

__all__ = ["Trained", "load_model", "run"]
