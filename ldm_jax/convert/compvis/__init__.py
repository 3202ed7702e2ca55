"""Checkpoints of CompVis/latent-diffusion and of Stable Diffusion: a file and its YAML.

| module | what |
| --- | --- |
| `read`, `write` | a whole checkpoint, either way |
| `read_yaml`, `write_yaml` | its YAML and our config sections, either way |
| `deduce` | what the YAML would say, from the names and shapes of the weights |
| `published` | what they do not show, of the published models: heads, guidance scale |
| `options` | the YAML's names and defaults, and the rules for attention heads |
| `conditions` | the conditioning in the YAML and our section `conditions`, either way |
| `cond_stages` | the table of the cond stages that have weights |
| `rows` | which key of the file goes where, all networks together |
| `names` | how each network names its weights |
| `buffers` | the tables of the noise schedule beside the weights |

Reading goes from a YAML, or what is deduced in its place, to sections of a config; the
networks that they describe then say which keys there must be.
"""
