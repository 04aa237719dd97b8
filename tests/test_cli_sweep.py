"""`fastkl sweep`: what it prints, writes and refuses, and the configuration in the README."""

import json
import re
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_calls import document, python, run

import fastkl

README = Path(__file__).resolve().parents[1] / "README.md"
CONFIG = """
spectra = ["digits"]
schedules = ["ddpm_linear"]
steps = [4, 6]
metrics = ["kl", "w2"]
top = 5

[[families]]
family = "power_uniform"
power = { start = 1.0, stop = 4.0, num = 50 }
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "few.toml"
    path.write_text(CONFIG)
    return path


def test_json(capsys, config, tmp_path):
    report = document(capsys, "sweep", str(config), "--out", str(tmp_path / "r"))
    found = fastkl.sweep(tomllib.loads(CONFIG))
    assert (report["candidates"], report["evaluated_now"], report["left_out"]) == (200, 200, 0)
    assert report["config_hash"] == found.config_hash
    assert report["best"] == [row for row in found.top.to_pylist() if row["rank"] == 1]
    assert pq.read_table(tmp_path / "r" / "top.parquet").equals(found.top)
    assert document(capsys, "sweep", str(config), "--out", str(tmp_path / "r"))["evaluated_now"] == 0


def test_tables(capsys, config):
    status, out, err = run(capsys, "sweep", str(config), "--threads", "1")
    assert status == 0
    best = fastkl.sweep(tomllib.loads(CONFIG)).top.to_pylist()[0]
    assert "200 candidates, the best of each group" in out
    assert f"timesteps of the first: {', '.join(map(str, best['timesteps']))}" in out
    assert out.count("power=") == 12  # three of each of four groups
    assert f"results in {config.parent / 'few-results'}" in out
    assert "200 of 200 candidates" in err


def test_a_damaged_chunk_is_named(capsys, config):
    run(capsys, "sweep", str(config))
    (victim,) = (config.parent / "few-results" / "chunks").iterdir()
    victim.write_bytes(b"damaged")
    status, _, err = run(capsys, "sweep", str(config), "--json")
    assert status == 0
    assert f"fastkl: warning: {victim.name}: was damaged; its chunk was evaluated again\n" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = [", "not TOML"),
        (CONFIG.replace("power =", "pover ="), "families[0].power: must be given; families[0].pover: no such key"),
        (CONFIG.replace("[4, 6]", "[4, 0]"), "steps[1]: must be greater than or equal to 1 (got 0)"),
        (CONFIG.replace("digits", "digit"), "spectra[0].preset: name = 'digit': must be one of"),
    ],
)  # fmt: skip
def test_refusals(capsys, config, text, message):
    config.write_text(text)
    status, out, err = run(capsys, "sweep", str(config))
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("fastkl: error: ")
    assert err.count("\n") == 1
    assert not (config.parent / "few-results").exists()


def test_a_changed_configuration_is_refused(capsys, config):
    run(capsys, "sweep", str(config))
    config.write_text(CONFIG.replace("top = 5", "top = 6"))
    status, _, err = run(capsys, "sweep", str(config))
    assert status == 2
    assert "was begun with another configuration: top was 5, is 6" in err


def test_files_and_addresses_that_do_not_exist(capsys, config, tmp_path):
    status, _, err = run(capsys, "sweep", str(tmp_path / "no.toml"))
    assert (status, err) == (2, f"fastkl: error: {tmp_path / 'no.toml'}: No such file or directory\n")
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, "sweep", str(config), "--out", str(tmp_path / "file" / "r"))
    assert status == 2
    assert err.endswith(
        "Not a directory; 0 of 1 chunks are written\n"
    )  # nothing about going on, which it cannot
    status, out, err = run(capsys, "sweep", str(tmp_path))
    assert (status, out, err) == (
        2,
        "",
        f"fastkl: error: {tmp_path}: is a folder; a sweep needs a TOML file\n",
    )
    assert run(capsys, "sweep", ".")[2] == "fastkl: error: .: is a folder; a sweep needs a TOML file\n"


def test_a_stopped_sweep_says_how_far_it_came(capsys, config, monkeypatch):
    def stopped(plan, number):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastkl.sweeps.running.chunk_bytes", stopped)
    status, out, err = run(capsys, "sweep", str(config))
    assert (status, out) == (130, "")
    assert "fastkl: stopped: 0 of 1 chunks are written, and the same call goes on from there\n" in err


def test_a_sweep_without_one_value_fails(capsys, config):
    config.write_text(CONFIG.replace('"ddpm_linear"', '"edm"').replace('family = "power_uniform"', 'family = "karras"')
                      .replace("power = { start = 1.0, stop = 4.0, num = 50 }",
                               "sigma_min = [3.0]\nsigma_max = [1.0, 2.0, 5.0]"))  # fmt: skip
    assert run(capsys, "sweep", str(config))[0] == 0
    config.write_text(config.read_text().replace("[3.0]", "[4.0]").replace("[1.0, 2.0, 5.0]", "[1.0, 4.0]"))
    status, out, err = run(capsys, "sweep", str(config), "--out", str(config.parent / "none"), "--json")
    assert status == 1
    assert json.loads(out)["left_out"] == json.loads(out)["candidates"] == 8
    assert err.endswith("fastkl: warning: not one candidate has levels that can be evaluated\n")


def test_a_manifest_that_was_lost_is_told(capsys, config):
    run(capsys, "sweep", str(config))
    (config.parent / "few-results" / "manifest.json").unlink()
    status, _, err = run(capsys, "sweep", str(config), "--json")
    assert status == 0
    assert "fastkl: warning: manifest.json: was damaged; it was written again\n" in err


def test_on_a_cluster(config, tmp_path):
    """The command in a process of its own, on the scheduler of a cluster here."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        done = python("-m", "fastkl", "sweep", str(config), "--json", "--dask", cluster.scheduler_address)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["evaluated_now"] == 200
    best = fastkl.sweep(tomllib.loads(CONFIG)).top.to_pylist()
    assert report["best"] == [row for row in best if row["rank"] == 1]


def test_the_configuration_in_the_readme(capsys, tmp_path):
    blocks = re.findall(
        r"^```toml\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 1
    (tmp_path / "sweep.toml").write_text(blocks[0])
    report = document(capsys, "sweep", str(tmp_path / "sweep.toml"))
    table = tomllib.loads(blocks[0])
    assert report["candidates"] > 10_000
    groups = len(table["spectra"]) * len(table["metrics"]) * len(table["steps"])
    assert len(report["best"]) == groups
