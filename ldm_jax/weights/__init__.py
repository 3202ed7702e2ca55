"""Reads and writes files of weights safely, and maps others' names to ours.

| module | what |
| --- | --- |
| `files` | reads and writes `.safetensors` and PyTorch's `.ckpt`, tensor by tensor |
| `folders` | finds the weights file in a folder: variants, shards |
| `unpickle` | reads PyTorch's files without running code in them |
| `pickles` | reads the pickles in them with bounded memory and time |
| `state_dict` | mappings between keys of state dicts and our parameters, with layouts |
| `tower_names` | the mappings of text encoders, image encoders and spatial rescalers |
| `towers` | loads frozen text and image encoders from published files |
| `lpips` | loads LPIPS from published files |

Training, sampling and conversion import this package, and it imports none of them.
"""
