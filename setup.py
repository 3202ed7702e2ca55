"""Installs ldm_jax: `pip install -e .`, with the extras listed below."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent


def read(name):
    """The text of a file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


setup(
    name="ldm-jax",
    version=re.search('__version__ = "(.+)"', read("ldm_jax/__init__.py"))[1],
    description="Latent diffusion models in JAX and Flax for TPUs and GPUs",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["ldm_jax", "ldm_jax.*"]), "ldm_jax.configs"],
    # The configs are installed inside of the package, for `ldm-train --config=NAME`.
    package_dir={"ldm_jax.configs": "configs"},
    package_data={"ldm_jax": ["py.typed"], "ldm_jax.data.shapes": ["tokenizer.json"]},
    entry_points={
        "console_scripts": [
            f"ldm-{name} = ldm_jax.commands:{name}"
            for name in (
                *("train", "sample", "convert", "encode"),
                *("evaluate", "reference", "sweep", "nearest", "plan"),
            )
        ]
    },
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8.1",
        # Paths on object stores; Orbax brings it anyway.
        "etils[epath]>=1.13",
        "flax>=0.12.6,<0.13",
        # Object stores; transformers brings it anyway.
        "fsspec>=2024.6",
        "grain>=0.2.15,<0.3",
        # tensorflow-datasets 4.9.10 needs it and does not say so.
        "importlib_resources",
        "jax>=0.10,<0.13",
        "ml_collections>=1.1,<2",
        "numpy>=2.0",
        "optax>=0.2.6,<0.3",
        # The v1 API moves to the top level at 1.0.
        "orbax-checkpoint>=0.12,<1.0",
        "pillow>=10",
        # tensorflow-datasets brings it along; Parquet and Arrow files are read with it.
        "pyarrow>=17",
        "pyyaml>=6",
        "safetensors>=0.5",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.9,<5",
        "tqdm>=4.66",
        "transformers>=5.10,<6",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "wandb": ["wandb"],
        # Workdirs, data and output on gs://.
        "gcs": ["gcsfs>=2025.3.1"],
        # Sets on the Hugging Face hub by name; folders and Parquet files need it not.
        "datasets": ["datasets>=4"],
        # Colour of 16 bits, and TIFF of channels that Pillow does not know.
        "deep_images": ["imagecodecs>=2024.6", "tifffile>=2024.6"],
        # The plot of ldm-sweep.
        "plots": ["matplotlib>=3.8"],
        "test": [
            "beartype>=0.22",
            "jaxtyping>=0.3.7",
            "matplotlib>=3.8",
            "pytest>=8",
            "pytest-xdist>=3.7",
            "ruff>=0.9",
            # A test builds the package; virtual environments come without it.
            "setuptools>=68",
            "tensorboard>=2.16",
        ],
        # PyTorch and diffusers serve the side-by-side benchmarks, and the tests that
        # open exports with them.
        # They were run with 0.42; older ones may not go with transformers 5.
        # webdataset writes the shards that a test reads.
        "parity": ["torch>=2.6", "diffusers>=0.42", "webdataset>=0.2.86"],
    },
)
