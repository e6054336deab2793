"""The stages of a run, each taking up what the one before left, if it is what it was made from."""

from pathlib import Path

import torch

from tdsm.base import io
from tdsm.base.device import resolve_device
from tdsm.base.errors import DataError, UsageError
from tdsm.base.progress import phase
from tdsm.classification.config import ProbeConfig, RegimeConfig
from tdsm.data import Data
from tdsm.data.augment import check_augment
from tdsm.data.load import absolute_source
from tdsm.decomposition import check_method
from tdsm.decomposition.select import parse_selection, select_tokens
from tdsm.features.config import MapConfig
from tdsm.features.kinds import FEATURES
from tdsm.features.reader import open_store
from tdsm.models.field import NeuralField
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.data import check_data, keep_data, load
from tdsm.pipeline.field import initial_field, kept_field, require_trained, train_and_keep
from tdsm.pipeline.findings import write_findings
from tdsm.pipeline.finetune import regime_results, train_regime
from tdsm.pipeline.folder import create_run, is_later, read_config, rewrite_config
from tdsm.pipeline.link import Say
from tdsm.pipeline.quality import reconstruction_of
from tdsm.pipeline.regimes import regimes_table
from tdsm.pipeline.rows import fit_rows, is_right, score_rows
from tdsm.pipeline.run import Run, chosen_rows
from tdsm.pipeline.table import SHORT, by_accuracy, by_validation, chosen, remarks, table_markdown, verdict
from tdsm.training import processes
from tdsm.training.reconstruction import check_training
from tdsm.training.throughput import is_emulated


def train(path: Path, config: RunConfig, say: Say, *, resume: bool) -> Run:
    """Make a run, or take up the one that is there, and train its field from where that stopped.

    Every process that has joined calls it, with the folder owned by the first.

    Raises:
        TdsmError: The error a later stage would end with, before anything is written.
    """
    with phase("reading the data", quiet=not processes.is_first()):
        data = load(config.data, config.seed)
    config, field = settled(config, data)
    check(config, data, field)
    if processes.is_first():
        create_run(path, config, resume=resume)
        keep_data(path, data, config.data)
    processes.wait()
    is_given, device = config.init is not None, config.device
    field = train_and_keep(path, field, data, config.train, config.seed, is_given=is_given, device=device)
    return Run(path, config, data, field, say)


def take_up(path: Path, say: Say, *, source: str | None = None, store: Path | None = None) -> Run:
    """Take up a run whose field is trained.

    Args:
        path: The run's folder.
        say: Told in one line whatever is made anew.
        source: Where the data are now, if they were moved.
        store: A store of `tdsm extract` whose features are read instead of extracting them here.

    Raises:
        CheckpointError: If there is no trained field, or it or the settings were changed.
        DataError: If the data are not those the run was made with.
    """
    config = read_config(path)
    require_trained(path, config)
    if source is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": absolute_source(source)})})
    place = Path(config.data.source.partition(":")[2])
    if place.is_absolute() and not place.exists():
        raise DataError(f"{path}: its data were at {place}, where nothing is. Name where they are with --data.source.")
    with phase("reading the data and the field", quiet=not processes.is_first()):
        data = load(config.data, config.seed)
        check_data(path, data)
        lender = None if store is None else open_store(store)
        return Run(path, config, data, kept_field(path, config, data), say, lender)


def classify(run: Run, maps: MapConfig, probe: ProbeConfig) -> Run:
    """Fit every chosen head and baseline, and choose on validation; these settings become the run's."""
    run.data.require_labels("classify")
    config = run.config.model_copy(update={"maps": maps, "probe": probe})
    check(config, run.data, run.field)
    rewrite_config(run.path, config, is_later)
    run = Run(run.path, config, run.data, run.field, run.say, run.store)
    fit_rows(run)
    return run


def evaluate(run: Run) -> str:
    """Score everything on the test split, once; write table.md and table.json.

    Returns:
        The former's text, with fewer columns, sorted by validation.
    """
    table = score_rows(run)
    quality = reconstruction_of(run)
    quality_words = f"Reconstruction: {quality['psnr']:.2f} dB on {quality['n']} test images."
    words = [quality_words, quality["sanity"], *remarks(table), *run.notes()]
    right = {row["name"]: is_right(run, row["name"]) for row in chosen(table)}
    said, listed = verdict(table, right), "\n".join(f"- {sentence}" for sentence in words)
    io.write_json(run.path / "table.json", table)
    io.write_text(run.path / "table.md", f"{said}\n\n{table_markdown(by_accuracy(table), table)}\n\n{listed}\n")
    return f"{said}\n\n{table_markdown(by_validation(table), table, SHORT)}\n{listed}\n"


def finetune(run: Run, config: RegimeConfig) -> str:
    """Train every seed of a regime that is not there; write regimes.md and return its text."""
    run.data.require_labels("finetune")
    for number in range(config.seeds):
        result = train_regime(run, config, number)
        run.say(f"{result['name']}, seed {number}: test {100 * result['accuracy']:.1f} %, {result['n_test']} images")
    table = regimes_table(*regime_results(run))
    if processes.is_first():
        write_findings(run, "regimes", [table], {})
    return table.markdown()


def settled(config: RunConfig, data: Data) -> tuple[RunConfig, NeuralField]:
    """Replace what the data and `init` decide by what it is, and paths by absolute ones; return the field too."""
    field = initial_field(config, data.train.channels)
    init = config.init if config.init is None or not Path(config.init).exists() else str(Path(config.init).resolve())
    cache = config.data.cache and str(Path(config.data.cache).expanduser().absolute())
    source = config.data.model_copy(update={"source": absolute_source(config.data.source), "cache": cache})
    return config.model_copy(update={"field": field.config, "init": init, "data": source}), field


def check(config: RunConfig, data: Data, field: NeuralField) -> None:
    """Refuse, before anything is written, what a stage of the run could not use.

    Raises:
        TdsmError: The error that the stage would end with.
    """
    _check_precision(config.maps.precision, resolve_device(config.device))
    rows = chosen_rows(config.probe.rows)
    select_tokens(field.config.num_tokens, parse_selection(config.maps.selection))
    for method in (
        config.maps.method,
        *(m for row in rows.values() if row.features for m in FEATURES[row.features].methods),
    ):
        check_method(field, method)
    check_training(field, data.train, config.train)
    if config.probe.views:
        check_augment(config.probe.augment, *data.train.size)


def _check_precision(precision: str, device: torch.device) -> None:
    if is_emulated(device, precision):
        raise UsageError(
            f"--maps.precision {precision}: this processor has no units for it and would be several times slower than "
            "by float32. Leave it out."
        )
