"""Real vLLM servers on machines without a GPU, for tests and evaluations: see README.md.

Importing this package costs nothing: it needs neither vLLM nor anything else outside the standard library.
"""
