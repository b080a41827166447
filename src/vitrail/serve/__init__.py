"""A page on this machine to sample pictures with one loaded model: what it does, and who may ask it."""
