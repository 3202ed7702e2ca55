"""Eight simulated CPU devices, no network, a compile cache, parsed flags."""

import fcntl
import gc
import importlib
import os
import pathlib
import shutil
import signal
import sys
import tempfile

from tests.flags import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", xla_flags(devices=8))
# Most of a test's time is compilation, and LLVM's optimiser a good part of that.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Tracing takes as long: without names of modules and lines of Python, which profiles
# and tracebacks of compilers show, and (below) with garbage looked for rarely, it is a
# sixth shorter.
os.environ.setdefault("FLAX_PROFILE", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TFDS_DATA_DIR", tempfile.mkdtemp(prefix="tfds-"))

import jax  # noqa: E402
import jaxtyping  # noqa: E402
from absl import flags  # noqa: E402

CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
# Arrays of different rank must be brought to one by hand. The like for types is out of
# reach: flax's LayerNorm multiplies bfloat16 with float32.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
gc.freeze()
gc.set_threshold(100_000, 50, 100)

# Grain's worker processes read absl flags.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

import pytest  # noqa: E402


def pytest_addoption(parser, pluginmanager):
    parser.addoption(
        "--check_shapes",
        action="store_true",
        help="check the annotated shapes of arrays in every call",
    )
    # Here, as the conftest.py of a folder that is named is imported before the options
    # are read; workers have those of the process that starts them.
    config = pluginmanager.get_plugin("pytestconfig")
    given = "--check_shapes" in config.invocation_params.args
    if given or vars(config.option).get("check_shapes"):
        importlib.import_module("tests.typechecker")
        jaxtyping.install_import_hook("ldm_jax", "tests.typechecker.check")


def pytest_configure(config):
    if config.getoption("--check_shapes") and "tests.typechecker" not in sys.modules:
        raise pytest.UsageError("give --check_shapes on the command line")


def pytest_collection_modifyitems(items):
    """Puts real runs first: files are shared out in order, and these take longest."""
    items.sort(key=lambda item: "training" not in item.path.parts)


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    """A tiny prepared copy of the data set `shapes/32`."""
    from tests.runs import prepare_shapes

    return prepare_shapes(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def ctrl_c():
    """Python's handler of Ctrl-C, which programs in the background begin without."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, previous)


def _made_once(tmp_path_factory, name, make):
    """A copy of a workdir that the first worker to ask for it makes for all."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    made, workdir = root / "made" / name, tmp_path_factory.mktemp(name)
    made.parent.mkdir(exist_ok=True)
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            make(workdir)
            shutil.copytree(workdir, made)
            return workdir
    return shutil.copytree(made, workdir, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def first_stage(shapes_dir, tmp_path_factory):
    """Workdir of a tiny first stage, trained for four steps."""
    from tests.runs import train

    def make(workdir):
        train("shapes_autoencoder", shapes_dir, workdir, whole=True)

    return _made_once(tmp_path_factory, "autoencoder", make)


@pytest.fixture(scope="session")
def second_stage(shapes_dir, first_stage, tmp_path_factory):
    """Workdir of a tiny class-conditional second stage, trained for four steps."""
    from tests.runs import train

    def make(workdir):
        extra = {"first_stage__workdir": str(first_stage)}
        train("shapes_class", shapes_dir, workdir, whole=True, **extra)

    return _made_once(tmp_path_factory, "diffusion", make)
