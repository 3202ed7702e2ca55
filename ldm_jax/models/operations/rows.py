"""How a batch lies on the devices of the mesh that a program is traced with."""

import jax
from jax.sharding import PartitionSpec as P


def spec_of_rows(batch: int) -> P:
    """Says how rows are split, see `sharding.on_mesh`.

    Args:
      batch: Their number.

    Returns:
      Over all axes of the mesh; not at all without one of several devices in sight, or
      if their number does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1 or batch % mesh.size
    return P() if alone else P(mesh.axis_names)
