"""The laws, one file a kind; importing them fills ``LAWS``."""

from vitrail.testing.comm.laws import failure, isolation, life, liveness, order, safety, whole_programs, works

__all__ = ["failure", "isolation", "life", "liveness", "order", "safety", "whole_programs", "works"]
