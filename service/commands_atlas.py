"""Commands about an atlas as such: info, verify, gc, serve; and the demo."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from chromseek.data.errors import BadData, printable
from chromseek.service import options as o
from chromseek.service.output import if_stopped, say, say_json, size_text, tell, warn

INFO_EXAMPLES = """\b
Examples:
  chromseek info blood.atlas
  chromseek info blood.atlas --json | jq .collections.cells.columns
"""
CALIBRATE_EXAMPLES = """\b
Examples:
  chromseek calibrate blood.atlas
"""
VERIFY_EXAMPLES = """\b
Examples:
  chromseek verify blood.atlas
"""
GC_EXAMPLES = """\b
Examples:
  chromseek gc blood.atlas --dry-run
  chromseek gc blood.atlas --keep 1 --grace-hours 0
"""
SERVE_EXAMPLES = """\b
Examples:
  chromseek serve blood.atlas
  curl 'http://127.0.0.1:8000/v1/info'
"""
DEMO_EXAMPLES = """\b
Examples:
  chromseek demo
  chromseek demo --size tiny --folder /tmp/chromseek-demo
"""


def info(atlas: o.AtlasPath, *, json: o.Json = False, version: o.Version = None) -> None:
    """Say what an atlas holds and how good it is."""
    from chromseek.search.atlas import open as open_atlas
    from chromseek.service.summary import info_lines

    with open_atlas(atlas, version=version) as opened:
        found = opened.info()
    warn(found["warnings"])
    if json:
        say_json(found)
        return
    for line in info_lines(found):
        say(line)


def calibrate(atlas: o.AtlasPath) -> None:
    """Measure recall and sanity again."""
    from chromseek.search.atlas import open as open_atlas
    from chromseek.service.summary import info_lines

    with open_atlas(atlas) as opened:
        with if_stopped(lambda: "the atlas is as it was"):
            opened.calibrate()
        found = opened.info()
    warn(found["warnings"])
    for line in info_lines(found):
        say(line)


def verify(atlas: o.AtlasPath, *, json: o.Json = False, version: o.Version = None) -> None:
    """Check every file against its checksum.

    Exit code 65 when one is damaged.
    """
    from chromseek.indexer.check import read_format, unopenable
    from chromseek.indexer.manifest import list_versions, read_manifest
    from chromseek.indexer.store import Store

    root = atlas.absolute()
    read_format(root)
    there = list_versions(root)
    if not there or version not in (None, *there):
        raise unopenable(root, version)
    manifest = read_manifest(root, there[-1] if version is None else version)
    problems = Store(root, manifest).verify()
    damaged = [problem for problem in problems if problem.fatal]
    n_bytes = sum(entry.size for entry in manifest.files)
    if json:
        listed = [{"path": p.path, "what": p.what, "message": str(p), "damage": p.fatal} for p in problems]
        say_json({"version": manifest.version, "files": len(manifest.files), "bytes": n_bytes, "problems": listed})
    else:
        for problem in problems:
            say(f"{printable(problem.path, 200)}: {problem}")
        state = f"{len(damaged)} damaged" if damaged else "all as they were written"
        say(f"version {manifest.version}: {len(manifest.files)} files, {size_text(n_bytes)}, {state}")
    if damaged:
        raise BadData(
            f"{len(damaged)} files are damaged, {printable(damaged[0].path, 200)} first",
            code="ATLAS-DAMAGED",
            file=str(root),
            got=len(damaged),
            fix="restore them from a backup, or build the atlas again",
        )


def gc(
    atlas: o.AtlasPath,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", callback=o.within(1), help="Newest versions to keep.")
    ] = 2,
    grace_hours: Annotated[
        float,
        typer.Option(
            "--grace-hours", metavar="H", callback=o.within(0), help="Keep what was in use within these hours."
        ),
    ] = 24.0,
    json: o.Json = False,
) -> None:
    """Remove old versions, and files that no version needs."""
    from chromseek.indexer.store import Store

    store = Store.open(atlas)
    sizes = {path: size_of(path) for path in store.gc(grace_hours=grace_hours, keep=keep, dry_run=True)}
    with if_stopped(lambda: "what is left over goes with the next gc"):
        gone = list(sizes) if dry_run else store.gc(grace_hours=grace_hours, keep=keep)
    n_bytes = sum(sizes.get(path, 0) for path in gone)
    names = [path.relative_to(store.path).as_posix() for path in gone]
    if json:
        say_json({"dry_run": dry_run, "removed": names, "bytes": n_bytes})
        return
    for name in names:
        say(name)
    tell(f"{len(names):,} files, {size_text(n_bytes)}, {'would be' if dry_run else 'were'} removed")


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder; 0 for what is gone."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())


def serve(
    atlas: o.AtlasPath,
    *,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="A loopback address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", callback=o.within(0, 65_535), help="0: any free one.")
    ] = 8000,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", callback=o.within(1, 256), help="Else one per core.")
    ] = None,
) -> None:
    """Answer over HTTP, on this machine only.

    The API is described at /openapi.json.
    """
    from chromseek.service.app import serve as serve_atlas

    serve_atlas(atlas, host=host, port=port, threads=threads)


def demo(
    *,
    size: Annotated[
        Literal["tiny", "small", "full"],
        typer.Option("--size", metavar="tiny|small|full", help="How much to simulate."),
    ] = "full",
    folder: Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Where to put it.")] = Path(
        "chromseek-demo"
    ),
) -> None:
    """Simulate an atlas, build it, and ask it five questions."""
    from chromseek.service.demo import run

    run(size, folder)
