"""Folders of diffusers: one network with its config.json, or a whole pipeline.

| module | what |
| --- | --- |
| `read`, `write` | a folder, either way |
| `unet_config` | config.json of U-Nets and our section `backbone`, either way |
| `config` | config.json of autoencoders and our section `first_stage`, either way |
| `text_config` | config.json of text encoders and our text conditions, either way |
| `schedule_config` | scheduler_config.json and our `schedule` and `sample` |
| `fields` | every field of their config.json that is known, class by class |
| `values` | values of config.json, checked |
| `pipelines` | a pipeline's class, index and files beside its networks |
| `tokenizer_files` | the files of a tokenizer, as transformers saves them |
| `rows` | which key of the files goes where, all networks together |
| `names` | how each network names its weights |

U-Nets keep the names of CompVis in their transformer blocks, and imply the same
conditions; that is taken from `convert.compvis`.
"""
