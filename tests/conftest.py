"""Eight simulated CPU devices, no network, a compile cache, parsed flags."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TFDS_DATA_DIR", tempfile.mkdtemp(prefix="tfds-"))

import jax  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_compilation_cache_dir", ".pytest_cache/jax")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# Grain's worker processes read absl flags.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
