"""Parts of ``tools/fuzz.py``: cases, how they are drawn, the corpus of past findings, and what runs them."""
