"""How a command starts: flags are parsed, JAX is started, errors are one line."""

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
    """Runs a command to its end, which is the end of the process.

    Args:
      main: Function of the program's name and the arguments beside flags.
      doc: Docstring of the command, for `--help`.
      arguments: What it takes beside flags, for `--help`, as "SOURCE TARGET".
      uses_jax: Whether JAX is started before, and flags of its clusters are there.
      lower: What to lower where memory is short, for the message.
      stops_together: Whether processes of a job that is asked to stop agree on a step;
        of another command the one that is asked ends at once, and then the others.
    """
    with group("cluster" if uses_jax else "errors"):
        if uses_jax:
            define_cluster_flags()
        flags.DEFINE_bool("traceback", False, "Show the traceback of an error.")
    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = _unraisable
    # What Python's tracker of shared memory clears away is no news to a user.
    sys.warnoptions.append("ignore:resource_tracker")
    app.run(
        functools.partial(_run, main, uses_jax, lower, stops_together),
        flags_parser=functools.partial(_parse, doc, arguments),
    )


def _run(main, uses_jax, lower, stops_together, argv):
    """Calls the main; whatever fails is one line and a status."""
    try:
        if uses_jax:
            start_jax()
            if peers.several() and not stops_together:
                # JAX catches it in a job, and leaves it to the loop of a run to look.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        main(argv)
        # Here a full disk is still a line.
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


def _parse(doc, arguments, argv):
    """Parses the command line; a wrong flag or key is one line and exit status 2."""
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
    """What is wrong with a command line; it may name a config, which is a program."""
    # What absl and ConfigDict say of a flag is meant for its user.
    for_user = (flags.Error, AttributeError, TypeError, ValueError)
    return str(error) if isinstance(error, for_user) else explain(error).line


def _refuse(text: str) -> NoReturn:
    """Ends at a command line that cannot work."""
    _leave(f"error: {one_line(text)}", ConfigError.exit_code)


def _leave(line: str, status: int, done: bool = False) -> NoReturn:
    """Ends with a line, the last one that is seen; `done` if it is no fault."""
    if not done:
        peers.await_cause(line)
    try:
        # Where both go to one file, the line comes after all output.
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
    # From here on libraries close what they had open, and may say so.
    _silence(2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)


def _silence(descriptor: int) -> None:
    """Sends what is written to a descriptor nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


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
        # What Orbax says of a failure, in thousands of lines, it also raises.
        logging.get_absl_logger().addFilter(_is_not_of_orbax)
    join_cluster()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.path.expanduser("~/.cache/ldm_jax/xla")
        jax.config.update("jax_compilation_cache_dir", cache)


def _is_not_of_orbax(record):
    return "/orbax/" not in record.pathname


def _unraisable(unraisable):
    """What Python drops with a traceback, as it arose where nothing can be raised."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # Ctrl-C in a callback, as of the garbage collector: it comes once more, from a
        # thread, lest it fall into this function.
        again = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT])
        again.daemon = True
        again.start()
    elif str(unraisable.exc_value) != "Event loop is closed" or _traceback():
        # Of arrays that are done after Orbax raised for another, each says so at
        # length: TensorStore wakes the event loop of Orbax then, which is closed.
        sys.__unraisablehook__(unraisable)


def _traceback():
    return flags.FLAGS.is_parsed() and getattr(flags.FLAGS, "traceback", False)
