"""Trains one stage: `python train.py --help` says how, and `ldm-train` is the same."""

from ldm_jax.commands import train

if __name__ == "__main__":
    train()
