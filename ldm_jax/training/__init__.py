"""The stages of training, and the one loop."""
