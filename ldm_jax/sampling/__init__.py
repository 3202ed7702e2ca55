"""Sampling: from a workdir and flags to images.

    flags --flag_values--> values --conditions--> example, batch --program--> images

`task.py` checks which flags go together, `options.py` fills in options from the config,
`sampler.py` draws samples, `run.py` is the command's run, `sample_files.py` writes the
samples, and `output.py` shows them beside their conditions. From Python:

    trained = load_model(workdir)
    options = complete(trained, {"num_steps": 20, "guidance_scale": 4.0})
    run(trained, outdir, {"prompt": ["a red star"]}, RunOptions(seed=1), options)

and without files, with an object that keeps its compiled programs:

    sampler = Sampler.load(workdir)
    images = sampler(prompt=["a red star"], seed=1, guidance_scale=4.0)
"""

from ldm_jax.sampling.options import RunOptions, complete
from ldm_jax.sampling.run import run
from ldm_jax.sampling.sampler import Sampler
from ldm_jax.trained import Trained, load_model

__all__ = ["RunOptions", "Sampler", "Trained", "complete", "load_model", "run"]
