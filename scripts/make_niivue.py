"""Unpack the bundled NiiVue from its npm package; nothing is run, nothing else is taken.

    npm install --ignore-scripts --no-save @niivue/niivue@0.69.0
    npm pack @niivue/niivue@0.44.2
    python scripts/make_niivue.py node_modules niivue-niivue-0.44.2.tgz --output src/thorad/assets/niivue

The second package is there for its licence: the text that 0.69.0 names (BSD-2-Clause) and leaves out. Writes
niivue.umd.js.gz (dist/niivue.umd.js, packed, unchanged), LICENSE-niivue.txt, LICENSES-bundled.txt (of the packages
inside that file) and provenance.json. Refuses a script that could end a page's <script> early, or that loads code.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import tarfile
from pathlib import Path

SCRIPT = "dist/niivue.umd.js"
BUNDLED = "dist/metafile-esm.json"
FORBIDDEN = ("</script", "<!--", "import(", "importScripts(", "new Worker(", "eval(", "new Function(", "sendBeacon(")
"""Of these `</script` and `<!--` would break the page, the others would load or make code, or call home."""


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def bundled_packages(metafile: bytes) -> list[str]:
    """Names of the npm packages whose code is in the script, as the bundler wrote them down."""
    outputs = json.loads(metafile)["outputs"].values()
    inside = {name for output in outputs for name in output["inputs"]}
    found = (re.search(r"node_modules/((?:@[^/]+/)?[^/]+)/", name) for name in inside)
    return sorted({match[1] for match in found if match})


def licence_of(package: Path) -> str:
    """The package's own licence text."""
    texts = [file for file in sorted(package.iterdir()) if file.name.lower().startswith("license")]
    if len(texts) != 1:
        raise SystemExit(f"{package}: {len(texts)} licence files, expected one")
    return texts[0].read_text(encoding="utf-8").strip()


def main() -> None:
    """Read, check, pack, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", type=Path, help="npm's folder node_modules")
    parser.add_argument("licence", type=Path, help="package (.tgz) of the same project that has the licence's text")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    package = arguments.modules / "@niivue" / "niivue"
    about = json.loads((package / "package.json").read_bytes())
    script = (package / SCRIPT).read_bytes()
    held = [text for text in FORBIDDEN if text in script.decode()]
    if held:
        raise SystemExit(f"{SCRIPT} holds {held}: it can't stand in a page as it is")

    with tarfile.open(arguments.licence) as archive:
        other = json.loads(archive.extractfile("package/package.json").read())  # type: ignore[union-attr]
        licence = archive.extractfile("package/LICENSE").read()  # type: ignore[union-attr]
    if (other["name"], other["license"]) != (about["name"], about["license"]):
        raise SystemExit(
            f"{arguments.licence}: {other['name']} under {other['license']}, not {about['name']}'s licence"
        )

    bundled = []
    texts = []
    for name in bundled_packages((package / BUNDLED).read_bytes()):
        of = json.loads((arguments.modules / name / "package.json").read_bytes())
        bundled.append({"package": name, "version": of["version"], "licence": of["license"]})
        texts.append(f"{name} {of['version']} ({of['license']})\n\n{licence_of(arguments.modules / name)}\n")

    arguments.output.mkdir(parents=True, exist_ok=True)
    asset = arguments.output / "niivue.umd.js.gz"
    asset.write_bytes(gzip.compress(script, mtime=0))
    (arguments.output / "LICENSE-niivue.txt").write_bytes(licence)
    separator = "\n" + "-" * 100 + "\n\n"
    (arguments.output / "LICENSES-bundled.txt").write_text(separator.join(texts), encoding="utf-8")
    provenance = {
        "asset": {"file": asset.name, "sha256": sha256(asset.read_bytes()), "bytes": asset.stat().st_size},
        "made_by": "scripts/make_niivue.py",
        "sources": [
            {
                "package": about["name"],
                "version": about["version"],
                "licence": about["license"],
                "file": SCRIPT,
                "file_sha256": sha256(script),
                "bytes": len(script),
            }
        ],
        "licence_text_from": {"package": other["name"], "version": other["version"]},
        "bundled": bundled,
    }
    (arguments.output / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(provenance, indent=2))


if __name__ == "__main__":
    main()
