"""Draws images: `python sample.py --help` says how, and `ldm-sample` is the same."""

from ldm_jax.sampling.__main__ import main

if __name__ == "__main__":
    main()
