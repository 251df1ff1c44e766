"""Captioned pictures without end: solids on a floor, described by (seed, number), written as captions, ray traced."""
