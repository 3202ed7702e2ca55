"""The plan of a run: all its numbers, from a config, a mesh and a chip."""

import dataclasses
from typing import Any

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from ldm_jax import sharding
from ldm_jax.chips import Chip
from ldm_jax.config import NETWORKS
from ldm_jax.errors import ConfigError
from ldm_jax.flops import count_flops
from ldm_jax.models.operations.kernels import AUTO, check_kernel
from ldm_jax.planning.abstract import Given, Planned, make_planned
from ldm_jax.planning.advice import Way, ways_to_fit
from ldm_jax.planning.cost import Cost, cost_of_run
from ldm_jax.planning.forward import Network, encoding_flops, networks
from ldm_jax.planning.memory import ROWS, Memory, MemoryOf

# Fraction of a chip's memory that a plan may use: the count of activations is off by a
# few per cent, and programs themselves take memory.
PLANNED_FRACTION = 0.9


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a plan, beside the config.

    Attributes:
      chip: Chip.
      chip_name: Its name.
      mesh: Mesh with the axes `data` and `fsdp`.
      mfu: Fraction of the chips' peak that the run reaches.
      price: Price of an hour of one chip, or None.
    """

    chip: Chip
    chip_name: str
    mesh: AbstractMesh
    mfu: float
    price: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
      planned: Planned, with `einsum` as the attention kernel, whose FLOPs are counted.
      options: Options.
      networks: Name -> Network.
      executed: Floating-point operations of a step for one image as executed, with the
        recomputation of remat.
      encoding: Operations of encoding one image for stages on latents, else None.
      memory: Memory.
      fits: Whether it fits in PLANNED_FRACTION of the chip's memory.
      ways: Changes that make it fit if it does not.
      cost: Cost of the run.
    """

    planned: Planned
    options: Options
    networks: dict[str, Network]
    executed: float
    encoding: float | None
    memory: Memory
    fits: bool
    ways: list[Way]
    cost: Cost

    @property
    def training_flops(self) -> float:
        """Operations of a training step for one image, without recomputation."""
        return sum(network.training for network in self.networks.values())

    def to_json(self) -> dict[str, Any]:
        """Returns all numbers.

        Returns:
          JSON-like dict; in bytes, operations, seconds and hours.
        """
        config, memory = self.planned.config, self.memory
        return {
            "stage": config.stage,
            "chip": self.options.chip_name,
            "mesh": dict(self.options.mesh.shape),
            "batch_size": config.train.batch_size,
            "num_steps": config.train.num_steps,
            "networks": {
                name: dataclasses.asdict(network)
                for name, network in self.networks.items()
            },
            "flops_per_image": {
                "training": self.training_flops,
                "executed": self.executed,
                "encoding": self.encoding,
            },
            "bytes_per_device": _with_sums(memory),
            "chip_bytes": self.options.chip.memory,
            "fits": self.fits,
            "ways_to_fit": [
                {"flags": way.flags, "peak": way.memory.peak, "fits": way.fits}
                for way in self.ways
            ],
            "mfu": self.options.mfu,
            "run": dataclasses.asdict(self.cost),
        }


def _with_sums(memory):
    sums = {"temporary": memory.temporary, "peak": memory.peak}
    return dataclasses.asdict(memory) | sums


def make_mesh(data: int, fsdp: int) -> AbstractMesh:
    """Makes the mesh of a plan; no devices are needed.

    Args:
      data: Devices along `data`; -1 for one.
      fsdp: Devices along `fsdp`.

    Returns:
      AbstractMesh with the axes `data` and `fsdp`.

    Raises:
      ConfigError: If a size is not a number of devices.
    """
    if fsdp < 1 or (data < 1 and data != -1):
        raise ConfigError(
            f"the mesh data={data} x fsdp={fsdp} has no devices: give 1 or more along "
            "each axis, as --mesh=data=8,fsdp=4"
        )
    return AbstractMesh((1 if data == -1 else data, fsdp), ("data", "fsdp"))


def _counted(config):
    """The config with `einsum` attention, whose operations can be counted.

    Kernels are those of the process's device, not of the planned one.  They take no
    more memory.
    """
    changed = config.copy_and_resolve_references()
    section = changed[NETWORKS[config.stage]]
    check_kernel(section.get("attention_kernel", AUTO))
    with changed.unlocked():
        section.attention_kernel = "einsum"
    return changed


def make_plan(config: ConfigDict, given: Given, options: Options) -> Plan:
    """Plans a run.

    Args:
      config: ConfigDict, with checked values.
      given: Given.
      options: Options.

    Returns:
      Plan.

    Raises:
      ConfigError: If the config is wrong, something that it leaves open is not given,
        or its batch cannot be split over the mesh.
    """
    train, mesh = config.train, options.mesh
    sharding.check_batch_size(train.batch_size, mesh, parts=train.accumulate_steps)
    config = _counted(config)
    planned = make_planned(config, given)
    memory_of = MemoryOf(planned)
    memory = memory_of.on(mesh, train.batch_size, train.accumulate_steps)
    limit, ways = PLANNED_FRACTION * options.chip.memory, []
    if memory.peak > limit:

        def with_remat(changed):
            return MemoryOf(make_planned(changed, given))

        ways = ways_to_fit(config, mesh, limit, memory_of, with_remat)
    found = networks(planned)
    total = sum(network.training for network in found.values())
    run = train.batch_size, train.num_steps, options.chip, mesh.size
    return Plan(
        planned=planned,
        options=options,
        networks=found,
        executed=count_flops(memory_of.jaxpr) / (ROWS * memory_of.parts),
        encoding=None if config.stage == "autoencoder" else encoding_flops(planned),
        memory=memory,
        fits=memory.peak <= limit,
        ways=ways,
        cost=cost_of_run(total, *run, options.mfu, options.price),
    )
