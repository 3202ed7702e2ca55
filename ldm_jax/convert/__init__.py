"""Models of CompVis and of diffusers, in and out."""
