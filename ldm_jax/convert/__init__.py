"""Trained models from one format to another: our workdirs, CompVis, diffusers.

| module | what |
| --- | --- |
| `formats` | the table of formats, and `convert` from one to another |
| `model` | a trained model on its way, in our terms |
| `condition_inputs` | what inputs our configs make for its conditions |
| `verify` | a model compared with what reading its export gives |
| `bounds` | what a config of others may ask for |
| `carried` | files that a model carries along as they are |
| `workdir` | our own format: the workdir of a run |
| `compvis/` | checkpoints of CompVis/latent-diffusion and of Stable Diffusion |
| `diffusers/` | folders of Hugging Face diffusers |

A format is read into a `model.Model` and written from one, so a new one is a reader, a
writer and a row of the table. Conversion is strict: every key of a file is read or
named in an error, and what our networks have no place for is carried along, so that a
file comes back with the same bytes.
"""
