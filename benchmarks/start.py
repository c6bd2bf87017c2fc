"""Commands as whole processes against what they cannot do without: a bare Hydra app, and the imports.

`--help` and `--cfg job` have a peer that composes the same configs, by the schema of their root, and does nothing else;
`experiment=digits`, a whole training with its reports, has `import torch, lightning.pytorch`. They take turns
(A B A B …); printed are the medians, and the median and the least of the ratios of each turn.

    python benchmarks/start.py --turns 5
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"
BARE_APP = f"""
import sys
import hydra

sys.path.insert(0, {str(SOURCE)!r})
from imago.config.resolvers import register
from imago.config.root import CONFIG_DIR

register()

@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def main(cfg):
    pass

main()
"""


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    ours = [sys.executable, str(SOURCE / "train.py")]
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE_APP)
        imports = [sys.executable, "-c", "import torch, lightning.pytorch"]
        digits = [*ours, "experiment=digits", f"paths.log_dir={folder}"]
        for what, own, peer in (
            ("--help", [*ours, "--help"], [sys.executable, str(bare), "--help"]),
            ("--cfg job", [*ours, "--cfg", "job"], [sys.executable, str(bare), "--cfg", "job"]),
            ("experiment=digits", digits, imports),
        ):
            seconds(own)
            pairs = [(seconds(own), seconds(peer)) for _ in range(turns)]
            medians = [statistics.median(each) for each in zip(*pairs, strict=True)]
            ratios = [a / b for a, b in pairs]
            print(
                f"{what}: ours {medians[0]:.2f} s, peer {medians[1]:.2f} s, "
                f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}), n={turns}",
                flush=True,
            )


if __name__ == "__main__":
    main()
