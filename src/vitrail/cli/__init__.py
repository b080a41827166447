"""The command line; alone knows a terminal, signals and exit codes."""
