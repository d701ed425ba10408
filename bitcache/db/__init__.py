"""The database: engine, the one way to write, migrations."""
