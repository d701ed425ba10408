"""The soak drill: sellers, buyers and faults on real nodes and processes. `python -m tests.drill`."""
