"""Lists the images below a folder, and the folders that cannot be listed."""

import os

from absl import logging

from ldm_jax.data.sidecars import IMAGE_SUFFIXES, drop_sidecars
from ldm_jax.data.splits import split_of
from ldm_jax.reading import folders_below, is_kept, may_be_folder
from ldm_jax.store import raise_if_silent

# Suffixes of image formats that are not supported in folders.
_OTHER_IMAGES = tuple(
    ".avif .heic .heif .jxl .jp2 .j2k .ppm .pgm .pnm .tga .exr .hdr .dng .psd".split()
)


def find_parts(root: str, suffixes: tuple[str, ...]) -> list[str]:
    """Finds the sub-folders that are splits.

    Args:
      root: Path of the folder.
      suffixes: Suffixes of images.

    Returns:
      Their names; [""] if the folder is not split.

    Raises:
      ValueError: If it, or a link to one of its splits, cannot be listed.
      Unreachable: If its disk does not answer.
    """
    unread = []
    folders, files = _entries(root, unread)
    for path, reason in unread:
        # Without one of its splits the folder would be split differently.
        if path == root or split_of(os.path.basename(path)):
            raise ValueError(f"{path} {reason}: see that it may be read, or remove it")
    training = [f for f in folders if split_of(f) == "train"]
    held_out = [f for f in folders if split_of(f) in ("validation", "test")]
    if training and held_out:
        loose = [file for file in files if _is_image(file, suffixes)]
        unused = sorted({*folders} - {*training, *held_out})
        # For images only: arrays are searched for afterwards, and would repeat it.
        unused = (unused if suffixes == IMAGE_SUFFIXES else []) + sorted(loose)
        if unused:
            logging.warning(
                "%s has folders of splits; %d others are not read, as %s",
                *(root, len(unused), unused[0]),
            )
        return sorted(training + held_out)
    if (
        training
        and len(folders) == 1
        and not any(_is_image(file, suffixes) for file in files)
    ):
        return training
    return [""]


def list_images(
    folder: str, suffixes: tuple[str, ...]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Lists the images below a folder; follows links.

    Args:
      folder: Its path.
      suffixes: Suffixes of images.

    Returns:
      (paths of the images relative to it, sorted; list of (path, what is wrong) of the
      folders that cannot be listed).

    Raises:
      Unreachable: If the disk, or that of the target of a link, does not answer.
    """
    found, unread, others = [], [], []
    for path, files in folders_below(folder, lambda path: _entries(path, unread)):
        names = drop_sidecars(name for name in files if _is_image(name, suffixes))
        found += [os.path.relpath(os.path.join(path, name), folder) for name in names]
        others += [os.path.join(path, n) for n in files if _is_image(n, _OTHER_IMAGES)]
    # For images only: arrays are searched for afterwards, and would repeat it.
    if others and suffixes == IMAGE_SUFFIXES:
        logging.warning(
            "%s: %d images of formats that folders are not read for are passed over, "
            "as %s: convert them, to PNG or WebP",
            *(folder, len(others), min(others)),
        )
    return sorted(found), unread


def _entries(folder, unread):
    """Names of (folders, files) in a folder; adds to `unread` what cannot be listed."""
    folders, files = [], []

    def note(path, error):
        raise_if_silent(path, error)
        unread.append((path, f"cannot be listed: {error.strerror}"))

    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_kept(entry.name):
                    continue
                try:
                    is_folder = entry.is_dir()
                # A link whose target cannot be accessed or does not answer: a folder,
                # judging by its name.
                except OSError as error:
                    raise_if_silent(entry.path, error)
                    if may_be_folder(entry.name):
                        note(entry.path, error)
                        continue
                    is_folder = False
                if not is_folder and _leads_nowhere(entry):
                    reason = "cannot be listed: it is a link to what is not there"
                    unread.append((entry.path, reason))
                    continue
                (folders if is_folder else files).append(entry.name)
    except OSError as error:
        note(folder, error)
    return folders, files


def _leads_nowhere(entry):
    """Whether an entry is a broken link to what may have been a folder, by its name."""
    return entry.is_symlink() and may_be_folder(entry.name) and not entry.is_file()


def _is_image(name, suffixes):
    return name.lower().endswith(suffixes)
