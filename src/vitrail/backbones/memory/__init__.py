"""How much memory a forward takes, and how much is free."""
