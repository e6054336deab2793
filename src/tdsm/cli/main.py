"""The command line: verbs and their options. Nothing here imports torch before a verb does its work."""

import dataclasses
import difflib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field

from tdsm.base.errors import ResourceError, SpaceWarning, TdsmError, UsageError
from tdsm.base.settings import Settings, differences
from tdsm.bench.config import BenchConfig
from tdsm.classification.config import ProbeConfig, RegimeConfig
from tdsm.cli.options import base_config, to_yaml
from tdsm.cli.presets import PRESETS
from tdsm.features.config import MapConfig
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.runfolder import CONFIG, create_run, read_config
from tdsm.study.config import ObjectiveStudyConfig, StudyConfig, TokenStudyConfig

HELP = """usage: tdsm VERB [OPTIONS]        tdsm VERB --help shows a verb's options

Token-wise decoded decomposition of conditioned neural fields, and classification from its spatial maps.

  demo       everything below in one go; embedded digits unless told otherwise, under 3 minutes on 2 cores
  train      train a field to reconstruct images          tdsm train --preset cifar10-small --run runs/cifar
  classify   train heads and baselines on its maps        tdsm classify runs/cifar
  evaluate   score them on the test split, once           tdsm evaluate runs/cifar
  finetune   train head and field together                tdsm finetune runs/cifar --regime two_stage
  analyse    measure what the field's tokens do           tdsm analyse runs/cifar
  study      ask a question of a run: worth, tokens, ...  tdsm study worth runs/cifar
  report     write the page with table and pictures       tdsm report runs/cifar
  info       describe this machine, a run or a checkpoint tdsm info runs/cifar
  bench      speed and memory beside loop and floors      tdsm bench --json bench.json

Images come from --data.source: digits, a folder of images or parquet files, an .npz file, a Hugging Face id.
A checkpoint of your own, or a published one, comes in by:  tdsm train --init FILE --train.steps 0 --run runs/mine
"""


class RunCommand(RunConfig):
    """Settings of a run. Later ones win: defaults, --preset, --config, flags."""

    run: Path | None = Field(None, description="Run folder; a new one under runs/ if not set.")
    preset: str | None = Field(None, description=f"Start from a named experiment: {', '.join(PRESETS)}.")
    config: Path | None = Field(None, description="Start from a YAML file of settings, as --print-config writes it.")
    resume: bool = Field(False, description="Continue the run in --run where it stopped.")
    dry_run: bool = Field(False, description="Say what would be done, and stop.")
    print_config: bool = Field(False, description="Print the whole config as YAML, and stop.")

    def settings(self) -> RunConfig:
        """Return the run's settings alone."""
        return RunConfig.model_validate({name: getattr(self, name) for name in RunConfig.model_fields})


class StageCommand(Settings):
    """A stage of a run that is there already. Map and head settings are the run's unless given here."""

    run: tyro.conf.Positional[Path] = Field(description="Run folder of `tdsm train` or `tdsm demo`.")
    maps: MapConfig = Field(description="Spatial maps.")
    probe: ProbeConfig = Field(description="Heads and baselines.")
    dry_run: bool = Field(False, description="Say what would be done, and stop.")


class FolderCommand(Settings):
    """A run that is there already."""

    run: tyro.conf.Positional[Path] = Field(description="Run folder.")


class FinetuneCommand(RegimeConfig):
    """Train a head with a run's field, through the maps of all its tokens, and measure what the field forgot."""

    run: tyro.conf.Positional[Path] = Field(description="Run folder.")


class AnalyseCommand(Settings):
    """Measure every decomposition of a run's field: whether it adds up, how redundant, spread and stable it is."""

    run: tyro.conf.Positional[Path] = Field(description="Run folder.")
    images: int = Field(256, ge=2, description="Test images measured, the first ones.")
    against: Path | None = Field(None, description="A run of the same data from another seed, to match tokens with.")


class WorthCommand(StudyConfig):
    """Does decoding the tokens pay for classification? Equal heads on every feature, paired intervals."""

    run: tyro.conf.Positional[Path] = Field(description="Run folder.")

    def answer(self) -> tuple[Path, str]:
        """Run the study; return the path and the text of its table."""
        config = StudyConfig.model_validate({name: getattr(self, name) for name in StudyConfig.model_fields})
        from tdsm.pipeline import stages
        from tdsm.study.table import write_study
        from tdsm.study.worth import run_study

        run = stages.finished(self.run)
        return write_study(run.path, run_study(run, config, say=_say))


class ObjectivesCommand(ObjectiveStudyConfig):
    """What does the training objective make of the tokens? One field an objective, all else equal."""

    run: tyro.conf.Positional[Path] = Field(description="Run folder.")

    def answer(self) -> tuple[Path, str]:
        """Run the study; return the path and the text of its table."""
        names = ObjectiveStudyConfig.model_fields
        config = ObjectiveStudyConfig.model_validate({name: getattr(self, name) for name in names})
        from tdsm.pipeline import stages
        from tdsm.study.objectives import run_objectives, write_objectives

        run = stages.finished(self.run)
        return write_objectives(run.path, run_objectives(run, config, say=_say), config)


class TokensCommand(TokenStudyConfig):
    """Which tokens are worth keeping? Gates trained with the head, against even spacing, random and first tokens."""

    run: tyro.conf.Positional[Path] = Field(description="Run folder.")

    def answer(self) -> tuple[Path, str]:
        """Run the study; return the path and the text of its table."""
        config = TokenStudyConfig.model_validate({name: getattr(self, name) for name in TokenStudyConfig.model_fields})
        from tdsm.pipeline import stages
        from tdsm.study.tokens import run_token_study
        from tdsm.study.tokens_table import write_token_study

        run = stages.finished(self.run)
        return write_token_study(run.path, run_token_study(run, config, say=_say))


QUESTIONS: dict[str, Any] = {"worth": WorthCommand, "objectives": ObjectivesCommand, "tokens": TokensCommand}


class BenchCommand(BenchConfig):
    """Measure speed and memory of token decoding, beside the loop and the floors, in one run."""

    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        None, description="Write everything that was measured as JSON; - prints it instead of the tables."
    )


class InfoCommand(Settings):
    """Describe this machine, or what is at a path."""

    path: tyro.conf.Positional[Path | None] = Field(None, description="Run folder, saved field or published .pt file.")


def main() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run one command; return 0 only if all that was asked is done."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from tdsm import __version__

        print(__version__)
        return 0
    warnings.showwarning = _show_warning
    try:
        _verb(arguments[0])(arguments[1:])
    except TdsmError as error:
        print(f"tdsm: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"tdsm: {error}", file=sys.stderr)
        return ResourceError.exit_code
    except KeyboardInterrupt:
        way = "with --resume and the same --run" if arguments[0] in ("demo", "train") else "by the same command"
        print(f"tdsm: interrupted; continue {way}.", file=sys.stderr)
        return 130
    return 0


def demo(arguments: list[str]) -> None:
    """Train, classify, evaluate and report in one go."""
    command = _parse_run("demo", arguments, default_preset="digits")
    if command is None:
        return
    from tdsm.pipeline import stages
    from tdsm.training import processes

    with processes.joined():
        run, is_first = _train(command), processes.is_first()
    if not is_first:
        return
    stages.classify(run, say=_say)
    stages.evaluate(run, say=_say)
    print(stages.report(run))


def train(arguments: list[str]) -> None:
    """Train a field to reconstruct images."""
    command = _parse_run("train", arguments, default_preset=None)
    if command is None:
        return
    from tdsm.pipeline import stages
    from tdsm.training import processes

    with processes.joined():
        run = _train(command)
        if processes.is_first():
            _say(f"validation PSNR {stages.validation_psnr(run):.2f} dB")
            print(run.path)


def classify(arguments: list[str]) -> None:
    """Train heads and baselines on a run's maps."""
    command = _parse_stage(arguments)
    before = read_config(command.run)
    config = before.model_copy(update={"maps": command.maps, "probe": command.probe})
    from tdsm.pipeline import stages

    if command.dry_run:
        _say(stages.plan(config))
        return
    run = stages.finished(command.run)
    stages.check(config, run.data)
    changed = differences(_without_rows(before), _without_rows(config))
    if changed and (command.run / "rows").exists():
        raise UsageError(
            f"{command.run}: its rows were fitted with other settings: {'; '.join(changed)}. "
            "Leave them as they were, or train into another run folder."
        )
    if config != before:
        stages.rewrite_config(command.run, config)
    stages.classify(dataclasses.replace(run, config=config), say=_say)


def evaluate(arguments: list[str]) -> None:
    """Score a run's heads and baselines on the test split."""
    command = tyro.cli(FolderCommand, prog="tdsm evaluate", args=arguments, description=evaluate.__doc__)
    from tdsm.pipeline import stages

    stages.evaluate(stages.finished(command.run), say=_say)
    print(command.run / "table.md")


def finetune(arguments: list[str]) -> None:
    """Train a head with a run's field, through the maps of all its tokens, and measure what the field forgot."""
    command = tyro.cli(FinetuneCommand, prog="tdsm finetune", args=arguments, description=finetune.__doc__)
    config = RegimeConfig.model_validate({name: getattr(command, name) for name in RegimeConfig.model_fields})
    from tdsm.pipeline import stages
    from tdsm.pipeline.regimes import train_regime, write_regimes

    run = stages.finished(command.run)
    for number in range(config.seeds):
        result = train_regime(run, config, number)
        _say(f"{config.regime}, seed {number}: test {100 * result['accuracy']:.1f} %, {result['n_test']} images")
    path, words = write_regimes(run.path, run.data.test.labels)
    _say(words)
    print(path)


def analyse(arguments: list[str]) -> None:
    """Measure every decomposition of a run's field: whether it adds up, how redundant, spread and stable it is."""
    command = tyro.cli(AnalyseCommand, prog="tdsm analyse", args=arguments, description=analyse.__doc__)
    from tdsm.pipeline import stages
    from tdsm.study import analysis

    run = stages.finished(command.run)
    other = None if command.against is None else stages.finished(command.against)
    _say(analysis.analysis_markdown(analysis.analyse(run, command.images, other)))
    print(command.run / analysis.TABLE)


def study(arguments: list[str]) -> None:
    """Ask one question of a finished run. `tdsm study QUESTION --help` shows its options."""
    command = tyro.extras.subcommand_cli_from_dict(
        QUESTIONS, prog="tdsm study", args=arguments, description=study.__doc__
    )
    path, words = command.answer()
    _say(words)
    print(path)


def report(arguments: list[str]) -> None:
    """Write the page of a run, with its pictures."""
    command = tyro.cli(FolderCommand, prog="tdsm report", args=arguments, description=report.__doc__)
    from tdsm.pipeline import stages

    print(stages.report(stages.finished(command.run)))


def info(arguments: list[str]) -> None:
    """Describe this machine, or the field at a path."""
    command = tyro.cli(InfoCommand, prog="tdsm info", args=arguments, description=info.__doc__)
    from tdsm.cli.info import describe_field, describe_machine

    print(describe_machine() if command.path is None else describe_field(command.path))


def bench(arguments: list[str]) -> None:
    """Measure speed and memory of token decoding."""
    command = tyro.cli(BenchCommand, prog="tdsm bench", args=arguments, description=BenchConfig.__doc__)
    from tdsm.base.io import write_json
    from tdsm.bench.run import run_bench
    from tdsm.bench.text import format_report

    report = run_bench(command)
    if command.json_file is not None and command.json_file != Path("-"):
        write_json(command.json_file, report)
    print(json.dumps(report, indent=2) if command.json_file == Path("-") else format_report(report))
    if missing := [f"{row['case']} {row['mode']} ({row['skipped']})" for row in report["rows"] if "skipped" in row]:
        raise ResourceError(f"bench: not measured: {'; '.join(missing)}.")


VERBS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "train": train,
    "classify": classify,
    "evaluate": evaluate,
    "finetune": finetune,
    "analyse": analyse,
    "study": study,
    "report": report,
    "info": info,
    "bench": bench,
}

SHARED = ("demo", "train")  # verbs whose work several processes share out


def _verb(name: str) -> Callable[[list[str]], None]:
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"perhaps you meant {near[0]}" if near else f"expected one of {', '.join(VERBS)}"
        raise UsageError(f"unknown verb {name!r}, {hint}. See tdsm --help.")
    if name not in SHARED and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"{name} runs in one process, {' and '.join(SHARED)} in several. Start it without torchrun.")
    return VERBS[name]


def _parse_run(verb: str, arguments: list[str], default_preset: str | None) -> RunCommand | None:
    """Parse a command that starts a run; None when it only had to print something."""
    base = base_config(arguments, default_preset)
    default = RunCommand(**{name: getattr(base, name) for name in RunConfig.model_fields})
    command = tyro.cli(
        RunCommand, default=default, prog=f"tdsm {verb}", args=arguments, description=VERBS[verb].__doc__
    )
    if command.print_config:
        print(to_yaml(command.settings()), end="")
        return None
    if command.dry_run:
        from tdsm.pipeline import stages

        _say(stages.plan(command.settings()))
        return None
    return command


def _parse_stage(arguments: list[str]) -> StageCommand:
    """Parse a command on a run, whose own settings are the defaults."""
    paths = [Path(argument) for argument in arguments if (Path(argument) / CONFIG).is_file()]
    config = read_config(paths[0]) if paths else RunConfig()
    parsed: Any = tyro.cli(
        Annotated[StageCommand, tyro.conf.arg(name="")],
        default=StageCommand.model_construct(run=tyro.MISSING, maps=config.maps, probe=config.probe, dry_run=False),
        prog="tdsm classify",
        args=arguments,
        description=classify.__doc__,
    )
    return parsed


def _without_rows(config: RunConfig) -> dict:
    """Return what all rows depend on; which rows there are may change."""
    return config.model_dump(exclude={"probe": {"rows"}})


def _train(command: RunCommand) -> Any:
    """Load the data, make or take up the run folder once all settings are known to be usable, and train."""
    from tdsm.pipeline import stages
    from tdsm.training import processes

    if command.resume and command.run is None:
        raise UsageError("--resume needs --run: name the folder of the run to continue.")
    config = command.settings()
    data = stages.load(config)
    stages.check(config, data)
    return stages.train(Path(processes.from_first(lambda: str(_run_folder(command, config)))), data)


def _run_folder(command: RunCommand, config: RunConfig) -> Path:
    if command.run is not None:
        return create_run(command.run, config, resume=command.resume)
    stem = command.preset or Path(config.data.source).stem or "run"
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 10000))
    return create_run(next(path for name in names if not (path := Path("runs") / name).exists()), config, resume=False)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, SpaceWarning) or category is UserWarning:
        _say(f"tdsm: warning: {message}")
