"""The benchmark of devices runs where there is no GPU."""

import json

import pytest

from benchmarks import device


def test_a_dry_run(tmp_path):
    path = tmp_path / "device.json"
    arguments = ["--device", "cpu", "--quick", "--rows", "300", "--json", str(path)]
    assert not device.main([*arguments, "--parts", "waits,predict,load,memory"])
    report = json.loads(path.read_text())
    assert report["settings"]["device"] == "cpu"
    assert {row["rows"] for row in report["load"]} == {300}
    assert all(row["s"] > 0 for row in report["predict"])
    assert report["memory"] == report["waits"] == []


def test_results_on_the_device_are_compared(monkeypatch, tmp_path):
    from benchmarks import _device_checks

    monkeypatch.setattr(_device_checks, "RULES", _device_checks.RULES[:1])
    monkeypatch.setattr(
        _device_checks,
        "_compare",
        lambda device, *case: {"passed": case[1] is not None},
    )
    arguments = ["--device", "cpu", "--parts", "correct"]
    assert not device.main([*arguments, "--json", str(tmp_path / "a.json")])
    monkeypatch.setattr(_device_checks, "_relative", lambda a, b: 1.0)
    assert device.main([*arguments, "--json", str(tmp_path / "b.json")])


def test_unknown_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        device.parse(["--parts", "steps,speed"])
    assert "speed" in capsys.readouterr().err
