"""Train a head from a store with a `DataLoader`, shuffled without reading all over the disk.

    python examples/store_dataloader.py

Extracts the tokens of the embedded digits by a small field that was not trained, in two parts as two machines would,
and trains a linear layer on them. Prints test accuracy by epoch.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import tdsm
from tdsm.cli.main import run_command

torch.manual_seed(0)
config = tdsm.FieldConfig(channels=1, widths=(32,), num_latents=16, mapping_dim=8, cross_head_dim=8, self_head_dim=8)

with tempfile.TemporaryDirectory() as folder:
    tdsm.NeuralField(config).save_pretrained(Path(folder) / "field")
    for part in ("1/2", "2/2"):
        words = f"extract {folder}/field --data.source digits --shard-samples 128 --shards {part} --to {folder}/store"
        assert run_command(words.split()) == 0

    store = tdsm.open_store(f"{folder}/store")
    train = store.dataset("tokens", split="train")
    batches = DataLoader(train, batch_size=64, sampler=train.shuffled(seed=0))
    tokens, labels = torch.from_numpy(store.numpy("tokens", "test")), torch.from_numpy(store.labels("test"))
    head = nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(affine=False), nn.LazyLinear(len(store.classes)))
    head(tokens[:2])  # learns its width
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for epoch in range(5):
        head.train()
        for batch in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(batch["tokens"]), batch["label"]).backward()
            optimizer.step()
        head.eval()
        accuracy = (head(tokens).argmax(dim=1) == labels).double().mean().item()
        print(f"epoch {epoch}: {100 * accuracy:.1f} % of {len(labels)} test images")
