"""Which tokens are worth keeping? `tdsm study tokens`.

On a run's stored maps, n tokens are chosen by a gate trained with the head, evenly spaced, at random, and the first
ones. Then the same head is trained from scratch on the maps of those n tokens alone: equal parameters, equal tuning on
validation, equal seeds; test is read once a row and seed. All tokens stand beside them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.base.randomness import derive_seed, generator
from tdsm.classification.config import ProbeConfig
from tdsm.classification.gates import learn_tokens
from tdsm.classification.probe import Samples
from tdsm.classification.rows import ROWS
from tdsm.data.imageset import SPLITS
from tdsm.decomposition.select import first, parse_selection, select_tokens
from tdsm.pipeline.run import Run
from tdsm.study.answers import changed, fit_and_test
from tdsm.study.config import TokenStudyConfig
from tdsm.study.keep import keep_answer

FOLDER, ROW = "study-tokens", ROWS["tdsm-avg"]  # the row whose features are read
MEANINGS = {
    "learned": "the n largest gates, trained with the head",
    "stride": "evenly spaced: token ⌊i·K/n⌋ for i = 0..n−1",
    "random": "n tokens drawn by the seed",
    "first": "the first n tokens",
    "all": "all K tokens",
}


@dataclass(frozen=True, eq=False)
class Question:
    """What every answer needs: the run, the settings, the stored maps of each split, which tokens they show."""

    run: Run
    config: TokenStudyConfig
    stored: dict[str, Samples]
    tokens: Sequence[int]

    @property
    def probe(self) -> ProbeConfig:
        """How heads and gates are trained and chosen."""
        return ProbeConfig(epochs=self.config.epochs, learning_rates=self.config.learning_rates)

    @property
    def num_classes(self) -> int:
        """Classes to tell apart."""
        return len(self.run.data.train.classes)


def answer(run: Run, config: TokenStudyConfig) -> tuple[Path, str]:
    """Answer every entry for every seed, and write the tables; return their path and text."""
    from tdsm.study.tokens_table import write_token_study

    return write_token_study(run, run_token_study(run, config))


def run_token_study(run: Run, config: TokenStudyConfig) -> dict:
    """Answer every entry for every seed, taking up what an earlier call left; return all that was found.

    Raises:
        UsageError: If a count cannot be used, or the folder holds answers of other settings.
    """
    maps = run.config.maps
    tokens = select_tokens(run.field.config.num_tokens, parse_selection(maps.selection))
    counts = usable_counts(config.counts, len(tokens))
    settings = config.model_dump(mode="json") | {"counts": counts}
    folder, rows = run.path / FOLDER / "answers", []
    question = Question(run, config, {split: run.samples(ROW, split) for split in SPLITS}, tokens)
    entries = [(method, count) for count in counts for method in METHODS] + [("all", len(tokens))]
    for number, (method, count) in enumerate(entries, start=1):
        for seed in range(config.seeds):
            path, made_from = folder / f"{method}_{count}_seed{seed}", _origin(question, method, count, seed)
            fit = partial(_fit, question, method, count, seed)
            rows.append(keep_answer(run, path, made_from, run.data.test, fit))
        shown = sum(row["accuracy"] for row in rows[-config.seeds :]) / config.seeds
        words = f"{method}, {count} of {len(tokens)} tokens"
        run.say(f"{number}/{len(entries)} {words}: test {100 * shown:.1f} %, mean of {config.seeds} seeds")
    return {"settings": settings, "rows": rows, "num_tokens": len(tokens), "test_images": len(run.data.test)}


def usable_counts(counts: Sequence[int], num_tokens: int) -> list[int]:
    """Return the numbers of tokens to keep, ascending: an eighth, a quarter and a half of them if none is given.

    >>> usable_counts((), 32), usable_counts((8, 4), 16)
    ([4, 8, 16], [4, 8])

    Raises:
        UsageError: If a count is given twice, or leaves no token in or none out.
    """
    if num_tokens < 2:
        raise UsageError(
            f"study tokens: the run's maps show {num_tokens} token, expected at least 2 to choose from. Use a run with "
            "another --maps.selection."
        )
    counts = sorted(counts or {max(1, num_tokens // share) for share in (8, 4, 2)})
    if len(set(counts)) < len(counts) or not all(0 < count < num_tokens for count in counts):
        raise UsageError(
            f"study tokens: --counts {' '.join(map(str, counts))}, but the run's maps show {num_tokens} tokens. Give "
            f"different numbers from 1 to {num_tokens - 1}, or leave --counts out."
        )
    return list(counts)


def stride(num_tokens: int, count: int) -> list[int]:
    """Take tokens ⌊i·K/n⌋, evenly spaced also where n does not divide K.

    >>> stride(16, 5)
    [0, 3, 6, 9, 12]
    """
    return [i * num_tokens // count for i in range(count)]


def draw(num_tokens: int, count: int, seed: int) -> list[int]:
    """Draw tokens without repeats, ascending."""
    order = torch.randperm(num_tokens, generator=generator(seed, "token draw", count))
    return sorted(order[:count].tolist())


def _learned(question: Question, count: int, seed: int) -> list[int]:
    train, validation = question.stored["train"], question.stored["validation"]
    num_tokens, classes, device = len(question.tokens), question.num_classes, question.run.device
    head, probe = question.config.head, question.probe
    return learn_tokens(head, num_tokens, count, train, validation, classes, probe, seed, device)


METHODS: dict[str, Callable[[Question, int, int], list[int]]] = {
    "learned": _learned,
    "stride": lambda question, count, seed: stride(len(question.tokens), count),
    "random": lambda question, count, seed: draw(len(question.tokens), count, seed),
    "first": lambda question, count, seed: first(len(question.tokens), count),
}


def _origin(question: Question, method: str, count: int, seed: int) -> dict[str, Any]:
    run = question.run
    return {
        "features": {split: run.features(split).made_from("tdsm") for split in SPLITS},
        "views": run.config.probe.views,
        "choice": {"method": method, "count": count},
        "head": question.config.head.model_dump(mode="json"),
        "probe": question.probe.model_dump(mode="json"),
        "seed": {"run": run.config.seed, "number": seed},
    }


def _fit(question: Question, method: str, count: int, seed: int) -> tuple[dict, Tensor]:
    run, start = question.run, derive_seed(question.run.config.seed, "study", seed)
    num_tokens = len(question.tokens)
    chosen = list(range(num_tokens)) if method == "all" else METHODS[method](question, count, start)
    kept = {split: _keep(part, chosen, num_tokens) for split, part in question.stored.items()}
    numbers, predicted = fit_and_test(
        question.config.head, kept, question.num_classes, question.probe, start, run.device
    )
    tokens = [question.tokens[index] for index in chosen]
    return {"method": method, "count": count, "seed": seed, "tokens": tokens} | numbers, predicted


def _keep(part: Samples, chosen: Sequence[int], num_tokens: int) -> Samples:
    """Return the maps of some tokens, all channels of each."""
    if len(chosen) == num_tokens:
        return part
    maps = torch.arange(part.features.shape[-1]).unflatten(0, (num_tokens, -1))[list(chosen)].flatten()
    return replace(part, features=changed(part.features, lambda values: values[..., maps]))
