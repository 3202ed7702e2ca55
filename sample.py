"""Draws images: `python sample.py --help` says how, and `ldm-sample` is the same."""

from ldm_jax.commands import sample

if __name__ == "__main__":
    sample()
