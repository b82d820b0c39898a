"""Measures how long each method takes for one document, phase by phase.

One document at a time, warm. Texts are real ones of a task, cut or repeated to the exact number of
tokens; answers and notes have exact lengths too.
"""
