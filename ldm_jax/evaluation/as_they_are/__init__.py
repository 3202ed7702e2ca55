"""Images of a folder or an npz that are neither cropped nor resized.

| module | what |
| --- | --- |
| `folder_reader` | the images of a folder, batch by batch |
| `host_rows` | rows of this process on their way to the devices |
"""
