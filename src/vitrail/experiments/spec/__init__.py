"""From a file to cells."""
