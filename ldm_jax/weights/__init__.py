"""Files of weights: read and written safely, and moved between others' names and ours.

| module | what |
| --- | --- |
| `files` | `.safetensors` and PyTorch's `.ckpt`, read and written tensor by tensor |
| `folders` | which file of a folder is meant: variants, shards |
| `unpickle` | PyTorch's files, read without running what they carry |
| `pickles` | the pickles in them, of bounded memory and time |
| `state_dict` | mappings of keys: what each is called there and here, in which layout |
| `tower_names` | the mappings of text encoders, image encoders and semantic maps |
| `towers` | frozen text and image encoders, from the files that people have |
| `lpips` | the perceptual distance, from the files that people have |

Training, sampling and conversion all stand on this room, and it knows none of them.
"""
