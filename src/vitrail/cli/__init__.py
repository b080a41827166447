"""The command line: the only package that deals with terminals, signals and exit codes."""
