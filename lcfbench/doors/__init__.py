"""A pair of models as one model of other harnesses: lm-eval and Inspect."""
