"""The commands in README.md and docs/, and a script that runs them all at toy size.

    python -m tests.docs_commands            # all of them, in a temporary folder
    python -m tests.docs_commands sampling   # those of docs/sampling.md

Each command runs as it stands there, but for what makes it small: `:tiny` configs, few
examples and samples, and small files in place of those that a reader has.
"""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time

import numpy as np

from ldm_jax.images import write_png
from tests.common import load_case
from tests.convert.published_files import write_compvis
from tests.data.tar_shards import write_shards
from tests.flags import xla_flags

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What a command of the documents becomes: pattern and replacement, in this order.
_SMALL = [
    (r"configs/(\w+)\.py:(\w+)", r"\1:\2,tiny"),
    (r"configs/(\w+)\.py", r"\1:tiny"),
    (r"--num_train=\d+", "--num_train=64 --num_validation=8"),
    (r"--num_samples=\d+", "--num_samples=2"),
    (r"--config\.train\.num_steps=\d+", ""),
    (r"--config\.data\.image_size=64", ""),
    (r"--config\.data\.inputs\.caption\.tokenizer=\S+", ""),
    (r"--config\.data\.inputs\.caption\.max_length=\S+", ""),
    # What a tiny config is about is the data set at 32 px.
    (r"--image_size=64", "--image_size=32"),
    (r"--height=64 --width=96", "--height=48 --width=64"),
]


def read_commands(page):
    """Reads the commands of a page.

    Args:
      page: Path of a Markdown file.

    Returns:
      List of str, each a whole command line without comments.
    """
    text, found = page.read_text(encoding="utf-8"), []
    for block in re.findall(r"^```\n(.*?)^```", text, flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s{2,}#.*", "", line).strip()
            if re.match(r"(python|ldm-\w+|make|pip|source) ", line):
                found.append(" ".join(line.split()))
    return found


def program_of(command):
    """Splits a command of this project.

    Args:
      command: A whole command line.

    Returns:
      (module to run, its arguments), or None for another program, such as `make`.
    """
    words = shlex.split(command)
    scripts = {"train.py": "ldm_jax.training", "sample.py": "ldm_jax.sampling"}
    commands = {
        "ldm-train": "ldm_jax.training",
        "ldm-sample": "ldm_jax.sampling",
        "ldm-convert": "ldm_jax.convert",
        "ldm-encode": "ldm_jax.encoding",
        "ldm-evaluate": "ldm_jax.evaluation",
        "ldm-plan": "ldm_jax.planning",
        "ldm-nearest": "ldm_jax.evaluation.nearest",
        "ldm-sweep": "ldm_jax.evaluation.sweep",
        "ldm-reference": "ldm_jax.evaluation.make_reference",
    }
    if words[0] in commands:
        return commands[words[0]], words[1:]
    if words[0] == "python" and words[1] == "-m":
        return words[2], words[3:]
    if words[0] == "python" and words[1] in scripts:
        return scripts[words[1]], words[2:]
    return None


def _shrink(command):
    for pattern, replacement in _SMALL:
        command = re.sub(pattern, replacement, command)
    return command


def _make_files(folder):
    """Writes the files that the documents speak of as the reader's own."""
    images = folder / "images"
    rng = np.random.default_rng(0)
    for index in range(24):
        image = rng.integers(0, 256, (40, 48, 3), np.uint8)
        write_png(images / f"class_{index % 2}" / f"{index}.png", image)
        (images / f"class_{index % 2}" / f"{index}.txt").write_text("a red star")
    write_png(folder / "photograph.png", rng.integers(0, 256, (150, 210, 3), np.uint8))
    (folder / "photograph.png").rename(folder / "photograph.jpg")
    write_shards(folder / "shards", shards=2, each=40)
    case = load_case("checkpoint_text_kl")
    write_compvis(folder, case)
    return images


def main(names):
    """Runs the commands of the pages of these names; of all pages without any."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ldm_jax_docs_"))
    images = _make_files(folder)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(1),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
        "TFDS_DATA_DIR": str(folder / "tfds"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    failed = []
    for page in PAGES:
        if names and page.stem not in names:
            continue
        for command in [*_BEFORE.get(page.stem, ()), *read_commands(page)]:
            small = _shrink(command).replace("/path/to/images", str(images))
            small = small.replace(
                "/path/to/shards/{00000..00099}", f"{folder}/shards/*"
            )
            program = program_of(small)
            if program is None:
                continue
            missing = [name for name in _PUBLISHED if name in small]
            if missing:
                print(f"left out, needs {missing[0]}: {small}", flush=True)
                continue
            start = time.perf_counter()
            result = subprocess.run(
                [sys.executable, "-m", program[0], *program[1]],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            seconds = time.perf_counter() - start
            verdict = "ok" if result.returncode == 0 else "FAILED"
            print(f"{verdict} {seconds:5.1f} s  {page.name}: {small}", flush=True)
            if result.returncode:
                failed.append(small)
                print((result.stdout + result.stderr)[-2000:], flush=True)
    print(f"{len(failed)} failed, in {folder}")
    return bool(failed)


# Files that only their authors can give; `tests/convert` reads ones of the same form.
_PUBLISHED = (
    *("sd-v1-4.ckpt", "stable-diffusion-folder", "stable-diffusion-3-folder"),
    *("ae.safetensors", "sd_xl_base_1.0.safetensors"),
)

# What a page takes for granted: the demo, and what other pages have trained.
_DEMO = (
    "python -m ldm_jax.data.shapes --data_dir=runs/demo/data --image_size=32 "
    "--max_shapes=1 --num_train=64 --num_validation=8",
    "python -m ldm_jax.data.shapes --image_size=32 --num_train=64",
    "python train.py --config=configs/shapes_autoencoder.py "
    "--workdir=runs/demo/autoencoder --config.data.name=shapes/32",
    "python train.py --config=configs/shapes_class.py --workdir=runs/demo/class "
    "--config.data.name=shapes/32 --config.first_stage.workdir=runs/demo/autoencoder",
)
_BEFORE = dict.fromkeys(("README", "sampling", "training", "data"), _DEMO)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
