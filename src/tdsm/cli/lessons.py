"""What `tdsm VERB --help` teaches: two examples first, then the options that matter; --help-all shows all of them."""

from dataclasses import dataclass

MOST_OPTIONS = 15


@dataclass(frozen=True)
class Lesson:
    """Two commands with what they do, and the flags shown beside them; all where none are named."""

    examples: tuple[tuple[str, str], tuple[str, str]]
    flags: tuple[str, ...] = ()

    def text(self, doc: str, command: str) -> str:
        """Return what stands above the options; indented lines are shown as they are."""
        width = max(len(example) for example, _ in self.examples)
        lines = [f"  {example:<{width}}  {does}" for example, does in self.examples]
        rest = f"\n\nThe options that matter most; all of them: {command} --help-all" if self.flags else ""
        return "\n".join([doc, "", "For example:", *lines]) + rest


_TRAINING = ("preset", "minutes", "run", "resume", "dry-run", "seed", "device", "data.source", "data.image-size")
_STUDY_HEAD = ("run", "data.source", "seeds", "head.kind", "head.hidden-dim", "head.depth", "epochs", "learning-rates")

LESSONS: dict[str, Lesson] = {
    "demo": Lesson(
        (
            ("tdsm demo", "embedded digits: about a minute"),
            ("tdsm demo --data.source my-images", "a run sized for your images and this machine"),
        ),
        (*_TRAINING, "data.max-train", "train.steps", "maps.size", "maps.method", "probe.rows", "probe.max-train"),
    ),
    "train": Lesson(
        (
            ("tdsm train --data.source my-images --minutes 10 --run runs/mine", "a field sized for your images"),
            ("tdsm train --run runs/mine --resume", "go on where it stopped"),
        ),
        (*_TRAINING, "config", "init", "data.max-train", "train.steps", "train.batch-size", "train.learning-rate"),
    ),
    "classify": Lesson(
        (
            ("tdsm classify runs/mine", "the rows of the run's settings"),
            ("tdsm classify runs/mine --probe.rows tdsm-ridge pixels-ridge", "these rows alone"),
        ),
        (
            *("run", "data.source", "dry-run", "maps.method", "maps.reduction", "maps.selection", "maps.size"),
            *("probe.rows", "probe.max-train", "probe.seeds", "probe.epochs", "probe.batch-size"),
            *("probe.learning-rates", "probe.penalties", "probe.views"),
        ),
    ),
    "evaluate": Lesson(
        (
            ("tdsm evaluate runs/mine", "score what `tdsm classify` fitted"),
            ("tdsm evaluate runs/mine --data.source elsewhere/my-images", "the images were moved"),
        ),
    ),
    "finetune": Lesson(
        (
            ("tdsm finetune runs/mine --start tdsm-mlp", "head and field together, from a fitted row's head"),
            ("tdsm finetune runs/mine --features tokens", "without decoding, to compare with"),
        ),
        (
            *("run", "data.source", "regime", "features", "start", "head.kind", "seeds", "epochs", "batch-size"),
            *("learning-rates.encoder", "learning-rates.processor", "learning-rates.decoder", "learning-rates.head"),
            *("weight-decay", "reconstruction-weight"),
        ),
    ),
    "analyse": Lesson(
        (
            ("tdsm analyse runs/mine", "every decomposition, on 256 test images"),
            ("tdsm analyse runs/mine --against runs/other-seed", "also whether another seed finds the same tokens"),
        ),
    ),
    "study": Lesson(
        (
            ("tdsm study worth runs/mine", "does decoding the tokens pay for classification?"),
            ("tdsm study tokens runs/mine", "which tokens are worth keeping?"),
        ),
    ),
    "study worth": Lesson(
        (
            ("tdsm study worth runs/mine", "every feature by every reading"),
            ("tdsm study worth runs/mine --readings ridge --steps 250", "by ridge alone: minutes"),
        ),
        (
            *("run", "data.source", "readings", "seeds", "hidden-dim", "components", "parameters", "size", "epochs"),
            *("learning-rates", "max-train", "max-test", "train-counts", "token-counts", "steps"),
        ),
    ),
    "study objectives": Lesson(
        (
            ("tdsm study objectives runs/mine", "one field an objective"),
            ("tdsm study objectives runs/mine --objectives full nested --steps 500", "two of them, briefly"),
        ),
        (*_STUDY_HEAD, "objectives", "steps", "images", "size", "max-train", "max-test"),
    ),
    "study tokens": Lesson(
        (
            ("tdsm study tokens runs/mine", "an eighth, a quarter and a half of them"),
            ("tdsm study tokens runs/mine --counts 4 8 --seeds 1", "these numbers of tokens"),
        ),
        (*_STUDY_HEAD, "counts"),
    ),
    "study regions": Lesson(
        (
            ("tdsm study regions runs/mine", "quarters of 64 test images"),
            ("tdsm study regions runs/mine --grid 4 4 --counts 1 2", "smaller regions, few tokens"),
        ),
    ),
    "extract": Lesson(
        (
            ("tdsm extract runs/mine --features tokens pooled --to STORE", "of the run's images"),
            ("tdsm extract runs/mine --data.source others --to STORE", "of all images of a folder"),
        ),
        (
            *("field", "to", "features", "format", "shard-samples", "shards", "engine", "ray-address", "actors"),
            *("data.source", "data.image-size", "maps.method", "maps.size", "device", "dry-run"),
        ),
    ),
    "verify": Lesson(
        (
            ("tdsm verify STORE", "every file by its hash"),
            ("tdsm extract runs/mine --to STORE && tdsm verify STORE", "right after it was made"),
        ),
    ),
    "predict": Lesson(
        (
            ("tdsm predict runs/mine pictures", "the classes of a folder's images, as CSV"),
            ("tdsm predict runs/mine a.png b.png --row tdsm-ridge --to classes.json", "by another row, into a file"),
        ),
    ),
    "report": Lesson(
        (
            ("tdsm report runs/mine", "write runs/mine/report.html"),
            ("tdsm report runs/mine --data.source elsewhere/my-images", "the images were moved"),
        ),
    ),
    "explore": Lesson(
        (
            ("tdsm explore runs/mine --browser", "play with it on this machine"),
            ("tdsm explore runs/mine --export page", "one page that needs no server"),
        ),
    ),
    "info": Lesson((("tdsm info", "this machine"), ("tdsm info runs/mine", "the field of a run"))),
    "bench": Lesson(
        (
            ("tdsm bench --batch 1 8 --seconds 3", "token decoding at reference scale"),
            ("tdsm bench --device cuda --dtype bfloat16 --json speed.json", "on a GPU, kept as JSON"),
        ),
        (
            *("json", "tokens", "batch", "side", "dtype", "device", "cases", "gradients", "growth", "repeats"),
            *("seconds", "seed"),
        ),
    ),
    "completion": Lesson(
        (
            ('eval "$(tdsm completion bash)"', "in ~/.bashrc"),
            ("tdsm completion fish > ~/.config/fish/completions/tdsm.fish", "once"),
        ),
    ),
}
"""By command: every verb, and every question of `tdsm study`."""
