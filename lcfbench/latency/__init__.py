"""`lcfbench bench`: how long each method takes for one document, phase by phase, and how far that is from what this machine can do.

One document at a time, warm. Texts are real ones of a task, cut or repeated to the exact number of tokens; answers and notes are of exact
length, too. Beside each median stands the floor: the bytes and operations the phase cannot do without, at the rates measured in the same call.
"""
