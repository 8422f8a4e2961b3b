"""Exit code 0 when the process in this container can do its work. HEALTH_URL, default the worker's."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

URL = os.environ.get("HEALTH_URL", f"http://127.0.0.1:{os.environ.get('WORKER_PORT', '3001')}/health")


def main() -> int:
    """0 healthy, 1 not."""
    try:
        # An address of this container: a proxy, which Docker may set in the environment, cannot reach it.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(URL, timeout=4) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, OSError) as error:
        print(f"{URL}: {error}")  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())
