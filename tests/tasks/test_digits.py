"""The demo's base is pretrained on the spot, and says so."""

from __future__ import annotations

from autopeft.tasks import digits


def test_pretraining_is_said_as_it_goes(tmp_path, monkeypatch, capsys):
    """Minutes of silence in a pipe look like a program that hangs."""
    monkeypatch.setitem(digits.BASE, "epochs", 2)
    digits.pretrain(tmp_path)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "pretraining the demo's base, a small vision transformer, on 901 digits from 0 to 4: once"
    assert [line.split(",")[0].strip() for line in rest] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert (tmp_path / "model.safetensors").exists()
