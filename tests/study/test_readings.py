import pytest
import torch

from tdsm.base.errors import UsageError
from tdsm.classification.heads import HEADS, TDSMClassifier
from tdsm.classification.probe import Samples
from tdsm.features.store import FeatureRows
from tdsm.models.weights import count_parameters
from tdsm.study.config import StudyConfig
from tdsm.study.readings import head_of_size, principal


def splits(size=(2, 1, 3)):
    random = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 5.0, 0.0])
    return {
        name: Samples(FeatureRows([torch.randn(count, *size, generator=random) * scale + 4]), torch.zeros(count).long())
        for name, count in (("train", 50), ("test", 20))
    }


def everything(samples):
    return samples.features[torch.arange(len(samples.features))]


@pytest.mark.parametrize(
    ("pool", "size"), [("flatten", (4, 4)), ("cnn", (8, 8)), ("resnet", (8, 8)), ("transformer", (16, 1))]
)
def test_heads_are_as_wide_as_the_budget_allows(pool, size):
    def parameters(head):
        return count_parameters(TDSMClassifier(12, 10, pool, size, **head.model_dump(exclude={"kind"})))

    head = head_of_size(pool, 12, size, 10, 30_000, depth=1)
    option, step = HEADS[pool].width_option, HEADS[pool].width_multiple
    wider = head.model_copy(update={option: getattr(head, option) + step})
    assert parameters(head) <= 30_000 < parameters(wider)


def test_a_budget_too_small_is_named():
    with pytest.raises(UsageError, match="more than the 50 of --parameters"):
        head_of_size("flatten", 12, (4, 4), 10, 50)


def test_principal_components_are_those_of_the_standardised_training_samples():
    given = splits()
    done = principal(given, StudyConfig(components=6))
    assert done["test"].features.shape == (20, 6, 1, 1)
    flat = everything(given["train"]).flatten(1)
    live = flat.std(dim=0) > 0
    standard = (flat - flat.mean(dim=0))[:, live] / flat.std(dim=0, correction=0)[live]
    expected = torch.linalg.svdvals(standard)
    found = everything(done["train"])[:, :, 0, 0]
    torch.testing.assert_close(found.norm(dim=0)[:4], expected, atol=0.02, rtol=5e-3)
    assert found[:, 4:].abs().max() < 0.02
    padded = everything(principal(given, StudyConfig(components=9))["train"])[:, :, 0, 0]
    assert padded.shape == (50, 9)
    assert padded[:, 6:].abs().max() == 0
