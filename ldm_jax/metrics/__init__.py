"""How good images are: networks of features, statistics and distances.

| module | what |
| --- | --- |
| `reconstruction` | how close an image is to its original |
| `features` | networks that map images to vectors, and their files of weights |
| `statistics` | of the features of a set, from a stream of batches |
| `distances` | of a set to another one by their statistics |
| `programs` | a network on the devices, compiled |
| `measurement` | all of it: distances of images that come batch by batch |

The same code measures in training and by `ldm-evaluate`.
"""
