"""Converts trained models between formats: our workdirs, CompVis, diffusers.

| module | what |
| --- | --- |
| `formats` | the table of formats, and `convert` from one to another |
| `model` | a trained model during conversion, in our terms |
| `condition_inputs` | the inputs of its conditions, for our configs |
| `verify` | compares a model with its export, read again |
| `bounds` | limits on the configs of other programs |
| `carried` | files that are kept unchanged with a model |
| `workdir` | our own format: the workdir of a run |
| `compvis/` | checkpoints of CompVis/latent-diffusion and of Stable Diffusion |
| `diffusers/` | folders of Hugging Face diffusers |

A format is read into a `model.Model` and written from one, so a new format is a reader,
a writer and a row of the table. Conversion is strict: every key of a file is read or
named in an error, and tensors that our networks have no place for are kept with the
model, so that a round trip restores the same bytes.
"""
