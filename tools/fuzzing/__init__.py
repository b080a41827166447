"""Parts of ``tools/fuzz.py``: cases, strategies that draw them, the corpus of past findings, and worker processes."""
