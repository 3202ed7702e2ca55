"""Our exports, opened by diffusers itself; skipped where it is not installed.

`pip install -e .[parity,test]` installs it. `python -m tests.convert.test_parity KIND`
writes the cases that `test_exported.py` reads, of some kinds or of all.
"""

import importlib.util
import json
import pathlib
import sys
import tempfile

import numpy as np
import pytest

from ldm_jax.convert.diffusers import write as diffusers_write
from ldm_jax.convert.formats import convert
from ldm_jax.weights.files import read_json
from tests.common import REFERENCE, assert_close
from tests.convert import exported

MISSING = [
    name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install -e .[parity]"
)


def draw(folder, kind):
    """(noise, image) by diffusers, from an export of the kind in `folder`."""
    from tests.convert import theirs

    convert(exported.write_model(kind, folder / "ours"), folder / "theirs")
    return theirs.draw(folder / "theirs", kind)


@pytest.mark.parametrize("kind", exported.KINDS)
def test_diffusers_draws_what_we_draw(kind, tmp_path):
    noise, image = draw(tmp_path, kind)
    index = read_json(tmp_path / "theirs" / "model_index.json")
    assert index["_class_name"] == exported.CLASSES[kind]
    assert_close(exported.draw(tmp_path / "ours", kind, noise), image)
    with np.load(REFERENCE / f"exported_{kind}.npz") as case:
        assert_close(image, case["image"])


def main():
    """Records what diffusers draws."""
    for kind in sys.argv[1:] or exported.KINDS:
        with tempfile.TemporaryDirectory() as folder:
            noise, image = draw(pathlib.Path(folder), kind)
        configs, _ = diffusers_write.state(exported.make_model(kind))
        arrays = dict(noise=noise, image=image, configs=json.dumps(configs))
        np.savez_compressed(REFERENCE / f"exported_{kind}.npz", **arrays)
        print(kind, image.shape, f"spread {image.std():.3f}")


if __name__ == "__main__":
    main()
