"""Sampling: from a workdir and flags to images.

    flags --flag_values--> values --conditions--> example, batch --program--> images

`task.py` says which flags go together, `options.py` completes the options from the
config, `run.py` is the run, and `output.py` writes the samples and shows them beside
their conditions. From Python:

    trained = load_model(workdir)
    options = complete(trained, {"num_steps": 20, "guidance_scale": 4.0})
    run(trained, outdir, {"prompt": ["a red star"]}, RunOptions(seed=1), options)
"""

from ldm_jax.sampling.options import RunOptions, complete
from ldm_jax.sampling.run import run
from ldm_jax.trained import Trained, load_model

__all__ = ["RunOptions", "Trained", "complete", "load_model", "run"]
