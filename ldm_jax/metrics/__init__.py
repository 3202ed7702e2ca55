"""Image quality: feature networks, statistics and metrics.

| module | what |
| --- | --- |
| `reconstruction` | metrics of an image and its reconstruction |
| `features` | networks that map images to vectors, and their files of weights |
| `statistics` | statistics of the features of a set, from a stream of batches |
| `set_metrics` | metrics of sets, mostly of two, from their statistics |
| `reference` | statistics of a set in a file, to compare with |
| `adm_npz` | guided-diffusion's npz of images, as a stream |
| `protocols` | published protocols: numbers of samples, metrics and references |
| `programs` | a feature network on the devices, compiled |
| `measurement` | all of this: metrics of a set, added batch by batch |

Training and `ldm-evaluate` use the same code.
"""
