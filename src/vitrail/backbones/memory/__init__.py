"""Memory of forwards: how much they need, and how much is free."""
