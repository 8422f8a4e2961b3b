"""The fake providers with their faults, and our side of benchmarks/llm_peers.py."""
