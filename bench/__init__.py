"""Side-by-side measurements: each prints a table, keeps it as JSON, and writes its part of PERFORMANCE.md."""
