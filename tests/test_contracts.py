"""Bad input to every public callable: only this package's errors, in one line that says what was seen and expected.

The calls run in one process of their own, `python tests/test_contracts.py FOLDER`, without the shape checks of
the test run, so that what is tested is what a user meets.
"""

import inspect
import json
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tdsm
from tdsm.base.errors import TdsmError
from tdsm.decomposition import DECOMPOSITIONS, decompose


def given(folder):
    """A small field and what fits it; `folder` holds broken files."""
    config = {"widths": (8, 12), "num_latents": 5, "mapping_dim": 3, "cross_heads": 2, "cross_head_dim": 4}
    field = tdsm.NeuralField(tdsm.FieldConfig(**config, self_heads=2, self_head_dim=4, processor_depth=1))
    (folder / "text.pt").write_text("no checkpoint")
    (folder / "empty").mkdir()
    for name in ("whole", "broken config", "cut weights", "no weights"):
        field.save_pretrained(folder / name)
    (folder / "broken config" / "config.json").write_text('{"widths": [8')
    weights = folder / "cut weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    (folder / "no weights" / "model.safetensors").unlink()
    masked = tdsm.NeuralField(tdsm.FieldConfig(**config, self_heads=2, self_head_dim=4, has_masks=True))
    tokens, images, coords = torch.randn(2, 5, 12), torch.rand(2, 3, 4, 4), torch.rand(4, 2)
    return SimpleNamespace(field=field, masked=masked, tokens=tokens, images=images, coords=coords, folder=folder)


def components(g, tokens=None, size=(4, 4), **options):
    return tdsm.component_images(g.field, g.tokens if tokens is None else tokens, size, **options)


def maps(g, **options):
    return tdsm.spatial_map(g.field, g.tokens, **{"size": (4, 4)} | options)


def pooled(g, tokens=None, size=(4, 4), **options):
    return tdsm.pooled_map(g.field, g.tokens if tokens is None else tokens, size, **options)


def parts(g, tokens=None, size=(4, 4), **options):
    return decompose(g.field, g.tokens if tokens is None else tokens, size, **options)


def classify(maps, pool="max", size=(4, 4), num_tokens=5):
    return tdsm.TDSMClassifier(num_tokens, 3, pool, size)(maps)


def evidence(classes, **options):
    return tdsm.class_evidence(tdsm.TDSMClassifier(5, 3), torch.zeros(2, 4, 4, 5), classes, **options)


READERS = {  # of tokens, each with what else it needs
    "decode": lambda g, tokens: g.field.decode(tokens, (4, 4)),
    "component_images": lambda g, tokens: tdsm.component_images(g.field, tokens, (4, 4)),
    "component_images by the loop": lambda g, tokens: tdsm.component_images(g.field, tokens, (4, 4), strategy="loop"),
    "spatial_map": lambda g, tokens: tdsm.spatial_map(g.field, tokens, (4, 4)),
    "pooled_map": lambda g, tokens: tdsm.pooled_map(g.field, tokens, (4, 4)),
    "contributions": lambda g, tokens: tdsm.contributions(g.field, tokens, g.coords, torch.zeros(len(g.coords)).long()),
    **{
        name: lambda g, tokens, method=name: decompose(
            next(field for field in (g.field, g.masked) if method in tdsm.methods_for(field)),
            tokens,
            (4, 4),
            method=method,
        )
        for name in DECOMPOSITIONS
    },
}

# name: (what is called, words the message must hold: what was seen, what is expected)
CASES = {
    "images of bytes": (lambda g: g.field.encode((g.images * 255).byte()), "torch.uint8", "floating point in [-1, 1]"),
    "images in float64": (lambda g: g.field.encode(g.images.double()), "torch.float64", "torch.float32"),
    "images in half": (lambda g: g.field.encode(g.images.half()), "torch.float16", "torch.float32"),
    "images channels last": (lambda g: g.field.encode(g.images.mT.movedim(1, -1)), "(2, 4, 4, 3)", "(batch, 3, size"),
    "one image without batch": (lambda g: g.field.encode(g.images[0]), "(3, 4, 4)", "(batch, 3, size, size)"),
    "grey images": (lambda g: g.field.encode(g.images[:, :1]), "(2, 1, 4, 4)", "(batch, 3, size, size)"),
    "images without pixels": (lambda g: g.field.encode(g.images[..., :0]), "4, 0", "at least 1"),
    "images as an array": (lambda g: g.field.encode(g.images.numpy()), "ndarray", "torch tensor"),
    "keep as a mask": (lambda g: g.field.encode(g.images, torch.ones(16).bool()), "torch.bool", "integer tensor"),
    "keep as a list": (lambda g: g.field.encode(g.images, [0, 1]), "list", "an integer tensor"),
    "keep of nothing": (lambda g: g.field.encode(g.images, torch.zeros(0).long()), "(0,)", "at least one"),
    "keep outside": (lambda g: g.field.encode(g.images, torch.tensor([16])), "16..16", "0..15"),
    "keep of other images": (lambda g: g.field.encode(g.images, torch.zeros(3, 4).long()), "(3, 4)", "(2, kept)"),
    "values and coords differ": (
        lambda g: g.field.encode_points(torch.zeros(2, 7, 3), torch.zeros(6, 2)),
        "(2, 7, 3)",
        "(6, 2)",
        "(points, 2)",
    ),
    "context of another width": (lambda g: g.field.encode_context(torch.zeros(2, 7, 5)), "(2, 7, 5)", "points, 9)"),
    "no size and no coords": (lambda g: g.field.decode(g.tokens), "neither", "size=(H, W)"),
    "size and coords": (lambda g: g.field.decode(g.tokens, (4, 4), g.coords), "both", "either"),
    "size as one number": (lambda g: g.field.decode(g.tokens, 4), "size is 4", "(32, 32)"),
    "size of three axes": (lambda g: g.field.decode(g.tokens, (4, 4, 4)), "(4, 4, 4)", "this field has 2"),
    "size of zero": (lambda g: g.field.decode(g.tokens, (0, 4)), "(0, 4)", "at least 1"),
    "size of a fraction": (lambda g: g.field.decode(g.tokens, (4.5, 4)), "(4.5, 4)", "at least 1"),
    "size not a number": (lambda g: g.field.decode(g.tokens, (float("nan"), 4)), "nan", "at least 1"),
    "size as text": (lambda g: g.field.decode(g.tokens, "44"), "'44'", "(32, 32)"),
    "coords of three axes": (lambda g: g.field.decode(g.tokens, coords=torch.zeros(4, 3)), "(4, 3)", "(points, 2)"),
    "coords of no point": (lambda g: g.field.decode(g.tokens, coords=g.coords[:0]), "(0, 2)", "one point or more"),
    "coords as a list": (lambda g: g.field.decode(g.tokens, coords=[[0.0, 0.0]]), "list", "(points, 2)"),
    "tokens of one image": (lambda g: components(g, g.tokens[0]), "(5, 12)", "(batch, tokens, width)"),
    "tokens of another width": (lambda g: components(g, g.tokens[..., :7]), "(2, 5, 7)", "(batch, tokens, 12)"),
    "tokens in float64": (lambda g: components(g, g.tokens.double()), "torch.float64", "torch.float32"),
    "tokens of integers": (lambda g: g.field.decode(g.tokens.int(), (4, 4)), "torch.int32", "floating point"),
    "tokens as an array": (lambda g: components(g, g.tokens.numpy()), "ndarray", "torch tensor"),
    **{
        f"{name} of images": (
            lambda g, read=read: read(g, g.images),
            "(2, 3, 4, 4)",
            "expected floating point (batch, tokens, width)",
            "look like images: encode them first, field.encode(images)",
        )
        for name, read in READERS.items()
    },
    "maps that are images": (
        lambda g: tdsm.class_evidence(tdsm.TDSMClassifier(5, 3), g.images),
        "(2, 3, 4, 4)",
        "as spatial_map gives them",
    ),
    "no tokens": (lambda g: components(g, g.tokens[:, :0]), "(2, 0, 12)", "none of them 0"),
    "no tokens to decode": (lambda g: g.field.decode(g.tokens[:, :0], (4, 4)), "(2, 0, 12)", "none of them 0"),
    "unknown strategy": (lambda g: components(g, strategy="fast"), "'fast'", "auto, loop, batched, exact"),
    "strategy as a list": (lambda g: components(g, strategy=["loop"]), "['loop']", "auto, loop, batched, exact"),
    "chunk of zero": (lambda g: components(g, chunk=0), "chunk is 0", "at least 1"),
    "chunk of a fraction": (lambda g: components(g, chunk=1.5, strategy="batched"), "1.5", "at least 1"),
    "chunk as text": (lambda g: components(g, chunk="3"), "'3'", "at least 1"),
    "unknown selection": (lambda g: components(g, selection="last:2"), "'last:2'", '"stride:n", "first:n"'),
    "selection outside": (lambda g: components(g, selection=[0, 5]), "[5]", "0 to 4"),
    "selection as a number": (lambda g: tdsm.select_tokens(5, 3), "3", "[0, 5, 7]"),
    "selection of fractions": (lambda g: tdsm.select_tokens(5, [1.5]), "[1.5]", "whole numbers"),
    "selection of words": (lambda g: tdsm.select_tokens(5, ["a"]), "['a']", "whole numbers"),
    "selection twice": (lambda g: tdsm.select_tokens(5, [1, 1]), "[1, 1]", "once"),
    "selection of nothing": (lambda g: tdsm.select_tokens(5, []), "empty", "at least one"),
    "selection among no tokens": (lambda g: tdsm.select_tokens(0, "first:2"), "0 tokens", "at least 1"),
    "unknown reduction": (lambda g: maps(g, reduction="max"), "'max'", "mean, rgb, l2"),
    "reduction as a list": (lambda g: maps(g, reduction=["mean"]), "['mean']", "mean, rgb, l2"),
    "components of one axis": (lambda g: tdsm.reduce_components(torch.zeros(3), "mean"), "(3,)", "channels)"),
    "components of integers": (
        lambda g: tdsm.reduce_components(torch.zeros(1, 2, 3, 3).int(), "mean"),
        "torch.int32",
        "floating point",
    ),
    "unknown pooling": (lambda g: pooled(g, pool="min"), "'min'", "avg, max"),
    "pooling as a list": (lambda g: pooled(g, pool=["avg"]), "['avg']", "avg, max"),
    "no cells": (lambda g: pooled(g, cells=0), "0", "1 to 4"),
    "more cells than pixels": (lambda g: pooled(g, cells=5), "5", "1 to 4"),
    "half a cell": (lambda g: pooled(g, cells=1.5), "1.5", "1 to 4"),
    "pooled tokens as an array": (lambda g: pooled(g, g.tokens.numpy()), "ndarray", "torch tensor"),
    "unknown method": (lambda g: parts(g, method="parts"), "'parts'", "solo, additive"),
    "method as a list": (lambda g: parts(g, method=["solo"]), "['solo']", "solo, additive"),
    "no quadrature points": (lambda g: parts(g, method="additive", points=0), "points is 0", "1 to"),
    "quadrature points as text": (lambda g: parts(g, method="additive", points="3"), "points is '3'", "1 to 64"),
    "tolerance as text": (lambda g: parts(g, method="additive", tolerance="1"), "tolerance is '1'", "above 0"),
    "permutations as text": (lambda g: parts(g, method="shapley", permutations="8"), "'8'", "even number"),
    "head as text": (lambda g: parts(g, method="attention", head="first"), "'first'", "expected its number"),
    "unknown option": (lambda g: parts(g, method="additive", pionts=3), "'pionts'", "'points'", "it has points, tol"),
    "decomposed in half chunks": (lambda g: parts(g, chunk=1.5), "chunk is 1.5", "at least 1"),
    "odd permutations": (lambda g: parts(g, method="shapley", permutations=5), "5", "even number"),
    "tolerance of solo": (lambda g: parts(g, tolerance=0.1), "'solo'", "'additive'"),
    "head that is not there": (lambda g: parts(g, method="attention", head=2), "2", "0"),
    "decomposed tokens as an array": (lambda g: parts(g, g.tokens.numpy()), "ndarray", "torch tensor"),
    "decomposed tokens of another width": (
        lambda g: parts(g, g.tokens[..., :7], method="additive"),
        "(2, 5, 7)",
        "(batch, tokens, 12)",
    ),
    "regions that are not of the points": (
        lambda g: tdsm.contributions(g.field, g.tokens, g.coords, torch.zeros(7, dtype=torch.int64)),
        "7",
        "4",
    ),
    "option of no contribution": (
        lambda g: tdsm.contributions(g.field, g.tokens, g.coords, torch.zeros(4, dtype=torch.int64), head=1),
        "'head'",
        "'attention'",
    ),
    "queries of no square": (lambda g: tdsm.get_tdsm(g.field, g.images, torch.zeros(5, 6)), "(5, 6)", "square"),
    "queries of nothing": (lambda g: tdsm.get_tdsm(g.field, g.images, torch.zeros(0, 6)), "(0, 6)", "square"),
    "queries of one number": (lambda g: tdsm.get_tdsm(g.field, g.images, torch.tensor(1.0)), "()", "square"),
    "queries of another width": (lambda g: tdsm.get_tdsm(g.field, g.images, torch.zeros(4, 5)), "5 wide", "has 6"),
    "data of two axes": (lambda g: tdsm.get_tdsm(g.field, g.images[0, 0], g.coords), "(4, 4)", "(batch, 3, size"),
    "data of another width": (lambda g: g.field.get_tdsm(torch.zeros(2, 7, 5), g.coords), "(2, 7, 5)", "points, 9)"),
    "data reduced as unknown": (lambda g: g.field.get_tdsm(g.images, g.coords, "max"), "'max'", "mean, rgb, l2"),
    "unknown head": (
        lambda g: tdsm.TDSMClassifier(5, 3, "mean"),
        "'mean'",
        "avg, max, flatten, cnn, resnet, attention",
    ),
    "head as a list": (
        lambda g: tdsm.TDSMClassifier(5, 3, ["avg"]),
        "['avg']",
        "avg, max, flatten, cnn, resnet, attention",
    ),
    "head for no maps": (lambda g: tdsm.TDSMClassifier(0, 3), "num_tokens 0", "at least 1"),
    "head for half a map": (lambda g: tdsm.TDSMClassifier(1.5, 3), "num_tokens 1.5", "whole numbers"),
    "head size as one number": (lambda g: tdsm.TDSMClassifier(5, 3, "flatten", 4), "size 4", "(height, width)"),
    "head size of one axis": (lambda g: tdsm.TDSMClassifier(5, 3, "flatten", (4,)), "(4,)", "(height, width)"),
    "unknown head option": (lambda g: tdsm.TDSMClassifier(5, 3, depht=3), "depht", "depth"),
    "impossible head option": (lambda g: tdsm.TDSMClassifier(5, 3, depth=0), "depth is 0", "at least 1"),
    "evidence for no class": (
        lambda g: evidence(torch.tensor([0, 7])),
        "[0, 7]",
        "from 0 to 2",
    ),
    "evidence for one image of two": (lambda g: evidence(torch.tensor([0])), "[0]", "2 whole numbers"),
    "evidence for half a class": (lambda g: evidence(torch.tensor([0.0, 1.5])), "[0.0, 1.5]", "2 whole numbers"),
    "evidence at half a point": (lambda g: evidence(None, points=2.5), "points is 2.5", "1 to 256"),
    "maps channels first": (lambda g: classify(torch.zeros(2, 5, 4, 4)), "(2, 5, 4, 4)", "(batch, height, width, 5)"),
    "maps of another size": (
        lambda g: classify(torch.zeros(2, 4, 3, 5), "flatten"),
        "(2, 4, 3, 5)",
        "(batch, 4, 4, 5)",
    ),
    "maps of one image": (lambda g: classify(torch.zeros(4, 4, 5)), "(4, 4, 5)", "(batch, height, width, 5)"),
    "maps without places": (lambda g: classify(torch.zeros(2, 0, 4, 5)), "(2, 0, 4, 5)", "(batch, height, width, 5)"),
    "maps in float64": (lambda g: classify(torch.zeros(2, 4, 4, 5).double()), "torch.float64", "torch.float32"),
    "shown images of bytes": (
        lambda g: tdsm.show(g.field, (g.images * 255).byte()),
        "torch.uint8",
        "floating point of",
    ),
    "shown one image": (lambda g: tdsm.show(g.field, g.images[0]), "(3, 4, 4)", "(batch, channels, height, width)"),
    "shown array": (lambda g: tdsm.show(g.field, g.images.numpy()), "ndarray", "(batch, channels, height, width)"),
    "shown no image": (lambda g: tdsm.show(g.field, g.images[:0]), "(0, 3, 4, 4)", "(batch, channels, height, width)"),
    "shown grey images": (lambda g: tdsm.show(g.field, g.images[:, :1]), "(1, 1, 4, 4)", "(batch, 3, size, size)"),
    "no such path": (lambda g: tdsm.load_field(g.folder / "nothing"), "nothing", "no field found", "save_pretrained"),
    "an empty folder": (lambda g: tdsm.load_field(g.folder / "empty"), "empty", "no field found", "save_pretrained"),
    "a text file": (lambda g: tdsm.load_field(g.folder / "text.pt"), "text.pt", "checkpoint of tensors"),
    "a broken config": (lambda g: tdsm.load_field(g.folder / "broken config"), "config.json", "JSON"),
    "cut weights": (lambda g: tdsm.load_field(g.folder / "cut weights"), "model.safetensors", "safetensors"),
    "no weights": (lambda g: tdsm.load_field(g.folder / "no weights"), "model.safetensors", "no such file"),
    "heads for a folder": (lambda g: tdsm.load_field(g.folder / "empty", cross_heads=3), "folder", "cross_heads"),
    "a store that is none": (lambda g: tdsm.open_store(g.folder / "empty"), "empty", "no store here", "tdsm extract"),
    "a run that is none": (lambda g: tdsm.load_run(g.folder / "empty"), "empty", "no run here", "tdsm train"),
    "data that are none": (
        lambda g: tdsm.load_data(tdsm.DataConfig(source="digit"), 0),
        "'digit'",
        "'digits'",
        "folder",
    ),
    "a grid of nothing": (lambda g: tdsm.grid((4, 0)), "(4, 0)", "at least 1"),
    "features of no field": (lambda g: tdsm.FieldFeatures(g.folder / "empty", ["tokens"]), "empty", "no field found"),
    "an unknown feature": (lambda g: tdsm.FieldFeatures(g.folder / "whole", ["tokns"]), "tokns", "'tokens'", "values"),
    "features of no images": (
        lambda g: tdsm.FieldFeatures(g.folder / "whole", ["tokens"])({"image": g.images.numpy()}),
        "float32 of shape (2, 3, 4, 4)",
        "expected uint8",
    ),
    "features of nothing": (lambda g: tdsm.FieldFeatures(g.folder / "whole", ["tokens"])({}), "[]", "'image'"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contracts")
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "tests.test_contracts", folder]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named(outcomes, name):
    outcome = outcomes[name]
    assert outcome["kind"] == "ours", outcome["trace"]
    assert outcome["exit_code"] in range(2, 7)
    assert len(outcome["message"].splitlines()) == 1
    assert [words for words in CASES[name][1:] if words not in outcome["message"]] == [], outcome["message"]


def test_every_public_callable_is_tried():
    """By name in the source of the cases; types and what reads a field alone have tests of their own."""
    source = Path(__file__).read_text()
    functions = {name for name in tdsm.__all__ if inspect.isfunction(getattr(tdsm, name))}
    asked = {*functions, "TDSMClassifier", "FieldFeatures"} - {"plan_decoding", "methods_for", "missing_space"}
    assert [name for name in sorted(asked) if f"{name}(" not in source] == []


def outcome_of(call):
    """What a call with bad input ends with."""
    try:
        call()
    except TdsmError as error:
        return {"kind": "ours", "exit_code": error.exit_code, "message": str(error), "trace": ""}
    except Exception:
        return {"kind": "foreign", "trace": traceback.format_exc(limit=-3)}
    return {"kind": "none", "trace": "nothing was raised"}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    target = Path(sys.argv[1])
    everything = given(target)
    results = {name: outcome_of(lambda case=case: case[0](everything)) for name, case in CASES.items()}
    (target / "outcomes.json").write_text(json.dumps(results))
