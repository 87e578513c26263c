"""The methods of the quality benchmark: each takes a split and names the label of every test set.

A method is an encoder, which learns from the train sets, and a reading of its vectors. To add one, write a function of
a split and put it into METHODS. CPU seconds are those of all that is learnt, whatever the number of cores.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from quality_data import Codes, Split
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from chromseek.encoder.atacformer import N_SPECIALS, SIZES, Atacformer, Settings
from chromseek.encoder.bag import Bag
from chromseek.encoder.base import Encoder, unit
from chromseek.encoder.finetune import contrastive
from chromseek.encoder.labelling import labelled
from chromseek.encoder.lsi import LSI
from chromseek.encoder.pretrain import pretrained
from chromseek.encoder.training import Optimiser, Run
from chromseek.search.transfer import kernel_weights, vote

SEED = 0
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What a method says."""

    codes: Codes  # (test)
    cpu: float  # seconds, to learn


@dataclass(frozen=True)
class Learnt:
    """An encoder that has learnt from the train sets of a split."""

    encoder: Encoder
    cpu: float  # seconds


Method = Callable[[Split], Answer]
Learn = Callable[[Split], Learnt]


def majority(split: Split) -> Answer:
    """The commonest label."""
    return Answer(np.full(len(split.test), np.bincount(split.train_codes).argmax()), 0.0)


def nearest(known: Vectors, codes: Codes, asked: Vectors, k: int, n_labels: int) -> Codes:
    """Let the k nearest by cosine vote, (asked)."""
    return voted(asked @ known.T, codes, k, n_labels)


def voted(scores: Vectors, codes: Codes, k: int, n_labels: int) -> Codes:
    """Let the k known of the highest scores (asked, known) vote as an atlas does, (asked)."""
    k = min(k, scores.shape[1])
    rows = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, rows, axis=1), axis=1, kind="stable")
    rows = np.take_along_axis(rows, order, axis=1)
    distances = 1 - np.take_along_axis(scores, rows, axis=1)
    return vote(codes[rows], kernel_weights(distances, np.ones_like(distances, bool)), n_labels)[0]


def by_neighbours(learn: Learn, place: int) -> Method:
    """Nearest neighbours in the vectors of an encoder; `place` chooses the usual or the wide number of them."""

    def method(split: Split) -> Answer:
        learnt = learn(split)
        known, asked = (learnt.encoder.encode(sets, split.kind) for sets in (split.train, split.test))
        return Answer(nearest(known, split.train_codes, asked, split.k[place], len(split.labels)), learnt.cpu)

    return method


def by_regression(learn: Learn, class_weight: str | None) -> Method:
    """Logistic regression on the standardised vectors of an encoder."""

    def method(split: Split) -> Answer:
        learnt = learn(split)
        known, asked = (learnt.encoder.encode(sets, split.kind) for sets in (split.train, split.test))
        begun = time.process_time()
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight=class_weight))
        head.fit(known, split.train_codes)
        return Answer(head.predict(asked), learnt.cpu + time.process_time() - begun)

    return method


def by_harmony(learn: Learn) -> Method:
    """Nearest neighbours after Harmony has corrected train and test vectors together: it is transductive.

    Batches are what Harmony is told; it sees the test sets, not their labels.
    """

    def method(split: Split) -> Answer:
        import harmonypy

        assert split.train_batches is not None
        assert split.test_batches is not None
        learnt = learn(split)
        vectors = np.concatenate([learnt.encoder.encode(sets, split.kind) for sets in (split.train, split.test)])
        batches = pd.DataFrame({"batch": np.concatenate([split.train_batches, split.test_batches]).astype(str)})
        begun = time.process_time()
        mixed = np.asarray(harmonypy.run_harmony(vectors, batches, "batch", verbose=False, random_state=SEED).Z_corr)
        cpu = learnt.cpu + time.process_time() - begun
        mixed = unit((mixed if len(mixed) == len(vectors) else mixed.T).astype(np.float32))
        known, asked = mixed[: len(split.train)], mixed[len(split.train) :]
        return Answer(nearest(known, split.train_codes, asked, split.k[0], len(split.labels)), cpu)

    return method


def tokens_neighbours(place: int) -> Method:
    """Nearest neighbours by the cosine of the TF-IDF of the tokens themselves: no encoder at all."""

    def method(split: Split) -> Answer:
        known, asked, cpu = _tf_idf(split)
        scores = (asked @ known.T).toarray().astype(np.float32)
        return Answer(voted(scores, split.train_codes, split.k[place], len(split.labels)), cpu)

    return method


def tokens_regression(split: Split) -> Answer:
    """Logistic regression on the TF-IDF of the tokens themselves."""
    known, asked, cpu = _tf_idf(split)
    begun = time.process_time()
    head = LogisticRegression(C=100, max_iter=500).fit(known, split.train_codes)
    return Answer(head.predict(asked), cpu + time.process_time() - begun)


def _tf_idf(split: Split) -> tuple[sparse.csr_matrix, sparse.csr_matrix, float]:
    """The train and the test sets, rows of length 1, and CPU seconds."""
    begun = time.process_time()
    known, asked = (sets.to_csr(len(split.universe)) for sets in (split.train, split.test))
    weights = TfidfTransformer().fit(known)
    return weights.transform(known), weights.transform(asked), time.process_time() - begun


def kept(fit: Callable[[Split], Encoder], *, labelled: bool) -> Learn:
    """Learn once for all readings of a fold; without labels, once for all labels of its sets."""
    last: dict[tuple[object, ...], Learnt] = {}

    def learn(split: Split) -> Learnt:
        key = (split.source, split.fold, split.labels if labelled else None)
        if key not in last:
            last.clear()  # one at a time is enough: the methods of a fold run one after the other
            last[key] = timed(lambda: fit(split))
        return last[key]

    return learn


def timed(fit: Callable[[], Encoder]) -> Learnt:
    """Learn, and say for how long."""
    begun = time.process_time()
    encoder = fit()
    return Learnt(encoder, time.process_time() - begun)


def _lsi(split: Split) -> Encoder:
    return LSI.fit(*split.as_kinds(), split.universe, dim=64, seed=SEED)


def _bag_self(split: Split) -> Encoder:
    return Bag.fit(*split.as_kinds(), split.universe, seed=SEED)


def _bag(split: Split) -> Encoder:
    beds = split.as_kinds()[1]
    return Bag.fit_labelled(split.train, split.train_codes, split.labels, split.universe, beds=beds, seed=SEED)


def _pretrained(split: Split) -> Encoder:
    settings = Settings(len(split.universe) + N_SPECIALS, **SIZES[SIZE])
    encoder = pretrained(split.train, split.universe, settings, run=PRETRAIN, seed=SEED)
    return encoder.on(DEVICE, "auto").placed(*split.as_kinds(), seed=SEED)


def _tuned(split: Split) -> Encoder:
    start = atacformer(split).encoder
    assert isinstance(start, Atacformer)
    encoder = contrastive(start, split.train, split.train_codes, run=TUNE)
    return encoder.on(DEVICE, "auto").placed(*split.as_kinds(), seed=SEED)


def tuned(split: Split) -> Learnt:
    """Pretrained, then fine-tuned on the labels; the seconds are those of both."""
    start, learnt = atacformer(split), tuned_alone(split)
    return Learnt(learnt.encoder, start.cpu + learnt.cpu)


def _labelled(split: Split) -> Encoder:
    encoder = labelled(split.train, split.train_codes, split.labels, split.universe, seed=SEED, device=DEVICE)
    return encoder.on(DEVICE, "auto").placed(*split.as_kinds(), seed=SEED)


def atacformer_head(split: Split) -> Answer:
    """The head of a transformer that started as a bag and learnt the labels."""
    learnt = from_labels(split)
    assert isinstance(learnt.encoder, Atacformer)
    return Answer(learnt.encoder.logits(split.test).argmax(axis=1), learnt.cpu)


def bag_head(split: Split) -> Answer:
    """The head that taught the bag."""
    learnt = bag(split)
    assert isinstance(learnt.encoder, Bag)
    return Answer(learnt.encoder.logits(split.test).argmax(axis=1), learnt.cpu)


SIZE = "small"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRETRAIN = Run(optimiser=Optimiser(lr=1e-3), device=DEVICE, dtype="auto", seed=SEED)
TUNE = Run(epochs=10, optimiser=Optimiser(lr=3e-4), device=DEVICE, dtype="auto", seed=SEED)
lsi = kept(_lsi, labelled=False)
bag_self = kept(_bag_self, labelled=False)
bag = kept(_bag, labelled=True)
atacformer = kept(_pretrained, labelled=False)
tuned_alone = kept(_tuned, labelled=True)
from_labels = kept(_labelled, labelled=True)

LEARNERS: dict[str, Learn] = {
    "lsi": lsi,
    "bag-self": bag_self,
    "bag": bag,
    "atacformer": atacformer,
    "atacformer-tuned": tuned,
    "atacformer-label": from_labels,
}
METHODS: dict[str, Method] = {
    "majority": majority,
    "tokens-knn": tokens_neighbours(0),
    "tokens-knn-wide": tokens_neighbours(1),
    "tokens-lr": tokens_regression,
    "lsi-knn": by_neighbours(lsi, 0),
    "lsi-knn-wide": by_neighbours(lsi, 1),
    "lsi-lr": by_regression(lsi, None),
    "lsi-lr-balanced": by_regression(lsi, "balanced"),
    "lsi-harmony": by_harmony(lsi),
    "bag-self-knn": by_neighbours(bag_self, 0),
    "bag-self-lr": by_regression(bag_self, None),
    "bag-knn": by_neighbours(bag, 0),
    "bag-knn-wide": by_neighbours(bag, 1),
    "bag-head": bag_head,
    "atacformer-knn": by_neighbours(atacformer, 0),
    "atacformer-lr": by_regression(atacformer, None),
    "atacformer-tuned-knn": by_neighbours(tuned, 0),
    "atacformer-tuned-knn-wide": by_neighbours(tuned, 1),
    "atacformer-tuned-lr": by_regression(tuned, None),
    "atacformer-label-knn": by_neighbours(from_labels, 0),
    "atacformer-label-head": atacformer_head,
}
NEEDS_BATCHES = {"lsi-harmony"}
