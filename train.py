"""Trains one stage: the same as `python -m ldm_jax.training`, which has the text."""

from absl import flags

from ldm_jax.training import __main__ as command

# For --help.
__doc__ = command.__doc__
flags.adopt_module_key_flags(command)

if __name__ == "__main__":
    command.main()
