"""The benchmarks: what rsq costs, beside what the same work costs with a bare client, measured in one run."""
