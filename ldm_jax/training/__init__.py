"""The training stages, and the training loop that they share."""
