"""Pictures with captions as other programs leave them, read once by `infinity-jax prepare`."""
