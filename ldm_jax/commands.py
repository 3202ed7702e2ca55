"""The installed commands: each loads its room, during which Ctrl-C is one line.

Loading takes seconds, so that it begins only once that is arranged.
"""

import gc
import importlib
import os
import signal
from types import FrameType

# What Ctrl-C says.
STOPPED = "stopped by Ctrl-C"


def train() -> None:
    """Runs `ldm-train`, which `train.py` is, too."""
    _run("training")


def sample() -> None:
    """Runs `ldm-sample`, which `sample.py` is, too."""
    _run("sampling")


def convert() -> None:
    """Runs `ldm-convert`."""
    _run("convert")


def encode() -> None:
    """Runs `ldm-encode`."""
    _run("encoding")


def evaluate() -> None:
    """Runs `ldm-evaluate`."""
    _run("evaluation")


def reference() -> None:
    """Runs `ldm-reference`."""
    _run("evaluation", "make_reference")


def sweep() -> None:
    """Runs `ldm-sweep`."""
    _run("evaluation.sweep")


def nearest() -> None:
    """Runs `ldm-nearest`."""
    _run("evaluation.nearest")


def plan() -> None:
    """Runs `ldm-plan`."""
    _run("planning")


def _run(room, module="__main__"):
    signal.signal(signal.SIGINT, interrupt)
    # Nothing of what is loaded is garbage: to look for it takes a fifth of the time to
    # load, and later again each time that much has been made.
    gc.disable()
    loaded = importlib.import_module(f"ldm_jax.{room}.{module}")
    gc.freeze()
    gc.enable()
    loaded.main()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: raises, but ends at once in an import, where C code would print it.

    Args:
      number: Number of the signal.
      frame: What it interrupts.

    Raises:
      KeyboardInterrupt: Outside of imports.
    """
    above = frame
    while above is not None:
        if above.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, f"\n{STOPPED}\n".encode())
            os._exit(128 + number)
        above = above.f_back
    signal.default_int_handler(number, frame)
