"""Draws images: the same as `python -m ldm_jax.sampling`, which has the text."""

from absl import flags

from ldm_jax.sampling import __main__ as command

# For --help.
__doc__ = command.__doc__
flags.adopt_module_key_flags(command)

if __name__ == "__main__":
    command.main()
