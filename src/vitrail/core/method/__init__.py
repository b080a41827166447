"""Methods: a composition of strategies, the protocols of the strategies and their validation."""
