"""Science at any size: grids of runs, scaling laws of their table, and the paper's ablations."""
