"""The benchmarks' machinery: rows, medians, ratios, the JSON file, and what wrong use is answered with."""

import contextlib
import json

import pytest

import benchmarks.__main__ as command
from benchmarks.harness import Contender, Options, Report, alternate


def _counter(per_second):
    @contextlib.contextmanager
    def opened():
        yield lambda seconds: (per_second * seconds, seconds)

    return opened


def test_contenders_take_turns_and_the_medians_are_compared(tmp_path):
    contenders = [Contender(name="ours", open=_counter(300.0)), Contender(name="peer", open=_counter(100.0))]
    rows = alternate(contenders, Options(quick=True, rounds=3), seconds=0.01, unit="steps/s")
    assert [row["contender"] for row in rows] == ["ours", "peer", "peer", "ours", "ours", "peer"]
    report = Report(rows=rows)
    report.ratio("ours_over_peer", report.median("ours"), report.median("peer"), at_least=2.5)
    assert report.ratios == {"ours_over_peer": 3.0}
    assert "meets at least 2.5" in "\n".join(report.lines())
    report.save(tmp_path / "x.json", "x", Options())
    found = json.loads((tmp_path / "x.json").read_text())
    assert {"machine", "versions", "rows", "ratios"} <= found.keys()
    assert found["machine"]["cpus"] >= 1


def test_a_bar_that_is_missed_is_said():
    report = Report(figures={"p99_us": 250.0}, bars={"p99_us": {"at_most": 200.0}})
    assert "MISSES at most 200" in report.lines()[0]


def test_policy_runs_and_writes(tmp_path, capsys):
    file = tmp_path / "policy.json"
    assert command.main(["policy", "--quick", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert {row["contender"] for row in found["rows"]} == {"onnx", "torch"}
    assert found["figures"]["onnx_p50_us"] > 0.0
    assert "onnx_p99_us" in capsys.readouterr().out


def test_wrong_use_is_one_sentence(tmp_path, capsys, monkeypatch):
    assert command.main(["policy", "--json", str(tmp_path / "no" / "x.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main(["nonsense"])

    def missing(name):
        raise ModuleNotFoundError("no", name="envpool")

    monkeypatch.setattr(command.importlib, "import_module", missing)
    assert command.main(["sim"]) == 2
    assert "neuraverse[bench]" in capsys.readouterr().err


def test_ctrl_c_writes_nothing(tmp_path, capsys, monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.importlib, "import_module", interrupted)
    assert command.main(["sim", "--json", str(tmp_path / "x.json")]) == 130
    assert not list(tmp_path.iterdir())
