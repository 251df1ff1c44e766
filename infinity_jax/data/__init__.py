"""Data sets: the bundled emoji pictures, one's own folders, and the pipeline that batches them."""
