"""Benefit and cost of guidance: accuracy and spread of samples by its scale.

    pip install scikit-learn
    python -m benchmarks.guidance --digits=digits
    python train.py --config=configs/shapes_autoencoder.py --workdir=runs/digits/first \
        --config.data.source=folder --config.data.name=digits/train \
        --config.data.image_size=32
    python train.py --config=configs/shapes_class.py --workdir=runs/digits/class \
        --config.first_stage.workdir=runs/digits/first \
        --config.data.source=folder --config.data.name=digits/train \
        --config.data.image_size=32
    python -m benchmarks.guidance --workdir=runs/digits/class \
        --train=digits/train --test=digits/test

The first command writes scikit-learn's scanned digits as folders. The last draws
samples of every class at several scales, from the same noise, and prints how often a
support vector machine trained on the real training images predicts the class that they
are conditioned on, and their spread: the standard deviation of a pixel among samples of
a class, divided by that of real images. It also prints a line for the real test images,
and writes `guidance.png` to the workdir: a row for each class, a block for each scale.
"""

import argparse
import functools
import pathlib

import jax
import numpy as np
from PIL import Image

from ldm_jax import generate, sampling, sharding
from ldm_jax.images import make_grid, to_uint8, write_png

SCALES = "1,1.5,2,3,4"
COLUMNS = "| | accuracy | least of a class | spread | least of a class |"


def write_digits(folder, train=1417):
    """Writes scikit-learn's scanned digits as PNG files, one folder per class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    for part, rows in (("train", order[:train]), ("test", order[train:])):
        for row in rows:
            path = pathlib.Path(folder, part, str(digits.target[row]), f"{row:04d}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.clip(digits.images[row] / 16 * 255, 0, 255)
            Image.fromarray(image.astype(np.uint8)).save(path)


def read_folder(folder, names, size):
    """Images of a folder, resized (bilinear): (uint8 [N, S, S, 3], labels)."""
    images, labels = [], []
    for label, name in enumerate(names):
        for path in sorted(pathlib.Path(folder, name).iterdir()):
            image = Image.open(path).convert("RGB")
            images.append(np.asarray(image.resize((size, size), Image.BILINEAR)))
            labels.append(label)
    return np.stack(images), np.array(labels)


def features(images):
    """Grey images averaged down to about 16 x 16, in [0, 1]: [N, features]."""
    grey = images.astype(np.float32).mean(axis=-1) / 255
    step = max(1, grey.shape[1] // 16)
    side = grey.shape[1] // step
    grey = grey[:, : side * step, : side * step]
    grey = grey.reshape(len(grey), side, step, side, step).mean(axis=(2, 4))
    return grey.reshape(len(grey), -1)


def make_reader(images, labels):
    """Trains a classifier on real images."""
    from sklearn.svm import SVC

    reader = SVC(gamma="scale", C=10.0).fit(features(images), labels)
    return lambda images: reader.predict(features(images))


def spread(images, labels):
    """Standard deviation of a pixel within each class, mean over pixels: [classes]."""
    grey = images.astype(np.float32).mean(axis=-1) / 255
    return np.array([grey[labels == c].std(axis=0).mean() for c in np.unique(labels)])


def make_draw(trained):
    """Makes the function (labels, indices, scale) -> uint8 images."""
    size, section = trained.config.data.image_size, trained.config.sample

    @sharding.jit
    def draw(params, frozen, labels, indices, scale):
        options = generate.SampleOptions(
            sampler=section.sampler,
            num_steps=section.num_steps,
            size=(size, size),
            guidance=generate.GuidanceOptions(scale=scale),
        )
        rngs = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))
        images = generate.sample_images(
            trained.model, params, frozen, {"label": labels}, rngs(indices), options
        )
        return to_uint8(images)

    return functools.partial(draw, trained.params, trained.frozen)


def write_blocks(path, blocks, classes, columns=6):
    """Writes images of all scales side by side, one class per row."""
    rows = [images.reshape(classes, -1, *images.shape[1:]) for images in blocks]
    grids = [make_grid(np.concatenate(row[:, :columns]), columns) for row in rows]
    gap = np.full((len(grids[0]), 12, 3), 255, np.uint8)
    parts = [part for grid in grids for part in (gap, grid)]
    write_png(path, np.concatenate(parts[1:], axis=1))


def format_row(name, found, labels, spreads, real):
    """Formats a line of the table."""
    right = np.array([(found[labels == c] == c).mean() for c in np.unique(labels)])
    ratio = spreads / real
    return (
        f"| {name} | {(found == labels).mean():.1%} | {right.min():.0%} | "
        f"{spreads.mean() / real.mean():.2f} | {ratio.min():.2f} |"
    )


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--digits", help="write the digits into this folder, and end")
    parser.add_argument("--workdir", help="of the trained second stage")
    parser.add_argument("--train", help="folder of images that it was trained on")
    parser.add_argument("--test", help="folder of others")
    parser.add_argument("--scales", default=SCALES)
    parser.add_argument("--images", type=int, default=32, help="samples of a class")
    args = parser.parse_args()
    if args.digits:
        write_digits(args.digits)
        return
    if not (args.workdir and args.train and args.test):
        parser.error("give --digits, or --workdir, --train and --test")
    trained = sampling.load_model(args.workdir)
    names, size = trained.class_names, trained.config.data.image_size
    real, real_labels = read_folder(args.train, names, size)
    reader, real_spread = make_reader(real, real_labels), spread(real, real_labels)
    draw, labels = make_draw(trained), np.repeat(np.arange(len(names)), args.images)
    labels = labels.astype(np.int32)
    print(COLUMNS + "\n" + "| --- " * COLUMNS.count(" | ") + "| --- |", flush=True)
    test, test_labels = read_folder(args.test, names, size)
    rows = test_labels, spread(test, test_labels), real_spread
    print(format_row("real, held out", reader(test), *rows), flush=True)
    blocks = []
    for scale in map(float, args.scales.split(",")):
        parts = np.arange(len(labels)).reshape(len(names), -1)
        images = [draw(labels[part], part, scale) for part in parts]
        images = np.concatenate(images)
        blocks.append(images)
        rows = labels, spread(images, labels), real_spread
        print(format_row(f"guidance {scale:g}", reader(images), *rows), flush=True)
    write_blocks(pathlib.Path(args.workdir, "guidance.png"), blocks, len(names))


if __name__ == "__main__":
    main()
