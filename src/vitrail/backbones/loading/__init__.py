"""Loading of models from folders, single files and the hub, and adoption of a caller's pipelines."""
