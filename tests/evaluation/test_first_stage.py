"""Evaluation of first stages: exact over any data set, the same on any devices."""

import functools
import json
import os

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ldm_jax import sharding
from ldm_jax.batches import Images
from ldm_jax.build import make_first_stage
from ldm_jax.convert import workdir as workdirs
from ldm_jax.convert.model import Model, autoencoder_config
from ldm_jax.data.loader import DataError
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation import first_stage
from ldm_jax.evaluation.first_stage_command import OnImages, measure_first_stage
from ldm_jax.images import read_image, to_float, to_uint8
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.reconstruction import RECONSTRUCTION_METRICS
from ldm_jax.trained import FirstStage
from tests.common import random_variables
from tests.data.tar_shards import write_shards
from tests.runs import command, finish

TINY = dict(
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=3,
    embed_dim=3,
    norm_groups=4,
    mid_attention=False,
)
KINDS = {"kl": TINY, "vq": TINY | dict(num_codes=16)}


def _pictures(count, side=16):
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, side, side, 3), np.uint8)


@functools.cache
def _first(kind):
    module = make_first_stage(KINDS[kind] | {"kind": kind})
    params = random_variables(module, to_float(_pictures(1)), seed=1)["params"]
    if kind == "vq":
        # Spread over the latents, so that several codes are used.
        rng = np.random.default_rng(0)
        params["quantizer"]["embedding"] = rng.normal(0, 1, (16, 3)).astype(np.float32)
    return FirstStage(module, params, None, {})


@functools.cache
def _expected(kind):
    """(reconstructions, indices of the codes) of ten pictures."""
    first = _first(kind)

    @jax.jit
    def run(params, images):
        apply = functools.partial(first.module.apply, {"params": params})
        latents = apply(images, method="encode").mode()
        codes = apply(latents, method="code_indices") if kind == "vq" else None
        return apply(latents, method="decode"), codes

    decoded, codes = run(first.params, to_float(_pictures(10)))
    return to_uint8(decoded), codes


def _batches(pictures, size, mesh):
    """Cuts into batches, the last one filled up with rows that do not count."""
    for start in range(0, len(pictures), size):
        rows = np.arange(start, start + size)
        batch = {"image": pictures[rows % len(pictures)], "mask": rows < len(pictures)}
        yield sharding.put_batch(batch, mesh)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices, size", [(1, 10), (1, 4), (4, 8)])
def test_every_image_counts_once(kind, devices, size):
    first, images = _first(kind), _pictures(10)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    batches = _batches(images, size, mesh)
    results, pictures = first_stage.evaluate(first, batches, mesh)
    assert {result.count for result in results.values()} == {10}
    found = {name: result.value for name, result in results.items()}
    decoded, codes = _expected(kind)
    for name, metric in RECONSTRUCTION_METRICS.items():
        # Rounding may move a value across the edge between two bytes.
        each = np.asarray(metric(images, decoded))
        assert found[name] == pytest.approx(float(each.mean()), rel=1e-4), name
        error = each.std(ddof=1) / 10**0.5
        assert results[name].deviation == pytest.approx(error, rel=1e-4), name
    if kind == "vq":
        codes, counts = np.unique(codes, return_counts=True)
        shares = counts / counts.sum()
        assert 2 < len(codes) < 16
        assert found["codebook_usage"] == len(codes) / 16
        entropy = -np.sum(shares * np.log(shares))
        assert found["codebook_perplexity"] == pytest.approx(np.exp(entropy))
    order = np.argsort(RECONSTRUCTION_METRICS["psnr"](images, decoded))
    for name, index in (
        ("reconstructions", 0),
        ("worst", order[0]),
        ("best", order[-1]),
    ):
        shown = pictures[name][:16, : 2 * 18 - 2]
        np.testing.assert_array_equal(shown[:, :16], images[index])
        assert np.abs(shown[:, 18:].astype(int) - decoded[index]).max() <= 1


def test_a_perceptual_distance_is_averaged_too():
    pictures, mesh = _pictures(3), sharding.make_mesh(devices=jax.devices()[:1])

    def distance(weights, images, reconstructions):
        assert images.shape == reconstructions.shape
        return weights["scale"] * images.mean(axis=(1, 2, 3))

    found, shown = first_stage.evaluate(
        _first("kl"),
        _batches(pictures, 2, mesh),
        mesh,
        perceptual=(distance, {"scale": np.float32(2)}),
    )
    assert found["lpips"].value == pytest.approx(
        2 * to_float(pictures).mean(), rel=1e-4
    )
    # The largest distance is the worst.
    brightest = pictures[pictures.mean(axis=(1, 2, 3)).argmax()]
    np.testing.assert_array_equal(shown["worst"][:16, :16], brightest)


def test_a_distance_is_between_the_sets_of_images_that_count():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    first, pictures = _first("kl"), _pictures(6)
    batches = [
        {"image": pictures[:4], "mask": np.array([True, True, True, False])},
        {"image": pictures[4:], "mask": np.array([True, True])},
    ]
    batches = [sharding.put_batch(batch, mesh) for batch in batches]
    found, _ = first_stage.evaluate(
        first, batches, mesh, measurement=Measurement(["frechet"], mesh)
    )
    decoded = to_uint8(
        first.module.apply({"params": first.params}, to_float(pictures))[0]
    )
    measured = Measurement(["frechet"], mesh)
    others = measured.twin()
    rows, mask = [0, 1, 2, 4, 5], np.ones(5, bool)
    measured.add(np.asarray(decoded)[rows], mask)
    others.add(pictures[rows], mask)
    measured.compare_with(others.as_reference())
    ((name, result),) = measured.results().items()
    assert name == "random-features distance (frechet)"
    # A byte of 3,840 that is rounded otherwise moves it by about 1e-4 of itself.
    assert found[name].value == pytest.approx(result.value, rel=1e-3)
    assert found[name].count == found["psnr"].count == 5


def test_weights_of_lpips_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="--lpips_weights: .*none.pth"):
        first_stage.make_lpips(f"{tmp_path}/none.pth,{tmp_path}/heads.pth")


def test_nothing_to_measure_is_an_error():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    batch = {"image": _pictures(2), "mask": np.zeros(2, bool)}
    with pytest.raises(DataError, match="none of the images could be read"):
        first_stage.evaluate(_first("kl"), [sharding.put_batch(batch, mesh)], mesh)


def test_pictures_of_any_size(tmp_path):
    picture = _pictures(1, 40)[0, :, :27]
    Image.fromarray(picture).save(tmp_path / "odd.png")
    first = _first("kl")
    codec, output = first_stage.compile_codec(first), tmp_path / "out.png"
    for tile, overlap in ((64, 0), (16, 8)):
        line = first_stage.reconstruct_file(
            codec, 2, tmp_path / "odd.png", output, tile, overlap
        )
        assert "40 x 27 through latents of 20 x 14 x 3" in line
        assert read_image(output).shape == (40, 27, 3)
        if tile == 64:
            whole = first.module.apply(
                {"params": first.params},
                to_float(np.pad(picture, ((0, 0), (0, 1), (0, 0)), mode="edge")[None]),
            )[0]
            expected = np.asarray(to_uint8(whole[0, :, :27])).astype(int)
            assert np.abs(read_image(output) - expected).max() <= 1
    with pytest.raises(ConfigError, match="cannot read"):
        first_stage.reconstruct_file(codec, 2, tmp_path / "no.png", output, 16, 8)
    with pytest.raises(ConfigError, match="use tile=16"):
        arguments = tmp_path / "odd.png", output, 15, 0
        first_stage.reconstruct_file(codec, 2, *arguments)


@pytest.fixture
def folder(tmp_path):
    """Five pictures in two sub-folders, and one that is damaged."""
    for index, picture in enumerate(_pictures(5, 20)):
        place = tmp_path / "pictures" / str(index % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{index}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


def test_images_of_a_folder(folder):
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    section = dict(source="tfds", name="none", eval_split="validation", image_size=12)
    # What a run on other data had beside its images is not asked of these.
    section |= dict(inputs=dict(depth=dict(kind="depth")), keys=("mask",))
    images = Images(section, mesh, 3, name=str(folder))
    masks = [np.asarray(batch["mask"]) for batch in images.batches()]
    assert [len(mask) for mask in masks] == [4, 4]
    assert sum(mask.sum() for mask in masks) == 5
    few = Images(section, mesh, 16, name=str(folder), num_images=2, image_size=16)
    (batch,) = few.batches()
    assert batch["image"].shape == (2, 16, 16, 3)
    assert few.record["split"] == "all" and few.record["image_size"] == 16


def test_a_run_that_held_nothing_out():
    with pytest.raises(ConfigError, match="name a split with --split"):
        Images(dict(source="folder", eval_split=""), sharding.make_mesh(), 4)


def test_a_workdir_that_names_no_data(folder):
    section = autoencoder_config({}, 16)["data"]
    with pytest.raises(ConfigError, match="give images with --data"):
        Images(section, sharding.make_mesh(), 4, split="train")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    images = Images(section, mesh, 8, name=str(folder))
    (batch,) = images.batches()
    assert batch["image"].shape == (6, 16, 16, 3)


def test_pictures_of_one_name_are_refused(tmp_path):
    outputs = first_stage.name_outputs(["a/x.png", "b/y.png"], tmp_path)
    names = [path.name for path in outputs.values()]
    assert names == ["x_reconstructed.png", "y_reconstructed.png"]
    with pytest.raises(ConfigError, match="a/x.png and b/x.jpg would both go to"):
        first_stage.name_outputs(["a/x.png", "b/x.jpg"], tmp_path)


def test_a_pipe_in_the_place_of_a_picture_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("pipe", "is a pipe"), ("absent", "No such file")):
        with pytest.raises(ConfigError, match=f"--image: cannot read .*{reason}"):
            first_stage.reconstruct_file(
                (np.asarray,) * 2, 4, tmp_path / name, tmp_path / "x.png", 64, 8
            )


def _measure(outdir, data, **record):
    """Measures a first stage on images, and gives what the file says."""
    config = ConfigDict(autoencoder_config(TINY | {"kind": "kl"}, 16))
    record = {"workdir": "one", "step": 1, "weights": "params"} | record
    first = _first("kl")._replace(config=config, record=record)
    how = OnImages({"name": str(data)}, 8, None, [], {}, None)
    measure_first_stage(first, outdir, how)
    return json.loads((outdir / "metrics.json").read_text())


def test_damaged_shards_are_counted_and_named(tmp_path, capsys):
    place = write_shards(tmp_path / "tars", 2, 4)
    damaged = os.path.join(place, "00001.tar")
    os.truncate(damaged, os.path.getsize(damaged) // 2)
    record = _measure(tmp_path, place)
    assert 4 < record["num_images"] < 8
    assert record["unreadable"] == len(record["left_out"]) > 0
    assert record["left_out"][0].startswith(damaged)
    said = f"left out when the data were opened: {record['left_out'][0]}"
    assert said in capsys.readouterr().out


def test_what_another_evaluation_has_written_is_replaced_and_named(tmp_path, capsys):
    place = write_shards(tmp_path / "tars", 1, 4)
    out = tmp_path / "out"
    _measure(out, place)
    assert "is replaced" not in capsys.readouterr().out
    (out / "metrics.md").write_text("of others")
    _measure(out, place, workdir="two")
    said = "metrics.json is of other settings (workdir: one there, two here): it is"
    assert said in capsys.readouterr().out
    text = (out / "metrics.md").read_text()
    assert text.startswith("| two, step 1: 4 images of ") and "| psnr | " in text
    _measure(out, place, workdir="two")
    assert "is replaced" not in capsys.readouterr().out
    (out / "metrics.json").write_text("{}")
    _measure(out, place)
    assert "is no record of an evaluation that is thr" in capsys.readouterr().out


@pytest.fixture
def evaluation():
    return functools.partial(command, "ldm_jax.evaluation", devices=2)


# `first_stage` of conftest is taken by the module's name above.
@pytest.fixture
def workdir(request):
    return request.getfixturevalue("first_stage")


def test_the_command_prints_and_writes(workdir, evaluation, folder, tmp_path):
    arguments = [f"--workdir={workdir}", f"--outdir={tmp_path}"]
    status, output = finish(evaluation(*arguments, "--num_images=5"))
    assert status == 0, output
    assert "LPIPS is left out" in output
    assert "step 4 (moving average): 5 images of 32 x 32, shapes/32" in output
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["num_images"] == 5 and record["split"] == "validation"
    (line,) = (line for line in output.splitlines() if line.startswith("  psnr "))
    assert f"{record['metrics']['psnr']:.4f} ± " in line
    assert line.endswith(" dB  higher is better")
    (line,) = (line for line in output.splitlines() if line.startswith("  kl "))
    assert line.endswith(" nats per image")
    assert read_image(tmp_path / "reconstructions.png").shape == (66, 270, 3)
    status, output = finish(evaluation(*arguments, f"--image={folder / '0' / '0.png'}"))
    assert status == 0, output
    assert read_image(tmp_path / "0_reconstructed.png").shape == (20, 20, 3)
    status, output = finish(evaluation(*arguments, "--image_size=33"))
    assert status == 2
    assert output.strip().splitlines()[-1].startswith("error: --image_size=33 is not")


def test_the_command_evaluates_a_converted_first_stage(evaluation, folder, tmp_path):
    config = autoencoder_config(TINY | {"kind": "kl"}, 16)
    params = {"autoencoder": _first("kl").params}
    workdirs.write(Model(config, params), tmp_path / "converted")
    arguments = [f"--workdir={tmp_path / 'converted'}", f"--outdir={tmp_path}"]
    status, output = finish(evaluation(*arguments, f"--data={folder}"))
    assert status == 0, output
    assert f"5 images of 16 x 16, {folder}, split all" in output
    assert "1 of 6 images could not be read and are left out" in output
    assert json.loads((tmp_path / "metrics.json").read_text())["unreadable"] == 1
    status, output = finish(
        evaluation(*arguments, f"--data={folder}", "--noskip_unreadable")
    )
    assert status == 3 and "broken.png" in output.splitlines()[-1], output
