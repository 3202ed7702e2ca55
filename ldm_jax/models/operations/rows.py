"""Sharding of arrays within programs, over the mesh that they are traced under.

Rows (the batch axis) are split over all devices. Kernels, which are split over `fsdp`,
are gathered for their products (ZeRO stage 3, Rajbhandari et al. 2020). Without this
XLA would split some products by the channels of their kernels instead, and communicate
activations.
"""

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from ldm_jax.annotations import Array, Float, Num


def mesh_in_sight() -> AbstractMesh | None:
    """Returns the mesh that the program is traced under, see `sharding.on_mesh`.

    Returns:
      The mesh; None without one, or if it has a single device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def is_scattered() -> bool:
    """Returns whether a batch may be split over devices of an unknown mesh.

    Returns:
      True if JAX has several devices and the program is traced without a mesh.
    """
    return jax.device_count() > 1 and jax.sharding.get_abstract_mesh().empty


def is_alone() -> bool:
    """Returns whether the program is traced for one device, so that no batch is split.

    Returns:
      True if it is, and not inside of `shard_map`.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return mesh_in_sight() is None and not manual and not is_scattered()


def spec_of_rows(batch: int) -> P:
    """Returns the PartitionSpec of arrays with a batch axis.

    Args:
      batch: Size of the batch axis.

    Returns:
      Split over all axes of the mesh; replicated without a mesh of several devices, or
      if the number of rows does not divide.
    """
    mesh = mesh_in_sight()
    return P() if mesh is None or batch % mesh.size else P(mesh.axis_names)


def split_rows(array: Num[Array, "batch ..."]) -> Num[Array, "batch ..."]:
    """Constrains an array to be split over devices along its batch axis only.

    Args:
      array: [B, ...].

    Returns:
      The array, sharded by `spec_of_rows`; without a mesh of several devices the
      sharding is left to XLA.
    """
    if mesh_in_sight() is None:
        return array
    return jax.lax.with_sharding_constraint(array, spec_of_rows(len(array)))


def kernels_are_split() -> bool:
    """Returns whether the current mesh splits kernels.

    Returns:
      True if its axis `fsdp` is larger than 1.
    """
    mesh = mesh_in_sight()
    return mesh is not None and mesh.shape.get("fsdp", 1) > 1


def gather(kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """Replicates a kernel on each device; the sharding of its gradient is left to XLA.

    Args:
      kernel: [...] in the compute type, in which it is communicated.

    Returns:
      The kernel.
    """
    return _whole(kernel) if kernels_are_split() else kernel


@jax.custom_vjp
def _whole(kernel):
    # Without the barrier XLA would replicate the parameter itself, in float32.
    kernel = jax.lax.optimization_barrier(kernel)
    return jax.lax.with_sharding_constraint(kernel, P())


# The constraint's default gradient would replicate the summed gradients, too.
_whole.defvjp(lambda kernel: (_whole(kernel), None), lambda kept, gradient: (gradient,))
