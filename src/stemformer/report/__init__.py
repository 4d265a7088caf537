"""Plots and the self-contained HTML report of a run; reads run folders only."""
