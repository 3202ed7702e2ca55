"""The checkpoints of a run: saving, restoring, which ones stay."""

import concurrent.futures
import contextlib
from collections.abc import Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from ldm_jax import peers
from ldm_jax.checkpoint import checksums
from ldm_jax.checkpoint.best import Best, KeepBest, read_best, write_best
from ldm_jax.checkpoint.damage import DamagedCheckpoint
from ldm_jax.checkpoint.disk_watch import await_saved
from ldm_jax.checkpoint.folder import (
    CHECKPOINTS,
    Folder,
    absolute,
    refuse_unmarked,
    saved_steps,
)
from ldm_jax.checkpoint.items import is_old, load, rename, shapes_of, upgrade
from ldm_jax.checkpoint.state import TrainState, items_of
from ldm_jax.checkpoint.weights import read_meta
from ldm_jax.errors import CheckpointError, ConfigError, DiskError
from ldm_jax.files import remove_folder, writing
from ldm_jax.sharding import named_leaves
from ldm_jax.store import Place


class Checkpoints:
    """The checkpoints of one workdir: saved in the background, kept by policy.

    Attributes:
      workdir: Folder of the run, absolute.
    """

    def __init__(
        self, workdir: Folder, keep_last: int = 2, keep_every: int | None = None
    ) -> None:
        """Opens (and creates) the folder.

        Args:
          workdir: Folder of the run.
          keep_last: How many of the newest checkpoints stay, at least 1.
          keep_every: Steps divisible by it stay for ever; None or 0 keeps no others.

        Raises:
          ConfigError: If it would keep none.
        """
        if keep_last < 1:
            raise ConfigError(
                f"train.keep_last={keep_last} would delete every checkpoint: give 1 or "
                "more"
            )
        keep = ocp.training.preservation_policies
        self.workdir = absolute(workdir)
        self._folder = self.workdir / CHECKPOINTS
        self._best = KeepBest(self._recorded_best())
        refuse_unmarked(self._folder)
        policies = [keep.LatestN(keep_last), self._best]
        if keep_every:
            policies.append(keep.EveryNSteps(keep_every))
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=keep.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        # One thread, in which the checksums of what is on disk are made.
        self._sealer = concurrent.futures.ThreadPoolExecutor(1)
        self._sealed = None

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None where there is none."""
        return max(saved_steps(self._folder), default=None)

    @property
    def folders(self) -> list[Place]:
        """Folders of the checkpoints that are on disk, the oldest first."""
        return [self._folder / str(step) for step in saved_steps(self._folder)]

    @property
    def best(self) -> Best | None:
        """The best checkpoint so far; None if none is known and there."""
        return self._best.best

    def keep_if_best(self, found: Best) -> bool:
        """Keeps a checkpoint, in place of the best one so far, if it is better.

        Every process must call it.

        Args:
          found: Of which step, and by which result.

        Returns:
          Whether it is better.

        Raises:
          DiskError: If it, or the record of it, cannot be written.
        """
        if not self._best.takes(found):
            return False
        # The record names none that is not there.
        self.wait()
        if jax.process_index() == 0:
            write_best(self.workdir, found)
        return True

    def _recorded_best(self):
        """The best checkpoint by the record, if it is still there."""
        best = read_best(self.workdir)
        return best if best and best.step in saved_steps(self._folder) else None

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts to save; returns once the arrays have been copied off the devices.

        Args:
          step: Python int; saving a step twice does nothing.
          state: TrainState.
          meta: JSON-serialisable dict.

        Raises:
          DiskError: If this, or the one before, cannot be written.
        """
        if step == self.latest_step:
            return
        with self._on_disk():
            # What is being sealed must not be rotated away meanwhile.
            self._wait_for_seal()
            saving = self._checkpointer.save_checkpointables_async(
                step, items_of(state) | {"meta": meta}, force=True
            )
        if jax.process_index() == 0 or peers.several():
            self._sealed = self._sealer.submit(self._seal, saving, step, self._kept())

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Reads a state back onto the devices.

        Args:
          step: Step of a checkpoint.
          abstract_state: TrainState of `ShapeDtypeStruct` with shardings; the mesh may
            differ from the one that saved.

        Returns:
          TrainState of arrays.

        Raises:
          CheckpointError: If it cannot be read, is not what was saved or holds other
            shapes.
        """
        folder = self._folder / str(step)
        _verify_together(folder)
        targets = items_of(abstract_state)
        saved = shapes_of(folder, "params", "training")
        _check_structure(folder, upgrade(saved, saved), targets)
        if is_old(saved):
            targets = rename(targets, "backbone", "unet")
        items = upgrade(load(folder, targets), saved)
        return abstract_state.replace(
            params=items["params"],
            ema_params=items.get("ema_params", {}),
            **items["training"],
        )

    def meta(self, step: int) -> dict[str, Any]:
        """Reads the `meta` item of a checkpoint.

        Args:
          step: Step of the checkpoint.

        Returns:
          See `read_meta`.

        Raises:
          CheckpointError: If it cannot be read, or is not what was saved.
        """
        return read_meta(self._folder / str(step))

    def wait(self) -> None:
        """Blocks until what is being saved is on disk.

        Raises:
          DiskError: If it cannot be written; what was saved before is named.
        """
        with self._on_disk():
            self._checkpointer.wait()
            self._wait_for_seal()

    def close(self) -> None:
        """Waits and releases the folder; without it a running save is lost."""
        try:
            with self._on_disk():
                self._checkpointer.close()
        finally:
            self._sealer.shutdown()

    @contextlib.contextmanager
    def _on_disk(self):
        """What the disk refuses is one line; half a checkpoint is taken away again."""
        try:
            with writing(f"a checkpoint in {self._folder}", self._kept()):
                yield
        except DiskError:
            if jax.process_index() == 0:
                for half in self._folder.glob("*.orbax-checkpoint-tmp"):
                    remove_folder(half)
            raise

    def _kept(self):
        last = self.latest_step
        return f"the checkpoint of step {last} is whole" if last else "none was saved"

    def _seal(self, saving, step, kept):
        """Makes the checksums of a checkpoint once it is on disk."""
        try:
            with writing(f"a checkpoint in {self._folder}", kept):
                await_saved(saving, self._folder, kept)
        except DiskError as error:
            # Of several processes this one comes no further: the others stand at a
            # barrier that it has left.
            peers.give_up(str(error), error.exit_code)
            raise
        if jax.process_index() == 0:
            checksums.seal(self._folder / str(step))

    def _wait_for_seal(self):
        """Raises what kept a checkpoint from being saved, once."""
        sealed, self._sealed = self._sealed, None
        if sealed is not None:
            sealed.result()


def _verify_together(folder):
    """Compares all checksums of a checkpoint, each process a part of them."""
    index, count = jax.process_index(), jax.process_count()
    damage = checksums.find_damage(folder, part=(index, count))
    # All must know, lest the others wait for the one that found it.
    damage = next(filter(None, peers.gather(damage or "")), None)
    if damage:
        raise DamagedCheckpoint(folder, damage)


def _check_structure(folder, saved, targets):
    """Compares names and shapes before Orbax does, whose message names neither."""
    saved = {name: _flat_shapes(tree) for name, tree in saved.items()}
    wanted = {name: _flat_shapes(tree) for name, tree in targets.items()}
    for item in saved.keys() | wanted.keys():
        shapes, found = wanted.get(item, {}), saved.get(item, {})
        for name in sorted(shapes.keys() | found.keys()):
            if shapes.get(name) != found.get(name):
                raise CheckpointError(
                    f"{folder} belongs to another model: {item}/{name} is "
                    f"{found.get(name, 'absent')} there and "
                    f"{shapes.get(name, 'absent')} here; use the config that made it "
                    "or another --workdir"
                )


def _flat_shapes(tree):
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}
