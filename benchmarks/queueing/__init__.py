"""What `queue_peers.py` measures, one module a matter. Each peer runs in a process, and an environment, of its own."""
