"""The benchmark: chat servers and engines under the same load, interleaved in one run. See `docs/performance.md`."""
