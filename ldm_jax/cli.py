"""What `train.py` and `sample.py` share: flags, one-line errors, JAX's start."""

import os
import sys

from absl import flags

from ldm_jax.errors import UserError

flags.DEFINE_bool(
    "distributed",
    False,
    "Join a job of several processes; on TPU pods, Slurm and Open MPI the addresses "
    "are found, elsewhere give --coordinator, --num_processes and --process_id.",
)
flags.DEFINE_string("coordinator", None, "host:port of process 0.")
flags.DEFINE_integer("num_processes", None, "Number of processes of the job.")
flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
flags.DEFINE_bool("traceback", False, "Show where in the code an error was raised.")


def parse_flags(argv):
    """Parses the command line; a wrong flag or key is one line and exit status 2."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, TypeError, ValueError, OSError) as error:
        if "--traceback" in argv:
            raise
        _fail(error, 2)


def one_line_errors(main):
    """Wraps a main so that an error its user can mend is one line, exit status 1."""

    def wrapped(argv):
        try:
            return main(argv)
        except UserError as error:
            if flags.FLAGS.traceback:
                raise
            _fail(error, 1)

    return wrapped


def _fail(error, status):
    text = " ".join(str(error).split())
    # Where both go to one file, the error is the last line.
    sys.stdout.flush()
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(status)


def start_jax():
    """Joins the other processes, if asked to, and turns on the compilation cache.

    The cache lies in JAX_COMPILATION_CACHE_DIR, or else in ~/.cache/ldm_jax: the second
    run of a program starts in seconds.
    """
    import jax
    from absl import logging

    if not flags.FLAGS["verbosity"].present:
        # Orbax tells of every file it renames.
        logging.set_verbosity(logging.WARNING)
    if flags.FLAGS.distributed or flags.FLAGS.coordinator:
        jax.distributed.initialize(
            flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id
        )
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.path.expanduser("~/.cache/ldm_jax/xla")
        jax.config.update("jax_compilation_cache_dir", cache)
