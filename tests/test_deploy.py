"""What deploy/ ships is right: asked of the programs that will read it."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from bitcache.app import DRAIN_S
from bitcache.cli.main import app as commands
from bitcache.config import CONFIG_FILE_NAME
from bitcache.config_file import load
from bitcache.metrics import Metrics
from bitcache.setup import initialise

PROJECT = Path(__file__).parent.parent
DEPLOY = PROJECT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
UNIT = DEPLOY / "bitcache.service"
ALERTS = DEPLOY / "alerts.yml"
EXPOSURE_MAX = 20
"""Of 100, as systemd counts it; an ordinary service has 92."""


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed here")
    return found


def ran(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_dockerfile_is_well_made() -> None:
    done = ran(program("hadolint"), str(DOCKERFILE))
    assert done.returncode == 0, done.stdout


def test_the_container_gets_what_the_wheel_is_made_of() -> None:
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
        for word in shlex.split(line)[:-1]
    }
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    for name in copied:
        assert (PROJECT / name).exists(), name


async def test_the_containers_settings_are_ours(tmp_path: Path) -> None:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    variables = dict(re.findall(r"(BITCACHE_\w+)=(\S+)", text))
    await initialise(tmp_path / "data", network="regtest")
    assert load(tmp_path / "data", variables).listen == "0.0.0.0:8421"
    assert variables["BITCACHE_DATA"] == "/data"
    assert "serve" in get_command(commands).commands  # type: ignore[attr-defined]
    assert re.search(r"^USER \d+$", text, re.MULTILINE), "never as root"
    assert CONFIG_FILE_NAME not in text, "no settings in the image"


def test_the_unit_is_valid_and_locked_down(tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    # Only the program's place differs: systemd looks whether it is there.
    unit = tmp_path / UNIT.name
    unit.write_text(
        UNIT.read_text().replace("/opt/bitcache/bin/bitcache", shutil.which("true") or "/bin/true")
    )
    done = ran(analyze, "verify", str(unit))
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    done = ran(analyze, "security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", str(unit))
    assert done.returncode == 0, done.stdout


def test_the_unit_waits_for_answers_under_way() -> None:
    stop_s = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert stop_s is not None
    assert int(stop_s[1]) > DRAIN_S


@dataclass(frozen=True)
class World:
    """What Prometheus saw, minute by minute, in its own notation."""

    series: str
    trouble: str
    """Values at which the alert must have fired."""
    peace: str
    """Values at which it must not."""
    labels: tuple[tuple[str, str], ...] = ()
    """Of the alert, besides its severity."""
    minutes: int = 8


WORLDS = {
    "BitcacheDown": World('up{job="bitcache"}', "1 0x10", "1x10", (("job", "bitcache"),)),
    "BitcacheNodeOffline": World("bitcache_node_online", "1 0x10", "1 0x3 1x6"),
    "BitcacheTipStandsStill": World("bitcache_tip_height", "800x200", "800+1x200", minutes=200),
    "BitcacheServerError": World(
        'bitcache_http_requests_total{route="/x",status="500"}', "0 0 1x10", "5x10", (("route", "/x"),)
    ),
    "BitcacheFilesDamaged": World("bitcache_damaged_files", "0x5 1x5", "0x10"),
    "BitcacheDiskFills": World("bitcache_free_bytes", "19000000000x30", "90000000000x30", minutes=20),
    "BitcacheRefusesForWantOfRoom": World(
        'bitcache_http_requests_total{route="/y",status="507"}', "0 0 1x10", "5x10"
    ),
    "BitcacheBooksUnexplained": World("bitcache_reconciliation_explained", "1 0x10", "1x10"),
    "BitcacheBooksNotCompared": World(
        "bitcache_reconciled_at_seconds", "60x3000", "60+60x3000", minutes=2_900
    ),
    "BitcacheChannelCloseLate": World("bitcache_channel_close_blocks_left", "71x10", "72x10"),
    "BitcacheChannelsTroubled": World("bitcache_channels_troubled", "1x90", "0x10 1x50 0x40", minutes=80),
    "BitcachePayoutsStopped": World("bitcache_payouts_stopped", "0 1x10", "0 1x3 0x6"),
    "BitcachePayoutUnconfirmed": World("bitcache_payout_batch_unconfirmed_seconds", "50000x10", "40000x10"),
}
NODE_ONLINE = {"series": "bitcache_node_online", "values": "1x200"}


def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    promtool = program("promtool")
    rules = {rule["alert"]: rule for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]}
    assert set(rules) == set(WORLDS)
    tests = []
    for alert, world in WORLDS.items():
        fired = {
            "exp_labels": rules[alert]["labels"] | dict(world.labels),
            "exp_annotations": rules[alert]["annotations"],
        }
        for values, expected in ((world.trouble, [fired]), (world.peace, [])):
            series = [{"series": world.series, "values": values}]
            if alert != "BitcacheNodeOffline":
                series.append(NODE_ONLINE)
            asked = {"eval_time": f"{world.minutes}m", "alertname": alert, "exp_alerts": expected}
            tests.append({"interval": "1m", "input_series": series, "alert_rule_test": [asked]})
    test_file = tmp_path / "alerts_test.yml"
    test_file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    done = ran(promtool, "test", "rules", str(test_file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_look_at_metrics_that_exist() -> None:
    served = Metrics().page().decode()
    named = set(re.findall(r"bitcache_\w+", ALERTS.read_text()))
    assert named
    for metric in named:
        assert f"# TYPE {metric} " in served, metric
