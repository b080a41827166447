"""Analysis of an experiment's pictures: metrics, confidence intervals, rankings."""
