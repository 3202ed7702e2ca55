"""How good images are: networks of features, statistics and metrics.

| module | what |
| --- | --- |
| `reconstruction` | how close an image is to its original |
| `features` | networks that map images to vectors, and their files of weights |
| `statistics` | of the features of a set, from a stream of batches |
| `set_metrics` | of a set, mostly to another one, by their statistics |
| `reference` | statistics of a set in a file, to compare with |
| `adm_npz` | guided-diffusion's npz of images, as a stream |
| `protocols` | how many samples are compared with what, by the field's names |
| `programs` | a network on the devices, compiled |
| `measurement` | all of it: metrics of images that come batch by batch |

The same code measures in training and by `ldm-evaluate`.
"""
