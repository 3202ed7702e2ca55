"""`python -m ldm_jax.data.shapes`: see `prepare.py`."""

from ldm_jax.data.shapes.prepare import main

main()
