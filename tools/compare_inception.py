"""Compare the Inception network of FID with torch-fidelity's, on seeded weights in the public file's format.

Usage: pip install --no-deps --target /tmp/fidelity torch-fidelity
       PYTHONPATH=src:tests/support:/tmp/fidelity python tools/compare_inception.py

torch-fidelity imports torchvision for other features than these, so it is replaced by a mock. Prints the largest
difference of features and of logits, for pictures of several sizes.
"""

import sys
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import torch

from metric_files import inception_weights
from vitrail.metrics.inception import load_inception

ABSENT = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
SIZES = ((64, 64), (299, 299), (128, 512), (1024, 768))


def theirs(file: Path) -> torch.nn.Module:
    """Load torch-fidelity's network with the weights of a file."""
    sys.modules |= {name: MagicMock() for name in ABSENT if name not in sys.modules}
    from torch_fidelity import FeatureExtractorInceptionV3

    network: torch.nn.Module = FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(file))
    return network


def main() -> None:
    """Compare both networks and print the differences."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "inception.pth"
        torch.save(inception_weights(), file)
        other, own = theirs(file), load_inception(str(file), "cpu")
        for height, width in SIZES:
            pixels = torch.randint(256, (2, 3, height, width), generator=torch.Generator().manual_seed(height))
            features, logits = other(pixels.to(torch.uint8))
            found = own(pixels / 255)
            apart = [float((one - two).abs().max()) for one, two in ((found, features), (own.logits(found), logits))]
            print(f"{width}x{height}: features differ by {apart[0]:.3g} of {float(features.abs().max()):.3g}, "
                  f"logits by {apart[1]:.3g} of {float(logits.abs().max()):.3g}")  # fmt: skip


if __name__ == "__main__":
    main()
