"""Follows recorded runs while they go on, also those of other processes: one model, several views."""
