"""The table FORMATS of formats that models are read from and written to."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ldm_jax.config import near_miss, suggest
from ldm_jax.convert import workdir
from ldm_jax.convert.compvis import read as compvis_read
from ldm_jax.convert.compvis import read_yaml, write_yaml
from ldm_jax.convert.compvis import write as compvis_write
from ldm_jax.convert.compvis.strict import strict_loading
from ldm_jax.convert.diffusers import read as diffusers_read
from ldm_jax.convert.diffusers import write as diffusers_write
from ldm_jax.convert.hints import hints_of
from ldm_jax.convert.model import Model, Options
from ldm_jax.convert.verify import SMALL, count_weights, verify
from ldm_jax.errors import ConversionError
from ldm_jax.files import drafted
from ldm_jax.store import Place, as_path, exists, is_dir, is_file, local_copy
from ldm_jax.weights.files import (
    TORCH_SUFFIXES,
    is_weights,
    read_weights,
    write_weights,
)


class Format(NamedTuple):
    """One format.

    Attributes:
      recognise: Path -> whether a source is of this format.
      read: (path, Options, log) -> Model; `log` is called with lines of information.
      write: (Model, path, Options, log) -> None.
      verified: Whether an export is read again and compared.
    """

    recognise: Callable[[Place], bool]
    read: Callable[[Place, Options, Callable], Model]
    write: Callable[[Model, Place, Options, Callable], None]
    verified: bool = False


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str | None = None,
    options: Options | None = None,
    log: Callable[[str], Any] = print,
) -> dict[str, bool]:
    """Converts a model; the target is written atomically.

    Args:
      source: File or folder of any format.
      target: Path to write; must not exist, or be an empty folder. CompVis's YAML is
        written beside it.
      to: Row of FORMATS; by default "compvis" for a target that is named like a file of
        weights, "diffusers" for a source that is a workdir, else "ldm_jax".
      options: Options.
      log: Called with the lines to print.

    Returns:
      Part of the source that the target lacks -> whether images differ without it.

    Raises:
      ConversionError: If the source cannot be read or the target cannot be written, is
        not the same model when read again, or is named like a file of an unknown
        format.
    """
    options, source, target = options or Options(), *map(as_path, (source, target))
    if not exists(source):
        raise ConversionError(f"there is nothing at {source}")
    if exists(target) and not (is_dir(target) and not any(target.iterdir())):
        raise ConversionError(f"{target} exists: give a new name, or remove it first")
    yaml = target.with_suffix(".yaml")
    if target.suffix in _SUFFIXES and exists(yaml):
        raise ConversionError(
            f"{yaml} exists, where the structure would go: give a new name"
        )
    names = [name for name, row in FORMATS.items() if row.recognise(source)]
    if not names:
        raise ConversionError(
            f"{source} is not known: give a workdir, a folder of diffusers (with "
            f"config.json or model_index.json) or a file ({', '.join(_SUFFIXES)})"
        )
    if to is None:
        to = _target_format(names[0], target)
    log(f"{source} ({names[0]}) to {target} ({to})")
    try:
        # Of a workdir only one checkpoint is read, so it is not copied.
        place = source if names[0] == "ldm_jax" else local_copy(source)
        model = _read(names[0], place, options, log)
        _describe(model, log)
        with drafted(target) as draft:
            FORMATS[to].write(model, draft, options, log)
            _verify(model, draft, to, options, log)
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"{source}: {error}") from error
    return model.left_out


def _verify(model, draft, to, options, log):
    """Reads the export again and compares it, if requested or if it is small."""
    wanted, size = options.verify, count_weights(model)
    if not FORMATS[to].verified or wanted is False:
        return
    if wanted is None and size > SMALL:
        log(
            f"not verified, as it has {size:,} weights: --verify reads it again and "
            "compares"
        )
        return
    yaml = draft.with_suffix(".yaml")
    again = Options(config=yaml if is_file(yaml) else None)
    verify(model, FORMATS[to].read(draft, again, lambda line: None), options.raw)
    log("verified: read again, the same networks, weights and noise levels")


def _read(name, source, options, log):
    """Reads a source, whose configs may contain anything."""
    if options.variant is not None and name != "diffusers":
        raise ConversionError(
            f"--variant={options.variant} chooses among the files of a folder of "
            f"diffusers, which {source} is not: leave it out"
        )
    try:
        model = FORMATS[name].read(source, options, log)
        # Formats that can read a part have already left out the rest.
        alone = options.only == "first_stage" and model.config["stage"] == "diffusion"
        if alone and model.first_stage is None:
            raise ConversionError(f"{source} holds no first stage")
        return model.first_stage if alone else model
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:
        if name == "ldm_jax":
            raise
        raise ConversionError(
            f"{source}: its config lacks a value or has one of the wrong kind "
            f"({type(error).__name__}: {error})"
        ) from error
    except RecursionError as error:
        raise ConversionError(f"{source}: its config is nested too deep") from error


def _target_format(source, target):
    """The format of a target, by its name."""
    if target.suffix in _SUFFIXES:
        return "compvis"
    folder = "diffusers" if source == "ldm_jax" else "ldm_jax"
    if not is_dir(target):
        _refuse_file_names(target, folder)
    return folder


def _refuse_file_names(target, folder):
    """Raises an error if a name looks like that of a file, as a folder is written.

    The name of a folder may contain a dot, e.g. sd-1.5 or my.model.v2.
    """
    suffix = target.suffix.lower()
    # Strict, as suffixes are short: .final, .main and .int8 are names of folders.
    meant = near_miss(suffix, _SUFFIXES, likeness=0.85)
    if meant is not None or suffix in _OTHER_SUFFIXES:
        raise ConversionError(
            f"{target} is named like a file, but {target.suffix} is no suffix of a "
            f"file of weights; {suggest(suffix, _SUFFIXES)}; for a folder of that name "
            f"give --to={folder}"
        )


def _describe(model, log):
    for stage in (model.first_stage, model):
        for line in stage.describe() if stage else ():
            log(line)


def _read_compvis(path, options, log):
    weights = compvis_read.narrow(read_weights(path), options, log)
    if not compvis_read.recognise(weights.tensors):
        raise ConversionError(
            f"{path} does not hold a model of CompVis: its first key is "
            f"{next(iter(weights.tensors))}; of diffusers, give the folder with its "
            "config.json"
        )
    if options.config:
        return _read_described(weights, options, log)
    model = compvis_read.read(weights, None, options, log)
    if not options.prediction_type and "backbone" in model.config:
        log("the U-Net is taken to predict the noise; --prediction_type says otherwise")
    return model


def _read_described(weights, options, log):
    """Reads a file with its YAML, in which anything may be missing or invalid."""
    params = read_yaml.read_yaml(options.config)["params"]
    if options.only == "first_stage" and "first_stage_config" in params:
        params = params["first_stage_config"].get("params", {})
    try:
        return compvis_read.read(weights, params, options, log)
    except KeyError as error:
        raise ConversionError(
            f"{options.config}: the YAML lacks {error.args[0]}: give CompVis's"
        ) from error
    except (AttributeError, TypeError) as error:
        raise ConversionError(
            f"{options.config}: the YAML has a value of the wrong kind ({error}): give "
            "CompVis's"
        ) from error


def _write_compvis(model, path, options, log):
    if path.suffix not in _SUFFIXES:
        raise ConversionError(
            f"{path}: CompVis's format is a file: end its name in "
            + " or ".join(_SUFFIXES)
        )
    if options.raw:
        model.ema_params = {}
    tensors, yaml = compvis_write.write(model, log)
    write_weights(path, tensors, model.step)
    write_yaml.write_yaml(path.with_suffix(".yaml"), yaml, hints_of(model))
    for line in strict_loading(tensors, yaml):
        log(line)
    log(f"its structure: {path.with_suffix('.yaml').name}, beside it")


def _write_workdir(model, path, options, log):
    del options, log
    workdir.write(model, path)


_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

# Suffixes of files of other formats; a folder has one only by mistake.
_OTHER_SUFFIXES = (
    *(".gz", ".json", ".png", ".tar", ".txt", ".yaml", ".yml", ".zip"),
    *(".gguf", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".pickle", ".pkl"),
    *(".cpkt", ".cpt", ".sft"),
)

FORMATS = {
    "ldm_jax": Format(
        recognise=workdir.is_workdir,
        read=lambda path, options, log: workdir.read(path, options.step),
        write=_write_workdir,
    ),
    "compvis": Format(is_weights, _read_compvis, _write_compvis, verified=True),
    "diffusers": Format(
        diffusers_read.recognise,
        diffusers_read.read,
        diffusers_write.write,
        verified=True,
    ),
}
