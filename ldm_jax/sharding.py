"""The device mesh, the sharding rule of parameters, and batches on devices.

Everything runs under `jit` with global semantics: models and steps never name a mesh
axis.  The mesh has two axes, `data` and `fsdp`; a batch is split over both, a parameter
only over `fsdp`, along its largest divisible dimension and only if it is large enough
to be worth it (the shape rule of big_vision's `sharding.py`).  One device is the 1 x 1
case of the same code.
"""

import functools
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jaxlib
import numpy as np
from absl import logging
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax.annotations import Array, Int, Shaped
from ldm_jax.errors import ConfigError

# Smaller arrays are replicated: the memory saved would not be worth a collective.
MIN_SHARDED_ELEMENTS = 2**18

# On CPUs XLA uses YNNPACK for matrix products, convolutions and sums, but its own
# convolutions, by Eigen, are faster (measured: see benchmarks/RESULTS.md).
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
_ALL_BUT_CONVOLUTIONS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# Versions of jaxlib (from, below) that know these names.
_WITH_LIBRARY = (0, 10), (0, 13)


def make_mesh(
    data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Builds the `data` x `fsdp` mesh over all devices.

    Args:
      data: Devices along `data`; -1 for all devices divided by `fsdp`.
      fsdp: Devices along `fsdp`, over which large parameters are split.
      devices: `jax.Device`s to use, or objects with their attributes; all devices of
        all processes by default.

    Returns:
      A `jax.sharding.Mesh` with the axes `data` and `fsdp`.

    Raises:
      ConfigError: If the two sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1 and fsdp > 0 and count % fsdp == 0:
        data = count // fsdp
    if data < 1 or fsdp < 1 or data * fsdp != count:
        raise ConfigError(
            f"the mesh data={data} x fsdp={fsdp} does not cover {count} devices; "
            "set train.mesh.data=-1 and train.mesh.fsdp to a divisor of the count"
        )
    return Mesh(_device_grid(devices, data, fsdp), ("data", "fsdp"))


def _device_grid(devices, data, fsdp):
    """Orders devices as [data, fsdp], by the interconnect and slice by slice.

    The network between slices (of TPUs, or of GPUs on one NVLink) is slow: if possible
    only sums over `data` cross it, and each `fsdp` group is within one slice.
    """
    if devices[0].platform == "cpu":
        return np.asarray(devices).reshape(data, fsdp)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return _slice_grid(devices, data, fsdp)
    if data % slices == 0:
        grid, over = (data // slices, fsdp), (slices, 1)
    else:
        # A group spans several slices, which must be whole ones.
        each = len(devices) // slices
        if fsdp % each:
            raise ConfigError(
                f"the mesh data={data} x fsdp={fsdp} cuts slices of {each} devices "
                f"apart: set train.mesh.fsdp to a divisor of {each} or a multiple of it"
            )
        grid, over = (1, each), (data, fsdp // each)
        logging.warning(
            "train.mesh.fsdp=%d spans slices of %d devices: parameters cross the slow "
            "network in every step",
            fsdp,
            each,
        )
    by_slice = {}
    for device in devices:
        by_slice.setdefault(device.slice_index, []).append(device)
    grids = [_slice_grid(by_slice[index], *grid) for index in sorted(by_slice)]
    wide = over[1]
    rows = [np.concatenate(grids[i : i + wide], 1) for i in range(0, slices, wide)]
    return np.concatenate(rows)


def _slice_grid(devices, data, fsdp):
    """The devices of a slice as [data, fsdp], in the order of the interconnect."""
    try:
        return mesh_utils.create_device_mesh(
            (data, fsdp), devices, allow_split_physical_axes=True
        )
    except NotImplementedError:
        # JAX has no better order for this shape than the given one.
        return np.asarray(devices).reshape(data, fsdp)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on every device.

    Args:
      mesh: Mesh of the devices.

    Returns:
      A NamedSharding.
    """
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits axis 0 over all devices.

    Args:
      mesh: Mesh of the devices.

    Returns:
      A NamedSharding.
    """
    return NamedSharding(mesh, P(("data", "fsdp")))


def on_mesh(function: Callable, mesh: Mesh | AbstractMesh) -> Callable:
    """Wraps a function to be traced under a mesh, for kernels that XLA cannot shard.

    Args:
      function: The function to be jitted.
      mesh: Mesh of the devices, or an abstract one.

    Returns:
      A function that does the same, with the mesh set while it is traced.
    """

    @functools.wraps(function, updated=())
    def traced(*arguments, **named):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments, **named)

    # JAX caches traces by function object, so the same wrapper must be returned each
    # time. It is kept on the function itself: a separate cache would keep alive what
    # the function holds, while this cycle can be garbage-collected.
    if not isinstance(function, types.FunctionType):
        return traced
    kept = vars(function).setdefault("_on_mesh", {})
    # Wrappers made with functools.wraps share this dict, so the key has the function.
    return kept.setdefault((function, mesh), traced)


def jit(function: Callable, mesh: Mesh | None = None, **options: Any) -> Callable:
    """Calls `jax.jit` on a function that runs networks on the devices of a mesh.

    The function is traced under the mesh, see `on_mesh`. For a single CPU it is
    compiled with XLA's own convolutions, unless `XLA_FLAGS` sets the library to use.

    Args:
      function: The function to be jitted. It should not close over weights: they would
        live until Python's garbage collection, and JAX would keep them as constants.
      mesh: Mesh of the devices of the arguments; None for one device of this process.
      **options: Other arguments of `jax.jit`.

    Returns:
      The jitted function. Call it at the top level: JAX does not allow compiler options
      inside of another jitted function or of `jax.grad`.
    """
    mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    function = on_mesh(function, mesh)
    return jax.jit(function, compiler_options=_compiler_options(mesh), **options)


def _compiler_options(mesh):
    """Compiler options that make programs of a mesh faster; None for XLA's defaults."""
    is_one_cpu = [each.platform for each in mesh.devices.flat] == ["cpu"]
    oldest, newest = _WITH_LIBRARY
    is_known = oldest <= jaxlib.version.__version_info__[:2] < newest
    if not is_one_cpu or not is_known or _LIBRARY in os.environ.get("XLA_FLAGS", ""):
        return None
    return {_LIBRARY: _ALL_BUT_CONVOLUTIONS}


def own_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " rows"]:
    """Returns the rows of a global batch that are on the devices of this process.

    They need not be contiguous, as devices are ordered by the interconnect.

    Args:
      mesh: Mesh of the devices.
      batch_size: Global batch size, a multiple of the number of devices.

    Returns:
      int64 [rows], ascending: the rows that `put_batch` expects, in this order.
    """
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in slices.values()]
    return np.sort(np.concatenate(rows))


def parameter_spec(shape: Sequence[int], fsdp: int) -> P:
    """Shards the largest dimension that `fsdp` divides, if the array is large enough.

    Args:
      shape: Shape of the array.
      fsdp: Size of the mesh axis `fsdp`.

    Returns:
      A `PartitionSpec`.
    """
    if fsdp == 1 or np.prod(shape, dtype=np.int64) < MIN_SHARDED_ELEMENTS:
        return P()
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if not divisible:
        return P()
    # Of equally large axes the last: output channels, contiguous in memory.
    axis = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*(None,) * axis, "fsdp")


def path_name(path: Iterable[Any]) -> str:
    """Joins a key path of a pytree to `params/backbone/conv_in/kernel`.

    Args:
      path: Key path from `jax.tree_util`.

    Returns:
      The names of the keys, joined by slashes.
    """
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
        for key in path
    )


def named_leaves(tree: Any) -> dict[str, Any]:
    """Lists the leaves of a pytree by name.

    Args:
      tree: Pytree.

    Returns:
      Name from `path_name` -> leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def tree_shardings(
    tree: Any,
    mesh: Mesh | AbstractMesh,
    overrides: Sequence[tuple[str, int | None]] = (),
) -> Any:
    """Returns the sharding of every array of a (possibly abstract) pytree.

    Args:
      tree: Pytree of arrays or `ShapeDtypeStruct`.
      mesh: Mesh with the axes `data` and `fsdp`, concrete or abstract.
      overrides: Pairs of (regular expression over the path, axis to split or None to
        replicate); the first that matches wins.

    Returns:
      A pytree of `NamedSharding` of the same structure.

    Raises:
      ConfigError: If an override names an axis that `fsdp` does not divide.
    """
    fsdp = mesh.shape["fsdp"]

    def spec(path, leaf):
        name = path_name(path)
        for pattern, axis in overrides:
            if re.search(pattern, name):
                return _override_spec(name, leaf.shape, axis, fsdp)
        return parameter_spec(leaf.shape, fsdp)

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path, leaf)), tree
    )


def _override_spec(name, shape, axis, fsdp):
    if axis is None:
        return P()
    if not 0 <= axis < len(shape) or shape[axis] % fsdp:
        raise ConfigError(
            f"train.sharding_overrides: axis {axis} of {name} {tuple(shape)} cannot be "
            f"split over fsdp={fsdp}; choose a dimension that {fsdp} divides"
        )
    return P(*(None,) * axis, "fsdp")


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Attaches shardings to the shapes and dtypes of a pytree.

    Args:
      tree: Pytree of arrays or `ShapeDtypeStruct`.
      shardings: Pytree of `NamedSharding` of the same structure.

    Returns:
      Pytree of `ShapeDtypeStruct` of the same structure.
    """
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        tree,
        shardings,
    )


def put_tree(tree: Any, shardings: Any) -> Any:
    """Puts host arrays, which are the same on every process, on the devices.

    Args:
      tree: Pytree of NumPy arrays.
      shardings: Pytree of `NamedSharding` of the same structure.

    Returns:
      Pytree of global `jax.Array`s.
    """

    def put(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: leaf[index]
        )

    return jax.tree.map(put, tree, shardings)


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Makes a global batch from the rows that each process has loaded.

    Args:
      batch: Dict of NumPy arrays [rows of this process, ...], see `own_rows`.
      mesh: Mesh over the devices of all processes.

    Returns:
      Dict of global arrays [rows of all processes, ...], split along axis 0.
    """
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value)
        for key, value in batch.items()
    }


def gathered(array: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."]:
    """Gathers a global array on each host; every process must call it.

    Args:
      array: Global array [...].

    Returns:
      The whole array [...].
    """
    if jax.process_count() > 1:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def check_batch_size(
    batch_size: int,
    mesh: Mesh | AbstractMesh,
    name: str = "train.batch_size",
    parts: int = 1,
) -> None:
    """Checks that a global batch splits evenly over the devices.

    Args:
      batch_size: Global batch size.
      mesh: Mesh over the devices of all processes, or an abstract one.
      name: The config key, for the message.
      parts: Number of micro-batches that the batch is cut into first.

    Raises:
      ConfigError: If it does not; the message suggests the nearest size that does.
    """
    unit = mesh.size * parts
    if batch_size > 0 and batch_size % unit == 0:
        return
    nearest = max(unit, round(batch_size / unit) * unit)
    cut = f" x {parts} micro-batches" if parts > 1 else ""
    raise ConfigError(
        f"{name}={batch_size} is not divisible by {mesh.size} devices{cut}; "
        f"use {name}={nearest}"
    )
