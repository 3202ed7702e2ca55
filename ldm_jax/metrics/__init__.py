"""How good images are: networks of features, statistics and distances.

| module | what |
| --- | --- |
| `features` | networks that map images to vectors, and their files of weights |

The same code measures in training and by `ldm-evaluate`.
"""
