"""From cells to pictures, kept in a folder."""
