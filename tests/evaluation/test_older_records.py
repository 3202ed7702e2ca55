"""Evaluations that older versions began, and references that they kept, continue."""

import json
import zipfile

import numpy as np
import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.resuming import difference
from ldm_jax.metrics.adm_npz import write_arrays
from tests.evaluation.test_compare import NAME, measure
from tests.sampling.common import picture, write_image

LIST, CONTENTS = "a" * 32, "b" * 16


def record(images=LIST + CONTENTS, **preprocessing):
    cut = {"size": [16, 16], "crop": None, "resize": None}
    return {"name": "photos", "images": images, "preprocessing": cut | preprocessing}


@pytest.mark.parametrize(
    "there, here, key",
    [
        (record(LIST), record(values=None), None),
        (record(LIST), record(values="from 0 to 4095"), None),
        (record(), record(values="from 0 to 4095"), None),
        (record(values="from 0 to 4.095e+03"), record(values="from 0 to 4095"), None),
        # What is said counts.
        (record(values=None), record(values="from 0 to 9"), "preprocessing.values"),
        (record(values="from 0 to 8"), record(values="from 0 to 9"), "preprocessing"),
        (record(LIST), record("c" + LIST[1:] + CONTENTS), "images.images"),
        (record(LIST + "c" * 16), record(), "images.images"),
        (record(CONTENTS), record(), "images.images"),
        # Of an npz it is one part, of what others wrote there is none.
        (record("1f"), record("2f"), "images.images"),
        (record(None), record(), "images.images"),
    ],
)
def test_what_older_versions_did_not_record_matches_anything(there, here, key):
    for name in ("images", "reference"):
        found = difference({name: there}, {name: here})
        assert (found is None) == (key is None)
        assert key is None or key.split(".")[-1] in found[0]


def age(path, key):
    """Rewrites a file as older versions did."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    found = json.loads(str(arrays[key]))
    sets = [found] if key == "record" else [found["images"], found["reference"]]
    for each in sets:
        assert len(each["images"]) == 48
        each["images"] = each["images"][:32]
        del each["preprocessing"]["values"]
    arrays[key] = np.array(json.dumps(found))
    with zipfile.ZipFile(path, "w") as archive:
        write_arrays(archive, arrays)


def test_what_an_older_version_began_is_gone_on_with(tmp_path):
    one, other, outdir = tmp_path / "one", tmp_path / "other", tmp_path / "out"
    for k in range(10):
        write_image(one / f"{k}.png", picture(k))
        write_image(other / f"{k}.png", picture(100 + k) // 2)
    options = {"reference": str(other), "save_every": 4}
    whole, _ = measure(one, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        measure(one, outdir, cut_after=2, **options)
    age(outdir / "evaluation.partial.npz", "settings")
    age(outdir / "reference.npz", "record")
    found, asked = measure(one, outdir, **options)
    assert asked and asked[0] > 0 and found[NAME].value == whole[NAME].value
    (other / "9.png").rename(other / "a.png")
    with pytest.raises(ConfigError, match="statistics of another reference .images: "):
        measure(one, outdir, **options)
