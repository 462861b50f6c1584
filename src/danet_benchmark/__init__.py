"""How fast DANet is and how much memory it takes, beside its peers: see src/benchmark.py."""
