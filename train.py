"""Trains one stage: `python train.py --help` says how, and `ldm-train` is the same."""

from ldm_jax.training.__main__ import main

if __name__ == "__main__":
    main()
