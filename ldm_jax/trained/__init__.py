"""Loads trained models from workdirs, as modules with weights.

| module | what |
| --- | --- |
| `model` | second stages, with everything that sampling needs |
| `first_stage` | first stages |
| `own_copy` | the copy of its first stage in a second stage's workdir |
| `classifier` | classifiers of noisy latents |
| `text_towers` | frozen text encoders, which runs on stored text states lack |
"""

from ldm_jax.trained.classifier import TrainedClassifier, load_classifier
from ldm_jax.trained.first_stage import (
    FirstStage,
    check_same_everywhere,
    check_same_latents,
    load_first_stage,
    record_of,
)
from ldm_jax.trained.model import Trained, load_model
from ldm_jax.trained.own_copy import (
    first_stage_folder,
    has_own_copy,
    keep_first_stage,
    load_recorded,
)
from ldm_jax.trained.text_towers import (
    TextTower,
    load_text_towers,
    stored_text_states,
    with_text_towers,
)

__all__ = [
    "FirstStage",
    "TextTower",
    "Trained",
    "TrainedClassifier",
    "check_same_everywhere",
    "check_same_latents",
    "first_stage_folder",
    "has_own_copy",
    "keep_first_stage",
    "load_classifier",
    "load_first_stage",
    "load_model",
    "load_recorded",
    "load_text_towers",
    "record_of",
    "stored_text_states",
    "with_text_towers",
]
