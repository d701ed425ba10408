"""Invoices, the chain, the ledger. Knows nothing of files."""
