"""Peak memory of the values of a program, beside its arguments.

The count models what XLA's compilers do on accelerators.  Matrix products,
convolutions, reductions and the like write their results to memory.  Elementwise
values are recomputed (fused) in every step that reads them, from values in memory, and
are written only if

- a matrix product, a convolution or a loop reads them, which need arrays in memory; or
- they join several values of their size, as a residual connection does, and are read
  several times: keeping the sum costs less than keeping its terms.

Views (reshapes, transposes) are not values of their own.  For a slice of an elementwise
value, as in the gradient of a concatenation, the same slices of the values that it is
computed from are kept instead of the whole ones.
Convolutions need kernels in their own layout: a kernel that is an argument has a copy
from its first convolution to its last, as have cast values.
"""

import collections
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ldm_jax.flops import inner_jaxprs
from ldm_jax.planning.flatten import CONTROL, Program, flatten
from ldm_jax.planning.order import grows, with_sums_last
from ldm_jax.planning.primitives import HEAVY, PARTS, REDUCTIONS, VIEWS


class Bytes(NamedTuple):
    """A size that is linear in the number of rows of a batch.

    Attributes:
      fixed: Bytes that do not depend on the batch.
      per_row: Bytes for each row.
    """

    fixed: float
    per_row: float

    def at(self, rows: int) -> float:
        """Returns the size for a batch.

        Args:
          rows: Number of rows of the batch.

        Returns:
          Bytes.
        """
        return self.fixed + rows * self.per_row


class Peak(NamedTuple):
    """Contents of memory at the peak, in bytes.

    Attributes:
      activations: Values that grow with the batch and are read again later.
      fixed: Values that do not grow with it: copies of weights, gradients.
      moving: Values that the operation at the peak reads for the last time, or writes.
    """

    activations: float
    fixed: float
    moving: float

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self)


class Lifetimes:
    """Lifetimes of the values of a program in memory."""

    def __init__(
        self,
        jaxpr: Any,
        rows: int,
        split: Callable[[Sequence[int]], float] = lambda shape: 1,
        sums_last: bool = False,
    ) -> None:
        """Computes the lifetimes.

        Args:
          jaxpr: ClosedJaxpr that was traced for a batch of `rows` rows.
          rows: A prime: axes whose size is a multiple of it grow with the batch.
          split: Shape of a value that does not grow with the batch, such as a gradient
            -> number of devices that it is split over.  It depends only on the shape.
          sums_last: Whether gradients of weights are computed last, as is the case if
            they are summed over devices, see `order.with_sums_last`.
        """
        self._program: Program = flatten(jaxpr)
        if sums_last:
            self._program = with_sums_last(self._program, rows)
        self._rows, self._split, self._sums_last = rows, split, sums_last
        # View -> the value that it is a view of.
        self._base: dict[int, int] = {}
        self._readers: collections.Counter[int] = collections.Counter()
        self._arguments = set(self._program.arguments)
        self._written: set[int] = set(self._program.arguments)
        self._split_up: set[int] = set()
        self._mark()
        # Value in memory -> the step that makes it, and the last step that reads it.
        self._lives: dict[int, tuple[int, int]] = {}
        self._loops: dict[int, tuple[Lifetimes, list[int]]] = {}
        self._follow()

    def peak(self, rows: int) -> "Peak":
        """Returns the contents of memory at the peak.

        Args:
          rows: Rows of a batch.

        Returns:
          Peak, without arguments, and without results, which reuse their memory.
        """
        profile = self._profile(rows)
        if not profile:
            return Peak(0.0, 0.0, 0.0)
        at = max(range(len(profile)), key=profile.__getitem__)
        rows_, fixed, moving = (0.0, 0.0, 0.0)
        for value, (start, end) in self._lives.items():
            if not start <= at <= end:
                continue
            size = self._size(value)
            rows_ += rows * size.per_row * (start < at < end)
            fixed += size.fixed * (start < at < end)
            moving += size.at(rows) * (at in (start, end))
        loop = self._loops.get(at)
        if loop is None:
            return Peak(rows_, fixed, moving)
        # A loop updates its carry in place.
        inner, twice = loop[0].peak(rows), self._bytes_of(loop[1], rows)
        return Peak(
            rows_ + inner.activations,
            fixed + inner.fixed,
            moving + inner.moving - twice,
        )

    def _profile(self, rows):
        """Bytes in memory at each step."""
        count = len(self._program.steps)
        change = [0.0] * (count + 1)
        for value, (start, end) in self._lives.items():
            size = self._size(value).at(rows)
            change[start] += size
            change[end + 1] -= size
        profile = list(itertools.accumulate(change[:count]))
        for index, (inner, carried) in self._loops.items():
            twice = self._bytes_of(carried, rows)
            profile[index] += inner.peak(rows).total - twice
        return profile

    def _bytes_of(self, values, rows):
        return sum(self._size(value).at(rows) for value in values)

    def _mark(self):
        """Finds views, the readers of values, and values that are always written."""
        for step in self._program.steps:
            inputs = [self._base_of(value) for value in step.inputs]
            self._readers.update(set(inputs))
            if self._is_view(step):
                self._readers.subtract(set(inputs))
                self._base[step.outputs[0]] = inputs[0]
            elif step.name in HEAVY:
                self._written.update(inputs, step.outputs)
                self._split_up.update(step.outputs)
            elif step.name.startswith(REDUCTIONS):
                self._written.update(step.outputs)
                self._split_up.update(step.outputs)

    def _follow(self):
        roots: dict[int, frozenset[int]] = {}
        results = {self._base_of(v) for v in self._program.results if v is not None}
        outside = results | set(self._program.arguments)

        def read(values):
            """The values in memory that these values are computed from."""
            bases = map(self._base_of, values)
            found = ({v} if v in self._written else roots.get(v, ()) for v in bases)
            return frozenset().union(*found)

        for index, step in enumerate(self._program.steps):
            if step.outputs[0] in self._base:
                continue
            sources = read(step.inputs)
            for value in step.outputs:
                if self._joins(value, sources):
                    self._written.add(value)
                roots[value] = sources
                if step.name in PARTS and value not in self._written:
                    roots[value] = self._parts(index, step, value, sources)
            written = self._written.intersection(step.outputs)
            if written or not results.isdisjoint(step.outputs):
                for value in (sources - outside) & self._lives.keys():
                    self._lives[value] = (self._lives[value][0], index)
            for value in written - outside:
                self._lives[value] = (index, index)
            if step.name in CONTROL:
                self._loops[index] = self._inside(step)
            elif step.name in HEAVY:
                self._copy(index, step)

    def _copy(self, index, step):
        """Copies of weights to multiply with, from their first use to their last.

        Sharded ones are gathered; kernels of convolutions get another layout.
        """
        inputs = [self._base_of(value) for value in step.inputs]
        kernel = inputs[1] if step.name == "conv_general_dilated" else None
        for value in self._arguments.intersection(inputs):
            if self._size(value).per_row:
                continue
            split = self._split(self._program.avals[value].shape) > 1
            if split or value == kernel:
                start, _ = self._lives.get(value, (index, index))
                self._lives[value] = (start, index)

    def _parts(self, index, step, value, sources):
        """The sources of a slice of a value: the same slice of each of its sources."""
        avals, whole = self._program.avals, self._base_of(step.inputs[0])
        if whole in self._written:
            return sources
        found = set()
        for source in sources:
            if source not in self._lives or avals[source].size != avals[whole].size:
                found.add(source)
                continue
            avals.append(avals[value].update(dtype=avals[source].dtype))
            found.add(len(avals) - 1)
            self._lives[len(avals) - 1] = (index, index)
            self._lives[source] = (self._lives[source][0], index)
        return frozenset(found)

    def _inside(self, step):
        """Lifetimes in the body of a loop, and its carry."""
        how = self._rows, self._split, self._sums_last
        jaxprs = list(inner_jaxprs(step.eqn))
        bodies = [Lifetimes(jaxpr, *how) for jaxpr in jaxprs]
        body = max(bodies, key=lambda body: body.peak(self._rows).total)
        if step.name != "scan":
            return body, []
        # Stacked outputs have one axis more than in the body.
        inner = getattr(jaxprs[0], "jaxpr", jaxprs[0]).outvars
        pairs = zip(step.outputs, step.eqn.outvars, inner, strict=True)
        return body, [out for out, a, b in pairs if a.aval.shape == b.aval.shape]

    def _base_of(self, value):
        return self._base.get(value, value)

    def _is_view(self, step):
        if step.name in VIEWS:
            return len(step.inputs) == 1 == len(step.outputs)
        if step.name == "broadcast_in_dim" and len(step.inputs) == 1:
            avals = self._program.avals
            return avals[step.inputs[0]].size == avals[step.outputs[0]].size
        return False

    def _joins(self, value, sources):
        """Whether a value joins several values of its size and has several readers."""
        if value in self._written or self._readers[value] < 2 or len(sources) < 2:
            return False
        size = self._size(value).at(self._rows)
        large = [v for v in sources if 2 * self._size(v).at(self._rows) >= size]
        return len(large) > 1

    def _size(self, value):
        aval = self._program.avals[value]
        size = aval_bytes(aval)
        if grows(aval, self._rows):
            return Bytes(0.0, size / self._rows)
        # A gradient is split like its parameter; copies to multiply with are whole.
        split = self._split(aval.shape) if value in self._split_up else 1
        return Bytes(size / split, 0.0)


def aval_bytes(aval: Any) -> int:
    """Returns the size of an array.

    Args:
      aval: Its shape and type; a typed key counts as 8 bytes.

    Returns:
      Bytes.
    """
    if not hasattr(aval, "shape"):
        return 0
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return 8 * aval.size
    return aval.size * aval.dtype.itemsize
