"""Checkpoints of CompVis/latent-diffusion and of Stable Diffusion: a file and its YAML.

| module | what |
| --- | --- |
| `read`, `write` | read and write a whole checkpoint |
| `read_yaml`, `write_yaml` | convert its YAML to our config sections, and back |
| `deduce` | options of the YAML, deduced from the names and shapes of the weights |
| `published` | heads and guidance scales of published models, not shown by weights |
| `options` | the YAML's names and defaults, and the rules for attention heads |
| `conditions` | converts its conditioning to our section `conditions`, and back |
| `cond_stages` | the table of the cond stages that have weights |
| `rows` | the mapping of a file's keys to our parameters, for all networks |
| `names` | the names of the weights of each network |
| `buffers` | the tables of the noise schedule beside the weights |

Reading goes from a YAML, or options deduced in its place, to sections of a config; the
networks that these describe determine which keys the file must have.
"""
