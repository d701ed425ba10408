"""The operator's side: each configuration is usable or refused in words, and no spreadsheet holds what runs.

FUZZ_EXAMPLES sets how many; `make soak-fuzz`.
"""

import csv
import io
import re
import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from bitcache import config, config_file
from bitcache.api.wire_money import EarningsDay, EarningsView
from bitcache.earnings import earnings_csv
from bitcache.errors import ConfigInvalid
from bitcache.ids import id_text
from tests.fuzz.mutation import fuzzed, hurt_text, outcome

VALID_CONFIG = """
network = "regtest"
listen = "127.0.0.1:8421"
public_url = "https://files.example"
trusted_proxies = ["10.0.0.0/8", "::1"]
registration = "invite"
invite_codes = ["a"]
price_hold_s = 900
operator_terms = "https://files.example/terms"
[node]
rpc_url = "http://127.0.0.1:18443"
poll_interval_s = 2
"""


@fuzzed
@given(hurt_text(st.just(VALID_CONFIG)) | st.text(max_size=60))
@example('public_url = "http://[::1"')
@example('listen = "x:' + "9" * 5_000 + '"')
@example("price_hold_s = " + "9" * 5_000)
@example("x = " + "[" * 5_000)
@example("node = 1")
@example('[[node]]\nrpc_url = "x"')
@example('public_url = "https://x.org:99999"')
def test_configuration_is_usable_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / config.CONFIG_FILE_NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
        _use(Path(folder), {})


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from([f"BITCACHE_{key.upper()}" for key in config.known_keys()]),
        hurt_text(st.sampled_from(("1", "true", "regtest", "127.0.0.1:1", "http://x", "a,b", "9" * 5_000))),
        max_size=2,
    )
)
def test_variable_is_usable_or_refused(variables: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / config.CONFIG_FILE_NAME).write_text(VALID_CONFIG)
        _use(Path(folder), variables)


def _use(folder: Path, variables: dict[str, str]) -> None:
    """Load the configuration and ask it all that a server asks at its start."""
    loaded = outcome(ConfigInvalid, config_file.load, folder, variables)
    if isinstance(loaded, ConfigInvalid):
        assert str(loaded)
        return
    assert 0 <= loaded.listen_port < 65_536
    assert loaded.listen_host
    assert loaded.public_url.startswith(("http://", "https://"))
    config.warnings(loaded)
    _ = loaded.proxies, loaded.database, loaded.blobs, loaded.master_key, loaded.node.cookie_path


# --- spreadsheets ---------------------------------------------------------------------------------

days = st.builds(
    EarningsDay,
    day=st.dates().map(str),
    parcel_id=st.binary(min_size=16, max_size=16).map(id_text),
    received_sat=st.integers(-(2**63), 2**63),
    fee_sat=st.integers(-(2**63), 2**63),
    sales=st.integers(-(2**31), 2**31),
    chunks=st.integers(-(2**31), 2**31),
)


@fuzzed
@given(st.lists(days, max_size=20))
def test_spreadsheet_runs_nothing_and_is_read_back(listed: list[EarningsDay]) -> None:
    view = EarningsView(
        since=0,
        until=1,
        received_sat=0,
        fee_sat=0,
        pending_sat=0,
        in_channels_sat=0,
        owed_sat=0,
        owed_hosted_sat=0,
        refunding_sat=0,
        unassigned_sat=0,
        sales=0,
        chunks=0,
        days=listed,
    )
    header, *lines = csv.reader(io.StringIO(earnings_csv(view), newline=""))
    assert [
        EarningsDay(day, parcel, int(sat), int(fee), int(sales), int(chunks))
        for day, parcel, sat, sales, fee, chunks in lines
    ] == listed
    for cell in (*header, *(cell for line in lines for cell in line)):
        assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*|-?[0-9]+", cell), (
            "a formula, or what a spreadsheet takes for one"
        )
