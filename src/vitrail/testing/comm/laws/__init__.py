"""The laws, one module per topic; importing them fills ``LAWS``.

A law is a function decorated by ``law``; the first line of its docstring is its statement. Common arguments: ``run``
is the bench, which runs a program on all ranks; ``world`` the number of ranks; ``schedule`` the order of events and
the delays in virtual time; ``bound`` a channel's maximum staleness in versions; ``length`` a number of versions;
``culprit`` the rank that fails. Programs, the other functions, run on every rank and take its communicator as ``c``.
"""

from vitrail.testing.comm.laws import failure, isolation, life, liveness, order, safety, whole_programs, works

__all__ = ["failure", "isolation", "life", "liveness", "order", "safety", "whole_programs", "works"]
