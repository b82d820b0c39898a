"""What the rows say: statistics, summaries, tables and figures. Reads parquet, imports no torch.

from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.summary import summarise
summary = summarise(read_run_groups([Path("results")]).groups)
"""
