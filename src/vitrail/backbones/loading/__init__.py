"""Models from folders, single files and the hub, and pipelines that a caller has."""
