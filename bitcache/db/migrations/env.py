"""How Alembic runs here: on the connection it is handed, in that connection's transaction."""

from alembic import context

from bitcache.db.migrate import METADATAS

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATAS,
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
