"""What the rows say: statistics, summaries, tables and pictures. Reads parquet, imports no torch.

from lcfbench.analysis.summary import summarise
from lcfbench.store import read_runs
runs = read_runs([Path("results")])
summary = summarise(runs.rows, runs.manifests)
"""
