"""Where the operator's commands look for the server."""

from pathlib import Path
from typing import Annotated

import typer

DATA_FOLDER = Path("bitcache-data")
DataFolder = Annotated[
    Path,
    typer.Option("--data", envvar="BITCACHE_DATA", help="The server's data folder."),
]
