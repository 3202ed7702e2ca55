"""What a run writes: the contact sheet."""

import numpy as np

from ldm_jax.sampling.output import Entry, make_contact_sheet


def test_a_contact_sheet_holds_every_image_and_writes_below():
    image = np.full((20, 30, 3), 7, np.uint8)
    entries = [
        Entry([("depth", image), ("sample", image)], "a red star " * k) for k in (0, 9)
    ]
    sheet = make_contact_sheet(entries)
    assert (sheet == 7).all(axis=-1).sum() == 4 * 20 * 30
    taller = make_contact_sheet([Entry(entry.images, "") for entry in entries])
    assert sheet.shape[0] > taller.shape[0] and sheet.shape[1] == taller.shape[1]
