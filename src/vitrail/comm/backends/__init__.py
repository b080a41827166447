"""Backends: threads of one process, processes (gloo, NCCL), and simulated ranks with a virtual clock."""
