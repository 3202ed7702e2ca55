"""Images of a folder or an npz that are neither cropped nor resized.

| module | what |
| --- | --- |
| `contents` | what distinguishes images of the same names |
| `first_image` | the first image that can be read, and where none can |
| `folder_reader` | the images of a folder, batch by batch |
| `host_rows` | rows of this process on their way to the devices |
| `shards` | what to do with shards where a folder is asked for |
"""
