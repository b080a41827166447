"""What a method is: a composition of strategies, their protocols and their validation."""
