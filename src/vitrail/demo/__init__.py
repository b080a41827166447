"""The demo model that ships with the package: drawn training data, judge, checkpoint."""
