"""What a run compiles: its programs, and the training step for each shape of a batch.

`ldm-plan` traces and compiles the same programs ahead of a run: which arguments they
take and give, and what is donated, is said here alone.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from ldm_jax import peers, sharding
from ldm_jax.console import Console
from ldm_jax.flops import count_flops
from ldm_jax.models.operations.dot_product import noted
from ldm_jax.training.throughput import Stopwatch


def jit_init(init: Callable, shardings: Any, mesh: Mesh) -> Callable:
    """The program that draws a state directly into its shardings.

    Args:
      init: That of a Stage.
      shardings: How its TrainState is split.
      mesh: Mesh of the run.

    Returns:
      Jitted function of a typed key.
    """
    return sharding.jit(init, mesh, out_shardings=shardings)


def jit_step(train_step: Callable, shardings: Any, mesh: Mesh) -> Callable:
    """The program of a step; the state that it is given becomes the one it gives.

    Args:
      train_step: That of a Stage.
      shardings: How its TrainState is split.
      mesh: Mesh of the run.

    Returns:
      Jitted function of (state, frozen, batch).
    """
    outputs = shardings, sharding.replicated(mesh)
    return sharding.jit(train_step, mesh, donate_argnums=0, out_shardings=outputs)


def jit_shown(function: Callable, mesh: Mesh) -> Callable:
    """A program whose results every process shows: an evaluation or a preview.

    Args:
      function: `eval_step` or `preview` of a Stage.
      mesh: Mesh of the run.

    Returns:
      Jitted function of (state, frozen, batch, typed key).
    """
    return sharding.jit(function, mesh, out_shardings=sharding.replicated(mesh))


class CompiledStep:
    """A step that is compiled when a shape comes for the first time.

    Batches in buckets have several shapes. Every process meets them in the same order.

    Attributes:
      watch: Stopwatch of the steps; compiling does not count.
    """

    def __init__(
        self, step: Callable, batch_size: int, chips: int, console: Console
    ) -> None:
        """Compiles nothing yet.

        Args:
          step: Jitted function of (state, frozen, batch).
          batch_size: Images per step, over all chips.
          chips: Number of chips.
          console: Where lines go.
        """
        self._step, self._console, self._programs = step, console, {}
        self.watch = Stopwatch(batch_size, chips)

    def prepare(self, *arguments: Any) -> None:
        """Compiles what a call needs, if that is not done yet.

        Args:
          *arguments: Those of the call.
        """
        key = _shapes(arguments[-1])
        if key in self._programs:
            return
        # What is still being computed is not of the pause.
        jax.block_until_ready(arguments[0])
        with self.watch.paused():
            peers.progress()
            self._programs[key] = self._compile(arguments)
            peers.progress()

    def __call__(self, *arguments: Any) -> tuple[Any, dict]:
        """Takes a step.

        Args:
          *arguments: (state, frozen, batch).

        Returns:
          (state, metrics).
        """
        self.prepare(*arguments)
        program, flops = self._programs[_shapes(arguments[-1])]
        self.watch.step(flops)
        return program(*arguments)

    def _compile(self, arguments):
        """The program, and its floating-point operations."""
        start = time.perf_counter()
        with noted() as attentions:
            traced = self._step.trace(*arguments)
        flops = count_flops(traced.jaxpr)
        if attentions:
            # Before a compiler has its say, which may be that it cannot do it.
            self._console.line(f"attention: {attentions}")
        compiled = traced.lower().compile()
        seconds = time.perf_counter() - start
        size = f"{flops / 1e12:.3g} TFLOP per step"
        shape = image_shape(arguments[-1])
        self._console.line(
            f"compiled the training step for {shape} in {seconds:.1f} s, {size}"
        )
        return compiled, flops


def _shapes(batch: Mapping[str, Any]) -> tuple:
    return tuple((key, value.shape) for key, value in sorted(batch.items()))


def image_shape(batch: Mapping[str, Any]) -> str:
    """Says how large the images of a batch are.

    Args:
      batch: Dict of arrays, or of their shapes.

    Returns:
      Height and width of "image", or of the map that there is in its place.
    """
    maps = [v for k, v in sorted(batch.items(), key=lambda i: i[0] != "image")]
    height, width = next(v.shape[1:3] for v in maps if v.ndim == 4)
    return f"{height} x {width}"
