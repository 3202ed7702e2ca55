"""Entry points of the installed commands, each of which imports its package.

Importing takes seconds, so the handler that makes Ctrl-C print one line is installed
first.
"""

import gc
import importlib
import os
import signal
from types import FrameType

# The message on Ctrl-C.
STOPPED = "stopped by Ctrl-C"


def train() -> None:
    """Runs `ldm-train`, the same as `train.py`."""
    _run("training")


def sample() -> None:
    """Runs `ldm-sample`, the same as `sample.py`."""
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
    # Imported modules are no garbage: collection takes a fifth of the import time, and
    # would scan them again later.
    gc.disable()
    loaded = importlib.import_module(f"ldm_jax.{room}.{module}")
    gc.freeze()
    gc.enable()
    loaded.main()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handles Ctrl-C: raises, but during an import exits, as C code would print it.

    Args:
      number: Number of the signal.
      frame: Frame that the signal interrupts.

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
