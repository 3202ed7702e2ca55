"""The training images nearest to samples: whether a model has memorised its data.

| module | what |
| --- | --- |
| `__main__` | the command |
| `search` | nearest neighbours in a stream of features |
| `streams` | sets of images as streams of features |
| `findings` | the results: fractions, JSON, the image grid |
"""
