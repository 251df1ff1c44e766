"""What is noted of the data behind weights, through one fine-tuning after another."""

import dataclasses
import json

from helpers import toy_run
from helpers.systems import write_system

from infinity_jax.checkpoints import origin, pretrained
from infinity_jax.data import sources
from infinity_jax.training import start


def test_a_model_keeps_the_attribution_of_what_it_was_tuned_from(tmp_path):
    write_system(tmp_path / "first")
    first = pretrained.load_model(tmp_path / "first")
    noted = {"data": {"source": "emoji_captions"}, "origin": origin.describe([])}
    first = dataclasses.replace(first, source="emoji_captions", origin=noted)
    pretrained.save_model(tmp_path / "first", first)
    for before, after in (("first", "second"), ("second", "third")):
        train = toy_run.config(20, init_from=str(tmp_path / before))
        earlier = start.data_before(train, tmp_path / "run", "transformer")
        own = f"folder:/home/me/{after}"
        noted = {"data": {"source": own}, "origin": origin.describe(earlier)}
        pretrained.save_model(tmp_path / after, dataclasses.replace(first, source=own, origin=noted))
    third = pretrained.load_model(tmp_path / "third")
    assert origin.data_of(third.origin) == ["emoji_captions", "folder:second", "folder:third"]
    assert third.trained_on[:3] == ["emoji_captions", "folder:second", "folder:third"]
    assert "OpenMoji" in sources.attribution(third.trained_on)
    assert "/home" not in json.dumps(json.loads((tmp_path / "third" / "config.json").read_text()))


def test_the_data_of_the_tokenizer_counts_too(tmp_path):
    write_system(tmp_path)
    model = pretrained.load_model(tmp_path)
    tokenizer = dataclasses.replace(model.tokenizer, origin={"data": {"source": "emoji_captions"}})
    own = dataclasses.replace(model, source="folder:cats", origin={}, tokenizer=tokenizer)
    assert own.trained_on == ["folder:cats", "emoji_captions"]
    assert not sources.attribution(["folder:cats"])


def test_a_run_that_goes_on_keeps_what_it_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(toy_run, "CONFIG", toy_run.CONFIG | {"origin": origin.describe(["emoji_captions"])})
    toy_run.run(tmp_path, steps=2)
    gone = toy_run.config(20, init_from=str(tmp_path / "gone"))
    assert start.data_before(gone, tmp_path, "transformer") == ["emoji_captions"]
    assert start.data_before(toy_run.config(20), tmp_path / "new", "transformer") == []
