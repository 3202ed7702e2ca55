"""How a command starts: flags are parsed, JAX is started, errors are one line."""

import ast
import functools
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags

from ldm_jax.cli import help as help_
from ldm_jax.cli.flags import REQUIRED, apply_renamed, group
from ldm_jax.errors import ConfigError, Stopped, UserError


def run(
    main: Callable[[list[str]], None],
    doc: str,
    *,
    arguments: str = "",
    uses_jax: bool = True,
) -> None:
    """Runs a command to its end, which is the end of the process.

    Args:
      main: Function of the program's name and the arguments beside flags.
      doc: Docstring of the command, for `--help`.
      arguments: What it takes beside flags, for `--help`, as "SOURCE TARGET".
      uses_jax: Whether JAX is started before, and flags of its clusters are there.
    """
    with group("cluster" if uses_jax else "errors"):
        if uses_jax:
            _define_cluster_flags()
        flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")
    app.run(
        functools.partial(_run, main, uses_jax),
        flags_parser=functools.partial(_parse, doc, arguments),
    )


def _run(main, uses_jax, argv):
    """Calls the main; an error that its user can mend is one line and a status."""
    try:
        if uses_jax:
            start_jax()
        main(argv)
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.exit_code)
    except UserError as error:
        if flags.FLAGS.traceback:
            raise
        _fail(error, error.exit_code)


def _parse(doc, arguments, argv):
    """Parses the command line; a wrong flag or key is one line and exit status 2."""
    asked = help_.asked(argv)
    if asked:
        print(help_.text(doc, arguments, full=asked == "full"))
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, TypeError, ValueError, OSError) as error:
        if "--traceback" in argv:
            raise
        _fail(error, ConfigError.exit_code)
    except KeyError as error:
        if "--traceback" in argv:
            raise
        _fail(_unknown_section(error), ConfigError.exit_code)
    missing = [name for name in REQUIRED if flags.FLAGS[name].value is None]
    if missing:
        _fail(
            f"--{missing[0]} is missing; --help explains the flags",
            ConfigError.exit_code,
        )
    if len(rest) > 1 and not arguments:
        _fail(f"'{rest[1]}' is not a flag: write --name=value", ConfigError.exit_code)
    apply_renamed()
    return rest


def _unknown_section(error: KeyError) -> str:
    """What is wrong with a flag of a config's key whose section does not exist."""
    name = str(error.args[0]).split("\n")[0].strip("'")
    hint = "; it is called backbone now" if name == "unet" else ""
    return f"--config has no section {name}{hint}"


def _fail(error: Exception | str, status: int) -> NoReturn:
    text = str(error)
    if text[:1] in ("'", '"') and text[0] == text[-1]:
        # Errors of keys quote their message.
        text = ast.literal_eval(text)
    text = " ".join(text.split())
    # Where both go to one file, the error is the last line.
    sys.stdout.flush()
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(status)


def _define_cluster_flags() -> None:
    flags.DEFINE_bool(
        "distributed",
        False,
        "Join a job of several processes; on TPU pods, Slurm and Open MPI the "
        "addresses are found, elsewhere give --coordinator, --num_processes and "
        "--process_id.",
    )
    flags.DEFINE_string("coordinator", None, "host:port of process 0.")
    flags.DEFINE_integer("num_processes", None, "Number of processes of the job.")
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")


def start_jax() -> None:
    """Joins the other processes, if asked to, and turns on the compilation cache.

    The cache lies in JAX_COMPILATION_CACHE_DIR, or else in ~/.cache/ldm_jax: the second
    run of a program starts in seconds.
    """
    import jax
    from absl import logging

    if not flags.FLAGS["verbosity"].present:
        # Orbax logs every file that it renames.
        logging.set_verbosity(logging.WARNING)
    if flags.FLAGS.distributed or flags.FLAGS.coordinator:
        jax.distributed.initialize(
            flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id
        )
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.path.expanduser("~/.cache/ldm_jax/xla")
        jax.config.update("jax_compilation_cache_dir", cache)
