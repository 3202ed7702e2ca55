"""The compiled programs of a run, and the training step for each batch shape.

`ldm-plan` traces and compiles the same programs ahead of a run: their arguments,
outputs and donation are defined only here.
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
    """Jits the initialisation of a state, directly into its shardings.

    Args:
      init: `init` of a Stage.
      shardings: Shardings of its TrainState.
      mesh: Mesh of the run.

    Returns:
      Jitted function of a typed key.
    """
    return sharding.jit(init, mesh, out_shardings=shardings)


def jit_step(train_step: Callable, shardings: Any, mesh: Mesh) -> Callable:
    """Jits the training step; the input state is donated.

    Args:
      train_step: `train_step` of a Stage.
      shardings: Shardings of its TrainState.
      mesh: Mesh of the run.

    Returns:
      Jitted function of (state, frozen, batch).
    """
    outputs = shardings, sharding.replicated(mesh)
    return sharding.jit(train_step, mesh, donate_argnums=0, out_shardings=outputs)


def jit_shown(function: Callable, mesh: Mesh) -> Callable:
    """Jits an evaluation or a preview, with results replicated for every process.

    Args:
      function: `eval_step` or `preview` of a Stage.
      mesh: Mesh of the run.

    Returns:
      Jitted function of (state, frozen, batch, typed key).
    """
    return sharding.jit(function, mesh, out_shardings=sharding.replicated(mesh))


class CompiledStep:
    """A training step that is compiled at the first batch of each shape.

    Batches in buckets have several shapes. Every process gets them in the same order.

    Attributes:
      watch: Stopwatch of the steps; it is paused while compiling.
    """

    def __init__(
        self, step: Callable, batch_size: int, chips: int, console: Console
    ) -> None:
        """Creates it without compiling.

        Args:
          step: Jitted function of (state, frozen, batch).
          batch_size: Images per step, over all chips.
          chips: Number of chips.
          console: Console for lines.
        """
        self._step, self._console, self._programs = step, console, {}
        self.watch = Stopwatch(batch_size, chips)

    def prepare(self, *arguments: Any) -> None:
        """Compiles the program for a call, if that is not done yet.

        Args:
          *arguments: Arguments of the call.
        """
        key = _shapes(arguments[-1])
        if key in self._programs:
            return
        # Running computations must not count as part of the pause.
        jax.block_until_ready(arguments[0])
        with self.watch.paused():
            peers.progress()
            self._programs[key] = self._compile(arguments)
            peers.progress()

    def __call__(self, *arguments: Any) -> tuple[Any, dict]:
        """Runs a step.

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
        """Returns the compiled program and its FLOPs."""
        start = time.perf_counter()
        with noted() as attentions:
            traced = self._step.trace(*arguments)
        flops = count_flops(traced.jaxpr)
        if attentions:
            # Before compiling, which may fail for one of them.
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
    """Formats the size of a batch's images.

    Args:
      batch: Dict of arrays, or of ShapeDtypeStructs.

    Returns:
      Height and width of "image", or without one of the first map, as "64 x 64".
    """
    maps = [v for k, v in sorted(batch.items(), key=lambda i: i[0] != "image")]
    height, width = next(v.shape[1:3] for v in maps if v.ndim == 4)
    return f"{height} x {width}"
