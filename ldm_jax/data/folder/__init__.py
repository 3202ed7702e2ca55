"""The source "folder": image files on a disk, with the files beside them.

| module | what |
| --- | --- |
| `folder_source` | the images as examples |
| `listing` | which files are images, and which folders cannot be listed |
"""

from ldm_jax.data.folder.folder_source import FolderSource

__all__ = ["FolderSource"]
