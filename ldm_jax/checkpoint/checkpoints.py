"""Saves and restores the checkpoints of a run, and deletes old ones."""

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
          keep_last: Number of newest checkpoints to keep, at least 1.
          keep_every: Checkpoints of steps divisible by it are kept for ever; None or 0
            keeps no others.

        Raises:
          ConfigError: If keep_last is less than 1.
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
        # One thread that computes the checksums of saved checkpoints.
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
        """The best checkpoint so far; None if none is recorded or it is gone."""
        return self._best.best

    def keep_if_best(self, found: Best) -> bool:
        """Keeps a checkpoint, instead of the best one so far, if it is better.

        Every process must call it.

        Args:
          found: Record of the checkpoint: its step and metric.

        Returns:
          Whether it is better.

        Raises:
          DiskError: If the checkpoint or its record cannot be written.
        """
        if not self._best.takes(found):
            return False
        # The record must not name a checkpoint that is not on disk yet.
        self.wait()
        if jax.process_index() == 0:
            write_best(self.workdir, found)
        return True

    def _recorded_best(self):
        """The recorded best checkpoint, if it still exists."""
        best = read_best(self.workdir)
        return best if best and best.step in saved_steps(self._folder) else None

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts to save; returns once the arrays have been copied off the devices.

        Args:
          step: Python int; saving the newest step again does nothing.
          state: TrainState.
          meta: JSON-serialisable dict.

        Raises:
          DiskError: If this checkpoint, or the one before, cannot be written.
        """
        if step == self.latest_step:
            return
        with self._on_disk():
            # A checkpoint must not be deleted while its checksums are computed.
            self._wait_for_seal()
            saving = self._checkpointer.save_checkpointables_async(
                step, items_of(state) | {"meta": meta}, force=True
            )
        if jax.process_index() == 0 or peers.several():
            self._sealed = self._sealer.submit(self._seal, saving, step, self._kept())

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Restores a state onto the devices.

        Args:
          step: Step of a checkpoint.
          abstract_state: TrainState of `ShapeDtypeStruct` with shardings; the mesh may
            differ from the one at saving.

        Returns:
          TrainState of arrays.

        Raises:
          CheckpointError: If it cannot be read, is damaged or has other shapes.
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
          CheckpointError: If it cannot be read, or is damaged.
        """
        return read_meta(self._folder / str(step))

    def wait(self) -> None:
        """Blocks until the checkpoint that is being saved is on disk.

        Raises:
          DiskError: If it cannot be written; the message names the checkpoint before.
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
        """Turns errors of the disk into DiskError, and removes partial checkpoints."""
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
        return f"the checkpoint of step {last} is intact" if last else "none was saved"

    def _seal(self, saving, step, kept):
        """Writes the checksums of a checkpoint once it is on disk."""
        try:
            with writing(f"a checkpoint in {self._folder}", kept):
                await_saved(saving, self._folder, kept)
        except DiskError as error:
            # Of several processes this one cannot continue: the others wait at a
            # barrier that it has left.
            peers.give_up(str(error), error.exit_code)
            raise
        if jax.process_index() == 0:
            checksums.seal(self._folder / str(step))

    def _wait_for_seal(self):
        """Waits for the checksums, and raises the error of a failed save, once."""
        sealed, self._sealed = self._sealed, None
        if sealed is not None:
            sealed.result()


def _verify_together(folder):
    """Verifies all checksums of a checkpoint, each process a part of them."""
    index, count = jax.process_index(), jax.process_count()
    damage = checksums.find_damage(folder, part=(index, count))
    # All processes must raise, or the others would wait for the one that found it.
    damage = next(filter(None, peers.gather(damage or "")), None)
    if damage:
        raise DamagedCheckpoint(folder, damage)


def _check_structure(folder, saved, targets):
    """Checks names and shapes before Orbax does, whose message has neither."""
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
