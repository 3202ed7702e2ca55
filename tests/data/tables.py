"""Tables in Hugging Face's layout, as `datasets` writes them, made by pyarrow alone."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.common import encode, make_image

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
NAMES = ["cat", "dog"]
TYPES = {
    "image": IMAGE,
    "label": pa.int64(),
    "caption": pa.list_(pa.string()),
    "text": pa.string(),
    "score": pa.float64(),
    "segmentation": IMAGE,
    "objects": pa.struct(
        {"bbox": pa.list_(pa.list_(pa.float32())), "label": pa.list_(pa.int64())}
    ),
}


def make_rows(count, start=0):
    """Rows of a table; the height of the images grows from 10 on, the width is 16."""
    return [
        {
            "image": {"bytes": encode(make_image(16, 10 + k, k)), "path": f"{k}.png"},
            "label": k % 2,
            "caption": [f"image {k}", f"number {k}"],
            "text": f"text {k}",
            "score": k / 4,
            "segmentation": {"bytes": encode(make_image(16, 10 + k)[..., 0])},
            "objects": {
                "bbox": [[0.0, 0.0, 0.5, 1.0]] * (k % 3),
                "label": [1] * (k % 3),
            },
        }
        for k in range(start, start + count)
    ]


def make_table(rows, names=NAMES, **types):
    """A table of them with the metadata that `datasets` keeps in the schema."""
    features = {"label": {"names": names, "_type": "ClassLabel"}} if names else {}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    kinds = {k: v for k, v in (TYPES | types).items() if k in rows[0]}
    return pa.Table.from_pylist(rows, pa.schema(kinds, metadata))


def write_parquet(path, rows, group=4, **options):
    """Writes Parquet in row groups of some rows."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(make_table(rows, **options), path, row_group_size=group)
    return str(path)


def save_to_disk(folder, rows, shards=2):
    """Writes what `datasets.Dataset.save_to_disk` writes."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    names = [f"data-{k:05d}-of-{shards:05d}.arrow" for k in range(shards)]
    for k, name in enumerate(names):
        table = make_table(rows[k::shards])
        with pa.ipc.new_stream(str(folder / name), table.schema) as file:
            file.write_table(table, max_chunksize=3)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return str(folder)
