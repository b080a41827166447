"""The model that ships inside: the drawn data, the judge, and the checkpoint."""
