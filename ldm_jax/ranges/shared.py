"""Checks that several sections share."""

from ldm_jax.ranges.checks import Check, real, several, text, whole

# Maximum number of training steps, and maximum width of a layer.
STEPS = 2**31 - 1
WIDTH = 2**16
# Maximum side of an image in pixels.
SIDE = 2**15

SEED = whole(0, 2**64 - 1)
FRACTION = real(0, 1)
FLAG = Check("True or False", lambda value: isinstance(value, bool))
DECAY = real(0, 1, ")")
WORDS = several(text())
GIGABYTES = real(0, 1e6, "(")
EVERY = whole(0, STEPS, none="off", zero="off")
