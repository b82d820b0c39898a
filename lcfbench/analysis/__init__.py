"""What the rows say: statistics, summaries, tables and pictures. Reads parquet, imports no torch.

from lcfbench.analysis.cells import read_cells
from lcfbench.analysis.summary import summarise
summary = summarise(read_cells([Path("results")]).cells)
"""
