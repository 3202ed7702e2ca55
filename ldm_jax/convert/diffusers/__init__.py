"""Folders of diffusers: one network with its config.json, or a whole pipeline.

| module | what |
| --- | --- |
| `read`, `write` | read and write a folder |
| `unet_config` | converts config.json of U-Nets to our section `backbone`, and back |
| `config` | converts config.json of autoencoders to our `first_stage`, and back |
| `text_config` | converts config.json of text encoders to our conditions, and back |
| `schedule_config` | converts scheduler_config.json to our `schedule` and `sample` |
| `fields` | all known fields of their config.json, by class |
| `values` | checks values of config.json |
| `pipelines` | a pipeline's class, index and files besides its networks |
| `tokenizer_files` | the files of a tokenizer, as saved by transformers |
| `rows` | the mapping of the files' keys to our parameters, for all networks |
| `names` | the names of the weights of each network |

U-Nets have CompVis's names in their transformer blocks, and imply the same conditions;
for these `convert.compvis` is used.
"""
