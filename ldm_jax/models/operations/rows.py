"""How arrays lie on the devices of the mesh that a program is traced with.

Rows are split over all of them. Kernels, which `fsdp` splits, are gathered for their
products (ZeRO's third stage, Rajbhandari et al. 2020). Left to itself XLA splits some
products by the channels of their kernels instead, and sends activations to and fro.
"""

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from ldm_jax.annotations import Array, Float, Num


def mesh_in_sight() -> AbstractMesh | None:
    """The mesh that a program is traced with, see `sharding.on_mesh`.

    Returns:
      It; None where there is none, or one of a single device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def is_scattered() -> bool:
    """Says whether a batch may be split over devices of which no mesh is in sight.

    Returns:
      Whether it may: JAX has several, and the program is traced without a mesh.
    """
    return jax.device_count() > 1 and jax.sharding.get_abstract_mesh().empty


def is_alone() -> bool:
    """Says whether a program is traced for one device, so that no batch is split.

    Returns:
      Whether it is, and not inside of `shard_map`.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return mesh_in_sight() is None and not manual and not is_scattered()


def spec_of_rows(batch: int) -> P:
    """Says how rows are split.

    Args:
      batch: Their number.

    Returns:
      Over all axes of the mesh; not at all without one of several devices in sight, or
      if their number does not divide.
    """
    mesh = mesh_in_sight()
    return P() if mesh is None or batch % mesh.size else P(mesh.axis_names)


def split_rows(array: Num[Array, "batch ..."]) -> Num[Array, "batch ..."]:
    """Has rows, and nothing else, split over devices.

    Args:
      array: [B, ...].

    Returns:
      The same, as `spec_of_rows` says; as XLA finds best where no mesh of several
      devices is in sight.
    """
    if mesh_in_sight() is None:
        return array
    return jax.lax.with_sharding_constraint(array, spec_of_rows(len(array)))


def kernels_are_split() -> bool:
    """Says whether the mesh in sight splits kernels.

    Returns:
      Whether it does.
    """
    mesh = mesh_in_sight()
    return mesh is not None and mesh.shape.get("fsdp", 1) > 1


def gather(kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """Has a kernel whole on each device, and its gradient split as XLA finds best.

    Args:
      kernel: [...] in the compute type, in which it travels.

    Returns:
      The same.
    """
    return _whole(kernel) if kernels_are_split() else kernel


@jax.custom_vjp
def _whole(kernel):
    # What the constraint is put on is whole: else the parameter itself, in float32.
    kernel = jax.lax.optimization_barrier(kernel)
    return jax.lax.with_sharding_constraint(kernel, P())


# The constraint's own gradient would have the sums on each device, too, and whole.
_whole.defvjp(lambda kernel: (_whole(kernel), None), lambda kept, gradient: (gradient,))
