"""Moving tensors between ranks; knows torch only. One process needs none of it."""
