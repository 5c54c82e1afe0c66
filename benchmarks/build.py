"""`python -m benchmarks.build`: compile the provider and the load generator, and say where they are."""

from __future__ import annotations

import sys

from benchmarks import parts

if __name__ == "__main__":
    try:
        parts.compile_tools()
    except parts.BenchError as failure:
        sys.exit(f"benchmarks: {failure}")
    print(parts.BUILD / "provider", parts.BUILD / "load")
