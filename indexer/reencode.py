"""Re-encode: a new version of an atlas under another encoder, from the stored token sets alone.

    same universe      new vectors beside the old ones, in the segments that are there
    another universe   new segments: token sets carried over by overlap, or by liftOver; ids and metadata as they were

Older versions keep the old vectors until gc. A killed one goes on where it stopped.
"""

from dataclasses import dataclass
from typing import Any

from chromseek import __version__
from chromseek.data.errors import BadArgument, BadData
from chromseek.data.genes import Genes
from chromseek.data.liftover import Chain, LiftedUniverse
from chromseek.data.universe import Universe
from chromseek.encoder.base import Encoder, fingerprint
from chromseek.indexer.build import check_primary, deleted_ids, digest_of, enter, genes_digest, keep_cache, write_cache
from chromseek.indexer.carrying import Carrier, losses
from chromseek.indexer.content import described_universe, new_collection, upgraded
from chromseek.indexer.fitting import Fitting
from chromseek.indexer.ingest import Ingest
from chromseek.indexer.journal import Ingested, Journal, Part
from chromseek.indexer.manifest import Manifest
from chromseek.indexer.progress import progress
from chromseek.indexer.region_source import RegionSource
from chromseek.indexer.store import Store, Writer
from chromseek.indexer.views import View, write_label_views

WIDTH = 128  # of the vectors of an encoder that is still to be fitted, about
LEAST_CARRIED = 0.01  # of the tokens; with fewer a move is refused


@dataclass(frozen=True)
class Reencoding:
    """What to encode with; its digest names the work folder, so that the same command resumes it."""

    encoder: Encoder | str  # one at hand, or the name of one to fit
    universe: Universe  # that of the encoder
    old: Universe  # that of the atlas
    primary: str  # the view that the atlas had when this was planned
    chain: Chain | None = None  # from the old assembly to the new one
    genes: Genes | None = None  # for the regions of another universe
    dim: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    @property
    def moves(self) -> bool:
        """Whether the encoder has another universe than the atlas."""
        return self.universe.digest != self.old.digest

    def digest(self, version: int | None) -> str:
        """sha256 of every parameter, of the version that it starts from, and of that of this code."""
        encoder = self.encoder if isinstance(self.encoder, str) else fingerprint(self.encoder)
        described = [encoder, self.universe.digest, genes_digest(self.genes), self.dim, self.seed]
        return digest_of([__version__, "reencode", version, described])


def reencode(store: Store, plan: Reencoding) -> Manifest:
    """Make the next version, whose primary view is that of the plan's encoder.

    The same plan goes on where a killed run of it stopped, and does nothing where that was after the commit. Raises
    BadArgument where token sets were not kept, Busy while somebody else writes.
    """
    with store.write("reencode") as writer:
        parent = writer.parent
        assert parent is not None
        content = upgraded(parent.content)
        if parent.operation == "reencode" and content["reencoded"][-1]["plan"] == plan.digest(parent.parent):
            return parent
        check_primary(store.path, content, plan.primary)
        _check_tokens(store, parent, content)
        writer.need(_n_bytes(parent, content, plan))
        lifted = "" if plan.chain is None else LiftedUniverse(plan.universe, plan.chain).digest
        journal = Journal(writer.work_folder(digest_of([plan.digest(parent.version), lifted])[:32]), store.path)
        try:
            files = _written(writer, journal, content, plan)
        except (BadArgument, BadData):
            journal.discard()
            writer.drop_work(journal.work.name)
            raise
        listed = set(parent.entries)
        keep = {path for path in listed if _stays(path, moves=plan.moves)} | (files & listed)
        manifest = writer.commit(content, files=sorted(files - listed), keep=keep)
        (write_cache if plan.moves else keep_cache)(store, manifest)
        writer.drop_work(journal.work.name)
    return manifest


def _written(writer: Writer, journal: Journal, content: dict[str, Any], plan: Reencoding) -> set[str]:
    """Write what the new version needs, bring `content` to it, and return its files, the old ones among them."""
    assert writer.parent is not None
    old = content["collections"]
    deleted = {name: deleted_ids(writer, entry) for name, entry in old.items()}
    (_carry if plan.moves else _take_over)(writer, journal, old, plan)
    fitting = Fitting(journal, plan.universe, plan.dim, plan.seed, plan.device, plan.dtype, deleted)
    view = View(writer, journal, fitting.primary(plan.encoder))
    record = _record(content, plan, writer.parent.version)
    content["collections"] = {name: _restarted(name, entry, moves=plan.moves) for name, entry in old.items()}
    content["encoders"], content["primary"] = {}, view.name
    view.add_to(content["collections"], [*old])
    view.save_encoder(content)
    files = view.files | write_label_views(writer, journal, content, fitting) | journal.paths
    enter(journal, content["collections"])
    if plan.moves:
        counted = {name: entry for name, entry in content["collections"].items() if name != "regions"}
        record["losses"] = {name: losses(entry["sources"]) for name, entry in counted.items()}
    loose = not plan.moves and content["universe"]["path"] == "universe.bed.gz"
    path = "universe.bed.gz" if loose else f"encoders/{view.name}/universe.bed.gz"
    content["universe"] = described_universe(plan.universe, path)
    content["assembly"] = plan.universe.assembly.name
    content["reencoded"].append(record | {"to": content["encoders"][view.name]["name"]})
    content.pop("calibration", None)
    return files


def _take_over(_writer: Writer, journal: Journal, old: dict[str, Any], _plan: Reencoding) -> None:
    """Let the journal have the segments that are there; only what is added to them is the new version's to lose."""
    for name, entry in old.items():
        if name not in journal.collections:
            parts = [Part(segment["folder"], segment["n_rows"], owned=False) for segment in entry["segments"]]
            journal.collections[name] = Ingested(parts=parts, done=True)


def _carry(writer: Writer, journal: Journal, old: dict[str, Any], plan: Reencoding) -> None:
    """Write the segments of cells and BED sets again over the new universe, and its regions in place of the old."""
    with progress("mapping regions", None):
        target = plan.universe if plan.chain is None else LiftedUniverse(plan.universe, plan.chain)
        table = target.token_map(plan.old.regions)
    carrier = Carrier(writer, journal, table)
    for name in ("cells", "beds"):
        if name in old:
            carrier.carry(name, old[name])
    _check_carried([report for name in ("cells", "beds") if name in old for report in journal.of(name).reports], plan)
    reader = Ingest(writer, journal, plan.universe)
    reader.read("regions", [RegionSource(plan.universe, plan.genes)], {"next_id": old["regions"]["next_id"]})


def _check_carried(reports: list[dict[str, Any]], plan: Reencoding) -> None:
    """Refuse a move that would leave next to nothing of an atlas: the regions, or their assembly, are not its own."""
    before, after = (sum(report[name] for report in reports) for name in ("n_old_tokens", "n_carried"))
    if after < LEAST_CARRIED * before:
        raise BadData(
            f"{after:,} of {before:,} tokens found a place among the encoder's {len(plan.universe):,} regions",
            code="REENCODE-LOST",
            got=after,
            fix="give an encoder whose regions overlap the atlas's; were they made for the same assembly?",
        )


def _restarted(name: str, entry: dict[str, Any], *, moves: bool) -> dict[str, Any]:
    """The entry of a collection whose segments are still to be entered."""
    if moves and name == "regions":
        return new_collection() | {"next_id": entry["next_id"]}  # an id is never used again
    fresh = new_collection() | {"next_id": entry["next_id"] - entry["n_rows"], "deletes": entry["deletes"]}
    return fresh if moves else fresh | {"sources": entry["sources"]}


def _record(content: dict[str, Any], plan: Reencoding, version: int) -> dict[str, Any]:
    """What the manifest keeps of a re-encoding, but for its losses."""
    before = content["encoders"][content["primary"]]["name"]
    known = {"from_version": version, "from": before, "plan": plan.digest(version), "moved": plan.moves}
    places = {"from_assembly": content["assembly"], "from_regions": content["universe"]["n_regions"]}
    return known | places | {"losses": {}}


def _stays(path: str, *, moves: bool) -> bool:
    """Whether a file of the version before is one of the new version, whatever its encoder."""
    if moves:
        return path.startswith("deletes/")
    return not path.startswith(("encoders/", "quantisers/")) and "/views/" not in path


def _check_tokens(store: Store, parent: Manifest, content: dict[str, Any]) -> None:
    for name, entry in content["collections"].items():
        if any(f"{segment['folder']}/tokens.parquet" not in parent.entries for segment in entry["segments"]):
            raise BadArgument(
                f"the token sets of the {name} were not kept when the atlas was built",
                code="REENCODE-TOKENS",
                file=str(store.path),
                got=name,
                fix="build it again from the inputs with the new encoder",
            )


def _n_bytes(parent: Manifest, content: dict[str, Any], plan: Reencoding) -> int:
    """What a re-encoding writes, about."""
    dim = (plan.dim or WIDTH) if isinstance(plan.encoder, str) else plan.encoder.dim
    n_rows: int = sum(entry["n_rows"] for entry in content["collections"].values())
    again = sum(entry.size for entry in parent.files if entry.path.endswith(".parquet")) if plan.moves else 0
    return again + n_rows * 3 * dim + len(plan.universe) * 4 * dim
