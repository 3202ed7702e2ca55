"""Runs a command: parses flags, starts JAX and reports errors in one line."""

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags

from ldm_jax import peers
from ldm_jax.cli import help as help_
from ldm_jax.cli.cluster import define_cluster_flags, join_cluster
from ldm_jax.cli.command_line import read_flags
from ldm_jax.cli.failures import explain, one_line
from ldm_jax.cli.flags import group
from ldm_jax.commands import STOPPED, interrupt
from ldm_jax.errors import ConfigError, Stopped


def run(
    main: Callable[[list[str]], None],
    doc: str,
    *,
    arguments: str = "",
    uses_jax: bool = True,
    lower: str = "the sizes",
    stops_together: bool = False,
) -> None:
    """Runs a command and exits the process.

    Args:
      main: Function that takes the program's name and the positional arguments.
      doc: Docstring of the command, for `--help`.
      arguments: Positional arguments, for `--help`, e.g. "SOURCE TARGET".
      uses_jax: Whether to start JAX first, and to define the flags of clusters.
      lower: What to lower when memory runs out, for the message.
      stops_together: Whether the command catches SIGTERM itself, and processes of a job
        agree on a step; otherwise all exit at once.
    """
    with group("cluster" if uses_jax else "errors"):
        if uses_jax:
            define_cluster_flags()
        flags.DEFINE_bool("traceback", False, "Show the traceback of an error.")
    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = _unraisable
    # Python's tracker of shared memory warns of what it cleans up: no use to the user.
    sys.warnoptions.append("ignore:resource_tracker")
    app.run(
        functools.partial(_run, main, uses_jax, lower, stops_together),
        flags_parser=functools.partial(_parse, doc, arguments),
    )


def _run(main, uses_jax, lower, stops_together, argv):
    """Calls main; any failure becomes one line and an exit code."""
    try:
        if uses_jax:
            start_jax()
        if not stops_together:
            _end_when_asked()
        main(argv)
        # Flushed here so that a full disk is still reported in one line.
        sys.stdout.flush()
        peers.finish()
    except Stopped as stopped:
        _leave(str(stopped), stopped.exit_code, done=True)
    except KeyboardInterrupt:
        _leave(STOPPED, 128 + signal.SIGINT)
    except Exception as error:
        if flags.FLAGS.traceback:
            if not peers.several():
                raise
            traceback.print_exc()
        failure = explain(error, lower)
        _leave(f"error: {failure.line}", failure.exit_code)


def _end_when_asked():
    """Makes SIGTERM end the command, and all processes of its job, at once.

    The system's default action would not do: the first process of a container ignores
    it, and locks of folders stay behind. In a job JAX catches the signal, and leaves it
    to the training loop to look. A command may install another handler later.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)

    def ignore(number, frame):
        del number, frame

    def wait():
        while signal.SIGTERM not in os.read(read, 1) or _handler() is not ignore:
            pass
        peers.stop("asked to stop: what is written is complete", 128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
    # A Python handler runs only once a collective has returned; the byte comes before.
    signal.signal(signal.SIGTERM, ignore)
    signal.set_wakeup_fd(write)


def _handler():
    return signal.getsignal(signal.SIGTERM)


def _parse(doc, arguments, argv):
    """Parses the command line; a wrong flag or key gives one line and exit code 2."""
    asked = help_.asked(argv)
    if asked:
        print(help_.text(doc, arguments, full=asked == "full"))
        sys.exit(0)
    try:
        return read_flags(argv, arguments)
    except KeyboardInterrupt:
        _leave(STOPPED, 128 + signal.SIGINT)
    except Exception as error:
        if "--traceback" in argv:
            raise
        _refuse(_what_is_wrong(error))


def _what_is_wrong(error: Exception) -> str:
    """The error for a command line; it may come from a config, which is a program."""
    # The messages of absl and ConfigDict about flags are meant for the user.
    for_user = (flags.Error, AttributeError, TypeError, ValueError)
    return str(error) if isinstance(error, for_user) else explain(error).line


def _refuse(text: str) -> NoReturn:
    """Exits because of an invalid command line."""
    _leave(f"error: {one_line(text)}", ConfigError.exit_code)


def _leave(line: str, status: int, done: bool = False) -> NoReturn:
    """Exits with a last line of output; `done` if this is not a failure."""
    if not done:
        peers.await_cause(line)
    try:
        # If both streams go to one file, the line comes after all output.
        sys.stdout.flush()
    except OSError:
        _silence(1)
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        pass
    if done:
        peers.finish()
    else:
        peers.fail(line.removeprefix("error: "), status)
    # From here on libraries close their resources, and may print messages about it.
    _silence(2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)


def _silence(descriptor: int) -> None:
    """Discards everything that is written to a file descriptor."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def start_jax() -> None:
    """Joins the other processes, if asked to, and turns on the compilation cache.

    The cache is in JAX_COMPILATION_CACHE_DIR, or else in ~/.cache/ldm_jax: the second
    run of a program starts in seconds.
    """
    import jax
    from absl import logging

    if not flags.FLAGS["verbosity"].present:
        # Orbax logs every file that it renames.
        logging.set_verbosity(logging.WARNING)
        # Orbax logs failures in thousands of lines, and raises them as well.
        logging.get_absl_logger().addFilter(_is_not_of_orbax)
    join_cluster()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.path.expanduser("~/.cache/ldm_jax/xla")
        jax.config.update("jax_compilation_cache_dir", cache)


def _is_not_of_orbax(record):
    return "/orbax/" not in record.pathname


def _unraisable(unraisable):
    """Handles exceptions that Python cannot raise and would print with a traceback."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # Ctrl-C in a callback, e.g. of the garbage collector: it is sent again, from a
        # thread, so that it does not interrupt this function.
        again = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT])
        again.daemon = True
        again.start()
    elif str(unraisable.exc_value) != "Event loop is closed" or _traceback():
        # After Orbax has raised for one array, each other array that finishes prints
        # this at length: TensorStore then wakes Orbax's event loop, which is closed.
        sys.__unraisablehook__(unraisable)


def _traceback():
    return flags.FLAGS.is_parsed() and getattr(flags.FLAGS, "traceback", False)
