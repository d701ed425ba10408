"""Uploading and putting up for sale."""

ENGLISH: dict[str, str] = {}

FRENCH: dict[str, str] = {}
