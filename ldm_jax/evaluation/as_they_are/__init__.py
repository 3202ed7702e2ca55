"""Images of a folder or an npz that are neither cropped nor resized.

| module | what |
| --- | --- |
| `contents` | hash of the contents of some files of a set |
| `first_image` | the first readable image, and the error if there is none |
| `folder_reader` | the images of a folder, batch by batch |
| `host_rows` | rows of this process, prefetched and put on the devices |
| `shards` | the error for shards where a folder of images is expected |
"""
