"""Encodes one split of a data set: shards, divided among processes, then a header."""

import contextlib
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax import __version__, peers
from ldm_jax.config import to_dict
from ldm_jax.console import Console
from ldm_jax.data.encoded.header import FILE, VERSION, Header
from ldm_jax.data.inputs import make_inputs
from ldm_jax.data.open_source import open_source
from ldm_jax.encoding.shard_files import ShardFiles
from ldm_jax.encoding.stream import Options, encoded_batches
from ldm_jax.encoding.text_states import write_empty
from ldm_jax.errors import ConfigError, Stopped
from ldm_jax.lock import require_held
from ldm_jax.models.first_stages import name_of
from ldm_jax.store import Place
from ldm_jax.trained import FirstStage
from ldm_jax.training.preemption import Preemption

# Keys of the section `data` that have no effect on what is encoded.
_FREE = (
    *("inputs", "split", "eval_split", "data_dir", "workers", "restart_workers"),
    *("max_image_gb", "on_error", "crop", "min_crop", "flip", "buckets"),
    *("cache_gb", "index_dir", "text_states"),
)

# Those that parts of a mixture may set themselves; the split of a part has an effect.
_FREE_OF_PARTS = {"cache_gb", "index_dir", "data_dir", "eval_split"}

# Seconds between lines about the progress.
_QUIET = 30.0


def write_set(
    folder: Place,
    section: Mapping[str, Any],
    split: str,
    first: FirstStage,
    options: Options,
) -> None:
    """Encodes a split, or its missing shards; every process must call it.

    Args:
      folder: Folder of the set, shared by all processes.
      section: Config section `data`.
      split: Split to encode.
      first: FirstStage, the same in all processes.
      options: How to encode.

    Raises:
      ConfigError: If the data cannot be opened, or the folder holds something else.
      DataError: If examples cannot be read.
      DiskError: If the folder cannot be written.
      Stopped: If the command is asked to stop.
    """
    source, main = open_source(section, split), not jax.process_index()
    if getattr(source, "encoded", False):
        raise ConfigError("data.source=latents is encoded already: name the images")
    facts = _facts(source, section, split, first, options)
    settings = facts | {
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "shard_size": options.shard_size,
        "seed": options.seed,
    }
    # The place of the first stage and the package's version do not change the contents.
    settings["written_by"] = f"version {VERSION}"
    settings["first_stage"] = facts["first_stage"]["checksum"]
    if not options.towers:
        # As in older versions.
        del settings["text_states"]
    files = ShardFiles(folder, settings, len(source), options.shard_size)
    done = "finished" if main and files.begin() else ""
    if peers.gather(done)[0]:
        if main:
            print(f"{folder}: {Header.read(folder).count:,} images, already encoded")
        return
    _require_shared(files)
    _write_shards(files, source, section, first, options)
    # A barrier: only after it all shards exist.
    peers.gather("written")
    if main:
        if options.towers:
            inputs = make_inputs(section.get("inputs"))
            write_empty(folder, options.towers, inputs, options.dtype)
        _say(folder, files.finish(facts))
    peers.gather("finished")


def _facts(source, section, split, first, options):
    """Fields of the header that are known before anything is encoded."""
    data = _decisive(to_dict(section))
    fingerprint = getattr(source, "fingerprint", None)
    names = source.class_names
    return {
        "version": VERSION,
        "mirrored": options.mirrored,
        "num_classes": source.num_classes,
        "class_names": None if names is None else [str(name) for name in names],
        "first_stage": {"kind": name_of(first.module), **first.record},
        "data": data | {"split": split, "crop": "center"},
        "inputs": _stored_inputs(section),
        "source": {
            "num_examples": len(source),
            "fingerprint": None if fingerprint is None else fingerprint(),
            "left_out": len(getattr(source, "skipped", ())),
        },
        "written_by": f"ldm_jax {__version__}",
        "text_states": {
            key: {"checksum": tower.checksum} for key, tower in options.towers.items()
        },
    }


def _decisive(section):
    """The options of `data`, and of the parts of a mixture, that affect the latents."""
    found = {key: value for key, value in section.items() if key not in _FREE}
    parts = {name: dict(part) for name, part in (found.get("parts") or {}).items()}
    for part in parts.values():
        for key in _FREE_OF_PARTS & part.keys():
            del part[key]
    return found | {"parts": parts}


def _stored_inputs(section):
    """The section `data.inputs` without dropout, which training draws at every step."""
    inputs = to_dict(section.get("inputs") or {})
    return {
        key: {k: v for k, v in entry.items() if k != "dropout"}
        for key, entry in inputs.items()
    }


def _write_shards(files, source, section, first, options):
    """Encodes the missing shards of this process."""
    missing = [shard for shard in files.shards if not files.is_there(shard)]
    # Also a barrier: nothing is written before all processes have checked.
    _require_same(files.folder, str(missing), "finds other shards there")
    turns = itertools.islice(missing, jax.process_index(), None, jax.process_count())
    mine, size = list(turns), options.batch_size
    if not mine:
        return
    total = sum(len(files.range_of(shard)) for shard in mine)
    indices = np.concatenate([files.padded(shard, size) for shard in mine])
    with contextlib.ExitStack() as stack:
        console = Console(total, 0, not jax.process_index(), "image")
        stack.enter_context(contextlib.closing(console))
        asked = stack.enter_context(_listening())
        batches = encoded_batches(source, section, indices, first, options)
        batches = stack.enter_context(contextlib.closing(batches))
        progress = _Progress(console, total)
        for number, shard in enumerate(mine):
            count = len(files.range_of(shard))

            def watched(count=count, number=number):
                for batch in itertools.islice(batches, -(-count // size)):
                    asked(f"{number} of {len(mine)} shards that were missing")
                    require_held()
                    yield batch
                    progress.add(min(size, count))
                    count -= size

            files.write(shard, watched(), source)


def _require_shared(files):
    _require_same(files.folder, str(files.has_begun()), "does not see it")


def _require_same(folder, found, problem):
    """Raises if a process finds something else in a folder than process 0."""
    digest = hashlib.blake2b(found.encode(), digest_size=16).hexdigest()
    answers = peers.gather(digest)
    others = [k for k, answer in enumerate(answers) if answer != answers[0]]
    if others:
        raise ConfigError(
            f"{folder} is not shared: process {others[0]} {problem}, unlike process "
            "0; give an --outdir that all processes have in common"
        )


@contextlib.contextmanager
def _listening():
    """Yields a function that raises if the command was asked to stop.

    If there are several processes, each one exits at once, as all files are complete,
    see `cli.run`; the others notice it, and exit.
    """
    if jax.process_count() > 1:
        yield lambda text: None
        return
    with contextlib.closing(Preemption("finished shards are kept")) as preemption:
        preemption.listen()

        def check(text):
            if preemption.asked():
                raise Stopped(
                    f"asked to stop: {text} are written, and the same command "
                    "continues from there",
                    preemption.signal,
                )

        yield check


class _Progress:
    """Counts images on the console, and prints the speed."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._done, self._start = 0, time.monotonic()
        self._spoken = self._start

    def add(self, count: int) -> None:
        """Adds images that were written."""
        self._done += count
        self._console.advance(count)
        peers.progress()
        now = time.monotonic()
        if now - self._spoken > _QUIET or self._done == self._total:
            self._spoken = now
            speed = self._done / max(now - self._start, 1e-9)
            self._console.line(
                f"encoded {self._done:,} of {self._total:,} images, "
                f"{speed:,.0f} images/s"
            )


def _say(folder, header):
    skipped = header.skipped["count"]
    if skipped:
        where, why = header.skipped["examples"][0]
        print(
            f"left out {skipped:,} images that cannot be read, listed in "
            f"{folder / FILE}; the first: {where}: {why}"
        )
    if header.shortened:
        print(f"of {header.shortened:,} images a part was left out")
    for key, count in sorted(header.cut.items()):
        print(
            f'of {count:,} images only a part of "{key}" is kept, as they have more '
            "than max_length tokens or max_objects boxes"
        )
    shape = " x ".join(map(str, header.latent_shape))
    copies = " and as many mirrored ones" if header.mirrored else ""
    print(
        f"{folder}: {header.count:,} images{copies} as latents of {shape}, "
        f"{len(header.shards)} shards"
    )


def make_writer(
    first: FirstStage, section: Mapping[str, Any], options: Options
) -> Callable[[Place, str], None]:
    """Makes the function that encodes a split, after checks common to all splits.

    Args:
      first: FirstStage.
      section: Config section `data`.
      options: How to encode.

    Returns:
      Function of (folder, split) that encodes one, see `write_set`.

    Raises:
      ConfigError: If the first stage has no latents to store, or does not divide the
        images' size.
    """
    if first.config is None:
        raise ConfigError(
            "first_stage.workdir=identity has no latents to store: its images are "
            "trained on as they are"
        )
    factor, side = first.module.downsampling_factor, section["image_size"]
    if side % factor:
        raise ConfigError(
            f"data.image_size={side} is not divisible by the first stage's factor "
            f"{factor}: use data.image_size={-(-side // factor) * factor}"
        )

    def write(folder, split):
        # Evaluations do not mirror images.
        mirrored = options.mirrored and split == section["split"]
        mine = options._replace(mirrored=mirrored)
        write_set(folder, section, split, first, mine)

    return write
