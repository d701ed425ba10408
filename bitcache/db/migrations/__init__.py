"""Alembic's revisions, applied by `bitcache.db.migrate`."""
