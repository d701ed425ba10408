"""The HTTP API, /api/v1: a module per resource."""
