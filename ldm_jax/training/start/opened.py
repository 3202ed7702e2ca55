"""What a run begins with."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run begins with, as `opening.open_run` opens it.

    Attributes:
      config: ConfigDict.
      mesh: Mesh of its devices.
      checkpoints: Checkpoints of its workdir.
      start: Step of the checkpoint that it goes on from; 0 for a new run.
      meta: What each checkpoint records; "init_from" is added where a run starts from
        weights of another.
      data: Its `Data`.
      stage: The Stage that it trains.
      writer: Where numbers and images go.
      console: Where lines go.
      abstract: Its TrainState, of shapes and dtypes.
      shardings: How that is split over the mesh.
      frozen: Frozen weights of the stage, on the devices.
    """

    config: Any
    mesh: Any
    checkpoints: Any
    start: int
    meta: dict
    data: Any
    stage: Any
    writer: Any
    console: Any
    abstract: Any
    shardings: Any
    frozen: Any
