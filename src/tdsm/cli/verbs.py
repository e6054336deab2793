"""The verbs: what each is told, and what it does. What does the work is imported when it is done."""

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro
from pydantic import Field, create_model

from tdsm.base.errors import ResourceError, UsageError
from tdsm.base.settings import Choice, Positive
from tdsm.bench.config import BenchConfig
from tdsm.classification.config import ProbeConfig, RegimeConfig
from tdsm.cli.extraction import Extract, Predict, Verify
from tdsm.cli.options import preset, read_yaml, to_yaml
from tdsm.cli.presets import PRESETS, digits
from tdsm.cli.show import show
from tdsm.cli.verb import RunFolder, Verb, say, say_next
from tdsm.decomposition.registry import DECOMPOSITIONS
from tdsm.features.config import MapConfig
from tdsm.pipeline.config import RunConfig
from tdsm.study.config import QUESTIONS, AnalysisConfig, Asked

if TYPE_CHECKING:
    from tdsm.pipeline.run import Run

Source = Annotated[
    str | None,
    tyro.conf.arg(name="data.source"),
    Field(description="Where the run's data are now, if they were moved."),
]


class Train(Verb):
    """Train a field to reconstruct images. Later ones win: defaults, --preset, --config, flags."""

    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = Field(RunConfig(), description="All settings.")
    run: Path | None = Field(None, description="Run folder; a new one under runs/ if not set.")
    preset: str | None = Field(None, description=f"Start from a named experiment: {', '.join(PRESETS)}.")
    config: Path | None = Field(None, description="Start from a YAML file of settings, as --print-config writes it.")
    minutes: float = Field(10.0, gt=0, description="Time for everything that the preset `images` sizes a run for.")
    resume: bool = Field(False, description="Continue the run in --run where it stopped.")
    dry_run: bool = Field(False, description="Say what would be done, how long and how large, and stop.")
    print_config: bool = Field(False, description="Print the whole config as YAML, and stop.")

    def based(self) -> "Verb":
        """Start from the preset and the file; a run that is resumed starts from its own settings."""
        return self.model_copy(update={"settings": self._base(self._sized)})

    def shown(self) -> "Verb":
        """Start from the same, without looking at images of one's own."""
        return self.model_copy(update={"settings": self._base(self._of_these)})

    def opening(self) -> str | None:
        """Say of what images."""
        return None if self.print_config else f"{self.settings.data.source}: getting ready"

    def execute(self) -> None:
        """Train, unless something is only to be printed."""
        if self.print_config:
            print(to_yaml(self.settings), end="")
        elif self.dry_run:
            from tdsm.pipeline.plan import plan

            say(plan(self.settings))
        else:
            self._work()

    def _base(self, fitted: Callable[[RunConfig], RunConfig]) -> RunConfig:
        is_given = self.preset is not None or self.config is not None
        if self.resume and self.run is not None and not is_given:
            from tdsm.pipeline.folder import CONFIG, read_config

            if (self.run / CONFIG).is_file():
                return read_config(self.run)
        name = self.preset or self._fitting_preset()
        base = type(self)().settings if name is None else preset(name)
        if name == "images":
            base = fitted(base)
        return base if self.config is None else read_yaml(self.config, base)

    def _fitting_preset(self) -> str | None:
        """Name the preset of a run of which neither a preset, nor a file, nor a field is named."""
        if self.config is not None or self.settings.init is not None:
            return None
        return self.settings.data.source if self.settings.data.source in PRESETS else "images"

    def _sized(self, base: RunConfig) -> RunConfig:
        from tdsm.pipeline.sizing import sized

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(
                "--preset images measures this machine, which several processes cannot. Let one write down what it "
                "chose (--print-config > FILE), then start with --config FILE."
            )
        return sized(self._of_these(base), self.minutes)

    def _of_these(self, base: RunConfig) -> RunConfig:
        """Name the images, and what else a size depends on."""
        given = {"data": self.settings.data, "seed": self.settings.seed, "device": self.settings.device}
        return base.model_copy(update=given)

    def _work(self) -> None:
        from tdsm.training import processes
        from tdsm.training.reconstruction import measure_psnr

        with processes.joined():
            run = self._train()
            if processes.is_first():
                say(f"validation PSNR {measure_psnr(run.field, run.data.validation):.2f} dB")
                print(run.path)
                say_next("classify", run.path)

    def _train(self) -> "Run":
        from tdsm.pipeline import stages
        from tdsm.training import processes

        if self.resume and self.run is None:
            raise UsageError("--resume needs --run: name the folder of the run to continue.")
        path = Path(processes.from_first(lambda: str(self._path())))
        with _owned(path), _noted(path, at_once=False):
            return stages.train(path, self.settings, say, resume=self.resume)

    def _path(self) -> Path:
        """Return the run's folder; the first free name under runs/ if none is given."""
        if self.run is not None:
            if self.run.is_file():
                raise UsageError(f"{self.run}: this is a file, expected a folder or none yet. Choose another --run.")
            return self.run
        stem = self.preset or Path(self.settings.data.source).stem or "run"
        names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 10000))
        path = next(path for name in names if not (path := Path("runs") / name).exists())
        say(f"run folder: {path}")
        return path


class Demo(Train):
    """Train, classify, evaluate and report in one go; embedded digits unless told otherwise."""

    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = Field(digits(), description="All settings.")

    def _work(self) -> None:
        from tdsm.pipeline import stages
        from tdsm.training import processes

        with processes.joined():
            run, is_first = self._train(), processes.is_first()
        if not is_first:
            return
        from tdsm.report.gather import write_page

        with _owned(run.path), _noted(run.path):
            run = stages.classify(run, run.config.maps, run.config.probe)
            show(stages.evaluate(run))
            print(write_page(run))
        say(f"next: open {shlex.quote(str(run.path / 'report.html'))} in a browser")


class Stage(Verb):
    """A stage of a run that is there already."""

    run: RunFolder
    source: Source = None

    def opening(self) -> str | None:
        """Say of which run."""
        return f"{self.run}: taking it up"

    def options(self) -> dict[str, Any]:
        """Return where the run's data are, and what else is read from elsewhere."""
        return {"source": self.source}

    @contextmanager
    def taken_up(self) -> Iterator["Run"]:
        """Own the run and take it up."""
        from tdsm.pipeline import stages
        from tdsm.pipeline.folder import read_config

        read_config(self.run)  # before anything is put there
        with _owned(self.run):
            run = stages.take_up(self.run, say, **self.options())
            with _noted(self.run):
                yield run


class Reading(Stage):
    """A stage that reads features of a run's images."""

    store: Path | None = Field(None, description="Store of `tdsm extract` to read features from, where it has them.")

    def options(self) -> dict[str, Any]:
        """Return where the run's data are, and the store."""
        return super().options() | {"store": self.store}


class Classify(Reading):
    """Train heads and baselines on a run's maps. Map and head settings are the run's unless given here."""

    maps: MapConfig = Field(MapConfig(), description="Spatial maps.")
    probe: ProbeConfig = Field(ProbeConfig(), description="Heads and baselines.")
    dry_run: bool = Field(False, description="Say what would be done, and stop.")

    def based(self) -> "Verb":
        """Start from the run's own settings."""
        from tdsm.pipeline.folder import read_config

        config = read_config(self.run)
        return self.model_copy(update={"maps": config.maps, "probe": config.probe})

    def execute(self) -> None:
        """Fit every row."""
        from tdsm.pipeline import stages
        from tdsm.pipeline.folder import read_config

        if self.dry_run:
            from tdsm.pipeline.plan import plan

            config = read_config(self.run)
            say(plan(config.model_copy(update={"maps": self.maps, "probe": self.probe})))
            return
        with self.taken_up() as run:
            stages.classify(run, self.maps, self.probe)
        say_next("evaluate", self.run)


class Evaluate(Reading):
    """Score a run's heads and baselines on the test split, which is read once a row and seed."""

    def execute(self) -> None:
        """Score, and print where the table is."""
        from tdsm.pipeline import stages

        with self.taken_up() as run:
            show(stages.evaluate(run))
            print(run.path / "table.md")
        say_next("report", self.run)


class Finetune(Stage):
    """Train a head with a run's field, through the maps of all its tokens, and measure what the field forgot."""

    settings: Annotated[RegimeConfig, tyro.conf.arg(name="")] = Field(RegimeConfig(), description="The regime.")

    def execute(self) -> None:
        """Train every seed, in as many processes as have joined, and print where the table is."""
        from tdsm.pipeline import stages
        from tdsm.training import processes

        with processes.joined(), self.taken_up() as run:
            text = stages.finetune(run, self.settings)
            if processes.is_first():
                show(text)
                print(run.path / "regimes.md")
                say_next("report", self.run)


class Analyse(Stage):
    """Measure every decomposition of a run's field: whether it adds up, how redundant, spread and stable it is."""

    settings: Annotated[AnalysisConfig, tyro.conf.arg(name="")] = Field(
        AnalysisConfig(), description="What is measured."
    )
    against: Path | None = Field(None, description="A run of the same data from another seed, to match tokens with.")

    def execute(self) -> None:
        """Measure, and print where the table is."""
        from tdsm.pipeline import stages
        from tdsm.study.analysis import analyse, write_analysis

        with self.taken_up() as run:
            other = None if self.against is None else stages.take_up(self.against, say)
            path, words = write_analysis(run, analyse(run, self.settings.images, other))
            show(words)
            print(path)
        say_next("report", self.run)


class Question(Reading):
    """A question asked of a run."""

    settings: Asked

    def answer(self, run: "Run") -> tuple[Path, str]:
        """Return the path and the text of the answer's table."""
        module = import_module(f"tdsm.study.{type(self).__name__}")
        return module.answer(run, self.settings)


def _question(name: str, asked: type[Asked]) -> type[Question]:
    """Make a question from how it is asked."""
    settings: Any = Annotated[asked, tyro.conf.arg(name="")], Field(asked(), description="How it is asked.")
    return create_model(name, __base__=Question, __doc__=asked.__doc__, settings=settings)


ANSWERED = {name: _question(name, asked) for name, asked in QUESTIONS.items()}


Asking: Any = Union[*(Annotated[model, tyro.conf.subcommand(name)] for name, model in ANSWERED.items())]


class Study(Verb):
    """Ask one question of a finished run. `tdsm study QUESTION --help` shows its options."""

    question: Annotated[Asking, tyro.conf.arg(name="")]

    def opening(self) -> str | None:
        """Say of which run."""
        return f"{type(self.question).__name__} {self.question.opening()}"

    def execute(self) -> None:
        """Ask, and print where the answer is."""
        with self.question.taken_up() as run:
            if self.question.settings.needs_labels:
                run.data.require_labels("study")
            path, words = self.question.answer(run)
            show(words)
            print(path)
        say_next("report", self.question.run)


class Report(Verb):
    """Write the page of a run, with its figures; of two runs or more, a page that compares them with the first."""

    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="RUN [RUN ...]"),
        Field(min_length=1, description="Run folders that were evaluated."),
    ]
    source: Source = None

    def opening(self) -> str | None:
        """Say of which runs."""
        return f"{' '.join(map(str, self.runs))}: taking up"

    def execute(self) -> None:
        """Write it, and print where it is."""
        first, *others = (Stage(run=path, source=self.source) for path in self.runs)
        with first.taken_up() as run:
            if not others:
                from tdsm.report.gather import write_page

                print(write_page(run))
                return
            from tdsm.pipeline import stages
            from tdsm.report.compare import write_comparison

            compared = [stages.take_up(stage.run, say, source=self.source) for stage in others]
            print(write_comparison([run, *compared]))


class Explore(Verb):
    """Play with a run or a field in a browser: switch tokens on and off, ask which of them speak where."""

    path: tyro.conf.Positional[Path] = Field(description="Run folder, saved field or published .pt file.")
    pictures: tuple[Path, ...] = Field((), description="Picture files to choose from.")
    source: Source = None
    port: int = Field(0, ge=0, le=65535, description="Port on this machine; 0 takes a free one.")
    browser: bool = Field(False, description="Open the page in a browser at once.")
    export: Path | None = Field(None, description="Write the page for a file into this folder, and serve nothing.")
    images: Positive = Field(50, description="Images of the exported page, a stratified draw of the first set.")
    rows: tuple[int, ...] = Field((), description="These images of the first set instead, by number.")
    methods: tuple[Annotated[str, Choice(DECOMPOSITIONS)], ...] = Field(
        (), description="Decompositions in the exported page beside the one that adds up."
    )

    def opening(self) -> str | None:
        """Say of what."""
        return f"{self.path}: taking it up"

    def execute(self) -> None:
        """Serve until interrupted, or write the page."""
        from tdsm.explore.export import chosen_images, export
        from tdsm.explore.start import explore, require_server
        from tdsm.explore.studio import open_studio

        if self.export is None:
            require_server()
        studio = open_studio(self.path, say, list(self.pictures), self.source)
        if self.export is None:
            return explore(studio, self.port, say, opens_browser=self.browser)
        path, words = export(studio, self.export, chosen_images(studio, self.images, self.rows), self.methods)
        say(words)
        print(path)


class Info(Verb):
    """Describe this machine, or what is at a path."""

    path: tyro.conf.Positional[Path | None] = Field(None, description="Run folder, saved field or published .pt file.")

    def execute(self) -> None:
        """Print the description."""
        from tdsm.cli.info import describe, describe_machine

        print(describe_machine() if self.path is None else describe(self.path))


class Bench(Verb):
    """Measure speed and memory of token decoding, beside the loop and the floors, in one run."""

    settings: Annotated[BenchConfig, tyro.conf.arg(name="")] = Field(BenchConfig(), description="What is measured.")
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        None, description="Write everything that was measured as JSON; - prints it instead of the tables."
    )

    def opening(self) -> str | None:
        """Say of what."""
        return "of a field of random weights: getting ready"

    def execute(self) -> None:
        """Measure and print."""
        from tdsm.base.io import write_json
        from tdsm.bench.run import run_bench
        from tdsm.bench.text import format_report

        report = run_bench(self.settings)
        is_printed = self.json_file == Path("-")
        if self.json_file is not None and not is_printed:
            write_json(self.json_file, report)
        print(json.dumps(report, indent=2) if is_printed else format_report(report))
        if missing := [f"{row['case']} {row['mode']} ({row['skipped']})" for row in report["rows"] if "skipped" in row]:
            raise ResourceError(f"bench: not measured: {'; '.join(missing)}.")


class Completion(Verb):
    """Print what makes a shell complete verbs and flags by the tab key."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]] = Field(description="Which shell.")

    def execute(self) -> None:
        """Print the script."""
        from tdsm.cli.completion import completion

        print(completion(self.shell))


VERBS: dict[str, Any] = {
    "demo": Demo,
    "train": Train,
    "classify": Classify,
    "evaluate": Evaluate,
    "finetune": Finetune,
    "analyse": Analyse,
    "study": Study,
    "extract": Extract,
    "verify": Verify,
    "predict": Predict,
    "report": Report,
    "explore": Explore,
    "info": Info,
    "bench": Bench,
    "completion": Completion,
}
SHARED = ("demo", "train", "finetune", "extract")  # verbs whose work several processes share out


@contextmanager
def _owned(path: Path) -> Iterator[None]:
    """Let the first of the processes that have joined own a run's folder."""
    from tdsm.pipeline.folder import owned
    from tdsm.training import processes

    with owned(path) if processes.is_first() else nullcontext():
        yield


@contextmanager
def _noted(path: Path, *, at_once: bool = True) -> Iterator[None]:
    """Let the first of the processes that have joined note in a run's folder what is done there."""
    from tdsm.pipeline.folder import noted
    from tdsm.training import processes

    with noted(path, at_once=at_once) if processes.is_first() else nullcontext():
        yield
