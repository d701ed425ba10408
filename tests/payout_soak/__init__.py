"""The whole life of hosted sales under faults: see `tests.payout_soak.play`."""
