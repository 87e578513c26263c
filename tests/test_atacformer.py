"""The Atacformer encoder: what its vectors depend on, and what it refuses. Parity is in test_atacformer_parity.py."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chromseek.data.errors import BadArgument, BadData, StorageError
from chromseek.data.genome import assembly
from chromseek.data.regions import Regions
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder import atacformer
from chromseek.encoder.atacformer import N_SPECIALS, Atacformer, Discriminator, Network, Settings
from chromseek.encoder.base import load, save
from chromseek.encoder.contextual import contextual_regions
from chromseek.encoder.hub import is_pickle

N = 400
NOTHING = TokenSets.from_lists([])


@pytest.fixture(scope="module")
def universe() -> Universe:
    starts = np.arange(N, dtype=np.int32) * 1000
    return Universe(Regions(assembly("hg38"), np.zeros(N, np.int16), starts, starts + 500))


def made(universe: Universe, **options: Any) -> Atacformer:
    torch.manual_seed(0)
    settings = Settings(
        len(universe) + N_SPECIALS, 32, 64, 2, 4, options.pop("most", 256), options.pop("use_pos_embeddings", False)
    )
    network = Network(settings)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return Atacformer(universe, network, discriminator=Discriminator(settings), **options)


def sets_of(*sizes: int, seed: int = 0) -> TokenSets:
    rng = np.random.default_rng(seed)
    return TokenSets.from_lists([rng.choice(N, size, replace=False) for size in sizes])


def test_a_set_has_the_same_vector_in_every_batch(universe: Universe) -> None:
    encoder, sets = made(universe), sets_of(30, 1, 0, 200, 29, 7)
    together = encoder.encode(sets, "cell")
    alone = np.concatenate([encoder.encode(sets.slice(row, row + 1), "cell") for row in range(len(sets))])
    assert np.abs(together - alone).max() < 1e-6
    assert np.allclose(np.linalg.norm(together, axis=1), [1, 1, 0, 1, 1, 1], atol=1e-6)


def test_order_matters_only_with_positions(universe: Universe) -> None:
    tokens = np.array([5, 9, 200, 17])
    for positions in (False, True):
        encoder = made(universe, use_pos_embeddings=positions)
        there, back = (encoder.pooled(order, [4]) for order in (tokens, tokens[::-1]))
        assert (np.abs(there - back).max() > 1e-3) == positions


@pytest.mark.parametrize("long_sets", ["sample", "chunk"])
def test_sets_beyond_the_context_are_read_the_same_every_time(universe: Universe, long_sets: Any) -> None:
    encoder, sets = made(universe, context=64, long_sets=long_sets), sets_of(300, 64)
    first = encoder.encode(sets, "cell")
    assert np.array_equal(first, encoder.encode(sets, "cell"))
    assert np.abs(first[1] - made(universe).encode(sets, "cell")[1]).max() < 1e-6  # of 64 tokens none is lost
    assert np.abs(first[0] - made(universe).encode(sets, "cell")[0]).max() > 1e-4


def test_chunks_read_every_token(universe: Universe) -> None:
    encoder, sets = made(universe, context=64, long_sets="chunk"), sets_of(300)
    rest = sets.tokens[:-1]
    assert not np.array_equal(encoder.encode(sets, "cell"), encoder.encode(TokenSets.from_lists([rest]), "cell"))
    assert encoder.context == 64


def test_another_way_of_reading(universe: Universe) -> None:
    encoder, sets = made(universe), sets_of(300)
    shorter = encoder.reading(context=64, long_sets="chunk")
    assert (shorter.context, shorter.long_sets, encoder.context) == (64, "chunk", 256)
    assert np.array_equal(
        shorter.encode(sets, "cell"), made(universe, context=64, long_sets="chunk").encode(sets, "cell")
    )
    assert encoder.reading(context=10_000).context == 256
    for context in (0, -1):
        with pytest.raises(BadArgument):
            encoder.reading(context=context)


def test_bfloat16_is_near_float32(universe: Universe) -> None:
    sets = sets_of(30, 7, 100)
    full, half = (made(universe).on("cpu", dtype).encode(sets, "cell") for dtype in ("float32", "bfloat16"))
    assert (full * half).sum(axis=1).min() > 0.999
    assert np.abs(full - half).max() > 0


def test_out_of_memory_halves_the_batch_and_says_so_once(
    universe: Universe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(atacformer, "TOKEN_BUDGET", 320)
    encoder, sets = made(universe), sets_of(*[40] * 96)
    expected, embed, failed = encoder.encode(sets, "cell"), atacformer.Embeddings.forward, []

    def short(self: Any, tokens: torch.Tensor, sizes: Any) -> torch.Tensor:
        if len(tokens) > 200:
            failed.append(len(tokens))
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return embed(self, tokens, sizes)

    monkeypatch.setattr(atacformer.Embeddings, "forward", short)
    with caplog.at_level(logging.WARNING):
        assert np.abs(encoder.encode(sets, "cell") - expected).max() < 1e-6
    assert len(caplog.records) == 1
    assert "out of memory" in caplog.text
    assert failed == [320]  # the eleven batches that waited were made smaller with it
    assert encoder._budget == 160
    with pytest.raises(StorageError, match="one set"):  # that is too large by itself
        encoder.encode(sets_of(300), "cell")


def test_devices_and_precisions_that_are_not_there(universe: Universe) -> None:
    encoder = made(universe)
    for device, dtype in (("tpu", "float32"), ("cuda:99", "float32"), ("cpu", "float8"), ("cuda:", "auto")):
        with pytest.raises(BadArgument) as caught:
            encoder.on(device, dtype)
        assert caught.value.exit_code == 64
        assert caught.value.fix


def test_saved_and_loaded(universe: Universe, tmp_path: Path) -> None:
    encoder, sets = made(universe, context=100, long_sets="chunk"), sets_of(30, 300)
    head = torch.nn.Linear(32, 2)
    named = Atacformer(universe, encoder.network, head=head, classes=["B", "T"], context=100)
    for number, one in enumerate((encoder, named, encoder.placed(sets_of(*[20] * 40), NOTHING, regions="contextual"))):
        save(one, tmp_path / str(number))
        again = load(tmp_path / str(number))
        assert isinstance(again, Atacformer)
        assert np.array_equal(again.encode(sets, "cell"), one.encode(sets, "cell"))
        assert np.array_equal(again.encode(sets_of(1, 1), "region"), one.encode(sets_of(1, 1), "region"))
        assert (again.context, again.long_sets, again.classes) == (one.context, one.long_sets, one.classes)
        if one.head is not None:
            assert np.array_equal(again.logits(sets), one.logits(sets))


def test_weights_that_do_not_fit(universe: Universe, tmp_path: Path) -> None:
    encoder = made(universe)
    arrays, config = encoder.arrays(), encoder.config()
    key = "atacformer.encoder.layers.1.linear2.weight"
    for changed in ({k: v for k, v in arrays.items() if k != key}, arrays | {key: arrays[key][:, :-1]}):
        with pytest.raises(BadData):
            Atacformer.from_parts(config, changed, universe)
    with pytest.raises(BadData, match="399 regions, the weights 400"):
        Atacformer.from_parts(config, arrays, Universe(universe.regions.take(slice(1, None))))
    with pytest.raises(BadData, match="no head"):
        encoder.logits(sets_of(3))
    for changed in ({"vocab_size": "x"}, {"hidden_size": -4}, {"num_attention_heads": 7}, {"classes": 5}):
        with pytest.raises(BadData):
            Atacformer.from_parts(config | changed, arrays, universe)
    with pytest.raises(BadArgument):
        Atacformer.from_parts(config | {"context": "x"}, arrays, universe)
    with pytest.raises(BadArgument, match="dim 50"):
        Atacformer.fit(sets_of(5, 5, 5), NOTHING, universe, dim=50, size="tiny")
    save(encoder, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"num_hidden_layers": 3}))
    with pytest.raises(BadData):
        load(tmp_path)


def test_placing_gives_another_encoder(universe: Universe) -> None:
    encoder, cells = made(universe), sets_of(*[30] * 50)
    before = encoder.encode(cells, "cell")
    placed = encoder.placed(cells, NOTHING)
    assert placed.placed(sets_of(*[5] * 50), NOTHING) is placed
    assert np.array_equal(encoder.encode(cells, "cell"), before)
    assert np.abs(placed.encode(cells, "cell").mean(axis=0)).max() < 0.5 * np.abs(before.mean(axis=0)).max()


def test_contextual_regions_are_means_over_the_cells_that_have_them(universe: Universe) -> None:
    encoder, cells = made(universe), sets_of(60, 50, 40)
    table = contextual_regions(encoder, cells)
    per_token = encoder.contextual(cells.tokens, cells.sizes.tolist()).numpy()
    token = int(np.bincount(cells.tokens, minlength=N).argmax())
    assert np.abs(per_token[cells.tokens == token].mean(axis=0) - table[token]).max() < 5e-3
    assert np.isfinite(table).all()  # regions of no cell as well
    assert table.any(axis=1).all()


def test_no_header_of_safetensors_is_a_pickle(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    seen = set()
    for length in range(1, 2000):
        save_file({"w" * length: np.zeros(1, np.float32)}, tmp_path / "w")
        head = (tmp_path / "w").read_bytes()[:16]
        seen |= {head[:2]}
        assert not is_pickle(head)
    assert b"\x80\x04" in seen  # as a pickle begins
    assert is_pickle(pickle.dumps({"w": 1})) or pickle.DEFAULT_PROTOCOL > 5
