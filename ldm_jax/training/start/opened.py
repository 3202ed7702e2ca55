"""The dataclass of an open run."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a run needs, made by `opening.open_run`.

    Attributes:
      config: ConfigDict.
      mesh: Mesh of its devices.
      checkpoints: Checkpoints of its workdir.
      start: Step of the checkpoint to resume from; 0 for a new run.
      meta: `meta` of its checkpoints; "init_from" is added if the run starts from
        weights of another.
      data: Its `Data`.
      stage: The Stage that it trains.
      writer: Writer of metrics and images.
      console: Console for lines.
      abstract: Shapes and dtypes of its TrainState.
      shardings: Shardings of its TrainState.
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
