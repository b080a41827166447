"""Reports of an experiment: tables, plots, contact sheets and the HTML page."""
