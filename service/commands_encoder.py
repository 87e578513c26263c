"""Commands that train encoders: `chromseek encoder pretrain`, `finetune` and `label`."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from chromseek.data.errors import BadArgument, printable
from chromseek.service import options as o
from chromseek.service.output import if_stopped, tell

if TYPE_CHECKING:
    from chromseek.data.sources import ReadOptions
    from chromseek.encoder.atacformer import Atacformer
    from chromseek.encoder.training import Run

PRETRAIN_EXAMPLES = """\b
Examples:
  chromseek encoder pretrain blood.atlas --output mine/
  chromseek encoder pretrain cells.h5ad more.h5ad --universe ccres.bed --size small \\
      --epochs 10 --label cell_type --output mine/
  torchrun --nproc-per-node 8 -m chromseek.service.cli encoder pretrain tokens.parquet \\
      --universe universe.bed.gz --size base --output mine/

\b
A run that was stopped goes on when --resume is added to the same command.
"""
FINETUNE_EXAMPLES = """\b
Examples:
  chromseek encoder finetune contrastive mine/ cells.h5ad --label cell_type --output typed/
  chromseek encoder finetune triplet org/name cells.h5ad --label cell_type --output typed/
  chromseek encoder finetune batch mine/ blood.atlas --label library --output corrected/
  chromseek encoder finetune bed mine/ peaks/ --output bulk/
"""
LABEL_EXAMPLES = """\b
Examples:
  chromseek encoder label cells.h5ad --label cell_type --output typed/
  chromseek encoder label blood.atlas --label cell_type --kind bag --output typed/
"""
TRAINING = "training"  # the folder of the log and the checkpoint, in that of the encoder

encoder_app = typer.Typer(name="encoder", help="Train, fine-tune, score and describe encoders.", rich_markup_mode=None)

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="h5ad, fragments, a folder of BED files, Parquet with input_ids, a corpus or an atlas.",
        show_default=False,
    ),
]
EncoderName = Annotated[str, typer.Argument(metavar="ENCODER", help="A folder, or org/name on the hub.")]
Assembly = Annotated[
    str | None, typer.Option("--assembly", metavar="NAME", help="hg19, hg38 or mm10; else told by the regions.")
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the encoder goes: a new folder.")]
Epochs = Annotated[int, typer.Option("--epochs", metavar="N", callback=o.within(1), help="Times through the data.")]
Steps = Annotated[
    int | None, typer.Option("--steps", metavar="N", callback=o.within(1), help="End after so many steps instead.")
]
BatchTokens = Annotated[
    int, typer.Option("--batch-tokens", metavar="N", callback=o.within(1), help="Tokens of one batch, at most.")
]
Accumulate = Annotated[
    int, typer.Option("--accumulate", metavar="N", callback=o.within(1), help="Batches of one step, in each process.")
]
Rate = Annotated[
    float | None, typer.Option("--lr", metavar="X", callback=o.within(0), help="The highest learning rate.")
]
Schedule = Annotated[
    Literal["cosine", "restarts", "linear", "constant"],
    typer.Option("--schedule", metavar="cosine|restarts|linear|constant", help="Of the learning rate."),
]
Checkpoints = Annotated[
    int, typer.Option("--checkpoint-every", metavar="N", callback=o.within(1), help="Steps between checkpoints.")
]
Checks = Annotated[
    int, typer.Option("--check-every", metavar="N", callback=o.within(0), help="Steps between checks; 0: at the end.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of a run that was stopped.")]


def pretrain(
    inputs: Inputs,
    *,
    output: Output,
    universe: Annotated[
        Path | None, typer.Option("--universe", metavar="BED", help="The regions, in token order; else the input's.")
    ] = None,
    assembly: Assembly = None,
    size: Annotated[
        Literal["tiny", "small", "base"], typer.Option("--size", metavar="tiny|small|base", help="Of the network.")
    ] = "small",
    context: Annotated[
        int,
        typer.Option("--context", metavar="N", callback=o.within(1, 1 << 20), help="Tokens of a set read together."),
    ] = 8192,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="Told from the vectors in checks; never learnt.")
    ] = None,
    epochs: Epochs = 25,
    steps: Steps = None,
    batch_tokens: BatchTokens = 32_768,
    accumulate: Accumulate = 1,
    lr: Rate = None,
    schedule: Schedule = "cosine",
    checkpoint_every: Checkpoints = 500,
    check_every: Checks = 500,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    resume: Resume = False,
    rename_chroms: o.RenameChroms = None,
    layer: o.Layer = None,
    min_fragments: o.MinFragments = 0,
) -> None:
    """Train an Atacformer on token sets, from nothing.

    Under torchrun every process trains on its own GPU.
    """
    from chromseek.encoder.atacformer import N_SPECIALS, SIZES, Settings
    from chromseek.encoder.pretrain import LR, pretrained
    from chromseek.service.training_inputs import read_inputs, universe_file

    read = read_options(rename_chroms, layer, min_fragments)
    run = _run(
        output, epochs, steps, batch_tokens, accumulate, LR[size] if lr is None else lr, schedule, checkpoint_every,
        check_every, seed, device, dtype,
    )  # fmt: skip
    with _new_encoder(output, resume) as (work, finish):
        given = None if universe is None else universe_file(universe, read, assembly)
        corpus = read_inputs(inputs, given, work, read, assembly)
        settings = Settings(len(corpus.universe) + N_SPECIALS, max_position_embeddings=context, **SIZES[size])
        codes = None if label is None else corpus.labels(label)[0]
        finish(pretrained(corpus.all, corpus.universe, settings, run=run, codes=codes, resume=resume))


def finetune(
    kind: Annotated[
        Literal["triplet", "contrastive", "batch", "bed"],
        typer.Argument(metavar="triplet|contrastive|batch|bed", help="What is learnt.", show_default=False),
    ],
    encoder: EncoderName,
    inputs: Inputs,
    *,
    output: Output,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="COLUMN", help="Labels to learn; for batch, the batches to forget."),
    ] = None,
    unfrozen: Annotated[
        int, typer.Option("--unfrozen", metavar="N", callback=o.within(0), help="batch: last layers trained; 0: all.")
    ] = 2,
    weight: Annotated[
        float, typer.Option("--weight", metavar="X", callback=o.within(0), help="batch: weight of the adversary.")
    ] = 1.0,
    keep_least: Annotated[
        float, typer.Option("--keep-least", metavar="X", callback=o.within(0, 1), help="Share of tokens always kept.")
    ] = 0.3,
    balance: Annotated[
        float,
        typer.Option("--balance", metavar="X", callback=o.within(0, 1), help="1: rare labels as often as common ones."),
    ] = 0.5,
    contrast: Annotated[
        float, typer.Option("--contrast", metavar="X", callback=o.within(0), help="contrastive: weight of contrast.")
    ] = 1.0,
    head: Annotated[
        float, typer.Option("--head", metavar="X", callback=o.within(0), help="contrastive: weight of a linear head.")
    ] = 1.0,
    epochs: Epochs = 10,
    steps: Steps = None,
    batch_tokens: BatchTokens = 32_768,
    accumulate: Accumulate = 1,
    lr: Rate = None,
    schedule: Schedule = "cosine",
    checkpoint_every: Checkpoints = 500,
    check_every: Checks = 500,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    resume: Resume = False,
    rename_chroms: o.RenameChroms = None,
    layer: o.Layer = None,
    min_fragments: o.MinFragments = 0,
) -> None:
    """Train an Atacformer on: labels, batches, or BED sets.

    The encoder that it starts from stays as it is.
    """
    from chromseek.encoder.finetune import Aim, Draw, batch_corrected, contrastive, triplet
    from chromseek.encoder.pretrain import pretrained
    from chromseek.service.training_inputs import read_inputs

    if label is None and kind != "bed":
        raise BadArgument(f"{kind} needs labels", code="LABEL-COLUMN", fix="name their column: --label cell_type")
    read = read_options(rename_chroms, layer, min_fragments)
    run = _run(
        output, epochs, steps, batch_tokens, accumulate, 3e-4 if lr is None else lr, schedule, checkpoint_every,
        check_every, seed, device, dtype,
    )  # fmt: skip
    start = _atacformer(encoder)
    with _new_encoder(output, resume) as (work, finish):
        corpus = read_inputs(inputs, start.universe, work, read)
        codes = None if label is None else corpus.labels(label)[0]
        sets, draw = corpus.all, Draw(keep_least=keep_least, balance=balance)
        if codes is None or kind == "bed":
            settings = start.network.settings
            finish(pretrained(sets, start.universe, settings, run=run, codes=codes, start=start, resume=resume))
        elif kind == "batch":
            finish(batch_corrected(start, sets, codes, run=run, unfrozen=unfrozen, weight=weight, resume=resume))
        elif kind == "triplet":
            finish(triplet(start, sets, codes, run=run, draw=draw, resume=resume))
        else:
            aim = Aim(contrast=contrast, head=head)
            draw = replace(draw, views=2 if contrast else 1)
            finish(contrastive(start, sets, codes, run=run, draw=draw, aim=aim, resume=resume))


def label(
    inputs: Inputs,
    *,
    output: Output,
    label: Annotated[str, typer.Option("--label", metavar="COLUMN", help="What is learnt.")],
    kind: Annotated[
        Literal["atacformer", "bag"],
        typer.Option("--kind", metavar="atacformer|bag", help="A transformer that starts as a bag, or the bag."),
    ] = "atacformer",
    universe: Annotated[
        Path | None, typer.Option("--universe", metavar="BED", help="The regions, in token order; else the input's.")
    ] = None,
    assembly: Assembly = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    rename_chroms: o.RenameChroms = None,
    layer: o.Layer = None,
    min_fragments: o.MinFragments = 0,
) -> None:
    """Teach a new encoder a metadata column, without any pretraining.

    Sets that have the same label come to lie together, and a head that names labels is kept.
    """
    from chromseek.encoder.bag import Bag
    from chromseek.encoder.base import save
    from chromseek.encoder.corpus import check_new
    from chromseek.encoder.devices import device_named
    from chromseek.encoder.labelling import labelled
    from chromseek.service.training_inputs import read_inputs, universe_file

    device_named(device)
    check_new(output)
    read = read_options(rename_chroms, layer, min_fragments)
    with tempfile.TemporaryDirectory(prefix="chromseek-") as work:
        given = None if universe is None else universe_file(universe, read, assembly)
        corpus = read_inputs(inputs, given, Path(work), read, assembly)
        codes, names = corpus.labels(label)
        learn = Bag.fit_labelled if kind == "bag" else labelled
        made = learn(corpus.all, codes, names, corpus.universe, seed=seed, device=device)
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        save(made, draft)
        draft.replace(output)  # whole, or not at all
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    tell(f"the encoder is in {printable(output, 200)}")


def read_options(rename_chroms: str | None, layer: str | None, min_fragments: int) -> "ReadOptions":
    from chromseek.data.sources import ReadOptions

    return ReadOptions(rename_chroms=rename_chroms, layer=layer, min_fragments=min_fragments)


def _run(
    output: Path, epochs: int, steps: int | None, batch_tokens: int, accumulate: int, lr: float, schedule: Any,
    checkpoint_every: int, check_every: int, seed: int, device: str, dtype: str,
) -> "Run":  # fmt: skip
    """The run of a command. Raises BadArgument for a device or precision that is not there."""
    from chromseek.encoder.devices import device_named, dtype_named
    from chromseek.encoder.training import Optimiser, Run

    dtype_named(dtype, device_named(device))
    return Run(
        output / TRAINING, epochs, steps, batch_tokens, accumulate, Optimiser(lr=lr, schedule=schedule), dtype, device,
        seed, checkpoint_every=checkpoint_every, check_every=check_every,
    )  # fmt: skip


def _atacformer(name: str) -> "Atacformer":
    from chromseek.encoder.atacformer import Atacformer
    from chromseek.encoder.base import load

    loaded = load(name, device="cpu", dtype="float32")
    if not isinstance(loaded, Atacformer):
        fix = "give an Atacformer; build fits the other encoders"
        raise BadArgument(f"{loaded.name} cannot be trained on", code="ENCODER-KIND", got=loaded.name, fix=fix)
    return loaded


@contextmanager
def _new_encoder(output: Path, resume: bool) -> Iterator[tuple[Path, Callable[["Atacformer"], None]]]:
    """The work folder of a run, and what takes its encoder; nothing is left of a run that did not get to a checkpoint.

    Raises StorageError (73) where `output` holds anything, NotFound where there is nothing to resume.
    """
    from chromseek.encoder.corpus import check_new
    from chromseek.encoder.training import is_first
    from chromseek.encoder.training_files import CHECKPOINT, checkpoint_of
    from chromseek.service.training_inputs import CORPUS

    work = output / TRAINING
    if not is_first():
        yield work, lambda _encoder: None
        return
    if resume:
        checkpoint_of(work)
    else:
        check_new(output)
        work.mkdir(parents=True)
    try:
        with if_stopped(lambda: "with --resume the same command goes on from the last checkpoint, if there is one"):
            yield work, lambda encoder: _place(encoder, output)
    finally:
        shutil.rmtree(work / CORPUS, ignore_errors=True)
        if not (work / CHECKPOINT).exists() and not (output / "config.json").exists():
            shutil.rmtree(work, ignore_errors=True)
            if output.is_dir() and not any(output.iterdir()):
                output.rmdir()


def _place(encoder: "Atacformer", output: Path) -> None:
    """Put a finished encoder into its folder, its config last; the log stays, the checkpoint goes."""
    from chromseek.encoder.base import save
    from chromseek.encoder.training_files import CHECKPOINT

    draft = output / TRAINING / "encoder"
    shutil.rmtree(draft, ignore_errors=True)
    for file in reversed(save(encoder, draft)):
        file.replace(output / file.name)
    draft.rmdir()
    (output / TRAINING / CHECKPOINT).unlink()
    tell(f"the encoder is in {printable(output, 200)}")


encoder_app.command(epilog=PRETRAIN_EXAMPLES)(pretrain)
encoder_app.command(epilog=FINETUNE_EXAMPLES)(finetune)
encoder_app.command(epilog=LABEL_EXAMPLES)(label)
