"""Measurements sent to TensorBoard, Weights & Biases or MLflow, by the trackers of accelerate: the one file that
imports it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tdsm.base.errors import ResourceError

Log = Callable[[dict, int], None]
FOLDER = "tracker"


@contextmanager
def opened(name: str, folder: Path, step: int) -> Iterator[Log]:
    """Open a tracker and yield what logs numbers by name at a step; TensorBoard's files go to `folder`/tracker.

    Args:
        name: `tensorboard`, `wandb`, `mlflow`, or `none`, which logs nothing.
        folder: Of the training; its name becomes that of the run at the tracker.
        step: That the training stands at; TensorBoard drops what an earlier process logged after it.

    Raises:
        ResourceError: If the package is not installed.
    """
    if name == "none":
        yield lambda values, step: None
        return
    try:
        from accelerate import tracking

        makers = {
            "tensorboard": lambda: tracking.TensorBoardTracker(FOLDER, folder, purge_step=step + 1),
            "wandb": lambda: tracking.WandBTracker("tdsm", dir=str(folder), name=folder.name),
            "mlflow": lambda: tracking.MLflowTracker("tdsm", logging_dir=str(folder), run_name=folder.name),
        }
        tracker = makers[name]()
        tracker.start()
    except ImportError:
        raise ResourceError(
            f"train: the tracker {name} needs the packages accelerate and {name}. Run: pip install accelerate {name}"
        ) from None
    try:
        yield lambda values, step: tracker.log(values, step=step)
    finally:
        tracker.finish()
