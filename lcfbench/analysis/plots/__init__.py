"""Figures as png and svg: the frontier, a training, the oracles, an adapter's layers.

`figures` is what they share.
"""
