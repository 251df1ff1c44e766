"""Scaling laws: a sweep of runs, its table, and what is fitted to it."""
