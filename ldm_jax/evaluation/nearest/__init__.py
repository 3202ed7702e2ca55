"""The training images that lie nearest to samples: whether a model has memorised.

| module | what |
| --- | --- |
| `__main__` | the command |
| `search` | the nearest of a stream of features |
| `streams` | sets of images as streams of features |
| `findings` | what was found: fractions, JSON, the image grid |
"""
