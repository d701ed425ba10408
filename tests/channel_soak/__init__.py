"""Payments through channels while server and payers are killed: see `tests.channel_soak.play`."""
