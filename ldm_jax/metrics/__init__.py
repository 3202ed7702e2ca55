"""What is measured of images: one by one, and as sets, by the features of networks."""
