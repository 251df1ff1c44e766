"""Data sets: the bundled pictures, folders, prepared shards in buckets by aspect ratio, and what batches them."""
