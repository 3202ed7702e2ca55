"""Finds and loads configs by name, e.g. `shapes_class:tiny`, or by path."""

import difflib
import importlib.util
import inspect
import pathlib
import sys
import traceback
import types

from ml_collections import ConfigDict

from ldm_jax.errors import ConfigError

# Modules of the folder that configs import and that are not experiments themselves.
_SHARED = ("__init__", "common", "published", "shapes_tasks")


def shipped_folder() -> pathlib.Path:
    """Finds the configs that come with the package.

    Returns:
      Their folder: beside the package in a checkout, inside it when installed.
    """
    package = pathlib.Path(__file__).absolute().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Lists all experiments.

    Returns:
      Sorted names of the files in ./configs and of those of the package.
    """
    files = [path for folder in _folders() for path in folder.glob("*.py")]
    return sorted({path.stem for path in files} - set(_SHARED))


def find_config(name: str) -> str:
    """Finds the file of a config.

    Args:
      name: `shapes_class`, a name in ./configs or in the package; or the path of a
        file. What follows a colon is the variant, as in `shapes_class:tiny`.

    Returns:
      Path of the file, with the variant as it was given.

    Raises:
      ConfigError: If there is none; the message lists the names.
    """
    stem, colon, variant = name.partition(":")
    path = pathlib.Path(stem).expanduser()
    tries = [path, *(folder / path.name for folder in _folders() if _is_ours(path))]
    if path.suffix != ".py":
        tries = [folder / f"{stem}.py" for folder in _folders()]
    for file in tries:
        if file.is_file():
            return f"{file}{colon}{variant}"
    names = config_names()
    close = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"did you mean {close[0]}? There are " if close else "there are "
    raise ConfigError(f"there is no config '{stem}'; {hint}{', '.join(names)}")


def load_config(name: str) -> ConfigDict:
    """Loads a config by name or path, as `--config` does.

    Args:
      name: As in `find_config`.

    Returns:
      The unlocked config.

    Raises:
      ConfigError: If there is no such config or variant, or its file raises an error.
    """
    path, colon, variant = find_config(name).partition(":")
    _make_importable(pathlib.Path(path).absolute().parent)
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    # The file is a program: whatever it raises is for its author to fix.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} {_where(error, path)}") from error
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"{path} defines no function get_config() to call")
    if colon and not inspect.signature(module.get_config).parameters:
        raise ConfigError(
            f"{path} has no variants, so none '{variant}': its get_config() takes no "
            "argument"
        )
    try:
        config = module.get_config(*[variant] if colon else [])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        raise ConfigError(f"{path} {_where(error, path)}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"get_config() of {path} must return a ConfigDict, got "
            f"{type(config).__name__}"
        )
    return config


def _where(error: Exception, path: str) -> str:
    """Returns what a config's file raised, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    place = f"fails in line {line}" if line else "fails"
    return f"{place}: {type(error).__name__}: {error}"


def _folders() -> list[pathlib.Path]:
    """Folders of configs, the user's first."""
    return [pathlib.Path("configs"), shipped_folder()]


def _is_ours(path: pathlib.Path) -> bool:
    """Whether a path looks like one in a checkout: configs/shapes_class.py."""
    return path.parent == pathlib.Path("configs")


def _make_importable(folder: pathlib.Path) -> None:
    """Makes `from configs import common` work in config files in any folder.

    Args:
      folder: Folder of the file; if its name is `configs`, its modules take precedence.
    """
    folders = [pathlib.Path("configs").absolute(), shipped_folder()]
    if folder.name == "configs":
        folders.insert(0, folder)
    paths = list(dict.fromkeys(str(f) for f in folders if f.is_dir()))
    module = sys.modules.get("configs")
    if module is None:
        spec = importlib.util.find_spec("configs")
        paths += (spec.submodule_search_locations or []) if spec else []
        module = sys.modules["configs"] = types.ModuleType("configs")
        module.__path__ = []
    module.__path__ = list(dict.fromkeys([*module.__path__, *paths]))
