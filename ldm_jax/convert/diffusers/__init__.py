"""Folders of diffusers: one network with its config.json, or a whole pipeline.

| module | what |
| --- | --- |
| `read`, `write` | a folder, either way |
| `config` | config.json of U-Nets and autoencoders and our sections, either way |
| `text_config` | config.json of text encoders and our text conditions, either way |
| `schedule_config` | scheduler_config.json and our section `schedule`, either way |
| `rows` | which key of the files goes where, all networks together |
| `names` | how each network names its weights |

U-Nets keep the names of CompVis in their transformer blocks, and imply the same
conditions; that is taken from `convert.compvis`.
"""
