"""Laws of communication, for whoever writes a backend."""
