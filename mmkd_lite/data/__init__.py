"""Pictures, captions and labels: the emoji world, and the loaders of the real data sets."""
